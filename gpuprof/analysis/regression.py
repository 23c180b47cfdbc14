"""The regression rule: whether launches are slower than a baseline of launches, by more than their noise.

The unit is the launch, a process of its own, with the median of its steps: steps of one process share its mood, and a
test on steps takes that for a change. The rule holds the head's median against that of the whole baseline and that of
its newest half, which a drift has reached as well, and asks for both. Where the clock of the device was read, it does
so in three readings:

* in time, and in cycles: a slower clock makes any code slower. Work that waits for memory does not follow the clock, so
  neither is right alone; the truth lies between them, and what both show is the code's;
* at the clock of the baseline: how far time follows the clock is what it did in the baseline, the slope of the line
  through the logarithms of both. Its standard error, times how far the clock has moved, joins the noise, and so does a
  third of how far it lies outside of the baseline's clocks: one that stood still has told nothing of what it does now.

A regression shows in time and in cycles, or at the clock of the baseline. In each reading, worse by more than
``max(margin, 2 s/m0, 3 e)`` is needed, ``e = s/m0 sqrt(1/N + 1.57/K)``: m0 the median and s the spread of the baseline
(1.4826 times the median absolute deviation, at least 0.3 % of m0), N and K the launches of baseline and head; 1.57/K,
pi/2 over K, is the variance of a median.

Of a baseline of several runs more is known: `gpuprof.analysis.noise`. There the noise has a part between runs, the head
may be the newest of several runs in a row that are worse, and what its own runs did by themselves is no change: the
chance of it has to be below `CHANCE`. scripts/study_regression_rule.py says how often it cries wolf, and what it
misses.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import comb, expm1, nan, sqrt
from typing import Literal, NamedTuple

import numpy as np

from gpuprof import units
from gpuprof.analysis.noise import BETWEEN_RUNS, FEWEST_RUNS, FLOOR, MEDIAN_VARIANCE, Past, Runs, Stretch

MARGIN = 0.02
"""A change below this is not one, whatever the noise."""

FEWEST = 5
"""Launches of a baseline below which there is no verdict."""

TOLD = 20
"""Launches of a baseline, of `BETWEEN_RUNS` runs, from which on its noise says what the margin is, unless one is given.
"""

CHANCE = 0.0075
"""Chance, by what the runs of a baseline did by themselves, below which they do not explain a change."""

ALPHA = 0.01
"""Chance of a false alarm that `rank_test` may have."""

REGRESSION, INCONCLUSIVE, IMPROVEMENT, PASS = "regression", "inconclusive", "improvement", "pass"
DRIFT = "drift"
"""A pass beside the level of the baseline, whose newest runs are worse than those that it began with."""

Better = Literal["higher", "lower"]

_Z = 3.0


class Reading(NamedTuple):
    """Launches in one unit, held against a baseline; an element for each of a batch.

    Attributes:
        m0: median of the baseline.
        s: its spread.
        worse: share by which the head's median is worse than m0, negative where it is better.
        worse_than_newest: the same of the newest half of the baseline.
        threshold: share that is needed for a verdict.
        z: worse in standard errors.
        clock_error: share by which the clock may have moved all this, for it is not known better how far time follows
            it: one standard error; 0 where that does not come in.
        stretch: of the newest runs in a row, by what the runs of the baseline did; None where none is beyond the
            threshold, or nothing is known of runs.
        of_runs: whether anything is.
    """

    m0: np.ndarray
    s: np.ndarray
    worse: np.ndarray
    worse_than_newest: np.ndarray
    threshold: np.ndarray
    z: np.ndarray
    clock_error: np.ndarray
    stretch: Stretch | None = None
    of_runs: bool = False

    def beyond(self, sign: int = 1) -> np.ndarray:
        """Whether the head is worse (better for a sign of -1) by more than the threshold, against both references.

        And by more than the runs of the baseline explain, where it has runs.
        """
        if self.of_runs:
            told = self.stretch is not None and self.stretch.chance < CHANCE
            return np.asarray(told and np.sign(self.worse) == sign)
        return (sign * self.worse > self.threshold) & (sign * self.worse_than_newest > self.threshold)

    def within(self, margin: float) -> np.ndarray:
        """Whether the head is worse by no more than the margin, against both references."""
        return (self.worse <= margin) & (self.worse_than_newest <= margin)


class Held(NamedTuple):
    """What the rule says of each of a batch.

    Attributes:
        status: `REGRESSION`, `INCONCLUSIVE`, `IMPROVEMENT` or `PASS`.
        as_measured: in the unit of the figures.
        per_cycle: per cycle; None where no clock is given.
        at_clock: at the clock of the baseline; likewise.
        margin: share below which a change was none.
        drift: by which share the newest runs are worse than those that the level began with; 0 where it did not drift.
    """

    status: np.ndarray
    as_measured: Reading
    per_cycle: Reading | None = None
    at_clock: Reading | None = None
    margin: float = MARGIN
    drift: float = 0.0


def hold(
    base: np.ndarray,
    head: np.ndarray,
    margin: float | None = MARGIN,
    better: Better = "lower",
    clocks: tuple[np.ndarray, np.ndarray] | None = None,
    runs: Runs | None = None,
) -> Held:
    """The rule on a batch, each element by itself; `judge` is one of them, in words.

    Args:
        base: figures of the baseline's launches, the oldest first, shape (..., N).
        head: those of the head's, shape (..., K).
        margin: share below which a change is none; None for the least that the noise lets be told, of no batch.
        better: which way is better.
        clocks: clocks of the same launches, in the same shapes and any unit.
        runs: whose launches those of the baseline are, of no batch; by default all are of one run.
    """
    level = np.ones(base.shape[-1], bool) if runs is None else runs.level
    if runs is not None and len(np.unique(runs.run[runs.noise])) < FEWEST_RUNS:
        # nothing is known of runs, and their launches are taken for those of one
        base, clocks = base[runs.noise], clocks and (clocks[0][runs.noise], clocks[1])
        level, runs = level[runs.noise], None
    past, read = partial(_past, runs=runs, better=better), partial(_read, level=level, better=better)
    in_time = past(base, head)
    if margin is None:
        margin = float(read(base, head, 0.0, in_time).threshold)
    time = read(base, head, margin, in_time)
    if clocks is None:
        said = [time.beyond(), time.beyond(-1), ~time.within(margin)]
        status = np.select(said, [REGRESSION, IMPROVEMENT, INCONCLUSIVE], PASS)
        return Held(status, time, margin=margin, drift=_drift(in_time, margin, better))
    middle = np.median(clocks[0][..., level], axis=-1, keepdims=True)
    ratios = clocks[0] / middle, clocks[1] / middle

    def at(power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = power[..., None] * (1 if better == "lower" else -1)
        return base * ratios[0] ** power, head * ratios[1] ** power

    follows, error = _follows(base[..., level], ratios[0][..., level], better)
    unclocked = at(np.ones_like(follows))
    in_cycles = past(*unclocked)
    cycles = read(*unclocked, margin, in_cycles)
    clocked = at(follows)
    at_clock = read(*clocked, margin, past(*clocked), clock_error=_clock_error(ratios[0][..., level], ratios[1], error))
    told = at_clock.within(margin) & (_Z * at_clock.clock_error <= margin)
    status = np.select(
        [*(time.beyond(sign) & cycles.beyond(sign) | at_clock.beyond(sign) for sign in (1, -1)),
         ~(time.within(margin) & cycles.within(margin)) & ~told],
        [REGRESSION, IMPROVEMENT, INCONCLUSIVE],
        PASS,
    )  # fmt: skip
    drift = min(_drift(one, margin, better) for one in (in_time, in_cycles))
    return Held(status, time, cycles, at_clock, margin, drift)


def _follows(base: np.ndarray, clocks: np.ndarray, better: Better) -> tuple[np.ndarray, np.ndarray]:
    """By which power of the clock a baseline gets faster: 0 not at all, 1 in step with it; and the standard error.

    A least-squares line through the logarithms. A launch that is far off the others is brought in to three spreads, so
    that one bad launch does not tilt it. The error is infinite where the clock stood still.
    """
    speed = np.log(base) * (-1 if better == "lower" else 1)
    x = np.log(clocks)
    x -= x.mean(axis=-1, keepdims=True)
    y = speed - np.median(speed, axis=-1, keepdims=True)
    reach = 3 * _spread(speed)[..., None]
    squares = (x * x).sum(axis=-1)
    products = (x * np.clip(y, -reach, reach)).sum(axis=-1)
    slope = np.divide(products, squares, where=squares > 0, out=np.zeros_like(squares))
    rest = _spread(speed - slope[..., None] * x)
    return slope, np.divide(rest, np.sqrt(squares), where=squares > 0, out=np.full_like(squares, np.inf))


def _clock_error(base: np.ndarray, head: np.ndarray, error: np.ndarray) -> np.ndarray:
    """What an error of `_follows` makes of the distance of the head's clock from 1, the median of the baseline's.

    A line says little beyond the clocks that it was drawn through: there its slope may be wrong by a whole 1, as by
    three standard errors.
    """
    clock = np.median(head, axis=-1)
    beyond = np.log(np.maximum(np.maximum(clock / base.max(axis=-1), base.min(axis=-1) / clock), 1.0))
    moved = abs(np.log(clock))
    # nothing is known of any other clock where there was one only, and nothing is needed for the same
    return np.multiply(error, moved, where=moved > 0, out=np.zeros_like(moved)) + beyond / _Z


def _spread(values: np.ndarray, middle: float | np.ndarray = 1.0) -> np.ndarray:
    """What the median absolute deviation says of the standard deviation, and at least `FLOOR` of a middle."""
    deviations = abs(values - np.median(values, axis=-1, keepdims=True))
    return np.maximum(1.4826 * np.median(deviations, axis=-1), FLOOR * middle)


def _read(
    base: np.ndarray,
    head: np.ndarray,
    margin: float,
    past: Past | None,
    *,
    level: np.ndarray,
    better: Better,
    clock_error: np.ndarray | None = None,
) -> Reading:
    held = base[..., level]
    n, k = held.shape[-1], head.shape[-1]
    clock_error = np.zeros(base.shape[:-1]) if clock_error is None else clock_error
    sign = 1 if better == "lower" else -1
    m0, newest, middle = (np.median(part, axis=-1) for part in (held, held[..., n // 2 :], head))
    worse, worse_than_newest = (sign * (middle - reference) / reference for reference in (m0, newest))
    if past is None:
        s = _spread(base, m0)
        error = s / m0 * sqrt(1 / n + MEDIAN_VARIANCE / k)
    else:
        s, error = np.asarray(past.noise.spread * m0), np.asarray(past.noise.error(past.size, k))
    error = np.hypot(error, clock_error)
    threshold = np.maximum(np.maximum(margin, 2 * s / m0), _Z * error)
    reading = Reading(m0, s, worse, worse_than_newest, threshold, worse / error, clock_error)
    if past is None:
        return reading
    way = 1 if worse > 0 else -1
    # better than the whole level is enough: its newest half may have got there already
    against = max(past.level, past.newest) if way > 0 else past.level
    stretch = past.stretch(way, margin, float(against), float(clock_error))
    if stretch is not None:
        stretch = stretch._replace(worse=way * _share(way * stretch.worse, better))
    return reading._replace(stretch=stretch, of_runs=True)


def _share(worse: float, better: Better) -> float:
    """By which share a figure is worse, of the logarithm of its cost."""
    return expm1(worse) if better == "lower" else -expm1(-worse)


def _past(base: np.ndarray, head: np.ndarray, runs: Runs | None, better: Better) -> Past | None:
    if runs is None:
        return None
    sign = 1 if better == "lower" else -1
    return Past(sign * np.log(base), sign * np.log(head), runs)


def _drift(past: Past | None, margin: float, better: Better) -> float:
    return 0.0 if past is None else _share(past.drift(margin) or 0.0, better)


@dataclass(frozen=True)
class Verdict:
    """What became of one metric.

    Attributes:
        metric: column of `launches`.
        status: pass, regression, drift, improvement or inconclusive.
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
        margin: share below which a change was none; nan for an exact figure.
        runs: newest runs in a row, the head's among them, that it was told by.
        chance: of such runs, by what those of the baseline did; nan where that is not asked.
        noise: whether it is inconclusive for the noise of the baseline alone: then the head is more of that noise.
        known: launches that say how noisy it is, those of earlier levels with them; 0 for an exact figure.
        known_runs: runs that they are of; likewise.
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
    margin: float = nan
    runs: int = 1
    chance: float = nan
    noise: bool = False
    known: int = 0
    known_runs: int = 0


