"""Nested tensors: sequences of unequal lengths in one tensor, in torch's layouts jagged and strided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nested._internal.nested_tensor import NestedTensor


def part_shapes(tensor: torch.Tensor) -> list[tuple[int, ...]]:
    """Shape of each sequence of a nested tensor. Of a jagged one on a GPU that reads its lengths from there.

    Args:
        tensor: nested; a strided one has no ``shape`` at all, and a jagged one a name in the place of its lengths.
    """
    if isinstance(tensor, NestedTensor):
        lengths = tensor._offsets.diff() if tensor._lengths is None else tensor._lengths
        if lengths.is_meta:  # torch's own placeholder
            return [tuple(tensor._values.shape)]
        before, after = tensor._values.shape[: tensor._ragged_idx - 1], tensor._values.shape[tensor._ragged_idx :]
        return [(*before, length, *after) for length in lengths.tolist()]
    return [tuple(sizes) for sizes in tensor._nested_tensor_size().tolist()]


def padded_product(a: Any, b: Any, gradients: Sequence[bool] | None = None) -> int | None:
    """Matmul FLOPs that torch does for a batched product of a jagged tensor and a dense one.

    It pads the sequences to the longest, or to as many tokens as there are where it has not looked for the longest; but
    the dense one's gradient it takes sequence by sequence.

    Args:
        a: left factor, a tensor.
        b: right factor.
        gradients: which of the two is to be computed, instead of the product.

    Returns:
        None where both are nested, or one has no batch: nothing is padded there.
    """
    left = isinstance(a, NestedTensor)
    jagged, dense = (a, b) if left else (b, a)
    if dense.is_nested or dense.dim() != jagged.dim():
        return None
    tokens = jagged._values.shape[jagged._ragged_idx - 1]
    exact = 2 * jagged._values.numel() * dense.shape[-1 if left else -2]
    padded = exact // max(tokens, 1) * jagged.size(0) * (jagged._maybe_max_seqlen or tokens)
    return int(padded if gradients is None else padded * gradients[not left] + exact * gradients[left])
