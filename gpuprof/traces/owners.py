"""Whose work an event is: every kernel given to its operator, module and phase."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuprof.late import np, pd
from gpuprof.schema import GRADIENT_ALLREDUCE, UNATTRIBUTED, table
from gpuprof.theory.names import all_reduces
from gpuprof.traces import phases
from gpuprof.traces.events import (
    CALL,
    CALL_MARK,
    COMPILED,
    FUNCTION,
    KERNEL_MARK,
    MARK,
    NODE,
    NODE_PREFIX,
    OPERATOR,
    OPTIMIZER,
    PHASE,
    RANGE,
    RUNTIME,
    Events,
    launches_graph,
)
from gpuprof.traces.nodes import FOLLOWS, made_by_nodes, node_numbers
from gpuprof.traces.taken_over import around_products, taken_over

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpuprof.traces.events import Integers

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
"""Products of matrices. None of them calls another, but where torch.func or forward-mode differentiation does."""

_TWICE = ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::convolution")
"""Operators that, inside another, may be that one once more. Not addmm, which a sparse product calls by itself."""

_NOT_IN_ONE = -1
"""In place of the number of a call."""

_UNKNOWN = "(unknown)"
"""Owner, while events are gone through, of a node of which nobody knows who made it; in the rows it is no module."""


class _Frame:
    """An open event of a thread that is in no counted operator, and who owns what happens in it."""

    __slots__ = ("call", "end", "kernel_call", "name", "node", "owner", "phase")

    def __init__(self, end: int, owner: str, phase: str, node: _Node | None = None, name: str = "") -> None:
        self.end = end
        self.owner = owner
        self.phase = phase  # empty where the phase of the step holds
        self.node = node
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
        self.pending: list[int] = []  # operators since then, by the numbers of their calls
        self.makes_nodes: list[int] = []  # operators that do, as a forward's
        self.without_graph = False  # some operators make none, as a backward's
        self.holds_nodes = False  # a backward of its own runs inside

    def calls_again(self) -> list[int]:
        """Another module is called in this node: what ran since the last one was recomputation too."""
        pending, self.called, self.pending = self.pending, True, []
        return pending

    def runs(self, call: int, makes_node: bool, has_tensors: bool) -> None:
        """An operator of the node's own, in a recording without marks."""
        if makes_node:
            self.makes_nodes.append(call)
        elif has_tensors:  # one that makes a tensor out of none never has a number
            self.without_graph = True

    def ran_again(self) -> list[int]:
        """Operators that make nodes of autograd, beside others that do not or a backward of theirs, ran once more.

        Where all of them do and there is no such backward, the node's own backward is to be differentiated.
        """
        return self.makes_nodes if self.without_graph or self.holds_nodes else []


