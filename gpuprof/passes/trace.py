"""The trace pass: torch.profiler's events of one step, every kernel given to its operator, module and phase."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._C._profiler import _ExperimentalConfig, _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile, schedule

from gpuprof.attribution import Ownership, observed
from gpuprof.compiled.capture import Captured, captured
from gpuprof.compiled.lowered import Lowered
from gpuprof.hardware import kineto
from gpuprof.parallel.units import unit_of
from gpuprof.passes.kineto_events import read
from gpuprof.passes.operators import is_composite_name
from gpuprof.passes.phases import Phase, observed_phases
from gpuprof.record import PassOutcome
from gpuprof.schema import table
from gpuprof.traces.events import CALL, CALL_MARK, OUTSIDE, PHASE_MARK, Events, apart, without_outside
from gpuprof.traces.owners import attribute
from gpuprof.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

_cuda_traced = False  # in this process
_MOST_RECORDED = 4
"""Steps after which one in which something is compiled is taken all the same."""


class Traced(NamedTuple):
    """What the trace pass gives: the raw tables and how it ended."""

    kernels: pd.DataFrame
    estimates: pd.DataFrame
    graphs: pd.DataFrame
    nodes: pd.DataFrame
    outcome: PassOutcome


def trace(workload: Workload, before_step: Callable[[], None]) -> Traced:
    """Trace one step; as `traces` of one."""
    return traces(workload, before_step, 1)[0]


def traces(workload: Workload, before_step: Callable[[], None], steps: int, alone: bool = True) -> list[Traced]:
    """Trace steps, each after one warm-up step under the profiler. What is compiled in them is compiled afresh.

    Args:
        workload: what to run.
        before_step: run before each step (seeding).
        steps: how many.
        alone: whether no other process has to run as many steps as this one.
    """
    tries = _MOST_RECORDED if alone else 1
    with captured(workload.model, workload.device.type) as compiled:
        return [
            ingest(*_recorded(workload, before_step, compiled, tries), unit_of(workload.model), compiled)
            for _ in range(steps)
        ]


def _recorded(
    workload: Workload, before_step: Callable[[], None], compiled: Captured, tries: int
) -> tuple[profile, Ownership]:
    """A step in which nothing is compiled, if there is one: that is done in the warm-up step before."""
    before = 0

    def begins() -> None:
        nonlocal before
        before = compiled.compilations
        before_step()

    for _ in range(tries):
        recorded = record(workload, begins, compiled)
        if compiled.compilations == before:
            break
    return recorded


def record(
    workload: Workload, before_step: Callable[[], None], compiled: Captured | None = None
) -> tuple[profile, Ownership]:
    """Run the step under the profiler; its events are still to be read."""
    with profiled(workload.device) as profiler:
        before_step()
        workload.step()
        before_step()
        with recorded(workload, profiler, compiled) as recording:
            recording.begins()
            workload.step()
    return profiler, recording.ownership


@contextmanager
def profiled(device: torch.device) -> Iterator[profile]:
    """The profiler, which looks at nothing until `recorded`: the first step under it pays for its start-up."""
    global _cuda_traced
    cuda = device.type == "cuda"
    profiler = profile(
        activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else []),
        schedule=schedule(wait=0, warmup=1, active=1, repeat=1),
        record_shapes=True,
        with_flops=True,
        experimental_config=_ExperimentalConfig(profile_all_threads=True),  # else only this one and autograd's
    )
    with kineto.quiet():
        profiler.start()
    try:
        yield profiler
    finally:
        with kineto.quiet():
            profiler.stop()
        _cuda_traced |= cuda


@dataclass
class Recording:
    """A step while it is recorded, which may run in several blocks.

    Attributes:
        ownership: the module calls.
        phase: the phase that runs now.
        inside: whether a block is open.
    """

    ownership: Ownership
    phase: Phase
    inside: bool = False

    def begins(self) -> None:
        """A block of the step begins."""
        self.phase.start()
        self.inside = True
        _mark_phase(self.phase.name)

    def ends(self) -> None:
        """It ends: what runs until the next one is none of the step."""
        _mark_phase(OUTSIDE)
        self.inside = False


@contextmanager
def recorded(workload: Workload, profiler: profile, compiled: Captured | None = None) -> Iterator[Recording]:
    """Record the blocks of one step that run in here.

    Args:
        workload: whose step it is.
        profiler: as `profiled` gives it; its events can be read when it has ended.
        compiled: what is captured of compiled code.
    """
    cuda = workload.device.type == "cuda"
    if cuda:  # kernels of the step before must not run on into the record
        torch.cuda.synchronize(workload.device)
    with kineto.quiet():
        profiler.step()

    def changed(name: str) -> None:
        if recording.inside:
            _mark_phase(name)

    with observed(workload.model, mark=_mark) as ownership, observed_phases(workload, changed) as phase:
        recording = Recording(ownership, phase)
        with compiled.recorded(ownership) if compiled is not None else nullcontext():
            yield recording
        if cuda:
            torch.cuda.synchronize(workload.device)


# ranges that call no operator: torch.profiler.record_function calls two, which the modes of the user's own would see,
# and selective checkpointing would look for in a forward that had none
def _mark(index: int) -> AbstractContextManager[Any]:
    return _RecordFunctionFast(f"{CALL_MARK}{index}")


def _mark_phase(name: str) -> None:
    with _RecordFunctionFast(PHASE_MARK + name):
        pass


def cupti_attached(device: torch.device) -> bool:
    """Whether an earlier trace of this process left CUPTI attached, so that launches on this device may take longer.

    Kineto detaches it only where the user has set TEARDOWN_CUPTI to 1. gpuprof never sets it: the detaching happens in
    some later CUDA call, and a trace that begins before that may get no kernels (pytorch/kineto pull request 1554).
    """
    return _cuda_traced and device.type == "cuda" and os.environ.get("TEARDOWN_CUPTI") != "1"


def ingest(
    profiler: profile,
    ownership: Ownership,
    unit: Callable[[str], str | None] = lambda label: None,
    compiled: Captured | None = None,
) -> Traced:
    """The tables of a recorded step; ``unit`` as of `attribute`, ``compiled`` what was captured of it."""
    host, device = apart(without_outside(read(profiler)))
    made = Lowered(compiled.graphs, compiled.device, compiled.facts) if compiled is not None else None
    found = attribute(
        host, device, *owners(host, ownership), is_composite=is_composite_name, unit_of=unit,
        kernel_at=made.kernel_call if made is not None else None,
    )  # fmt: skip
    if compiled is not None and compiled.without_cuda_graphs:
        found.facts["without_cuda_graphs"] = True
    return Traced(
        found.kernels, found.estimates,
        table("graphs", list(made.graphs()) if made is not None else []),
        table("nodes", list(made.nodes()) if made is not None else []),
        PassOutcome("done", facts=found.facts),
    )  # fmt: skip


def owners(host: Events, ownership: Ownership) -> tuple[list[tuple[str, bool]], Callable[[int, int], str | None]]:
    """Module calls as the trace numbers them, and who made an autograd node of a Kineto thread."""
    calls = [(call.scope.module, call.in_backward) for call in ownership.calls]
    rows = host.rows(CALL)
    marks = zip(host.thread[rows].tolist(), host.sort[rows].tolist(), strict=True)
    thread_of = {thread: ownership.calls[int(host.names[sort][len(CALL_MARK) :])].thread for thread, sort in marks}

    def maker(thread: int, number: int) -> str | None:
        scope = ownership.maker(thread_of.get(thread, 0), number)
        return None if scope is None else scope.module

    return calls, maker
