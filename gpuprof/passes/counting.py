"""The counting pass: every operator of one step, with its owner and phase, priced by its FLOP rule."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nested._internal.nested_tensor import NestedTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.attribution import Ownership, Scope, observed
from gpuprof.coded import Column
from gpuprof.errors import GpuprofError
from gpuprof.parallel.layout import short_names
from gpuprof.parallel.units import unit_of
from gpuprof.passes.attention_calls import AttentionCalls
from gpuprof.passes.control_flow import plain_control_flow
from gpuprof.passes.flex import flex_attention_booked
from gpuprof.passes.inputs import observed_inputs
from gpuprof.passes.modes import unseen
from gpuprof.passes.module_tree import module_tree
from gpuprof.passes.operators import is_composite, is_question, name_of, nested_kernel
from gpuprof.passes.phases import observed_phases
from gpuprof.passes.place import Place
from gpuprof.passes.specs import add_key, decide, is_plain, is_wrapper, nested_device, spec_of
from gpuprof.passes.traffic import Traffic
from gpuprof.record import PassOutcome
from gpuprof.tables import HeldTable, Tables
from gpuprof.theory import rule_for
from gpuprof.theory.attention import BLOCKS
from gpuprof.theory.masks import AttentionFacts
from gpuprof.theory.names import all_reduces, without_overload
from gpuprof.theory.nested import first_nested
from gpuprof.theory.priced import FIGURES, Described, describe, tensor_specs
from gpuprof.undo import uncollected
from gpuprof.workload import Workload
from gpuprof.workload.causality import attention_facts
from gpuprof.workload.nested import padded_product
from gpuprof.workload.weightless import nowhere, repeated

if TYPE_CHECKING:
    import pandas as pd

Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""How an operator is carried out."""

Mark = Callable[[int], AbstractContextManager[Any]]
"""Given the number of a signature of calls, a context to hold open while one of them runs."""

_matmul, _bmm, _matmul_backward = torch.ops.aten.matmul, torch.ops.aten.bmm, torch.ops.aten.matmul_backward
# Products of nested tensors: what torch runs them as, and where their factors begin.
_JAGGED_PRODUCTS = {
    _matmul.default: (_bmm.default, 0),
    _bmm.default: (_bmm.default, 0),
    _matmul_backward.default: (_matmul_backward.default, 1),
}
_NUMBERS = (bool, int, float, complex)  # of Python, as `item` returns

_LOGGED = 1 << 18
"""Length of the log at which it is added up."""

_GROUPS = ("group_name", "process_group", "group")
"""What arguments are called that name the process group of a collective."""
_label_begins = torch.ops.profiler._record_function_enter_new.default
_label_ends = torch.ops.profiler._record_function_exit._RecordFunction


@dataclass
class Counted(Tables):
    """What the counting pass gives: the raw tables, how it ended, and what the step returned.

    Attributes:
        ops, tree, traffic: the tables.
        row_of: row of ``ops`` of each signature of calls that was marked, by its number; None where they failed.
        amounts: of `gpuprof.passes.inputs.Given`.
    """

    outcome: PassOutcome
    row_of: list[int | None]
    amounts: dict[str, int | None]
    result: Any = None
    ops: pd.DataFrame = HeldTable()
    tree: pd.DataFrame = HeldTable()
    traffic: pd.DataFrame = HeldTable()


def count(workload: Workload, execute: Execute | None = None, mark: Mark | None = None) -> Counted:
    """Run one step and count every operator of it; arguments as for `counting`."""
    with counting(workload, execute, mark) as found:
        result = _with_room(workload.step)
    found[0].result = result
    return found[0]


