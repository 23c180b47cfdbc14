"""The neutral events of a step of a recording, as `gpuprof.traces.owners.attribute` takes them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from gpuprof.traces import chrome
from gpuprof.traces.chrome import Host, Recorded
from gpuprof.traces.events import CALL, KERNEL, NODE, PHASE, RANGE, RUNTIME, Event, host_kind, is_node
from gpuprof.traces.scopes import Scopes, is_scope
from gpuprof.traces.steps import Window, is_step


def events_of(recorded: Recorded, window: Window, scopes: Scopes) -> tuple[list[Event], list[Event]]:
    """Those of the host, by thread and start, a range before what is inside it; and those of the device.

    Threads are numbered from 1 on, in the order of `Recorded.threads`, also where an event says who made its node.
    """
    events = [*scopes.events, *_host_events(recorded, window.host, scopes)]
    device = recorded.device
    rows = window.device
    correlations = device.correlation[rows]
    runtime = recorded.runtime
    launching = np.flatnonzero(np.isin(runtime.correlation, correlations[correlations >= 0]))
    calls = zip(
        runtime.name[launching].tolist(), (runtime.thread[launching] + 1).tolist(), runtime.start[launching].tolist(),
        runtime.end[launching].tolist(), runtime.correlation[launching].tolist(), strict=True,
    )  # fmt: skip
    events += [
        Event(recorded.names[name], RUNTIME, thread, start, end, correlation)
        for name, thread, start, end, correlation in calls
    ]
    events.sort(key=lambda event: (event.thread, event.start, -event.end))
    kernels = zip(
        device.name[rows].tolist(), device.stream[rows].tolist(), device.start[rows].tolist(),
        device.end[rows].tolist(), correlations.tolist(), strict=True,
    )  # fmt: skip
    return events, [
        Event(recorded.names[name], KERNEL, stream, start, end, 0, correlation)
        for name, stream, start, end, correlation in kernels
    ]


def _host_events(recorded: Recorded, rows: np.ndarray, scopes: Scopes) -> list[Event]:
    """Operators, nodes, optimizers and labels; the ranges of modules, or the labels in their place, are `Scopes`."""
    host = recorded.host
    rows = rows[host.category[rows] != chrome.MODULE]
    kinds: dict[tuple[int, int, bool], str] = {}
    by_function = not any(host_kind(name) == NODE for name in recorded.names)
    shapes = [_of_tensors(inputs.shapes) for inputs in recorded.inputs]
    events = []
    columns = zip(
        host.name[rows].tolist(), host.category[rows].tolist(), (host.thread[rows] + 1).tolist(),
        host.start[rows].tolist(), host.end[rows].tolist(), host.number[rows].tolist(),
        _made_by(host, rows, len(recorded.threads)).tolist(), host.inputs[rows].tolist(), strict=True,
    )  # fmt: skip
    for name, category, thread, start, end, number, forward_thread, inputs in columns:
        key = (name, category, forward_thread > 0)
        kind = kinds.get(key)
        if kind is None:
            kind = _kind(recorded.names[name], category, forward_thread > 0, scopes)
            if by_function and category == chrome.OPERATOR and is_node(recorded.names[name]):
                kind = NODE
            kinds[key] = kind
        if kind:
            events.append(
                Event(
                    recorded.names[name], kind, thread, start, end, 0, 0, number, forward_thread, 0,
                    shapes[inputs] if inputs >= 0 else (), inputs,
                )
            )  # fmt: skip
    return events


def _made_by(host: Host, rows: np.ndarray, threads: int) -> np.ndarray:
    """The thread that made the node of each event, as `events_of` numbers them; 0 where it has none.

    A recording names threads twice: by the system's number where something ran, by the profiler's own where it says
    who made a node. The two are brought together by the sequence numbers on both sides: most in common, fewest others.
    Threads that are alike, as those that run a model's replicas, are taken in turn: the profiler numbers them as they
    begin.
    """
    made_by, number, thread = host.forward_thread[rows], host.number[rows], host.thread[rows] + 1
    makes = (made_by <= 0) & (number >= 0)
    in_turn = dict.fromkeys(thread[makes][np.argsort(host.start[rows][makes], kind="stable")].tolist())
    made = {one: np.unique(number[makes & (thread == one)]) for one in in_turn}
    taken: Counter[int] = Counter()
    found = np.where(made_by > 0, threads + 1, 0)  # nobody's, unless it is told
    for maker in np.unique(made_by[(made_by > 0) & (number >= 0)]).tolist():
        asked = np.unique(number[made_by == maker])
        common = {one: int(np.isin(asked, numbers).sum()) for one, numbers in made.items()}
        best = max(common, key=lambda one: (common[one], -len(made[one]), -taken[one]), default=None)
        if best is not None and common[best]:
            taken[best] += 1
            found[made_by == maker] = best
    return found


def _kind(name: str, category: int, of_node: bool, scopes: Scopes) -> str:
    """What an event of a recording is; empty for what is no part of the step, or is one of its scopes."""
    kind = host_kind(name, label=category == chrome.LABEL, of_node=of_node)
    if kind in (CALL, PHASE):  # of a trace that was made while gpuprof measured
        kind = RANGE
    if kind == RANGE and (is_step(name) or (category == chrome.LABEL and is_scope(name, scopes.what))):
        return ""
    if kind == RUNTIME:  # the name of a call, but no call: those have a category of their own
        kind = RANGE
    return kind


def _of_tensors(shapes: Any) -> tuple[Any, ...]:
    """Shapes without those of lists of tensors, which the live binding does not give either."""
    if not isinstance(shapes, list):
        return ()
    return tuple(
        shape for shape in shapes if isinstance(shape, list) and not any(isinstance(size, list) for size in shape)
    )
