"""Paths of modules."""

from __future__ import annotations

from gpuprof.record import UNATTRIBUTED


def ancestors(path: str) -> list[str]:
    """The module itself and every module that it is part of, up to the root."""
    if path == UNATTRIBUTED:
        return [path]
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]
