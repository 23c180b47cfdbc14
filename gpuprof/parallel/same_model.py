"""Whether ranks that share the parameters of one model have the same one: if not, their collectives would hang."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.parallel.control import Control


def same_model(control: Control, model: torch.nn.Module, lies: dict[str, Any]) -> None:
    """Refuse a rank whose model is another one than that of the first rank of its groups.

    Stages of a pipeline are different models, so only ranks that one group of DDP, FSDP or tensor parallelism joins
    are compared: by the class, and the names and whole shapes of the parameters.

    Args:
        control: every rank calls this.
        model: this rank's.
        lies: what `gpuprof.parallel.layout.layout` says of it.

    Raises:
        GpuprofError: a rank has another model; on every rank the same line.
    """
    if control.alone:
        return
    shapes = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
    sharing = [set(lies["groups"][name]) for name in lies["mesh"] if name != "pp"]
    words = f"{type(model).__name__} of {len(shapes)} parameters"
    digest = hashlib.sha256("\n".join([words, *shapes]).encode()).hexdigest()
    said = control.agree(
        "the model", {"words": words, "digest": digest, "first": min(set().union(*sharing), default=-1)}
    )
    for rank, one in enumerate(said):
        first = said[one["first"]] if one and one["first"] >= 0 else None
        if first is not None and one["digest"] != first["digest"]:
            raise GpuprofError(
                f"rank {rank} has another model than rank {one['first']}, by the names and shapes of its parameters "
                f"({one['words']}, {first['words']}): ranks of one group share one model"
            )
