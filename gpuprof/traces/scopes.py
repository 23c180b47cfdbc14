"""What work is booked on in a recording: ranges of modules, or where there are none labels, and the tree they make.

A range of a module tells its class and a running number, not where the model keeps it, so a path here is the labels
of the ranges around one another: ``BertModel_0.BertEncoder_0.BertLayer_3``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpuprof.paths import ancestors
from gpuprof.traces.chrome import LABEL, MODULE, Host, Recorded
from gpuprof.traces.events import CALL, CALL_MARK, OPERATOR, RANGE, Event, host_kind

_PREFIX = "nn.Module: "
_NUMBERED = re.compile(r"(.+)_\d+").fullmatch
# labels of profilers, data loaders, optimizers and process groups, which are no parts of a model
_NO_SCOPE = re.compile(r"ProfilerStep#|Optimizer\.|enumerate\(|nccl:|gloo:|gpuprof[#:]|PyTorch Profiler").match


class Scopes(NamedTuple):
    """The scopes of a step.

    Attributes:
        what: modules, labels, or empty where there are neither.
        events: their ranges as calls, for `gpuprof.traces.owners.attribute`.
        calls: path of each call, and whether it is recomputation if it happens inside a backward: not that of a label.
        classes: class, or the label, by path.
        counts: calls by path.
    """

    what: str
    events: list[Event]
    calls: list[tuple[str, bool]]
    classes: dict[str, str]
    counts: dict[str, int]


def scopes_of(recorded: Recorded, rows: np.ndarray) -> Scopes:
    """The scopes among these rows of the host's events.

    Args:
        recorded: the recording.
        rows: events of the step, as indices.
    """
    host = recorded.host
    what, chosen = "modules", rows[host.category[rows] == MODULE]
    if not len(chosen):
        what, chosen = "labels", _labels(recorded, rows)
    if not len(chosen):
        return Scopes("", [], [], {}, {})
    # of ranges of the same whole microseconds the outer one was called first
    chosen = chosen[np.lexsort((host.python_id[chosen], -host.end[chosen], host.start[chosen], host.thread[chosen]))]
    texts = {name: _text(recorded.names[name]) for name in np.unique(host.name[chosen]).tolist()}
    paths = _paths(host, chosen, texts)
    events, calls = [], []
    classes: dict[str, str] = {}
    counts: dict[str, int] = {}
    for index, (row, path) in enumerate(zip(chosen.tolist(), paths, strict=True)):
        mark = f"{CALL_MARK}{index}"
        events.append(Event(mark, CALL, int(host.thread[row]) + 1, int(host.start[row]), int(host.end[row])))
        calls.append((path, what == "modules"))
        counts[path] = counts.get(path, 0) + 1
        classes.setdefault(path, _class(recorded.names[host.name[row]].removeprefix(_PREFIX), what))
    # in the order of their calls, but each after what it is in: that may be called outside the window
    in_turn = [paths[index] for index in np.argsort(host.start[chosen], kind="stable").tolist()]
    ordered = {above: "" for path in dict.fromkeys(in_turn) for above in ancestors(path)[-2::-1]}
    classes = {path: classes.get(path) or _class(path.rpartition(".")[2], what) for path in ordered}
    return Scopes(what, events, calls, classes, counts)


def _class(label: str, what: str) -> str:
    """The class of a module's range; a label is its own."""
    numbered = _NUMBERED(label) if what == "modules" else None
    return numbered[1] if numbered else label


def _labels(recorded: Recorded, rows: np.ndarray) -> np.ndarray:
    labels = rows[recorded.host.category[rows] == LABEL]
    names = recorded.host.name[labels]
    plain = [name for name in np.unique(names).tolist() if is_scope(recorded.names[name], "labels")]
    return labels[np.isin(names, plain)]


def is_scope(label: str, what: str) -> bool:
    """Whether work is booked on a label, where ``what`` is."""
    return what == "labels" and not _NO_SCOPE(label) and host_kind(label, label=True) == RANGE


def _text(name: str) -> str:
    """A label as one part of a path, whose parts are separated by dots."""
    return name.removeprefix(_PREFIX).replace(".", "_") or "_"


def _paths(host: Host, rows: np.ndarray, texts: dict[int, str]) -> list[str]:
    """Path of each range; one that stands alone, as when it is run again in a backward, has the path it had inside.

    Args:
        host: the host's events.
        rows: ranges by thread and start, one before what is inside it.
        texts: part of a path by name.
    """
    paths: list[str] = []
    inside: dict[int, str] = {}  # the first path inside another range, by name
    stack: list[tuple[int, str]] = []
    thread = None
    columns = (host.thread[rows].tolist(), host.start[rows].tolist(), host.end[rows].tolist(), host.name[rows].tolist())
    for at, start, end, name in zip(*columns, strict=True):
        if at != thread:
            thread, stack = at, []
        while stack and stack[-1][0] <= start:
            stack.pop()
        path = f"{stack[-1][1]}.{texts[name]}" if stack else texts[name]
        if stack and texts[name] not in stack[-1][1].split("."):  # a module that calls itself is moved nowhere
            inside.setdefault(name, path)
        stack.append((end, path))
        paths.append(path)
    moved = {texts[name]: path for name, path in inside.items()}
    return [_moved(path, moved) for path in paths]


def _moved(path: str, moved: dict[str, str]) -> str:
    """A path from the outermost range that it was ever in; ranges that are in one another are followed once."""
    followed: set[str] = set()
    root, _, rest = path.partition(".")
    while root in moved and root not in followed:
        followed.add(root)
        path = f"{moved[root]}.{rest}" if rest else moved[root]
        root, _, rest = path.partition(".")
    return path


def makers(events: list[Event], calls: list[tuple[str, bool]]) -> Callable[[int, int], str | None]:
    """Who made an autograd node, by thread and sequence number: the owner of the last operator that had the number.

    Args:
        events: of the host, by thread and start, a range before what is inside it.
        calls: path of each call of a module.
    """
    made: dict[tuple[int, int], str | None] = {}
    stack: list[tuple[int, str]] = []
    thread = None
    for event in events:
        if event.thread != thread:
            thread, stack = event.thread, []
        while stack and stack[-1][0] <= event.start:
            stack.pop()
        if event.kind == CALL:
            stack.append((event.end, calls[int(event.name[len(CALL_MARK) :])][0]))
        elif event.forward_thread == 0 and event.number >= 0 and event.kind in (OPERATOR, RANGE):
            made[event.thread, event.number] = stack[-1][1] if stack else None
    return lambda thread, number: made.get((thread, number))
