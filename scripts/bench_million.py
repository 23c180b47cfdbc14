"""Verbs over a run with a million kernels: each in less than ten seconds of a processor and two gigabytes.

The run is the committed one of a training step of LLaVA-OneVision with Qwen2-7B on an H200, 9,023 kernels, as often as
makes a million: a step of 111 micro-batches. What was counted and timed is multiplied likewise, so that all that is
checked of a run holds of this one.
"""

from __future__ import annotations

from typing import Any

from side_by_side import ROOT

PATTERN = ROOT / "results/nvidia-h200/2026-11-28/runs/reference-train.json.gz"
KERNELS = 1_000_000
VERBS = ("show", "budget", "roofline", "report")
SECONDS, BYTES = 10.0, 2e9

TIMES = {
    "ops": ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes"),
    "estimates": ("calls", "flops_profiler"),
    "tree": ("calls",),
    "samples": ("time_s",),
    "telemetry": ("time_s",),
}
"""What is of a step, of which there are many: figures that are multiplied."""


def million() -> tuple[Any, int]:
    """The run, and how many kernels it has."""
    import gpuprof

    run = gpuprof.load(PATTERN)
    kernels = run.columns("kernels")
    times = -(-KERNELS // len(kernels["module"]))
    calls = max(call for call in kernels["call"] if call is not None) + 1
    span = max(map(sum, zip(kernels["start_ns"], kernels["duration_ns"], strict=True)))
    shifts = {"call": calls, "start_ns": span}
    run.kernels = {
        name: [
            None if value is None else value + number * shifts[name] if name in shifts else value
            for number in range(times)
            for value in values
        ]
        for name, values in kernels.items()
    }
    for table, names in TIMES.items():
        held = run.columns(table)
        setattr(run, table, held | {name: [multiplied(value, times) for value in held[name]] for name in names})
    for name in ("tokens_per_step", "samples_per_step"):
        if run.workload.get(name):
            run.workload[name] *= times
    return run, times * len(kernels["module"])


def multiplied(value: Any, times: int) -> Any:
    """A figure of a step of so many; None where it is not known."""
    return None if value is None else value * times
