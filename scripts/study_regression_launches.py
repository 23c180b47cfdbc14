"""The regression rule on real launches: checks of the same code against itself, and slowdowns put into one module.

Every launch is a process of its own on this CPU. The slowdown sorts a longer list in one block of a net: as many
operators and FLOPs as before, so time alone can tell. The slowed launches stand between those of the same code, so that
both are held against a baseline of their own hour. It takes 40 minutes and needs a machine without other work: what
shares the cores is what it would measure. Writes results/cpu/<date>-regression-launches/ (results.json, table.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpuprof.analysis.check import check
from gpuprof.analysis.comparison import launches
from gpuprof.analysis.judge import judge
from gpuprof.analysis.moved import moved
from gpuprof.files import write_atomically
from gpuprof.launches import merge
from gpuprof.record import load
from gpuprof.run import Run

BASELINE, HEAD, STEPS = 20, 5, 100
WIDTH, BATCH, BLOCKS = 512, 256, 8
NET = f"""
import os

import torch
from torch import nn

SLOW, _, LENGTH = os.environ.get("SLOW", "").partition(":")


class Block(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.linear = nn.Linear({WIDTH}, {WIDTH})
        self.register_buffer("list", torch.rand(int(LENGTH) if name == SLOW else 2), persistent=False)

    def forward(self, x):
        torch.sort(self.list)
        return torch.relu(self.linear(x))


def net():
    return nn.Sequential(*(Block(str(number)) for number in range({BLOCKS}))), (torch.randn({BATCH}, {WIDTH}),)
"""


def launch(folder: Path, name: str, slow: str = "") -> Run:
    """One process: the net measured once, with a slow block if one is named, as ``block:length``; or what it left."""
    out = folder / f"{name}.json"
    if out.exists():
        return load(out)
    command = [sys.executable, "-m", "gpuprof", "profile", f"{folder / 'net.py'}:net", "--passes", "count,time,trace",
               "--warmup", "5", "--steps", str(STEPS), "--peak-tflops", "1", "-q", "-o", str(out)]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | {"SLOW": slow, "OMP_NUM_THREADS": "1"}, capture_output=True)
    return load(out)


def together(runs: list[Run]) -> Run:
    """Launches as one run of several."""
    whole = load_again(runs[-1])
    merge(whole, runs)
    return whole


def load_again(run: Run) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return load(run.save(Path(folder) / "run.json"))


def figures(runs: list[Run], name: str = "step_s") -> list[float]:
    return [float(value) for run in runs for value in launches(run)[name]]


def length_of(share: float, step: float) -> int:
    """Length of a list that takes this share of a step to sort, on one thread."""
    torch.set_num_threads(1)
    length = 1000
    while True:
        values, times = torch.rand(length), []
        for _ in range(7):
            begin = time.perf_counter()
            torch.sort(values)
            times.append(time.perf_counter() - begin)
        taken = sorted(times)[3]
        if taken >= share * step:
            return round(length * share * step / taken)
        length *= 2


def judged(head: Run, baseline: list[Run]) -> dict[str, Any]:
    found = check(head, baseline)
    blamed = moved(baseline, [head], "module").iloc[0]
    verdict = next(one for one in found.verdicts if one.metric == "step_s")
    return {
        "status": found.status,
        "by_time_alone": judge("step_s", figures(baseline), figures([head])).status,
        "change": verdict.change,
        "why": verdict.why,
        "blamed": str(blamed["module"]) if blamed["status"] == "slower" else "",
        "steps_s": figures([head]),
        "references_per_s": figures([head], "reference_per_s"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=30, help="of the same code against itself")
    parser.add_argument("--slowdowns", type=int, default=12)
    parser.add_argument("--slower", type=float, default=0.10, help="share of the step that a slowdown adds")
    parser.add_argument("--launches", type=Path, help="folder to keep them in; those that are there are not repeated")
    parser.add_argument("--results", type=Path, default=Path("results/cpu"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.launches or Path(temporary)
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(NET)
        same = [launch(folder, f"same-{number}") for number in range(BASELINE)]
        noted = folder / "length"
        if not noted.exists():
            noted.write_text(str(length_of(arguments.slower, sorted(figures(same))[BASELINE // 2])))
        length = int(noted.read_text())
        alike, slowed = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(arguments.checks):
            base = same[-BASELINE:]
            same += [launch(folder, f"same-{len(same) + at}") for at in range(HEAD)]
            alike.append(judged(together(same[-HEAD:]), base))
            print(f"same code, check {number + 1}: {alike[-1]['status']}", file=sys.stderr)
            if len(slowed) < arguments.slowdowns * (number + 1) // arguments.checks:
                block = str(len(slowed) * 3 % BLOCKS)
                runs = [launch(folder, f"slow-{len(slowed)}-{at}", f"{block}:{length}") for at in range(HEAD)]
                slowed.append({"block": block} | judged(together(runs), same[-BASELINE:]))
                print(f"block {block} slower: {slowed[-1]['status']}, {slowed[-1]['blamed']}", file=sys.stderr)
    run = same[0]
    options = (f"--{name} {getattr(arguments, name)}" for name in ("checks", "slowdowns", "slower"))
    about = {
        "command": " ".join([".venv/bin/python scripts/study_regression_launches.py", *options]),
        "device": f"CPU ({run.device['name']}, 1 thread)",
        "date": run.environment["date"],
        "torch": run.environment["torch"],
        "net": f"{BLOCKS} blocks of a {WIDTH} x {WIDTH} linear layer, batch {BATCH}, float32, trained",
        "rule": f"baseline of the last {BASELINE} launches, head of {HEAD}, each of {STEPS} steps, margin 2 %",
        "slowdown": f"a list of {length:,} to sort in one block: about {100 * arguments.slower:g} % of the step",
    }
    steps, references = figures(same), figures(same, "reference_per_s")
    middle = sorted(steps)[len(steps) // 2]
    found: dict[str, Any] = {
        "launches of the same code": len(same),
        "their median step, ms": round(1e3 * middle, 2),
        "middle half of them within": f"{100 * _half(steps) / middle:.1f} %",
        "correlation of speed with that of the CPU": round(
            statistics.correlation([1 / s for s in steps], references), 2
        ),
        "checks of the same code": len(alike),
        "a regression (false alarm)": _count(alike, "regression"),
        "inconclusive": _count(alike, "inconclusive"),
        "the same by time alone: a regression": _count(alike, "regression", "by_time_alone"),
        "by time alone: inconclusive": _count(alike, "inconclusive", "by_time_alone"),
        "slowdowns put in": len(slowed),
        "called a regression": _count(slowed, "regression"),
        "and blamed on the right block": sum(one["blamed"] == one["block"] for one in slowed),
        "the same by time alone: called a regression": _count(slowed, "regression", "by_time_alone"),
    }
    if slowed:
        changes = sorted(100 * one["change"] for one in slowed)
        found["measured slowdown"] = f"{changes[0]:+.1f} to {changes[-1]:+.1f} %"
    place = arguments.results / f"{about['date'][:10]}-regression-launches"
    place.mkdir(parents=True, exist_ok=True)
    raw = {**about, "found": found, "steps_s": steps, "references_per_s": references, "same": alike, "slowed": slowed}
    write_atomically(place / "results.json", json.dumps(raw, indent=1) + "\n")
    lines = [f"- {name}: {value}\n" for name, value in about.items()]
    table = [f"| {name} | {value} |\n" for name, value in found.items()]
    text = f"# The regression rule on real launches\n\n{''.join(lines)}\n| what | |\n|---|---:|\n{''.join(table)}"
    write_atomically(place / "table.md", text)
    print(text, end="")


def _count(judgements: list[dict[str, Any]], status: str, by: str = "status") -> int:
    return sum(one[by] == status for one in judgements)


def _half(values: list[float]) -> float:
    """Width of the middle half of some values."""
    ordered = sorted(values)
    return ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]


if __name__ == "__main__":
    main()