@contextmanager
def counting(
    workload: Workload, execute: Execute | None = None, mark: Mark | None = None, optimizer: bool = False
) -> Iterator[list[Counted]]:
    """Count every operator of the block, which runs a step, or a part of one.

    Args:
        workload: what is run.
        execute: how operators are carried out; by default they just run. `gpuprof.workload.weightless.execute`
            carries them out without storage.
        mark: held open around every call.
        optimizer: the block begins inside of the optimizer's step, as a hook before that does.

    Yields:
        A list that holds what was counted, once the block has ended without an error.
    """
    model = workload.model
    traffic = Traffic(model) if workload.description.get("mode") == "generate" else None
    found: list[Counted] = []

    def scope_of(module: torch.nn.Module, path: str) -> Scope:
        return Scope(path, attention_facts(module, path))

    with (
        torch.compiler.set_stance("force_eager"),
        # autograd numbers its nodes thread by thread, and a node does not tell its thread: so all on this one
        torch.autograd.set_multithreading_enabled(False),
        observed(model, scope_of, through_compiled=True, again=lambda: attending) as ownership,
        observed_phases(
            workload,
            lambda name: place.phase_changed(name),
            part=None if traffic is None else traffic.call,
            here=True,
        ) as phase,
        unseen(
            attending := AttentionCalls(
                ownership, place := Place(ownership, phase, unit_of(model)), fuse=execute is not None
            )
        ),
        _Counter(place, execute, mark, traffic) as counter,
        flex_attention_booked(counter.book),
        plain_control_flow(),
        observed_inputs(workload) as inputs,
    ):
        if optimizer:
            phase.open.append("optimizer")
            phase.name = "optimizer"
        yield found
        given = inputs()
    _refuse_other_threads(ownership)
    with uncollected():
        rows, causality, row_of = counter.rows(workload.device.type, short_names(model))
    calls: dict[str, int] = {}
    for call in ownership.calls:
        if not call.in_backward:
            calls[call.scope.module] = calls.get(call.scope.module, 0) + 1
    missing = sorted({op for op, kind in zip(rows["op"], rows["kind"], strict=True) if not kind})
    facts = {"calls": sum(rows["calls"]), "ops_without_rule": missing}
    facts |= {"ops_bounded": sorted(counter.bounds)} if counter.bounds else {}
    facts |= {"sparse": sorted(counter.sparse)} if counter.sparse else {}
    facts |= {"values": sorted(counter.by_values)} if counter.by_values else {}
    facts |= {"inputs": given.shapes, "inputs_seen": given.seen} if given.shapes else {}
    facts |= {"nested": sorted(counter.nested)} if counter.nested else {}
    moved: list[dict[str, Any]] = []
    if traffic is not None:
        moved, known = traffic.rows(phase.parts)
        facts |= known
    outcome = PassOutcome("done", facts=facts)
    tree = module_tree(model, calls, causality)
    found.append(Counted(outcome, row_of, given.amounts, ops=rows, tree=tree, traffic=moved))


def _with_room(step: Callable[[], Any]) -> Any:
    """Run a step on a piece of Python's stack that is large enough for all of it.

    CPython keeps its frames in pieces of 16 KiB, and gives one back to the system as soon as nothing runs in it. Where
    a model calls its operators just at the end of a piece, that is two system calls for each: up to a fifth of a count.
    A frame that claims more than a piece gets a larger one, half of which is left.
    """
    return step()


_with_room.__code__ = _with_room.__code__.replace(co_stacksize=1 << 14)


def _refuse_other_threads(ownership: Ownership) -> None:
    """No dispatch mode sees what another thread of Python does, and its autograd nodes have numbers of their own."""
    here = threading.get_ident()
    elsewhere = list(dict.fromkeys(call.scope.module or "(root)" for call in ownership.calls if call.thread != here))
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        raise GpuprofError(
            f"the step calls modules in other threads of Python ({elsewhere[0]}{more}), where operators cannot be "
            "counted: call them in the step's own thread, one after the other, to count them"
        )


def warm_up(workload: Workload) -> str:
    """Run one step that is not counted, as eager as the counted one.

    What only a first step does is no step's work: caches that it fills, parameters that it makes, shapes that the
    stages of a pipeline tell each other.

    Returns:
        Shapes of the step's inputs, as `observed_inputs` has them.
    """
    with torch.compiler.set_stance("force_eager"), plain_control_flow(), observed_inputs(workload) as inputs:
        workload.step()
        return inputs().shapes


