"""Whether two passes saw one step: in what what they saw differs, one line each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis.each import numbered
from gpuprof.analysis.once import once
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.late import np, pattern, pd
from gpuprof.record import Record
from gpuprof.theory import rule_for
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import PRODUCTS

_EMPTY = pattern(r"(^|[ x])0($|[ x])")  # a shape with nothing in it


def of_inputs(run: Record) -> Iterator[str]:
    """Inputs of a step that had other shapes when it was timed than when it was counted.

    A step that is compiled as a whole shows none while it is timed; then those of the step before the counted one.
    """
    facts = {name: run.passes[name].facts if run.done(name) else {} for name in ("count", "time")}
    counted, timed = facts["count"].get("inputs", ""), facts["time"].get("inputs", {})
    others = [shapes for shapes in timed if shapes != counted]
    before = facts["count"].get("inputs_before", counted)
    where = ""
    if others:
        steps = sum(timed[shapes] for shapes in others)
        found = f"{others[0] or 'no call of the model'}{' and others' if len(others) > 1 else ''}"
        where = f"{steps} of {sum(timed.values())} timed steps at {found}"
    elif not timed and before != counted:
        where = f"the step before at {before}"
    if counted and where:
        yield f"the inputs of the step vary: counted at {counted}, {where}; let the step take batches of one shape"


def of_calls(run: Record) -> Iterator[str]:
    """Operators that multiply matrices, called another number of times when counted than when traced, or on others.

    Elementwise operators are left out: with a dispatch mode on, autograd sums gradients out of place, and takes some
    apart. So are steps with compiled regions, whose operators are not those that were counted, and those under
    torch.func or forward-mode differentiation, whose operators the trace has several times over. Other shapes of as
    many elements in all are a router's, which sends other rows to each expert when the weights have changed; where
    inputs of the step were not seen, they are said too.
    """
    if not comparable(run):
        return
    not_all_seen = unseen(run)
    # a trace has no shape of these, or the one that torch pads them to
    nested = set(map(plain_op, run.passes["count"].facts.get("nested", ())))
    counted, traced = _calls(run)
    for phase, op in dict.fromkeys(key[1:] for key in [*counted, *traced]):
        ours, theirs = (_whole(calls, phase, op) for calls in (counted, traced))
        calls, seen = ours.total(), theirs.total()
        if _begun(run, phase, calls, seen):
            continue
        if seen != calls:
            known = units.number(calls, "call")
            yield f"{op} in the {phase}: counted {known}, traced {seen}: the passes ran different steps"
        elif (
            op not in nested
            and "" not in theirs
            and ours != theirs
            and (not_all_seen or _elements(ours) != _elements(theirs))
        ):
            here, there = next(iter(ours - theirs)), next(iter(theirs - ours))
            yield f"{op} in the {phase}: counted on {here}, traced on {there}: the passes ran different steps"


def of_owners(run: Record) -> Iterator[str]:
    """Modules with more or fewer products in the trace than were counted of them."""
    if not comparable(run):
        return
    counted, traced = _calls(run)
    for key in dict.fromkeys([*counted, *traced]):
        calls, seen = (found.get(key, Counter()).total() for found in (counted, traced))
        module, phase, op = key
        if calls != seen and not _begun(run, phase, calls, seen):
            yield (
                f"{op} of {module or '(root)'} in the {phase}: counted {units.number(calls, 'call')}, traced {seen}: "
                "the trace books time on another module"
            )


def of_estimates(run: Record) -> Iterator[str]:
    """Operators of which torch's own profiler sees more multiplied than was counted of them.

    A module with more calls in the trace than were counted has another's work there, which `of_owners` says.
    """
    if not comparable(run):
        return
    counted, traced = _calls(run)
    flops: dict[tuple[str, str, str], int | None] = {}
    columns = ["module", "phase", "op", "flops_full", "flops_hardware"]
    for module, phase, op, *known in run.ops[columns].itertuples(index=False, name=None):
        key = (module, phase, plain_op(op))
        so_far = flops.get(key, 0)
        flops[key] = None if so_far is None or any(map(pd.isna, known)) else so_far + max(map(int, known))
    estimates: dict[tuple[str, str, str], dict[str, int]] = {}
    sparse = run.passes["count"].facts.get("sparse", ())  # which torch takes for dense
    rows = run.estimates[["module", "phase", "op", "within", "flops_profiler"]]
    for module, phase, op, within, estimate in rows.itertuples(index=False, name=None):
        within = "aten::convolution" if op == "aten::conv2d" else plain_op(within)  # which is composed of that
        if within and within not in sparse and (op == "aten::conv2d" or _kind(op, {}) in PRODUCTS):
            estimates.setdefault((module, phase, within), {})[plain_op(op)] = int(estimate)
    for key, of_ops in estimates.items():
        module, phase, op = key
        estimate = of_ops.get(op, sum(of_ops.values()))  # what it is made of is in its own already
        ours = flops.get(key, 0)
        calls, seen = (found.get(key, Counter()).total() for found in (counted, traced))
        if ours is not None and estimate > ours and seen <= calls and phase != "recompute":
            yield (
                f"{op} of {module or '(root)'} in the {phase}: counted {units.si(ours, 'FLOPs')}, torch.profiler sees "
                f"products of {units.si(estimate, 'FLOPs')} in it: not all of it is counted"
            )


def comparable(run: Record) -> bool:
    """Whether the trace has the operators that were counted: not those of regions that are compiled or transformed."""
    facts = run.passes["trace"].facts if run.done("count") and run.done("trace") else {"compiled": True}
    return not (facts.get("compiled") or facts.get("transformed"))


def unseen(run: Record) -> bool:
    """Whether a step of the user's own has calls in which no tensor was seen, or none that could be seen."""
    facts = run.passes["count"].facts
    return run.workload.get("step") == "given" and not facts.get("inputs_seen", bool(facts.get("inputs")))


