"""A run as text: one function per format, in one table. Formatting only; figures come from `gpuprof.analysis`."""

from __future__ import annotations

from collections.abc import Callable

from gpuprof.analysis.executed import counters_only
from gpuprof.errors import GpuprofError
from gpuprof.record import Record
from gpuprof.render import calflops, executed, perfetto, tables, tree
from gpuprof.render.view import BY, View

FORMATS: dict[str, Callable[[Record, View], str]] = {
    "tree": tree.render,
    "table": tables.text,
    "markdown": tables.markdown,
    "csv": tables.csv,
    "json": tables.json,
    "calflops": calflops.render,
    "perfetto": perfetto.render,
}
"""Every format by name."""


def render(run: Record, format: str | None = None, view: View | None = None) -> str:
    """A run in one of the `FORMATS`; by default a tree, or where rows are chosen or are no modules a table.

    Raises:
        GpuprofError: no such format, or a view that does not go with it.
    """
    view = view or View()
    chooses = view.top is not None or view.sort is not None
    format = format or ("table" if chooses or view.by != "module" else "tree")
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    if view.by not in BY:
        raise GpuprofError(f"cannot show by {view.by!r}: known are {', '.join(BY)}")
    if format == "tree" and view.by != "module":
        raise GpuprofError(
            f"a tree is by module; by {view.by} there are: {', '.join(f for f in FORMATS if f != 'tree')}"
        )
    if format in ("tree", "calflops") and chooses:
        raise GpuprofError("a tree keeps the model's order: give --top and --sort with --format table")
    if format == "calflops" and view.by != "module":
        raise GpuprofError(f"calflops' layout is by module: give --by {view.by} with --format table")
    if format == "perfetto" and (chooses or view.by != "module"):
        raise GpuprofError("a trace has every kernel: give --by, --top and --sort with --format table")
    if counters_only(run):
        if format == "tree":
            return executed.render(run, view)
        if format in ("calflops", "perfetto"):
            raise GpuprofError(f"a table of Nsight Compute has kernels alone, nothing for {format}: give --by kernel")
    return FORMATS[format](run, view)
