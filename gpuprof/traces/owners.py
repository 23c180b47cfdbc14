"""Whose work an event is: every kernel given to its operator, module and phase."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

from gpuprof.schema import GRADIENT_ALLREDUCE, UNATTRIBUTED
from gpuprof.theory.names import all_reduces
from gpuprof.traces import phases
from gpuprof.traces.events import (
    CALL,
    CALL_MARK,
    COMPILED,
    KERNEL,
    KERNEL_MARK,
    MARK,
    NODE,
    NODE_PREFIX,
    OPERATOR,
    OPTIMIZER,
    PHASE,
    RANGE,
    RUNTIME,
    WAIT,
    Event,
    launches_graph,
)
from gpuprof.traces.nodes import FOLLOWS, made_by_nodes, node_numbers
from gpuprof.traces.taken_over import around_products, taken_over

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
"""Products of matrices. None of them calls another, but where torch.func or forward-mode differentiation does."""

_TWICE = ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::convolution")
"""Operators that, inside another, may be that one once more. Not addmm, which a sparse product calls by itself."""

_UNKNOWN = "(unknown)"
"""Owner, while events are gone through, of a node of which nobody knows who made it; in the rows it is no module."""


class _Frame:
    """An open event of a thread, and who owns what happens in it."""

    __slots__ = ("call", "end", "kernel_call", "name", "node", "owner", "phase")

    def __init__(
        self, end: int, owner: str, phase: str, node: _Node | None = None, call: OpCall | None = None, name: str = ""
    ):
        self.end = end
        self.owner = owner
        self.phase = phase  # empty where the phase of the thread holds
        self.node = node
        self.call = call
        self.name = name  # of what launches a kernel here, if no operator does
        self.kernel_call: KernelCall | None = None  # the kernel that compiled code calls here now


class KernelCall(NamedTuple):
    """A call of a kernel by compiled code.

    Attributes:
        key: ``GRAPH/KERNEL:NUMBER``, as in the ``kernels`` table.
        kernel: name of a generated kernel; empty of an operator that is called as it is.
        op: what stands for the operator of a generated one.
        module: owner.
        phase: empty where it is that of the step.
    """

    key: str
    kernel: str
    op: str
    module: str
    phase: str


class _Node:
    """A running autograd node, in which a function of somebody's own may run a forward again."""

    __slots__ = ("called", "follows", "holds_nodes", "makes_nodes", "owner", "pending", "without_graph")

    def __init__(self, owner: str, follows: bool) -> None:
        self.owner = owner
        self.follows = follows  # the one whose gradient it takes
        self.called = False  # a module, in this node
        self.pending: list[OpCall] = []  # operators since then
        self.makes_nodes: list[OpCall] = []  # operators that do, as a forward's
        self.without_graph = False  # some operators make none, as a backward's
        self.holds_nodes = False  # a backward of its own runs inside

    def calls_again(self) -> None:
        """Another module is called in this node: what ran since the last one was recomputation too."""
        for call in self.pending:
            call.phase = "recompute"
        self.called, self.pending = True, []

    def runs(self, call: OpCall, event: Event) -> None:
        """An operator of the node's own, in a recording without marks."""
        if event.number >= 0:
            self.makes_nodes.append(call)
        elif any(event.shapes) or event.inputs < 0:  # one that makes a tensor out of none never has a number
            self.without_graph = True

    def ends(self) -> None:
        """Operators that make nodes of autograd, beside others that do not or a backward of theirs, ran once more.

        Where all of them do and there is no such backward, the node's own backward is to be differentiated.
        """
        if self.without_graph or self.holds_nodes:
            for call in self.makes_nodes:
                call.phase = "recompute"


