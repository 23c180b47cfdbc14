"""The verdict on a run: what it reached and what took the rest, and what to change or to measure first."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis.budget import Budget, budget
from gpuprof.analysis.budget_words import in_a_sentence
from gpuprof.analysis.consistency import withheld_of_kernels, withheld_of_step
from gpuprof.analysis.counted import counted, formula_parts, whole_step
from gpuprof.analysis.denominators import STEADY, WORDS, denominator, peak_dtype
from gpuprof.analysis.executed import counters_only, executed_whole
from gpuprof.analysis.generation import bandwidth, is_generation, mbu, phases_of, untold_parts, withheld_of_bytes
from gpuprof.analysis.hints import hints
from gpuprof.analysis.hints_of_work import LEAST_GAIN
from gpuprof.analysis.known_flops import at_least, known_of
from gpuprof.analysis.ranks import straggler
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.telemetry import invalid
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import MODEL

ALIKE = 0.1
"""Two figures that differ by less than this share of the larger one are too close to say which is the larger."""

WORTH_NAMING = 0.5
"""Share of the largest part from which the next one is named too."""

ROUGH = 1.05
"""Kernel time of the traced step over the undisturbed one from which shares of a budget are rough."""

_DTYPES = 2
"""Peaks that are named, by the FLOPs that run against them."""


def verdict(run: Record, convention: str | None = None) -> list[str]:
    """The verdict: two sentences.

    The first has the MFU with its peak (of a generation MFU of the prefill and MBU of the decode), or why there is
    none, and the largest parts of the step beside the ideal. The second has the first of the `hints`: what to change
    and what that would gain at most, or what to measure next. What makes a figure doubtful is said with it.

    Args:
        run: any.
        convention: how model FLOPs are counted; the run's own by default.
    """
    if counters_only(run):
        return _of_counters(run)
    found = budget(run, convention) if _has_budget(run) else None
    of_job = f"{run.of_job}: " if run.of_job else ""
    reached = "; ".join([of_job + _reached(run, convention, found), *_doubts(run, found)])
    reached = reached[:1].upper() + reached[1:]
    if found is None:
        return [f"{reached}.", f"Next: {_next_pass(run)}."]
    return [f"{reached}; {_rest(found)}.", _change(found)]


def _has_budget(run: Record) -> bool:
    traced = run.has("busy") if run.is_job else run.done("trace") and run.kernels["duration_ns"].sum()
    return bool(traced) and run.done("count") and not run.metered


def _of_counters(run: Record) -> list[str]:
    """That on a table of Nsight Compute, whose kernels ran one by one."""
    launches = units.number(len(run.counters), "launch", "launches")
    did = executed_whole(run)["flops_executed"]
    flops = f"{units.si(did, 'FLOPs')} executed in {launches}" if did else f"{launches} without counted FLOPs"
    return [
        f"{flops} by the GPU's own counters, under which kernels run one by one: there is no step, so no MFU.",
        "Next: 'gpuprof profile MODEL --counters minimal' has the same beside time and MFU of the step, by module.",
    ]


def _reached(run: Record, convention: str | None, found: Budget | None) -> str:
    """The MFU and its peak, or why there is none."""
    step_s = found.step_s if found else step_seconds(run)
    if not run.done("count"):
        why = run.passes["count"].reason if "count" in run.passes else ""
        took = f"A step takes {units.duration(step_s)}; " if step_s else ""
        return f"{took}FLOPs were not counted{f' ({why})' if why else ''}, so there is no MFU"
    sums = whole_step(run, convention)
    if sums["flops"] is None:
        return "FLOPs are unknown, for the recording has no shapes of operators that multiply, so there is no MFU"
    if reason := withheld_of_step(run):
        return f"FLOP/s and MFU {reason}"
    count = f"{at_least(run)}{units.si(sums['flops'], 'FLOPs')} of the model"
    if not step_s:
        return f"{count} in a step, counted and not timed: no MFU"
    ops = counted(run, convention)
    model = ops[ops["phase"].isin(MODEL)]
    if is_generation(run) and (phases := list(_of_phases(run, model, convention))):
        return ", ".join(phases)
    scale = sums["flops"] / sums["counted_flops"] if sums["counted_flops"] else 1.0
    ideal_s = float(model["ideal_s"].sum(skipna=False)) * scale
    name, _ = denominator(run)
    if ideal_s > 0:  # a NaN is not
        return f"MFU {at_least(run)}{units.percent(ideal_s / step_s)} of {_peak(run, model)}"
    rate = f"{at_least(run)}{units.si(sums['flops'] / step_s, 'FLOP/s')} of the model"
    return f"{rate}, no MFU: {_no_peak(run, model, name)}"


def _of_phases(run: Record, model: pd.DataFrame, convention: str | None) -> Iterator[str]:
    """MFU of the prefill and MBU of the decode, each over the time of its phase."""
    rows, seconds = model[model["phase"] == "prefill"], step_seconds(run, "prefill")
    ideal_s = float(rows["ideal_s"].sum(skipna=False)) if formula_parts(run, convention) is None else math.nan
    if seconds and ideal_s > 0:
        yield f"prefill MFU {at_least(run)}{units.percent(ideal_s / seconds)} of {_peak(run, rows)}"
    name, rate = bandwidth(run)
    if name in (shares := mbu(run)):
        yield f"decode MBU {units.percent(shares[name])} of the {name} bandwidth ({units.si(rate, 'B/s')})"
    elif "decode" in phases_of(run) and (why := withheld_of_bytes(run) or ("" if name else "no bandwidth is known")):
        yield f"no decode MBU ({why})"


def _peak(run: Record, model: pd.DataFrame) -> str:
    """The denominator in words, with the peaks that most FLOPs run against."""
    name, peaks = denominator(run)
    used = _against(run, model, model["flops"])
    named = [f"{dtype} {units.si(peaks[dtype], 'FLOP/s')}" for dtype in used if dtype in peaks]
    some = ", ".join([*named[:_DTYPES], *(["others"] if len(named) > _DTYPES else [])])
    words = WORDS[name] if name == "given" else f"the {WORDS[name]}"
    return f"{words} ({some}{', of all ranks together' if run.is_job else ''})"


def _against(run: Record, ops: pd.DataFrame, flops: pd.Series) -> list[str]:
    """The dtypes that operators have peaks in, those with most FLOPs first."""
    dtypes = [peak_dtype(dtype, kind, run) for dtype, kind in zip(ops["dtype"], ops["kind"], strict=True)]
    sums = flops.fillna(0).groupby(dtypes).sum().sort_values(ascending=False, kind="stable")
    return list(sums.index[sums > 0])


def _no_peak(run: Record, model: pd.DataFrame, name: str) -> str:
    if not name:
        return str(run.device.get("peak_remedy") or "no peak is known of this device")
    if not (model["flops"].fillna(0) > 0).any():
        return "nothing in it multiplies matrices"
    unknown = sorted(set(model.loc[model["ideal_s"].isna(), "dtype"]))
    return f"no {name} peak is known for {', '.join(unknown)}"


def _doubts(run: Record, found: Budget | None) -> Iterator[str]:
    """What makes the figures doubtful."""
    if (known := known_of(run)) and not withheld_of_step(run):
        yield known
    if why := untold_parts(run):
        yield why
    name, _ = denominator(run)
    spreads = run.device.get("peak_spread", {}) if name == "measured" else {}
    used = _against(run, run.ops, run.ops["flops_full"]) if spreads else []
    spread = max((spreads.get(dtype, 0.0) for dtype in used), default=0.0)
    if spread > STEADY:
        yield f"that peak varied by {spread:.0%} while it was measured, so MFU is uncertain"
    if found is not None:
        if not withheld_of_step(run) and (reason := withheld_of_kernels(run)):
            yield f"what FLOPs explain of the step is {reason}"
        elif found.slowed > ROUGH:
            yield f"tracing slowed the step {found.slowed:.2g} x, so shares are rough and idle time cannot be told"
        if step_seconds(run) is None and not run.recorded:
            yield "the step is the traced one, which tracing lengthens"
    yield from invalid(run)


def _rest(found: Budget) -> str:
    """The largest parts beside the ideal, and whether it can be told which of them is the larger."""
    rows = found.rest.to_dict("records")
    if not rows or rows[0]["share"] < LEAST_GAIN:
        return f"no part beside the ideal is {units.percent(LEAST_GAIN)} of the {found.span}"
    named = [row for row in rows[:2] if row["share"] >= WORTH_NAMING * rows[0]["share"]]
    parts = " and ".join(f"{in_a_sentence(row['title'])} with {units.percent(row['share'])}" for row in named)
    many = "the largest part{} is" if len(named) == 1 else "the largest parts{} are"
    beside = many.format(" beside the ideal" if found.parts["time_s"].notna()[0] else "")
    close = ", too close to say which is larger" if _alike(*(row["share"] for row in named)) else ""
    rank = straggler(found.run).rank
    behind = f"; rank {rank} holds up the others" if rank is not None and found.run.is_job else ""
    return f"{beside} {parts} of the {found.span}{close}{behind}"


def _alike(first: float, second: float = 0.0) -> bool:
    return second > (1 - ALIKE) * first


def _change(found: Budget) -> str:
    """The first hint, and the second where it gains about as much."""
    best = hints(found)
    if not best:
        return "No change is known that would gain anything."
    first = best[0]
    if first.gain_s is None:
        return f"Next (what it would gain is not known): {first.action}."
    others = [hint for hint in best[1:] if hint.gain_s is not None]
    if others and _alike(first.gain_s, others[0].gain_s or 0.0):
        gains = " and ".join(units.percent(hint.gain_share) for hint in (first, others[0]))
        return (
            f"Change first, as two would gain about as much (at most {gains} of the {found.span}, estimates that "
            f"overlap): {first.action}; or {others[0].action}."
        )
    gain = f"at most {units.percent(first.gain_share)} of the {found.span}, {units.duration(first.gain_s)}"
    return f"Change first ({gain}, an estimate): {first.action}."


def _next_pass(run: Record) -> str:
    """What would tell what took the time of a run that was not counted or traced."""
    for name in ("count", "time", "trace"):
        outcome = run.passes.get(name)
        if outcome is not None and outcome.status != "done" and outcome.reason:
            return "; ".join(filter(None, [outcome.reason, outcome.remedy]))
    lacking = [name for name in ("count", "time", "trace") if not run.done(name)]
    if lacking == ["time", "trace"]:
        return "'gpuprof profile MODEL' times and traces this step, and says what takes its time"
    if not lacking:
        return "trace a step that launches something: in this one no kernel took any time"
    passes = units.number(len(lacking), "pass", "passes").partition(" ")[2]
    return f"profile with the {passes} {' and '.join(lacking)} too, to be told what takes the time"
