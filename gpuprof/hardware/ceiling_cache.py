"""Ceilings that were measured before, by device and software: one JSON file per user. Torch-free."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.files import write_atomically

SCHEMA_VERSION = 1
COPY = "copy"
"""Name of the copy bandwidth among the entries of a device; the others are dtypes."""


def path() -> Path:
    """The file: ceilings.json in ``$GPUPROF_CACHE``, else in gpuprof's folder of the user's cache.

    Raises:
        GpuprofError: the user has no home.
    """
    given, shared = os.environ.get("GPUPROF_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given:
        return Path(given) / "ceilings.json"
    if not shared.is_absolute():  # as its specification says: then it does not count
        try:
            shared = Path.home() / ".cache"
        except RuntimeError as error:
            raise GpuprofError("no home to keep ceilings in: set GPUPROF_CACHE to a folder") from error
    return shared / "gpuprof" / "ceilings.json"


def key(device: dict[str, Any], environment: dict[str, Any]) -> str:
    """What a ceiling holds for: a GPU with its driver, or a processor with its threads, and the version of torch.

    Args:
        device: as `gpuprof.hardware.device.describe` gives it.
        environment: as `gpuprof.hardware.device.environment` gives it.
    """
    if device["type"] == "cuda":
        parts = [device["uuid"], f"driver {device['driver'] or 'unknown'}"]
    else:
        parts = [device["name"], f"{environment['threads']} threads"]
    return ", ".join([*parts, f"torch {environment['torch']}"])


def read(key: str) -> dict[str, dict[str, Any]]:
    """Entries of a device: by dtype, and `COPY`; empty where nothing was measured.

    Raises:
        GpuprofError: there is a file, but it cannot be used; one line for the user, and no reason to stop.
    """
    return _devices().get(key, {})


def store(key: str, name: str, entry: dict[str, Any]) -> Path:
    """Put one entry beside those that the file has; a file that cannot be used is replaced.

    Of two writers at the same moment, one may lose its entry; the file is whole at any time.

    Args:
        key: of the device.
        name: a dtype, or `COPY`.
        entry: with ``date`` (ISO 8601), ``spread``, and ``flops_per_s`` or ``bytes_per_s``.

    Raises:
        GpuprofError: the file cannot be written.
    """
    try:
        devices = _devices()
    except GpuprofError:
        devices = {}
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpuprofError(f"cannot make the folder {file.parent}: {error.strerror or error}") from error
    devices.setdefault(key, {})[name] = entry
    content = {"gpuprof": "ceilings", "schema_version": SCHEMA_VERSION, "devices": devices}
    return write_atomically(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _devices() -> dict[str, dict[str, dict[str, Any]]]:
    try:
        file = path()
        data = json.loads(file.read_bytes())
    except (FileNotFoundError, GpuprofError):
        return {}
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError):
        reason = "it is no whole JSON"
    else:
        if _is_cache(data):
            return dict(data["devices"])
        reason = "it is no cache of ceilings that this gpuprof reads"
    # without the path: a warning of a run is saved with it, and a home names its user
    raise GpuprofError(f"the cached ceilings.json is ignored ({reason}): 'gpuprof ceilings' writes it anew")


def _is_cache(data: Any) -> bool:
    try:
        entries = [entry for device in data["devices"].values() for entry in device.items()]
        return data["schema_version"] == SCHEMA_VERSION and all(_is_entry(*entry) for entry in entries)
    except (AttributeError, KeyError, TypeError):
        return False


def _is_entry(name: str, entry: Any) -> bool:
    rate = entry["bytes_per_s" if name == COPY else "flops_per_s"]
    figures = isinstance(rate, (int, float)) and isinstance(entry["spread"], (int, float))
    return figures and 0 < rate < math.inf and isinstance(entry["date"], str)