class OpCall:
    """One call of a counted operator: the outermost one that is not merely composed of others.

    Attributes:
        number: of the call; its kernels have it too.
        name: operator.
        module: owner.
        phase: as in the ``ops`` table.
        shapes: of the inputs, as the event has them.
        inputs: number of what else a recording says of them.
        thread: where it ran.
        start: nanoseconds.
        end: nanoseconds.
        kernel_call: the call of a kernel that it is, or is part of, in compiled code.
    """

    __slots__ = ("end", "inputs", "kernel_call", "module", "name", "number", "phase", "shapes", "start", "thread")

    def __init__(
        self, number: int, event: Event, module: str, phase: str, kernel_call: KernelCall | None = None
    ) -> None:
        self.number = number
        self.name = event.name
        self.module = module
        self.phase = phase
        self.kernel_call = kernel_call
        self.shapes = event.shapes
        self.inputs = event.inputs
        self.thread = event.thread
        self.start = event.start
        self.end = event.end

    @property
    def kernel(self) -> str:
        """Name of the kernel that it is where there is no device: of a generated one its own."""
        return (self.kernel_call.kernel if self.kernel_call is not None else "") or self.name

    def called_by(self, site: KernelCall) -> None:
        """Compiled code calls it, on behalf of whom it says."""
        self.kernel_call = site
        self.module, self.phase = site.module, site.phase or self.phase


class Attributed(NamedTuple):
    """Whose work the events of a step are.

    Attributes:
        kernels: rows of the ``kernels`` table.
        estimates: rows of ``estimates``.
        facts: what the trace says of itself.
        calls: of counted operators, by their number.
    """

    kernels: list[dict[str, Any]]
    estimates: list[dict[str, Any]]
    facts: dict[str, Any]
    calls: list[OpCall]


def attribute(
    events: list[Event],
    calls: list[tuple[str, bool]],
    maker: Callable[[int, int], str | None],
    is_composite: Callable[[str], bool],
    marked: bool = True,
    unit_of: Callable[[str], str | None] = lambda label: None,
    kernel_at: Callable[[str, str, str], KernelCall] | None = None,
) -> Attributed:
    """Give every kernel to an operator call, and every operator call to a module and a phase.

    An operator call is the outermost operator that is not merely composed of others: what a dispatch mode counts.
    On a device the kernels are the GPU's; without one, every operator call is its own kernel.

    Args:
        events: host and device events of one step; without marks those of the host by thread and start, a range before
            what is inside it.
        calls: module path of each marked call, and whether it happened inside a backward (recomputation); without
            marks whether it is recomputation if it did.
        maker: module that made the autograd node of (thread, sequence number); None if it was made in no module's call.
        is_composite: whether an operator is merely composed of others.
        marked: whether gpuprof marked the phases and what runs again. Without, all outside nodes and optimizers is
            forward, and in a node runs again what makes nodes itself where others of its operators do not.
        unit_of: module that a label names as what it is for, None where it names none.
        kernel_at: the call of a kernel by compiled code that a mark stands before, by its text, the module that called
            that code and the phase of the step.
    """
    host = [e for e in events if e.kind not in (KERNEL, WAIT)]
    if marked:
        host.sort(key=lambda e: (e.thread, e.start, -e.end))
    device = [e for e in events if e.kind == KERNEL]
    walk = _Walk(host, calls, maker, is_composite, marked, unit_of, kernel_at)
    walk.through({e.linked for e in device if e.linked})
    kernels = _device_times(device, walk.launchers) if device else _operator_times(walk.op_calls)
    unknown_ns = 0
    for row in kernels:
        if row["module"] == _UNKNOWN:
            row["module"], unknown_ns = UNATTRIBUTED, unknown_ns + row["duration_ns"]
    for call in walk.op_calls:
        if call.module == _UNKNOWN:
            call.module = UNATTRIBUTED
    linked = sum(event.linked in walk.launchers for event in device) if device else len(kernels)
    first = min((row["start_ns"] for row in kernels), default=0)
    for row in kernels:
        row["start_ns"] -= first
    facts: dict[str, Any] = {"events": len(events), "kernels": len(kernels), "kernels_linked": linked}
    facts |= {"unknown_owner_ns": unknown_ns} if unknown_ns else {}
    facts |= {"transformed": True} if walk.transformed else {}
    facts |= {"compiled": True} if walk.regions else {}  # its operators are not those that an eager step calls
    facts |= {"hidden": hidden} if (hidden := _hidden(walk.regions, host, walk.op_calls)) else {}
    rows = [
        {"module": module, "phase": where, "op": op, "within": within, "calls": times, "flops_profiler": flops}
        for (module, where, op, within), (times, flops) in walk.estimates.items()
    ]
    return Attributed(kernels, rows, facts, walk.op_calls)


