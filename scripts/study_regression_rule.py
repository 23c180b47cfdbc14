"""How often the regression rule cries wolf, and what it misses: simulated launches under many kinds of noise.

Every trial draws a history of launches, takes the newest as the head, makes it slower by a known amount, and asks
`gpuprof.analysis.regression`. Then whole histories are judged night by night: scripts/regression_nights.py. Writes
results/cpu/<date>-regression-rule/ (results.json, table.md, rule.png, rule.svg).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import regression_nights
import torch

from gpuprof.analysis.judge import ALPHA, rank_test
from gpuprof.analysis.regression import INCONCLUSIVE, MARGIN, REGRESSION, hold
from gpuprof.files import write_atomically
from gpuprof.hardware.device import describe

DROPS = (0.0, 0.01, 0.02, 0.03, 0.05)
BASELINES = (5, 10, 20)
HEADS = (1, 3, 5)
TURNS = (5, 7)
STEPS = 20
LAUNCH_SD, STEP_SD = 0.006, 0.01
CLOCK_MHZ, CLOCK_STEP_MHZ = 1755, 15  # an H100 under load, and the grid that its clock is on
BEFORE, AFTER = max(BASELINES), max(HEADS)
UNREAD = {"nominal": {}, "days-0.3": {"day": 0.003}, "days-0.6": {"day": 0.006}} | {
    f"unread-walk-{walk}": {"walk": walk / 100} for walk in (0.1, 0.2, 0.3, 0.5)
}  # of the noises below, what launches share and nobody reads


class Drawn(NamedTuple):
    """Speeds of launches, shape (trials, launches), oldest first, and the clock that was read of them, if it was."""

    speed: np.ndarray
    clock: np.ndarray | None = None


Noise = Callable[[np.random.Generator, int, int], Drawn]
"""Draws (generator, trials, launches) what launches differ by, before the noise of their steps."""


def plain(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    return 1 + rng.normal(0, LAUNCH_SD, (trials, count))


def notes(rng: np.random.Generator, trials: int, count: int) -> Drawn:
    return Drawn(plain(rng, trials, count))


def student(scale: float) -> Noise:
    return lambda rng, trials, count: Drawn(1 + scale * rng.standard_t(3, (trials, count)))


def bad_launches(share: float) -> Noise:
    def draw(rng: np.random.Generator, trials: int, count: int) -> Drawn:
        bad = rng.random((trials, count)) < share
        return Drawn(plain(rng, trials, count) - bad * rng.uniform(0.03, 0.08, (trials, count)))

    return draw


def bursts(rng: np.random.Generator, trials: int, count: int) -> Drawn:
    slow = 0.004 * rng.lognormal(0, 1, (trials, count))
    return Drawn(1 + rng.normal(0, 0.004, (trials, count)) - slow)


def days(sd: float) -> Noise:
    def draw(rng: np.random.Generator, trials: int, count: int) -> Drawn:
        shared = np.repeat(rng.normal(0, sd, (trials, -(-count // 5))), 5, axis=1)[:, :count]
        return Drawn(plain(rng, trials, count) + shared)

    return draw


def walk(sd: float) -> Noise:
    def draw(rng: np.random.Generator, trials: int, count: int) -> Drawn:
        return Drawn(plain(rng, trials, count) + np.cumsum(rng.normal(0, sd, (trials, count)), axis=1))

    return draw


def step(size: float) -> Noise:
    """Something that nobody reads changes between the baseline and the head."""

    def draw(rng: np.random.Generator, trials: int, count: int) -> Drawn:
        return Drawn(plain(rng, trials, count) + size * (np.arange(count) >= BEFORE))

    return draw


def clocked(follows: float, wobble: float = 0.0, wander: float = 0.0, jump: float = 0.0) -> Noise:
    """An SM clock that is read: it wobbles, walks, and jumps before the head; speed goes with its power ``follows``."""

    def draw(rng: np.random.Generator, trials: int, count: int) -> Drawn:
        clock = 1 + rng.normal(0, wobble, (trials, count)) + jump * (np.arange(count) >= BEFORE)
        clock += np.cumsum(rng.normal(0, wander, (trials, count)), axis=1)
        read = CLOCK_STEP_MHZ * np.round(CLOCK_MHZ * clock / CLOCK_STEP_MHZ)
        return Drawn(plain(rng, trials, count) * clock**follows, read)

    return draw


NOISES: dict[str, tuple[str, Noise]] = {
    "nominal": ("0.6 % between launches", notes),
    "student": ("Student's t, 3 degrees, same standard deviation", student(LAUNCH_SD / 3**0.5)),
    "student-wide": ("Student's t, 3 degrees, same scale: 1.04 %", student(LAUNCH_SD)),
    "bursts": ("lognormal slowdowns, median 0.4 %, one in 40 over 2.8 %", bursts),
    "bad-launches": ("and 5 % of launches 3 to 8 % slower", bad_launches(0.05)),
    "bad-launches-10": ("and 10 % of launches 3 to 8 % slower", bad_launches(0.10)),
    "days-0.3": ("and five launches in a row share another 0.3 %", days(0.003)),
    "days-0.6": ("and five launches in a row share another 0.6 %", days(0.006)),
    "clock-steady": ("and a clock that stands still, read", clocked(1)),
    "clock-wobble-0.5": ("and a clock that differs by 0.5 % each time, read; speed follows", clocked(1, wobble=0.005)),
    "clock-walk-0.3": ("and one that walks 0.3 % per launch, likewise", clocked(1, wander=0.003)),
    "clock-walk-0.5": ("and 0.5 % per launch", clocked(1, wander=0.005)),
    "clock-walk-half": ("and 0.5 % per launch, speed follows by half", clocked(0.5, wander=0.005)),
    "clock-falls-2": ("and a clock 2 % lower under the head, read; speed follows", clocked(1, jump=-0.02)),
    "clock-falls-4": ("and 4 % lower", clocked(1, jump=-0.04)),
    "clock-falls-half": ("and 4 % lower, speed follows by half", clocked(0.5, jump=-0.04)),
    "clock-falls-not": ("and 4 % lower, speed does not follow", clocked(0, jump=-0.04)),
    "clock-rises-4": ("and 4 % higher, speed follows", clocked(1, jump=0.04)),
    "clock-walk-falls-1": ("walks 0.3 % per launch, then falls by 1 %, speed follows", clocked(1, 0, 0.003, -0.01)),
    "clock-walk-falls-2": ("by 2 %", clocked(1, 0, 0.003, -0.02)),
    "clock-walk-falls-4": ("by 4 %", clocked(1, 0, 0.003, -0.04)),
    "clock-walk-falls-not": ("by 4 %, and speed does not follow", clocked(0, 0, 0.003, -0.04)),
    "clock-walk-rises-4": ("then rises by 4 %, speed follows", clocked(1, 0, 0.003, 0.04)),
    "unread-walk-0.1": ("and a drift that nobody reads, 0.1 % per launch", walk(0.001)),
    "unread-walk-0.2": ("and 0.2 % per launch", walk(0.002)),
    "unread-walk-0.3": ("and 0.3 % per launch", walk(0.003)),
    "unread-walk-0.5": ("and 0.5 % per launch", walk(0.005)),
    "unread-step-1": ("and a node 1 % slower under the head, which nobody reads", step(-0.01)),
    "unread-step-2": ("and 2 % slower", step(-0.02)),
}
"""What launches differ by; every one but the first three and the bursts has the first in it."""


def steps_of(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    """Median time of a launch's steps: 1 % noise, 5 % of steps 3 to 8 % slower in speed."""
    speed = rng.normal(1, STEP_SD, (trials, count, STEPS))
    speed -= (rng.random(speed.shape) < 0.05) * rng.uniform(0.03, 0.08, speed.shape)
    return np.median(1 / speed, axis=-1)


