"""What is measured: a model, its inputs and the step that the passes repeat.

What needs torch loads when it is first used: options and names are checked without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpuprof.workload.options import Options
from gpuprof.workload.presets import load_preset, preset_names

if TYPE_CHECKING:
    from gpuprof.workload.reference import build
    from gpuprof.workload.workload import Workload, from_module

__all__ = ["Options", "Workload", "build", "from_module", "load_preset", "preset_names"]

_HOMES = {
    "Workload": "gpuprof.workload.workload",
    "build": "gpuprof.workload.reference",
    "from_module": "gpuprof.workload.workload",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpuprof.workload' has no attribute {name!r}")
