"""Kernel time: the union of intervals, so that kernels that ran beside one another count once."""

from __future__ import annotations

from typing import Any

from gpuprof.analysis.each import numbered
from gpuprof.late import np, pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import ALL


def kernel_times(kernels: pd.DataFrame, paths: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of kernel time by module (children included) and phase: the union of the kernels' intervals."""
    times: dict[str, dict[str, float]] = {path: {} for path in paths}
    if _disjoint(kernels):  # one stream at a time: the union of any of them is their sum
        places, owners = numbered(kernels[["module", "phase"]])
        sums = kernels["duration_ns"].groupby(places).sum()
        for (module, phase), nanoseconds in sorted(zip(owners.itertuples(index=False, name=None), sums, strict=True)):
            for path in ancestors(module):
                times[path][phase] = times[path].get(phase, 0.0) + nanoseconds * 1e-9
        return times
    members: dict[tuple[str, str], list[np.ndarray]] = {}
    for (module, phase), rows in rows_by(kernels, ["module", "phase"]).items():
        for path in ancestors(module):
            members.setdefault((path, phase), []).append(rows)
    start = kernels["start_ns"].to_numpy("int64")
    end = start + kernels["duration_ns"].to_numpy("int64")
    for (path, phase), several in members.items():
        among = np.concatenate(several)
        times[path][phase] = union_ns(start[among], end[among]) * 1e-9
    return times


def rows_by(kernels: pd.DataFrame, columns: list[str]) -> dict[Any, np.ndarray]:
    """Numbers of the rows that are alike in these columns, by what they have there, the first of which comes first."""
    places, first = numbered(kernels[columns])
    rows = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places)))[:-1]  # the last has none
    return dict(zip(first.itertuples(index=False, name=None), rows, strict=True))


def of_ranks(run: Record) -> dict[str, dict[str, float]]:
    """The same of a job, the mean of its ranks, each of its own traced step; under `ALL` by phase alone."""
    rows = run.busy[run.busy["op"] == ALL]
    times: dict[str, dict[str, float]] = {}
    for module, phase, nanoseconds in rows[["module", "phase", "total_ns"]].itertuples(index=False, name=None):
        times.setdefault(module, {})[phase] = int(nanoseconds) * 1e-9 / run.workload["world"]
    return times


def own_of_ranks(run: Record) -> pd.DataFrame:
    """A module's own work by phase and operator, of a job: means of its ranks of kernels and time_s (durations).

    And all_kernels, those of all ranks.
    """
    rows = run.busy[run.busy["op"] != ALL].set_index(["module", "phase", "op"])
    world = run.workload["world"]
    kernels, time_s = rows["kernels"].astype("float64") / world, rows["total_ns"].astype("float64") * 1e-9 / world
    return pd.DataFrame({"kernels": kernels, "time_s": time_s, "all_kernels": rows["kernels"]}).reset_index()


def busy_seconds(kernels: pd.DataFrame) -> float:
    """Seconds in which at least one of these rows of ``kernels`` ran."""
    start = kernels["start_ns"].to_numpy("int64")
    return union_ns(start, start + kernels["duration_ns"].to_numpy("int64")) * 1e-9


def phase_times(kernels: pd.DataFrame) -> dict[str, float]:
    """Seconds of kernel time by phase, of all modules together."""
    return {phase: seconds for (phase,), seconds in busy_seconds_by(kernels, ["phase"]).items()}


def busy_seconds_by(kernels: pd.DataFrame, columns: list[str]) -> dict[Any, float]:
    """The same of the rows that are alike in these columns, by what they have there, the first of which comes first."""
    start = kernels["start_ns"].to_numpy("int64")
    end = start + kernels["duration_ns"].to_numpy("int64")
    return {key: union_ns(start[rows], end[rows]) * 1e-9 for key, rows in rows_by(kernels, columns).items()}


def union_ns(start: np.ndarray, end: np.ndarray) -> int:
    """Length of the union of intervals, in the unit of the input (int64, sorted or not)."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    gaps = np.maximum(start[1:] - reach[:-1], 0).sum()
    return int(reach[-1] - start[0] - gaps)


def owned(start: np.ndarray, duration: np.ndarray, communicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds that each kernel has for itself, and those of the gap before it: exact integers.

    Of the kernels of one instant one owns it: computation before communication, then the earlier start. So what they
    own adds up to the union of all intervals, with the gaps to the span, and that of communication to what no
    computation hides.

    Args:
        start: int64, ascending, from the beginning of the step.
        duration: likewise, in the same order.
        communicates: which kernels move data between devices.
    """
    end = start + duration
    begin = start.copy()
    for kind in (communicates, ~communicates):
        begin[kind] = np.minimum(np.maximum(start[kind], _reach(end[kind])), end[kind])
    own = end - begin
    computing = ~communicates & (own > 0)  # disjoint pieces, in order
    first, last, before = begin[computing], np.r_[0, end[computing]], np.cumsum(np.r_[0, own[computing]])

    def computed_until(instant: np.ndarray) -> np.ndarray:
        begun = np.searchsorted(first, instant, side="right")
        return before[begun] - np.maximum(last[begun] - instant, 0)

    own[communicates] -= computed_until(end[communicates]) - computed_until(begin[communicates])
    return own, np.maximum(start - _reach(end), 0)


def _reach(end: np.ndarray) -> np.ndarray:
    """The latest end of all intervals before each."""
    return np.maximum.accumulate(np.r_[0, end])[:-1]


def _disjoint(kernels: pd.DataFrame) -> bool:
    start = kernels["start_ns"].to_numpy("int64")
    end = start + kernels["duration_ns"].to_numpy("int64")
    return union_ns(start, end) == int((end - start).sum())
