"""What the telemetry of a run means: what held the GPU back, what a step cost, and whether its times can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from gpuprof import units
from gpuprof.analysis.consistency import withheld
from gpuprof.analysis.counted import whole_step
from gpuprof.analysis.denominators import denominators, ideal_seconds, peak_dtype, sm_clock_hz
from gpuprof.late import pd
from gpuprof.record import Record

_COUNTER_STEP_S = 0.1  # drivers advance the cumulative counters about every 0.1 s, so a window may gain one step

TRUSTED_WINDOW_S = 1.0
"""Shortest window in which energy and GPM are believed: one step of their counters is a tenth of it."""

LEAST_READINGS = 5
"""Readings from which a phase has a median of its own."""

PHASE_COLUMNS = ["phase", "readings", "sm_clock_mhz", "power_w"]
"""Columns of `of_phases`."""

_POWER = ("power_instant", "power_average", "power_usage")  # the preferred first
_OUTSIDE_TENSOR_CORES = ("float32", "float64")  # float64 is on some GPUs and not on others


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
    if frame.empty:
        return []
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


def invalid(run: Record) -> list[str]:
    """The same of a run; of a job those of its ranks."""
    if run.is_job:
        return run.doubts["invalid"]
    return invalid_reasons(run.telemetry) if run.has("telemetry") else []


def summary(run: Record) -> dict[str, Any]:
    """The telemetry in figures; None where a figure is not known.

    Keys: window_s, sm_clock_mhz (median), max_sm_clock_mhz (of the device), sm_clock_ratio (of the two), power_w
    (median), power_max_w, power_limit_w, temperature_max_c, energy_j (of the window), limits (a sentence for each of
    `limits`).
    """
    clock, highest = sm_clock_hz(run), run.device.get("max_sm_clock_mhz")
    known: dict[str, Any] = {
        "window_s": None,
        "sm_clock_mhz": clock / 1e6 if clock else None,
        "max_sm_clock_mhz": highest,
        "sm_clock_ratio": clock / 1e6 / highest if clock and highest else None,
        "power_w": None,
        "power_max_w": None,
        "power_limit_w": run.device.get("power_limit_w"),
        "temperature_max_c": None,
        "energy_j": None,
        "limits": [],
    }
    if not run.has("telemetry"):
        return known
    frame = run.telemetry
    readings = {str(quantity): values for quantity, values in frame.groupby("quantity")["value"]}
    power = next((readings[quantity] for quantity in _POWER if quantity in readings), None)
    energy_j = _growth(frame, "energy")
    return known | {
        "window_s": _window(frame) or None,
        "power_w": None if power is None else float(power.median()),
        "power_max_w": None if power is None else float(power.max()),
        "temperature_max_c": float(readings["temperature"].max()) if "temperature" in readings else None,
        "energy_j": energy_j if energy_j > 0 else None,
        "limits": [_sentence(limit, frame) for limit in limits(frame)],
    }


def of_phases(run: Record) -> pd.DataFrame:
    """Median clock and power in each phase of a generation, by the readings that fall into its parts.

    A driver refreshes what it says about every 0.1 s, so a reading belongs to the parts of a phase in a row that began
    so long before it, and only that power counts which is no mean over a second.

    Returns:
        Columns `PHASE_COLUMNS`, in MHz and W, of phases with at least `LEAST_READINGS` readings of a clock or a power;
        missing where it was not read.
    """
    names = {"sm_clock": "sm_clock_mhz", "power_instant": "power_w"}
    readings = run.telemetry[run.telemetry["quantity"].isin(names)]
    values: dict[str, dict[str, list[float]]] = {}
    for launch, phase, begin, end in _in_a_row(run.generation):
        within = readings["time_s"].between(begin + _COUNTER_STEP_S, end) & (readings["launch"] == launch)
        for quantity, value in readings.loc[within, ["quantity", "value"]].itertuples(index=False, name=None):
            values.setdefault(phase, {}).setdefault(names[quantity], []).append(value)
    rows = []
    for phase, of_phase in values.items():
        known = {name: found for name, found in of_phase.items() if len(found) >= LEAST_READINGS}
        if known:
            row = {name: median(found) for name, found in known.items()}
            rows.append({"phase": phase, "readings": min(map(len, known.values())), **row})
    return pd.DataFrame(rows, columns=PHASE_COLUMNS)


def _in_a_row(parts: pd.DataFrame) -> Iterator[tuple[int, str, float, float]]:
    """Launch, phase, begin and end of parts of one phase that follow one another; none without a telemetry's window."""
    parts = parts.dropna(subset=["start_s"]).sort_values(["launch", "start_s"])
    same = [parts[name] == parts[name].shift() for name in ("launch", "phase")]
    for _, rows in parts.groupby((~(same[0] & same[1])).cumsum()):
        first, last = rows.iloc[0], rows.iloc[-1]
        yield int(first["launch"]), str(first["phase"]), first["start_s"], last["start_s"] + last["time_s"]


