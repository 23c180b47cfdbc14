"""What the user may ask of the passes, checked without torch."""

from __future__ import annotations

from collections.abc import Iterable

from gpuprof.errors import GpuprofError
from gpuprof.hardware.peaks import check_peak

DEFAULT_PASSES = ("count", "time", "trace", "memory", "telemetry")
"""Passes that run unless told otherwise."""

PASSES = (*DEFAULT_PASSES, "counters")
"""Names of the passes, in the order in which they run; telemetry runs around the timing pass."""

LEVELS = ("minimal", "full")
"""How much the counters pass collects: the tensor work of the step's dtypes and a canary, or everything."""


def check(
    passes: Iterable[str],
    warmup: int | None = None,
    steps: int | None = None,
    peak_tflops: float | None = None,
    counter_level: str = "minimal",
    launches: int | None = None,
) -> set[str]:
    """Names of passes, each once, that may run so; the arguments are those of `gpuprof.profile`.

    Raises:
        GpuprofError: one of them is out of its range, or they contradict.
    """
    wanted = set(passes)
    unknown = sorted(wanted - set(PASSES))
    if unknown or not wanted:
        raise GpuprofError(f"no pass named {', '.join(unknown) or '(none given)'}: known are {', '.join(PASSES)}")
    if warmup is not None and warmup < 0:
        raise GpuprofError(f"--warmup must be at least 0, not {warmup}")
    if steps is not None and steps < 1:
        raise GpuprofError(f"--steps must be at least 1, not {steps}")
    check_peak(peak_tflops)
    if counter_level not in LEVELS:
        raise GpuprofError(f"--counters must be {' or '.join(LEVELS)}, not {counter_level}")
    if launches is not None and launches < 1:
        raise GpuprofError("--launches must be at least 1")
    if launches is not None and "time" not in wanted:
        raise GpuprofError("--launches repeats the timing pass: add time to --passes")
    return wanted
