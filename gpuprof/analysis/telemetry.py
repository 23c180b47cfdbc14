"""What the telemetry of a run means: what held the GPU back, and whether its times can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from gpuprof import units

_COUNTER_STEP_S = 0.1  # drivers advance the cumulative counters about every 0.1 s, so a window may gain one step


class Cause(NamedTuple):
    """Why a GPU lowers its clock.

    A power cap is how a GPU works under a heavy matmul; heat and the power brake are faults of the place.

    Attributes:
        name: as we call it.
        bit: of NVML's mask of clock event reasons.
        counters: cumulative times of the ``telemetry`` table that belong to it.
        invalid: whether a run under it is no measure of the code.
    """

    name: str
    bit: int
    counters: tuple[str, ...]
    invalid: bool


CAUSES = (
    Cause("power cap", 0x04, ("power_policy_time",), False),
    Cause("software thermal slowdown", 0x20, ("sw_thermal_time", "thermal_policy_time"), True),
    Cause("hardware thermal slowdown", 0x40, ("hw_thermal_time",), True),
    Cause("external power brake", 0x80, ("hw_power_brake_time",), True),
    Cause("hardware slowdown", 0x08, (), True),
)


class Limit(NamedTuple):
    """A cause that was seen in the window.

    Attributes:
        cause: what it was.
        seconds: time under it by the cumulative counter, s; 0 where the counter is missing or did not move.
        samples: samples that showed its bit.
    """

    cause: Cause
    seconds: float
    samples: int


def limits(frame: pd.DataFrame) -> list[Limit]:
    """What lowered the clock during the window, from the ``telemetry`` table of a run."""
    masks = frame.loc[frame["quantity"] == "event_reasons", "value"].astype("int64")
    window_s = _window(frame)
    found = []
    for cause in CAUSES:
        grown = [_growth(frame, counter) for counter in cause.counters]
        # a time that outgrew the window is no time: field numbers differ between NVML releases
        seconds = max((s for s in grown if 0 < s <= window_s + _COUNTER_STEP_S), default=0.0)
        samples = int((masks & cause.bit != 0).sum())
        if seconds or samples:
            found.append(Limit(cause, seconds, samples))
    return found


def invalid_reasons(frame: pd.DataFrame) -> list[str]:
    """Why the times of a run are not to be trusted, one line each; empty when they are.

    A power cap is no such reason; `limits` names it.
    """
    return [_sentence(limit, frame) for limit in limits(frame) if limit.cause.invalid]


def _sentence(limit: Limit, frame: pd.DataFrame) -> str:
    if limit.seconds:
        return f"{limit.cause.name} for {units.duration(limit.seconds)} of {units.duration(_window(frame))}"
    total = int((frame["quantity"] == "event_reasons").sum())
    return f"{limit.cause.name} in {limit.samples} of {total} samples"


def _window(frame: pd.DataFrame) -> float:
    return float(frame["time_s"].max() - frame["time_s"].min()) if len(frame) else 0.0


def _growth(frame: pd.DataFrame, quantity: str) -> float:
    values = frame.loc[frame["quantity"] == quantity, "value"]
    return float(values.iloc[-1] - values.iloc[0]) if len(values) else 0.0
