"""What a training loop runs on: its facts, as a run has them, the peaks of its device and the clock."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from gpuprof.analysis.denominators import WORDS, denominator
from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml
from gpuprof.hardware.device import describe, environment, uuid_of
from gpuprof.meter.work import Work
from gpuprof.parallel.layout import layout
from gpuprof.passes.counting import Counted
from gpuprof.profiler import add_ceilings
from gpuprof.record import Record
from gpuprof.theory.rules import RULES_VERSION
from gpuprof.workload import Workload


class Machine:
    """The facts of the run that a loop would be.

    Args:
        workload: of the loop.
        settings: convention and peak_tflops.

    Attributes:
        facts: ``workload``, ``device``, ``environment`` and ``settings``, as `gpuprof.record.Record` has them.
        denominator: name of the peak that is divided by, of `gpuprof.analysis.denominators.WORDS`; empty before any is
            known.
    """

    def __init__(self, workload: Workload, settings: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = {
            "workload": workload.description | layout(workload.model),
            "device": describe(workload.device),
            "environment": environment() | {"flop_rules": RULES_VERSION},
            "settings": settings,
        }
        self.denominator = ""
        self._device = workload.device
        self._peaks: dict[str, float] = {}
        self._needed: set[str] = set()  # dtypes that something was counted in
        self._new: list[Record] = []  # counts in others than those of before

    def run(self, found: Counted) -> Record:
        """A count as a run."""
        return Record(**self.facts, passes={"count": found.outcome}, ops=found.held("ops"), tree=found.held("tree"))

    def need(self, run: Record, work: Work) -> None:
        """The peaks of what was counted will be asked for."""
        dtypes = work.model.keys() | (work.hardware or {}).keys()
        if not dtypes <= self._needed:
            self._needed |= dtypes
            self._new.append(run)

    def peaks(self) -> dict[str, float]:
        """Peaks by dtype, FLOP/s. On a CPU they are measured when they are first asked for."""
        new, self._new = self._new, []
        for run in new:
            if not run.settings["peak_tflops"]:
                add_ceilings(run)
            name, peaks = denominator(run)
            self.denominator = name or self.denominator
            self._peaks |= peaks
        return self._peaks

    @property
    def peak(self) -> str:
        """The peak that is divided by, in words."""
        return "given as peak_tflops" if self.denominator == "given" else WORDS.get(self.denominator, "")

    def about(self) -> dict[str, str]:
        """Device and peak in words; in place of a peak that is not known how to get one."""
        device = self.facts["device"]
        source = {"datasheet": "peak_source", "measured": "peak_source_measured"}.get(self.denominator, "")
        return {
            name: text
            for name, text in {
                "meter/device": device["name"],
                "meter/gpuprof": self.facts["environment"]["gpuprof"],
                "meter/peak": self.peak,
                "meter/peak_source": device.get(source, ""),
                "meter/peak_remedy": "" if self.denominator else device.get("peak_remedy", ""),
            }.items()
            if text
        }

    def clock_mhz(self) -> float | None:
        """The SM clock just now, MHz; None where NVML does not say it."""
        gpu = _gpu(uuid_of(self._device)) if self._device.type == "cuda" else None
        return None if gpu is None else gpu.read("sm_clock")


_open = ExitStack()  # NVML, until the process ends: opening it takes longer than a read of the meter may


@functools.cache
def _gpu(uuid: str) -> nvml.Nvml | None:
    try:
        return _open.enter_context(nvml.open_device(uuid))
    except GpuprofError:
        return None
