"""What is found out of a run once, however many tables and pages ask."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from gpuprof.record import Record

_Found = TypeVar("_Found")


def once(find: Callable[[Record], _Found]) -> Callable[[Record], _Found]:
    """Found once for each state of a run: every table and page asks again."""

    @wraps(find)
    def found(run: Record) -> _Found:
        kept = run.__dict__.setdefault("_found", {})
        state = _state(run)
        if find.__name__ not in kept or kept[find.__name__][0] != state:
            kept[find.__name__] = (state, find(run))
        return kept[find.__name__][1]

    return found


def _state(run: Record) -> str:
    frames = [
        (run.ops, ("calls", "flops_full", "flops_hardware")), (run.kernels, ("duration_ns", "call")),
        (run.estimates, ("flops_profiler",)), (run.samples, ("time_s",)),
        (run.nodes, ("calls", "moved", "flops_hardware")), (run.generation, ("time_s",)), (run.traffic, ("bytes",)),
    ]  # fmt: skip
    sums = [(id(frame), len(frame), *(frame[name].sum() for name in names)) for frame, names in frames]
    return repr([sums, run.passes, run.workload.get("step"), run.device, run.settings])