def against_baseline(noise: Noise, times: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Shares of verdicts for every size of baseline and head and every drop of speed."""
    drawn = noise(rng, *times.shape)
    times = times / drawn.speed
    rows = []
    for n, k, drop in itertools.product(BASELINES, HEADS, DROPS):
        base, head = slice(BEFORE - n, BEFORE), slice(BEFORE, BEFORE + k)
        clocks = None if drawn.clock is None else (drawn.clock[:, base], drawn.clock[:, head])
        held = hold(times[:, base], times[:, head] / (1 - drop), MARGIN, "lower", clocks)
        first = held.as_measured.worse > held.as_measured.threshold
        rows.append({"n": n, "k": k, "drop": drop, **shares(held.status), "first_reading": float(first.mean())})
    return rows


def interleaved(noise: Noise, times: np.ndarray, rng: np.random.Generator, k: int) -> list[dict[str, Any]]:
    """The same of k launches of each that take turns, ABBA, judged by the exact rank test.

    What jumps between baseline and head in the noise does so in the middle of these.
    """
    turns = np.array([pair % 2 ^ second for pair in range(k) for second in (0, 1)], bool)  # which of them is the head
    drawn = noise(rng, times.shape[0], BEFORE + k).speed[:, BEFORE - k :]
    times = times[:, : 2 * k] / drawn
    chance = chances(k)
    rows = []
    for drop in DROPS:
        slower = np.where(turns, times / (1 - drop), times)
        base, head = (slower[:, which] for which in (~turns, turns))
        sums = (slower.argsort(axis=1).argsort(axis=1) + 1)[:, turns].sum(axis=1)
        p = np.array([chance[total] for total in sums])
        beyond = np.median(head / base, axis=1) - 1 > MARGIN
        status = np.select([beyond & (p < ALPHA), beyond], [REGRESSION, INCONCLUSIVE], "pass")
        rows.append({"k": k, "drop": drop, **shares(status)})
    return rows


def chances(k: int) -> dict[int, float]:
    """What the rank test says of k against k, by the sum of the head's ranks."""
    found = {}
    for excess in range(k * k + 1):
        raised, rest = divmod(excess, k)  # the highest go up by k, the next by the rest: no two ranks are the same
        head = [i + (k if i > k - raised else rest if i == k - raised else 0) for i in range(1, k + 1)]
        found[sum(head)] = rank_test([rank for rank in range(1, 2 * k + 1) if rank not in head], head)
    return found


def best_possible(n: int, k: int, drop: float, day: float = 0.0, walk: float = 0.0) -> float:
    """Share of trials in which the best of all estimates finds a head slower by more than the margin.

    Generalised least squares on Gaussian noise whose every variance is known: no unbiased estimate spreads less
    (Aitken's theorem), so no rule with this margin, not biased towards alarms, calls more drops or fewer false alarms.

    Args:
        n: launches of the baseline.
        k: of the head.
        drop: of speed under the head.
        day: standard deviation of what five launches in a row share.
        walk: that of a drift per launch.
    """
    at = np.arange(n + k)
    alone = LAUNCH_SD**2 + math.pi / 2 * STEP_SD**2 / STEPS  # pi/2: a median, not a mean
    noise = alone * np.eye(n + k) + walk**2 * (1 + np.minimum.outer(at, at)) + day**2 * np.equal.outer(at // 5, at // 5)
    design = np.stack([np.ones(n + k), at >= n], axis=1).astype(float)
    variance = np.linalg.inv(design.T @ np.linalg.solve(noise, design))[1, 1]
    return 1 - NormalDist(-math.log(1 - drop), math.sqrt(variance)).cdf(math.log(1 + MARGIN))


def shares(status: np.ndarray) -> dict[str, float]:
    return {name: float((status == name).mean()) for name in (REGRESSION, INCONCLUSIVE)}


def simulate(trials: int, seed: int) -> list[dict[str, Any]]:
    """Every noise, each by itself: what comes first changes nothing of the next."""
    found = []
    for number, (name, (what, noise)) in enumerate(NOISES.items()):
        rng = np.random.default_rng([seed, number])
        times = steps_of(rng, trials, BEFORE + AFTER)
        entry = {"noise": name, "what": what, "baseline": against_baseline(noise, times, rng)}
        entry["interleaved"] = [row for k in TURNS for row in interleaved(noise, times, rng, k)]
        found.append(entry)
        print(f"{name}: {cells(entry, 20, 5, 0.03)[0]} at 3 %", file=sys.stderr)
    return found


def cells(entry: dict[str, Any], n: int | None, k: int, drop: float) -> list[str]:
    """Regressions, inconclusive ones, and regressions by the first reading alone, in percent; interleaved without n."""
    row = pick(entry, n, k, drop)
    return [percent(row[name]) for name in (REGRESSION, INCONCLUSIVE, "first_reading") if name in row]


def pick(entry: dict[str, Any], n: int | None, k: int, drop: float) -> dict[str, Any]:
    rows = entry["interleaved"] if n is None else [row for row in entry["baseline"] if row["n"] == n]
    return next(row for row in rows if row["k"] == k and row["drop"] == drop)


def percent(share: float) -> str:
    return f"{100 * share:.2f}" if share < 0.0995 else f"{100 * share:.1f}"


def grid(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def table(found: list[dict[str, Any]], n: int | None, k: int) -> str:
    detail = [REGRESSION, INCONCLUSIVE, *(["by time against the whole baseline alone"] if n else [])]
    heads = ["noise", *(f"no change: {name}" for name in detail), "2 % slower: regression"]
    heads += [*(f"3 % slower: {name}" for name in detail), "5 % slower: regression"]
    rows = []
    for entry in found:
        none, two, three, five = (cells(entry, n, k, drop) for drop in (0.0, 0.02, 0.03, 0.05))
        rows.append([f"{entry['noise']}: {entry['what']}", *none, two[0], *three, five[0]])
    return grid(heads, rows)


def tables(found: list[dict[str, Any]]) -> str:
    """All in percent of the trials."""
    text = (
        "Percent of trials. What is neither a regression nor inconclusive passes. Each noise but the first three and "
        "the bursts comes on\ntop of the first. What changes under the head changes in the middle where they take "
        "turns.\n\n"
    )
    for n, k in ((20, 5), (10, 5), (10, 3)):
        text += f"## Baseline of {n}, head of {k}\n\n{table(found, n, k)}"
    for k in TURNS:
        text += f"## Interleaved, {k} of each\n\n{table(found, None, k)}"
    text += "## What no rule can beat where nobody reads the drift: baseline of 20, head of 5\n\n"
    heads = ["noise", "no change: best possible", "the rule", "3 % slower: best possible", "the rule"]
    rows = [
        [name, *(text for drop in (0.0, 0.03) for text in (
            percent(best_possible(20, 5, drop, **shared)),
            cells(next(entry for entry in found if entry["noise"] == name), 20, 5, drop)[0],
        ))]
        for name, shared in UNREAD.items()
    ]  # fmt: skip
    text += grid(heads, rows)
    text += "## Sizes of baseline and head, nominal noise: regressions\n\n"
    sizes = [(n, k) for n in BASELINES for k in HEADS]
    nominal = [[f"{n}, {k}", *(cells(found[0], n, k, drop)[0] for drop in DROPS)] for n, k in sizes]
    text += grid(["baseline, head", *(f"{100 * drop:.0f} % slower" for drop in DROPS)], nominal)
    return text


def night_tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """What came of whole histories; all in percent."""
    text = f"## Night by night: {regression_nights.STILL} nights in which nothing changes, and a step of 3 %\n\n"
    heads = ["noise, margin"]
    for many in regression_nights.LAUNCHES:
        heads += [f"{many} a night: alarms per 100 nights", "nights in alarm", "drift", "inconclusive", "3 % called"]
    rows = []
    for name, (what, _) in regression_nights.NOISES.items():
        for margin in regression_nights.MARGINS:
            cells = [f"{name}: {what}, {margin}"]
            for many in regression_nights.LAUNCHES:
                row = next(
                    one for one in found["still"]
                    if (one["noise"], one["margin"], one["launches"]) == (name, margin, many)
                )  # fmt: skip
                cells += [percent(row[key]) for key in ("onsets", "alarms", "drift", "inconclusive", "called")]
            rows.append(cells)
    text += grid(heads, rows)
    text += "## Creeps, margin auto: how far the step had got when a drift or a regression was told first\n\n"
    heads = ["creep", *(f"{many} a night: median, never told" for many in regression_nights.LAUNCHES)]
    rows = []
    for name in regression_nights.CREEPS:
        ones = [one for one in found["creeps"] if one["creep"] == name]
        figures = [
            f"{'-' if one['told_at'] is None else percent(one['told_at'])}, {percent(1 - one['told'])}" for one in ones
        ]
        rows.append([name, *figures])
    return text + grid(heads, rows)


def draw(about: dict[str, Any], found: list[dict[str, Any]], folder: Path) -> None:
    from matplotlib.figure import Figure

    from gpuprof.render.charts import save_picture

    figure = Figure(figsize=(11, 7.2), dpi=150, layout="constrained")
    panels = ((0.0, "nothing changed"), (0.03, "3 % slower"))
    for number, (drop, title) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        for place, entry in enumerate(found):
            row = pick(entry, 20, 5, drop)
            left = 0.0
            for name, color in ((REGRESSION, "#b02020"), (INCONCLUSIVE, "#e0a030")):
                label = name if place == 0 and number == 0 else None
                axes.barh(place, 100 * row[name], left=left, color=color, height=0.72, label=label)
                left += 100 * row[name]
            label = "pass" if place == 0 and number == 0 else None
            axes.barh(place, 100 - left, left=left, color="#dde5dd", height=0.72, label=label)
            text = f"{percent(row[REGRESSION])} %"
            axes.text(101.5, place, text, va="center", fontsize=7.5, color="#b02020")
        names = [entry["noise"] for entry in found] if number == 0 else []
        axes.set_yticks(range(len(found)) if names else [], names, fontsize=8)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("trials, %; in red how many are called a regression", fontsize=8.5)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    figure.suptitle(
        f"The regression rule under simulated noise: baseline of 20 launches, head of 5, {about['trials']} trials each",
        fontsize=10.5, x=0.01, ha="left",
    )  # fmt: skip
    figure.legend(loc="outside lower right", ncols=3, fontsize=8.5, frameon=False)
    for suffix in (".png", ".svg"):
        save_picture(figure, folder / f"rule{suffix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000, help="of each noise")
    parser.add_argument("--histories", type=int, default=4, help="of each noise, night by night")
    parser.add_argument("--jobs", type=int, default=2, help="processes for those")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results/cpu"), help="where the folder goes")
    arguments = parser.parse_args()

    begin = time.perf_counter()
    found = simulate(arguments.trials, arguments.seed)
    by_night = regression_nights.nights(arguments.histories, arguments.seed, arguments.jobs)
    about = {
        "command": " ".join([".venv/bin/python scripts/study_regression_rule.py", *sys.argv[1:]]),
        "device": f"CPU ({describe(torch.device('cpu'))['name']}); the figures depend on the seed alone",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "trials": arguments.trials,
        "histories": arguments.histories,
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - begin),
        "margin": MARGIN,
        "steps": f"median of {STEPS}, each with {100 * STEP_SD:g} % noise, and 5 % of them 3 to 8 % slower",
    }
    folder = arguments.results / f"{about['date'][:10]}-regression-rule"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "results.json", json.dumps({**about, "noises": found, "nights": by_night}, indent=1) + "\n"
    )
    stated = "\n".join(f"- {name}: {value}" for name, value in about.items())
    text = tables(found) + night_tables(by_night)
    write_atomically(folder / "table.md", f"# The regression rule under simulated noise\n\n{stated}\n\n{text}")
    draw(about, found, folder)
    print(text, end="")


if __name__ == "__main__":
    main()
