"""Whether the passes saw one step, and one that can be; figures that need it are withheld where they did not.

Five circles of figures. What holds a count against a time (MFU, FLOP/s, the backward ratio) needs both to be of the
same step. What does so below the whole step, of modules, operators and phases, needs the trace to have booked its time
rightly too. And so do the times of modules themselves. What does so of the whole step needs one: in a recording there
may be none. And what divides bytes that must move needs these to be all of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

import pandas as pd

from gpuprof import units
from gpuprof.analysis import too_fast
from gpuprof.analysis.once import once
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import step_seconds
from gpuprof.record import Record
from gpuprof.schema import ALL, UNATTRIBUTED
from gpuprof.theory import rule_for
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import PRODUCTS

UNOWNED = 0.01
"""Share of the kernel time from which a backward without an owner is said."""

IN_GRAPHS = 0.05
"""Share of a recording's kernel time that may be in CUDA or HIP graphs, where it shows no operators."""

TOLD = 5
"""Inconsistencies that are told one by one."""

_EMPTY = re.compile(r"(^|[ x])0($|[ x])").search  # a shape with nothing in it


def withheld(run: Record) -> str:
    """Why a run has no MFU, FLOP/s and backward ratio though it was counted and timed; empty where it may have them.

    They hold what one pass counted against what another timed, so they need both to be of the same step.
    """
    return _reason(mismatches(run))


def withheld_of_kernels(run: Record) -> str:
    """The same of modules, operators and phases, whose times are the trace's: also why those may be another's."""
    return withheld(run) or _reason(misbooked(run))


def withheld_of_step(run: Record) -> str:
    """The same of the whole step: also why a recording has no MFU, HFU and FLOP/s of it, though of its operators."""
    if run.recorded and step_seconds(run) is None and not withheld(run):
        return "withheld: no step is found in the recording ('gpuprof import --step all' takes the whole of it as one)"
    return withheld(run)


def per_step(run: Record, unit: str) -> int | None:
    """How many tokens or samples a step takes; None where it is not known, or a step of the user's own varies.

    Args:
        run: the run.
        unit: ``tokens`` or ``samples``. Of a step of the user's own those of all calls of the model in the counted one.
    """
    varies = run.workload.get("step") == "given" and withheld(run)
    return None if varies else run.workload.get(f"{unit}_per_step")


def withheld_of_owners(run: Record) -> str:
    """Why the trace's time is no module's: empty where it may be."""
    return _reason(misowned(run))


def owned_kernels(run: Record) -> pd.DataFrame:
    """`split_kernels`, all of it of no module where the trace's owners are not those that were counted."""
    kernels = split_kernels(run)
    return kernels.assign(module=UNATTRIBUTED) if withheld_of_owners(run) else kernels


def _reason(found: list[str]) -> str:
    if not found:
        return ""
    return f"withheld: {found[0]}" + (f" (and {len(found) - 1} more such)" if len(found) > 1 else "")


def inconsistencies(run: Record) -> list[str]:
    """What is found, one line each; of many the first `TOLD`."""
    found = [*mismatches(run), *misbooked(run), *mismoved(run)]
    return found if len(found) <= TOLD else [*found[:TOLD], f"and {len(found) - TOLD} more such"]


@once
def mismatches(run: Record) -> list[str]:
    """In what the passes saw different steps, one line each; empty if they agree or only one of them ran.

    The first kind that is found is told: each would only say once more what the one before it has said. Of a job what
    its ranks found, here and below.
    """
    if run.is_job:
        return run.doubts["mismatches"]
    of_passes = (_of_inputs, _of_calls, _of_estimates)  # a recording is of one
    of_recording = (_of_devices, _of_graphs, _of_transformations)
    kinds = (*(of_recording if run.recorded else of_passes), too_fast.of_the_step)
    return next(filter(None, (list(find(run)) for find in kinds)), [])


@once
def misbooked(run: Record) -> list[str]:
    """In what the trace's times cannot be those of what has them, one line each; nothing where the steps differ."""
    if run.is_job:
        return run.doubts["misbooked"]
    if not (run.done("count") and run.done("trace")) or mismatches(run):
        return []
    return [
        *misowned(run),
        *_of_transformations(run),
        *too_fast.of_kernel_time(run),
        *too_fast.of_modules(run),
        *too_fast.of_operators(run),
    ]


@once
def misowned(run: Record) -> list[str]:
    """In what the trace gives time to other modules than those that were counted, one line each; likewise.

    A recording has both from the same events: what is no module's there is so in both.
    """
    if run.is_job:
        return run.doubts["misowned"]
    if run.recorded or not (run.done("count") and run.done("trace")) or mismatches(run):
        return []
    return [*_of_owners(run), *_without_owner(run)]


