"""``gpuprof sweep``: many workloads, one after another, and what became of each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuprof.cli import options as o
from gpuprof.cli.groups import Shared, Swept, Timing, grouped
from gpuprof.errors import GpuprofError
from gpuprof.parallel.launch import require_one_process

if TYPE_CHECKING:
    import pandas as pd

    from gpuprof.sweep import Point, Tell

_MEASURING, _OUTPUT = "Measuring", "Output"


@grouped
def sweep(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL[,MODEL]", help="Models as 'gpuprof profile' takes them.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the runs and tables.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ],
    swept: Swept,
    shared: Shared,
    timing: Timing,
    passes: Annotated[
        str,
        typer.Option(metavar="LIST", help="Which passes to run at each point.", rich_help_panel=_MEASURING),
    ] = "count,time,memory,telemetry",
    limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Kill a point that takes longer.", rich_help_panel=_MEASURING, show_default=False
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Run points that failed again.", rich_help_panel=_MEASURING)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command of each point, and run none.", rich_help_panel=_OUTPUT)
    ] = False,
    format: Annotated[
        o.Format, typer.Option("--format", "-f", help="For people or for machines.", rich_help_panel=_OUTPUT)
    ] = o.Format.text,
    quiet: o.Quiet = False,
) -> None:
    """Profile every combination of the given values, each in a process of its own, into one table and a chart.

    The same command goes on where it was interrupted.
    """
    require_one_process("sweep")
    from gpuprof.passes.options import check as check_passes
    from gpuprof.sweep import SIZES, check, grid, joined
    from gpuprof.sweep import sweep as run_sweep

    values = {name: _values(name, given, name in SIZES) for name, given in vars(swept).items() if given is not None}
    planned = grid([str(name) for name in _values("MODEL", model, False)], values)
    check_passes(o.names(passes), timing.warmup, timing.steps, timing.peak_tflops)
    if limit is not None and not limit > 0:
        raise GpuprofError(f"--limit must be above 0, not {limit:g}")
    same = o.plain(vars(shared))
    check(planned, **same)
    measured = {"warmup": timing.warmup, "steps": timing.steps, "passes": passes} | o.plain(vars(timing))
    fixed = _arguments(same | measured)
    if dry_run:
        for line in _commands(planned, joined(planned, fixed, output), fixed, output, retry):
            print(line)
        return
    try:
        with _progress(quiet) as tell:
            reached = run_sweep(planned, fixed, output, limit_s=limit, retry=retry, tell=tell)
    except (KeyboardInterrupt, SystemExit):
        _save(joined(planned, fixed, output), output)
        raise
    table, saved = _save(reached, output)
    if not quiet:
        _show(table, saved, format, output)
    names = {point.name for point in planned}
    sys.exit(_status([point for point in reached if point.name in names]))


def _values(name: str, given: str, whole: bool) -> list[int | str]:
    """The values of a list, each once.

    Raises:
        GpuprofError: there is none, or one is no number where it has to be.
    """
    words = "MODEL" if name == "MODEL" else f"--{name.replace('_', '-')}"
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts:
        raise GpuprofError(f"{words} {given!r} names no value")
    try:
        return list(dict.fromkeys(int(part) if whole else part for part in parts))
    except ValueError as error:
        raise GpuprofError(f"{words} {given!r}: give whole numbers, separated by commas") from error


def _arguments(given: dict[str, Any]) -> list[str]:
    """Options as arguments of ``gpuprof profile``, without those that were not given."""
    arguments: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif value is not None and value is not False:
            for one in value if isinstance(value, tuple) else (value,):
                arguments += [flag, f"{one:g}" if isinstance(one, float) else str(one)]
    return arguments


def _commands(
    planned: Sequence[Point], points: Sequence[Point], fixed: Sequence[str], folder: Path, retry: bool
) -> Iterator[str]:
    """A line per planned point: what measures it, and as a comment why it would not be run."""
    from gpuprof.sweep import to_run

    left = {point.name for point in to_run(planned, points, retry)}
    known = {point.name: point for point in points}
    for name in (point.name for point in planned):
        point = known[name]
        line = shlex.join(["gpuprof", "profile", *point.arguments, *fixed, "-q", "-o", str(point.file(folder))])
        yield line if name in left else f"{line}  # {point.status}"


def _save(reached: Sequence[Point], folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write the table and the chart; the names of what was written."""
    from gpuprof.analysis.sweep import sweep_table
    from gpuprof.files import write_atomically
    from gpuprof.render.sweep import csv, markdown, sweep_chart
    from gpuprof.render.view import View
    from gpuprof.sweep import run_of

    table = sweep_table([(point, run_of(point, folder)) for point in reached])
    saved = ["sweep.json", "sweep.csv", "sweep.md"]
    write_atomically(folder / "sweep.csv", csv(table, View()))
    write_atomically(folder / "sweep.md", markdown(table, View()))
    try:
        for name in ("sweep.png", "sweep.svg"):
            sweep_chart(table, folder / name)
            saved.append(name)
    except GpuprofError as error:
        print(f"gpuprof: {error}", file=sys.stderr)
    return table, saved


def _show(table: pd.DataFrame, saved: Sequence[str], format: o.Format, output: Path) -> None:
    """Print the table, and for people what was written."""
    from gpuprof.cli.output import in_color, terminal_width
    from gpuprof.render.sweep import FORMATS
    from gpuprof.render.view import View

    print(FORMATS[format.value](table, View(width=terminal_width(), color=in_color())), end="")
    if format is o.Format.text:
        print(f"Saved in {output}: {', '.join(saved)}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Tell | None]:
    """A line per point that was run on stderr, and on a terminal a bar below them; with the time that is left."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def tell(over: Sequence[Point], left: Sequence[Point]) -> None:
            total = len(over) + len(left)
            remaining = ""
            if over and left:
                mean = sum(point.seconds for point in over) / len(over)
                remaining = f", about {timedelta(seconds=round(mean * len(left)))} left"
            if over:
                point = over[-1]
                why = f": {point.reason}" if point.reason else ""
                ended = f"[{len(over)}/{total}] {point.name}: {point.status} in {point.seconds:.1f} s"
                console.print(ended + remaining + why, markup=False)
            name = escape(left[0].name) if left else ""
            bars.update(task, description=name + remaining, completed=len(over), total=total)

        yield tell


def _status(reached: Sequence[Point]) -> int:
    """Exit status: 1 if a point failed; out of memory is a result.

    Raises:
        GpuprofError: every point failed.
    """
    from gpuprof.sweep import FAILED, TIMED_OUT

    failed = [point for point in reached if point.status in (FAILED, TIMED_OUT)]
    if len(failed) == len(reached):
        raise GpuprofError(f"no point of the sweep was measured: {failed[0].reason}")
    return 1 if failed else 0