class _Walk:
    """Goes through the host's events of a step, thread by thread: which operators are counted, and whose they are.

    The arguments are those of `attribute`, with the host's events alone.

    Attributes:
        op_calls: counted operators.
        launchers: what launched the kernels of each correlation, and the phase.
        estimates: calls and FLOPs by module, phase, operator and the counted one around.
        regions: what torch.compile has taken over, and who calls it.
        transformed: whether an operator was called once more inside itself, by torch.func say.
    """

    def __init__(
        self,
        host: list[Event],
        calls: list[tuple[str, bool]],
        maker: Callable[[int, int], str | None],
        is_composite: Callable[[str], bool],
        marked: bool,
        unit_of: Callable[[str], str | None],
        kernel_at: Callable[[str, str, str], KernelCall] | None,
    ) -> None:
        self.op_calls: list[OpCall] = []
        self.launchers: dict[int, tuple[_Frame, str]] = {}
        self.estimates: dict[tuple[str, str, str, str], list[int]] = {}
        self.regions: list[tuple[Event, str]] = []
        self.transformed = False
        operators = {event.name for event in host if event.kind == OPERATOR}
        self._host, self._calls, self._maker, self._marked = host, calls, maker, marked
        self._unit_of, self._kernel_at = unit_of, kernel_at
        self._composed = {name for name in operators if is_composite(name)}
        self._numbers, self._made = node_numbers(host), made_by_nodes(host)
        self._taken_over = taken_over(host, operators)
        if not marked:
            self._taken_over |= around_products(host, operators)
        # the phase is the whole step's: autograd's own threads, and a user's, are in the one that was marked last
        self._marks = phases.marked(host) if marked else phases.backwards(host) or phases.served(host)
        self._unmarked = "other" if marked or not operators else "forward"
        self._nodes: list[_Node] = []
        # of the thread that is gone through
        self._phase = self._unmarked
        self._last_owner = UNATTRIBUTED  # of the last node with a number
        self._closure_end = 0  # of the optimizer that runs

    def through(self, launching: set[int]) -> None:
        """Go through all events, once.

        Args:
            launching: correlations of the kernels.
        """
        thread: int | None = None
        stack: list[_Frame] = []  # what is open on the thread
        outside = _Frame(0, UNATTRIBUTED, "")
        following = 0
        marks = [*self._marks, (sys.maxsize, "")]  # to which no event comes
        for index, event in enumerate(self._host):
            name, kind, at, start, _, correlation, _, _, _, flops, shapes, _ = event
            if at != thread:
                thread, stack, following = at, [], 0
                self._phase, self._last_owner, self._closure_end = self._unmarked, UNATTRIBUTED, 0
            while marks[following][0] <= start:
                self._phase = marks[following][1]
                following += 1
            while stack and stack[-1].end <= start:
                stack.pop()
            around = stack[-1] if stack else outside
            if kind == RUNTIME:  # only in a recording: the live binding says itself which operator launched a kernel
                if launches_graph(name):
                    around = _Frame(0, around.owner, around.phase, name=name)
                self.launchers[correlation] = (around, around.phase or self._phase)
                continue
            frame = around
            if around.call is None:
                if kind in (PHASE, MARK):
                    if kind == MARK and self._kernel_at is not None:
                        text, phase = name[len(KERNEL_MARK) :], around.phase or self._phase
                        around.kernel_call = self._kernel_at(text, around.owner, phase)
                    continue
                frame = self._opened(index, event, around)
                stack.append(frame)
            elif name in _TWICE and kind == OPERATOR and _calls_itself(around.call.name, name):
                # in recordings of torch 1.8 an operator has a twin inside, on the same
                self.transformed = self.transformed or self._marked or shapes != around.call.shapes
            if flops and index not in self._taken_over:
                self._estimate(name, flops, frame)
            if correlation in launching:
                self.launchers[correlation] = (frame, frame.phase or self._phase)
        if not self._marked:
            for node in self._nodes:
                node.ends()

    def _opened(self, index: int, event: Event, around: _Frame) -> _Frame:
        """What an event opens that is in no counted operator: what a counted one does inside is its own."""
        name, kind = event.name, event.kind
        if kind == CALL:
            return self._call(event, around)
        if around.kernel_call is not None and _is_generated(event, around.kernel_call):
            return self._generated(event, around, around.kernel_call)
        if kind == NODE:
            return self._node(index, event, around)
        if kind == OPTIMIZER and around.node is not None:  # called by a hook, for one parameter perhaps
            return _Frame(event.end, UNATTRIBUTED, "optimizer", around.node, name=name)
        if kind == OPTIMIZER and not self._marked:
            self._closure_end = max(
                self._closure_end, phases.last_backward(self._marks, event)
            )  # one may be in another's
            return _Frame(event.end, around.owner, "optimizer", name=name)
        if kind == OPERATOR and name not in self._composed and index not in self._taken_over:
            return self._operator(event, around)
        unit = self._unit_of(name) if kind == RANGE else None
        frame = _Frame(event.end, around.owner if unit is None else unit, around.phase, around.node, name=name)
        if kind == OPERATOR:  # composed of those that are counted
            frame.kernel_call = around.kernel_call
        elif kind == COMPILED:
            self.regions.append((event, frame.owner))
        return frame

    def _call(self, event: Event, around: _Frame) -> _Frame:
        """A call of a module."""
        module, again = self._calls[int(event.name[len(CALL_MARK) :])]
        again = again and (self._marked or around.node is not None)
        # a label may be in a backward
        inside = "" if self._marked or event.start < self._closure_end else around.phase
        if again and around.phase == "backward" and around.node is not None:
            around.node.calls_again()
        return _Frame(event.end, module, "recompute" if again else inside, around.node)

    def _generated(self, event: Event, around: _Frame, site: KernelCall) -> _Frame:
        """A kernel that a compiler wrote: an operator of its own."""
        where = site.phase or around.phase or self._phase
        call = OpCall(len(self.op_calls), event, site.module, where, site)
        call.name = site.op
        self.op_calls.append(call)
        around.kernel_call = None  # what follows is none of it: the host reads a result to choose a branch, say
        return _Frame(event.end, site.module, where, around.node, call)

    def _node(self, index: int, event: Event, around: _Frame) -> _Frame:
        """A node of autograd, whose work is that of the module in whose forward it was made."""
        follows = event.name.endswith(FOLLOWS)
        if not follows:
            made_by = self._maker_of(index)
            # made by no module call: part of a checkpoint's own backward, and so of what runs that
            self._last_owner = around.owner if made_by is None else made_by
        if around.node is not None:
            around.node.holds_nodes = True
        node = _Node(self._last_owner, follows)
        self._nodes.append(node)
        return _Frame(event.end, self._last_owner, "backward", node, name=event.name.removeprefix(NODE_PREFIX))

    def _maker_of(self, node: int) -> str | None:
        """The module that made a node, which may be a node of a node; None if it was made in no module's call."""
        if node not in self._numbers:
            return _UNKNOWN
        number = self._numbers[node]
        return self._maker_of(self._made[number]) if number in self._made else self._maker(*number)

    def _operator(self, event: Event, around: _Frame) -> _Frame:
        """A counted operator."""
        node = around.node
        of_closure = event.start < self._closure_end and around.phase == "optimizer" and event.number >= 0
        # a bucket of gradients is sent when the last of them is there: it is not that one's module's work
        sent = node is not None and node.follows and around.owner == node.owner and all_reduces(event.name)
        owner = GRADIENT_ALLREDUCE if sent else around.owner
        call = OpCall(len(self.op_calls), event, owner, self._phase if of_closure else around.phase or self._phase)
        if around.kernel_call is not None:
            call.called_by(around.kernel_call)
        self.op_calls.append(call)
        if node is not None and around.phase == "backward" and node.called:
            node.pending.append(call)
        if node is not None and not self._marked and call.phase == "backward":
            node.runs(call, event)
        return _Frame(event.end, around.owner, call.phase, node, call)

    def _estimate(self, name: str, flops: int, frame: _Frame) -> None:
        """What torch itself estimates of an operator."""
        within = frame.call.name if frame.call is not None else ""
        owner = UNATTRIBUTED if frame.owner == _UNKNOWN else frame.owner
        estimate = self.estimates.setdefault((owner, frame.phase or self._phase, name, within), [0, 0])
        estimate[0] += 1
        estimate[1] += flops


