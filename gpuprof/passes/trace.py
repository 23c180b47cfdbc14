"""The trace pass: torch.profiler's events of one step, every kernel given to its operator, module and phase."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
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
from gpuprof.passes.operators import is_composite_name
from gpuprof.passes.phases import Phase, observed_phases
from gpuprof.record import PassOutcome
from gpuprof.schema import table
from gpuprof.traces.events import (
    CALL,
    CALL_MARK,
    FUNCTION,
    NODE,
    OPERATOR,
    OUTSIDE,
    PHASE_MARK,
    RANGE,
    RUNTIME,
    WAIT,
    Event,
    device_kind,
    host_kind,
    without_outside,
)
from gpuprof.traces.owners import attribute
from gpuprof.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

_cuda_traced = False  # in this process
_MOST_RECORDED = 4
"""Steps after which one in which something is compiled is taken all the same."""
_BACKWARD_FUNCTION, _USER_SCOPE = 1, 7  # of torch's RecordScope


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
    collecting = gc.isenabled()
    gc.disable()  # it would walk over hundreds of thousands of new tuples again and again, and find nothing
    try:
        events = without_outside(read(profiler))
        made = Lowered(compiled.graphs, compiled.device, compiled.facts) if compiled is not None else None
        found = attribute(
            events, *owners(events, ownership), is_composite=is_composite_name, unit_of=unit,
            kernel_at=made.kernel_call if made is not None else None,
        )  # fmt: skip
        if compiled is not None and compiled.without_cuda_graphs:
            found.facts["without_cuda_graphs"] = True
        return Traced(
            table("kernels", found.kernels), table("estimates", found.estimates),
            table("graphs", list(made.graphs()) if made is not None else []),
            table("nodes", list(made.nodes()) if made is not None else []),
            PassOutcome("done", facts=found.facts),
        )  # fmt: skip
    finally:
        if collecting:
            gc.enable()


def read(profiler: profile) -> list[Event]:
    """Kineto's events, straight from the binding: ``prof.events()`` builds the same list ten times slower.

    Every field costs a call, so each kind of event is asked only for what it has.
    """
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    cpu = torch.autograd.DeviceType.CPU
    kinds: dict[tuple[str, int], str] = {}
    events = []
    for event in results.events():
        name = event.name()
        if event.device_type() != cpu:
            kind = device_kind(name, event.is_user_annotation())
            if kind != WAIT:
                events.append(
                    Event(
                        name, kind, event.device_resource_id(), event.start_ns(), event.end_ns(),
                        event.correlation_id(), event.linked_correlation_id(),
                    )
                )  # fmt: skip
            continue
        scope = event.scope()
        kind = kinds.get((name, scope), "")
        if not kind:
            kind = kinds[name, scope] = host_kind(name, scope == _USER_SCOPE, scope == _BACKWARD_FUNCTION)
        if kind == RANGE and event.linked_correlation_id() > 0:
            kind = RUNTIME  # which names the operator that called it
        number, forward_thread, flops, shapes = -1, 0, 0, ()
        if kind in (NODE, FUNCTION):
            number, forward_thread = event.sequence_nr(), event.fwd_thread_id()
        elif kind == OPERATOR:
            number, flops, shapes = event.sequence_nr(), event.flops(), event.shapes()
        elif kind == RANGE:  # a function of somebody's own makes a node, too
            number = event.sequence_nr()
        elif kind == RUNTIME:
            continue  # one that is linked to no operator has a number of another sequence
        events.append(
            Event(
                name, kind, event.start_thread_id(), event.start_ns(), event.end_ns(), event.correlation_id(), 0,
                number, forward_thread, flops, shapes,
            )
        )  # fmt: skip
    return events


def owners(
    events: Iterable[Event], ownership: Ownership
) -> tuple[list[tuple[str, bool]], Callable[[int, int], str | None]]:
    """Module calls as the trace numbers them, and who made an autograd node of a Kineto thread."""
    calls = [(call.scope.module, call.in_backward) for call in ownership.calls]
    thread_of = {
        event.thread: ownership.calls[int(event.name[len(CALL_MARK) :])].thread
        for event in events
        if event.kind == CALL
    }

    def maker(thread: int, number: int) -> str | None:
        scope = ownership.maker(thread_of.get(thread, 0), number)
        return None if scope is None else scope.module

    return calls, maker