Clocks = tuple[Sequence[float], Sequence[float]]


def judge(
    metric: str,
    base: Sequence[float],
    head: Sequence[float],
    margin: float | None = MARGIN,
    better: Better = "lower",
    clocks: Clocks | None = None,
    clock: str = "SM clock",
    runs: Runs | None = None,
) -> Verdict:
    """Hold a metric of some launches against that of a baseline; the rule is that of the module.

    Args:
        metric: its name.
        base: a figure above 0 per launch of the baseline, the oldest first. Under `FEWEST` it is inconclusive.
        head: a figure per launch of the head, likewise.
        margin: share below which a change is none; None for the least that this noise lets be told, from `TOLD`
            launches of `BETWEEN_RUNS` runs on.
        better: which way is better.
        clocks: clocks of the launches of both, in any unit; None where they are not known.
        clock: what they are.
        runs: whose launches those of the baseline are; by default all are of one run.
    """
    arrays = None if clocks is None else (np.asarray(clocks[0], float), np.asarray(clocks[1], float))
    launches = len(base) if runs is None else int(runs.noise.sum())
    known_runs = 1 if runs is None else len(np.unique(runs.run[runs.noise]))
    if margin is None and (launches < TOLD or known_runs < BETWEEN_RUNS):
        margin = MARGIN
    held = hold(np.asarray(base, float), np.asarray(head, float), margin, better, arrays, runs)
    status, why = str(held.status), _why(held, arrays, clock)
    time, decided = held.as_measured, _decided(held)
    noise = status == INCONCLUSIVE and not _clock_hides(held)
    if status == PASS and held.drift:
        status, why = DRIFT, _drifted(held, runs, why)
    if launches < FEWEST:
        status, noise = INCONCLUSIVE, False
        why = f"a baseline of {launches}, and no noise is known of fewer than {FEWEST} launches"
    stretch = decided.stretch
    told = stretch is not None and status in (REGRESSION, IMPROVEMENT)
    level = len(base) if runs is None else int(runs.level.sum())
    return Verdict(
        metric, status, _change(float(time.m0), float(np.median(head))),
        stretch.threshold if told and stretch else float(decided.threshold), float(time.m0), float(np.median(head)),
        level, len(head), why, float(time.s), float(decided.z), margin=held.margin,
        runs=stretch.runs if told and stretch else 1, chance=stretch.chance if stretch else nan, noise=noise,
        known=launches, known_runs=known_runs,
    )  # fmt: skip


