"""The regression rule: whether launches are slower than a baseline of launches, by more than their noise.

The unit is the launch, a process of its own, with the median of its steps: steps of one process share its mood, and a
test on steps takes that for a change. The rule holds the head's median against the baseline in up to four readings,
and calls a regression only what all of them show:

* against the median of the whole baseline, and against that of its newest half, which a drift has reached as well;
* in time, and, where the SM clock was read, in SM cycles: a slower clock makes any code slower. Work that waits for
  memory does not follow that clock, so neither reading alone is right; the truth lies between them.

In each, worse by more than ``max(margin, 2 s/m0, 3 s/m0 sqrt(1/N + 1.57/K))`` is needed: m0 the median and s the
spread of the baseline (1.4826 times the median absolute deviation, at least 0.3 % of m0), N and K the launches of
baseline and head; 1.57/K, pi/2 over K, is the variance of a median. scripts/study_regression_rule.py says how often it
cries wolf, and what it misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan, sqrt
from typing import Literal, NamedTuple

import numpy as np

from gpuprof import units

MARGIN = 0.02
"""A change below this is not one, whatever the noise."""

FEWEST = 5
"""Launches of a baseline below which there is no verdict."""

ALPHA = 0.01
"""Chance of a false alarm that `rank_test` may have."""

REGRESSION, INCONCLUSIVE, IMPROVEMENT, PASS = "regression", "inconclusive", "improvement", "pass"
Better = Literal["higher", "lower"]

_Z = 3.0
_FLOOR = 0.003
_MEDIAN_VARIANCE = 1.57


class Reading(NamedTuple):
    """Launches in one unit, held against a baseline; an element for each of a batch.

    Attributes:
        m0: median of the baseline.
        s: its spread.
        worse: share by which the head's median is worse than m0, negative where it is better.
        worse_than_newest: the same of the newest half of the baseline.
        threshold: share that is needed for a verdict.
        z: worse in standard errors.
    """

    m0: np.ndarray
    s: np.ndarray
    worse: np.ndarray
    worse_than_newest: np.ndarray
    threshold: np.ndarray
    z: np.ndarray


class Held(NamedTuple):
    """What the rule says of each of a batch.

    Attributes:
        status: `REGRESSION`, `INCONCLUSIVE`, `IMPROVEMENT` or `PASS`.
        as_measured: in the unit of the figures.
        per_cycle: per SM cycle; None where no clock is given.
    """

    status: np.ndarray
    as_measured: Reading
    per_cycle: Reading | None


def hold(
    base: np.ndarray,
    head: np.ndarray,
    margin: float = MARGIN,
    better: Better = "lower",
    clocks: tuple[np.ndarray, np.ndarray] | None = None,
) -> Held:
    """The rule on a batch, each element by itself; `judge` is one of them, in words.

    Args:
        base: figures of the baseline's launches, the oldest first, shape (..., N).
        head: those of the head's, shape (..., K).
        margin: share below which a change is none.
        better: which way is better.
        clocks: median SM clocks of the same launches, in the same shapes and any unit.
    """
    readings = [_read(base, head, margin, better)]
    if clocks is not None:
        cycles = np.multiply if better == "lower" else np.divide
        readings.append(_read(cycles(base, clocks[0]), cycles(head, clocks[1]), margin, better))
    worse = np.stack([share for reading in readings for share in (reading.worse, reading.worse_than_newest)])
    threshold = np.stack([reading.threshold for reading in readings for _ in range(2)])
    status = np.select(
        [(worse > threshold).all(0), (worse < -threshold).all(0), (worse > margin).any(0)],
        [REGRESSION, IMPROVEMENT, INCONCLUSIVE],
        PASS,
    )
    return Held(status, readings[0], readings[1] if clocks is not None else None)


def _read(base: np.ndarray, head: np.ndarray, margin: float, better: Better) -> Reading:
    n, k = base.shape[-1], head.shape[-1]
    sign = 1 if better == "lower" else -1
    m0, newest, middle = (np.median(part, axis=-1) for part in (base, base[..., n // 2 :], head))
    s = np.maximum(1.4826 * np.median(abs(base - m0[..., None]), axis=-1), _FLOOR * m0)
    error = s / m0 * sqrt(1 / n + _MEDIAN_VARIANCE / k)
    threshold = np.maximum(np.maximum(margin, 2 * s / m0), _Z * error)
    worse, worse_than_newest = (sign * (middle - reference) / reference for reference in (m0, newest))
    return Reading(m0, s, worse, worse_than_newest, threshold, worse / error)


@dataclass(frozen=True)
class Verdict:
    """What became of one metric.

    Attributes:
        metric: column of `launches`.
        status: pass, regression, improvement or inconclusive.
        change: of the head against the baseline, as a share; nan where the baseline is 0.
        threshold: share by which worse is a regression.
        m0: the baseline: its median, of an exact figure its largest.
        value: the head's median.
        n: launches of the baseline.
        k: launches of the head.
        why: the reason, a sentence without its full stop; empty for a plain pass.
        s: spread of the baseline, in the unit of the metric; nan for an exact figure.
        z: worse in standard errors; nan likewise.
        p: chance of such ranks without a change, of the interleaved test; nan elsewhere.
    """

    metric: str
    status: str
    change: float
    threshold: float
    m0: float
    value: float
    n: int
    k: int
    why: str = ""
    s: float = nan
    z: float = nan
    p: float = nan


Clocks = tuple[Sequence[float], Sequence[float]]


def judge(
    metric: str,
    base: Sequence[float],
    head: Sequence[float],
    margin: float = MARGIN,
    better: Better = "lower",
    clocks: Clocks | None = None,
) -> Verdict:
    """Hold a metric of some launches against that of a baseline; the rule is that of the module.

    Args:
        metric: its name.
        base: a figure per launch of the baseline, the oldest first. Under `FEWEST` the verdict is inconclusive.
        head: a figure per launch of the head.
        margin: share below which a change is none.
        better: which way is better.
        clocks: median SM clocks of the launches of both, in any unit; None where they are not known.
    """
    arrays = None if clocks is None else (np.asarray(clocks[0], float), np.asarray(clocks[1], float))
    held = hold(np.asarray(base, float), np.asarray(head, float), margin, better, arrays)
    time = held.as_measured
    status, why = str(held.status), _why(held, margin, arrays)
    if len(base) < FEWEST:
        status, why = INCONCLUSIVE, f"a baseline of {len(base)}, and no noise is known of fewer than {FEWEST} launches"
    return Verdict(
        metric, status, _change(float(time.m0), float(np.median(head))), float(time.threshold), float(time.m0),
        float(np.median(head)), len(base), len(head), why, float(time.s), float(time.z),
    )  # fmt: skip


def _why(held: Held, margin: float, clocks: tuple[np.ndarray, np.ndarray] | None) -> str:
    """Why the status is what it is: which reading stands against the others."""
    time, cycles = held.as_measured, held.per_cycle
    if held.status == PASS:
        return ""
    if held.status in (REGRESSION, IMPROVEMENT):
        word = "worse" if held.status == REGRESSION else "better"
        return f"{units.percent(abs(float(time.worse)))} {word}, z = {abs(float(time.z)):.1f}"
    if cycles is not None and clocks is not None:
        moved = _change(float(np.median(clocks[0])), float(np.median(clocks[1])))
        clock = f"the SM clock is {units.percent(abs(moved))} {'lower' if moved < 0 else 'higher'} than the baseline's"
        if time.worse > time.threshold and not cycles.worse > cycles.threshold:
            return f"{units.percent(float(time.worse))} worse, but {clock}, which may be all of it"
        if cycles.worse > margin and not time.worse > margin:
            return f"{clock}, and may hide that work takes {units.percent(float(cycles.worse))} more of its cycles"
    if max(time.worse, time.worse_than_newest) > time.threshold:
        return (
            f"{units.percent(float(time.worse))} worse than the whole baseline, "
            f"{units.percent(float(time.worse_than_newest))} worse than its newest half: the baseline drifts"
        )
    return (
        f"{units.percent(float(max(time.worse, time.worse_than_newest)))} worse, more than the margin, but with this "
        f"noise only {units.percent(float(time.threshold))} could be told"
    )


def rank_test(base: Sequence[float], head: Sequence[float]) -> float:
    """Chance that the head ranks as high as it does, or higher, if nothing changed: the exact one-sided test.

    Wilcoxon's rank sum over every way to deal the figures into groups of these sizes; equal ones have the mean of
    their ranks. The least it can be is 1 / C(n + k, k): 1/252 for five against five.
    """
    figures = np.concatenate([np.asarray(base, float), np.asarray(head, float)])
    # twice the mean rank is whole: as many as are below, once more, and once for each that is equal
    ranks = [int(2 * (figures < figure).sum() + (figures == figure).sum()) for figure in figures]
    reached = sum(ranks[len(base) :])
    ways: dict[tuple[int, int], int] = {(0, 0): 1}  # by how many were dealt to the head, and their sum
    for rank in ranks:
        taken = {(number + 1, total + rank): count for (number, total), count in ways.items()}
        ways = {key: ways.get(key, 0) + taken.get(key, 0) for key in ways | taken}
    high = sum(count for (number, total), count in ways.items() if number == len(head) and total >= reached)
    return high / comb(len(figures), len(head))


def judge_interleaved(
    metric: str, base: Sequence[float], head: Sequence[float], margin: float = MARGIN, better: Better = "lower"
) -> Verdict:
    """Hold launches against their neighbours, as they took turns: beyond the margin and by `rank_test`.

    The change is the median of those of the pairs, which neither a drift nor a step in the middle makes. No clock is
    asked for: what drifts reaches both alike, and a clock that is lower under the head is its own doing.

    Args:
        metric: its name.
        base: a figure per launch.
        head: as many, each of the launch beside.
        margin: share below which a change is none.
        better: which way is better.
    """
    change = float(np.median(np.asarray(head, float) / np.asarray(base, float))) - 1
    low, high = (base, head) if better == "lower" else (head, base)
    worse = change if better == "lower" else -change
    p = rank_test(low, high) if worse > 0 else rank_test(high, low)
    status, why = PASS, ""
    if abs(worse) > margin and p < ALPHA:
        status = REGRESSION if worse > 0 else IMPROVEMENT
        why = f"{units.percent(abs(worse))} {'worse' if worse > 0 else 'better'}, p = {p:.4f}"
    elif worse > margin:
        status = INCONCLUSIVE
        why = f"{units.percent(worse)} worse, but such ranks come by chance with p = {p:.4f}; below {ALPHA:g} is needed"
    m0, value = float(np.median(base)), float(np.median(head))
    return Verdict(metric, status, change, margin, m0, value, len(base), len(head), why, p=p)


def judge_exact(metric: str, base: Sequence[float], head: Sequence[float], tolerance: float = 0.0) -> Verdict:
    """Hold a figure without noise to speak of against the baseline, more being worse.

    Args:
        metric: its name.
        base: a figure per launch of the baseline.
        head: a figure per launch of the head, whose median counts.
        tolerance: by how much it may be above the baseline's largest.
    """
    most, least, value = max(base), min(base), float(np.median(head))
    status, why = PASS, ""
    if value > most + tolerance:
        status, why = REGRESSION, f"{units.percent(_change(most, value))} more" if most else "there was none"
    elif value < least - tolerance:
        status, why = IMPROVEMENT, f"{units.percent(-_change(least, value))} less"
    threshold = tolerance / most if most else 0.0
    return Verdict(metric, status, _change(most, value), threshold, most, value, len(base), len(head), why)


def _change(before: float, after: float) -> float:
    return after / before - 1 if before else nan
