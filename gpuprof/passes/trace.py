"""The trace pass: torch.profiler's events of one step, every kernel given to its operator, module and phase."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile, schedule

from gpuprof.attribution import Ownership, observed
from gpuprof.hardware import kineto
from gpuprof.passes.operators import is_composite_name
from gpuprof.passes.phases import observed_phases
from gpuprof.record import UNATTRIBUTED, PassOutcome, table
from gpuprof.workload import Workload

_CALL = "gpuprof#"
_PHASE = "gpuprof:phase:"
_COMPILED = "Torch-Compiled Region"
_NODE = "autograd::engine::evaluate_function: "
_RUNTIME = re.compile(r"(cuda|cu|hip)[A-Z]|INVALID$").match  # CUDA's own calls; INVALID where CUPTI knows no name
_WAIT = re.compile(r"(Stream|Event|Context) (Wait|Sync)|Unknown Sync").match  # not work of the GPU
_AUTOGRAD = ("autograd::", "torch::autograd::")  # names of nodes, not of operators

_cuda_traced = False  # in this process


class Traced(NamedTuple):
    """What the trace pass gives: the raw tables and how it ended."""

    kernels: pd.DataFrame
    estimates: pd.DataFrame
    outcome: PassOutcome


class Event(NamedTuple):
    """What is read of one Kineto event.

    Attributes:
        name: operator, range or kernel name.
        on_device: whether it ran on the GPU.
        thread: Kineto's number of the thread, or the CUDA stream.
        start: nanoseconds.
        end: nanoseconds.
        correlation: number by which kernels name the operator that launched them.
        linked: that number, on a kernel; 0 elsewhere.
        number: autograd sequence number, -1 where there is none.
        forward_thread: thread that made the autograd node.
        flops: torch's own estimate, 0 where it makes none.
        shapes: shapes of the inputs.
    """

    name: str
    on_device: bool
    thread: int
    start: int
    end: int
    correlation: int = 0
    linked: int = 0
    number: int = -1
    forward_thread: int = 0
    flops: int = 0
    shapes: Any = ()


def trace(workload: Workload, before_step: Callable[[], None]) -> Traced:
    """Trace one step, after one warm-up step under the profiler.

    Args:
        workload: what to run.
        before_step: run before each step (seeding).
    """
    return ingest(*record(workload, before_step))


def record(workload: Workload, before_step: Callable[[], None]) -> tuple[profile, Ownership]:
    """Run the step under the profiler; its events are still to be read."""
    global _cuda_traced
    cuda = workload.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    model = workload.model

    # ranges that call no operator: torch.profiler.record_function calls two, which the modes of the user's own would
    # see, and selective checkpointing would look for in a forward that had none
    def mark(index: int) -> AbstractContextManager[Any]:
        return _RecordFunctionFast(f"{_CALL}{index}")

    def mark_phase(name: str) -> None:
        with _RecordFunctionFast(_PHASE + name):
            pass

    # the first step under the profiler pays for its start-up and is thrown away
    plan = schedule(wait=0, warmup=1, active=1, repeat=1)
    with (
        kineto.quiet(),
        profile(activities=activities, schedule=plan, record_shapes=True, with_flops=True) as profiler,
    ):
        before_step()
        workload.step()
        if cuda:  # kernels of the first step must not run on into the second's record
            torch.cuda.synchronize(workload.device)
        profiler.step()
        before_step()
        with observed(model, mark=mark) as ownership, observed_phases(workload, mark_phase):
            mark_phase("forward")
            workload.step()
            if cuda:
                torch.cuda.synchronize(workload.device)
    _cuda_traced |= cuda
    return profiler, ownership


def cupti_attached(device: torch.device) -> bool:
    """Whether an earlier trace of this process left CUPTI attached, so that launches on this device may take longer.

    Kineto detaches it only where the user has set TEARDOWN_CUPTI to 1. gpuprof never sets it: the detaching happens in
    some later CUDA call, and a trace that begins before that may get no kernels (pytorch/kineto pull request 1554).
    """
    return _cuda_traced and device.type == "cuda" and os.environ.get("TEARDOWN_CUPTI") != "1"


def ingest(profiler: profile, ownership: Ownership) -> Traced:
    """The ``kernels`` and ``estimates`` tables of a recorded step."""
    collecting = gc.isenabled()
    gc.disable()  # it would walk over hundreds of thousands of new tuples again and again, and find nothing
    try:
        events = read(profiler)
        kernels, estimates, facts = attribute(events, *owners(events, ownership), is_composite=is_composite_name)
        if any(event.name.startswith(_COMPILED) for event in events):
            facts["compiled"] = True  # its operators are not those that a step without compilation calls
        return Traced(table("kernels", kernels), table("estimates", estimates), PassOutcome("done", facts=facts))
    finally:
        if collecting:
            gc.enable()


def read(profiler: profile) -> list[Event]:
    """Kineto's events, straight from the binding: ``prof.events()`` builds the same list ten times slower.

    Every field costs a call, so each kind of event is asked only for what it has.
    """
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    cpu = torch.autograd.DeviceType.CPU
    events = []
    for event in results.events():
        name = event.name()
        if event.device_type() != cpu:
            # the shadow of a range on the GPU is no kernel, and neither is a wait
            if not event.is_user_annotation() and not _WAIT(name):
                events.append(
                    Event(
                        name, True, event.device_resource_id(), event.start_ns(), event.end_ns(),
                        event.correlation_id(), event.linked_correlation_id(),
                    )
                )  # fmt: skip
            continue
        number, forward_thread, flops, shapes = -1, 0, 0, ()
        if name.startswith(_NODE):
            number, forward_thread = event.sequence_nr(), event.fwd_thread_id()
        elif "::" in name:
            flops, shapes = event.flops(), event.shapes()
        elif event.linked_correlation_id() > 0 or _RUNTIME(name):
            continue  # a CUDA runtime call; one that is linked to no operator has a number of another sequence
        events.append(
            Event(
                name, False, event.start_thread_id(), event.start_ns(), event.end_ns(), event.correlation_id(), 0,
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
        event.thread: ownership.calls[int(event.name[len(_CALL) :])].thread
        for event in events
        if event.name.startswith(_CALL)
    }

    def maker(thread: int, number: int) -> str | None:
        scope = ownership.maker(thread_of.get(thread, 0), number)
        return None if scope is None else scope.module

    return calls, maker


class _Frame:
    """An open event of a thread, and who owns what happens in it."""

    __slots__ = ("call", "end", "node", "owner", "phase")

    def __init__(self, end: int, owner: str, phase: str, node: _Node | None = None, call: _OpCall | None = None):
        self.end = end
        self.owner = owner
        self.phase = phase  # empty where the phase of the thread holds
        self.node = node
        self.call = call


class _Node:
    """A running autograd node, in which a function of somebody's own may run a forward again."""

    __slots__ = ("called", "pending")

    def __init__(self) -> None:
        self.called = False  # a module, in this node
        self.pending: list[_OpCall] = []  # operators since then

    def calls_again(self) -> None:
        """Another module is called in this node: what ran since the last one was recomputation too."""
        for call in self.pending:
            call.phase = "recompute"
        self.called, self.pending = True, []


