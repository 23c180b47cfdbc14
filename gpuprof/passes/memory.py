"""The memory pass: peaks per phase and module, and what the tensors that must be there add up to.

On CUDA the allocator's own statistics are read: they follow the order of allocation on the host and cost no
synchronisation. On a CPU there is no such allocator, and what is read is the resident set of the whole process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpuprof.attribution import Ownership, in_backward, observed
from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml
from gpuprof.hardware.device import uuid_of
from gpuprof.passes.phases import observed_phases
from gpuprof.record import UNATTRIBUTED, PassOutcome, table
from gpuprof.workload import Workload


class Reading(NamedTuple):
    """Bytes in use now, and the most since the last reset (None: not known on this system)."""

    now: int
    peak: int | None
    reserved_peak: int | None = None


def measure(workload: Workload, before_step: Callable[[], None]) -> tuple[pd.DataFrame, PassOutcome]:
    """Run one step and account for its memory.

    Args:
        workload: what to run.
        before_step: run before the step (seeding).

    Returns:
        The ``memory`` table, in bytes, and the outcome.
    """
    cuda = workload.device.type == "cuda"
    read, reset = (_cuda_reader(workload.device)) if cuda else (_resident, _reset_resident)
    before_step()
    for parameter in workload.model.parameters():
        parameter.grad = None  # of the pass before
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    peaks = _Peaks(read, reset)
    optimizers: dict[int, torch.optim.Optimizer] = {}

    def remember(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        optimizers[id(optimizer)] = optimizer

    with ExitStack() as stack:
        mark = peaks.module if cuda else None  # a resident set says nothing of one module
        ownership = stack.enter_context(observed(workload.model, mark=mark))
        stack.enter_context(observed_phases(workload.model, peaks.enter_phase))
        saved = stack.enter_context(_saved_tensors(workload.model, ownership))
        stack.callback(register_optimizer_step_post_hook(remember).remove)
        peaks.enter_phase("forward")
        result = workload.step()
        peaks.enter_phase("")
    del result
    rows = peaks.rows(lambda index: ownership.calls[index].scope.module, "allocated" if cuda else "rss")
    rows += _expected(workload.model, saved, list(optimizers.values()))
    if cuda:
        rows += _process_total(workload.device)
    outcome = PassOutcome("done", facts={"reads": "torch's CUDA allocator" if cuda else "resident set of the process"})
    if not cuda and peaks.blind:
        outcome.facts["missing"] = "peak per phase: this system does not let a process reset its high-water mark"
    return table("memory", rows), outcome


class _Peaks:
    """Nested peaks from one counter that only knows the most since its last reset.

    Whoever resets takes the peak so far along to whatever is open, so that no parent loses its own.
    """

    def __init__(self, read: Callable[[], Reading], reset: Callable[[], bool]) -> None:
        self.blind = False
        self._read, self._reset = read, reset
        self._open: list[dict[str, Any]] = []
        self._done: list[dict[str, Any]] = []

    def enter_phase(self, name: str) -> None:
        """Another phase begins; the empty name ends the last. Module calls that are open stay so."""
        self._take_along()
        now = self._read().now
        if self._open and "phase" in self._open[0]:
            ended, *inside = self._open
            for key in ("peak", "reserved"):
                ended[key] = max(frame[key] for frame in (ended, *inside))
            self._open = inside
            self._done.append({**ended, "exit": now})
        if name:
            self._open.insert(0, {"phase": name, "entry": now, "peak": 0, "reserved": 0})

    @contextmanager
    def module(self, index: int) -> Iterator[None]:
        """A module call of the forward, by its number."""
        if in_backward():
            yield
            return
        self._take_along()
        frame: dict[str, Any] = {"call": index, "entry": self._read().now, "peak": 0, "reserved": 0}
        self._open.append(frame)
        try:
            yield
        finally:
            self._take_along()
            self._open.remove(frame)
            self._done.append({**frame, "exit": self._read().now})
            if self._open:
                for key in ("peak", "reserved"):
                    self._open[-1][key] = max(self._open[-1][key], frame[key])

    def _take_along(self) -> None:
        reading = self._read()
        if reading.peak is None:
            self.blind = True
        elif self._open:
            frame = self._open[-1]
            frame["peak"] = max(frame["peak"], reading.peak)
            frame["reserved"] = max(frame["reserved"], reading.reserved_peak or 0)
        if not self._reset():
            self.blind = True

    def rows(self, module_of: Callable[[int], str], quantity: str) -> list[dict[str, Any]]:
        """Rows of the ``memory`` table."""
        phases: dict[str, dict[str, int]] = {}
        modules: dict[str, dict[str, int]] = {}
        for frame in self._done:
            if "phase" in frame:
                entry = phases.setdefault(frame["phase"], {"entry": frame["entry"]})
                entry["exit"] = frame["exit"]
                if not self.blind:
                    entry["peak"] = max(entry.get("peak", 0), frame["peak"])
                    if frame["reserved"]:
                        entry["reserved"] = max(entry.get("reserved", 0), frame["reserved"])
            else:
                entry = modules.setdefault(module_of(frame["call"]), {"above": 0, "kept": 0})
                entry["above"] = max(entry["above"], frame["peak"] - frame["entry"])
                entry["kept"] += frame["exit"] - frame["entry"]
        names = {"entry": f"{quantity}_entry", "exit": f"{quantity}_exit", "peak": f"{quantity}_peak",
                 "reserved": "reserved_peak", "above": "peak_above_entry", "kept": "retained"}  # fmt: skip
        return [
            _row(module, phase, names[key], "measured", value)
            for subjects, is_phase in ((phases, True), (modules, False))
            for subject, entries in subjects.items()
            for module, phase in [("", subject) if is_phase else (subject, "forward")]
            for key, value in entries.items()
        ]


def _row(module: str, phase: str, quantity: str, source: str, nbytes: int) -> dict[str, Any]:
    return {"module": module, "phase": phase, "quantity": quantity, "source": source, "bytes": nbytes}


def _expected(
    model: torch.nn.Module, saved: dict[str, int], optimizers: list[torch.optim.Optimizer]
) -> list[dict[str, Any]]:
    """What must be there by the sizes of the tensors themselves."""
    params, buffers = list(model.parameters()), list(model.buffers())
    state = [
        value for o in optimizers for entry in o.state.values() for value in entry.values()
        if isinstance(value, torch.Tensor)
    ]  # fmt: skip
    sums = {
        "parameters": _bytes(params),
        "buffers": _bytes(buffers),
        "gradients": _bytes([p.grad for p in params if p.grad is not None]),
        "optimizer_state": _bytes(state),
    }
    rows = [_row("", "", name, "analytic", nbytes) for name, nbytes in sums.items()]
    return rows + [_row(module, "", "activations", "analytic", nbytes) for module, nbytes in saved.items()]


def _process_total(device: torch.device) -> list[dict[str, Any]]:
    """What the driver says this process holds of the device, torch's cache and CUDA's own included; maybe nothing."""
    try:
        with nvml.open_device(uuid_of(device)) as gpu:
            total = gpu.process_memory()
    except GpuprofError:  # telemetry says why
        total = None
    return [] if total is None else [_row("", "", "process_total", "measured", total)]


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@contextmanager
def _saved_tensors(model: torch.nn.Module, ownership: Ownership) -> Iterator[dict[str, int]]:
    """Bytes kept for the backward, by the module that keeps them first; parameters and buffers are not activations."""
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[str, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if in_backward():  # what a recomputation keeps is gone again before the next one
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            scope = ownership.running()
            module = UNATTRIBUTED if scope is None else scope.module
            saved[module] = saved.get(module, 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _cuda_reader(device: torch.device) -> tuple[Callable[[], Reading], Callable[[], bool]]:
    def read() -> Reading:
        stats = torch.cuda.memory_stats(device)
        return Reading(
            stats.get("allocated_bytes.all.current", 0),
            stats.get("allocated_bytes.all.peak", 0),
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


def _reset_resident() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
