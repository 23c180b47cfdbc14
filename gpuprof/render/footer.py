"""What stands below the tree: what was not counted, not known or not measured, and what puts figures in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.consistency import inconsistencies
from gpuprof.analysis.denominators import STEADY
from gpuprof.analysis.executed import not_collected
from gpuprof.analysis.generation import is_generation, moved, phases_of, untold_parts
from gpuprof.analysis.op_tables import ruleless
from gpuprof.analysis.steps import traced
from gpuprof.analysis.telemetry import invalid
from gpuprof.analysis.too_fast import SLOWED
from gpuprof.analysis.untold import untold
from gpuprof.record import Record
from gpuprof.render.view import View


def _calls(number: int | None) -> str:
    return "not counted, only traced" if number is None else units.number(number, "call")


def _of_kernel_time(share: float | None) -> str:
    return "" if share is None else f", {units.percent(share)} of kernel time"


def times_of(run: Record) -> str:
    """What the times of modules are of, in words."""
    if run.is_job:
        return "FLOPs are those of all ranks together, times the mean of one traced step of each"
    return f"Times are of {'the' if (what := traced(run)) == 'recording' else 'one'} {what}"


def of_modules(run: Record) -> str:
    """What is to be known of a table of modules, in a sentence."""
    layers = "ayers that agree in every count are one line."
    if not (run.done("trace") or run.has("busy")):
        return f"L{layers}"
    backward = "" if phases_of(run) else ", backward with recompute"
    return f"{times_of(run)}{backward}; l{layers}"


def warnings(run: Record) -> list[str]:
    """What makes figures of a run doubtful, a line each."""
    return [
        *(f"Warning: {text}" for text in dict.fromkeys((*run.warnings, *inconsistencies(run)))),
        *(f"Invalid for tracking: {reason}" for reason in invalid(run)),
    ]


def footer(run: Record, view: View, sums: dict[str, Any]) -> Iterator[RenderableType]:
    """Notes below the tree: what was not counted, not known, not measured."""
    lines = []
    if run.done("count"):
        named = [
            f"{row['op']} ({_calls(row['calls'])}{_of_kernel_time(row.get('time_share'))})" for row in ruleless(run)
        ]
        if named:
            lines.append(f"Without a FLOP rule, so not in any count: {', '.join(named)}.")
        causality = zip(run.column("tree", "module"), run.column("tree", "causality"), strict=True)
        unknown = [module for module, known in causality if known == "unknown"]
        if unknown:
            some = ", ".join(path or "(root)" for path in unknown[:3]) + (
                f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            )
            lines.append(f"Causality unknown, attention counted full: {some}.")
    if run.done("trace") or run.has("busy"):
        rates = "FLOP/s and kernel MFU are over that time, MFU over the step"
        what = f"backward with recompute. FLOPs are of the forward; {rates}."
        if is_generation(run):
            what = "kernel MFU of the prefill and kernel MBU of the decode over it. FLOPs are of all phases."
        lines.append(
            f"{times_of(run)}: the union of the intervals of a module's kernels, {what} "
            "Folded layers show their mean ± standard deviation."
        )
        if sums["step_s"] and (sums["kernel_s"] or 0) > SLOWED * sums["step_s"]:
            lines.append("Tracing slowed the step: read times below the whole as shares, not as seconds.")
    if run.has("traffic") and "decode" in moved(run).index:
        lines.append("Bytes are those that must move in the decode: of weights, cache and activations, at least that.")
    lines += untold(run)
    lines += [f"No time to first token, time per token and MBU: {why}."] if (why := untold_parts(run)) else []
    for dtype, spread in run.device.get("peak_spread", {}).items():
        if spread > STEADY:
            lines.append(
                f"The {dtype} ceiling varied by {spread:.0%} while it was measured: other work on this device makes "
                "MFU uncertain."
            )
    for row in not_collected(run).to_dict(orient="records") if run.done("counters") else ():
        lines.append(
            f"Ran on tensor cores in a dtype whose FLOPs were not collected (--counters full): {row['kernel']} of "
            f"{row['module'] or '(root)'}, {units.number(row['launches'], 'launch', 'launches')}."
        )
    lines += warnings(run)
    for name, outcome in run.passes.items():
        if outcome.status == "skipped":
            lines.append(f"Pass {name} skipped: {outcome.reason}; {outcome.remedy}")
    if lines:
        yield Text("")
        yield from (Text(line) for line in lines)
