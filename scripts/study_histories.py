"""The regression rule and the change points on real histories, replayed night by night through a real store.

The histories are one value per commit of CUDA.jl's benchmarks (its gh-pages) and launches of real training runs
(modded-nanogpt's records), both under the MIT licence. They are no part of this repository: --series names the folder.
So many values of a series in a row are the launches of one night, `gpuprof check --store` judges it, and somebody
accepts what has been a regression or a drift for three nights. What truly changed is labelled in hindsight by ruptures,
and Apache Otava sees the same values: scripts/change_point_peers.py, in an interpreter of their own.
Writes results/cpu/<date>-histories/ (results.json, table.md, histories.png): figures, and no value of a series.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, combinations, groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpuprof import Run, history
from gpuprof.analysis.changepoints import change_points
from gpuprof.analysis.regression import DRIFT, IMPROVEMENT, INCONCLUSIVE, REGRESSION
from gpuprof.cli.check import check_in_store, read_margin
from gpuprof.errors import GpuprofError
from gpuprof.files import write_atomically
from gpuprof.hardware.device import describe
from gpuprof.record import PassOutcome
from gpuprof.schema import table

SOURCES = "CUDA.jl's gh-pages and modded-nanogpt's records, both MIT"
CUDAJL, NANOGPT = "cudajl.tsv", "nanogpt-launches.tsv"
MIXED = {"latency/import": (144, 223), "latency/ttfp": (144, 223)}
"""Runs in which two versions of the language took turns in one series, by a factor of two and more: not judged."""

LAUNCHES = (1, 3, 5)
MARGINS = ("2%", "1%", "auto")
PATIENCE = 3  # nights in alarm after which somebody accepts
BEFORE, AFTER = 1, 3  # nights around a labelled change in which an alarm stands at it
NEAR = 3  # runs by which a change point may lie off a label and stand at it
SETTLED = 10  # runs after which a change point should stay
CALLED = 0.03  # labelled changes of which the rule has to call nearly all
IN_TIME = 3  # nights within which
STEPS = 3  # of a launch, each as long as the value
FIGURES = {
    "ms_per_step": "whole run",
    "ms_per_step_at_100": "20 steps at 100",
    "at_300": "20 at 300",
    "at_500": "20 at 500",
}
FIRST = datetime(2000, 1, 1, 3, tzinfo=UTC)


class Label(NamedTuple):
    """A true change of level.

    Attributes:
        at: run with which the new level begins.
        change: as a share.
    """

    at: int
    change: float


class Alarm(NamedTuple):
    """A change point that appeared as runs went by.

    Attributes:
        seen: run with which it did.
        at: run with which its level begins.
        change: as a share.
        settled: whether it is still there `SETTLED` runs later.
        stays: whether the final list has it.
    """

    seen: int
    at: int
    change: float
    settled: bool
    stays: bool


# the histories


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table of the histories.

    Raises:
        GpuprofError: it is not there.
    """
    if not path.is_file():
        raise GpuprofError(f"no file {path}: give the folder that has {CUDAJL} and {NANOGPT} with --series")
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def cudajl(folder: Path) -> dict[str, list[tuple[datetime, float]]]:
    """The benchmarks: date and seconds of each run, in their order.

    Some were measured after a run of a later date: they have that one's date here. Runs of a day are a second apart.
    """
    rows = read(folder / CUDAJL)
    days = accumulate((datetime.fromisoformat(row["date"]).replace(tzinfo=UTC) for row in rows), max)
    dates = [day + timedelta(seconds=number) for number, day in enumerate(days)]
    found = {}
    for name in list(rows[0])[2:]:
        found[name] = [(date, float(row[name]) * 1e-9) for date, row in zip(dates, rows, strict=True) if row[name]]
    return found