@once
def mismoved(run: Record) -> list[str]:
    """Where a cache that only grows holds other bytes than were read of it and written to it, one line for each part.

    Its call reads all that was there and writes the rest.
    """
    cache = run.passes["count"].facts.get("cache", {}) if run.done("count") else {}
    if not cache.get("appends") or run.traffic.empty:
        return []
    rows = run.traffic[(run.traffic["module"] == ALL) & run.traffic["what"].isin(["cache read", "cache written"])]
    moved = rows.groupby("part")["bytes"].sum()
    return [
        f"{cache['class']} holds {held:,} bytes after part {part} of the generation, of which {moved.get(part, 0):,} "
        "were read and written: not all of its traffic is counted"
        for part, held in enumerate(cache["bytes"])
        if held != moved.get(part, 0)
    ]


def unchecked(run: Record) -> str:
    """Why nothing can tell that the timed steps did the work of the counted one; empty where something can."""
    if not (run.done("count") and run.done("time")) or not _unseen(run) or _comparable(run):
        return ""
    trace = "" if run.done("trace") else "add trace to the passes, or "
    return (
        "the step could not be checked for being one step: not every call in it shows a tensor; "
        f"{trace}call the model with tensors in it"
    )


def _of_inputs(run: Record) -> Iterator[str]:
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


def _of_calls(run: Record) -> Iterator[str]:
    """Operators that multiply matrices, called another number of times when counted than when traced, or on others.

    Elementwise operators are left out: with a dispatch mode on, autograd sums gradients out of place, and takes some
    apart. So are steps with compiled regions, whose operators are not those that were counted, and those under
    torch.func or forward-mode differentiation, whose operators the trace has several times over. Other shapes of as
    many elements in all are a router's, which sends other rows to each expert when the weights have changed; where
    inputs of the step were not seen, they are said too.
    """
    if not _comparable(run):
        return
    unseen = _unseen(run)
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
            and (unseen or _elements(ours) != _elements(theirs))
        ):
            here, there = next(iter(ours - theirs)), next(iter(theirs - ours))
            yield f"{op} in the {phase}: counted on {here}, traced on {there}: the passes ran different steps"


def _of_owners(run: Record) -> Iterator[str]:
    """Modules with more or fewer products in the trace than were counted of them."""
    if not _comparable(run):
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


def _of_estimates(run: Record) -> Iterator[str]:
    """Operators of which torch's own profiler sees more multiplied than was counted of them.

    A module with more calls in the trace than were counted has another's work there, which `_of_owners` says.
    """
    if not _comparable(run):
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


def _of_devices(run: Record) -> Iterator[str]:
    """A recording with kernels of several devices, which no peak is the peak of."""
    devices = run.passes["trace"].facts.get("devices", [])
    if len(devices) > 1:
        yield f"the recording has kernels of {len(devices)} devices ({', '.join(map(str, devices))}), not of one"


def _of_graphs(run: Record) -> Iterator[str]:
    """A recording that hides most of its operators."""
    if (share := graph_share(run)) > IN_GRAPHS:
        yield f"{units.percent(share)} of the kernel time is in CUDA or HIP graphs, where a recording has no operators"


def graph_share(run: Record) -> float:
    """Share of a recording's kernel time that graphs launched."""
    whole = int(run.kernels["duration_ns"].sum())
    return run.passes["trace"].facts.get("graph_ns", 0) / whole if whole else 0.0


def _without_owner(run: Record) -> Iterator[str]:
    """Work in the backward of which the trace does not tell who made it."""
    whole = int(run.kernels["duration_ns"].sum())
    share = run.passes["trace"].facts.get("unknown_owner_ns", 0) / whole if whole else 0.0
    if share > UNOWNED:
        yield f"of {units.percent(share)} of the kernel time, in the backward, the trace does not tell the owner"


def _of_transformations(run: Record) -> Iterator[str]:
    """Operators that were counted one by one, and have their time in the trace inside another one's."""
    if run.passes["trace"].facts.get("transformed"):
        untold = "times the trace does not tell apart as they were counted"
        whose = "inputs are others than they tell" if run.recorded else untold
        yield f"under torch.func or forward-mode differentiation operators run inside others, whose {whose}"


def _comparable(run: Record) -> bool:
    """Whether the trace has the operators that were counted: not those of regions that are compiled or transformed."""
    facts = run.passes["trace"].facts if run.done("count") and run.done("trace") else {"compiled": True}
    return not (facts.get("compiled") or facts.get("transformed"))


def _unseen(run: Record) -> bool:
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
    found: _Calls = {}
    for module, phase, op, shapes, _ in (
        calls.dropna(subset=["call"]).drop_duplicates().itertuples(index=False, name=None)
    ):
        if not _EMPTY(shapes):
            found.setdefault((module, phase, plain_op(op)), Counter())[shapes] += 1
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
