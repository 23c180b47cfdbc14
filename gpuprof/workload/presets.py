"""The models gpuprof brings along: small JSON configurations, run with random weights."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from gpuprof.errors import GpuprofError

_FOLDER = resources.files("gpuprof.workload") / "presets"


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(file.name.removesuffix(".json") for file in _FOLDER.iterdir() if file.name.endswith(".json"))


def load_preset(name: str) -> dict[str, Any]:
    """A preset's content.

    Args:
        name: One of `preset_names()`.

    Returns:
        `description`, `source`, `architecture` (a transformers class), `config` (the fields of its
        configuration), `parameters` (their number) and, where it has any, `defaults` (of the options).

    Raises:
        GpuprofError: There is no such preset.
    """
    if name not in preset_names():
        raise GpuprofError(f"no preset {name!r}; the presets are: {', '.join(preset_names())}")
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
