"""The telemetry pass: what NVML says of the GPU while the timing pass runs. Was it held back?

Two readings of cumulative counters miss nothing; a thread at a low rate adds clocks, power and temperature. Where the
GPU offers it, two samples of its performance monitor tell how busy its parts were in between. A call that the driver
does not offer is named in the outcome and costs nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml
from gpuprof.hardware.device import uuid_of
from gpuprof.record import PassOutcome
from gpuprof.schema import table

if TYPE_CHECKING:
    import pandas as pd

_SAMPLED = ("sm_clock", "memory_clock", "temperature", "event_reasons")
_SAMPLED_POWER = ("power_instant", "power_average")
_CUMULATIVE = tuple(quantity for quantity in nvml.FIELDS if quantity.endswith("_time"))
_REMEDY = "clocks, power and energy need an NVIDIA GPU with its driver: see 'gpuprof doctor'"


class Telemetry:
    """What was read in one window.

    Attributes:
        opened: when the window opened, by ``perf_counter``.
        outcome: how the pass ended; ``facts["failed_calls"]`` says why a call gave nothing, by its NVML name.
    """

    def __init__(self) -> None:
        self.outcome = PassOutcome("skipped", "the window has not closed")
        self._readings: list[tuple[float, str, float]] = []
        self.opened = time.perf_counter()

    def rows(self) -> pd.DataFrame:
        """The ``telemetry`` table.

        Energy and each ``..._time`` are cumulative, read at start and end; each ``gpm_...`` is a mean over the window,
        read at its end.
        """
        rows = [
            {"time_s": at, "quantity": quantity, "unit": nvml.UNITS[quantity], "value": value}
            for at, quantity, value in self._readings
        ]
        return table("telemetry", rows)

    def _add(self, values: dict[str, float | None]) -> None:
        at = time.perf_counter() - self.opened
        self._readings += [(at, quantity, value) for quantity, value in values.items() if value is not None]


@contextmanager
def watch(device: torch.device, interval_s: float = 0.1) -> Iterator[Telemetry]:
    """Watch the device while the body runs.

    Args:
        device: where the step runs; anything but an NVIDIA GPU is skipped with its reason.
        interval_s: seconds between samples. Drivers refresh power and the counters about every 0.1 s.

    Yields:
        The record: complete when the body has ended, also by an exception.
    """
    record = Telemetry()
    with ExitStack() as stack:
        gpu = None
        try:
            gpu = stack.enter_context(_open(device))
        except GpuprofError as error:
            record.outcome = PassOutcome("skipped", str(error), _REMEDY)
        if gpu is None:
            yield record
            return
        stop = threading.Event()
        sampler = threading.Thread(target=_sample, args=(gpu, record, stop, interval_s), name="gpuprof-telemetry")
        record._add(_counters(gpu))
        sampler.start()
        try:
            with gpu.activity() as activity:
                yield record
        finally:
            stop.set()
            sampler.join()
            record._add({**_counters(gpu), **activity})
            record.outcome = _outcome(gpu, record)


def _open(device: torch.device) -> AbstractContextManager[nvml.Nvml]:
    if device.type != "cuda":
        raise GpuprofError("NVML needs an NVIDIA GPU")
    return nvml.open_device(uuid_of(device))


def _counters(gpu: nvml.Nvml) -> dict[str, float | None]:
    return {"energy": gpu.read("energy"), **gpu.read_fields(_CUMULATIVE)}


def _sample(gpu: nvml.Nvml, record: Telemetry, stop: threading.Event, interval_s: float) -> None:
    while True:
        power: dict[str, float | None] = {**gpu.read_fields(_SAMPLED_POWER)}
        if not power:
            power = {"power_usage": gpu.read("power_usage")}
        record._add({quantity: gpu.read(quantity) for quantity in _SAMPLED} | power)
        if stop.wait(interval_s):
            return


def _outcome(gpu: nvml.Nvml, record: Telemetry) -> PassOutcome:
    seconds = time.perf_counter() - record.opened
    facts = {"readings": len(record._readings), "failed_calls": dict(gpu.failures)}
    if not record._readings:
        return PassOutcome("failed", "NVML answered none of the queries", _REMEDY, seconds, facts)
    return PassOutcome("done", seconds=seconds, facts=facts)
