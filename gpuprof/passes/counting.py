"""The counting pass: every operator of one step, with its owner and phase, priced by its FLOP rule."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nested._internal.nested_tensor import NestedTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.attribution import Ownership, Scope, observed
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
from gpuprof.passes.specs import decide, is_wrapper, nested_device, spec_of, torch_free
from gpuprof.passes.traffic import Traffic
from gpuprof.record import PassOutcome
from gpuprof.schema import table
from gpuprof.theory import rule_for
from gpuprof.theory.attention import BLOCKS
from gpuprof.theory.masks import AttentionFacts
from gpuprof.theory.names import all_reduces, without_overload
from gpuprof.theory.nested import nested_in
from gpuprof.theory.priced import FIGURES, Described, describe, tensor_specs
from gpuprof.workload import Workload
from gpuprof.workload.causality import attention_facts
from gpuprof.workload.nested import padded_product
from gpuprof.workload.weightless import nowhere

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
_GROUPS = ("group_name", "process_group", "group")
"""What arguments are called that name the process group of a collective."""
_label_begins = torch.ops.profiler._record_function_enter_new.default
_label_ends = torch.ops.profiler._record_function_exit._RecordFunction


class Counted(NamedTuple):
    """What the counting pass gives: the raw tables, how it ended, and what the step returned.

    Attributes:
        row_of: row of ``ops`` of each signature of calls, by its number.
        amounts: of `gpuprof.passes.inputs.Given`.
    """

    ops: pd.DataFrame
    tree: pd.DataFrame
    traffic: pd.DataFrame
    outcome: PassOutcome
    result: Any
    row_of: list[int]
    amounts: dict[str, int | None]


def count(workload: Workload, execute: Execute | None = None, mark: Mark | None = None) -> Counted:
    """Run one step and count every operator of it; arguments as for `counting`."""
    with counting(workload, execute, mark) as found:
        result = _with_room(workload.step)
    return found[0]._replace(result=result)


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
        _Counter(place, execute or _run, mark, traffic) as counter,
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
    rows, causality, row_of = counter.rows(workload.device.type, short_names(model))
    calls: dict[str, int] = {}
    for call in ownership.calls:
        if not call.in_backward:
            calls[call.scope.module] = calls.get(call.scope.module, 0) + 1
    missing = sorted({row["op"] for row in rows if not row["kind"]})
    facts = {"calls": sum(counter.calls), "ops_without_rule": missing}
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
    found.append(Counted(table("ops", rows), tree, table("traffic", moved), outcome, None, row_of, given.amounts))


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


class _Signature(NamedTuple):
    """Calls that cost the same and are booked alike."""

    func: Any
    scope: Scope
    phase: str
    args: tuple[Any, ...]
    kwargs: tuple[Any, ...]


class _Counter(TorchDispatchMode):
    """Tallies operator calls by signature; rules are applied once per signature, when the step is over."""

    supports_higher_order_operators = True

    def __init__(self, place: Place, execute: Execute, mark: Mark | None, traffic: Traffic | None) -> None:
        super().__init__()
        self.calls: list[int] = []  # of each signature, by its number
        self.nested: set[str] = set()  # operators that were given nested tensors, once there are rows
        self.bounds: set[str] = set()  # operators whose FLOPs are at most those counted
        self.sparse: set[str] = set()  # operators on sparse tensors, without their overload
        self.by_values: set[str] = set()  # operators whose FLOPs values decide, and not shapes alone
        self._numbers: dict[_Signature, int] = {}
        self._outputs: list[Any] = []
        self._composite: dict[Any, bool] = {}
        # the kind of its rule, whether that reads values, whether it is an all-reduce
        self._known: dict[Any, tuple[str, bool, bool]] = {}
        self._place = place
        self._execute = execute
        self._mark = mark
        self._traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if NestedTensor in types and is_question(func):
            return NotImplemented  # a jagged tensor answers by itself
        if any(map(is_wrapper, types)):
            return NotImplemented  # it takes itself apart first, into what really runs
        if NestedTensor in types and func in _JAGGED_PRODUCTS:
            name, factors = _JAGGED_PRODUCTS[func]
            if (padded := padded_product(*args[factors:])) is not None:
                return self.book(name, args, lambda: self._execute(func, args, kwargs), {"padded": padded})
        composite = self._composite.get(func)
        if composite is None:
            composite = self._composite[func] = isinstance(func, torch._ops.OpOverload) and is_composite(func.name())
        if composite and NestedTensor in types:
            return NotImplemented  # or takes itself apart into operators on its values, which come here
        if composite:  # arrives whole in inference mode, and on nested tensors; its parts are counted everywhere else
            nested = nested_device(args)
            if nested is not None and func is _matmul.default:  # of which torch makes a bmm
                return self.book(_bmm.default, args, lambda: self._execute(func, args, kwargs))
            with self:
                parts = (
                    func.decompose(*args, **kwargs) if nested is None
                    else func._op_dk(nested_kernel(func.name(), nested), *args, **kwargs)
                )  # fmt: skip
            if parts is not NotImplemented:
                return parts
        if self._execute is _run and nowhere(args, kwargs):  # shapes alone, as of a FakeTensorMode: nothing is done
            return func(*args, **kwargs)
        return self.book(func, args, lambda: self._execute(func, args, kwargs), kwargs)

    def book(
        self, func: Any, args: tuple[Any, ...], run: Callable[[], Any], kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count a call of an operator, and return what ``run`` computes for it."""
        known = self._known.get(func)
        if known is None:
            rule = rule_for(name := name_of(func))
            of_rule = ("", False) if rule is None else (rule.kind, rule.values)
            known = self._known[func] = *of_rule, all_reduces(name)
        kind, values, reduces = known
        scope, phase = self._place(reduces)
        # args before the call: in-place operators may change the metadata of what they are given
        values = values and decide(args)
        given = spec_of(args, values), spec_of(tuple(kwargs.items()), values) if kwargs else ()
        signature = _Signature(func, scope, phase, *given)
        number = self._numbers.setdefault(signature, len(self._numbers))
        if number == len(self.calls):
            self.calls.append(0)
            self._outputs.append(None)
        if self._mark is None:
            out = run()
        else:
            with self._mark(number):
                out = run()
        if func is _label_begins:
            self._place.label_begins(args[0])
        elif func is _label_ends:
            self._place.label_ends()
        self.calls[number] += 1
        if self.calls[number] == 1:
            self._outputs[number] = spec_of(out)
        if self._traffic is not None:
            self._traffic.operator(func, kind, scope, args, kwargs or {}, out)
        return out

    def rows(
        self, device: str, short_name: Callable[[str], str]
    ) -> tuple[list[dict[str, Any]], dict[str, str], list[int]]:
        """Rows of the ``ops`` table, the causality of modules that attend (known or unknown), rows by signature.

        Args:
            device: type of the device.
            short_name: of a process group, by the name that torch gives it.
        """
        merged: dict[Any, dict[str, Any]] = {}
        causality: dict[str, str] = {}
        row_of: list[int] = []
        places: dict[Any, int] = {}
        described: dict[Any, Described] = {}  # once for all modules that make the same call
        for signature, number in self._numbers.items():
            module = signature.scope.module
            call = (signature.func, signature.args, signature.kwargs, self._outputs[number], signature.scope.facts)
            found = described.get(call)
            if found is None:
                found = described[call] = self._described(*call, device)
            if found.causality == "unknown":
                causality[module] = "unknown"
            elif found.causality:
                causality.setdefault(module, found.causality)
            group = short_name(_group(signature)) if found.kind == "communication" else ""
            key = module, signature.phase, *found[:5], group
            if key not in merged:
                merged[key] = {**dict(zip(_ROW, key, strict=True)), "calls": 0}
            merged[key]["calls"] += self.calls[number]
            row_of.append(places.setdefault(key, len(places)))
        rows = list(merged.values())
        for row in rows:
            figures = zip(FIGURES, row.pop("priced"), strict=True)
            row.update({name: None if value is None else value * row["calls"] for name, value in figures})
        return rows, causality, row_of

    def _described(
        self, func: Any, given: tuple[Any, ...], named: tuple[Any, ...], made: Any, facts: AttentionFacts | None,
        device: str,
    ) -> Described:  # fmt: skip
        """What a call is and costs, by its rule; with what is to be said of its operator."""
        args, kwargs = torch_free(given), dict(torch_free(named))
        found = describe(name_of(func), args, kwargs, torch_free(made), facts, device)
        if any(spec.stored is not None for spec in tensor_specs((args, tuple(kwargs.values())))):
            self.sparse.add(without_overload(found.op))
        if next(nested_in((args, tuple(kwargs.values()))), None) is not None:
            self.nested.add(found.op)
        if found.bound:
            self.bounds.add(found.op)
        read = any(spec.values is not None for spec in tensor_specs((args, tuple(kwargs.values()))))
        if read or any(isinstance(arg, tuple) and arg[:1] == (BLOCKS,) for arg in args):
            self.by_values.add(found.op)
        return found


_ROW = ("module", "phase", "op", "kind", "shapes", "dtype", "priced", "group")
"""What calls that are one row of ``ops`` have in common."""


def _group(signature: _Signature) -> str:
    """The process group that a collective is given, by torch's name; empty where it is given none."""
    names = [argument.name for argument in signature.func._schema.arguments]
    given = dict(zip(names, signature.args, strict=False)) | dict(signature.kwargs)
    return next((given[name] for name in _GROUPS if isinstance(given.get(name), str)), "")


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)
