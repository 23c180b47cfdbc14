"""Micro-batches and steps as the host sees them: marks, and what they are known by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gpuprof.meter.counts import Count
from gpuprof.meter.signature import Form, Signature
from gpuprof.meter.tokens import Unmasked, added
from gpuprof.meter.work import Work, total


class Micro:
    """A micro-batch.

    Attributes:
        start: mark at its begin.
        compiled: how much had been compiled by then.
        finish: mark at its end.
        signature: what it is by, once that is known.
        unmasked: where the number of its tokens that are no padding will be.
        steps: of the optimizer.
        dropped: why its time does not count.
        count: that runs in it.
        hooks: before the optimizer's step, where that is counted by itself.
    """

    finish: Any = None
    signature: Signature | None = None
    unmasked: Unmasked | None = None
    steps = 0
    dropped = ""
    count: Count | None = None
    hooks: Sequence[Any] = ()

    def __init__(self, start: Any, compiled: int) -> None:
        self.start, self.compiled = start, compiled


class Same(NamedTuple):
    """What the last micro-batch was known by, which most are like."""

    form: Form
    how: tuple[bool, torch.dtype | None]
    signature: Signature


class Kind(NamedTuple):
    """What steps of the same signatures have in common, most of which are as the one before."""

    signatures: list[Signature | None]
    works: list[Work | None]
    numbers: tuple[int | None, ...] = ()
    work: Work | None = None
    estimated: bool = False
    tokens: int | None = None
    samples: int | None = None


def kind_of(signatures: list[Signature | None], works: list[Work | None], micro_batches: int) -> Kind:
    """The kind of a step.

    Args:
        signatures: of its micro-batches, and then of the optimizer's steps.
        works: of each of them.
        micro_batches: how many of them these are.
    """
    sizes = [None if one is None else one.sizes for one in signatures[:micro_batches]]
    return Kind(
        signatures, works, tuple([None if one is None else one.number for one in signatures]), total(works),
        any(one is not None and one.varies for one in signatures),
        added([None if one is None else one.tokens for one in sizes]),
        added([None if one is None else one.samples for one in sizes]),
    )  # fmt: skip


Step = tuple[int, Any, list[Micro], str]
"""A step that has ended: its number, the mark at the end of the last one, its micro-batches, and why it is dropped."""
