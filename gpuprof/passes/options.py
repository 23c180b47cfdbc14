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
    passes: str | Iterable[str],
    warmup: int | None = None,
    steps: int | None = None,
    peak_tflops: float | None = None,
    counter_level: str = "minimal",
    launches: int | None = None,
) -> set[str]:
    """Names of passes, each once, that may run so; the arguments are those of `gpuprof.profile`.

    Passes may also be one text of names, separated by commas.

    Raises:
        GpuprofError: one of them is out of its range, or they contradict.
    """
    if isinstance(passes, str):
        passes = [name.strip() for name in passes.split(",") if name.strip()]
    if not isinstance(passes, Iterable):
        raise GpuprofError(f"passes must be names, of {', '.join(PASSES)}, not {passes!r}")
    wanted = set(passes)
    unknown = sorted(map(str, wanted - set(PASSES)))
    if unknown or not wanted:
        raise GpuprofError(f"no pass named {', '.join(unknown) or '(none given)'}: known are {', '.join(PASSES)}")
    if warmup is not None and (not isinstance(warmup, int) or warmup < 0):
        raise GpuprofError(f"--warmup must be at least 0, not {warmup!r}")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise GpuprofError(f"--steps must be at least 1, not {steps!r}")
    check_peak(peak_tflops)
    if counter_level not in LEVELS:
        raise GpuprofError(f"--counters must be {' or '.join(LEVELS)}, not {counter_level}")
    if launches is not None and (not isinstance(launches, int) or launches < 1):
        raise GpuprofError("--launches must be at least 1")
    if launches is not None and "time" not in wanted:
        raise GpuprofError("--launches repeats the timing pass: add time to --passes")
    return wanted
