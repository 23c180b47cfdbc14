"""Which part of a run to show, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuprof.analysis.collectives import by_collective
from gpuprof.analysis.communication import collectives
from gpuprof.analysis.conventions import beside
from gpuprof.analysis.executed import counters_only, executed_by_kernel, executed_by_module
from gpuprof.analysis.generation import is_generation, parts, untold_parts
from gpuprof.analysis.modules import by_class, by_module
from gpuprof.analysis.op_tables import by_kernel, by_op
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.ranks import by_rank
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import UNATTRIBUTED


def _executed(run: Record, convention: str | None) -> pd.DataFrame:
    if not run.done("counters"):
        why = run.passes["counters"].reason if "counters" in run.passes else "profile with --counters minimal on a GPU"
        raise GpuprofError(f"this run has no hardware counters: {why}")
    return executed_by_kernel(run) if counters_only(run) else executed_by_module(run)


def _by_kernel(run: Record, convention: str | None) -> pd.DataFrame:
    if run.kernels.empty and not run.is_job and not counters_only(run):
        trace = run.passes.get("trace")
        said = [trace.reason, trace.remedy] if trace else ["profile with the pass trace"]
        raise GpuprofError(f"this run has no kernels: {'; '.join(filter(None, said)) or 'none were traced'}")
    return executed_by_kernel(run) if counters_only(run) else by_kernel(run, convention)


def _by_part(run: Record, convention: str | None) -> pd.DataFrame:
    if not is_generation(run):
        raise GpuprofError(
            untold_parts(run) or "this run has no parts: they are those of a generation, --mode generate"
        )
    return parts(run)


BY: dict[str, Callable[[Record, str | None], pd.DataFrame]] = {
    "module": by_module,
    "class": by_class,
    "op": by_op,
    "kernel": _by_kernel,
    "phase": by_phase,
    "part": _by_part,
    "communication": lambda run, convention: by_collective(run) if run.is_job else collectives(run),
    "rank": by_rank,
    "convention": lambda run, convention: beside(run),
    "executed": _executed,
}
"""What a row may be."""


@dataclass(frozen=True)
class View:
    """What to show of a run.

    Attributes:
        by: what a row is, of `BY`.
        depth: modules down to this depth; the root is 0. None for all.
        top: this many rows. None for all.
        sort: column to sort by, largest first. None for the natural order.
        convention: how attention is counted. None for the run's own.
        phase: whose points a roofline has. None for all.
        width: columns of text.
        color: whether to colour text.
        folder: where the files of a job's ranks lie. None where it is not known.
    """

    by: str = "module"
    depth: int | None = None
    top: int | None = None
    sort: str | None = None
    convention: str | None = None
    phase: str | None = None
    width: int = 120
    color: bool = False
    folder: Path | None = None


def frame(run: Record, view: View) -> pd.DataFrame:
    """The rows of a view, with raw figures.

    Raises:
        GpuprofError: no such column to sort by, or the run has no such rows.
    """
    if counters_only(run) and view.by not in ("kernel", "executed"):
        raise GpuprofError(f"a table of Nsight Compute has kernels alone, nothing by {view.by}: give --by kernel")
    table = BY[view.by](run, view.convention)
    if view.depth is not None and "module" in table:
        depths = table["module"].map(depth_of)
        table = table[depths <= view.depth]
    if view.sort is not None:
        if view.sort not in table:
            raise GpuprofError(f"no column {view.sort!r} to sort by: there are {', '.join(map(str, table.columns))}")
        words = pd.api.types.infer_dtype(table[view.sort], skipna=True) == "string"
        table = table.sort_values(view.sort, ascending=words, kind="stable", na_position="last")
    return table if view.top is None else table.head(view.top)


def depth_of(path: str) -> int:
    """How deep a module lies: 0 for the root."""
    return 0 if path in ("", UNATTRIBUTED) else path.count(".") + 1
