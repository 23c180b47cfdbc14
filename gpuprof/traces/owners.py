"""Whose work an event is: every kernel given to its operator, module and phase."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpuprof.schema import GRADIENT_ALLREDUCE, UNATTRIBUTED
from gpuprof.theory import rule_for
from gpuprof.theory.names import all_reduces, communicates
from gpuprof.theory.rules import PRODUCTS
from gpuprof.traces.events import (
    CALL,
    CALL_MARK,
    COMPILED,
    FUNCTION,
    KERNEL,
    KERNEL_MARK,
    MARK,
    MODE,
    NODE,
    NODE_PREFIX,
    OPERATOR,
    OPTIMIZER,
    PHASE,
    PHASE_MARK,
    RANGE,
    RUNTIME,
    SUBCLASS,
    WAIT,
    Event,
    launches_graph,
)  # fmt: skip

_FOLLOWS = "::AccumulateGrad"
"""The node that has no number, and follows the one whose gradient it takes."""

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
"""Of these none calls another, but where torch.func or forward-mode differentiation makes several calls of one."""

_TWICE = ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::convolution")
"""Those that are one more call of the operator around; addmm is what a sparse product calls."""

_UNKNOWN = "(unknown)"
"""Owner of a node of which nobody knows who made it; in the rows it is that of no module."""


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
    operators = {event.name for event in host if event.kind == OPERATOR}
    composed = {name for name in operators if is_composite(name)}
    numbers, made, taken_over = _node_numbers(host), _made_by_nodes(host), _taken_over(host, operators)
    if not marked:
        taken_over |= _around_products(host, operators)
    op_calls: list[OpCall] = []
    launching = {e.linked for e in device if e.linked}
    launchers: dict[int, tuple[_Frame, str]] = {}
    estimates: dict[tuple[str, str, str, str], list[int]] = {}
    thread: int | None = None
    stack: list[_Frame] = []
    # the phase is the whole step's: autograd's own threads, and a user's, are in the one that was marked last
    marks = _marked(host) if marked else _backwards(host) or _served(host)
    unmarked = "other" if marked or not any(event.kind == OPERATOR for event in host) else "forward"
    phase, following, last_owner = unmarked, 0, UNATTRIBUTED
    outside = _Frame(0, UNATTRIBUTED, "")
    nodes: list[_Node] = []
    closure_end = 0  # of the optimizer that runs on this thread
    transformed = False
    regions: list[tuple[Event, str]] = []  # that torch.compile has taken over, and who calls them

    def maker_of(node: int) -> str | None:
        if node not in numbers:
            return _UNKNOWN
        return maker_of(made[numbers[node]]) if numbers[node] in made else maker(*numbers[node])

    marks.append((sys.maxsize, ""))  # which no event comes to
    for index, event in enumerate(host):
        name, kind, at, start, end, correlation, _, number, _, flops, shapes, _ = event
        if at != thread:
            thread, stack, last_owner = at, [], UNATTRIBUTED
            phase, following, closure_end = unmarked, 0, 0
        while marks[following][0] <= start:
            phase = marks[following][1]
            following += 1
        while stack and stack[-1].end <= start:
            stack.pop()
        around = stack[-1] if stack else outside
        frame = around
        if kind == RUNTIME:  # only in a recording: the live binding says itself which operator launched a kernel
            if launches_graph(name):
                around = _Frame(0, around.owner, around.phase, name=name)
            launchers[correlation] = (around, around.phase or phase)
            continue
        if around.call is not None:  # what a counted operator does inside is its own
            if name in _TWICE and kind == OPERATOR and _again(around.call.name, name):
                # in recordings of torch 1.8 an operator has a twin inside, on the same
                transformed = transformed or marked or shapes != around.call.shapes
        elif kind == CALL:
            module, again = calls[int(name[len(CALL_MARK) :])]
            again = again and (marked or around.node is not None)
            inside = "" if marked or start < closure_end else around.phase  # a label may be in a backward
            name = ""  # no operator
            frame = _Frame(end, module, "recompute" if again else inside, around.node)
            if again and around.phase == "backward" and around.node is not None:
                around.node.calls_again()
        elif kind == PHASE:
            continue
        elif kind == MARK:
            if kernel_at is not None:
                around.kernel_call = kernel_at(name[len(KERNEL_MARK) :], around.owner, around.phase or phase)
            continue
        elif around.kernel_call is not None and _is_generated(event, around.kernel_call):
            site = around.kernel_call
            where = site.phase or around.phase or phase
            call = OpCall(len(op_calls), event, site.module, where, site)
            call.name = site.op
            op_calls.append(call)
            frame = _Frame(end, site.module, where, around.node, call)
            around.kernel_call = None  # what follows is none of it: the host reads a result to choose a branch, say
        elif kind == NODE:
            if not name.endswith(_FOLLOWS):
                made_by = maker_of(index)
                # made by no module call: part of a checkpoint's own backward, and so of what runs that
                last_owner = around.owner if made_by is None else made_by
            if around.node is not None:
                around.node.holds_nodes = True
            node = _Node(last_owner, name.endswith(_FOLLOWS))
            frame = _Frame(end, last_owner, "backward", node, name=name.removeprefix(NODE_PREFIX))
            nodes.append(node)
        elif kind == OPTIMIZER and around.node is not None:  # called by a hook, for one parameter perhaps
            frame = _Frame(end, UNATTRIBUTED, "optimizer", around.node, name=name)
        elif kind == OPTIMIZER and not marked:
            closure_end = max(closure_end, _last_backward(marks, event))  # one may be in another's
            frame = _Frame(end, around.owner, "optimizer", name=name)
        elif kind == OPERATOR and name not in composed and index not in taken_over:
            of_closure = start < closure_end and around.phase == "optimizer" and number >= 0
            # a bucket of gradients is sent when the last of them is there: it is not that one's module's work
            held = around.node
            sent = held is not None and held.follows and around.owner == held.owner and all_reduces(name)
            owner = GRADIENT_ALLREDUCE if sent else around.owner
            call = OpCall(len(op_calls), event, owner, phase if of_closure else around.phase or phase)
            if around.kernel_call is not None:
                call.called_by(around.kernel_call)
            op_calls.append(call)
            if around.phase == "backward" and around.node is not None and around.node.called:
                around.node.pending.append(call)
            if not marked and call.phase == "backward" and around.node is not None:
                around.node.runs(call, event)
            frame = _Frame(end, around.owner, call.phase, around.node, call)
        else:
            unit = unit_of(name) if kind == RANGE else None
            frame = _Frame(end, around.owner if unit is None else unit, around.phase, around.node, name=name)
            if kind == OPERATOR:  # composed of those that are counted
                frame.kernel_call = around.kernel_call
            elif kind == COMPILED:
                regions.append((event, frame.owner))
        if flops and index not in taken_over:
            within = frame.call.name if frame.call is not None else ""
            owner = UNATTRIBUTED if frame.owner == _UNKNOWN else frame.owner
            estimate = estimates.setdefault((owner, frame.phase or phase, name, within), [0, 0])
            estimate[0] += 1
            estimate[1] += flops
        if correlation in launching:
            launchers[correlation] = (frame, frame.phase or phase)
        if frame is not around:
            stack.append(frame)
    if not marked:
        for node in nodes:
            node.ends()
    kernels = _device_times(device, launchers) if device else _operator_times(op_calls)
    unknown_ns = 0
    for row in kernels:
        if row["module"] == _UNKNOWN:
            row["module"], unknown_ns = UNATTRIBUTED, unknown_ns + row["duration_ns"]
    for call in op_calls:
        if call.module == _UNKNOWN:
            call.module = UNATTRIBUTED
    linked = sum(event.linked in launchers for event in device) if device else len(kernels)
    first = min((row["start_ns"] for row in kernels), default=0)
    for row in kernels:
        row["start_ns"] -= first
    facts: dict[str, Any] = {"events": len(events), "kernels": len(kernels), "kernels_linked": linked}
    facts |= {"unknown_owner_ns": unknown_ns} if unknown_ns else {}
    facts |= {"transformed": True} if transformed else {}
    facts |= {"compiled": True} if regions else {}  # its operators are not those that an eager step calls
    facts |= {"hidden": hidden} if (hidden := _hidden(regions, host, op_calls)) else {}
    rows = [
        {"module": module, "phase": where, "op": op, "within": within, "calls": times, "flops_profiler": flops}
        for (module, where, op, within), (times, flops) in estimates.items()
    ]
    return Attributed(kernels, rows, facts, op_calls)


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


def _marked(host: list[Event]) -> list[tuple[int, str]]:
    """Where phases begin, as gpuprof marked them."""
    return sorted((event.start, event.name[len(PHASE_MARK) :]) for event in host if event.kind == PHASE)


def _backwards(host: list[Event]) -> list[tuple[int, str]]:
    """Where nodes begin to run, on any thread, and where none runs any more."""
    marks: list[tuple[int, str]] = []
    reach = 0
    for start, end in sorted((event.start, event.end) for event in host if event.kind == NODE):
        if marks and start <= reach:
            marks.pop()
        else:
            marks.append((start, "backward"))
        reach = max(reach, end)
        marks.append((reach, "forward"))
    return marks


SERVED = re.compile(r"execute_(?:\d+_)?context_(\d+)\(.*\)_generation_(\d+)\(.*\)").fullmatch
"""How vLLM's worker names a batch: by how many requests are in their context (the prompt), and how many generate."""


