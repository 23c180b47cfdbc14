"""``gpuprof watch``: the log of a training in the terminal, while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.errors import GpuprofError
from gpuprof.log import logs

if TYPE_CHECKING:
    from gpuprof.analysis.following import Training


def watch(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="That a gpuprof.Meter has as out, or one log in it.", show_default=False,
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Print what there is, and end.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Only so many reads, the newest.")] = 20,
    min_change: Annotated[str, typer.Option(metavar="SHARE", help="A smaller change is none.")] = "2%",
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")] = 2.0,
    format: o.FormatOption = o.Format.text,
) -> None:  # fmt: skip
    """Follow a training: MFU, tokens/s and step time at each read of its meter, and what moved. Ctrl-C ends it."""
    least = o.share(min_change, "--min-change")
    if format is not o.Format.text and not once:
        raise GpuprofError(f"--format {format.value} is for what there is now: give --once")
    if not folder.exists():
        raise GpuprofError(f"no folder {folder}: give the one that a gpuprof.Meter has as out")
    logs(folder)
    if once:
        _print(folder, least, limit, format.value)
        return
    try:
        _follow(folder, least, limit, every)
    except KeyboardInterrupt:  # how it is meant to end
        print()


class _Logs:
    """The logs of a folder, read as far as they went."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends: dict[int, int] = {}
        self.ranks: dict[int, Training] = {}

    def read(self) -> bool:
        """Whether there is something new."""
        from gpuprof.analysis.following import Training
        from gpuprof.log import new_lines

        found = False
        for rank, path in logs(self._folder).items():
            new, self._ends[rank] = new_lines(path, self._ends.get(rank, 0))
            self.ranks[rank] = self.ranks.get(rank, Training({}, {})).after(new)
            found |= bool(new)
        return found


def _print(folder: Path, min_change: float, limit: int, format: str) -> None:
    from gpuprof.analysis.following import moved, together
    from gpuprof.cli.output import in_color, terminal_width
    from gpuprof.render.view import View
    from gpuprof.render.watch import render_watch

    there = _Logs(folder)
    there.read()
    reads = together(there.ranks)
    view = View(width=terminal_width(), color=in_color())
    print(render_watch(there.ranks, reads, moved(reads, min_change), format, limit, view), end="")


def _follow(folder: Path, min_change: float, limit: int, every: float) -> None:
    """A table that is drawn anew, on a terminal; else a line for each read, and for each change once it is seen."""
    import os
    import sys
    import time

    from gpuprof.analysis.following import moved, together
    from gpuprof.cli.output import in_color, terminal_width
    from gpuprof.render.view import View
    from gpuprof.render.watch import line, render_watch, sentence

    there, on_terminal = _Logs(folder), sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    told, said = set[int](), set[str]()
    while True:
        if there.read():
            reads = together(there.ranks)
            found = moved(reads, min_change)
            if on_terminal:
                view = View(width=terminal_width(), color=in_color())
                print(f"\x1b[H\x1b[J{render_watch(there.ranks, reads, found, 'text', limit, view)}", end="", flush=True)
            else:
                lines = [line(row) for row in reads.to_dict("records") if row["step"] not in told]
                new = {sentence(reads, group): group for group in found if not group[0].provisional}
                lines += [text for text in new if text not in said]
                told, said = {*reads["step"]}, {*said, *new}
                print("".join(f"{one}\n" for one in lines), end="", flush=True)
        time.sleep(every)
