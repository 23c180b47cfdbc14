"""A report of another counter held against a run: right, explained or unexplained, line by line."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpuprof import units
from gpuprof.analysis import readings
from gpuprof.analysis.claimable import Figures, Option, signed
from gpuprof.analysis.generation import PARTS
from gpuprof.analysis.matching import match
from gpuprof.analysis.mismatch import mismatch
from gpuprof.analysis.ranks import refuse_job
from gpuprof.analysis.readings import TOTAL
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.reports import read_report

LINE_COLUMNS = [
    "line", "module", "class", "matched", "quantity", "text", "claimed", "causal", "full", "profiler",
    "executed", "error_percent", "verdict", "cause", *PARTS,
]  # fmt: skip
"""Columns of `Validation.lines`."""

_COUNTS = ("causal", "full", "profiler", "executed", *PARTS)
"""Those of figures that were counted: exact integers but for ratios, and None where there is none."""

_DECIMALS = {"calflops": 2, "deepspeed": 2, "ptflops": 2, "mmcv": 3}
"""Decimals of a module's figures in tools that cut zeros off."""

_SHARE_DECIMALS = {"calflops": 4, "deepspeed": 2}
"""Decimals of its percentages, where they are cut too."""


@dataclass(frozen=True)
class Validation:
    """What became of every figure of a report.

    Attributes:
        tool: what made the report.
        lines: one row per claimed figure, columns `LINE_COLUMNS`: the claimed and the counted figure, what
            torch.profiler estimates and what the GPU's counters say was executed, where they were asked, the error of
            the claim against the count in the run's convention in percent, the verdict (right, explained, unexplained,
            unmatched, not checked) and its cause; of a generation also what of the count its encoding, its prefill and
            its steps of decoding have.
        missing: modules of the model that do work and that no line of the report stands for.
        sentences: the verdict in words.
        phases: of a generation the FLOPs of each of its phases, ``causal`` and ``full``; empty of anything else.
        mismatch: what the report seems to be of instead of the run, in a sentence; empty where nothing says that.
    """

    tool: str
    lines: pd.DataFrame
    missing: list[str]
    sentences: str
    phases: dict[str, dict[str, int]]
    mismatch: str = ""


def validate(report: pd.DataFrame | str | os.PathLike[str], run: Record) -> Validation:
    """Hold a report against a run of the same workload.

    A cause is given only where the figure that follows from it is the claimed one within its printed precision.

    Args:
        report: what `gpuprof.read_report` returned, or the path of a report.
        run: a run with the counting pass.

    Raises:
        GpuprofError: the report cannot be read, or the run was not counted, or is a recording.
    """
    claims = report if isinstance(report, pd.DataFrame) else read_report(report)
    if not run.done("count"):
        raise GpuprofError("this run was not counted: make one with 'gpuprof count', or with count among --passes")
    refuse_job(run, "a report is of the model of one process, and a job counts all its ranks")
    if run.recorded:
        raise GpuprofError(
            "a recorded trace has no parameters and no paths of modules to hold a report against: "
            "make a run of the workload with 'gpuprof count'"
        )
    tool = str(claims.attrs["tool"])
    places = match(claims, run)
    figures = Figures(run, tool, claims, places)
    rows = [_judged(claim, places, figures) for claim in claims.to_dict(orient="records")]
    # figures as they are: pandas would make floats of integers beside ratios and beside what is missing
    columns = {name: [row[name] for row in rows] for name in LINE_COLUMNS}
    columns |= {name: pd.Series(columns[name], dtype="object") for name in _COUNTS}
    lines = pd.DataFrame(columns)
    sentences = _sentences(tool, lines, figures)
    if ranks := claims.attrs.get("ranks"):
        sentences += f" {ranks}."
    return Validation(
        tool, lines, figures.missing(places), sentences, figures.generated, mismatch(lines, places, figures)
    )


# verdicts

_COUNTED = {"macs": 0.5, "flops": 1.0, "macs_forward": 0.5, "flops_forward": 1.0, "flops_forward_of_model": 1.0}
_SHARES = {
    "params_share": "params", "params_own_share": "params_own", "macs_share": "macs", "flops_share": "flops",
}  # fmt: skip
_BACKWARD = {"macs_backward": 0.5}
_WITH_BACKWARD = {"macs_forward_backward": 0.5, "flops_forward_backward": 1.0}
_PARAMS = ("params", "params_own", "params_trainable", "params_frozen", "params_of_model")