_Calls = dict[tuple[str, str, str], Counter[str]]
"""Calls by the shapes of their inputs, of each module, phase and operator."""


@once
def _calls(run: Record) -> tuple[_Calls, _Calls]:
    """Those that were counted, and those that were traced."""
    return _counted_calls(run), _traced_calls(run)


def _counted_calls(run: Record) -> _Calls:
    ops = run.ops[run.ops["kind"].isin(PRODUCTS) & (run.ops["flops_full"].fillna(0) > 0)]
    found: _Calls = {}
    rows = ops[["module", "phase", "op", "shapes", "calls"]]
    for module, phase, op, shapes, calls in rows.itertuples(index=False, name=None):
        found.setdefault((module, phase, plain_op(op)), Counter())[input_shapes(shapes)] += int(calls)
    return found


def _traced_calls(run: Record) -> _Calls:
    """The same of the traced step, without products of nothing, which have no FLOPs and on a GPU no kernel."""
    kinds = dict(zip(map(plain_op, run.ops["op"]), run.ops["kind"], strict=True))
    products = [op for op in run.kernels["op"].unique() if _kind(plain_op(op), kinds) in PRODUCTS]
    calls = run.kernels.loc[run.kernels["op"].isin(products), ["module", "phase", "op", "shapes", "call"]]
    calls = calls.dropna(subset=["call"])
    places, first = numbered(calls.drop(columns="call"))
    of_place = pd.DataFrame({"place": places, "call": calls["call"].to_numpy("int64")}).drop_duplicates()["place"]
    found: _Calls = {}
    rows = zip(first.itertuples(index=False, name=None), np.bincount(of_place).tolist(), strict=True)
    for (module, phase, op, shapes), number in rows:
        if not _EMPTY.search(shapes):
            found.setdefault((module, phase, plain_op(op)), Counter())[shapes] += number
    return found


def _whole(calls: _Calls, phase: str, op: str) -> Counter[str]:
    """Calls of an operator in a phase, of all modules."""
    return sum((found for key, found in calls.items() if key[1:] == (phase, op)), Counter())


def _begun(run: Record, phase: str, calls: int, seen: int) -> bool:
    """A checkpoint stops its recomputation inside an operator: a CPU's trace shows that it began."""
    return phase == "recompute" and run.device.get("type") == "cpu" and seen > calls


def _elements(calls: Counter[str]) -> list[int]:
    """Elements of all calls together, of each input."""
    sums: list[int] = []
    for shapes, times in calls.items():
        sizes = [math.prod(shape) for shape in read_shapes(shapes)[0]]
        sums += [0] * (len(sizes) - len(sums))
        for index, size in enumerate(sizes):
            sums[index] += size * times
    return sums


def _kind(op: str, known: dict[str, str]) -> str:
    if op in known:
        return known[op]
    rule = rule_for(op)
    return rule.kind if rule else ""
