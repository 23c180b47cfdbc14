"""Launches: the timing pass again in fresh processes, because the steps of one process are not independent.

The child is `gpuprof.launched`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpuprof.analysis.shares import split_kernels
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record, load
from gpuprof.schema import table
from gpuprof.workload import Options

REPEATED = ("time", "telemetry", "trace", "memory")
"""Passes that every launch makes, as far as they are asked for."""


def repeat(
    model: str,
    options: Options,
    passes: Iterable[str],
    launches: int,
    tell: Callable[[str, int, int], None],
    **how: Any,
) -> list[Record]:
    """Profile a named model in fresh processes, one after the other.

    Args:
        model: as on the command line.
        options: of the workload.
        passes: those asked for; of them `REPEATED` run.
        launches: how many processes.
        tell: told how many are done.
        how: further arguments of `gpuprof.profile`: warmup, steps, seed.

    Raises:
        GpuprofError: a launch fails; with its own words.
    """
    runs = []
    wanted = [name for name in REPEATED if name in set(passes)]
    with tempfile.TemporaryDirectory(prefix="gpuprof-launches-") as folder:
        job, out = Path(folder) / "job.json", Path(folder) / "run.json"
        arguments = {**asdict(options), **how, "passes": wanted}
        job.write_text(json.dumps({"model": model, "arguments": arguments, "out": str(out)}))
        for number in range(launches):
            tell("launches", number, launches)
            child = subprocess.run(
                [sys.executable, "-m", "gpuprof.launched", str(job)], stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", check=False,
            )  # fmt: skip
            if child.returncode != 0:
                said = [line for line in child.stderr.splitlines() if line.strip()]
                why = said[-1].removeprefix("gpuprof: ") if said else f"exit code {child.returncode}"
                raise GpuprofError(f"launch {number + 1} of {launches} failed: {why}")
            runs.append(load(out))
            out.unlink()
        tell("launches", launches, launches)
    return runs


def merge(run: Record, repeated: list[Record]) -> None:
    """Put what fresh processes timed in the place of what this one would have; each is a launch, from 1 on.

    Args:
        run: of the other passes.
        repeated: what `repeat` gives.
    """
    for name in ("time", "telemetry"):
        found = [other.passes[name] for other in repeated if name in other.passes]
        if found:
            run.passes[name] = next((outcome for outcome in found if outcome.status != "done"), found[-1])
            run.passes[name].seconds = round(sum(outcome.seconds for outcome in found), 3)
            inputs = sum((Counter(outcome.facts.get("inputs", {})) for outcome in found), Counter())
            if inputs:
                run.passes[name].facts["inputs"] = dict(inputs)
    for name in ("samples", "generation", "telemetry"):
        frames = [getattr(other, name).assign(launch=number) for number, other in enumerate(repeated, start=1)]
        rows = pd.concat(frames, ignore_index=True)
        setattr(run, name, table(name, {column: list(rows[column]) for column in rows}))
    run.compilations, run.breaks = repeated[0].compilations, repeated[0].breaks  # each compiles the same by itself
    run.launches = table("launches", [row for number, other in enumerate(repeated, 1) for row in _rows(number, other)])
    run.warnings = list(dict.fromkeys([*run.warnings, *(line for other in repeated for line in other.warnings)]))


def _rows(launch: int, run: Record) -> list[dict[str, Any]]:
    """What a launch says of modules and memory."""
    times = split_kernels(run).groupby(["module", "phase"], sort=False)["duration_ns"].sum()
    rows = [
        {"launch": launch, "module": module, "phase": phase, "quantity": "kernel_s", "value": int(ns) * 1e-9}
        for (module, phase), ns in times.items()
    ]
    peaks = run.memory.loc[run.memory["quantity"].isin(["allocated_peak", "rss_peak"]), "bytes"]
    if len(peaks):
        rows.append({"launch": launch, "quantity": "peak_bytes", "value": float(peaks.max())})
    return rows
