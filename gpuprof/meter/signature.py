"""What a micro-batch costs is decided by: the same signature, the same FLOPs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
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


def in_words(key: Iterable[Any]) -> str:
    """A signature for people: ``input_ids 4x128, labels 4x128``."""
    shapes = ((name, next((one for one in what if isinstance(one, torch.Size)), None)) for name, *what in key)
    return ", ".join(
        name if shape is None else f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes
    )
