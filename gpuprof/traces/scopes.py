"""What work is booked on in a recording: ranges of modules, or where there are none labels, and the tree they make.

A range of a module tells its class and a running number, not where the model keeps it, so a path here is the labels
of the ranges around one another: ``BertModel_0.BertEncoder_0.BertLayer_3``. Regions that torch.compile has taken over
are scopes too, below what calls them: no module inside has a range, but those that a graph break leaves to Python.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from gpuprof.late import np
from gpuprof.paths import ancestors
from gpuprof.traces.chrome import LABEL, MODULE, Host, Recorded
from gpuprof.traces.events import (
    CALL,
    CALL_MARK,
    NODE,
    OPERATOR,
    RANGE,
    Events,
    calls_compiled,
    graph_key,
    host_kind,
)
from gpuprof.traces.owners import OpCalls
from gpuprof.traces.phases import SERVED

_PREFIX = "nn.Module: "
_NUMBERED = re.compile(r"(.+)_\d+").fullmatch
# labels of profilers, data loaders, optimizers, process groups, compilers and servers, which are no parts of a model
_NO_SCOPE = re.compile(
    r"ProfilerStep#|Optimizer\.|enumerate\(|nccl:|gloo:|gpuprof[#:]|PyTorch Profiler|## Call CompiledFxGraph"
).match


class Scopes(NamedTuple):
    """The scopes of a step.

    Attributes:
        what: modules, labels, or empty where there are neither.
        rows: their ranges among the host's events, by thread and start.
        calls: path of each call, and whether it is recomputation if it happens inside a backward: not that of a label.
        classes: class, or the label, by path.
        counts: calls by path.
        regions: paths of those that torch.compile has taken over.
    """

    what: str
    rows: np.ndarray
    calls: list[tuple[str, bool]]
    classes: dict[str, str]
    counts: dict[str, int]
    regions: frozenset[str] = frozenset()


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
    compiled = _regions(recorded, rows)
    what = what if len(chosen) else ""
    chosen = np.concatenate([chosen, compiled])
    if not len(chosen):
        return Scopes("", chosen, [], {}, {})
    inner = np.isin(chosen, compiled)
    # of ranges of the same whole microseconds the outer one was called first, and what calls a region is around it
    keys = (host.python_id[chosen], inner, -host.end[chosen], host.start[chosen], host.thread[chosen])
    chosen = chosen[np.lexsort(keys)]
    names = set(host.name[compiled].tolist())
    texts = {name: _text(recorded.names[name]) for name in np.unique(host.name[chosen]).tolist()}
    paths = _paths(host, chosen, texts, names)
    calls = []
    classes: dict[str, str] = {}
    counts: dict[str, int] = {}
    for row, path in zip(chosen.tolist(), paths, strict=True):
        calls.append((path, what == "modules" and host.name[row] not in names))
        counts[path] = counts.get(path, 0) + 1
        classes.setdefault(path, _class(recorded.names[host.name[row]].removeprefix(_PREFIX), what))
    # in the order of their calls, but each after what it is in: that may be called outside the window
    in_turn = [paths[index] for index in np.argsort(host.start[chosen], kind="stable").tolist()]
    ordered = {above: "" for path in dict.fromkeys(in_turn) for above in ancestors(path)[-2::-1]}
    classes = {path: classes.get(path) or _class(path.rpartition(".")[2], what) for path in ordered}
    regions = {path for row, path in zip(chosen.tolist(), paths, strict=True) if host.name[row] in names}
    return Scopes(what, chosen, calls, classes, counts, frozenset(regions))


def _regions(recorded: Recorded, rows: np.ndarray) -> np.ndarray:
    """Ranges of compiled code: of the outermost kind that this recording has."""
    kinds = {name: calls_compiled(recorded.names[name]) for name in np.unique(recorded.host.name[rows]).tolist()}
    outermost = min((kind for kind in kinds.values() if kind is not None), default=None)
    names = [name for name, kind in kinds.items() if kind is not None and kind == outermost]
    return rows[np.isin(recorded.host.name[rows], names)]


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
    no_part = _NO_SCOPE(label) or SERVED(label)
    return what == "labels" and not no_part and host_kind(label, label=True) == RANGE


def _text(name: str) -> str:
    """A label as one part of a path, whose parts are separated by dots."""
    return name.removeprefix(_PREFIX).replace(".", "_") or "_"


def _paths(host: Host, rows: np.ndarray, texts: dict[int, str], regions: set[int]) -> list[str]:
    """Path of each range; one that stands alone, as when it is run again in a backward, has the path it had inside.

    What a region calls, after a graph break, is below what called the region.

    Args:
        host: the host's events.
        rows: ranges by thread and start, one before what is inside it.
        texts: part of a path by name.
        regions: names of those of compiled code.
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
        around = stack[-1][1] if stack else ""
        path = f"{around}.{texts[name]}" if around else texts[name]
        # a module that calls itself is moved nowhere, nor is a region, which many modules may call
        if around and texts[name] not in around.split(".") and name not in regions:
            inside.setdefault(name, path)
        stack.append((end, around if name in regions else path))
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