def _judged(claim: dict[str, Any], places: dict[str, list[str]], figures: Figures) -> dict[str, Any]:
    """One claimed figure with its verdict; of a generation it may be that of the prefill alone."""
    row = _held(claim, places, figures)
    if row["verdict"] == "unexplained" and figures.prefill is not None:
        alone = _held(claim, places, figures.prefill)
        if alone["verdict"] in ("right", "explained"):
            cause = ", ".join(filter(None, (readings.PREFILL, alone["cause"])))
            return row | {"verdict": "explained", "cause": cause}
    return row


def _held(claim: dict[str, Any], places: dict[str, list[str]], figures: Figures) -> dict[str, Any]:
    """One claimed figure held against these of the run."""
    module, quantity = claim["module"], claim["quantity"]
    paths = [TOTAL] if module == TOTAL else places.get(module, [])
    row = {
        "line": claim["line"], "module": module, "class": claim["class"], "matched": _named(paths),
        "quantity": quantity, "text": claim["text"], "claimed": claim["value"], "causal": None, "full": None,
        "profiler": None, "executed": None, "error_percent": None, "verdict": "unmatched", "cause": "",
        **dict.fromkeys(PARTS),
    }  # fmt: skip
    if not paths:
        return row
    claimed, slack = claim["value"], _slack(claim, figures.tool)
    if quantity in _PARAMS:
        options = figures.params_options(paths, quantity)
        return row | {"causal": options[0][1], "full": options[0][1]} | _verdict(claimed, slack, options)
    if quantity in _COUNTED:
        return row | _judge_count(claimed, slack, paths, _COUNTED[quantity], figures, figures.phases)
    if quantity in _BACKWARD:
        if not figures.count([TOTAL], "full", ("backward",)):
            return row | {"verdict": "not checked", "cause": "no backward ran in this workload"}
        return row | _judge_count(claimed, slack, paths, _BACKWARD[quantity], figures, ("backward",))
    if quantity in _SHARES:
        return row | _verdict(claimed, slack, _share_options(paths, _SHARES[quantity], figures))
    if quantity in _WITH_BACKWARD:
        return row | _judge_backward(claimed, slack, _WITH_BACKWARD[quantity], figures)
    if quantity == "backward_factor":
        return row | _judge_factor(claimed, figures)
    return row | {"verdict": "not checked", "cause": "no count: it depends on what was measured, and how"}


def _named(paths: list[str]) -> str:
    return " + ".join("(root)" if path in ("", TOTAL) else path for path in paths)


def _slack(claim: dict[str, Any], tool: str) -> float:
    """Half a unit of the last digit that the tool rounds to, also where it cut zeros off."""
    digits = re.search(r"\d+\.?(\d*)", claim["text"])
    chosen = claim["module"] == TOTAL and tool != "deepspeed"  # decimals of a total that the caller chooses
    if tool not in _DECIMALS or chosen or not digits:
        return float(claim["precision"])
    kept = _SHARE_DECIMALS.get(tool, 0) if claim["quantity"].endswith("share") else _DECIMALS[tool]
    return float(claim["precision"]) * 10.0 ** min(0, len(digits.group(1)) - kept)


def _verdict(claimed: float, slack: float, options: Iterable[Option]) -> dict[str, Any]:
    """Right if the claim is the first of the options, which is the count; explained by another that it is."""
    error: float | None = None
    for place, (cause, value) in enumerate(options):
        if not place:
            error = _error(claimed, value)
        if abs(claimed - value) <= slack:
            return {"error_percent": error, "verdict": "explained" if cause else "right", "cause": cause}
    return {"error_percent": error, "verdict": "unexplained"}


def _judge_count(
    claimed: float, slack: float, paths: list[str], factor: float, figures: Figures, phases: tuple[str, ...]
) -> dict[str, Any]:
    """MACs or FLOPs of the phases."""
    profiler = figures.run.done("trace") and "forward" in phases
    causal, full = (figures.count(paths, kind, phases) * Fraction(factor) for kind in ("causal", "full"))
    estimated = figures.of(paths, figures.ours, "profiler") if profiler else None
    row: dict[str, Any] = {
        "causal": int(causal), "full": int(full),
        "profiler": None if estimated is None else int(estimated * Fraction(factor)),
        "executed": figures.executed(paths, factor, phases),
    }  # fmt: skip
    if "forward" in phases:
        kind = figures.kind
        row |= {phase: int(figures.count(paths, kind, (phase,)) * Fraction(factor)) for phase in figures.generated}
    first: Option = ("", float(causal if figures.in_causal else full))
    return row | _verdict(claimed, slack, itertools.chain([first], _causes(paths, factor, figures, phases)))