class OpCalls(NamedTuple):
    """Calls of counted operators, by their numbers: of each the outermost that is not merely composed of others.

    Attributes:
        events: the host's, by thread and start.
        rows: place of each among them.
        modules: owners.
        phases: as in the ``ops`` table.
        names: of the operators.
        sites: the call of a kernel that it is, or is part of, in compiled code, by its number.
    """

    events: Events
    rows: NDArray[np.int64]
    modules: list[str]
    phases: list[str]
    names: list[str]
    sites: dict[int, KernelCall]

    @property
    def inputs(self) -> Integers:
        """Number of what else a recording says of the inputs of each."""
        return self.events.inputs[self.rows]

    def at(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Number of the call that each of the events at these places is, or is part of; -1 where it is in none."""
        if not len(self.rows):
            return np.full(len(rows), _NOT_IN_ONE)
        number = np.searchsorted(self.rows, rows, side="right") - 1
        call, events = self.rows[number], self.events
        inside = (events.thread[rows] == events.thread[call]) & (events.start[rows] < events.end[call])
        return np.where((number >= 0) & (inside | (rows == call)), number, _NOT_IN_ONE)


class Attributed(NamedTuple):
    """Whose work the events of a step are.

    Attributes:
        kernels: the ``kernels`` table.
        estimates: the ``estimates`` table.
        facts: what the trace says of itself.
        calls: of counted operators.
    """

    kernels: pd.DataFrame
    estimates: pd.DataFrame
    facts: dict[str, Any]
    calls: OpCalls


def attribute(
    host: Events,
    device: Events,
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
        host: events of one step, by thread and start, a range before what is inside it.
        device: the work of the GPU in it.
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
    walk = _Walk(host, calls, maker, is_composite, marked, unit_of, kernel_at)
    launches = np.isin(host.correlation, device.linked[device.linked != 0]) | host.sorts(RUNTIME)[host.sort]
    walk.through(launches | (host.flops != 0))
    op_calls = walk.calls()
    columns, linked = (
        _of_device(device, walk, op_calls, np.flatnonzero(launches)) if len(device) else _of_operators(op_calls)
    )
    facts: dict[str, Any] = {"events": len(host) + len(device), "kernels": len(columns["call"])}
    facts["kernels_linked"] = linked
    nobody_s = np.array([module == _UNKNOWN for module in columns["module"]], np.bool_)
    unknown_ns = int(columns["duration_ns"][nobody_s].sum())
    facts |= {"unknown_owner_ns": unknown_ns} if unknown_ns else {}
    facts |= {"transformed": True} if walk.transformed(op_calls) else {}
    facts |= {"compiled": True} if walk.regions else {}  # its operators are not those that an eager step calls
    facts |= {"hidden": hidden} if (hidden := _hidden(walk.regions, op_calls)) else {}
    columns["module"] = _known(columns["module"])
    return Attributed(
        table("kernels", columns), walk.estimates(op_calls), facts, op_calls._replace(modules=_known(op_calls.modules))
    )


def _known(modules: list[str]) -> list[str]:
    return [UNATTRIBUTED if module == _UNKNOWN else module for module in modules] if _UNKNOWN in modules else modules


class _Walk:
    """Goes through the host's events of a step, thread by thread: which operators are counted, and whose they are.

    The arguments are those of `attribute`.

    Attributes:
        opened: of events that were asked for and are in no counted operator what they open, and the phase.
        regions: what torch.compile has taken over, as the place of its event, and who calls it.
    """

    def __init__(
        self,
        host: Events,
        calls: list[tuple[str, bool]],
        maker: Callable[[int, int], str | None],
        is_composite: Callable[[str], bool],
        marked: bool,
        unit_of: Callable[[str], str | None],
        kernel_at: Callable[[str, str, str], KernelCall] | None,
    ) -> None:
        self.opened: dict[int, tuple[_Frame, str]] = {}
        self.regions: list[tuple[int, str]] = []
        self._host, self._calls, self._maker, self._marked = host, calls, maker, marked
        self._unit_of, self._kernel_at = unit_of, kernel_at
        sorts = list(zip(host.names, host.kinds, strict=True))
        self._counted = [kind == OPERATOR and not is_composite(name) for name, kind in sorts]
        self._all_reduces = [kind == OPERATOR and all_reduces(name) for name, kind in sorts]
        self._numbers, self._made = node_numbers(host), made_by_nodes(host)
        self._taken_over = taken_over(host)
        if not marked:
            self._taken_over |= around_products(host)
        # the phase is the whole step's: autograd's own threads, and a user's, are in the one that was marked last
        self._marks = phases.marked(host) if marked else phases.backwards(host) or phases.served(host)
        self._unmarked = "other" if marked or not len(host.rows(OPERATOR)) else "forward"
        self._nodes: list[_Node] = []
        # calls of counted operators by their number, as they begin; and what turns out later of some
        self._rows: list[int] = []
        self._owners: list[str] = []
        self._phases: list[str] = []
        self._sites: dict[int, KernelCall] = {}
        self._generated: set[int] = set()
        self._sent: list[int] = []
        self._again: list[int] = []
        # of the thread that is gone through
        self._last_owner = UNATTRIBUTED  # of the last node with a number
        self._closure_end = 0  # of the optimizer that runs

    def through(self, asked: NDArray[np.bool_]) -> None:
        """Go through all events, once.

        Args:
            asked: of which events in no counted operator `opened` is to know.
        """
        host, rows = self._host, self._heard(asked)
        names = [self._unmarked, *(phase for _, phase in self._marks)]
        starts = np.array([start for start, _ in self._marks], np.int64)
        outside = _Frame(sys.maxsize, UNATTRIBUTED, "")
        for _, first, after in host.threads():
            self._last_owner, self._closure_end = UNATTRIBUTED, 0
            of_thread = rows[np.searchsorted(rows, first) : np.searchsorted(rows, after)]
            place = np.searchsorted(starts, host.start[of_thread], side="right")
            columns = (column[of_thread].tolist() for column in (host.sort, host.start, host.end, asked))
            self._thread(zip(of_thread.tolist(), *columns, place.tolist(), strict=True), names, outside)
        for node in self._nodes:
            self._again += node.ran_again()

    def _heard(self, asked: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Places of the events to go through: of what is sure to run in a counted operator there is nothing to say.

        Nor, where one event is always inside another to the nanosecond, of what leaves all in it as it is around it,
        such as a composed operator. Unless somebody asks for its name: a call into the runtime does, for what it
        launches.
        """
        host, kinds = self._host, {*self._host.kinds}
        if MARK in kinds:  # what runs for it may be anything
            return np.arange(len(host))
        counted = np.array(self._counted, np.bool_)[host.sort]
        counted[list(self._taken_over)] = False
        heard = np.ones(len(host), np.bool_)
        if self._marked and RUNTIME not in kinds:
            sorts = list(zip(host.names, host.kinds, strict=True))
            silent = [
                kind in (OPERATOR, FUNCTION) or (kind == RANGE and self._unit_of(name) is None) for name, kind in sorts
            ]
            heard = counted | asked | ~np.array(silent, np.bool_)[host.sort]
        for _, first, after in host.threads():
            rows = slice(first, after)
            start, end = host.start[rows], host.end[rows]
            outermost = counted[rows] & (start >= _reach(end, counted[rows]))
            heard[rows] &= start >= _reach(end, outermost)
        return np.flatnonzero(heard)

    def _thread(
        self, events: Iterable[tuple[int, int, int, int, bool, int]], names: list[str], outside: _Frame
    ) -> None:
        """Go through the events of a thread: of each its place, sort, start, end, if asked, and place of the phase."""
        kinds, counted, taken_over = self._host.kinds, self._counted, self._taken_over
        stack: list[_Frame] = []
        around = outside  # the innermost that is open; the others are on the stack
        busy = -sys.maxsize  # until when a counted operator runs: what it does inside is its own
        for row, sort, start, end, asks, place in events:
            if start < busy:
                continue
            while around.end <= start:
                around = stack.pop()
            if counted[sort] and row not in taken_over:
                self._operator(row, sort, around, names[place])
                busy = end
                continue
            kind = kinds[sort]
            if kind == RUNTIME:  # only in a recording: the live binding says itself which operator launched a kernel
                self.opened[row] = self._launch(sort, around), around.phase or names[place]
            elif kind == MARK:
                if self._kernel_at is not None:
                    text, phase = self._host.names[sort][len(KERNEL_MARK) :], around.phase or names[place]
                    around.kernel_call = self._kernel_at(text, around.owner, phase)
            elif kind == RANGE and around.kernel_call is not None and around.kernel_call.kernel:
                self._kernel(row, around, around.kernel_call, names[place])
                busy = end
            elif kind != PHASE:
                stack.append(around)
                around = self._open(row, sort, start, end, around)
                if asks:
                    self.opened[row] = around, around.phase or names[place]

    def _open(self, row: int, sort: int, start: int, end: int, around: _Frame) -> _Frame:
        """What an event opens that is no counted operator."""
        name, kind = self._host.names[sort], self._host.kinds[sort]
        if kind in (OPERATOR, FUNCTION):
            frame = _Frame(end, around.owner, around.phase, around.node, name)
            if kind == OPERATOR:  # composed of those that are counted
                frame.kernel_call = around.kernel_call
            return frame
        if kind == CALL:
            return self._call(name, start, end, around)
        if kind == NODE:
            return self._node(row, name, end, around)
        if kind == OPTIMIZER and around.node is not None:  # called by a hook, for one parameter perhaps
            return _Frame(end, UNATTRIBUTED, "optimizer", around.node, name)
        if kind == OPTIMIZER and not self._marked:
            # one may be in another's
            self._closure_end = max(self._closure_end, phases.last_backward(self._marks, start, end))
            return _Frame(end, around.owner, "optimizer", name=name)
        unit = self._unit_of(name) if kind == RANGE else None
        frame = _Frame(end, around.owner if unit is None else unit, around.phase, around.node, name)
        if kind == COMPILED:
            self.regions.append((row, frame.owner))
        return frame

    def _call(self, mark: str, start: int, end: int, around: _Frame) -> _Frame:
        """A call of a module."""
        module, again = self._calls[int(mark[len(CALL_MARK) :])]
        again = again and (self._marked or around.node is not None)
        # a label may be in a backward
        inside = "" if self._marked or start < self._closure_end else around.phase
        if again and around.phase == "backward" and around.node is not None:
            self._again += around.node.calls_again()
        return _Frame(end, module, "recompute" if again else inside, around.node)

    def _kernel(self, row: int, around: _Frame, site: KernelCall, phase: str) -> None:
        """A kernel that a compiler wrote, or its launch, that the mark before it is for: an operator of its own.

        Its name may be another: on a CPU it has the graph's before it, and of several kernels that do the same on a GPU
        the one that was fastest is run.
        """
        self._generated.add(len(self._rows))
        self._sites[len(self._rows)] = site
        self._rows.append(row)
        self._owners.append(site.module)
        self._phases.append(site.phase or around.phase or phase)
        around.kernel_call = None  # what follows is none of it: the host reads a result to choose a branch, say

    def _node(self, row: int, name: str, end: int, around: _Frame) -> _Frame:
        """A node of autograd, whose work is that of the module in whose forward it was made."""
        follows = name.endswith(FOLLOWS)
        if not follows:
            made_by = self._maker_of(row)
            # made by no module call: part of a checkpoint's own backward, and so of what runs that
            self._last_owner = around.owner if made_by is None else made_by
        if around.node is not None:
            around.node.holds_nodes = True
        node = _Node(self._last_owner, follows)
        if not self._marked:
            self._nodes.append(node)
        return _Frame(end, self._last_owner, "backward", node, name.removeprefix(NODE_PREFIX))

    def _maker_of(self, node: int) -> str | None:
        """The module that made a node, which may be a node of a node; None if it was made in no module's call."""
        if node not in self._numbers:
            return _UNKNOWN
        number = self._numbers[node]
        return self._maker_of(self._made[number]) if number in self._made else self._maker(*number)

    def _operator(self, row: int, sort: int, around: _Frame, phase: str) -> None:
        """A counted operator."""
        number, node, site = len(self._rows), around.node, around.kernel_call
        in_closure = self._closure_end and around.phase == "optimizer" and self._host.start[row] < self._closure_end
        if not (in_closure and self._host.number[row] >= 0):
            phase = around.phase or phase
        if site is not None:  # compiled code calls it, on behalf of whom it says
            self._sites[number] = site
            phase = site.phase or phase
        self._rows.append(row)
        self._owners.append(around.owner)
        self._phases.append(phase)
        if node is None:
            return
        # a bucket of gradients is sent when the last of them is there: it is not that one's module's work
        if node.follows and self._all_reduces[sort] and around.owner == node.owner:
            self._sent.append(number)
        if node.called and around.phase == "backward":
            node.pending.append(number)
        if not self._marked and phase == "backward":
            shapes, inputs = self._host.shapes[self._host.shape[row]], self._host.inputs[row]
            node.runs(number, self._host.number[row] >= 0, any(shapes) or inputs < 0)

    def _launch(self, sort: int, around: _Frame) -> _Frame:
        """What launches in a call of the runtime: that of a graph stands for its operator."""
        name = self._host.names[sort]
        return _Frame(0, around.owner, around.phase, name=name) if launches_graph(name) else around

    def calls(self) -> OpCalls:
        """The counted operators, when all events have been gone through."""
        rows = np.array(self._rows, np.int64)
        names = [self._host.names[sort] for sort in self._host.sort[rows].tolist()]
        modules, op_phases = self._owners.copy(), self._phases.copy()
        for number in self._sent:
            modules[number] = GRADIENT_ALLREDUCE
        for number, site in self._sites.items():
            modules[number] = site.module
            names[number] = site.op if number in self._generated else names[number]
        for number in self._again:
            op_phases[number] = "recompute"
        return OpCalls(self._host, rows, modules, op_phases, names, self._sites)

    def launchers(self, calls: OpCalls, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[tuple[_Frame, str]]]:
        """What launched kernels where these events ran.

        Returns:
            Of each event the number of the call; counted on from the last call, what it is in place of one, with the
            phase; -1 where it launches nothing.
        """
        numbers = calls.at(rows)
        others: list[tuple[_Frame, str]] = []
        graphs = np.array(list(map(launches_graph, self._host.names)), np.bool_) & self._host.sorts(RUNTIME)
        for at in np.flatnonzero((numbers < 0) | graphs[self._host.sort[rows]]).tolist():
            row, number = int(rows[at]), int(numbers[at])
            opened = self.opened.get(row)
            if number >= 0:  # a graph inside an operator
                frame = _Frame(0, self._owners[number], self._phases[number])
                opened = self._launch(self._host.sort[row], frame), frame.phase
            numbers[at] = _NOT_IN_ONE if opened is None else len(calls.rows) + len(others)
            others += [] if opened is None else [opened]
        return numbers, others

    def estimates(self, calls: OpCalls) -> pd.DataFrame:
        """What torch itself estimates of operators: calls and FLOPs by module, phase, operator and the one around."""
        host = self._host
        rows = np.flatnonzero(host.flops)
        numbers = calls.at(rows)
        found: dict[tuple[str, str, str, str], list[int]] = {}
        columns = (rows.tolist(), numbers.tolist(), host.sort[rows].tolist(), host.flops[rows].tolist())
        for row, number, sort, flops in zip(*columns, strict=True):
            if row in self._taken_over:
                continue
            if number >= 0:
                owner, phase, within = self._owners[number], self._phases[number], calls.names[number]
            elif row in self.opened:
                (frame, phase), within = self.opened[row], ""
                owner = frame.owner
            else:
                continue
            owner = UNATTRIBUTED if owner == _UNKNOWN else owner
            estimate = found.setdefault((owner, phase, host.names[sort], within), [0, 0])
            estimate[0] += 1
            estimate[1] += flops
        keys = ("module", "phase", "op", "within", "calls", "flops_profiler")
        return table("estimates", [dict(zip(keys, (*key, *sums), strict=True)) for key, sums in found.items()])

    def transformed(self, calls: OpCalls) -> bool:
        """Whether an operator was called once more inside itself, by torch.func say."""
        host = self._host
        twice = np.array([name in _TWICE for name in host.names], np.bool_) & host.sorts(OPERATOR)
        rows = np.flatnonzero(twice[host.sort])
        numbers = calls.at(rows)
        inside = (numbers >= 0) & ~np.isin(rows, calls.rows)
        for row, number in zip(rows[inside].tolist(), numbers[inside].tolist(), strict=True):
            outer = int(calls.rows[number])
            # in recordings of torch 1.8 an operator has a twin inside, on the same
            alike = not self._marked and host.shapes[host.shape[row]] == host.shapes[host.shape[outer]]
            if not alike and _calls_itself(calls.names[number], host.names[host.sort[row]]):
                return True
        return False


def _reach(end: Integers, which: NDArray[np.bool_]) -> Integers:
    """Of each event until when those of some that began before it run."""
    lowest = np.iinfo(np.int64).min
    return np.r_[lowest, np.maximum.accumulate(np.where(which, end, lowest))[:-1]]


def _hidden(regions: list[tuple[int, str]], calls: OpCalls) -> list[str]:
    """Who calls compiled code of which nobody knows what its kernels do: the modules inside have times, but which?"""
    if not regions:
        return []
    host = calls.events
    marks, work = (
        list(zip(host.thread[rows].tolist(), host.start[rows].tolist(), strict=True))
        for rows in (host.rows(MARK), calls.rows)
    )

    def holds(places: list[tuple[int, int]], region: int) -> bool:
        thread, start, end = (int(column[region]) for column in (host.thread, host.start, host.end))
        first = bisect_left(places, (thread, start))
        return first < len(places) and places[first] < (thread, end)

    return sorted({owner for region, owner in regions if holds(work, region) and not holds(marks, region)})


def _calls_itself(op: str, inside: str) -> bool:
    """Whether an operator inside another is that one once more, as torch.func or forward-mode differentiation call it.

    A transformation calls the operator again, on what it made of the arguments; forward-mode differentiation calls it
    for the tangents, beside the work of its own. Neither does so by addmm alone, which is what a sparse product calls.
    """
    return inside in _TWICE and (op in _PRODUCTS if inside in _PRODUCTS else op == inside)


def _of_device(device: Events, walk: _Walk, calls: OpCalls, launching: NDArray[np.int64]) -> tuple[dict[str, Any], int]:
    """Columns of ``kernels`` for kernels, copies and fills in order of start, and how many have what launched them."""
    numbers, others = walk.launchers(calls, launching)
    rows, numbers = launching[numbers >= 0], numbers[numbers >= 0]
    device = device.take(np.argsort(device.start, kind="stable"))
    # where several have a number, the last
    correlations = calls.events.correlation[rows]
    order = np.argsort(correlations, kind="stable")
    place = np.searchsorted(correlations[order], device.linked, side="right") - 1
    linked = np.zeros(len(device), np.bool_)
    if len(rows):
        linked = (place >= 0) & (correlations[order][place] == device.linked)
    nothing = len(calls.rows) + len(others)
    number = np.full(len(device), nothing)
    number[linked] = numbers[order][place[linked]]
    # launched by a node or a function of the user's with no operator between, or by nobody knows what
    others = [*others, (_Frame(0, UNATTRIBUTED, ""), "other")]
    of_calls = _of_calls(calls)
    without = {
        "module": [frame.owner for frame, _ in others], "phase": [phase for _, phase in others],
        "op": [frame.name for frame, _ in others], "shapes": [""] * len(others), "compiled": [""] * len(others),
    }  # fmt: skip
    columns = {name: _taken([*of_calls[name], *texts], number) for name, texts in without.items()}
    in_call = pd.array(number, dtype="Int64")
    in_call[number >= len(calls.rows)] = pd.NA
    names = _taken(device.names, device.sort)
    return columns | _when(device, slice(None)) | {"kernel": names, "call": in_call}, int(linked.sum())


def _of_operators(calls: OpCalls) -> tuple[dict[str, Any], int]:
    """Columns of ``kernels`` without a device, where every operator call is its own kernel, and how many these are."""
    kernels = calls.names.copy()
    for number, site in calls.sites.items():  # of a generated one its own name
        kernels[number] = site.kernel or kernels[number]
    columns = _of_calls(calls) | _when(calls.events, calls.rows)
    return columns | {"kernel": kernels, "call": pd.array(np.arange(len(kernels)), dtype="Int64")}, len(kernels)


def _of_calls(calls: OpCalls) -> dict[str, list[str]]:
    """What ``kernels`` says of calls of counted operators."""
    host = calls.events
    used, which = np.unique(host.shape[calls.rows], return_inverse=True)
    compiled = [""] * len(calls.rows)
    for number, site in calls.sites.items():
        compiled[number] = site.key
    return {
        "module": calls.modules, "phase": calls.phases, "op": calls.names, "compiled": compiled,
        "shapes": _taken([_shapes(host.shapes[shape]) for shape in used.tolist()], which),
    }  # fmt: skip


def _when(events: Events, rows: Any) -> dict[str, Any]:
    """Where and when events ran, as columns of ``kernels``."""
    start, end = events.start[rows], events.end[rows]
    threads, which = np.unique(events.thread[rows], return_inverse=True)
    return {
        "stream": _taken(list(map(str, threads.tolist())), which),
        "start_ns": pd.array(start - (start.min() if len(start) else 0), dtype="Int64"),
        "duration_ns": pd.array(end - start, dtype="Int64"),
    }  # fmt: skip


def _taken(texts: list[str], places: NDArray[Any]) -> list[str]:
    """The texts at these places."""
    return np.array(texts, object).take(places).tolist()


def _shapes(shapes: Any, most: int = 8) -> str:
    known = [shape for shape in shapes if shape]
    text = " ".join("x".join(map(str, shape)) for shape in known[:most])
    return text if len(known) <= most else f"{text} and {len(known) - most} more"
