"""The Run: a record, with what people ask of it at hand."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from gpuprof import record
from gpuprof.analysis.backward import backward_ratios
from gpuprof.analysis.modules import by_module

if TYPE_CHECKING:
    import pandas as pd


class Run(record.Record):
    """What was measured, of one process, of one rank of a job, or of the job as a whole.

    Its raw tables and facts are those of `gpuprof.record.Record`; the methods here only pass it on to the functions of
    `gpuprof.analysis` and `gpuprof.render`, which take any record.
    """

    @classmethod
    def of(cls, found: record.Record) -> Run:
        """The record, whose tables it shares."""
        return cls(**vars(found))

    def modules(self, convention: str | None = None) -> pd.DataFrame:
        """One row per module, children included in a parent; see `gpuprof.analysis.modules.by_module`."""
        return by_module(self, convention)

    def backward_ratios(self, by: Literal["module", "class"] = "module") -> pd.DataFrame:
        """Backward over forward of each module or class; see `gpuprof.analysis.backward.backward_ratios`."""
        return backward_ratios(self, by)


def load(path: str | os.PathLike[str]) -> Run:
    """Read a saved run, or the log of a `gpuprof.Meter`, or the folder of one. Does not need torch.

    Raises:
        GpuprofError: as `gpuprof.record.Record.load`.
    """
    return Run.load(path)
