"""Files that are no trace: what each is, and what to give instead. Nothing is unpickled, and no database opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from gpuprof.errors import GpuprofError


def kind_of(path: Path) -> Literal["trace", "table"]:
    """What a file is: a JSON text, or a table of Nsight Compute."""
    return "trace"


def no_trace(path: Path, text: bytes, problem: str | None) -> GpuprofError:
    """What is wrong with a text that has no list of events."""
    return GpuprofError(f"{path} is no trace of torch.profiler")
