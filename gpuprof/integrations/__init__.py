"""The meter inside of training frameworks; each is loaded when its class is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuprof.integrations.huggingface import GpuprofCallback
    from gpuprof.integrations.lightning import LightningMeter

__all__ = ["GpuprofCallback", "LightningMeter"]

_HOMES = {
    "GpuprofCallback": "gpuprof.integrations.huggingface",
    "LightningMeter": "gpuprof.integrations.lightning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpuprof.integrations' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
