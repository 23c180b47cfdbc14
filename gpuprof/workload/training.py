"""What training options do to a model: freezing, activation checkpointing, an optimizer, compiling it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.workload.options import Options


def prepare(model: torch.nn.Module, options: Options) -> None:
    """Sets a model up for its mode; an optimizer is made after that, of the parameters as they are sharded.

    Raises:
        GpuprofError: A pattern of `freeze` matches nothing, nothing is left to train, or the model has no
            activation checkpointing.
    """
    model.train(options.mode == "train")
    freeze(model, options.freeze)
    checkpoint(model, options.checkpointing)


def compile_in_place(model: torch.nn.Module, options: Options) -> None:
    """Has torch.compile take over the calls of a model, if it is asked for; modules keep their paths."""
    if options.compile != "none":
        model.compile(mode=options.compile)


def freeze(model: torch.nn.Module, patterns: tuple[str, ...]) -> None:
    """Turns off the gradients of every parameter that a pattern names, itself or a module it is in.

    Raises:
        GpuprofError: A pattern matches nothing, or everything is frozen.
    """
    for pattern in patterns:
        frozen = [parameter for name, parameter in model.named_parameters() if _matches(name, pattern)]
        if not frozen:
            children = ", ".join(name for name, _ in model.named_children())
            raise GpuprofError(
                f"--freeze {pattern!r} matches no module or parameter of {type(model).__name__}, whose "
                f"modules are: {children}"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise GpuprofError(f"--freeze {' '.join(patterns)} leaves nothing of {type(model).__name__} to train")


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a parameter's path, or the path of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def checkpoint(model: Any, kind: str) -> None:
    """Makes a transformers model run its layers again in the backward instead of keeping activations.

    Args:
        model: The model.
        kind: `none`, `reentrant` or `non-reentrant`: the two ways torch has.

    Raises:
        GpuprofError: The model does not support it.
    """
    if kind == "none":
        return
    # The newer name first: transformers renames it, and warns at the older one.
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(
        model, "gradient_checkpointing_enable", None
    )
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise GpuprofError(f"--checkpointing {kind}: {type(model).__name__} has no activation checkpointing")
    try:
        enable({"use_reentrant": kind == "reentrant"})
    except ValueError as error:
        raise GpuprofError(f"--checkpointing {kind}: {type(model).__name__} does not support it") from error
    # A reentrant checkpoint passes gradients on only if its input needs one, and frozen embeddings give none.
    if kind == "reentrant" and hasattr(model, "enable_input_require_grads"):
        embeddings = model.get_input_embeddings()
        if not any(parameter.requires_grad for parameter in embeddings.parameters()):
            model.enable_input_require_grads()


def make_optimizer(model: torch.nn.Module, kind: str) -> torch.optim.Optimizer | None:
    """An optimizer whose learning rate is 0: the same kernels run, and the parameters stay as they are.

    So every pass, whose step is repeated many times, sees the same model.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if kind == "adamw":
        return torch.optim.AdamW(trained, lr=0.0)
    if kind == "sgd":
        return torch.optim.SGD(trained, lr=0.0)
    return None
