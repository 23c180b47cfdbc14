"""How much a micro-batch holds: tokens, those that are no padding, and samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

Number = TypeVar("Number", int, float)

Unmasked = tuple[list[tuple[torch.Tensor, int]], torch.Tensor | None]
"""Where it will be known how many positions masks let take part: masks in the host's memory, each with how often it was
written to by then, and a place there for what the device counts of those that it has."""


class Sizes(NamedTuple):
    """What a micro-batch holds as far as its shapes tell; None where it is not known.

    Attributes:
        tokens: positions of its ``input_ids``, of several together.
        samples: first dimension of the ``input_ids``, else of the first tensor that is no other's part and has one.
        masks: names of the ``attention_mask`` beside each ``input_ids``, of the same shape; None where one has none.
    """

    tokens: int | None
    samples: int | None
    masks: tuple[str, ...] | None


def sizes_of(tensors: Sequence[tuple[str, torch.Tensor]]) -> Sizes:
    """What the tensors of a batch, by their names, say of its size."""
    named, first = dict(tensors), None
    tokens, samples, masks, masked = 0, 0, list[str](), True
    for name, tensor in tensors:
        if name == "input_ids" or name.endswith(".input_ids"):
            mask = named.get(called := f"{name[:-9]}attention_mask")
            masked = masked and mask is not None and mask.shape == tensor.shape
            masks.append(called)
            tokens += tensor.numel()
            samples += tensor.size(0) if tensor.dim() else 1
        elif first is None and "." not in name and tensor.dim():
            first = tensor.size(0)
    return Sizes(tokens, samples, tuple(masks) if masked else None) if masks else Sizes(None, first, None)


class Padding:
    """Looks at masks and waits for no device: what only that knows comes to page-locked memory when it has got there.

    Args:
        device: on whose current stream it is summed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[torch.Tensor] = []  # cells of that memory that nobody needs any more

    def unmasked(self, tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> Unmasked | None:
        """Where the positions that masks let take part, which may say so by any number but 0, will be known.

        Args:
            tensors: of a batch.
            names: of the masks among them.
        """
        if len(names) == 1 and (mask := tensors[names[0]]).is_cpu:  # what most are, on a CPU
            return [(mask, 0 if mask.is_inference() else mask._version)], None
        here, there = list[tuple[torch.Tensor, int]](), list[torch.Tensor]()
        for mask in map(tensors.__getitem__, names):
            if mask.is_cpu:
                here.append((mask, _version(mask)))
            elif mask.device == self._device:
                there.append(mask.count_nonzero())
            else:  # of another device nobody tells when it is there
                return None
        if not there:
            return here, None
        summed = there[0] if len(there) == 1 else torch.stack(there).sum()
        cell = self._free.pop() if self._free else torch.empty((), dtype=torch.int64, pin_memory=True)
        cell.copy_(summed, non_blocking=True)
        return here, cell

    def real(self, unmasked: Unmasked | None) -> int | None:
        """Tokens that are no padding, of what the device has done; not known where a mask was written to since."""
        if unmasked is None:
            return None
        here, cell = unmasked
        if cell is not None:
            self._free.append(cell)
        if any(_version(mask) != version for mask, version in here):
            return None
        known = sum([int(mask.count_nonzero()) for mask, _ in here])
        return known if cell is None else known + int(cell)


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; one that was made in inference mode is not written to outside of it."""
    return 0 if tensor.is_inference() else tensor._version


def added(amounts: Iterable[Number | None]) -> Number | None:
    """The sum; None where one is not known."""
    listed = list(amounts)
    return None if None in listed else sum(listed)  # type: ignore[arg-type]