def _served(host: list[Event]) -> list[tuple[int, str]]:
    """Where vLLM runs a batch of prefills alone, or of decodes alone, and where it ends; one of both is neither."""
    marks: list[tuple[int, str]] = []
    for event in host:
        found = SERVED(event.name) if event.kind == RANGE else None
        context, generation = map(int, found.groups()) if found else (0, 0)
        if bool(context) != bool(generation):
            marks += [(event.start, "prefill" if context else "decode"), (event.end, "forward")]
    return sorted(marks)


def _last_backward(marks: list[tuple[int, str]], optimizer: Event) -> int:
    """When the last node ended that ran in the step of an optimizer, 0 if none did.

    Then it was given a closure that computes the loss and its gradients, as Lightning does, and until then what makes
    nodes of autograd is a forward: the optimizer's own work makes none.
    """
    place = bisect_right(marks, (optimizer.end, "forward"))
    return marks[place - 1][0] if place and marks[place - 1][0] > optimizer.start else 0


def _again(op: str, inside: str) -> bool:
    """Whether an operator inside another is that one once more, as torch.func or forward-mode differentiation call it.

    A transformation calls the operator again, on what it made of the arguments; forward-mode differentiation calls it
    for the tangents, beside the work of its own. Neither does so by addmm alone, which is what a sparse product calls.
    """
    return inside in _TWICE and (op in _PRODUCTS if inside in _PRODUCTS else op == inside)


