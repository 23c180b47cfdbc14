"""How much a micro-batch holds: tokens, those that are no padding, and samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch

from gpuprof.meter.signature import Tensors

Number = TypeVar("Number", int, float)


class Held(NamedTuple):
    """What a micro-batch holds; None where it is not known.

    Attributes:
        tokens: positions of its ``input_ids``, of several together.
        samples: first dimension of the ``input_ids``, else of the first tensor that is no other's part and has one.
        masks: of the host, which are looked at when somebody asks, with the version that they had.
        on_device: positions that masks of the device let take part: the cell of the host's memory that will tell.
    """

    tokens: int | None = None
    samples: int | None = None
    masks: list[tuple[torch.Tensor, int]] | None = None
    on_device: torch.Tensor | None = None


class Tokens:
    """Looks at batches and waits for no device: what only that knows comes to page-locked memory when it has got there.

    Args:
        device: on whose current stream it is summed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[torch.Tensor] = []  # cells of that memory that nobody needs any more

    def held(self, tensors: Tensors) -> Held:
        """What a batch holds: positions of ``input_ids``, and those that an ``attention_mask`` beside them leaves."""
        named, first = dict(tensors), None
        tokens, samples, masks = 0, 0, list[torch.Tensor | None]()
        for name, tensor in tensors:
            if name == "input_ids" or name.endswith(".input_ids"):
                mask = named.get(f"{name[:-9]}attention_mask")
                masks.append(mask if mask is not None and mask.shape == tensor.shape else None)
                tokens += tensor.numel()
                samples += tensor.size(0) if tensor.dim() else 1
            elif first is None and "." not in name and tensor.dim():
                first = tensor.size(0)
        return Held(tokens, samples, *self._unmasked(masks)) if masks else Held(samples=first)

    def _unmasked(
        self, masks: list[torch.Tensor | None]
    ) -> tuple[list[tuple[torch.Tensor, int]] | None, torch.Tensor | None]:
        """Where it will be known how many positions masks let take part, which may say so by any number but 0."""
        here, there = list[tuple[torch.Tensor, int]](), list[torch.Tensor]()
        for mask in masks:
            if mask is not None and mask.is_cpu:
                here.append((mask, _version(mask)))
            elif mask is not None and mask.device == self._device:
                there.append(mask.count_nonzero())
            else:  # of another device nobody tells when it is there
                return None, None
        if not there:
            return here, None
        summed = there[0] if len(there) == 1 else torch.stack(there).sum()
        cell = self._free.pop() if self._free else torch.empty((), dtype=torch.int64, pin_memory=True)
        cell.copy_(summed, non_blocking=True)
        return here, cell

    def together(self, several: list[Held]) -> tuple[int | None, int | None, int | None]:
        """Tokens, those that are no padding, and samples of all of them, which the device has done."""
        real = added([_real(one) for one in several])
        self._free += [one.on_device for one in several if one.on_device is not None]
        return added([one.tokens for one in several]), real, added([one.samples for one in several])


def _real(held: Held) -> int | None:
    """Tokens that are no padding; not known where a mask was written to since."""
    if held.masks is None or any(_version(mask) != version for mask, version in held.masks):
        return None
    here = sum([int(mask.count_nonzero()) for mask, _ in held.masks])
    return here if held.on_device is None else here + int(held.on_device)


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; one that was made in inference mode is not written to outside of it."""
    return 0 if tensor.is_inference() else tensor._version


def added(amounts: Iterable[Number | None]) -> Number | None:
    """The sum; None where one is not known."""
    listed = list(amounts)
    known = [amount for amount in listed if amount is not None]
    return sum(known) if len(known) == len(listed) else None