def nanogpt(folder: Path) -> list[tuple[str, str, dict[str, list[float]]]]:
    """The groups of launches: name, GPU, and seconds per step of each launch by `FIGURES`, in the order given."""
    rows = read(folder / NANOGPT)
    groups = []
    for name, members in groupby(rows, key=lambda row: row["group"]):
        group = list(members)
        figures = {figure: [float(row[figure]) * 1e-3 for row in group if row[figure]] for figure in FIGURES}
        groups.append((name, group[0]["gpu"].strip(), figures))
    return groups


# the replay


def night(date: datetime, launches: Sequence[float]) -> Run:
    """A run of so many launches, each of a few steps that all take as long: its figure is their median."""
    samples = [
        {"launch": number, "step": step, "phase": "step", "time_s": seconds}
        for number, seconds in enumerate(launches)
        for step in range(STEPS)
    ]
    return Run(
        workload={"name": "recorded", "mode": "train", "dtype": "bfloat16"},
        device={"type": "cuda", "name": "recorded"},
        environment={"torch": "0", "date": date.isoformat()},
        passes={"time": PassOutcome("done")},
        samples=table("samples", samples),
    )


def replay(nights: Iterable[tuple[datetime, Sequence[float]]], margin: float) -> list[str]:
    """What the rule says of the step time of each night, in a new store; what stays is accepted."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/history.db"
        for date, launches in nights:
            found = check_in_store(night(date, launches), url, margin, ())
            said.append(next(verdict.status for verdict in found.verdicts if verdict.metric == "step_s"))
            if said[-PATIENCE:] in ([REGRESSION] * PATIENCE, [DRIFT] * PATIENCE):
                with history.open_store(url) as store:
                    store.mark(store.runs()["id"].iloc[-1], accepted=True)
    return said


def nights_of(values: Sequence[tuple[datetime, float]], launches: int) -> list[tuple[datetime, list[float]]]:
    """Values in a row as the launches of one night, at the date of the last; a rest is left over."""
    whole = range(launches, len(values) + 1, launches)
    return [(values[end - 1][0], [value for _, value in values[end - launches : end]]) for end in whole]


def dated(values: Sequence[float]) -> list[tuple[datetime, float]]:
    return [(FIRST + timedelta(days=number), value) for number, value in enumerate(values)]


# their figures


def onsets(said: Sequence[str]) -> list[int]:
    """Nights with a regression whose night before had none."""
    return [at for at, one in enumerate(said) if one == REGRESSION and (at == 0 or said[at - 1] != REGRESSION)]


def judged(
    said: Sequence[str],
    labels: Sequence[Label],
    launches: int,
    mixed: tuple[int, int] | None = None,
    small: Sequence[Label] = (),
) -> dict[str, Any]:
    """Counts of a history's verdicts; those of several add up (`added`).

    A change is of the first night that is all after it, and an alarm stands at it within `BEFORE` and `AFTER` of that.

    Args:
        said: of each night.
        labels: of its runs.
        launches: of a night.
        mixed: runs that are not judged, nor are the `AFTER` nights that follow.
        small: further changes: an alarm at one is neither right nor false.
    """

    def night_of(run: int) -> int:
        return math.ceil(run / launches)

    def near(at: int, some: Iterable[Label]) -> bool:
        return any(-BEFORE <= at - night_of(label.at) <= AFTER for label in some)

    left_out = range(mixed[0] // launches, night_of(mixed[1]) + AFTER + 1) if mixed else range(0)
    nights = [at for at in range(len(said)) if at not in left_out]
    begun = [at for at in onsets(said) if at not in left_out]
    quiet = [at for at in nights if not near(at, [*labels, *small])]
    slower = [label for label in labels if label.change > 0]
    large = [label for label in slower if label.change >= CALLED and night_of(label.at) < len(said)]
    delays = []
    for label in large:
        first = night_of(label.at)
        window = range(max(first - BEFORE, 0), min(first + IN_TIME, len(said)))
        delays += [max(at - first, 0) for at in window if said[at] == REGRESSION][:1]
    return {
        "nights": len(nights),
        "regressions": sum(said[at] == REGRESSION for at in nights),
        "drifts": sum(said[at] == "drift" for at in nights),
        "improvements": sum(said[at] == IMPROVEMENT for at in nights),
        "inconclusive": sum(said[at] == INCONCLUSIVE for at in nights),
        "onsets": len(begun),
        "onsets_at_change": sum(near(at, slower) for at in begun),
        "onsets_at_any": sum(near(at, [*slower, *(label for label in small if label.change > 0)]) for at in begun),
        "quiet_nights": len(quiet),
        "quiet_onsets": sum(at in quiet for at in begun),
        "changes": len(large),
        "delays": delays,
    }


def alarms(lists: Sequence[Sequence[tuple[int, float]]]) -> list[Alarm]:
    """Change points as they first appear: `NEAR` no other that has been seen in its direction.

    Args:
        lists: of the first run, of the first two, and so on: place and change of each.
    """

    def same(at: int, change: float, other: tuple[int, float]) -> bool:
        return abs(at - other[0]) <= NEAR and change * other[1] > 0

    found: list[Alarm] = []
    for seen, points in enumerate(lists):
        for at, change in points:
            if not any(same(at, change, (one.at, one.change)) for one in found):
                later, final = lists[min(seen + SETTLED, len(lists) - 1)], lists[-1]
                there = (any(same(at, change, point) for point in some) for some in (later, final))
                found.append(Alarm(seen, at, change, *there))
    return found


def pointed(
    lists: Sequence[Sequence[tuple[int, float]]], labels: Sequence[Label], mixed: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Counts of a history's change points; an alarm stands at a change that lies `NEAR` it and has its direction.

    Args:
        lists: as for `alarms`.
        labels: of its runs.
        mixed: runs that are not judged, nor are the nine that follow.
    """
    left_out = range(mixed[0], mixed[1] + 9) if mixed else range(0)

    def near(at: int, some: Iterable[Label]) -> bool:
        return any(abs(at - label.at) <= NEAR for label in some)

    seen = [one for one in alarms(lists) if one.at not in left_out and one.seen not in left_out]
    slower, faster = ([label for label in labels if label.change * sign > 0] for sign in (1, -1))
    up = [one for one in seen if one.change > 0]
    large = [label for label in slower if label.change >= CALLED]
    delays = []
    for label in large:
        delays += sorted(one.seen - label.at for one in up if near(one.at, [label]))[:1]
    final = [(at, change) for at, change in lists[-1] if at not in left_out]
    return {
        "runs": len(lists) - len(left_out),
        "onsets": len(up),
        "onsets_at_change": sum(near(one.at, slower) for one in up),
        "quiet_runs": sum(at not in left_out and not near(at, labels) for at in range(len(lists))),
        "quiet_onsets": sum(not near(one.at, labels) for one in up),
        "changes": len(large),
        "delays": [delay for delay in delays if delay < 9],
        "alarms": len(seen),
        "vanish": sum(not one.stays for one in seen),
        "settled": sum(one.settled for one in seen),
        "settled_vanish": sum(one.settled and not one.stays for one in seen),
        "listed": len(final),
        "listed_at_change": sum(near(at, slower if change > 0 else faster) for at, change in final),
        "labels": len(labels),
        "labels_listed": sum(
            any(near(at, [label]) and change * label.change > 0 for at, change in final) for label in labels
        ),
    }


