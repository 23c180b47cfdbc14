"""The clock of the meter: marks in the device's own time, and seconds between them as soon as they are known."""

from __future__ import annotations

import time
from typing import Any

import torch

from gpuprof.errors import GpuprofError


class Clock:
    """Marks on the current stream of a device, by CUDA events; of a CPU by ``perf_counter``.

    Nothing here waits: between marks that the device has not reached yet the seconds are not known.

    Raises:
        GpuprofError: a device of another kind, where neither says when its work is done.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise GpuprofError(f"the meter takes the time on a CPU or a CUDA device, and the model is on '{device}'")
        self._cuda = device.type == "cuda"
        self.mark = self._event if self._cuda else time.perf_counter
        """Gives a mark: now, where the device is when it has done what it was given so far."""
        self._device = device
        self._free: list[Any] = []  # events that nobody needs any more

    def _event(self) -> Any:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # of the model's device, whichever is the current one
        return event

    def reached(self, mark: Any) -> bool:
        """Whether the device has come to a mark."""
        return not self._cuda or mark.query()

    def seconds(self, first: Any, second: Any) -> float:
        """From one mark to another; both were `reached`."""
        seconds: float = first.elapsed_time(second) * 1e-3 if self._cuda else second - first
        return seconds

    def release(self, *marks: Any) -> None:
        """These marks are not asked for again."""
        if self._cuda:
            self._free += marks
