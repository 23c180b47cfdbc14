"""Tokens of micro-batches: all positions, and those that are no padding, summed where the mask is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class Tokens:
    """Tokens of one micro-batch, None where they are not known.

    Attributes:
        every: positions of ``input_ids``.
        real: those that ``attention_mask`` lets take part; None without one.
    """

    __slots__ = ("every", "real")

    def __init__(self) -> None:
        self.every: int | None = None
        self.real: torch.Tensor | None = None

    def add(self, batch: Any) -> None:
        """Count those of a batch; nothing waits for the device."""
        if not isinstance(batch, Mapping):
            return
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if isinstance(ids, torch.Tensor):
            self.every = ids.numel()
            if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
                self.real = mask.sum()

    @staticmethod
    def of(several: Iterable[Tokens]) -> tuple[int | None, int | None]:
        """All tokens and those that are no padding, of several together; of what the device has done."""
        several = list(several)
        every = [one.every for one in several if one.every is not None]
        real = [int(one.real) for one in several if one.real is not None]
        return (
            sum(every) if len(every) == len(several) else None,
            sum(real) if len(real) == len(several) else None,
        )