def _decided(held: Held) -> Reading:
    """The reading that a verdict is told by: time, unless it took the clock of the baseline to tell."""
    sign = -1 if held.status == IMPROVEMENT else 1
    if held.status not in (REGRESSION, IMPROVEMENT) or held.at_clock is None or held.per_cycle is None:
        return held.as_measured
    both = held.as_measured.beyond(sign) & held.per_cycle.beyond(sign)
    return held.as_measured if both else held.at_clock


def _clock_hides(held: Held) -> bool:
    """Whether it is the clock that stands between the head and a verdict."""
    time, cycles = held.as_measured, held.per_cycle
    if cycles is None:
        return False
    hidden = time.within(held.margin) and not cycles.within(held.margin)
    return bool(hidden or (time.beyond() and not cycles.beyond()))


def _why(held: Held, clocks: tuple[np.ndarray, np.ndarray] | None, clock: str) -> str:
    """Why the status is what it is: which reading decided, or stands against the others."""
    time, cycles, at_clock = held.as_measured, held.per_cycle, held.at_clock
    if held.status == PASS:
        if time.within(held.margin) or at_clock is None:
            return ""
        return f"{_most(time)}, but {_most(at_clock)} at the same {clock}"
    if held.status in (REGRESSION, IMPROVEMENT):
        decided = _decided(held)
        where = "" if decided is time else f" at the same {clock}"
        stretch = decided.stretch
        z = stretch.z if stretch is not None and stretch.runs > 1 else abs(float(decided.z))
        return f"{_worse(float(decided.worse))}{where}{_in_a_row(decided)}, z = {z:.1f}"
    if cycles is not None and clocks is not None and _clock_hides(held):
        moved = _change(*(float(np.median(part)) for part in clocks))
        lies = f"{units.percent(abs(moved))} {'lower' if moved < 0 else 'higher'} than"
        if abs(moved) < _SHOWS:  # what differs is the noise of the clock
            lies = "no other than"
        return f"{_most(time)}, but {_most(cycles)} if time goes with the {clock}, which is {lies} the baseline's"
    if time.stretch is not None and time.worse > 0:
        return f"{_worse(float(time.worse))}{_in_a_row(time)}, but {_explained(time.stretch)}"
    if max(time.worse, time.worse_than_newest) > time.threshold:
        whole, newest = _worse(float(time.worse)), _worse(float(time.worse_than_newest))
        return f"{whole} than the whole baseline, {newest} than its newest half: the baseline drifts"
    return (
        f"{_most(time)}, more than the margin, but with this noise only {units.percent(float(time.threshold))} could "
        "be told"
    )


