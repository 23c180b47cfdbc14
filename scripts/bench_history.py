"""How long a store of many runs takes to answer: what `check` asks of it, the list, and the picture.

One hand-made run is stored, and copied with other figures: nights of one workload in three launches each, with noise,
a drop by the code and one by the SM clock. A copy is as large as a real run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from gpuprof import Run, history, history_schema
from gpuprof.analysis.changepoints import series_of
from gpuprof.analysis.noise import WINDOW
from gpuprof.record import PassOutcome
from gpuprof.render.history import history_chart, render_history
from gpuprof.schema import table

GOALS_S = {"check": 1.0, "history plot, whole process": 3.0}
LAUNCHES, IDEAL_S, CLOCK_MHZ, MFU, KIB = 3, 0.040, 1755.0, 0.40, 32


def night(number: int) -> datetime:
    return datetime(2000, 1, 1, 3, tzinfo=UTC) + timedelta(days=number)


def hand_made(number: int) -> Run:
    """A run with one operator, of 40 ms at the peak of its device, on that night."""
    about = {"module": "", "phase": "forward", "op": "aten::mm.default", "kind": "matmul", "shapes": "", "calls": 1}
    flops = dict.fromkeys(("flops_causal", "flops_full", "flops_hardware"), int(IDEAL_S * 1e15))
    samples = [
        {"launch": launch, "step": step, "phase": "step", "time_s": IDEAL_S / MFU}
        for launch in range(LAUNCHES)
        for step in range(20)
    ]
    clocks = [
        {"launch": launch, "time_s": 0.0, "quantity": "sm_clock", "unit": "MHz", "value": CLOCK_MHZ}
        for launch in range(LAUNCHES)
    ]
    return Run(
        workload={"name": "hand-made", "mode": "forward", "dtype": "bfloat16", "tokens_per_step": 8192},
        device={"type": "cuda", "name": "Toy GPU", "peaks": {"datasheet": {"bfloat16": 1e15}}},
        environment={"torch": "2.13.0", "date": night(number).isoformat()},
        passes={name: PassOutcome("done") for name in ("count", "time")},
        tree=table("tree", [{"module": "", "class": "Net", "extra": "", "calls": 1, "params": 1, "causality": ""}]),
        ops=table("ops", [about | flops | {"dtype": "bfloat16", "vector_flops": 0, "bytes": 1}]),
        samples=table("samples", samples),
        telemetry=table("telemetry", clocks),
    )


def fill(store: history.Store, count: int, seed: int = 0) -> None:
    """So many nights: 3 % slower from the first third on, 5 % less clock in the last quarter."""
    random = np.random.default_rng(seed)
    nights = np.arange(count)[:, None]
    clock = CLOCK_MHZ * np.where(nights >= 3 * count // 4, 0.95, 1.0)
    step = IDEAL_S / MFU / np.where(nights >= count // 3, 0.97, 1.0) * CLOCK_MHZ / clock
    step = step * (1 + random.normal(0, 0.006, (count, LAUNCHES)))
    clock = clock + random.normal(0, 5, (count, LAUNCHES))
    identity = store.add(hand_made(0))
    with store._transaction(write=True) as connection:
        runs, launches = history_schema.RUNS, history_schema.LAUNCHES
        run = dict(connection.execute(sa.select(runs)).mappings().one())
        launch = dict(connection.execute(sa.select(launches)).mappings().first())
        content = gzip.compress(gzip.decompress(run["run"]) + b" " * (KIB << 10), compresslevel=0)
        for number in range(1, count):
            copy = {"id": f"{number:016x}", "date": night(number).isoformat(), "commit": f"{number:08x}"}
            connection.execute(runs.insert().values(run | copy | {"run": content}))
        rows = [
            launch
            | {
                "run": f"{number:016x}" if number else identity,
                "launch": at,
                "step_s": step[number, at],
                "mfu_datasheet": IDEAL_S / step[number, at],
                "sm_clock_mhz": clock[number, at],
            }
            for number in range(count)
            for at in range(LAUNCHES)
        ]
        connection.execute(launches.delete())
        connection.execute(launches.insert(), rows)


def timed(body: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def measure(url: str, count: int, picture: Path) -> dict[str, float]:
    """Seconds of each question to a store of so many runs."""
    figures: dict[str, float] = {}
    with history.open_store(url) as store:
        figures["fill"] = timed(lambda: fill(store, count))
    head = hand_made(count)

    def check() -> None:
        with history.open_store(url) as store:
            identity = store.add(head)
            launches = store.baseline(head)
            assert len(launches) >= LAUNCHES * min(WINDOW, count)  # and those that the level began with
            store.load(launches["run"].iloc[-1])  # whose modules are compared
            store.mark(identity, "pass")

    def listed() -> None:
        with history.open_store(url) as store:
            render_history(series_of(store.runs()), "markdown")

    def plot() -> None:
        with history.open_store(url) as store:
            (one,) = series_of(store.runs())
            history_chart(one, store.series(), picture)

    figures["check"], figures["list"], figures["plot"] = timed(check), timed(listed), timed(plot)
    command = [sys.executable, "-m", "gpuprof", "history", "plot", "--store", url, "-o", str(picture)]
    figures["history plot, whole process"] = timed(lambda: subprocess.run(command, check=True))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="how many")
    parser.add_argument("--store", metavar="URL", help="an empty one; by default SQLite in a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args.store or f"{folder}/history.db", args.runs, Path(folder) / "history.png")
    for what, seconds in figures.items():
        goal = f" (goal: under {GOALS_S[what]:.0f} s)" if what in GOALS_S else ""
        print(f"{what}: {seconds:.3f} s{goal}")
    if args.json:
        args.json.write_text(json.dumps({"runs": args.runs, "seconds": figures}, indent=1) + "\n")
    return int(any(figures[what] >= goal for what, goal in GOALS_S.items()))


if __name__ == "__main__":
    sys.exit(main())
