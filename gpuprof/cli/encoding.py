"""What a report is printed with where the encoding of the output has no boxes, bars and signs."""

from __future__ import annotations

import codecs
import io
import sys

_PLAIN = str.maketrans({
    "─": "-", "│": "|", "├": "|", "└": "`", "█": "#", "▒": "-", "▏": "|", "·": "-", "…": "~", "±": "+-",
})  # fmt: skip


def spell_out() -> None:
    """From here on print what standard output and error cannot show in ASCII instead."""
    codecs.register_error("gpuprof", _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="gpuprof")


def _spelt(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(_PLAIN)
    return plain.encode("ascii", "replace").decode("ascii"), error.end