def makers(host: Events, calls: list[tuple[str, bool]]) -> Callable[[int, int], str | None]:
    """Who made an autograd node, by thread and sequence number: the owner of the last operator that had the number.

    Args:
        host: by thread and start, a range before what is inside it.
        calls: path of each call of a module.
    """
    made: dict[tuple[int, int], str | None] = {}
    makes = host.sorts(OPERATOR, RANGE)[host.sort] & (host.forward_thread == 0) & (host.number >= 0)
    rows = np.flatnonzero(makes | host.sorts(CALL)[host.sort])
    stack: list[tuple[int, str]] = []
    last = None
    columns = (column[rows].tolist() for column in (makes, host.thread, host.start, host.end, host.number, host.sort))
    for is_made, thread, start, end, number, sort in zip(*columns, strict=True):
        if thread != last:
            last, stack = thread, []
        while stack and stack[-1][0] <= start:
            stack.pop()
        if is_made:
            made[thread, number] = stack[-1][1] if stack else None
        else:
            stack.append((end, calls[int(host.names[sort][len(CALL_MARK) :])][0]))
    return lambda thread, number: made.get((thread, number))


def graphs_of(host: Events, scopes: Scopes, maker: Callable[[int, int], str | None]) -> dict[str, dict[str, list[str]]]:
    """Keys of the graphs that ran in each region, by its path and by direction, forward or backward.

    Args:
        host: by thread and start, a range before what is inside it.
        scopes: as `scopes_of` found them.
        maker: who made an autograd node.
    """
    found: dict[str, dict[str, list[str]]] = {path: {} for path in scopes.classes if path in scopes.regions}
    stack: list[tuple[int, str | None, str]] = []
    thread = None
    named = np.array([graph_key(name) is not None for name in host.names], np.bool_) | host.sorts(CALL, NODE)
    for event in host.take(named[host.sort]):
        if event.thread != thread:
            thread, stack = event.thread, []
        while stack and stack[-1][0] <= event.start:
            stack.pop()
        if event.kind == CALL:
            direction = stack[-1][2] if stack else "forward"
            stack.append((event.end, scopes.calls[int(event.name[len(CALL_MARK) :])][0], direction))
        elif event.kind == NODE:
            stack.append((event.end, maker(event.forward_thread, event.number), "backward"))
        elif (key := graph_key(event.name)) and stack and stack[-1][1] in found:
            keys = found[str(stack[-1][1])].setdefault(stack[-1][2], [])
            if key not in keys:
                keys.append(key)
    return found


def outside_operators(calls: OpCalls) -> int:
    """Nanoseconds in graphs that Inductor compiled, on the host, and in none of these calls of operators."""
    host = calls.events
    graph = np.array([graph_key(name) is not None for name in host.names], np.bool_)[host.sort]
    ranges = [column[graph].tolist() for column in (host.thread, host.start, host.end)]
    graphs = sorted(zip(*ranges, strict=True))
    outside = sum(end - start for _, start, end in graphs)
    columns = (column[calls.rows].tolist() for column in (host.thread, host.start, host.end))
    for thread, start, end in zip(*columns, strict=True):
        place = bisect_right(graphs, (thread, start, sys.maxsize)) - 1
        if place >= 0 and graphs[place][0] == thread and end <= graphs[place][2]:
            outside -= end - start
    return outside
