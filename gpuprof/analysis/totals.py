"""The figures of a whole run, as its header has them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from gpuprof.analysis.compiled import hardware_of_compiled
from gpuprof.analysis.consistency import per_step, withheld_of_step
from gpuprof.analysis.counted import counted, counted_columns, hardware, whole_step
from gpuprof.analysis.denominators import denominator
from gpuprof.analysis.directions import direction
from gpuprof.analysis.generation import new_tokens_per_s
from gpuprof.analysis.kernel_time import busy_seconds, own_of_ranks
from gpuprof.analysis.once import once
from gpuprof.analysis.ranks import busy_of_ranks
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.unpriced import ratio_withheld
from gpuprof.record import Record
from gpuprof.schema import FORWARD, MODEL, UNATTRIBUTED

_FIGURES = (
    "params", "trainable_params", "macs", "flops_forward", "flops_recompute", "flops_backward", "flops",
    "counted_flops", "flops_hardware", "vector_flops", "backward_ratio", "step_s", "step_iqr_s", "steps",
    "flops_per_s", "mfu", "hfu", "kernel_s", "owned_share", "peak_bytes", "peak_reserved_bytes",
    "tokens_per_s", "samples_per_s",
)  # fmt: skip


def totals(run: Record, convention: str | None = None) -> dict[str, Any]:
    """The figures of the header; None where a figure is not known.

    Keys: params, trainable_params, macs, flops_forward, flops_recompute, flops_backward, flops (model FLOPs of the
    step, by the formula where the convention is one), counted_flops (those of the rows: the same, but for a formula),
    flops_hardware, vector_flops, backward_ratio (counted backward / forward), step_s, step_iqr_s, steps,
    flops_per_s, mfu, hfu, denominator, kernel_s, owned_share (kernel time of the traced step with a known owner),
    peak_bytes, peak_reserved_bytes, tokens_per_s (of a generation new ones), samples_per_s; withheld (why there is no
    mfu, hfu and flops_per_s though the step was counted and timed, empty where that is not so); ratio_withheld (the
    same of backward_ratio). Of mfu, hfu and flops_per_s `gpuprof.analysis.known_flops.known_of` says where they are
    lower bounds.
    """
    figures: dict[str, Any] = dict.fromkeys(_FIGURES)
    figures |= {"denominator": denominator(run)[0], "withheld": withheld_of_step(run)}
    figures["ratio_withheld"] = ratio_withheld(run)
    if run.has("tree"):
        figures |= {name: run.column("tree", name)[0] for name in ("params", "trainable_params")}
    if run.done("count"):
        figures |= _of_counts(run, convention)
        if figures["ratio_withheld"]:
            figures["backward_ratio"] = None
    if (step_s := step_seconds(run)) is not None:
        figures |= _of_time(run, step_s)
        if run.done("count"):
            figures |= _rates(run, convention, figures, step_s)
    figures |= _of_kernels(run)
    memory = list(zip(run.column("memory", "quantity"), run.column("memory", "bytes"), strict=True))
    for key, names in (
        ("peak_bytes", ("allocated_peak", "rss_peak")),
        ("peak_reserved_bytes", ("reserved_peak",)),
    ):
        figures[key] = max((size for quantity, size in memory if quantity in names and size is not None), default=None)
    return figures


def _of_counts(run: Record, convention: str | None) -> dict[str, Any]:
    ops = counted_columns(run, convention)
    phases = Counter[str]()
    for phase, flops in zip(ops["phase"], ops["flops"], strict=True):
        phases[direction(phase)] += flops or 0
    forward, backward = phases["forward"], phases["backward"]
    figures = {
        "macs": sum(macs or 0 for phase, macs in zip(ops["phase"], ops["macs"], strict=True) if phase in FORWARD),
        "flops_forward": forward,
        "flops_recompute": phases["recompute"],
        "flops_backward": backward,
        **whole_step(run, convention),
        "flops_hardware": hardware_of_compiled(run)
        if run.has("nodes")
        else sum(flops or 0 for flops in ops["flops_hardware"]),
        "vector_flops": sum(flops or 0 for flops in ops["vector_flops"]),
        "backward_ratio": backward / forward if forward and backward else None,
    }
    if figures["flops"] is None:
        figures |= dict.fromkeys(("macs", "flops_forward", "flops_recompute", "flops_backward", "flops_hardware"))
    return figures


def _of_time(run: Record, step_s: float) -> dict[str, Any]:
    steps = run.samples.loc[run.samples["phase"] == "step", "time_s"]
    figures: dict[str, Any] = {
        "step_s": step_s,
        "step_iqr_s": float(steps.quantile(0.75) - steps.quantile(0.25)),
        "steps": len(steps),
    }
    for unit in ("tokens", "samples"):
        amount = per_step(run, unit)
        figures[f"{unit}_per_s"] = amount / step_s if amount else None
    if run.workload.get("mode") == "generate":  # most positions are the prompt's, and a rate of them none of tokens
        figures["tokens_per_s"] = new_tokens_per_s(run)
    return figures


def _rates(run: Record, convention: str | None, figures: dict[str, Any], step_s: float) -> dict[str, Any]:
    """FLOP/s, MFU and HFU of the step."""
    known = not run.has("nodes") or figures["flops_hardware"] is not None
    ops, done = counted(run, convention), hardware(run, convention)
    model = ops[ops["phase"].isin(MODEL)]
    # a formula's FLOPs run in the mix of dtypes that was counted
    scale = figures["flops"] / figures["counted_flops"] if figures["counted_flops"] else 1.0
    return {
        "flops_per_s": None if figures["withheld"] or figures["flops"] is None else figures["flops"] / step_s,
        "mfu": _known_share(model["ideal_s"].sum(skipna=False) * scale, step_s),
        "hfu": _known_share(done["hardware_ideal_s"].sum(skipna=False), step_s) if known else None,
    }


@once
def _of_kernels(run: Record) -> dict[str, Any]:
    """Kernel time of the traced step, and the share of it that has an owner."""
    figures: dict[str, Any] = {}
    if run.is_job and run.has("busy"):
        figures["kernel_s"], own, column = busy_of_ranks(run), own_of_ranks(run), "time_s"
    elif run.done("trace") and run.has("kernels"):
        own, column = split_kernels(run), "duration_ns"
        figures["kernel_s"] = busy_seconds(own)
    else:
        return figures
    owned = (own["module"] != UNATTRIBUTED) | (own["phase"] == "optimizer")
    if total := own[column].sum():  # of a recording in whole microseconds, all may have taken none
        figures["owned_share"] = float(own.loc[owned, column].sum() / total)
    return figures


def _known_share(ideal_s: float, time_s: float) -> float | None:
    return ideal_s / time_s if ideal_s > 0 and not math.isnan(ideal_s) else None
