"""One metric of some launches judged against that of a baseline, with the reason in words.

`judge` asks the rule of `gpuprof.analysis.regression`, `judge_interleaved` a rank test where launches took turns, and
`judge_exact` is for figures without noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan

from gpuprof import units
from gpuprof.analysis.noise import BETWEEN_RUNS, Runs, Stretch
from gpuprof.analysis.regression import (
    DRIFT,
    FEWEST,
    IMPROVEMENT,
    INCONCLUSIVE,
    MARGIN,
    PASS,
    REGRESSION,
    TOLD,
    Better,
    Held,
    Reading,
    hold,
)
from gpuprof.late import np

ALPHA = 0.01
"""Chance of a false alarm that `rank_test` may have."""


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
