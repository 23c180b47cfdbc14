"""What the earlier runs of a workload say of its noise: how far a run strays by itself, and how often.

The launches of a run share its hour, so the noise has two parts: between the launches of a run, and between runs. Both
are read from differences, of launches of one run and of runs in a row, which no slow drift touches. Tails and modes
have no place in a standard deviation; for those the runs themselves are asked: how often did as many runs in a row come
out as slow as these? scripts/study_regression_rule.py and scripts/study_histories.py say what comes of it.

Everything here is in logarithms of a cost: larger is worse, and a difference is a share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import comb, hypot, sqrt
from statistics import median
from typing import NamedTuple

from gpuprof.late import np

FLOOR = 0.003
"""Least spread that is believed of any machine, as a share."""

WINDOW = 60
"""Runs that are looked back at, the newest."""

FEWEST_RUNS = 3
"""Runs below which nothing is known of how one differs from another."""

BETWEEN_RUNS = 5
"""Runs below which the noise between them is not known: it is taken for none."""

MEDIAN_VARIANCE = 1.57
"""That of a median, relative to that of a mean: pi/2."""

_IN_A_ROW = 6  # runs that are looked at together
_ALIKE = 1.5  # standard errors by which a run may be faster and still be as slow
_BEYOND = 2  # a run that was more than so many times as slow tells nothing of this one
_UNSEEN = 0.3  # of a run: what is reckoned with of what was not seen yet
_TAIL = 3  # how often what is further out than anything known comes falls with this power of the distance
_APART = 2.2  # spreads of both that two modes are apart
_FEWEST = 8  # launches below which there are no modes
_SHARE, _MODE_LAUNCHES = 0.08, 3  # the least part of a mode
_FEWEST_PAIRS = 10
_FASTER = 2.5  # standard errors by which a stretch is too fast for a mode
_PURE = 0.9  # share of runs that are all in one mode, where runs have modes and not launches


Figure = Callable[[np.ndarray], float]
"""What a run is taken by: the median of its launches, or the fastest of them."""


class Runs(NamedTuple):
    """Which of a baseline's launches are whose; arrays with an element per launch, the oldest first.

    Attributes:
        run: number of its run, rising.
        level: whether it says what the level is.
        noise: whether it says what the noise is; those before the level are scaled to it.
        since: whether it was measured since the level began, held to it or not.
        began: whether it is of the first runs of the level.
        begin: when that was, as people write it; empty where it is not known.
    """

    run: np.ndarray
    level: np.ndarray
    noise: np.ndarray
    since: np.ndarray
    began: np.ndarray
    begin: str = ""


class Modes(NamedTuple):
    """Two groups that launches fall into, or one.

    Attributes:
        at: where each is, the lower first.
        share: of the launches.
        of: which of them each launch is in.
    """

    at: np.ndarray
    share: np.ndarray
    of: np.ndarray


class Noise(NamedTuple):
    """How launches differ without a change.

    Attributes:
        spread: standard deviation of a launch.
        within: of it, between launches of one run.
        between: of it, between runs.
    """

    spread: float
    within: float
    between: float

    def of_run(self, launches: int) -> float:
        """Standard deviation of the median of a run."""
        return sqrt(self.between**2 + MEDIAN_VARIANCE * self.within**2 / launches)

    def error(self, level: tuple[int, int], launches: int, runs: int = 1) -> float:
        """Standard error of the difference between runs and a level, (its runs, its launches)."""
        own = self.of_run(launches) ** 2 / runs
        return sqrt(own + self.between**2 / level[0] + self.within**2 / level[1])


def modes(values: np.ndarray) -> Modes:
    """The two modes of some launches, if they have two: the cut with the least squares, and wide apart.

    Args:
        values: of launches, shape (N,).
    """
    ranked, n = np.sort(values), len(values)
    one = Modes(np.array([np.median(values)]), np.ones(1), np.zeros(n, int))
    least = max(_MODE_LAUNCHES, int(np.ceil(_SHARE * n)))
    if n < max(_FEWEST, 2 * least):
        return one
    cuts = np.arange(least, n - least + 1)
    sums = np.concatenate([[0.0], ranked.cumsum()])
    # the squares of both sides are least where those of the means, by their sizes, are largest
    cut = int(cuts[np.argmax(sums[cuts] ** 2 / cuts + (sums[-1] - sums[cuts]) ** 2 / (n - cuts))])
    low, high = ranked[:cut], ranked[cut:]
    at = np.array([np.median(low), np.median(high)])
    if at[1] - at[0] < _APART * (_robust(low) + _robust(high)):
        return one
    of = _nearest(values, at)
    counts = np.bincount(of, minlength=2)
    return Modes(at, counts / n, of) if counts.min() >= least else one


def noise_of(runs: list[np.ndarray], found: Modes) -> Noise:
    """The noise of runs, each the residuals of its launches, without what their modes make.

    Standard deviations from medians of absolute differences: of launches of one run, and of the medians of runs in a
    row. Where there are few of these, from the median absolute deviation of all launches.
    """
    rest = [run - found.at[_nearest(run, found.at)] for run in runs] if len(found.at) > 1 else runs
    medians = np.array([_median(run) for run in rest])
    pairs = np.concatenate([abs(np.subtract(*run[_pairs(len(run))])) for run in rest])
    enough = len(rest) >= BETWEEN_RUNS
    in_a_row = _of_differences(abs(np.diff(medians))) if enough else 0.0
    if len(pairs) < _FEWEST_PAIRS:
        spread = max(in_a_row, FLOOR) if enough else _robust(np.concatenate(rest))
        return Noise(spread, spread, 0.0)
    within = max(_of_differences(pairs), FLOOR)
    launches = sum(map(len, rest)) / len(rest)
    between = sqrt(max(in_a_row**2 - MEDIAN_VARIANCE * within**2 / launches, 0.0))
    return Noise(sqrt(within**2 + between**2), within, between)


class Stretch(NamedTuple):
    """The newest runs in a row that say most of a change.

    Attributes:
        runs: how many.
        worse: by how much, the lower median of theirs.
        threshold: how much is needed.
        z: worse in standard errors.
        chance: of such a stretch, by what the baseline's own runs did.
        alike: runs of the baseline that were as slow as this stretch.
        known: runs of the baseline that could have been.
        slow: share of the baseline's launches that are as slow, where the chance is by them; else 0.
    """

    runs: int
    worse: float
    threshold: float
    z: float
    chance: float
    alike: int
    known: int
    slow: float


class Past:
    """The launches of a baseline and of a head in one unit, in logarithms of their cost.

    Args:
        values: of the baseline's launches, shape (N,).
        head: of the head's, shape (K,).
        runs: whose the baseline's are; some of them level and some noise.
    """

    def __init__(self, values: np.ndarray, head: np.ndarray, runs: Runs) -> None:
        self.head = head
        reference = values[runs.level]
        self.level = float(np.median(reference))
        self.size = (len(np.unique(runs.run[runs.level])), len(reference))
        self.known = _by_run(values - self.level, runs.run, runs.noise)
        self.reference = _by_run(values - self.level, runs.run, runs.level)
        self.first = _by_run(values - self.level, runs.run, runs.began)
        self.grew = bool((runs.level & ~runs.began).any())
        self.since = _by_run(values - self.level, runs.run, runs.since)
        self.kept = [bool(run.any()) for run in _by_run(runs.noise, runs.run, runs.since)]
        self.modes = modes(np.concatenate(self.known))
        self.noise = noise_of(self.known, self.modes)
        pure = [len(set(_nearest(run, self.modes.at).tolist())) == 1 for run in self.known]
        # whole runs, rather than launch by launch
        self.whole_modes = len(self.modes.at) > 1 and sum(pure) >= _PURE * len(pure)

    @property
    def newest(self) -> float:
        """Where the newest half of the level is.

        Where whole runs are in modes, by how far it left them: which mode it was in more often is chance.
        """
        launches = np.concatenate(self.reference)
        if self.whole_modes:
            launches = launches - self._mode(launches)
            launches -= np.median(launches)
        return self.level + float(np.median(launches[len(launches) // 2 :]))

    def stretch(self, sign: int, margin: float, level: float, blur: float = 0.0) -> Stretch | None:
        """The stretch of newest runs with the least chance that is beyond its threshold; None where none is.

        The fastest launch of each run is looked at as well: chance hardly ever leaves all launches of a run in a slow
        mode, or each with its own mishap. Of slower runs it says nothing where whole runs are in modes.

        Args:
            sign: 1 for worse, -1 for better.
            margin: share below which a change is none.
            level: what they are held against.
            blur: a standard error of the head that is not of this noise.
        """
        found = self._stretch(sign, margin, level - self.level, _median, blur)
        if found is None or len(self.head) < 3 or (sign > 0 and self.whole_modes):
            return found
        middle = float(np.median([run.min() for run in self.reference]))
        fastest = self._stretch(sign, margin, middle, np.min, blur)
        return found if fastest is None or fastest.chance > found.chance else found._replace(chance=fastest.chance)

    def drift(self, margin: float) -> float | None:
        """By how much the newest runs of the level are worse than its first, if by more than the margin and the noise.

        None where it is not by that much, and where the level has no runs after its first.

        Args:
            margin: share below which a change is none.
        """
        first = self.first
        if not first or not self.grew:
            return None
        newest = [*self.reference, self.head - self.level][-max(len(first), FEWEST_RUNS) :]
        old, new = np.concatenate(first), np.concatenate(newest)
        worse = float(np.median(new) - np.median(old))
        error = sqrt(
            self.noise.between**2 * (1 / len(first) + 1 / len(newest))
            + MEDIAN_VARIANCE * self.noise.within**2 * (1 / len(old) + 1 / len(new))
        )
        tonight = float(np.median(self.head) - self.level - np.median(old))
        return worse if min(worse, tonight) > max(margin, 3 * error) else None

    def _stretch(self, sign: int, margin: float, level: float, figure: Figure, blur: float) -> Stretch | None:
        newest = [*self.since, self.head - self.level]
        moved = np.array([sign * (figure(run) - level) for run in newest])
        # an episode is no excuse of itself
        episode = 0
        while episode < len(self.since) and moved[-2 - episode] > margin:
            episode += 1
        known = self.known[: len(self.known) - sum(self.kept[len(self.kept) - episode :])]
        if moved[-1] <= margin / 2:
            return None
        best: Stretch | None = None
        for count in range(1, min(episode + 1, _IN_A_ROW) + 1):
            error = hypot(self.noise.error(self.size, len(self.head), count), blur)
            worse = _lower_median(moved[-count:])
            threshold = max(margin, 2 * self.noise.spread / sqrt(count), 3 * error)
            if worse <= threshold:
                continue
            runs = self._of_this_mode(known, sign, newest[-count:])
            before = np.array([sign * (figure(run) - level) for run in runs])
            chance, alike = self._chance(before, worse, count, 3 * error)
            once, _ = self._chance(before, worse, 1, 3 * error)
            by_runs = max(chance, once**count)
            slow = self._slow(runs, sign, worse)
            by_launches = self._by_launches(slow, figure) ** count
            if best is None or max(by_runs, by_launches) < best.chance:
                best = Stretch(
                    count, worse, threshold, worse / error, max(by_runs, by_launches), alike, len(known),
                    slow if by_launches > by_runs else 0.0,
                )  # fmt: skip
        return best

    def _chance(self, before: np.ndarray, worse: float, count: int, told: float) -> tuple[float, int]:
        """How often as many runs in a row come out as slow, and how many stretches did."""
        near = _ALIKE * self.noise.of_run(len(self.head)) / sqrt(count)
        windows = np.array([_lower_median(before[at : at + count]) for at in range(len(before) - count + 1)])
        windows = windows[windows <= _BEYOND * worse + near]
        alike = int((windows >= worse - near).sum())
        chance = (alike + _UNSEEN) / (len(before) / count + 1)
        if not alike:
            chance *= (max(windows.max(initial=0.0), told) / worse) ** _TAIL
        return chance, alike

    def _slow(self, runs: list[np.ndarray], sign: int, worse: float) -> float:
        """Share of the launches of runs that are as slow.

        From their median on, where the fastest of runs are held against one another as well: it asks for modes and
        mishaps, which are as far from it as from the fastest; what the noise does is asked of the runs.
        """
        if not runs:
            return 0.0
        return float((sign * np.concatenate(runs) >= worse - _ALIKE * self.noise.within).mean())

    def _by_launches(self, slow: float, figure: Figure) -> float:
        """How often a run comes out as slow if its launches are any of those of the baseline."""
        size = len(self.head)
        needed = size if figure is np.min else size // 2 + 1
        return sum(comb(size, many) * slow**many * (1 - slow) ** (size - many) for many in range(needed, size + 1))

    def _of_this_mode(self, runs: list[np.ndarray], sign: int, newest: list[np.ndarray]) -> list[np.ndarray]:
        """Without the runs of the slower mode, if the newest are too fast for it: they do not explain them.

        By the means of the newest runs, each launch from the mode that is next to it: a run whose launches are in both
        modes is no faster than these.
        """
        if not self.whole_modes:
            return runs
        place = np.median([sign * float((run - self._mode(run)).mean()) for run in newest])
        error = sqrt((self.noise.between**2 + self.noise.within**2 / len(self.head)) / len(newest))
        if place > -_FASTER * error:
            return runs
        slower = max(sign * self.modes.at)
        return [run for run in runs if sign * self._mode(run)[0] < slower]

    def _mode(self, launches: np.ndarray) -> np.ndarray:
        """The place of the mode that is next to each launch."""
        return self.modes.at[_nearest(launches, self.modes.at)]


def _by_run(values: np.ndarray, run: np.ndarray, which: np.ndarray) -> list[np.ndarray]:
    values, run = values[which], run[which]
    return np.split(values, np.flatnonzero(np.diff(run)) + 1) if len(run) else []


@cache
def _pairs(launches: int) -> np.ndarray:
    return np.array(np.triu_indices(launches, 1))


def _nearest(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    return abs(values[:, None] - at).argmin(axis=1)


def _median(values: np.ndarray) -> float:
    return float(median(values.tolist()))  # of a handful ten times as fast as numpy's


def _lower_median(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def _of_differences(differences: np.ndarray) -> float:
    """The standard deviation of normal figures whose absolute differences these are: their median is 0.954 of it."""
    return float(np.median(differences)) / 0.9539


def _robust(values: np.ndarray) -> float:
    """The standard deviation by the median absolute deviation, and at least `FLOOR`."""
    return max(1.4826 * float(np.median(abs(values - np.median(values)))), FLOOR)