def _taken_over(host: list[Event], operators: set[str]) -> set[int]:
    """Operators, by their place among the events, in whose place a dispatch mode or a tensor does something.

    It calls them again, inside, or not at all: selective checkpointing hands out what it has saved; the operator
    began, and nothing of it ran. A class of tensors calls it on those that it holds, a DTensor on the shard of this
    rank; a nested tensor, of which a trace knows no shape, is what the operator works on itself. No operator of
    ``aten`` communicates: where one does, it was given a tensor of a class that waits for its elements or sends them
    first, and then calls the operator.

    Args:
        host: by thread and start, a range before what is inside it.
        operators: names of all that ran.
    """
    found: set[int] = set()
    messages = {name for name in operators if communicates(name)}
    if not messages and not any(event.kind in (MODE, SUBCLASS) for event in host):
        return found
    for _, event, around in _nested(host):
        if event.kind in (MODE, SUBCLASS) and around and around[-1][1].kind == OPERATOR:
            place, outer = around[-1]
            if event.kind == MODE or any(outer.shapes[:1]):
                found.add(place)
        elif event.kind == OPERATOR and event.name in messages:
            found.update(place for place, outer in around if outer.kind == OPERATOR and outer.name[:6] == "aten::")
    return found


def _around_products(host: list[Event], operators: set[str]) -> set[int]:
    """Operators, likewise, that nobody has a rule for and that call others which multiply: composed of these, it seems.

    Of a library's own, such as a wrapper of a linear layer. A counting pass sees them whole; a recording has both.
    """
    rules = {name: rule_for(name) for name in operators}
    multiply = {name for name, rule in rules.items() if rule and rule.kind in PRODUCTS}
    products = [(event.thread, event.start) for event in host if event.name in multiply]
    found: set[int] = set()
    for index, event in enumerate(host):
        if rules.get(event.name, "") is None:
            first = bisect_left(products, (event.thread, event.start))
            if first < len(products) and products[first] < (event.thread, event.end):
                found.add(index)
    return found


