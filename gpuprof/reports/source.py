"""The text of a report, line by line, and the rows read from it so far."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpuprof.errors import GpuprofError
from gpuprof.reports.figures import Claim, figure, share
from gpuprof.units import size

TOTAL = "(total)"
"""The module of a figure that a report gives for the whole run, outside its table of modules."""

COLUMNS = ("line", "module", "class", "quantity", "value", "precision", "text")

_LARGEST_BYTES = 64 << 20
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Line(NamedTuple):
    """A line of a file: its number, from 1, and its text."""

    number: int
    text: str


class Source:
    """A report being read.

    Readers call a line by its place among the lines of the report, from 1. That is its number in the file only where
    the file has nothing else between them, so messages and rows are given the number of the file.

    Attributes:
        path: as the user gave it.
        lines: text of every line of the report.
        rows: what was read, one dict per claimed figure with the keys of `COLUMNS`.
        notes: what the reader should know of these figures, one line each.
    """

    def __init__(self, path: Any, lines: list[Line]) -> None:
        self.path = path
        self.lines = [line.text for line in lines]
        self._numbers = [line.number for line in lines]
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def number(self, line: int) -> int:
        """Number in the file of a line of the report."""
        return self._numbers[line - 1]

    def add(self, line: int, module: str, cls: str, quantity: str, claim: Claim, text: str) -> None:
        """One claimed figure."""
        values = (self.number(line), module, cls, quantity, claim.value, claim.precision, text)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def add_figure(self, line: int, module: str, cls: str, quantity: str, text: str, unit: str = "") -> None:
        """One claimed figure from its text; a percentage is a share.

        Raises:
            GpuprofError: it is not a figure of that unit.
        """
        text = text.strip()
        found = share(text) if text.endswith("%") else figure(text, unit)
        if found is None:
            raise self.error(f"expected a number for {quantity}, found {short(text)}", line)
        self.add(line, module, cls, quantity, found, text)

    def error(self, problem: str, line: int | None = None) -> GpuprofError:
        """The error to raise, with the file and the line in front of it."""
        return GpuprofError(f"{self.path}{f' line {self.number(line)}' if line else ''}: {problem}")

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Places of the lines, from 1, and lines."""
        return enumerate(self.lines, start=1)

    def find(self, pattern: str) -> list[int]:
        """Places of the lines in which the pattern occurs."""
        return [place for place, line in self.numbered() if re.search(pattern, line)]


def short(text: str, limit: int = 60) -> str:
    """Text from a report, quoted and cut for an error message."""
    text = text.strip()
    return repr(text if len(text) <= limit else text[: limit - 3] + "...") if text else "nothing"


def read_lines(path: Any) -> list[Line]:
    """Lines of a text file, without terminal colours and what a progress bar overwrote.

    Raises:
        GpuprofError: no such file, too large, not text, or empty.
    """
    path = Path(path)
    try:
        length = path.stat().st_size
        if length > _LARGEST_BYTES:
            raise GpuprofError(f"{path} has {size(length)}: too large for a counter's text report")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GpuprofError(f"cannot read report {path}: {reason}") from error
    try:
        # a report redirected to a file in PowerShell comes as UTF-16
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise GpuprofError(f"{path} is not text: give the report as the counter printed it") from error
    if "\0" in text:
        raise GpuprofError(f"{path} is not text: give the report as the counter printed it")
    if not text.strip():
        raise GpuprofError(f"{path} is empty: give the report as the counter printed it")
    text = html.unescape(_ESCAPES.sub("", text)).replace("\xa0", " ")  # a copy of a page, or of its source
    shown = (line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return [Line(number, line) for number, line in enumerate(shown, start=1)]
