"""Nested tensors as rules see them: sequences of unequal lengths in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .rules import TensorSpec


class Nested(tuple[TensorSpec, ...]):
    """A nested tensor: its sequences, each with a batch of 1 before it."""

    def padded(self) -> TensorSpec:
        """Each as long as the longest."""
        longest = map(max, zip(*(spec.shape[1:] for spec in self), strict=True))
        return TensorSpec((len(self), *longest), self[0].dtype)

    def packed(self) -> TensorSpec:
        """One after the other."""
        return TensorSpec(packed_shape([spec.shape[1:] for spec in self]), self[0].dtype)


def packed_shape(parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Shape of the sequences one after the other; flat where they differ in more than one size.

    Args:
        parts: shape of each, all of as many dimensions.
    """
    sizes = [set(dimension) for dimension in zip(*parts, strict=True)]
    ragged = [index for index, values in enumerate(sizes) if len(values) > 1] or [0]
    if len(ragged) > 1 or not sizes:
        return (sum(map(math.prod, parts)),)
    return tuple(
        sum(part[index] for part in parts) if index == ragged[0] else values.pop() for index, values in enumerate(sizes)
    )


def first_nested(value: Any) -> Nested | None:
    """The first nested tensor in a nest of tuples; None without any."""
    if isinstance(value, Nested):
        return value
    if isinstance(value, tuple) and not isinstance(value, TensorSpec):
        for item in value:
            if (found := first_nested(item)) is not None:
                return found
    return None
