"""What README and docs show of a terminal, held against what the commands print.

A block of Markdown in the language `console` is a transcript: `$ gpuprof ...` and below it what that prints, in 120
columns or in those that `COLUMNS=80 gpuprof ...` gives. What is left out, the command leaves out: `| head -12`.
Without arguments the blocks that are no longer true are named, with exit status 1; with --write they are put right.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("examples/*.md")),
    *sorted(ROOT.glob("docs/*.md")),
]

_BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$|^((?: {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
_PROMPT = "$ "
_FINDINGS = (0, 1, 3, 4)
"""Exit statuses of a verb that has said what it found."""


@dataclass(frozen=True)
class Block:
    """A piece of code in a page: its language, or "indented", its lines, and the number of the first one, from 1."""

    page: Path
    language: str
    lines: list[str]
    number: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced and the indented blocks of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        language, fenced, indented = found.groups()
        code = fenced if indented is None else textwrap.dedent(indented)
        first = text.count("\n", 0, found.start()) + (2 if indented is None else 1)
        yield Block(page, language if indented is None else "indented", code.splitlines(), first)


def renewed(block: Block) -> list[str]:
    """The lines of a transcript, with what its commands print now."""
    lines: list[str] = []
    left = iter(block.lines)
    for line in left:
        if not line.startswith(_PROMPT):
            continue  # what was printed before
        typed = [line]
        while typed[-1].endswith("\\"):
            typed.append(next(left))
        lines += [*([""] if lines and lines[-1] else []), *typed]
        lines += printed("".join(one.removesuffix("\\") for one in typed).removeprefix(_PROMPT))
    return lines


def printed(command: str) -> list[str]:
    """The lines that a command prints, run in this process; what stands behind its first pipe is run by the shell."""
    typed, _, filters = command.partition(" | ")
    words = shlex.split(typed)
    columns = words.pop(0).removeprefix("COLUMNS=") if words[0].startswith("COLUMNS=") else "120"
    text = _gpuprof(words, columns)
    if filters:
        done = subprocess.run(["sh", "-c", filters], input=text, capture_output=True, text=True, check=True, cwd=ROOT)
        text = done.stdout
    return [line.rstrip() for line in text.rstrip("\n").split("\n")]


def _gpuprof(words: list[str], columns: str) -> str:
    from gpuprof.cli import main

    said, before = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), signal.getsignal(signal.SIGTERM)
    with (
        tempfile.TemporaryDirectory() as cache,  # no ceilings of this machine
        mock.patch.dict(os.environ, {"COLUMNS": columns, "GPUPROF_CACHE": cache}),
        mock.patch.object(sys, "argv", words),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(said),
    ):
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        finally:
            signal.signal(signal.SIGTERM, before)
    if (status or 0) not in _FINDINGS:
        raise RuntimeError(f"'{shlex.join(words)}' ended with status {status}")
    said.seek(0)
    return said.read()


def difference(block: Block) -> str:
    """What a transcript says and its commands no longer print, and the other way round; nothing where it is true."""
    return "\n".join(difflib.unified_diff(block.lines, renewed(block), f"{block}", "printed now", lineterm=""))


def write(page: Path) -> int:
    """Put the transcripts of a page right; gives how many were not."""
    lines, wrong = page.read_text().splitlines(), 0
    for block in reversed(list(blocks(page))):
        if block.language == "console" and (now := renewed(block)) != block.lines:
            lines[block.number - 1 : block.number - 1 + len(block.lines)] = now
            wrong += 1
    if wrong:
        page.write_text("\n".join(lines) + "\n")
    return wrong


def main() -> int:
    if sys.argv[1:] == ["--write"]:
        for page in PAGES:
            if wrong := write(page):
                print(f"{page.relative_to(ROOT)}: {wrong} blocks written anew")
        return 0
    if sys.argv[1:]:
        print(f"{__doc__}\nusage: python scripts/docs.py [--write]", file=sys.stderr)
        return 2
    told = [difference(block) for page in PAGES for block in blocks(page) if block.language == "console"]
    print("\n".join(filter(None, told)), end="\n" if any(told) else "")
    return 1 if any(told) else 0


if __name__ == "__main__":
    sys.exit(main())
