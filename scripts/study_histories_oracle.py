"""How well real histories can be judged at all: a bound for the regression rule.

An oracle is told the true level of each night and which other nights are unchanged: those before it, or those after it
as well. It calls a night by the chance that the rule goes by, without a tolerance: how often as many unchanged nights
in a row, one to three, came out as slow, by their medians or by their fastest launches. Below which chance is an alarm
is its choice, a row each. The labels are those of scripts/study_histories.py, whose results it reads, and so is what an
alarm is. Writes results/cpu/<date>-histories-oracle/ (results.json, table.md).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import study_histories as histories

from gpuprof.errors import GpuprofError
from gpuprof.files import write_atomically

LAUNCHES = 3
LENGTHS = (1, 2, 3)
MARGIN = 0.02
UNSEEN, TAIL, FLOOR = 0.3, 3, 0.01  # of gpuprof.analysis.noise; the last is what three launches can tell at best
CHANCES = (0.0001, 0.0002, 0.0005, 0.0006, 0.0007, 0.001, 0.0012, 0.0014, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.02)


class Told(NamedTuple):
    """What an oracle knows of a series.

    Attributes:
        cuts: nights with which true levels begin, the first and those of small changes among them.
        levels: of each the nights that are wholly of it, first and one past the last.
        skipped: nights that are not judged.
    """

    cuts: list[int]
    levels: list[tuple[int, int]]
    skipped: set[int]


def told(labels: list[histories.Label], nights: int, mixed: tuple[int, int] | None) -> Told:
    at = sorted(label.at for label in labels)
    cuts = [0, *(math.ceil(run / LAUNCHES) for run in at)]
    ends = [*(run // LAUNCHES for run in at), nights]
    skipped = range(mixed[0] // LAUNCHES, math.ceil(mixed[1] / LAUNCHES) + histories.AFTER + 1) if mixed else ()
    return Told(cuts, list(zip(cuts, ends, strict=True)), set(skipped))


def lower_median(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def chances(nights: list[np.ndarray], knows: Told, later: bool) -> np.ndarray:
    """The least chance of each night.

    Args:
        nights: logarithms of the launches of each.
        knows: what is true.
        later: whether unchanged nights after it are known as well.
    """
    least = np.ones(len(nights))
    for figures in (np.array([np.median(one) for one in nights]), np.array([one.min() for one in nights])):
        still = [[at for at in range(first, end) if at not in knows.skipped] for first, end in knows.levels]
        places = [float(np.median(figures[one])) if one else None for one in still]
        for length in LENGTHS:
            null = {
                one[at]: lower_median(figures[one[at] : one[at] + length]) - place
                for one, place in zip(still, places, strict=True) if place is not None
                for at in range(len(one) - length + 1) if one[at + length - 1] == one[at] + length - 1
            }  # fmt: skip
            begun, slow = np.array(list(null)), np.array(list(null.values()))
            for night in range(length - 1, len(nights)):
                start = night - length + 1
                level = max(number for number, cut in enumerate(knows.cuts) if cut <= night)
                if start < knows.cuts[level]:
                    continue
                # a change is one from the level before, for so many nights
                new = level and night - knows.cuts[level] < histories.IN_TIME
                place = places[level - 1] if new else places[level]
                worse = 0.0 if place is None else lower_median(figures[start : night + 1]) - place
                if worse < MARGIN:
                    continue
                others = slow[(begun + length <= start) | later & (begun > night)]
                alike = int((others >= worse).sum())
                chance = (alike + UNSEEN) / (len(others) / length + 1)
                if not alike:
                    chance *= (max(others.max(initial=0.0), FLOOR) / worse) ** TAIL
                least[night] = min(least[night], chance)
    return least


Labels = dict[str, list[histories.Label]]


def judged(found: dict[str, np.ndarray], chance: float, labels: Labels, small: Labels) -> dict[str, Any]:
    """The counts of scripts/study_histories.py of alarms below a chance."""
    counts = []
    for name, one in found.items():
        said = [histories.REGRESSION if below else "pass" for below in one < chance]
        counts.append(histories.judged(said, labels[name], LAUNCHES, histories.MIXED.get(name), small[name]))
    return {"chance": chance, **histories.added(counts)}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    text = ""
    for what, rows in found.items():
        text += f"## Told of the unchanged nights {what}\n\n"
        heads = [
            "alarm below",
            "alarms",
            "per 100 still nights",
            "at a change of 1 % and more",
            "called in three nights",
        ]
        cells = [
            [f"{100 * row['chance']:g} %", str(row["onsets"]), f"{row['quiet_onsets_per_100_nights']:.2f}",
             histories.percent(row["share_at_any"]), f"{row['called']} of {row['changes']}"]
            for row in rows
        ]  # fmt: skip
        text += histories.grid(heads, cells)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).resolve().parents[2] / "shared" / "series"
    parser.add_argument("labels", type=Path, help="results.json of scripts/study_histories.py")
    parser.add_argument("--series", type=Path, default=beside, help="folder of the histories")
    parser.add_argument("--results", type=Path, default=Path("results/cpu"), help="where the folder goes")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    try:
        series = histories.cudajl(arguments.series)
    except GpuprofError as error:
        sys.exit(f"error: {error}")
    stored = json.loads(arguments.labels.read_text())
    labels, small = (
        {name: [histories.Label(one["at"], one["change"]) for one in some] for name, some in stored[what].items()}
        for what in ("labels", "small")
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for what, later in (("before", False), ("before and after", True)):
        least = {}
        for name, values in series.items():
            nights = [np.log(launches) for _, launches in histories.nights_of(values, LAUNCHES)]
            knows = told([*labels[name], *small[name]], len(nights), histories.MIXED.get(name))
            least[name] = chances(nights, knows, later)
        found[what] = [judged(least, chance, labels, small) for chance in CHANCES]
    about = {
        "command": " ".join([".venv/bin/python scripts/study_histories_oracle.py", *histories.options(sys.argv[1:])]),
        "device": "none: the figures depend on the histories alone",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "series": "CUDA.jl's gh-pages, MIT",
        "launches a night": LAUNCHES,
        "margin": MARGIN,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    folder = arguments.results / f"{str(about['date'])[:10]}-histories-oracle"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps(about | found, indent=1) + "\n")
    stated = "\n".join(f"- {name}: {value}" for name, value in about.items())
    text = table(found)
    write_atomically(folder / "table.md", f"# What an oracle says of the real histories\n\n{stated}\n\n{text}")
    print(text, end="")


if __name__ == "__main__":
    main()