class _Operator:
    """What is known of an operator once it was called."""

    __slots__ = ("all_reduces", "composite", "func", "kind", "label", "values")

    def __init__(self, func: Any) -> None:
        rule = rule_for(name := name_of(func))
        self.func = func
        self.kind, self.values = ("", False) if rule is None else (rule.kind, rule.values)
        self.all_reduces = all_reduces(name)
        self.label = func in (_label_begins, _label_ends)
        registered = isinstance(func, torch._ops.OpOverload) and not is_question(func)
        self.composite = registered and is_composite(func.name())


class _Given(NamedTuple):
    """What calls that cost the same are given, as rules see it."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[Any, ...]


class _Made:
    """Calls that are given the same and return the same, and so cost the same.

    Attributes:
        given: what they are given.
        out: what they return, as rules see it.
        shape, dtype: of that, where it is one plain tensor.
    """

    __slots__ = ("dtype", "given", "out", "shape")

    def __init__(self, given: _Given, returned: Any) -> None:
        self.given = given
        self.out = spec_of(returned)
        plain = is_plain(returned)
        self.shape: torch.Size | None = returned.shape if plain else None
        self.dtype: torch.dtype | None = returned.dtype if plain else None


class _Call:
    """How to carry out and book calls of an operator whose arguments have the same metadata.

    Attributes:
        given: what they are given.
        run: carries one out.
        made: what the last of them came to; None before.
    """

    __slots__ = ("given", "made", "run")

    def __init__(self, given: _Given, run: Callable[..., Any]) -> None:
        self.given = given
        self.run = run
        self.made: _Made | None = None


class _Counter(TorchDispatchMode):
    """Logs operator calls; they are added up, and rules applied once for all that are alike, when the step is over.

    A step makes the same calls over and over: what is known of one is found by the metadata of its arguments.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # compilation is off while a step is counted: torch need not turn it off for each operator

    def __init__(self, place: Place, execute: Execute | None, mark: Mark | None, traffic: Traffic | None) -> None:
        super().__init__()
        self.nested: set[str] = set()  # operators that were given nested tensors, once there are rows
        self.bounds: set[str] = set()  # operators whose FLOPs are at most those counted
        self.sparse: set[str] = set()  # operators on sparse tensors, without their overload
        self.by_values: set[str] = set()  # operators whose FLOPs values decide, and not shapes alone
        self._operators: dict[int, _Operator] = {}  # by identity: an operator's own hash is Python
        self._given: dict[_Given, _Given] = {}
        self._unlike: set[int] = set()  # identities of those with more in them than plain tensors
        self._made: dict[tuple[int, Any], _Made] = {}  # by the identity of what was given, and what came of it
        self._known: dict[Any, _Call] = {}
        self._scopes: dict[int, Scope] = {}  # by identity, which stays their own as long as they are in here
        self._log: list[Any] = []  # of each call that is not in the sums yet what it came to, its scope and its phase
        self._sums: Counter[tuple[_Made, int, str]] = Counter()
        self._numbers: dict[tuple[int, int, str], int] = {}  # of signatures, by what is given, scope and phase
        self._place = place
        self._execute = execute
        self._mark = mark
        self._traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = self._operators.get(id(func)) or self._operator(func)
        if types or operator.composite:
            return self._taken_apart(operator, types, args, kwargs or {})
        return self._count(operator, args, kwargs or {})

    def _taken_apart(self, operator: _Operator, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call with tensors of other classes, or of an operator that only calls others."""
        func, nested = operator.func, NestedTensor in types
        if nested and is_question(func):
            return NotImplemented  # a jagged tensor answers by itself
        if any(map(is_wrapper, types)):
            return NotImplemented  # it takes itself apart first, into what really runs
        if nested and func in _JAGGED_PRODUCTS:
            name, factors = _JAGGED_PRODUCTS[func]
            if (padded := padded_product(*args[factors:])) is not None:
                return self.book(name, args, partial(self._carry_out, func, *args, **kwargs), {"padded": padded})
        if operator.composite and nested:
            return NotImplemented  # or takes itself apart into operators on its values, which come here
        if operator.composite:  # whole in inference mode, and on nested tensors; its parts are counted everywhere else
            device = nested_device(args)
            if device is not None and func is _matmul.default:  # of which torch makes a bmm
                return self.book(_bmm.default, args, partial(self._carry_out, func, *args, **kwargs))
            with self:
                parts = (
                    func.decompose(*args, **kwargs) if device is None
                    else func._op_dk(nested_kernel(func.name(), device), *args, **kwargs)
                )  # fmt: skip
            if parts is not NotImplemented:
                return parts
        return self._count(operator, args, kwargs)

    def book(
        self, func: Any, args: tuple[Any, ...], run: Callable[[], Any], kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count a call of an operator, and return what ``run`` computes for it."""
        return self._count(self._operators.get(id(func)) or self._operator(func), args, kwargs or {}, run)

    def _count(
        self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any] | None = None
    ) -> Any:
        # args before the call: in-place operators may change the metadata of what they are given
        key: Any = [operator]
        exact = self._execute is not None  # without weights, strides tell what it makes
        if run is not None or not add_key(key, args, operator.values, exact):
            key = None  # one that is looked at each time
        elif kwargs:
            key += kwargs
            key = key if add_key(key, kwargs.values(), operator.values, exact) else None
        call = self._known.get(key := key and tuple(key))
        if call is None:
            if run is None and self._execute is None and nowhere(args, kwargs):
                return operator.func(*args, **kwargs)  # shapes alone, as of a FakeTensorMode: nothing is done
            call = self._call(operator, args, kwargs, key)
        scope, phase = self._place.now(operator.all_reduces)
        if self._mark is None:
            out = call.run(*args, **kwargs) if run is None else run()
        else:
            number = self._numbers.setdefault((id(call.given), id(scope), phase), len(self._numbers))
            with self._mark(number):
                out = call.run(*args, **kwargs) if run is None else run()
        if operator.label:
            self._labels(operator.func, args)
        # what is given settles whether it returns one plain tensor, or perhaps none, but not always the size of that
        made = call.made
        if made is None or made.shape is None or out is None or out.shape != made.shape or out.dtype is not made.dtype:
            made = call.made = self._come_to(call.given, out)
        place = id(scope)
        self._scopes[place] = scope
        self._log += made, place, phase  # not as tuples: the garbage collector looks at those
        if len(self._log) >= _LOGGED:
            self._add_up()
        if self._traffic is not None:
            self._traffic.operator(operator.func, operator.kind, scope, args, kwargs, out)
        return out

    def _operator(self, func: Any) -> _Operator:
        """What is known of an operator from now on."""
        return self._operators.setdefault(id(func), _Operator(func))

    def _call(self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any) -> _Call:
        """What is known of a call; from now on, if it has a key."""
        values = operator.values and decide(args)
        given = _Given(operator.func, spec_of(args, values), spec_of(tuple(kwargs.items()), values) if kwargs else ())
        given = self._given.setdefault(given, given)
        call = _Call(given, partial(self._carry_out, operator.func))
        if key is None:
            self._unlike.add(id(given))
            return call
        self._known[key] = call
        if self._execute is not None:
            call.run = partial(self._learn, call, operator.func)
        elif isinstance(operator.func, torch._ops.OpOverload):
            call.run = operator.func._op  # what it calls itself
        return call

    def _carry_out(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs) if self._execute is None else self._execute(func, args, kwargs)

    def _learn(self, call: _Call, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Carry out a call without weights, and find out how to do that again."""
        call.run = partial(self._carry_out, func)
        out = self._carry_out(func, *args, **kwargs)
        call.run = repeated(func, args, kwargs, out) or call.run
        return out

    def _labels(self, func: Any, args: tuple[Any, ...]) -> None:
        """A label has begun or ended."""
        if func is _label_begins:
            self._place.label_begins(args[0])
        else:
            self._place.label_ends()

    def _come_to(self, given: _Given, out: Any) -> _Made:
        """What a call has come to."""
        made = _Made(given, out)
        told = type(out) if isinstance(out, _NUMBERS) else made.out  # which number it is says nothing of the cost
        return self._made.setdefault((id(given), told), made)

    def _add_up(self) -> None:
        """Add what was logged to the sums: all at once that costs far less than with each call."""
        each = iter(self._log)
        self._sums.update(zip(each, each, each, strict=True))
        self._log.clear()

    def rows(
        self, device: str, short_name: Callable[[str], str]
    ) -> tuple[dict[str, Sequence[Any]], dict[str, str], list[int | None]]:
        """Columns of the ``ops`` table, the causality of modules that attend (known or unknown), rows by signature.

        Args:
            device: type of the device.
            short_name: of a process group, by the name that torch gives it.
        """
        self._add_up()
        causality: dict[str, str] = {}
        alike: dict[Any, Any] = {}
        facts = {place: alike.setdefault(scope.facts, scope.facts) for place, scope in self._scopes.items()}
        described: dict[Any, tuple[Described, int]] = {}  # once for all modules that make the same call
        says: dict[tuple[Any, ...], int] = {}  # what calls say in the table, and its number
        rows: dict[tuple[str, str, int, str], int] = {}  # how often each ran
        row_of: dict[tuple[int, int, str], tuple[str, str, int, str]] = {}
        for (made, place, phase), times in self._sums.items():
            known = described.get((made, id(facts[place])))
            if known is None:
                found = self._described(made, facts[place], device)
                known = described[made, id(facts[place])] = found, says.setdefault(found[:5], len(says))
            found, said = known
            module = self._scopes[place].module
            if found.causality == "unknown":
                causality[module] = "unknown"
            elif found.causality:
                causality.setdefault(module, found.causality)
            row = module, phase, said, short_name(_group(made.given)) if found.kind == "communication" else ""
            rows[row] = rows.get(row, 0) + times
            if self._numbers:
                row_of.setdefault((id(made.given), place, phase), row)
        at = {row: number for number, row in enumerate(rows)} if self._numbers else {}
        marked = [at[row_of[signature]] if signature in row_of else None for signature in self._numbers]
        return _columns(rows, list(says)), causality, marked

    def _described(self, made: _Made, facts: AttentionFacts | None, device: str) -> Described:
        """What a call is and costs, by its rule; with what is to be said of its operator."""
        given = made.given
        found = describe(name_of(given.func), given.args, dict(given.kwargs), made.out, facts, device)
        if found.bound:
            self.bounds.add(found.op)
        if id(given) not in self._unlike:
            return found
        everything = given.args, given.kwargs
        specs = tensor_specs(everything)
        if any(spec.stored is not None for spec in specs):
            self.sparse.add(without_overload(found.op))
        if first_nested(everything) is not None:
            self.nested.add(found.op)
        read = any(spec.values is not None for spec in specs)
        if read or any(isinstance(arg, tuple) and arg[:1] == (BLOCKS,) for arg in given.args):
            self.by_values.add(found.op)
        return found


def _columns(rows: dict[tuple[str, str, int, str], int], says: list[tuple[Any, ...]]) -> dict[str, Sequence[Any]]:
    """Columns of ``ops``.

    Args:
        rows: how often each ran, by module, phase, the place of what it says, and group.
        says: what `Described` begins with.
    """
    modules, phases, places, groups = zip(*rows, strict=True) if rows else ((),) * 4
    columns: dict[str, Sequence[Any]] = {"module": [*modules], "phase": [*phases], "group": [*groups]}
    said = array("I", places)
    for at, name in enumerate(("op", "kind", "shapes", "dtype")):
        columns[name] = Column([each[at] for each in says], said)
    columns["calls"] = [*rows.values()]
    pairs: dict[tuple[int, int], int] = {}
    priced = array("I", [pairs.setdefault(pair, len(pairs)) for pair in zip(places, rows.values(), strict=True)])
    for at, name in enumerate(FIGURES):
        each = [(says[place][4][at], times) for place, times in pairs]
        columns[name] = Column([None if one is None else one * times for one, times in each], priced)
    return columns


def _group(given: _Given) -> str:
    """The process group that a collective is given, by torch's name; empty where it is given none."""
    names = [argument.name for argument in given.func._schema.arguments]
    named = dict(zip(names, given.args, strict=False)) | dict(given.kwargs)
    return next((named[name] for name in _GROUPS if isinstance(named.get(name), str)), "")
