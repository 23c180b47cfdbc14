"""Where a series of measurements changed its level: E-divisive means with t-tests.

The statistic is that of Matteson and James (arXiv 1306.4933); the windows, the t-test in the place of permutations and
the second, stricter look at what was found are those of Fleming et al. (Hunter, arXiv 2301.03034). Apache Otava keeps
that method, but as a dependency it pins numpy and brings clients of databases and chats. Unlike there,

* a cut is tested against the end that it was found with: the window's end may lie behind a change back;
* levels that are most alike are joined first, the smallest change and then the least sure one: a joined level is a
  blend, and what stands beside it loses by that, so that the large ones would go with the small;
* a level needs `LEAST` values of its own, and is tested as the best of as many stretches of its length as there were to
  find: one bad night is not a change, nor are two of three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from gpuprof.analysis.comparison import CLOCKS, differences
from gpuprof.analysis.denominators import WORDS
from gpuprof.late import np, pd

WINDOW = 50
"""Values that are looked at together; windows overlap by half."""

MAX_P = 0.001
"""Largest p-value of a change; ten times that is enough at first sight."""

MIN_CHANGE = 0.02
"""Smallest change, as a share."""

LEAST = 3
"""Values on either side of a change, and of them those that lie nearer to their own level than to the other."""

SETTLED = 10
"""Newest values without which a change has to be found as well; else it is provisional."""

_NEAR = 1  # runs by which two changes may be apart and be one: noise moves each by as much

_MFUS = tuple(name for name in WORDS if name != "clock")


class ChangePoint(NamedTuple):
    """A place where the level changed.

    Attributes:
        at: index of the first value after it.
        before: mean from the change before, or the start, to this one.
        after: mean from here to the next change, or the end.
        p: of Student's t-test between the two, two-sided, times as often as the shorter fits into the longer, but at
            most 1; and 1 where one of them has fewer than `LEAST` values of its own.
    """

    at: int
    before: float
    after: float
    p: float

    @property
    def change(self) -> float:
        """By how much the level rose, as a share of that before; negative where it fell."""
        return (self.after - self.before) / abs(self.before) if self.before else math.copysign(math.inf, self.after)


class Change(NamedTuple):
    """A change in a history of runs.

    Attributes:
        metric: what changed: what is followed, or one of `CLOCKS` where it alone did.
        point: where, as a row of the runs, and the levels.
        infrastructure: whether the clock moved the same way at the same time, by as much or nearly, so that the place
            changed and not the code; None where the clock is not known.
        since: the last run before it that has the metric, as a row of the runs.
        provisional: whether the newest `SETTLED` runs are needed to see it, so that later ones may do away with it.
        clock: the change of the clock the same way at the same time, if there was one.
    """

    metric: str
    point: ChangePoint
    infrastructure: bool | None
    since: int
    provisional: bool
    clock: ChangePoint | None = None


def metric_of(runs: pd.DataFrame) -> str:
    """What a history is followed by: the MFU that most runs have, the preferred first; else the step time.

    A peak that was measured is no yardstick across days: it is measured anew, and its noise is that of a timing. Nor is
    one MFU anything for a generation, which is followed by its time per token.
    """
    mfus = (f"mfu_{name}" for name in _MFUS if name != "measured")
    return _most_known(runs, ("tpot_s", *mfus, "step_s")) or "step_s"


def beside(runs: pd.DataFrame) -> tuple[str, ...]:
    """What is followed beside `metric_of`: of generations the time to the first token."""
    return ("ttft_s",) if metric_of(runs) == "tpot_s" else ()


def mfu_of(runs: pd.DataFrame) -> str:
    """The MFU that most runs of a history have, the preferred first, of generations that of the prefill.

    Empty where none has one.
    """
    return _most_known(runs, [f"mfu_{'prefill_' * bool(beside(runs))}{name}" for name in _MFUS])


def mbu_of(runs: pd.DataFrame) -> str:
    """The MBU that most runs of a history have, likewise."""
    return _most_known(runs, ("mbu_datasheet", "mbu_measured"))


def _most_known(runs: pd.DataFrame, metrics: Sequence[str]) -> str:
    found = max(metrics, key=lambda name: runs[name].notna().sum())
    return found if runs[found].notna().any() else ""


def clock_of(runs: pd.DataFrame) -> str:
    """What says how fast the device ran in most runs of a history: one of `CLOCKS`, the preferred first."""
    return max(CLOCKS, key=lambda name: runs[name].notna().sum())


def changes(
    runs: pd.DataFrame, metric: str, min_change: float = MIN_CHANGE, beside: Sequence[str] = ()
) -> list[Change]:
    """What changed in a history, and whether it was the place, in the order of time.

    Args:
        runs: a row per run of one series, the oldest first, as from `gpuprof.history.Store.runs`: medians of launches,
            for those of a run share an hour and a room, and across days the run is the unit.
        metric: the column to follow: a rate, or a time whose name ends in ``_s``.
        min_change: smallest change, as a share. A clock that moved by half of that has a part in one.
        beside: further columns to follow.
    """
    name = clock_of(runs)
    clocks = _points(runs, name, min_change / 2)
    known = runs[name].notna().sum() >= 2 * LEAST
    listed, explaining = list[Change](), set[ChangePoint]()
    for one in (metric, *beside):
        sign = 1 if one.startswith("mfu") or one.endswith("per_s") else -1  # a slower clock makes a longer step
        for point, (since, provisional) in _points(runs, one, min_change).items():
            near = [
                clock
                for clock in clocks
                if abs(point.at - clock.at) <= _NEAR and sign * point.change * clock.change > 0
            ]
            clock = max(near, key=lambda clock: abs(clock.change), default=None)
            explained = clock is not None and _explains(clock, (point.after / point.before) ** sign, min_change)
            listed.append(Change(one, point, explained if known else None, since, provisional, clock))
            explaining |= {*near}
    listed += [
        Change(name, clock, True, since, provisional)
        for clock, (since, provisional) in clocks.items()
        if abs(clock.change) >= min_change and clock not in explaining
    ]
    return sorted(listed, key=lambda change: change.point.at)


def _explains(clock: ChangePoint, faster: float, min_change: float) -> bool:
    """Whether a change of the clock makes one of the speed, to this ratio, or leaves less than a change of it."""
    rest = faster * clock.before / clock.after
    return (rest if faster > 1 else 1 / rest) - 1 < min_change


def _points(runs: pd.DataFrame, metric: str, min_change: float) -> dict[ChangePoint, tuple[int, bool]]:
    """Change points of a metric, at rows of the runs, with `Change.since` and `Change.provisional` of each.

    Runs without the metric are passed over.
    """
    values = runs[metric].to_numpy(dtype="float64", na_value=math.nan)
    rows = np.flatnonzero(np.isfinite(values))
    points = change_points(values[rows], min_change=min_change)
    settled = [point.at for point in change_points(values[rows][:-SETTLED], min_change=min_change)] if points else []
    return {
        point._replace(at=int(rows[point.at])): (
            int(rows[point.at - 1]), not any(abs(point.at - at) <= _NEAR for at in settled)
        )
        for point in points
    }  # fmt: skip


class Continued(NamedTuple):
    """What a series goes on from: the same workload under another fingerprint, which ended before it began.

    Attributes:
        until: the last run there, a row as from `gpuprof.history.Store.runs`.
        differences: fields of the two fingerprints that differ, as from `gpuprof.analysis.comparison.differences`.
        before: the last level there, of the metric of this series; NaN where it is not known.
        after: the first level here.
    """

    until: pd.Series
    differences: list[str]
    before: float
    after: float


class Series(NamedTuple):
    """The runs of one workload under one fingerprint.

    Attributes:
        runs: as from `gpuprof.history.Store.runs`, the oldest first.
        metric: the column that is followed.
        changes: in it, in what is followed `beside` it, and in the clock.
        continues: what it goes on from, if anything.
    """

    runs: pd.DataFrame
    metric: str
    changes: list[Change]
    continues: Continued | None = None

    @property
    def title(self) -> str:
        """Workload and device."""
        last = self.runs.iloc[-1]
        return f"{last['workload']} on {last['device']}"

    def gap_s(self, change: Change) -> float:
        """Seconds between the runs around a change; NaN where that is as usual, up to twice the series' median."""
        dates = pd.to_datetime(self.runs.loc[self.runs[change.metric].notna(), "date"], utc=True)
        gaps = dates.diff().dt.total_seconds()
        gap = float(gaps.loc[change.point.at])
        return gap if gap > 2 * gaps.median() else math.nan


