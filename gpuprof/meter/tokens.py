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
        non_padding: those that the ``attention_mask`` beside them, of the same shape, does not leave out. As long as
            the device has not said it, the tensor of the host's memory that it will be in.
        samples: first dimension of the ``input_ids``, else of the first tensor that is no other's part and has one.
    """

    tokens: int | None = None
    non_padding: int | torch.Tensor | None = None
    samples: int | None = None


class Tokens:
    """Looks at batches and waits for no device: what only that knows comes to page-locked memory when it has got there.

    Args:
        device: on whose current stream it is summed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[torch.Tensor] = []  # cells of that memory that nobody needs any more

    def held(self, tensors: Tensors) -> Held:
        """What a batch holds."""
        named, first = dict(tensors), None
        tokens, samples, masks = 0, 0, []
        for name, tensor in tensors:
            if name == "input_ids" or name.endswith(".input_ids"):
                mask = named.get(f"{name[:-9]}attention_mask")
                masks.append(mask if mask is not None and mask.shape == tensor.shape else None)
                tokens += tensor.numel()
                samples += tensor.size(0) if tensor.dim() else 1
            elif first is None and "." not in name and tensor.dim():
                first = tensor.size(0)
        return Held(tokens, self._unmasked(masks), samples) if masks else Held(samples=first)

    def _unmasked(self, masks: list[torch.Tensor | None]) -> int | torch.Tensor | None:
        """Positions that masks let take part, which may say so by any number that is not 0."""
        known, there = 0, list[torch.Tensor]()
        for mask in masks:
            if mask is not None and mask.is_cpu:
                known += int(mask.count_nonzero())
            elif mask is not None and mask.device == self._device:
                there.append(mask.count_nonzero())
            else:  # of another device nobody tells when it is there
                return None
        if not there:
            return known
        on_device = there[0] if len(there) == 1 else torch.stack(there).sum()
        if known:
            on_device = on_device + known
        cell = self._free.pop() if self._free else torch.empty((), dtype=torch.int64, pin_memory=True)
        return cell.copy_(on_device, non_blocking=True)

    def together(self, several: list[Held]) -> tuple[int | None, int | None, int | None]:
        """Tokens, those that are no padding, and samples of all of them, which the device has done."""
        real = [None if one.non_padding is None else int(one.non_padding) for one in several]
        self._free += [one.non_padding for one in several if isinstance(one.non_padding, torch.Tensor)]
        return added([one.tokens for one in several]), added(real), added([one.samples for one in several])


def added(amounts: Iterable[Number | None]) -> Number | None:
    """The sum; None where one is not known."""
    listed = list(amounts)
    known = [amount for amount in listed if amount is not None]
    return sum(known) if len(known) == len(listed) else None
