"""The Run: a record, with what people ask of it at hand."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Literal

from gpuprof import record
from gpuprof.analysis.backward import backward_ratios
from gpuprof.analysis.modules import by_module
from gpuprof.errors import GpuprofError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Run(record.Record):
    """What was measured, of one process, of one rank of a job, or of the job as a whole.

    Its raw tables and facts are those of `gpuprof.record.Record`; the methods here only pass it on to the functions of
    `gpuprof.analysis` and `gpuprof.render`, which take any record. A figure is one of matplotlib's: a notebook shows
    it, ``figure.savefig("budget.png")`` writes it.
    """

    @classmethod
    def of(cls, found: record.Record) -> Run:
        """The record, whose tables it shares."""
        return cls(**vars(found))

    def __repr__(self) -> str:
        from gpuprof.render.notebook import two_lines

        return two_lines(self)

    def _repr_html_(self) -> str:
        from gpuprof.render.notebook import html

        return html(self)

    def modules(self, convention: str | None = None) -> pd.DataFrame:
        """One row per module, children included in a parent; see `gpuprof.analysis.modules.by_module`."""
        return by_module(self, convention)

    def backward_ratios(self, by: Literal["module", "class"] = "module") -> pd.DataFrame:
        """Backward over forward of each module or class; see `gpuprof.analysis.backward.backward_ratios`."""
        return backward_ratios(self, by)

    def show(
        self,
        format: str | None = None,
        *,
        by: str = "module",
        depth: int | None = None,
        top: int | None = None,
        sort: str | None = None,
        convention: str | None = None,
    ) -> None:
        """Print the report, as ``gpuprof show`` does.

        Args:
            format: of `gpuprof.render.FORMATS`; by default a tree, or where rows are chosen or are no modules a table.
            by: what a row is, of `gpuprof.render.view.BY`.
            depth: modules down to this depth; 0 is the root.
            top: only so many rows (not in a tree).
            sort: column to sort by, largest first (not in a tree).
            convention: how FLOPs are counted; the run's own by default.

        Raises:
            GpuprofError: an argument is none of these, they contradict, or the run has no such rows.
        """
        from gpuprof.render import fitting, render
        from gpuprof.render.view import View

        _check_counts(depth=depth, top=top)
        width = shutil.get_terminal_size((120, 24)).columns
        view = View(by, depth, top, sort, convention, width=width)
        print(render(self, fitting(format, view), view), end="")

    def budget_figure(
        self, phase: str | None = None, *, convention: str | None = None, denominator: str | None = None
    ) -> Figure:
        """Where the time of the step, or of a phase, went, as a waterfall.

        The arguments are those of `gpuprof.analysis.budget.budget`.

        Raises:
            GpuprofError: matplotlib is missing, or the run has no budget of it.
        """
        from gpuprof.analysis.budget import budget
        from gpuprof.render.budget import budget_figure

        return budget_figure(budget(self, convention, denominator, phase=phase))

    def roofline_figure(
        self, by: str = "op", *, phase: str | None = None, top: int | None = None, denominator: str | None = None
    ) -> Figure:
        """FLOP/s over FLOP per byte under the ceilings of the device: `gpuprof.render.roofline_chart.roofline_figure`.

        Raises:
            GpuprofError: matplotlib is missing, or the run has no such dots.
        """
        from gpuprof.render.roofline_chart import roofline_figure
        from gpuprof.render.view import View

        _check_counts(top=top)
        return roofline_figure(self, View(by=by, phase=phase, top=top), denominator)

    def memory_figure(self) -> Figure:
        """Memory over the time of the step; see `gpuprof.render.memory_chart.memory_figure`.

        Raises:
            GpuprofError: matplotlib is missing, or the run has no timeline.
        """
        from gpuprof.render.memory_chart import memory_figure

        return memory_figure(self)

    def backward_figure(
        self, by: Literal["module", "class"] = "module", *, depth: int | None = None, top: int | None = None
    ) -> Figure:
        """Backward over forward, as bars; see `gpuprof.render.backward_chart.backward_figure`.

        Raises:
            GpuprofError: matplotlib is missing, or the run has no backward.
        """
        from gpuprof.render.backward_chart import backward_figure
        from gpuprof.render.view import View

        _check_counts(depth=depth, top=top)
        return backward_figure(self, View(by=by, depth=depth, top=top))


def _check_counts(**given: int | None) -> None:
    """Refuse a depth or a number of rows that is none, as the command line does."""
    for name, value in given.items():
        least = 0 if name == "depth" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            raise GpuprofError(f"{name} must be a whole number of at least {least}, not {value!r}")


def load(path: str | os.PathLike[str]) -> Run:
    """Read a saved run, or the log of a `gpuprof.Meter`, or the folder of one. Does not need torch.

    Raises:
        GpuprofError: as `gpuprof.record.Record.load`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise GpuprofError(f"load takes the path of a saved run, not a {type(path).__name__}")
    return Run.load(path)