def energy_per_step_j(run: Record) -> float | None:
    """What the energy counter of the GPU gained over the window, by every step in it, in J.

    So the warm-up and the pauses between steps are in it, and whatever else the GPU did.

    Returns:
        None where it was not read, in a window under `TRUSTED_WINDOW_S`, and on a MIG slice, which shares the counter.
    """
    if run.is_job:
        return _of_all_ranks(run)
    if not run.has("telemetry"):
        return None
    energy_j, steps = _growth(run.telemetry, "energy"), _steps(run)
    return energy_j / steps if energy_j > 0 and steps and _of_this_run(run) else None


def _of_all_ranks(run: Record) -> float | None:
    """The energy of a step of a job; None where one of its ranks does not know its own."""
    found = run.ranks.loc[run.ranks["quantity"] == "energy_uj", "amount"]
    return int(found.sum()) * 1e-6 if len(found) == run.workload["world"] else None


def flops_per_joule(run: Record, convention: str | None = None) -> float | None:
    """Model FLOPs of a step over its energy; None where either is not known.

    Args:
        run: the run.
        convention: how FLOPs are counted; the run's own by default.
    """
    energy_j = energy_per_step_j(run)
    if energy_j is None or not run.done("count") or withheld(run):
        return None
    flops: int = whole_step(run, convention)["flops"]
    return flops / energy_j if flops else None


class TensorActivity(NamedTuple):
    """The tensor cores as GPM saw them beside what the counted FLOPs ask of them.

    More than asked is padding to tiles and stalls inside the instructions, or FLOPs that were not counted; less is work
    that was counted and did not run there, or not at all.

    Attributes:
        busy: share of the window's SM cycles in which tensor cores worked, by GPM.
        expected: share that the counted hardware FLOPs need at the rate per clock of the datasheet and the median SM
            clock of the window. Summed over operators, each at the rate of its dtype.
        counted_flops_per_s: counted hardware FLOPs of the tensor cores over the window, FLOP/s.
    """

    busy: float
    expected: float
    counted_flops_per_s: float

    @property
    def ratio(self) -> float:
        """What GPM saw over what was asked."""
        return self.busy / self.expected

    @property
    def implied_flops_per_s(self) -> float:
        """FLOP/s that tensor cores as busy as this could do, in the mix of dtypes that was counted."""
        return self.counted_flops_per_s * self.ratio


def tensor_activity(run: Record) -> TensorActivity | None:
    """A check of counted FLOPs and HFU by the GPU's own monitor, which knows of neither.

    Every step of the window is in it, warm-up included. Products in float32 (without TF32) and float64 are left out.

    Returns:
        None where GPM, the clock, the rate per clock or the FLOPs are not known, in a window under `TRUSTED_WINDOW_S`,
        and on a MIG slice, for GPM watches the whole GPU; and of a job, whose ranks have one each.
    """
    if run.is_job or not run.has("telemetry"):
        return None
    busy = run.telemetry.loc[run.telemetry["quantity"] == "gpm_tensor_active", "value"]
    peaks, steps = denominators(run).get("clock"), _steps(run)
    if busy.empty or not peaks or not steps or not run.done("count") or withheld(run) or not _of_this_run(run):
        return None
    dtypes = [peak_dtype(dtype, kind, run) for dtype, kind in zip(run.ops["dtype"], run.ops["kind"], strict=True)]
    ops = run.ops[[dtype not in _OUTSIDE_TENSOR_CORES for dtype in dtypes]]
    ideal_s = float(ideal_seconds(ops, "flops_hardware", peaks, run).sum(skipna=False))
    if not ideal_s > 0:  # nor a NaN, of a dtype without a rate
        return None
    per_s = steps / _window(run.telemetry)
    return TensorActivity(float(busy.mean()) / 100, ideal_s * per_s, int(ops["flops_hardware"].sum()) * per_s)


def _of_this_run(run: Record) -> bool:
    """Whether counters of the whole GPU over the whole window can be taken for what the steps did."""
    return _window(run.telemetry) >= TRUSTED_WINDOW_S and " MIG " not in (run.device.get("name") or "")


def _steps(run: Record) -> int:
    """Steps in the window, warm-up included; 0 where it is not known."""
    settings, launches = run.settings, run.telemetry["launch"].nunique()
    return int(settings["warmup"] + settings["steps"]) * launches if {"warmup", "steps"} <= settings.keys() else 0


def _sentence(limit: Limit, frame: pd.DataFrame) -> str:
    if limit.seconds:
        return f"{limit.cause.name} for {units.duration(limit.seconds)} of {units.duration(_window(frame))}"
    total = int((frame["quantity"] == "event_reasons").sum())
    return f"{limit.cause.name} in {limit.samples} of {total} samples"


def _window(frame: pd.DataFrame) -> float:
    """Length of the window; of several launches all of theirs."""
    times = frame.groupby("launch")["time_s"]
    return float((times.max() - times.min()).sum())


def _growth(frame: pd.DataFrame, quantity: str) -> float:
    """By how much a counter grew in the window, or the windows."""
    values = frame.loc[frame["quantity"] == quantity].groupby("launch")["value"]
    return float((values.last() - values.first()).sum())