def _hidden(regions: list[tuple[Event, str]], host: list[Event], calls: list[OpCall]) -> list[str]:
    """Who calls compiled code of which nobody knows what its kernels do: the modules inside have times, but which?"""
    marks = sorted((event.thread, event.start) for event in host if event.kind == MARK)
    work = sorted((call.thread, call.start) for call in calls)

    def holds(places: list[tuple[int, int]], region: Event) -> bool:
        first = bisect_left(places, (region.thread, region.start))
        return first < len(places) and places[first] < (region.thread, region.end)

    return sorted({owner for region, owner in regions if holds(work, region) and not holds(marks, region)})


def _is_generated(event: Event, site: KernelCall) -> bool:
    """Whether an event is the generated kernel that the mark before it is for, or its launch.

    Its name may be another: on a CPU it has the graph's before it, and of several kernels that do the same on a GPU
    the one that was fastest is run.
    """
    return event.kind == RANGE and bool(site.kernel)


def _calls_itself(op: str, inside: str) -> bool:
    """Whether an operator inside another is that one once more, as torch.func or forward-mode differentiation call it.

    A transformation calls the operator again, on what it made of the arguments; forward-mode differentiation calls it
    for the tangents, beside the work of its own. Neither does so by addmm alone, which is what a sparse product calls.
    """
    return inside in _TWICE and (op in _PRODUCTS if inside in _PRODUCTS else op == inside)


