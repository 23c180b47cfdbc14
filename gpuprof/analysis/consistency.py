"""Whether the passes saw the same step; figures that need it to be one are withheld where they did not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from gpuprof.analysis.operators import PRODUCTS, plain_op
from gpuprof.record import Run
from gpuprof.theory import rule_for

_EMPTY = re.compile(r"(^|[ x])0($|[ x])").search  # a shape with nothing in it


def withheld(run: Run) -> str:
    """Why a run has no MFU, FLOP/s and backward ratio though it was counted and timed; empty where it may have them.

    They hold what one pass counted against what another timed, so they need both to be of the same step.
    """
    found = mismatches(run)
    if not found:
        return ""
    return f"withheld: {found[0]}" + (f" (and {len(found) - 1} more such)" if len(found) > 1 else "")


def mismatches(run: Run) -> list[str]:
    """In what the passes saw different steps, one line each; empty if they agree or only one of them ran."""
    return [*_of_inputs(run), *_of_calls(run)]


def unchecked(run: Run) -> str:
    """Why nothing can tell that the timed steps did the work of the counted one; empty where something can."""
    if not (run.done("count") and run.done("time")) or not _unseen(run) or _comparable(run):
        return ""
    trace = "" if run.done("trace") else "add trace to the passes, or "
    return (
        "the step could not be checked for being one step: not every call in it shows a tensor; "
        f"{trace}call the model with tensors in it"
    )


def _of_inputs(run: Run) -> Iterator[str]:
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


def _of_calls(run: Run) -> Iterator[str]:
    """Operators that multiply matrices, called another number of times when counted than when traced.

    Elementwise operators are left out: with a dispatch mode on, autograd sums gradients out of place, and takes some
    apart. So are steps with compiled regions, whose operators are not those that were counted. Shapes are held against
    each other only in a step not all of whose inputs were seen: a router sends another number of rows somewhere else
    each time.
    """
    if not _comparable(run):
        return
    unseen = _unseen(run)
    counted, traced = _counted_calls(run), _traced_calls(run)
    for phase, op in dict.fromkeys([*counted, *traced]):
        ours, theirs = counted.get((phase, op), Counter()), traced.get((phase, op), Counter())
        calls, seen = ours.total(), theirs.total()
        # a checkpoint stops its recomputation inside an operator: a CPU's trace shows that it began
        begun = phase == "recompute" and run.device.get("type") == "cpu" and seen > calls
        if seen != calls and not begun:
            yield f"{op} in the {phase}: counted {calls} calls, traced {seen}: the passes ran different steps"
        elif unseen and not begun and (other := ours - theirs):
            here, there = next(iter(other)), next(iter(theirs - ours))
            yield f"{op} in the {phase}: counted on {here}, traced on {there}: the passes ran different steps"


def _comparable(run: Run) -> bool:
    return run.done("count") and run.done("trace") and not run.passes["trace"].facts.get("compiled")


def _unseen(run: Run) -> bool:
    """Whether a step of the user's own has calls in which no tensor was seen, or none that could be seen."""
    facts = run.passes["count"].facts
    return run.workload.get("step") == "given" and not facts.get("inputs_seen", bool(facts.get("inputs")))


def _counted_calls(run: Run) -> dict[tuple[str, str], Counter[str]]:
    """Calls by the shapes of their inputs, of each phase and operator."""
    ops = run.ops[run.ops["kind"].isin(PRODUCTS) & (run.ops["flops_full"].fillna(0) > 0)]
    found: dict[tuple[str, str], Counter[str]] = {}
    for phase, op, shapes, calls in ops[["phase", "op", "shapes", "calls"]].itertuples(index=False, name=None):
        inputs = " ".join(shape for shape in shapes.partition(" -> ")[0].split(" ") if shape != "scalar")
        found.setdefault((phase, plain_op(op)), Counter())[inputs] += int(calls)
    return found


def _traced_calls(run: Run) -> dict[tuple[str, str], Counter[str]]:
    """The same of the traced step, without products of nothing, which have no FLOPs and on a GPU no kernel."""
    kinds = dict(zip(map(plain_op, run.ops["op"]), run.ops["kind"], strict=True))
    products = [op for op in run.kernels["op"].unique() if _kind(plain_op(op), kinds) in PRODUCTS]
    calls = run.kernels.loc[run.kernels["op"].isin(products), ["phase", "op", "shapes", "module", "call"]]
    found: dict[tuple[str, str], Counter[str]] = {}
    for phase, op, shapes, *_ in calls.dropna(subset=["call"]).drop_duplicates().itertuples(index=False, name=None):
        if not _EMPTY(shapes):
            found.setdefault((phase, plain_op(op)), Counter())[shapes] += 1
    return found


def _kind(op: str, known: dict[str, str]) -> str:
    if op in known:
        return known[op]
    rule = rule_for(op)
    return rule.kind if rule else ""
