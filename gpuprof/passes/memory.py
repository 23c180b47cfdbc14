"""The memory pass: readings over one step, peaks per phase and module, and what tensors must be there by their sizes.

On CUDA the allocator's own statistics are read: they follow the order of allocation on the host and cost no
synchronisation. On a CPU there is no such allocator, and what is read is the resident set of the whole process.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gpuprof.attribution import in_backward, observed
from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml
from gpuprof.hardware.device import uuid_of
from gpuprof.passes.kept import Held, Kept, kept_for_backward, total_bytes
from gpuprof.passes.phases import observed_phases
from gpuprof.record import PassOutcome
from gpuprof.schema import FORWARD, table
from gpuprof.workload import Workload

if TYPE_CHECKING:
    import pandas as pd


class Reading(NamedTuple):
    """Bytes in use now, the most since the last reset, and the same of what is reserved (None: not known here)."""

    now: int
    peak: int | None
    reserved: int | None = None
    reserved_peak: int | None = None


def measure(workload: Workload, before_step: Callable[[], None]) -> tuple[pd.DataFrame, pd.DataFrame, PassOutcome]:
    """Run one step and account for its memory.

    Args:
        workload: what to run.
        before_step: run before the step (seeding).

    Returns:
        The tables ``memory`` and ``timeline``, in bytes, and the outcome.
    """
    model, cuda = workload.model, workload.device.type == "cuda"
    read, reset = (_cuda_reader(workload.device)) if cuda else (_resident, _reset_resident)
    before_step()
    for parameter in model.parameters():
        parameter.grad = None  # of the pass before
    gc.collect()
    torch.cuda.empty_cache() if cuda else _give_back_heap()
    kept, gradients = Kept(), Held()
    meter = _Meter(read, reset, kept, gradients)
    states: dict[int, tuple[torch.optim.Optimizer, int]] = {}

    def before_update(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        states.setdefault(id(optimizer), (optimizer, total_bytes(_state(optimizer))))

    def enter_phase(name: str) -> None:
        for parameter in model.parameters():  # DDP hands out those in its buckets after the last hook
            if parameter.grad is not None:
                gradients.add(parameter.grad)
        meter.enter_phase(name)

    def got_gradient(module: str, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            gradients.add(parameter.grad)
        meter.gradient(module)

    with ExitStack() as stack:
        ownership = stack.enter_context(observed(model, mark=meter.module))
        phase = stack.enter_context(observed_phases(workload, enter_phase))
        stack.enter_context(kept_for_backward(model, ownership, kept))
        stack.callback(register_optimizer_step_pre_hook(before_update).remove)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not is_lazy(parameter):
                hook = partial(got_gradient, name.rpartition(".")[0])
                stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
        enter_phase(phase.name)
        result = workload.step()
        enter_phase("")
    del result

    def module_of(index: int) -> str:
        return ownership.calls[index].scope.module

    # a resident set says nothing of one module: what it frees stays with the process, and serves the next
    rows = meter.phase_rows("allocated" if cuda else "rss") + (meter.module_rows(module_of) if cuda else [])
    rows += _expected(model, kept.by_module, list(states.values()))
    if cuda:
        rows += _outside(workload.device)
    outcome = PassOutcome("done", facts={"reads": "torch's CUDA allocator" if cuda else "resident set of the process"})
    if not cuda and meter.blind:
        outcome.facts["missing"] = "peak per phase: this system does not let a process reset its high-water mark"
    return table("memory", rows), table("timeline", meter.timeline(module_of)), outcome


class _Meter:
    """Reads at every event of a step, and nests peaks from one counter that only knows the most since its last reset.

    Whoever resets takes the peak so far along to whatever is open, so that no parent loses its own.
    """

    def __init__(self, read: Callable[[], Reading], reset: Callable[[], bool], kept: Held, gradients: Held) -> None:
        self.blind = False
        self._read, self._reset = read, reset
        self._kept, self._gradients = kept, gradients
        self._phase, self._start = "", time.perf_counter()
        self._open: list[dict[str, Any]] = []
        self._done: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []

    def enter_phase(self, name: str) -> None:
        """Another phase begins; the empty name ends the last. Module calls that are open stay so."""
        reading = self._take_along()
        if self._phase:
            self._note(reading, "end")
            ended, *inside = self._open
            for key in ("peak", "reserved"):
                ended[key] = max(frame[key] for frame in (ended, *inside))
            self._open = inside
            self._done.append({**ended, "exit": reading.now})
        self._phase = name
        if name:
            self._note(reading._replace(peak=reading.now), "begin")
            self._open.insert(0, {"phase": name, "entry": reading.now, "peak": 0, "reserved": 0})

    @contextmanager
    def module(self, index: int) -> Iterator[None]:
        """A module call, by its number."""
        reading = self._take_along()
        self._note(reading, "enter", index)
        again = in_backward()  # what runs again is part of the backward's peak, and none of the module's own
        within = self._phase if self._phase in FORWARD else "forward"
        frame: dict[str, Any] = {"call": index, "within": within, "entry": reading.now, "peak": 0, "reserved": 0}
        if not again:
            self._open.append(frame)
        try:
            yield
        finally:
            reading = self._take_along()
            self._note(reading, "exit", index)
            if not again:
                self._open.remove(frame)
                self._done.append({**frame, "exit": reading.now})
                if self._open:
                    for key in ("peak", "reserved"):
                        self._open[-1][key] = max(self._open[-1][key], frame[key])

    def gradient(self, module: str) -> None:
        """A parameter of this module got its gradient."""
        self._note(self._take_along(), "gradient", module)

    def _take_along(self) -> Reading:
        reading = self._read()
        if reading.peak is None:
            self.blind = True
        elif self._open:
            frame = self._open[-1]
            frame["peak"] = max(frame["peak"], reading.peak)
            frame["reserved"] = max(frame["reserved"], reading.reserved_peak or 0)
        if not self._reset():
            self.blind = True
        return reading

    def _note(self, reading: Reading, event: str, module: int | str = "") -> None:
        again = event in ("enter", "exit") and in_backward()
        self._rows.append(
            {
                "time_s": time.perf_counter() - self._start,
                "phase": "recompute" if again else self._phase,
                "module": module,
                "event": event,
                "bytes": reading.now,
                "peak_bytes": reading.peak,
                "reserved_bytes": reading.reserved,
                "kept_bytes": self._kept.bytes,
                "gradient_bytes": self._gradients.bytes,
            }
        )

    def timeline(self, module_of: Callable[[int], str]) -> list[dict[str, Any]]:
        """Rows of the ``timeline`` table."""
        peak = {"peak_bytes": None} if self.blind else {}
        return [
            {**row, "module": module_of(row["module"]) if isinstance(row["module"], int) else row["module"], **peak}
            for row in self._rows
        ]

    def phase_rows(self, quantity: str) -> list[dict[str, Any]]:
        """Rows of the ``memory`` table for each phase: first entry, last exit, highest peak."""
        phases: dict[str, dict[str, int]] = {}
        for frame in self._done:
            if "phase" in frame:
                entry = phases.setdefault(frame["phase"], {f"{quantity}_entry": frame["entry"]})
                entry[f"{quantity}_exit"] = frame["exit"]
                if not self.blind:
                    entry[f"{quantity}_peak"] = max(entry.get(f"{quantity}_peak", 0), frame["peak"])
                    if frame["reserved"]:
                        entry["reserved_peak"] = max(entry.get("reserved_peak", 0), frame["reserved"])
        return [
            _row("", phase, name, "measured", value)
            for phase, entries in phases.items()
            for name, value in entries.items()
        ]

    def module_rows(self, module_of: Callable[[int], str]) -> list[dict[str, Any]]:
        """Rows of the ``memory`` table for each module: highest peak of its calls, sum of what they kept."""
        modules: dict[tuple[str, str], dict[str, int]] = {}
        for frame in self._done:
            if "call" in frame:
                key = module_of(frame["call"]), frame["within"]
                entry = modules.setdefault(key, {"peak_above_entry": 0, "retained": 0})
                entry["peak_above_entry"] = max(entry["peak_above_entry"], frame["peak"] - frame["entry"])
                entry["retained"] += frame["exit"] - frame["entry"]
        return [
            _row(module, phase, name, "measured", value)
            for (module, phase), entries in modules.items()
            for name, value in entries.items()
        ]


def _row(module: str, phase: str, quantity: str, source: str, nbytes: int) -> dict[str, Any]:
    return {"module": module, "phase": phase, "quantity": quantity, "source": source, "bytes": nbytes}


def _expected(
    model: torch.nn.Module, kept: dict[str, int], states: list[tuple[torch.optim.Optimizer, int]]
) -> list[dict[str, Any]]:
    """What must be there by the sizes of the tensors themselves."""
    params = list(model.parameters())
    sums = {
        "parameters": total_bytes(params),
        "buffers": total_bytes(model.buffers()),
        "gradients": total_bytes(p.grad for p in params if p.grad is not None),
        "optimizer_state": sum(total_bytes(_state(optimizer)) for optimizer, _ in states),
        "optimizer_state_before": sum(before for _, before in states),
    }
    rows = [_row("", "", name, "analytic", nbytes) for name, nbytes in sums.items()]
    return rows + [_row(module, "", "activations", "analytic", nbytes) for module, nbytes in kept.items()]


def _state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]


def _outside(device: torch.device) -> list[dict[str, Any]]:
    """What the driver says this process holds of the device, torch's cache and CUDA's own included.

    Where it does not say, as in many containers, what all processes together hold.
    """
    try:
        with nvml.open_device(uuid_of(device)) as gpu:
            total = gpu.process_memory()
    except GpuprofError:  # telemetry says why
        total = None
    if total is not None:
        return [_row("", "", "process_total", "measured", total)]
    free, whole = torch.cuda.mem_get_info(device)
    return [_row("", "", "device_used", "measured", whole - free)]


def _cuda_reader(device: torch.device) -> tuple[Callable[[], Reading], Callable[[], bool]]:
    def read() -> Reading:
        stats = torch.cuda.memory_stats(device)
        return Reading(
            stats.get("allocated_bytes.all.current", 0),
            stats.get("allocated_bytes.all.peak", 0),
            stats.get("reserved_bytes.all.current", 0),
            stats.get("reserved_bytes.all.peak", 0),
        )

    def reset() -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        return True

    return read, reset


def _resident() -> Reading:
    """Resident set of this process, from Linux's /proc (VmRSS, VmHWM; kB there are 1024 bytes)."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return Reading(0, None)
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    now, peak = (int(fields[key].split()[0]) * 1024 if key in fields else None for key in ("VmRSS", "VmHWM"))
    return Reading(now or 0, peak)


def _give_back_heap() -> None:
    """What torch freed goes back to the system, as far as the C library can; glibc alone keeps much of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_resident() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
