"""A run as text: one function per format, in one table. Formatting only; figures come from `gpuprof.analysis`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.once import unchanged
from gpuprof.errors import GpuprofError
from gpuprof.record import Record
from gpuprof.render.view import BY, View


def _of(module: str, name: str) -> Callable[[Record, View], str]:
    """A function of a module that is loaded when it is called: a command needs one format, and few need all."""

    def rendered(run: Record, view: View) -> str:
        text: str = getattr(import_module(f"{__name__}.{module}"), name)(run, view)
        return text

    return rendered


FORMATS: dict[str, Callable[[Record, View], str]] = {
    "tree": _of("tree", "render"),
    "table": _of("tables", "text"),
    "markdown": _of("tables", "markdown"),
    "csv": _of("tables", "csv"),
    "json": _of("tables", "json"),
    "calflops": _of("calflops", "render"),
    "perfetto": _of("perfetto", "render"),
}
"""Every format by name."""


def fitting(format: str | None, view: View) -> str:
    """The format asked for, by default a tree, or a table where rows are chosen or are no modules.

    Raises:
        GpuprofError: the format cannot have the rows that the view chooses.
    """
    chooses = view.top is not None or view.sort is not None
    of_modules = view.by == "module"
    if format is None:
        return "tree" if of_modules and not chooses else "table"
    if format in ("tree", "calflops") and chooses:
        raise GpuprofError("a tree keeps the model's order: give --top and --sort with --format table")
    if format == "calflops" and not of_modules:
        raise GpuprofError(f"calflops' layout is by module: give --by {view.by} with --format table")
    if format == "perfetto" and (chooses or not of_modules):
        raise GpuprofError("a trace has every kernel: give --by, --top and --sort with --format table")
    return format


def render(run: Record, format: str = "tree", view: View | None = None) -> str:
    """A run in one of the `FORMATS`.

    Raises:
        GpuprofError: no such format, or a view that does not go with it.
    """
    view = view or View()
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    if view.by not in BY:
        raise GpuprofError(f"cannot show by {view.by!r}: known are {', '.join(BY)}")
    if format == "tree" and view.by != "module":
        raise GpuprofError(
            f"a tree is by module; by {view.by} there are: {', '.join(f for f in FORMATS if f != 'tree')}"
        )
    only_counters = counters_only(run)
    if only_counters and format in ("calflops", "perfetto"):
        raise GpuprofError(f"a table of Nsight Compute has kernels alone, nothing for {format}: give --by kernel")
    with unchanged(run):
        if format == "tree":
            from gpuprof.render.verdict import verdict_text

            tree = _of("executed", "render") if only_counters else FORMATS["tree"]
            return verdict_text(run, view) + tree(run, view)
        return FORMATS[format](run, view)
