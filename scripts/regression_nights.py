"""The regression rule night by night: made-up histories of every kind of noise, from the first night on.

A night is a run of a few launches. Each is held against the nights before it as a store would
(`gpuprof.analysis.levels`, `gpuprof.analysis.judge.judge`), and nobody accepts anything. Counted are the alarms
where nothing changed, an alarm being a regression after a night that was none, and the steps of 3 % on the 41st night
that are called on it or the next. Part of scripts/study_regression_rule.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from gpuprof.analysis.judge import judge
from gpuprof.analysis.levels import standing, to_newest, window
from gpuprof.analysis.noise import Runs
from gpuprof.analysis.regression import DRIFT, FEWEST, IMPROVEMENT, INCONCLUSIVE, PASS, REGRESSION

STILL, BEFORE, STEP = 216, 40, 0.03
LAUNCH_SD, QUIET_SD = 0.006, 0.0006  # of docs/check.md's simulations, and of real training on 8 H100
LAUNCHES = (1, 3, 5)
MARGINS = {"2 %": 0.02, "auto": None}

Nights = np.ndarray
"""Step times, shape (nights, launches)."""

Noise = Callable[[np.random.Generator, int, int], Nights]


def steady(rng: np.random.Generator, nights: int, launches: int, sd: float = LAUNCH_SD) -> Nights:
    return 1 + rng.normal(0, sd, (nights, launches))


def lucky(rng: np.random.Generator, nights: int, launches: int) -> Nights:
    times = steady(rng, nights, launches)
    times[5] *= 0.96
    return times


def launch_modes(rng: np.random.Generator, nights: int, launches: int) -> Nights:
    return steady(rng, nights, launches) * (1 + 0.04 * (rng.random((nights, launches)) < 0.35))


def night_modes(rng: np.random.Generator, nights: int, launches: int) -> Nights:
    return steady(rng, nights, launches) * (1 + 0.04 * (rng.random((nights, 1)) < 0.30))


def tails(rng: np.random.Generator, nights: int, launches: int) -> Nights:
    return 1 + 0.0104 * rng.standard_t(3, (nights, launches))


def bad_launches(rng: np.random.Generator, nights: int, launches: int) -> Nights:
    slow = (rng.random((nights, launches)) < 0.10) * rng.uniform(0.03, 0.08, (nights, launches))
    return steady(rng, nights, launches) * (1 + slow)


def shared(rng: np.random.Generator, nights: int, launches: int) -> Nights:
    return steady(rng, nights, launches) * (1 + rng.normal(0, 0.006, (nights, 1)))


def comes_and_goes(rng: np.random.Generator, nights: int, launches: int, enters: float, stays: float) -> Nights:
    slow = np.zeros((nights, 1))
    for night in range(1, nights):
        slow[night] = rng.random() < (stays if slow[night - 1] else enters)
    return steady(rng, nights, launches) * (1 + 0.04 * slow)


NOISES: dict[str, tuple[str, Noise]] = {
    "quiet": ("0.06 % between launches", partial(steady, sd=QUIET_SD)),
    "nominal": ("0.6 % between launches", steady),
    "lucky": ("and one night of the six first 4 % faster", lucky),
    "launch-modes": ("and each launch 4 % slower by chance 0.35", launch_modes),
    "night-modes": ("and each night 4 % slower by chance 0.3", night_modes),
    "comes-and-goes": (
        "and a mode 4 % slower that comes one night in 20 and stays for 2.5",
        partial(comes_and_goes, enters=0.05, stays=0.6),
    ),
    "comes-and-stays": (
        "and one that comes and goes every 12 nights", partial(comes_and_goes, enters=1 / 12, stays=11 / 12),
    ),
    "shared": ("and the launches of a night share another 0.6 %", shared),
    "student": ("Student's t, 3 degrees, same scale: 1.04 %", tails),
    "bad-launches": ("and 10 % of launches 3 to 8 % slower", bad_launches),
}  # fmt: skip
"""What launches differ by; every one but the first and Student's t has the second in it."""


CREEPS = {
    "+0.4 % a night for 40 nights": (0.004, 1, 40),
    "+0.4 % a night, 0.06 % between launches": (0.004, 1, 40),
    "+1.9 % a week for six weeks": (0.019, 7, 42),
}
"""By which share a history gets slower, every so many nights, for so many, after 20 still ones."""