def _causes(
    paths: list[str], factor: float, figures: Figures, phases: tuple[str, ...] = ("forward",)
) -> Iterator[Option]:
    """What a claim could be, the likeliest first: the tool's own rules, then what any tool may do."""
    quantity, unit = ("macs", "MACs") if factor == 0.5 else ("flops", "FLOPs")
    causal, full, fused = (figures.count(paths, kind, phases) for kind in ("causal", "full", "attention"))
    forward = "forward" in phases
    for sums in figures.by_rule if forward else ():
        if words := figures.words(paths, sums, quantity, full != causal):
            yield words, figures.of(paths, sums, quantity)
    without = f"{readings.ATTENTION} ({signed(-fused * factor, unit)})"
    options: list[Option] = [(readings.SQUARE, full), ("attention over unmasked pairs only", causal)]
    if fused:
        options.append((without, full - fused))
    for cause, value in options:
        yield cause, value * factor
    for cause, sums in (("output layer at every position", figures.heads), (readings.EMBEDDING, figures.tables)):
        if change := figures.of(paths, sums, "flops") if forward else 0:
            for attention, value in options:
                words = f"{cause} ({signed(change * factor, unit)})"
                yield words + (f", {attention}" if fused else ""), (value + change) * factor
    for cause, times in (("MACs printed as FLOPs", 0.5), ("FLOPs printed as MACs", 2.0)):
        if (times == 0.5) == (quantity == "flops"):
            for attention, value in options:
                yield cause + (f", {attention}" if fused else ""), value * factor * times
    if figures.meant_twice.issuperset(paths):
        yield "a copy that never runs: the model has one of it for all layers", 0.0


def _share_options(paths: list[str], of: str, figures: Figures) -> Iterator[Option]:
    """Shares of the whole: of the count, then of the tool's own figures."""
    if of.startswith("params"):
        for cause, part in figures.params_options(paths, of):
            for of_whole, whole in figures.params_options([TOTAL], "params"):
                if whole:
                    words = (cause, of_whole and f"share of a total with {of_whole}")
                    yield ", ".join(filter(None, words)), part / whole
        return
    phases = figures.phases
    for cause, kind in (("", figures.kind), ("share of the full square", "full")):
        whole = figures.count([TOTAL], kind, phases)
        yield cause, figures.count(paths, kind, phases) / whole if whole else 0.0
    for sums in figures.by_rule:
        if whole := figures.of([TOTAL], sums, of):
            yield "share of the tool's own total", figures.of(paths, sums, of) / whole
    fused = [figures.count(some, "attention", phases) for some in (paths, [TOTAL])]
    if fused[1]:
        part, whole = (figures.count(some, "full", phases) - n for some, n in zip((paths, [TOTAL]), fused, strict=True))
        yield "share of a total without fused attention", part / whole if whole else 0.0


def _judge_backward(claimed: float, slack: float, factor: float, figures: Figures) -> dict[str, Any]:
    """Forward and backward together, where tools take the backward for a multiple of the forward."""
    both = ("forward", "backward")
    causal, full = (figures.count([TOTAL], kind, both) * Fraction(factor) for kind in ("causal", "full"))
    ran = "another ran" if figures.count([TOTAL], "full", ("backward",)) else "none ran"
    times = figures.backward_factor
    words = f"backward assumed {times:g}x the forward, where {ran}; forward: "
    assumed = ((words + cause, (1 + times) * value) for cause, value in _causes([TOTAL], factor, figures))
    first: Option = ("", float(causal if figures.in_causal else full))
    return {"causal": int(causal), "full": int(full)} | _verdict(claimed, slack, itertools.chain([first], assumed))


