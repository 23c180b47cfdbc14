"""What the verbs that make a run share: the check of the output file, the progress, and the report."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpuprof.errors import GpuprofError

if TYPE_CHECKING:
    from gpuprof.profiler import Progress
    from gpuprof.record import Record


def check_output(path: Path | None) -> None:
    """Fail before measuring rather than after, if the result could not be saved.

    Raises:
        GpuprofError: the folder is missing or not writable, or the path is a folder.
    """
    if path is None:
        return
    if path.is_dir():
        raise GpuprofError(f"cannot write {path}: it is a folder; give a file name such as {path / 'run.json'}")
    if not path.parent.is_dir():
        raise GpuprofError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise GpuprofError(f"cannot write {path}: the folder {path.parent} is not writable")


@contextmanager
def progress(quiet: bool, *, of_files: bool = False) -> Iterator[Progress | None]:
    """A line per pass on the terminal, or per file with its bytes; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    done = DownloadColumn() if of_files else MofNCompleteColumn()
    columns = (TextColumn("{task.description:<9}", markup=False), BarColumn(), done, TimeElapsedColumn())
    # what is printed meanwhile goes above the bars, unless it goes elsewhere
    above = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=above) as bars:
        tasks: dict[str, int] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)  # type: ignore[arg-type]

        yield tell


def deliver(
    make: Callable[[], Record], output: Path | None, quiet: bool, verbose: bool, store: str | None = None
) -> None:
    """Make the run, save it, and print its report."""
    check_output(output)
    if store is not None:
        check_store(store)
    try:
        run = make()
    except GpuprofError as error:
        if verbose and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        raise
    if output is not None:
        run.save(output)
    if not quiet:
        print_report(run)
        if output is not None:
            print(f"\nSaved to {output}: look again with 'gpuprof show {output}'")
    if store is not None:  # last: a store that is gone by now must not cost the report
        keep(run, store, quiet)
    if verbose:
        print_outcomes(run)
    if quiet:
        for line in run.warnings:
            print(f"gpuprof: {line}", file=sys.stderr)


def check_store(store: str) -> None:
    """Find out what is wrong with a store before an hour of measuring."""
    from gpuprof.history import open_store  # needs SQLAlchemy

    open_store(store).close()


def keep(run: Record, store: str, quiet: bool) -> None:
    """Add a run to a store, and say as what."""
    from gpuprof.history import open_store

    with open_store(store) as opened:
        stored = opened.add(run, commit())[:12]
    if not quiet:
        print(f"\nStored as {stored}: look again with 'gpuprof history show {stored} --store {opened.name}'")


def print_outcomes(run: Record) -> None:
    """How each pass ended, a line each."""
    for name, outcome in run.passes.items():
        about = "; ".join(part for part in (outcome.reason, outcome.remedy) if part)
        print(f"{name}: {outcome.status} in {outcome.seconds:.1f} s {about} {outcome.facts or ''}".rstrip())


def commit() -> str:
    """Short name of git's commit here, with a plus where the tree differs from it; empty where there is no git."""
    import subprocess

    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return said.stdout.strip()


def print_report(run: Record) -> None:
    """The tree on standard output, in colour on a terminal."""
    from gpuprof.render import render
    from gpuprof.render.view import View

    print(render(run, "tree", View(width=terminal_width(), color=in_color())), end="")


def terminal_width() -> int:
    """Columns of the terminal, 120 where there is none."""
    import shutil

    return shutil.get_terminal_size((120, 24)).columns if _is_terminal() or "COLUMNS" in os.environ else 120


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # None where a shell has closed it


def in_color() -> bool:
    """Whether to colour: a terminal that can, and nobody said NO_COLOR."""
    return _is_terminal() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