def _in_a_row(reading: Reading) -> str:
    """By how much the newest runs in a row are worse, where more than the head decided."""
    stretch = reading.stretch
    if stretch is None or stretch.runs == 1:
        return ""
    way = 1 if reading.worse > 0 else -1
    other = way > 0 and reading.worse > 1.25 * max(float(reading.worse_than_newest), _SHOWS)
    than = " than the newest half of the baseline" if other else ""
    return f", over {stretch.runs} runs in a row {_worse(way * stretch.worse)}{than}"


def _explained(stretch: Stretch) -> str:
    """What of a baseline explains a head that is beyond its threshold."""
    if stretch.slow:
        return f"the baseline has launches as slow as this, {units.percent(stretch.slow)} of them"
    if stretch.alike and stretch.runs > 1:
        return f"the baseline has {stretch.runs} runs in a row as slow as this"
    known = units.number(stretch.known, "run")
    if stretch.alike:
        return f"the baseline has launches as slow as this, in {stretch.alike} of {known}"
    return f"with {known} before it, none as far out, chance is not ruled out yet: the next run will tell"


def _drifted(held: Held, runs: Runs | None, why: str) -> str:
    """Where a head that passes has drifted to.

    Args:
        held: what the rule says.
        runs: whose launches those of the baseline are.
        why: it passes; empty where it is within the margin.
    """
    begin = f" on {runs.begin}" if runs is not None and runs.begin else ""
    most = _most(held.as_measured)
    near = f"{why}, and" if why else f"{most}, but" if most == _NO_WORSE else f"{most}, within the margin, but"
    return f"{near} the newest runs are {_worse(held.drift)} than where this level began{begin}"


