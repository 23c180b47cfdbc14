"""``gpuprof ab``: two commands in turns on one device, and the exact rank test."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.check import Format, FormatOption, Output, Top, conclude, is_copy
from gpuprof.errors import GpuprofError
from gpuprof.parallel.launch import require_one_process

if TYPE_CHECKING:
    from gpuprof.record import Record


def ab(
    base: Annotated[str, typer.Argument(metavar="CMD_BASE", help="A command that saves a run.", show_default=False)],
    head: Annotated[str, typer.Argument(metavar="CMD_HEAD", help="The command in question.", show_default=False)],
    launches: Annotated[int, typer.Option(min=2, max=50, help="Of each; under 5 nothing can be told.")] = 5,
    margin: Annotated[str, typer.Option(metavar="SHARE", help="A change below this is none.")] = "2%",
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the runs in this folder.", show_default=False)
    ] = None,
    format: FormatOption = Format.text,
    top: Top = None,
    output: Output = None,
    quiet: o.Quiet = False,
) -> None:
    """Run two commands in turns, and say which is slower. Status 1 if it is the second, 3 if that cannot be told.

    The shell runs them, with {out} replaced by the file that the run is to be saved to, or -o FILE appended.
    """
    require_one_process("ab")
    from gpuprof.cli.output import check_output

    check_output(output)
    share = o.share(margin, "--margin")
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GpuprofError(f"cannot make the folder {keep}: {error.strerror or error}") from error
    from gpuprof.analysis.check import check_interleaved

    with nullcontext(keep) if keep is not None else tempfile.TemporaryDirectory(prefix="gpuprof-ab-") as folder:
        runs = _take_turns({"base": base, "head": head}, launches, Path(folder), quiet)
    conclude(check_interleaved(runs["base"], runs["head"], share), format, top, output)


def _take_turns(commands: dict[str, str], launches: int, folder: Path, quiet: bool) -> dict[str, list[Record]]:
    """Launch both so often, ABBA: what drifts steadily favours neither."""
    runs: dict[str, list[Record]] = {name: [] for name in commands}
    turns = [name for pair in range(launches) for name in list(commands)[:: -1 if pair % 2 else 1]]
    for number, name in enumerate(turns, start=1):
        begin = time.perf_counter()
        path = folder.absolute() / f"{number:02}-{name}.json.gz"
        try:
            run = _launch(commands[name], path)
            if any(is_copy(run, other) for of_one in runs.values() for other in of_one):
                raise GpuprofError("the command saved a run that was there before: it has to measure anew each time")
            runs[name].append(run)
        except GpuprofError as error:
            raise GpuprofError(f"launch {number} of {len(turns)}, {name}: {error}") from error
        if not quiet:
            _tell(f"[{number}/{len(turns)}] {name}", runs[name][-1], time.perf_counter() - begin)
    return runs


def _launch(command: str, path: Path) -> Record:
    """Run a command of the shell, in a process group of its own, and read the run that it saved.

    Raises:
        GpuprofError: it failed, or saved none, or one that is not timed.
    """
    from gpuprof.analysis.check import check_timed
    from gpuprof.analysis.comparison import launches
    from gpuprof.record import load
    from gpuprof.signals import held_back
    from gpuprof.sweep import stop

    out = shlex.quote(str(path))
    path.unlink(missing_ok=True)
    line = command.replace("{out}", out) if "{out}" in command else f"{command} -o {out}"
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = None
        try:
            with held_back():
                child = subprocess.Popen(
                    line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                    start_new_session=True,
                )  # fmt: skip
            child.wait()
        finally:
            if child is not None and child.returncode is None:
                stop(child)
        said.seek(0)
        complaint = [text.strip() for text in said if text.strip()]
    if child.returncode:
        why = f": {complaint[-1].removeprefix('gpuprof: ')[:300]}" if complaint else ""
        raise GpuprofError(f"the command ended with status {child.returncode}{why}")
    if not path.exists():
        raise GpuprofError("the command saved no run: let it take -o FILE, or write {out} where the file goes")
    run = load(path)
    check_timed(launches(run), "its run")
    return run


def _tell(turn: str, run: Record, seconds: float) -> None:
    from gpuprof import units
    from gpuprof.analysis.steps import step_seconds

    print(f"{turn}: step {units.duration(step_seconds(run))}, took {seconds:.1f} s", file=sys.stderr)
