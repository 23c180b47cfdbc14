"""What a micro-batch costs is decided by: the same signature, the same FLOPs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch

from gpuprof.passes.objects import named_tensors

_DEEPEST = 4  # containers and objects in one another in which tensors are looked for


def signature(batch: Any) -> tuple[Hashable, ...]:
    """Names, shapes and dtypes of the tensors of a batch; nothing is read from the device.

    Args:
        batch: a tensor, or containers and plain objects that hold tensors.
    """
    if isinstance(batch, Mapping):  # what most are, in which most are tensors
        return tuple([
            (name, value.shape, value.dtype) if type(value) is torch.Tensor else (name, *signature(value))
            for name, value in batch.items()
        ])  # fmt: skip
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in named_tensors(batch, _DEEPEST))


def in_words(key: tuple[Hashable, ...]) -> str:
    """A signature for people: ``input_ids 4x128, labels 4x128``."""
    words = []
    for name, *what in key:  # type: ignore[misc]
        shape = next((part for part in what if isinstance(part, torch.Size)), None)
        words.append(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" if shape is not None else str(name))
    return ", ".join(words)