def _nested(host: list[Event]) -> Iterator[tuple[int, Event, list[tuple[int, Event]]]]:
    """Each event with its place, and those around it, the outermost first."""
    around: list[tuple[int, Event]] = []
    for index, event in enumerate(host):
        while around and (around[-1][1].thread != event.thread or around[-1][1].end <= event.start):
            around.pop()
        yield index, event, around
        around.append((index, event))


def _node_numbers(host: list[Event]) -> dict[int, tuple[int, int]]:
    """Thread and sequence number of the forward, by the place of an autograd node among the events.

    A hook that runs an operator, or opens a range, before the node's function does takes the number away from the
    node's event (torch 2.13); that function's own event inside still has it. AccumulateGrad has none at all.

    Args:
        host: by thread and start, a range before what is inside it.
    """
    found: dict[int, tuple[int, int]] = {}
    waiting: list[tuple[int, Event]] = []  # open nodes without a number
    for index, event in [(index, event) for index, event in enumerate(host) if event.kind in (NODE, FUNCTION)]:
        if event.kind == NODE:
            if event.number >= 0:
                found[index] = (event.forward_thread, event.number)
            else:
                waiting.append((index, event))
        elif event.kind == FUNCTION and waiting:
            while waiting and (waiting[-1][1].thread != event.thread or waiting[-1][1].end <= event.start):
                waiting.pop()
            if waiting and waiting[-1][1].name == NODE_PREFIX + event.name:
                place, _ = waiting.pop()
                if event.number >= 0:
                    found[place] = (event.forward_thread, event.number)
    return found


def _made_by_nodes(host: list[Event]) -> dict[tuple[int, int], int]:
    """Which node made another one, of those whose backward builds a graph of itself (``create_graph=True``).

    An operator names the number that the next node of its thread gets: the last to name one has made that node.

    Args:
        host: by thread and start, a range before what is inside it.

    Returns:
        The place of a node among the events, by thread and sequence number of those that were made in it, but in no
        call of a module inside; for those of AccumulateGrad, the node that it follows.
    """
    found: dict[tuple[int, int], int | None] = {}
    around: list[tuple[Event, int | None]] = []
    thread, last = None, None
    # without a graph of its own a backward makes none, and no operator of its thread has a number
    makes = {event.thread for event in host if event.number >= 0 and event.kind in (OPERATOR, RANGE)}
    threads = makes & {event.thread for event in host if event.kind == NODE}
    for index, event in [(index, event) for index, event in enumerate(host) if event.thread in threads]:
        if event.thread != thread:
            thread, last, around = event.thread, None, []
        while around and around[-1][0].end <= event.start:
            around.pop()
        if event.kind == NODE:
            last = last if event.name.endswith(_FOLLOWS) else index
            around.append((event, last))
        elif event.kind == CALL:
            around.append((event, None))
        elif event.kind in (OPERATOR, RANGE) and event.number >= 0:
            found[event.thread, event.number] = around[-1][1] if around else None
    return {number: node for number, node in found.items() if node is not None}


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
