"""Nested tensors: sequences of unequal lengths in one tensor, in torch's layouts jagged and strided."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def part_shapes(tensor: torch.Tensor) -> list[tuple[int, ...]]:
    """Shape of each sequence of a nested tensor. Of a jagged one on a GPU that reads its lengths from there.

    Args:
        tensor: nested; a strided one has no ``shape`` at all, and a jagged one a name in the place of its lengths.
    """
    if tensor.layout is torch.jagged:
        return [tuple(part.shape) for part in tensor.unbind()]
    return [tuple(sizes) for sizes in tensor._nested_tensor_size().tolist()]


def packed_shape(parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Shape of the sequences one after the other; flat where they differ in more than one size.

    Args:
        parts: shape of each, all of as many dimensions.
    """
    sizes = [set(dimension) for dimension in zip(*parts, strict=True)]
    ragged = [index for index, values in enumerate(sizes) if len(values) > 1] or [0]
    if len(ragged) > 1 or not sizes:
        return (sum(torch.Size(part).numel() for part in parts),)
    return tuple(
        sum(part[index] for part in parts) if index == ragged[0] else values.pop() for index, values in enumerate(sizes)
    )