def added(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several histories as one, with the shares that follow; None where there is nothing to share."""
    total: dict[str, Any] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total[name] + count if name in total else count
    unit = "nights" if "nights" in total else "runs"
    shares = {
        f"quiet_onsets_per_100_{unit}": (100 * total["quiet_onsets"], total[f"quiet_{unit}"]),
        "share_at_change": (total["onsets_at_change"], total["onsets"]),
        "share_called": (len(total["delays"]), total["changes"]),
    }
    if unit == "nights":
        shares["share_at_any"] = (total["onsets_at_any"], total["onsets"])
    else:
        shares["share_vanish"] = (total["vanish"], total["alarms"])
        shares["share_settled_vanish"] = (total["settled_vanish"], total["settled"])
        shares["share_listed_at_change"] = (total["listed_at_change"], total["listed"])
        shares["share_labels_listed"] = (total["labels_listed"], total["labels"])
    ratios = {name: round(part / whole, 4) if whole else None for name, (part, whole) in shares.items()}
    delays = total.pop("delays")
    return total | {"called": len(delays)} | ratios | {"median_delay": statistics.median(delays) if delays else None}


# what is asked


def margins(names: Sequence[str]) -> dict[str, float]:
    """Those that this gpuprof takes, as `check_in_store` takes them."""
    found = {}
    for name in names:
        try:
            found[name] = read_margin(name)
        except GpuprofError as error:
            if name != "auto":
                raise
            print(f"auto is left out: {error}", file=sys.stderr)
    return found


def peers(python: str, series: dict[str, list[float]]) -> dict[str, Any]:
    """Labels and Otava's lists of each series.

    Raises:
        GpuprofError: there is no such interpreter, or no ruptures in it.
    """
    asked = [{"values": values, "left_out": MIXED.get(name)} for name, values in series.items()]
    command = [python, str(Path(__file__).with_name("change_point_peers.py"))]
    install = "pip install ruptures apache-otava there, or name another interpreter with --tools"
    try:
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    except OSError as error:
        raise GpuprofError(f"{python} cannot be run ({error.strerror}): {install}") from error
    except subprocess.CalledProcessError as error:
        raise GpuprofError(f"{python} failed ({error.stderr.strip().splitlines()[-1]}): {install}") from error
    found: dict[str, Any] = json.loads(done.stdout)
    if "labels" not in found:
        raise GpuprofError(f"{python} has no ruptures, which labels the true changes: {install}")
    if found["otava"] is None:
        print(f"Apache Otava is left out: {python} has none", file=sys.stderr)
    return found


def lists_of(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Change points by gpuprof of the first run, of the first two, and so on."""
    return [[(point.at, point.change) for point in change_points(values[:seen])] for seen in range(1, len(values) + 1)]


def worked(jobs: int, body: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What a function says of each of some items, in so many processes; the long ones should come first."""
    with get_context("spawn").Pool(jobs) as pool:
        return pool.map(body, items, chunksize=1)


def replay_one(item: tuple[list[tuple[datetime, list[float]]], float]) -> list[str]:
    return replay(*item)


def rule_on_cudajl(
    series: dict[str, list[tuple[datetime, float]]],
    labels: dict[str, list[Label]],
    small: dict[str, list[Label]],
    launches: Sequence[int],
    bounds: dict[str, float],
    work: Callable[..., list[Any]],
) -> list[dict[str, Any]]:
    """An entry for each number of launches and margin, with what each series adds."""
    cases = [(k, margin) for k in launches for margin in bounds]
    items = [(nights_of(values, k), bounds[margin]) for k, margin in cases for values in series.values()]
    said = iter(work(replay_one, items))
    found = []
    for k, margin in cases:
        statuses = {name: next(said) for name in series}
        counts = {name: judged(one, labels[name], k, MIXED.get(name), small[name]) for name, one in statuses.items()}
        begun = {name: onsets(one) for name, one in statuses.items()}
        found.append(
            {"launches": k, "margin": margin, **added(list(counts.values())), "series": counts, "onset_nights": begun}
        )
    return found


def rule_on_nanogpt(
    groups: Sequence[tuple[str, str, dict[str, list[float]]]],
    launches: Sequence[int],
    bounds: dict[str, float],
    work: Callable[..., list[Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Counts within the groups, where nothing changes, and what is said of a code change, the slower side as the head.

    Groups of one folder and GPU are versions of one code. The faster one's nights of four are the baseline, for 20
    launches are of five runs then, from which on the noise says what the margin is; each night of five of the slower
    one is held against it by itself.
    """
    within = [(k, margin, figure) for k in launches for margin in bounds for figure in FIGURES]
    quiet = [
        (nights_of(dated(figures[figure]), k), bounds[margin]) for k, margin, figure in within for *_, figures in groups
    ]
    pairs = []
    for (one, gpu, figures), (other, other_gpu, others) in combinations(groups, 2):
        if "/" not in one or one.partition("/")[0] != other.partition("/")[0] or gpu != other_gpu:
            continue
        for figure, margin in ((figure, margin) for figure in FIGURES for margin in bounds):
            sides = sorted(
                ((one, figures[figure]), (other, others[figure])), key=lambda side: statistics.median(side[1])
            )
            (faster, base), (slower, head) = sides
            change = statistics.median(head) / statistics.median(base) - 1
            about = {"base": faster, "head": slower, "figure": figure, "margin": margin, "change": round(change, 5)}
            heads = [head[at : at + 5] for at in range(0, len(head) // 5 * 5, 5)]
            pairs.append((about, [(versions_of(base, five), bounds[margin]) for five in heads]))
    said = iter(work(replay_one, quiet + [item for _, items in pairs for item in items]))
    still = []
    for k, margin, figure in within:
        counts = [judged(next(said), [], k) for _ in groups]
        still.append({"launches": k, "margin": margin, "figure": figure, **added(counts)})
    changed = [about | {"verdicts": [next(said)[-1] for _ in items]} for about, items in pairs]
    return still, changed


def versions_of(base: list[float], head: list[float]) -> list[tuple[datetime, list[float]]]:
    """Nights of four of the one version, then all of the other as a night."""
    nights = nights_of(dated(base), 4)
    return [*nights, (dated([*base, *head])[-1][0], head)]


def points_on_cudajl(
    lists: dict[str, dict[str, list[list[tuple[int, float]]]]], labels: dict[str, list[Label]]
) -> list[dict[str, Any]]:
    """An entry for each tool, with what each series adds."""
    found = []
    for tool, by_series in lists.items():
        counts = {name: pointed(one, labels[name], MIXED.get(name)) for name, one in by_series.items()}
        final = {name: [at for at, _ in one[-1]] for name, one in by_series.items()}
        found.append({"tool": tool, **added(list(counts.values())), "series": counts, "final": final})
    return found


# what is written


def percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def plain(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"


def grid(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def tables(found: dict[str, Any]) -> str:
    text = "## The rule on CUDA.jl's benchmarks\n\n"
    rows = []
    for one in found["rule"]:
        rows.append([
            f"{one['launches']}, {one['margin']}", str(one["nights"]), str(one["onsets"]), str(one["regressions"]),
            plain(round(one["quiet_onsets_per_100_nights"], 2)), percent(one["share_at_change"]),
            percent(one["share_at_any"]), f"{one['called']} of {one['changes']} ({percent(one['share_called'])})",
            plain(one["median_delay"]), str(one["improvements"]), str(one["drifts"]),
            percent(one["inconclusive"] / one["nights"], 1),
        ])  # fmt: skip
    text += grid(
        ["launches a night, margin", "nights", "onsets", "nights in alarm", "onsets per 100 still nights",
         "onsets at a true change", "or at one of 1 to 2 %", f"true {100 * CALLED:g} % called within {IN_TIME} nights",
         "median delay, nights", "improvements", "drifts", "inconclusive"],
        rows,
    )  # fmt: skip
    text += "## Change points on the same series, a value per run\n\n"
    rows = []
    for one in found["points"]:
        rows.append([
            one["tool"], str(one["onsets"]), plain(round(one["quiet_onsets_per_100_runs"], 2)),
            percent(one["share_at_change"]), f"{one['called']} of {one['changes']} ({percent(one['share_called'])})",
            plain(one["median_delay"]), f"{one['vanish']} of {one['alarms']} ({percent(one['share_vanish'])})",
            f"{one['settled_vanish']} of {one['settled']} ({percent(one['share_settled_vanish'])})",
            f"{one['listed_at_change']} of {one['listed']} ({percent(one['share_listed_at_change'])})",
            f"{one['labels_listed']} of {one['labels']} ({percent(one['share_labels_listed'])})",
        ])  # fmt: skip
    text += grid(
        ["tool", "upward onsets", "per 100 runs, not at a change", "at a true change",
         f"true {100 * CALLED:g} % called within 9 runs", "median delay, runs", "of all that appeared, vanished",
         f"of those there {SETTLED} runs later",
         "of the final list, at a true change", "of the true changes, in the final list"],
        rows,
    )  # fmt: skip
    text += "## The rule on training launches of one code\n\n"
    rows = [
        [f"{FIGURES[one['figure']]}, {one['launches']} a night, {one['margin']}", str(one["nights"]),
         str(one["regressions"]), str(one["drifts"]), str(one["improvements"]), str(one["inconclusive"])]
        for one in found["launches"]
    ]  # fmt: skip
    text += grid(["figure, launches, margin", "nights", "regressions", "drifts", "improvements", "inconclusive"], rows)
    text += "## The rule on versions of one training code, the slower as the head\n\n"
    rows = []
    for names, members in groupby(found["versions"], key=lambda one: (one["base"], one["head"], one["figure"])):
        entries = list(members)
        cells = [
            ", ".join(f"{entry['verdicts'].count(status)} {status}" for status in sorted(set(entry["verdicts"])))
            for entry in entries
        ]
        rows.append([f"{names[0]} -> {names[1].partition('/')[2]}", FIGURES[names[2]],
                     percent(entries[0]["change"], 2), *cells])  # fmt: skip
    used = list(dict.fromkeys(one["margin"] for one in found["versions"]))
    text += grid(["versions", "figure", "change", *used], rows)
    text += "## The true changes\n\n"
    rows = [[name, *(placed(found[what][name]) for what in ("labels", "small"))] for name in found["labels"]]
    return text + grid(["series", "run with which a level begins", "and by 1 to 2 %"], rows)


def placed(labels: Iterable[dict[str, Any]]) -> str:
    return ", ".join(
        f"{one['at']} ({100 * one['change']:+.1f} %{'' if one['confirmed'] else ', one way only'})" for one in labels
    )


def draw(found: dict[str, Any], about: dict[str, Any], path: Path) -> None:
    """A row for each series: where its level changed, and who said so when."""
    from matplotlib.figure import Figure

    from gpuprof.render.charts import save_picture

    shown = max((one for one in found["rule"]), key=lambda one: (one["launches"] == 3, one["margin"] == "auto"))
    figure = Figure(figsize=(11, 9), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = list(found["labels"])
    colors = ("#2a6f4e", "#7a55a0")
    for row, name in enumerate(names):
        axes.axhline(row, color="#e4e4e4", lw=0.6, zorder=0)
        for label in found["labels"][name]:
            slower = label["change"] > 0
            axes.plot([label["at"]] * 2, [row - 0.42, row + 0.42], color="#e08080" if slower else "#88aee0", lw=2.2)
        if name in MIXED:
            axes.axvspan(*MIXED[name], 1 - (row + 1) / len(names), 1 - row / len(names), color="#f2f2f2", zorder=-1)
        begun = [at * shown["launches"] + shown["launches"] - 1 for at in shown["onset_nights"][name]]
        axes.plot(begun, [row + 0.25] * len(begun), "v", color="#b02020", ms=4.5)
        for place, (one, color) in enumerate(zip(found["points"], colors, strict=False)):
            at = one["final"][name]
            axes.plot(at, [row - 0.05 - 0.25 * place] * len(at), "|", color=color, ms=6, mew=1.6)
    axes.plot([], [], "-", color="#e08080", lw=2.2, label="slower, in hindsight")
    axes.plot([], [], "-", color="#88aee0", lw=2.2, label="faster, in hindsight")
    what = f"alarm of check, {shown['launches']} launches a night, margin {shown['margin']}"
    axes.plot([], [], "v", color="#b02020", ms=4.5, label=what)
    for one, color in zip(found["points"], colors, strict=False):
        axes.plot([], [], "|", color=color, ms=6, mew=1.6, label=f"change points of {one['tool']}")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("run", fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"Alarms on benchmarks of CUDA.jl ({about['series']})", fontsize=10, loc="left")
    figure.legend(loc="outside lower right", ncols=5, fontsize=8, frameon=False)
    save_picture(figure, path)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).resolve().parents[2] / "shared" / "series"
    parser.add_argument("--series", type=Path, default=beside, help="folder of the histories")
    parser.add_argument("--tools", metavar="PYTHON", default=sys.executable, help="has ruptures and apache-otava")
    parser.add_argument("--launches", type=numbers, default=LAUNCHES, metavar="K,...", help="of a night; 1,3,5")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--results", type=Path, default=Path("results/cpu"), help="where the folder goes")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    try:
        series, groups = cudajl(arguments.series), nanogpt(arguments.series)
        bounds = margins(MARGINS)
        values = {name: [value for _, value in one] for name, one in series.items()}
        told = peers(arguments.tools, values)
    except GpuprofError as error:
        sys.exit(f"error: {error}")
    labels, further = (dict(zip(series, told[what], strict=True)) for what in ("labels", "small"))
    true, small = (
        {name: [Label(one["at"], one["change"]) for one in some] for name, some in those.items()}
        for those in (labels, further)
    )
    work = partial(worked, arguments.jobs)
    wide = {name: margin for name, margin in bounds.items() if name != "1%"}
    rule = rule_on_cudajl(series, true, small, arguments.launches, wide, work)
    still, versions = rule_on_nanogpt(groups, arguments.launches, bounds, work)
    lists = {"gpuprof": dict(zip(values, work(lists_of, list(values.values())), strict=True))}
    if told["otava"] is not None:
        lists[f"Apache Otava {told['versions']['apache-otava']}"] = dict(zip(series, told["otava"], strict=True))
    about = {
        "command": " ".join([".venv/bin/python scripts/study_histories.py", *options(sys.argv[1:])]),
        "device": f"CPU ({describe(torch.device('cpu'))['name']}); the figures depend on the histories alone",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "tools": ", ".join(f"{name} {number}" for name, number in told["versions"].items()),
        "series": SOURCES,
        "histories": f"{len(series)} of {len(next(iter(values.values())))} runs; {len(groups)} groups of launches",
        "true changes": f"{sum(map(len, true.values()))}, of at least 2 % and nine runs, labelled in hindsight; "
        f"{sum(map(len, small.values()))} more of 1 to 2 %",
        "not judged": "; ".join(f"{name} runs {first} to {end - 1}" for name, (first, end) in MIXED.items()),
        "accepted": f"what has been a regression or a drift for {PATIENCE} nights in a row",
        "seconds": round(time.perf_counter() - begin),
    }
    found = {
        "labels": labels,
        "small": further,
        "rule": rule,
        "points": points_on_cudajl(lists, true),
        "launches": still,
        "versions": versions,
    }
    folder = arguments.results / f"{str(about['date'])[:10]}-histories"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps(about | found, indent=1) + "\n")
    stated = "\n".join(f"- {name}: {value}" for name, value in about.items())
    text = tables(found)
    write_atomically(folder / "table.md", f"# The regression rule on real histories\n\n{stated}\n\n{text}")
    draw(found, about, folder / "histories.png")
    print(text, end="")


def options(given: Sequence[str]) -> list[str]:
    """The arguments without where this machine keeps things."""
    kept: list[str] = []
    for one in given:
        kept.append(Path(one).name if "/" in one else one)
    return kept


if __name__ == "__main__":
    main()