def series_of(
    runs: pd.DataFrame,
    min_change: float = MIN_CHANGE,
    facts: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Series]:
    """Each series among the runs of a store, that with the newest run last.

    Args:
        runs: as from `gpuprof.history.Store.runs`.
        min_change: smallest change, as a share.
        facts: fingerprints by their hashes, as from `gpuprof.history.Store.fingerprints`, of the workloads whose series
            are to be told what they continue.
    """
    apart = [rows.reset_index(drop=True) for _, rows in runs.groupby("fingerprint", sort=False)]
    apart.sort(key=lambda rows: str(rows["date"].iloc[-1]))
    listed = [
        Series(rows, metric := metric_of(rows), changes(rows, metric, min_change, beside(rows))) for rows in apart
    ]
    return [one._replace(continues=_continued(one, listed, facts or {}, min_change)) for one in listed]


def _continued(
    one: Series, others: list[Series], facts: Mapping[str, Mapping[str, str]], min_change: float
) -> Continued | None:
    """What a series goes on from: of those that had ended the one with the fewest differences, the latest of such.

    One that goes on beside it, on another device say, is none.
    """
    first = one.runs.iloc[0]
    found = []
    for other in others:
        last = other.runs.iloc[-1]
        hashes = last["fingerprint"], first["fingerprint"]
        if last["workload"] == first["workload"] and last["date"] < first["date"] and facts.keys() >= {*hashes}:
            found.append((last, differences(*(facts[name] for name in hashes)), other))
    if not found:
        return None
    last, different, other = min(reversed(found), key=lambda each: len(each[1]))  # the newest are last
    before = _levels(other.runs, one.metric, min_change)[-1]
    return Continued(last, different, before, _levels(one.runs, one.metric, min_change)[0])


