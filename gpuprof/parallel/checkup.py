"""Whether the ranks of a job can work together: their devices, backends and versions, and which is the odd one."""

from __future__ import annotations

import platform
from collections import Counter
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist

from gpuprof.hardware.checkup import Finding
from gpuprof.hardware.device import describe
from gpuprof.parallel.control import Control
from gpuprof.version import __version__

_SAME = ("device", "backend", "python", "torch", "transformers", "gpuprof", "driver", "NCCL")
"""Facts that the ranks of a job have in common."""


def examine_ranks(control: Control, usable: bool) -> list[Finding]:
    """One finding for each rank: where it is, and what of it differs from most of the others.

    Args:
        control: every rank calls this.
        usable: whether this rank can profile at all, by its own findings.
    """
    facts = control.together("looking at the rank", _facts) | {"usable": usable}
    said = control.agree("what the ranks are", facts)
    usual = {name: Counter(one[name] for one in said if one).most_common(1)[0][0] for name in _SAME}
    return [_finding(control, rank, one, usual) for rank, one in enumerate(said)]


def _finding(control: Control, rank: int, facts: dict[str, Any] | None, usual: dict[str, str]) -> Finding:
    if facts is None:
        return Finding("ranks", f"rank {rank}", False, control.lost[rank], "see what it says on its own host")
    odd = [name for name in _SAME if facts[name] != usual[name]]
    where = f"{facts['host']}, {facts['where']} {facts['device']}, {facts['backend']}"
    detail = where + "".join(f"; {name} {facts[name] or 'none'}, the others {usual[name] or 'none'}" for name in odd)
    if not facts["usable"]:
        return Finding("ranks", f"rank {rank}", False, f"{detail}; cannot profile", "run 'gpuprof doctor' on its host")
    remedy = "the ranks of a job need the same software and devices" if odd else ""
    return Finding("ranks", f"rank {rank}", not odd, detail, remedy)


def _facts() -> dict[str, Any]:
    """What this rank is, after it has added up a number with all the others."""
    cuda = "nccl" in dist.get_backend_config()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    ones = torch.ones(1, device=device)
    dist.all_reduce(ones)
    if int(ones.item()) != dist.get_world_size():
        raise RuntimeError(f"an all-reduce of ones gave {ones.item():g} and not {dist.get_world_size()}")
    about = describe(device)
    return {
        "host": platform.node(),
        "where": str(device),
        "device": about.get("name") or about["cpu"]["name"],
        "driver": about.get("driver") or "",
        "backend": "NCCL" if cuda else "gloo",
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if cuda else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpuprof": __version__,
        "transformers": _version("transformers"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
