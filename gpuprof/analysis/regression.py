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

from functools import partial
from math import expm1, sqrt
from typing import Literal, NamedTuple

from gpuprof.analysis.noise import FEWEST_RUNS, FLOOR, MEDIAN_VARIANCE, Past, Runs, Stretch
from gpuprof.late import np

MARGIN = 0.02
"""A change below this is not one, whatever the noise."""

FEWEST = 5
"""Launches of a baseline below which there is no verdict."""

TOLD = 20
"""Launches of a baseline, of `BETWEEN_RUNS` runs, from which on its noise says what the margin is, unless one is given.
"""

CHANCE = 0.0075
"""Chance, by what the runs of a baseline did by themselves, below which they do not explain a change."""


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
    """The rule on a batch, each element by itself; `gpuprof.analysis.judge.judge` is one of them, in words.

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