_SHOWS = 0.0005  # a smaller share has no digit in print
_NO_WORSE = "no worse"


def _most(reading: Reading) -> str:
    whole, newest = float(reading.worse), float(reading.worse_than_newest)
    # where it would not fit the figures beside it
    other = " than the newest half of the baseline" if newest > 1.25 * max(whole, _SHOWS) else ""
    return _worse(max(whole, newest)) + other


def _worse(share: float) -> str:
    if abs(share) < _SHOWS:
        return _NO_WORSE
    return f"{units.percent(abs(share))} {'worse' if share > 0 else 'better'}"


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
        why = f"{_worse(worse)} by the median of the pairs, p = {p:.4f}"
    elif worse > margin:
        status = INCONCLUSIVE
        why = (
            f"{_worse(worse)} by the median of the pairs, but such ranks come by chance with p = {p:.4f}; "
            f"below {ALPHA:g} is needed"
        )
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
    low, high = statistics.median_low(head), statistics.median_high(head)
    most, least, value = max(base), min(base), low if low == high else (low + high) / 2  # integers stay what they are
    status, why = PASS, ""
    if value > most + tolerance:
        status, why = REGRESSION, f"{units.percent(_change(most, value))} more" if most else "there was none"
    elif value < least - tolerance:
        status, why = IMPROVEMENT, f"{units.percent(-_change(least, value))} less"
    threshold = tolerance / most if most else 0.0
    return Verdict(metric, status, _change(most, value), threshold, most, value, len(base), len(head), why)


def _change(before: float, after: float) -> float:
    return after / before - 1 if before else nan
