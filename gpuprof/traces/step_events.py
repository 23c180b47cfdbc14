"""The neutral events of a step of a recording, as `gpuprof.traces.owners.attribute` takes them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpuprof.late import np
from gpuprof.theory.generated import generated
from gpuprof.traces import chrome
from gpuprof.traces.chrome import Host, Recorded
from gpuprof.traces.events import (
    CALL,
    CALL_MARK,
    KERNEL,
    NODE,
    OPERATOR,
    PHASE,
    RANGE,
    RUNTIME,
    Events,
    apart,
    host_kind,
    is_node,
)
from gpuprof.traces.scopes import Scopes, is_scope
from gpuprof.traces.steps import Window, is_step


def events_of(recorded: Recorded, window: Window, scopes: Scopes) -> tuple[Events, Events]:
    """Those of the host, by thread and start, a range before what is inside it; and those of the device.

    Threads are numbered from 1 on, in the order of `Recorded.threads`, also where an event says who made its node.
    """
    host, runtime, device = recorded.host, recorded.runtime, recorded.device
    names, kinds, sort, rows = _host_events(recorded, window.host, scopes)
    calls = [f"{CALL_MARK}{number}" for number in range(len(scopes.rows))]
    correlations = device.correlation[window.device]
    launching = np.flatnonzero(np.isin(runtime.correlation, correlations[correlations >= 0]))
    called, of_call = np.unique(runtime.name[launching], return_inverse=True)
    nothing, none = np.zeros(len(scopes.rows), np.int64), np.zeros(len(launching), np.int64)
    shapes = [*(_of_tensors(inputs.shapes) for inputs in recorded.inputs), ()]  # the last of events without inputs
    inputs = np.r_[nothing - 1, host.inputs[rows], none - 1]
    events, _ = apart(
        Events(
            names=[*calls, *names, *(recorded.names[name] for name in called.tolist())],
            kinds=[CALL] * len(calls) + kinds + [RUNTIME] * len(called),
            shapes=shapes,
            sort=np.r_[np.arange(len(calls)), len(calls) + sort, len(calls) + len(names) + of_call],
            thread=np.r_[host.thread[scopes.rows], host.thread[rows], runtime.thread[launching]].astype(np.int64) + 1,
            start=np.r_[host.start[scopes.rows], host.start[rows], runtime.start[launching]],
            end=np.r_[host.end[scopes.rows], host.end[rows], runtime.end[launching]],
            correlation=np.r_[nothing, np.zeros(len(rows), np.int64), runtime.correlation[launching]],
            linked=np.zeros(len(inputs), np.int64),
            number=np.r_[nothing - 1, host.number[rows], none - 1],
            forward_thread=np.r_[nothing, _made_by(host, rows, len(recorded.threads)), none],
            flops=np.zeros(len(inputs), np.int64),
            shape=np.where(inputs < 0, len(recorded.inputs), inputs),
            inputs=inputs,
        )
    )
    return events, _device_events(recorded, window)


def _device_events(recorded: Recorded, window: Window) -> Events:
    device, rows = recorded.device, window.device
    zeros = np.zeros(len(rows), np.int64)
    return Events(
        names=recorded.names,
        kinds=[KERNEL] * len(recorded.names),
        shapes=[()],
        sort=device.name[rows].astype(np.int64),
        thread=device.stream[rows].astype(np.int64),
        start=device.start[rows],
        end=device.end[rows],
        correlation=zeros,
        linked=device.correlation[rows],
        number=zeros - 1,
        forward_thread=zeros,
        flops=zeros,
        shape=zeros,
        inputs=zeros - 1,
    )


def _host_events(
    recorded: Recorded, rows: np.ndarray, scopes: Scopes
) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Operators, nodes, optimizers and labels; the ranges of modules, or the labels in their place, are `Scopes`.

    Returns:
        Names and kinds of each sort of event, the sorts of the events, and which of the recording's these are.
    """
    host = recorded.host
    rows = rows[host.category[rows] != chrome.MODULE]
    by_function = not any(host_kind(name) == NODE for name in recorded.names)
    # alike in what decides the kind
    keys = (host.name[rows].astype(np.int64) * 2 + host.category[rows]) * 2 + (host.forward_thread[rows] > 0)
    alike, first, which = np.unique(keys, return_index=True, return_inverse=True)
    names, kinds = [], []
    for row in rows[first].tolist():
        name, category = recorded.names[host.name[row]], int(host.category[row])
        is_function = by_function and category == chrome.OPERATOR and is_node(name)
        names.append(name)
        kinds.append(NODE if is_function else _kind(name, category, host.forward_thread[row] > 0, scopes))
    kept = np.array([bool(kind) for kind in kinds], dtype=bool)[which] if len(alike) else np.zeros(0, dtype=bool)
    return names, kinds, which[kept], rows[kept]


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
    if kind == RANGE and category == chrome.OPERATOR and generated(name) is not None:
        return OPERATOR
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