def _device_times(device: list[Event], launchers: dict[int, tuple[_Frame, str]]) -> list[dict[str, Any]]:
    """Kernels, copies and fills in order of start, each under the operator that launched it."""
    rows = []
    nothing = (_Frame(0, UNATTRIBUTED, ""), "other")
    for event in sorted(device, key=lambda e: e.start):
        frame, phase = launchers.get(event.linked, nothing)
        call = frame.call
        if call is not None:
            rows.append(
                _kernel(
                    call.module,
                    call.phase,
                    call.name,
                    event.name,
                    call.number,
                    _shapes(call.shapes),
                    event,
                    call.kernel_call,
                )
            )
        else:  # launched by a node or a function of the user's, with no operator between
            rows.append(_kernel(frame.owner, phase, frame.name, event.name, None, "", event))
    return rows


def _operator_times(op_calls: list[OpCall]) -> list[dict[str, Any]]:
    """Without a device every operator call is its own kernel."""
    return [
        _kernel(c.module, c.phase, c.name, c.kernel, c.number, _shapes(c.shapes), c, c.kernel_call) for c in op_calls
    ]


def _kernel(
    module: str,
    phase: str,
    op: str,
    name: str,
    call: int | None,
    shapes: str,
    at: Event | OpCall,
    kernel_call: KernelCall | None = None,
) -> dict[str, Any]:
    return {
        "module": module, "phase": phase, "op": op, "kernel": name, "call": call, "shapes": shapes,
        "stream": str(at.thread), "start_ns": at.start, "duration_ns": at.end - at.start,
        "compiled": "" if kernel_call is None else kernel_call.key,
    }  # fmt: skip


def _shapes(shapes: Any, most: int = 8) -> str:
    known = [shape for shape in shapes if shape]
    text = " ".join("x".join(map(str, shape)) for shape in known[:most])
    return text if len(known) <= most else f"{text} and {len(known) - most} more"
