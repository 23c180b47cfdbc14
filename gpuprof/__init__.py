"""gpuprof: a measured GPU profiler that validates theoretical FLOPs.

The public names load what they need when they are first used: importing gpuprof does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpuprof.version import __version__ as __version__

if TYPE_CHECKING:
    from gpuprof.analysis.validation import Validation, validate
    from gpuprof.errors import GpuprofError
    from gpuprof.imported import read_trace
    from gpuprof.job import gather, read_job
    from gpuprof.meter import Meter
    from gpuprof.profiler import count, profile
    from gpuprof.reports import read_report
    from gpuprof.run import Run, load
    from gpuprof.theory.rules import Cost, TensorSpec, flop_rule

__all__ = [
    "Cost",
    "GpuprofError",
    "Meter",
    "Run",
    "TensorSpec",
    "Validation",
    "count",
    "flop_rule",
    "gather",
    "load",
    "profile",
    "read_job",
    "read_report",
    "read_trace",
    "validate",
]

_HOMES = {
    "Cost": "gpuprof.theory.rules",
    "GpuprofError": "gpuprof.errors",
    "Meter": "gpuprof.meter",
    "Run": "gpuprof.run",
    "TensorSpec": "gpuprof.theory.rules",
    "Validation": "gpuprof.analysis.validation",
    "count": "gpuprof.profiler",
    "flop_rule": "gpuprof.theory.rules",
    "gather": "gpuprof.job",
    "load": "gpuprof.run",
    "profile": "gpuprof.profiler",
    "read_job": "gpuprof.job",
    "read_report": "gpuprof.reports",
    "read_trace": "gpuprof.imported",
    "validate": "gpuprof.analysis.validation",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpuprof' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