def _levels(runs: pd.DataFrame, metric: str, min_change: float) -> list[float]:
    """The levels between the changes of a metric; one that is NaN where no run has it."""
    points = list(_points(runs, metric, min_change))
    return [points[0].before, *(point.after for point in points)] if points else [float(runs[metric].mean())]


def change_points(
    values: Sequence[float] | np.ndarray, max_p: float = MAX_P, min_change: float = MIN_CHANGE, window: int = WINDOW
) -> list[ChangePoint]:
    """Where the level of a series changed.

    Candidates are found window by window, then levels that are most alike are joined until all changes that are left
    are large enough and significant against the levels on both sides.

    Args:
        values: the series, in the order of time, finite.
        max_p: largest p-value of a change.
        min_change: smallest change, as a share.
        window: values that are looked at together.

    Returns:
        The changes in order; none in a series of fewer than twice `LEAST` values.
    """
    series = np.asarray(values, dtype="float64")

    @cache
    def between(start: int, cut: int, end: int) -> ChangePoint:
        left, right = series[start:cut], series[cut:end]
        point = ChangePoint(cut, float(left.mean()), float(right.mean()), 1.0)
        return point if abs(point.change) < min_change else point._replace(p=_chance(left, right))  # a small one goes

    def cuts_in(start: int, end: int) -> set[int]:
        if end - start < 2 * LEAST:
            return set()
        unlike = divergences(series[start:end])
        cut, stop = (start + int(at) for at in np.unravel_index(np.argmax(unlike), unlike.shape))
        if t_test(series[start:cut], series[cut:stop]) > 10 * max_p:
            return set()
        return {cut} | cuts_in(start, cut) | cuts_in(cut, end)

    cuts: set[int] = set()
    start = 0
    while len(series) - start >= 2 * LEAST:
        found = cuts_in(start, min(start + window, len(series)))
        cuts |= found
        start = max([start + window // 2, *found])
    while True:
        edges = [0, *sorted(cuts), len(series)]
        points = [between(*edges[at : at + 3]) for at in range(len(cuts))]
        small = [point for point in points if abs(point.change) < min_change]
        unsure = [point for point in points if point.p > max_p]
        if small:
            cuts.remove(min(small, key=lambda point: abs(point.change)).at)
        elif unsure:
            cuts.remove(max(unsure, key=lambda point: point.p).at)
        else:
            return points


def _chance(left: np.ndarray, right: np.ndarray) -> float:
    """`ChangePoint.p` of two levels."""
    low, high = (left, right) if left.mean() < right.mean() else (right, left)
    middle = (low.mean() + high.mean()) / 2
    if min((low < middle).sum(), (high > middle).sum()) < LEAST:
        return 1.0
    lengths = sorted((len(left), len(right)))
    return min(t_test(left, right) * lengths[1] / lengths[0], 1.0)


def divergences(values: np.ndarray) -> np.ndarray:
    """How unlike the first values are to those that follow, for each place to cut and each place to end.

    Twice the mean distance between the two sides, less the mean distance within each, by n m / (n + m) of their sizes.

    Args:
        values: the series, shape (T,).

    Returns:
        Shape (T + 1, T + 1): at [cut, end] that of ``values[:cut]`` and ``values[cut:end]``; -inf where a side has
        fewer than `LEAST` values.
    """
    size = len(values) + 1
    within = np.zeros((size, size))  # at [a, b] the sum of the distances between the first a and the first b values
    within[1:, 1:] = np.abs(values[:, None] - values[None, :]).cumsum(axis=0).cumsum(axis=1)
    n = np.arange(size)[:, None]
    m = np.arange(size)[None, :] - n
    first, whole = within.diagonal()[:, None], within.diagonal()[None, :]
    across = within - first
    with np.errstate(divide="ignore", invalid="ignore"):
        unlike = 2 * across / (n * m) - first / (n * (n - 1)) - (whole - 2 * within + first) / (m * (m - 1))
        return np.where((n >= LEAST) & (m >= LEAST), n * m / (n + m) * unlike, -np.inf)


def t_test(left: np.ndarray, right: np.ndarray) -> float:
    """Two-sided p-value of Student's t-test for equal means, the variance pooled.

    Args:
        left: values before, at least one.
        right: values after; three or more with those before.
    """
    n, m = len(left), len(right)
    freedom = n + m - 2
    difference = abs(float(left.mean() - right.mean()))
    spread = float(((left - left.mean()) ** 2).sum() + ((right - right.mean()) ** 2).sum())
    if difference == 0:
        return 1.0
    # finite sums for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4
    angle = math.atan2(difference, math.sqrt(spread * (1 / n + 1 / m)))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return max(1.0 - inside, 0.0)