class _OpCall:
    """One call of a counted operator."""

    __slots__ = ("end", "module", "name", "number", "phase", "shapes", "start", "thread")

    def __init__(self, number: int, event: Event, module: str, phase: str) -> None:
        self.number = number
        self.name = event.name
        self.module = module
        self.phase = phase
        self.shapes = event.shapes
        self.thread = event.thread
        self.start = event.start
        self.end = event.end


def attribute(
    events: list[Event],
    calls: list[tuple[str, bool]],
    maker: Callable[[int, int], str | None],
    is_composite: Callable[[str], bool],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Give every kernel to an operator call, and every operator call to a module and a phase.

    An operator call is the outermost operator that is not merely composed of others: what a dispatch mode counts.
    On a device the kernels are the GPU's; without one, every operator call is its own kernel.

    Args:
        events: host and device events of one step.
        calls: module path of each marked call, and whether it happened inside a backward (recomputation).
        maker: module that made the autograd node of (thread, sequence number), None if unknown.
        is_composite: whether an operator is merely composed of others.

    Returns:
        Rows of ``kernels``, rows of ``estimates``, and facts about the trace.
    """
    host = sorted((e for e in events if not e.on_device), key=lambda e: (e.thread, e.start, -e.end))
    device = [e for e in events if e.on_device]
    op_calls: list[_OpCall] = []
    launching = {e.linked for e in device if e.linked}
    launchers: dict[int, tuple[_Frame, str, str]] = {}
    estimates: dict[tuple[str, str, str], list[int]] = {}
    thread: int | None = None
    stack: list[_Frame] = []
    # the phase is the whole step's: autograd's own threads, and a user's, are in the one that was marked last
    marks = sorted((e.start, e.name[len(_PHASE) :]) for e in host if e.name.startswith(_PHASE))
    phase, following, last_owner = "other", 0, UNATTRIBUTED
    outside = _Frame(0, UNATTRIBUTED, "")
    for event in host:
        if event.thread != thread:
            thread, stack, last_owner = event.thread, [], UNATTRIBUTED
            phase, following = "other", 0
        while following < len(marks) and marks[following][0] <= event.start:
            phase = marks[following][1]
            following += 1
        while stack and stack[-1].end <= event.start:
            stack.pop()
        around = stack[-1] if stack else outside
        name = event.name
        frame = around
        if around.call is not None:
            pass  # what a counted operator does inside is its own
        elif name.startswith(_CALL):
            module, again = calls[int(name[len(_CALL) :])]
            frame = _Frame(event.end, module, "recompute" if again else "", around.node)
            if again and around.phase == "backward" and around.node is not None:
                around.node.calls_again()
        elif name.startswith(_PHASE):
            continue
        elif name.startswith(_NODE):
            if event.number >= 0:  # AccumulateGrad has none: it follows the node whose gradient it takes
                made_by = maker(event.forward_thread, event.number)
                # made by no module call: part of a checkpoint's own backward, and so of what runs that
                last_owner = around.owner if made_by is None else made_by
            frame = _Frame(event.end, last_owner, "backward", _Node())
        elif "::" in name and not name.startswith(_AUTOGRAD) and not is_composite(name):
            call = _OpCall(len(op_calls), event, around.owner, around.phase or phase)
            op_calls.append(call)
            if around.phase == "backward" and around.node is not None and around.node.called:
                around.node.pending.append(call)
            frame = _Frame(event.end, around.owner, call.phase, around.node, call)
        else:
            frame = _Frame(event.end, around.owner, around.phase, around.node)
        if event.flops:
            estimate = estimates.setdefault((frame.owner, frame.phase or phase, name), [0, 0])
            estimate[0] += 1
            estimate[1] += event.flops
        if event.correlation in launching:
            launchers[event.correlation] = (frame, frame.phase or phase, name)
        if frame is not around:
            stack.append(frame)
    kernels = _device_times(device, launchers) if device else _operator_times(op_calls)
    linked = sum(event.linked in launchers for event in device) if device else len(kernels)
    first = min((row["start_ns"] for row in kernels), default=0)
    for row in kernels:
        row["start_ns"] -= first
    facts = {"events": len(events), "kernels": len(kernels), "kernels_linked": linked}
    rows = [
        {"module": module, "phase": where, "op": op, "calls": times, "flops_profiler": flops}
        for (module, where, op), (times, flops) in estimates.items()
    ]
    return kernels, rows, facts


def _device_times(device: list[Event], launchers: dict[int, tuple[_Frame, str, str]]) -> list[dict[str, Any]]:
    """Kernels, copies and fills in order of start, each under the operator that launched it."""
    rows = []
    nothing = (_Frame(0, UNATTRIBUTED, ""), "other", "")
    for event in sorted(device, key=lambda e: e.start):
        frame, phase, name = launchers.get(event.linked, nothing)
        call = frame.call
        if call is not None:
            rows.append(
                _kernel(call.module, call.phase, call.name, event.name, call.number, _shapes(call.shapes), event)
            )
        else:  # launched by a node or a function of the user's, with no operator between
            rows.append(_kernel(frame.owner, phase, name.removeprefix(_NODE), event.name, None, "", event))
    return rows


def _operator_times(op_calls: list[_OpCall]) -> list[dict[str, Any]]:
    """Without a device every operator call is its own kernel."""
    return [_kernel(c.module, c.phase, c.name, c.name, c.number, _shapes(c.shapes), c) for c in op_calls]


def _kernel(
    module: str, phase: str, op: str, name: str, call: int | None, shapes: str, at: Event | _OpCall
) -> dict[str, Any]:
    return {
        "module": module, "phase": phase, "op": op, "kernel": name, "call": call, "shapes": shapes,
        "stream": str(at.thread), "start_ns": at.start, "duration_ns": at.end - at.start,
    }  # fmt: skip


def _shapes(shapes: Any, most: int = 8) -> str:
    known = [shape for shape in shapes if shape]
    text = " ".join("x".join(map(str, shape)) for shape in known[:most])
    return text if len(known) <= most else f"{text} and {len(known) - most} more"
