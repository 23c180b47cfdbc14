"""What an event of a trace is. Decided here and nowhere else, but for communication: `gpuprof.theory.names`.

A host event is an operator only if it looks like one and nobody calls it a label: users, torch and FSDP give ranges
names with ``::`` in them too, such as ``record_function("model::forward")``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gpuprof.late import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

CALL = "call"
"""A call of a module, marked by gpuprof."""
PHASE = "phase"
"""A change of phase, marked by gpuprof."""
NODE = "node"
"""The engine runs a node of the autograd graph, with its hooks."""
FUNCTION = "function"
"""The node's own function, inside: it has the number also where a hook with operators took it from the node."""
OPERATOR = "operator"
"""An operator of the dispatcher."""
OPTIMIZER = "optimizer"
"""A step of an optimizer, which torch labels."""
MODE = "mode"
"""A dispatch mode of the user's own, or of a library's, does something in an operator's place."""
SUBCLASS = "subclass"
"""A class of tensors, such as DTensor, does so for what it was given."""
COMPILED = "compiled"
"""A region that torch.compile has taken over."""
MARK = "mark"
"""Compiled code is about to call a kernel, marked by gpuprof."""
RANGE = "range"
"""Any other range on the host: a label, or a function of somebody's own, which may launch kernels."""
KERNEL = "kernel"
"""Work of the GPU: a kernel, a copy or a fill."""
WAIT = "wait"
"""Something on the GPU that is not its work: a stream waits for an event, or a label casts its shadow."""
RUNTIME = "runtime"
"""A call into the GPU's runtime or driver."""

CALL_MARK = "gpuprof#"
PHASE_MARK = "gpuprof:phase:"
KERNEL_MARK = "gpuprof:kernel:"
OUTSIDE = "outside"
"""What the mark of a phase says where a step that runs in several blocks is left until the next one begins."""

NODE_PREFIX = "autograd::engine::evaluate_function: "

_OPTIMIZER = "Optimizer.step#"
_TAKE_OVER = {"PythonDispatchMode": MODE, "PythonSubclass": SUBCLASS}
_COMPILED = "Torch-Compiled Region"
_CALLS_COMPILED = (_COMPILED, "CompiledFunction", "## Call CompiledFxGraph")
_GRAPH = re.compile(r"## Call CompiledFxGraph (\S+) ##").fullmatch
_OPERATOR = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*(\.\w+)?$").match
_NODE = re.compile(r"[A-Z]\w*Backward\d*$|torch::autograd::AccumulateGrad$").match
_RUNTIME = re.compile(r"(cuda|cu|hip)[A-Z]|INVALID$").match  # CUDA's own calls; INVALID where CUPTI knows no name
_WAIT = re.compile(r"(Stream|Event|Context) (Wait|Sync)|Unknown Sync").match
_COMMS = "record_param_comms"  # torch's own record around a collective: no namespace, yet no label


class Event(NamedTuple):
    """One event of a trace.

    Attributes:
        name: operator, range or kernel name.
        kind: of those above.
        thread: the profiler's number of the thread, or the CUDA stream.
        start: nanoseconds.
        end: nanoseconds.
        correlation: number by which kernels name what launched them.
        linked: that number, on a kernel; 0 elsewhere.
        number: autograd sequence number, -1 where there is none: of a node its own, of an operator or a range the next
            one, which is that of the node that it makes, if it makes one.
        forward_thread: thread that made the autograd node.
        flops: torch's own estimate, 0 where it makes none.
        shapes: shapes of the inputs.
        inputs: number of what else a recording says of them, -1 where it says nothing.
    """

    name: str
    kind: str
    thread: int
    start: int
    end: int
    correlation: int = 0
    linked: int = 0
    number: int = -1
    forward_thread: int = 0
    flops: int = 0
    shapes: Any = ()
    inputs: int = -1


@dataclass(frozen=True)
class Events:
    """Many events as columns, a row for each; what they say is that of `Event`.

    Attributes:
        names: of each sort of event: events of one name and kind.
        kinds: likewise.
        shapes: what calls were given, the last of them ``()``.
        sort: of each event, index into ``names`` and ``kinds``.
        shape: index into ``shapes``; of an operator inside another it may be the last, whatever it was given.
    """

    COLUMNS: ClassVar = (
        "sort", "thread", "start", "end", "correlation", "linked", "number", "forward_thread", "flops", "shape",
        "inputs",
    )  # fmt: skip

    names: list[str]
    kinds: list[str]
    shapes: list[Any]
    sort: Integers
    thread: Integers
    start: Integers
    end: Integers
    correlation: Integers
    linked: Integers
    number: Integers
    forward_thread: Integers
    flops: Integers
    shape: Integers
    inputs: Integers

    @classmethod
    def of(cls, events: Iterable[Event]) -> Events:
        """Events one by one as columns."""
        rows = list(events)
        sorts: dict[tuple[str, str], int] = {}
        sort = [sorts.setdefault((row.name, row.kind), len(sorts)) for row in rows]
        columns = {name: np.array([getattr(row, name) for row in rows], np.int64) for name in cls.COLUMNS[1:9]}
        return cls(
            [name for name, _ in sorts], [kind for _, kind in sorts], [*(row.shapes for row in rows), ()],
            np.array(sort, np.int64), **columns, shape=np.arange(len(rows)),
            inputs=np.array([row.inputs for row in rows], np.int64),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.sort)

    def __iter__(self) -> Iterator[Event]:
        columns = (getattr(self, name).tolist() for name in self.COLUMNS)
        for sort, *numbers, shape, inputs in zip(*columns, strict=True):
            yield Event._make((self.names[sort], self.kinds[sort], *numbers, self.shapes[shape], inputs))

    def take(self, rows: NDArray[Any]) -> Events:
        """Those at these places, or where a mask says so."""
        places = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        taken = {name: getattr(self, name).take(places) for name in self.COLUMNS}
        return Events(self.names, self.kinds, self.shapes, **taken)

    def sorts(self, *kinds: str) -> NDArray[np.bool_]:
        """Which sorts are of these kinds."""
        return np.array([kind in kinds for kind in self.kinds], np.bool_)

    def rows(self, *kinds: str) -> NDArray[np.intp]:
        """Places of the events of these kinds."""
        return np.flatnonzero(self.sorts(*kinds)[self.sort])

    def threads(self) -> Iterator[tuple[int, int, int]]:
        """Each thread with its first place and the one after its last, of events that are by thread."""
        firsts = np.flatnonzero(np.diff(self.thread, prepend=self.thread[:1] - 1)).tolist()
        for first, after in pairwise([*firsts, len(self)]):
            yield int(self.thread[first]), first, after


