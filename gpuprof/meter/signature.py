"""What a micro-batch costs is decided by: the same signature, the same FLOPs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch

from gpuprof.meter.tokens import Sizes
from gpuprof.meter.work import Work, mean
from gpuprof.passes.counting import Counted
from gpuprof.passes.objects import named_tensors

_AGAIN = 100
"""Micro-batches of a signature after which it is counted once more, to see whether shapes alone decide its FLOPs."""

Tensors = list[tuple[str, torch.Tensor]]


def tensors_of(batch: Any) -> Tensors:
    """Names and tensors of a batch; nothing is read from the device.

    Args:
        batch: a tensor, or containers and plain objects that hold tensors.
    """
    if isinstance(batch, Mapping) and set(map(type, batch.values())) == {torch.Tensor}:  # what most are
        return list(batch.items())
    return list(named_tensors(batch))


Form = list[tuple[str, torch.Size, torch.dtype]]
"""Names, shapes and dtypes of a mapping of plain tensors: another of the same form is known by them alone."""


def is_of(form: Form, batch: Any) -> bool:
    """Whether a batch has this form, for certain."""
    try:
        if len(batch) != len(form):
            return False
        for (name, tensor), (known, shape, dtype) in zip(batch.items(), form, strict=True):
            if tensor.shape != shape or tensor.dtype != dtype or name != known:
                return False
    except Exception:  # no mapping, or not of tensors alone
        return False
    return True


def form_of(batch: Any, tensors: Tensors) -> Form | None:
    """The form of a batch; None where names, shapes and dtypes are not all that there is to its tensors."""
    if not isinstance(batch, Mapping) or [type(value) for value in batch.values()] != [torch.Tensor] * len(tensors):
        return None
    if any(tensor.is_nested for _, tensor in tensors):
        return None
    return [(name, tensor.shape, tensor.dtype) for name, tensor in tensors]


def key_of(tensors: Tensors) -> tuple[Hashable, ...]:
    """Names, shapes and dtypes; of nested tensors, which have no one shape, how many dimensions."""
    return tuple([
        (name, tensor.dim() if tensor.is_nested else tensor.shape, tensor.dtype) for name, tensor in tensors
    ])  # fmt: skip


def in_words(key: Iterable[Any] | None) -> str:
    """A key for people: ``input_ids 4x128, labels 4x128``; None of a batch that holds no tensor."""
    if key is None:
        return "a batch without tensors"
    shapes = (
        (name, "x".join(map(str, shape)) or "scalar" if isinstance(shape, torch.Size) else "nested")
        for name, shape, _ in key
    )
    return ", ".join(f"{name} {shape}".strip() for name, shape in shapes) or "no tensor"


class Signature:
    """What is known of the micro-batches of one signature, or of the optimizer's step.

    Attributes:
        number: in the order in which they were first seen, from 1 on.
        words: for people.
        key: what it is by; None of the optimizer's step.
        sizes: what a micro-batch of it holds.
        seen: micro-batches of it so far.
        due: number of the one that is to be counted next; infinite where none is.
        counted: what was counted last; None before, and where many others were counted since.
        works: of each time that it was counted; of one whose work was inferred none.
        work: of a micro-batch: of one that depends on more than shapes the mean; None where it is not known.
        varies: whether it depends on more than shapes.
        broken: times that a micro-batch ended in its middle while it was counted.
        why: nothing is known of it and will be; empty otherwise.
    """

    def __init__(self, number: int, words: str, key: Any = None, sizes: Sizes = Sizes(None, None, None)) -> None:  # noqa: B008
        self.number = number
        self.words = words
        self.key = key
        self.sizes = sizes
        self.seen = 0
        self.due: float = 1
        self.counted: Counted | None = None
        self.works: list[Work] = []
        self.work: Work | None = None
        self.varies = False
        self.broken = 0
        self.why = ""

    def learn(self, counted: Counted, work: Work, varies: bool) -> None:
        """It was counted. Where shapes alone decide it, twice are enough; else ever more rarely, and the mean is taken.

        Args:
            counted: the whole count.
            work: of one micro-batch.
            varies: its rules have read values, such as the lengths of packed sequences.
        """
        self.counted = counted
        self.works.append(work)
        self.varies |= varies or work != self.works[0]
        self.work = mean(self.works)
        self.due = 2 * self.seen if self.varies else _AGAIN if len(self.works) == 1 else math.inf

    def infer(self, work: Work) -> None:
        """It need not be counted."""
        self.work, self.due = work, math.inf

    def give_up(self, why: str) -> None:
        """It cannot be counted."""
        self.why, self.due, self.work = why, math.inf, None