def creep(name: str, rng: np.random.Generator, launches: int) -> Nights:
    share, every, lasts = CREEPS[name]
    steps = np.ceil(np.maximum(np.arange(20 + lasts) - 19, 0) / every)
    return steady(rng, 20 + lasts, launches, QUIET_SD if "0.06" in name else LAUNCH_SD) * (1 + share) ** steps[:, None]


def replay(times: Nights, margin: float | None) -> list[str]:
    """The verdict on each night, each held against those before it and kept as a store keeps it."""
    count, launches = times.shape
    known = pd.DataFrame({"step_s": times.ravel(), "run": np.repeat(np.arange(count), launches)})
    said, accepted = ["none"], [True]
    for night in range(1, count):
        runs = standing(pd.DataFrame({"verdict": said, "accepted": accepted, "decided": False}))
        chosen = window(runs, pd.Series(launches, index=runs.index))
        rows = (chosen.index.to_numpy()[:, None] * launches + np.arange(launches)).ravel()
        flags = {name: np.repeat(chosen[name].to_numpy(), launches) for name in ("level", "held", "noise", "began")}
        base = to_newest(known.iloc[rows].assign(**flags), ["step_s"])
        run, level, held, noise, began = (base[name].to_numpy() for name in ("run", *flags))
        since = level == level.max()
        whose = Runs(run, held & since, noise, since, began)
        verdict = judge("step_s", base["step_s"].to_numpy(), times[night], margin, runs=whose)
        said.append(verdict.status)
        more_noise = verdict.status == INCONCLUSIVE and (verdict.noise or len(base) < FEWEST)
        accepted.append(verdict.status in (PASS, IMPROVEMENT) or more_noise)
    return said


def measure(job: tuple[str, int, str, int, int]) -> dict[str, Any]:
    """One noise, with so many launches a night, under one margin."""
    name, launches, margin, trials, seed = job
    noise = NOISES[name][1]
    counts = dict.fromkeys(("alarms", "onsets", DRIFT, INCONCLUSIVE, IMPROVEMENT, "called"), 0)
    for trial in range(trials):
        rng = np.random.default_rng([seed, list(NOISES).index(name), launches, trial])
        said = replay(noise(rng, STILL, launches), MARGINS[margin])
        counts["alarms"] += said.count(REGRESSION)
        counts["onsets"] += sum(now == REGRESSION != before for before, now in pairwise(said))
        for status in (DRIFT, INCONCLUSIVE, IMPROVEMENT):
            counts[status] += said.count(status)
    for trial in range(5 * trials):
        rng = np.random.default_rng([seed, 1000 + list(NOISES).index(name), launches, trial])
        times = noise(rng, BEFORE + 2, launches)
        times[BEFORE:] /= 1 - STEP
        counts["called"] += REGRESSION in replay(times, MARGINS[margin])[BEFORE:]
    rates = {key: value / (trials * STILL) for key, value in counts.items() if key != "called"}
    return {"noise": name, "launches": launches, "margin": margin, **rates, "called": counts["called"] / (5 * trials)}


def crept(job: tuple[str, int, int, int]) -> dict[str, Any]:
    """One creep: how far it had got when the first drift or regression was told, and how often it never was."""
    name, launches, trials, seed = job
    far = []
    for trial in range(trials):
        rng = np.random.default_rng([seed, 2000 + list(CREEPS).index(name), launches, trial])
        times = creep(name, rng, launches)
        said = replay(times, None)
        first = next((night for night in range(20, len(times)) if said[night] in (DRIFT, REGRESSION)), None)
        share, every, _ = CREEPS[name]
        far.append(None if first is None else (1 + share) ** -(-(first - 19) // every) - 1)
    told = sorted(one for one in far if one is not None)
    middle = float(np.median(told)) if told else None
    return {"creep": name, "launches": launches, "told": len(told) / trials, "told_at": middle}


def nights(trials: int, seed: int, jobs: int) -> dict[str, list[dict[str, Any]]]:
    """Every noise and creep, with each number of launches a night, under each margin."""
    still = [(name, many, margin, trials, seed) for name in NOISES for many in LAUNCHES for margin in MARGINS]
    slow = [(name, many, 5 * trials, seed) for name in CREEPS for many in LAUNCHES]
    with ProcessPoolExecutor(jobs) as pool:
        return {"still": list(pool.map(measure, still)), "creeps": list(pool.map(crept, slow))}