def _judge_factor(claimed: float, figures: Figures) -> dict[str, Any]:
    forward, backward = (figures.count([TOTAL], "causal", (phase,)) for phase in ("forward", "backward"))
    if not backward or not forward:
        return {"verdict": "explained", "cause": "an assumption: no backward ran in this workload"}
    ratio = backward / forward
    right = abs(claimed - ratio) <= 0.005
    return {
        "causal": ratio, "error_percent": _error(claimed, ratio), "verdict": "right" if right else "explained",
        "cause": "" if right else f"an assumption: {ratio:.3f} was counted",
    }  # fmt: skip


def _error(claimed: float, reference: float) -> float | None:
    return None if not reference else 100 * (claimed - reference) / reference


def _sentences(tool: str, lines: pd.DataFrame, figures: Figures) -> str:
    """The verdict in two sentences: what is wrong with the total, and how the lines came out."""
    verdicts = lines["verdict"].value_counts()
    counts = ", ".join(f"{verdicts.get(name, 0)} {name}" for name in ("right", "explained", "unexplained", "unmatched"))
    second = f"Of {len(lines)} figures {counts}, {verdicts.get('not checked', 0)} not checked."
    total = lines[lines["quantity"].isin(["flops_forward", "macs_forward"]) & (lines["module"] == TOTAL)]
    if total.empty:
        total = lines[lines["quantity"].isin(["flops", "macs"]) & (lines["matched"] == "(root)")]
    if total.empty:
        return second
    row = total.iloc[-1]
    unit = "MACs" if row["quantity"].startswith("macs") else "FLOPs"
    claimed, causal, full = (units.si(float(row[name]), unit) for name in ("claimed", "causal", "full"))
    what = "forward and backward" if figures.both_in(tool) else "the forward"
    first = f"{tool} claims {claimed} for {what}, where {causal} are counted (full square: {full})"
    third = f" {split}" if (split := _split(row, unit, figures)) else ""
    if row["verdict"] != "explained":
        return f"{first}: {row['verdict']}. {second}{third}"
    made, alone = "", figures.prefill if row["cause"].startswith(readings.PREFILL) else None
    if unit == "FLOPs" and alone is not None:
        its_own = row.copy()
        for kind in ("causal", "full"):
            its_own[kind] = alone.count([TOTAL], kind, ("forward",))
        made = _made_of(its_own, alone)
        made = f"{readings.PREFILL}: {made}" if made else ""
    elif unit == "FLOPs":
        made = _made_of(row, figures)
    return f"{first}: {made or row['cause']}. {second}{third}"


def _split(row: pd.Series, unit: str, figures: Figures) -> str:
    """What of the counted total each phase of a generation has; empty of anything else."""
    of_phase = {phase: int(row[phase]) for phase in figures.generated if row[phase]}
    whole = sum(of_phase.values())
    if len(of_phase) < 2 or not whole:
        return ""
    words = [
        f"{units.si(float(count), unit)} ({units.percent(count / whole)}) are of the {phase}"
        for phase, count in of_phase.items()
    ]
    least = min(of_phase, key=lambda phase: of_phase[phase])
    return (
        f"Of the counted {', '.join(words)}: a rate or an MFU over all of them says nothing of the {least}, however "
        "long it takes."
    )


_ADDED = (readings.BROADCAST, readings.VECTOR, readings.ELEMENTWISE, readings.BIAS)


def _made_of(row: pd.Series, figures: Figures) -> str:
    """What a claimed total of FLOPs consists of by the tool's own rules, and what it lacks; empty without rules."""
    for sums in figures.by_rule:
        parts = figures.parts([TOTAL], sums, "flops")
        if abs(row["claimed"] - figures.of([TOTAL], sums, "flops")) > 0.001 * row["claimed"]:
            continue
        lacking = -parts.pop(readings.ATTENTION, 0)
        added = {cause: parts.pop(cause) for cause in list(parts) if cause.startswith(_ADDED)}
        words = [f"{units.si(int(row['full']) - lacking + sum(parts.values()))} of multiplications"]
        words += [f"{units.si(flops)} of {cause}" for cause, flops in added.items()]
        made = f"they are {' and '.join(words)}"
        if lacking <= 0:
            return made
        masked = int(row["full"]) - int(row["causal"])
        lack = f"{units.si(lacking - masked)} (full square: {units.si(lacking)})" if masked else units.si(lacking)
        return f"{made}, without {lack} of fused attention"
    return ""
