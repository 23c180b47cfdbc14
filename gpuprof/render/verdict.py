"""The verdict on a run as text: it stands before everything else that is said of it."""

from __future__ import annotations

import textwrap

from rich.text import Text

from gpuprof.analysis.verdict import verdict
from gpuprof.record import Record
from gpuprof.render.console import to_text
from gpuprof.render.view import View

_WIDTH = 80
"""Columns that it keeps to, however wide the terminal: it is read, not looked up."""

_TIED = "\N{NO-BREAK SPACE}"


def verdict_text(run: Record, view: View) -> str:
    """The sentences, a paragraph each, and an empty line after them; bold where there is colour, and never in a box."""
    width = min(view.width, _WIDTH)
    sentences = [text.replace(" %", f"{_TIED}%") for text in verdict(run, view.convention)]
    lines = [
        line.replace(_TIED, " ") for text in sentences for line in textwrap.wrap(text, width, break_on_hyphens=False)
    ]
    return to_text(Text("\n".join([*lines, ""]), style="bold"), view)
