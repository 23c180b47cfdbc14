"""What MODEL means on the command line, checked without torch."""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path

from gpuprof.errors import GpuprofError
from gpuprof.workload.options import Options
from gpuprof.workload.presets import preset_names

KINDS = "a preset, a local Hugging Face directory, a Hub id owner/name, or file.py:function"


def check(reference: str, options: Options, *, weightless: bool = False) -> str:
    """Refuse what can be told to be wrong before the model is built.

    Args:
        reference: as `gpuprof.workload.build` takes it.
        options: what the user asks of it.
        weightless: whether it is to be counted without weights.

    Returns:
        The kind of the reference: `preset`, `directory`, `hub` or `file`.

    Raises:
        GpuprofError: the reference names nothing, or the options do not fit its kind.
    """
    if weightless and options.attention == "flex_attention":
        raise GpuprofError(
            "flex_attention cannot be counted without weights: --attention sdpa counts the same, and 'gpuprof profile "
            "MODEL --passes count' runs it"
        )
    if weightless and options.compile != "none":
        raise GpuprofError(
            f"--compile {options.compile} is for a model that runs: a count without weights counts what is not compiled"
        )
    if not weightless and (options.device or "").startswith("meta"):
        raise GpuprofError("--device meta computes nothing that could be measured: 'gpuprof count MODEL' counts on it")
    kind = _kind(reference)
    if options.parallel != "none":
        _check_parallel(reference, kind, options.parallel, weightless)
    if kind == "file":
        file = reference.rpartition(":")[0]
        if not Path(file).expanduser().is_file():
            raise GpuprofError(f"no file {file}")
    if kind == "directory" and not (Path(reference).expanduser() / "config.json").is_file():
        raise GpuprofError(f"no config.json in {reference}: it is no Hugging Face model directory")
    return kind


def _check_parallel(reference: str, kind: str, how: str, weightless: bool) -> None:
    """Refuse to shard what is not a named model that runs in several processes.

    Raises:
        GpuprofError: it is not.
    """
    if weightless:
        raise GpuprofError(f"--parallel {how} shards a model that runs: a count without weights is of the whole model")
    if kind == "file":
        raise GpuprofError(f"--parallel {how} is for a model by name: {reference} shards its model itself")
    distributed = sys.modules.get("torch.distributed")  # where nobody has loaded it, there is no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        world = distributed.get_world_size()
    else:
        given = os.environ.get("WORLD_SIZE", "1")
        world = int(given) if given.isdecimal() else 1
    if world < 2:
        raise GpuprofError(
            f"--parallel {how} needs several processes: run it as 'torchrun --nproc-per-node N -m gpuprof profile "
            f"{reference} --parallel {how}'"
        )


def _kind(reference: str) -> str:
    """Which of the four kinds a reference is."""
    path = Path(reference).expanduser()
    if re.search(r"\.py(:\w*)?$", reference):
        if not re.search(r"\.py:\w+$", reference):
            raise GpuprofError(f"which function of {reference.rstrip(':')}? Give it as file.py:function")
        return "file"
    if reference in preset_names():
        return "preset"
    if path.is_dir():
        return "directory"
    if path.is_file():
        raise GpuprofError(f"{reference} is a file; MODEL is {KINDS}")
    if reference.startswith((".", "/", "~")):
        raise GpuprofError(f"no directory {reference}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", reference):
        return "hub"
    near = get_close_matches(reference.lower(), preset_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the presets are {', '.join(preset_names())}"
    raise GpuprofError(f"no model {reference!r}: {hint} (MODEL is {KINDS})")