def is_node(name: str) -> bool:
    """Whether it is a node of autograd, by its function's name alone.

    All there is to tell by in recordings of torch 1.8, which do not have the engine's own ranges.
    """
    return _NODE(name) is not None


def launches_graph(name: str) -> bool:
    """Whether a call into the runtime launches a CUDA or HIP graph, all of whose kernels share its correlation."""
    return "GraphLaunch" in name


def calls_compiled(name: str) -> int | None:
    """Which of the ranges around compiled code it is, from 0 on the outermost; None of others.

    That of Dynamo, around all that replaces a function's code, is in files from about 2023 on; that of AOTAutograd is
    the forward of one graph alone, where there is a backward to it; that of Inductor, since 2024, one graph either way.
    """
    if name == "CompiledFunctionBackward":
        return None
    return next((place for place, begin in enumerate(_CALLS_COMPILED) if name.startswith(begin)), None)


def graph_key(name: str) -> str | None:
    """The key of a graph that Inductor compiled, by which its caches have it; None of what is no such graph's range."""
    found = _GRAPH(name)
    return found[1] if found else None


class Inputs(NamedTuple):
    """What a file says of the inputs of an operator's calls, as decoded from JSON; None where it has none.

    Attributes:
        shapes: a list per argument, empty of what is no tensor; of a list of tensors one level deeper.
        types: ``c10::BFloat16``, ``float``, ``long int``, ``Scalar``, ``ScalarList``, ``TensorList``; empty of None.
        concrete: values of numbers and lists of numbers as text, e.g. ``False``, ``0.125``, ``[2, 2]``; else empty.
        sparse: whether a tensor has sizes and no strides, by which alone a file tells a sparse one from a dense one.
    """

    shapes: Any
    types: Any
    concrete: Any
    sparse: Any = None


def host_kind(name: str, label: bool = False, of_node: bool = False) -> str:
    """What an event on the host is.

    Args:
        name: its name.
        label: whether the profiler says that it is an annotation of somebody's.
        of_node: whether it says that it is the function of an autograd node.
    """
    if name.startswith(CALL_MARK):
        return CALL
    if name.startswith(PHASE_MARK):
        return PHASE
    if name.startswith(KERNEL_MARK):
        return MARK
    if name.startswith(NODE_PREFIX):
        return NODE
    if of_node:
        return FUNCTION
    if name.startswith(_OPTIMIZER):
        return OPTIMIZER
    if name in _TAKE_OVER:
        return _TAKE_OVER[name]
    if name.startswith(_COMPILED):
        return COMPILED
    if label:
        return RANGE
    if _OPERATOR(name) or name == _COMMS:
        return OPERATOR
    return RUNTIME if _RUNTIME(name) else RANGE


def device_kind(name: str, label: bool = False) -> str:
    """What an event on the GPU is; ``label`` as for the host."""
    return WAIT if label or _WAIT(name) else KERNEL


def apart(events: Events) -> tuple[Events, Events]:
    """Those of the host, by thread and start, a range before what is inside it; and the work of the device."""
    host = np.flatnonzero(~events.sorts(KERNEL, WAIT)[events.sort])
    host = host[np.lexsort((events.start[host], events.thread[host]))]
    start, thread = events.start[host], events.thread[host]
    alike = np.r_[False, (start[1:] == start[:-1]) & (thread[1:] == thread[:-1]), False]
    tied = np.flatnonzero(alike[1:] | alike[:-1])  # few, and of the rest most are in order already
    host[tied] = host[tied][np.lexsort((-events.end[host[tied]], start[tied], thread[tied]))]
    return events.take(host), events.take(events.rows(KERNEL))


def without_outside(events: Events) -> Events:
    """Leave out what ran `OUTSIDE`, with the kernels that were launched there."""
    rows = events.rows(PHASE)
    marks = sorted(
        (start, events.names[sort][len(PHASE_MARK) :])
        for start, sort in zip(events.start[rows].tolist(), events.sort[rows].tolist(), strict=True)
    )
    if not any(phase == OUTSIDE for _, phase in marks):
        return events
    places = np.searchsorted(np.array([start for start, _ in marks]), events.start, side="right")
    outside = np.array([False, *(phase == OUTSIDE for _, phase in marks)])[places]
    left = events.sorts(KERNEL, WAIT)[events.sort] | ~outside
    launched = np.setdiff1d(events.correlation, np.r_[0, events.correlation[left]])
    return events.take(left & ~np.isin(events.linked, launched))
