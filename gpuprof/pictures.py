"""Which pictures can be drawn here. Nothing is loaded to say so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from gpuprof.errors import GpuprofError

SUFFIXES = (".png", ".svg")
"""Kinds of picture."""


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured or read.

    Raises:
        GpuprofError: the suffix is of no kind that is known, or as `check_drawing`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise GpuprofError(f"cannot draw {path}: give a name that ends in {' or '.join(SUFFIXES)}")
    check_drawing()


def check_drawing() -> None:
    """Refuse to draw where that cannot be done.

    Raises:
        GpuprofError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise GpuprofError("charts need matplotlib, which is not installed: pip install 'gpuprof[plot]'")
