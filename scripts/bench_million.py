"""Verbs over a run with a million kernels: each in less than ten seconds of a processor and two gigabytes.

The run is the committed one of a training step of LLaVA-OneVision with Qwen2-7B on an H200, 9,023 kernels, as often as
makes a million: a step of 111 micro-batches. What was counted and timed is multiplied likewise, so that all that is
checked of a run holds of this one. With --beside another build does the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Ratio, Used, finish, parser, unpacked, used

import gpuprof

PATTERN = ROOT / "results/nvidia-h200/2026-11-28/runs/reference-train.json.gz"
KERNELS = 1_000_000
VERBS = ("show", "budget", "roofline", "report")
SECONDS, BYTES = 10.0, 2e9

TIMES = {
    "ops": ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes"),
    "estimates": ("calls", "flops_profiler"),
    "tree": ("calls",),
    "samples": ("time_s",),
    "telemetry": ("time_s",),
}
"""What is of a step, of which there are many: figures that are multiplied."""


def million() -> tuple[Any, int]:
    """The run, and how many kernels it has."""
    run = gpuprof.load(PATTERN)
    kernels = run.columns("kernels")
    times = -(-KERNELS // len(kernels["module"]))
    calls = max(call for call in kernels["call"] if call is not None) + 1
    span = max(map(sum, zip(kernels["start_ns"], kernels["duration_ns"], strict=True)))
    shifts = {"call": calls, "start_ns": span}
    run.kernels = {
        name: [
            None if value is None else value + number * shifts[name] if name in shifts else value
            for number in range(times)
            for value in values
        ]
        for name, values in kernels.items()
    }
    for table, names in TIMES.items():
        held = run.columns(table)
        setattr(run, table, held | {name: [multiplied(value, times) for value in held[name]] for name in names})
    for name in ("tokens_per_step", "samples_per_step"):
        if run.workload.get(name):
            run.workload[name] *= times
    return run, times * len(kernels["module"])


def multiplied(value: Any, times: int) -> Any:
    """A figure of a step of so many; None where it is not known."""
    return None if value is None else value * times


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--beside", metavar="COMMIT", help="this build too, over the run in plain columns: takes minutes")
    asked = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "run.json", Path(folder) / "plain.json"
        run, kernels = million()
        run.save(path)
        rows = []
        for verb in VERBS:
            several = [used(arguments(verb, path, folder)) for _ in range(asked.rounds)]
            rows += told(verb, kernels, several)
        if asked.beside:
            with unpacked(asked.beside) as source:
                write_plain(run, plain, version_of(source))
                del run
                for verb in VERBS:
                    other = used(arguments(verb, plain, folder), source)
                    seconds = next(row.here for row in rows if row.work.startswith(verb))
                    rows.append(Ratio(f"{verb} of {kernels:,} kernels", asked.beside, seconds, other.processor_s))
    return finish(rows, asked)


def arguments(verb: str, path: Path, folder: str) -> list[str]:
    """Of Python: a verb over a run."""
    page = ["-o", str(Path(folder) / "page.html")] if verb == "report" else []
    return ["-m", "gpuprof", verb, str(path), *page]


def told(verb: str, kernels: int, several: list[Used]) -> list[Ratio]:
    """The least that a verb used, against what it may."""
    work = f"{verb} of {kernels:,} kernels"
    return [
        Ratio(work, f"{SECONDS:g} s", min(one.processor_s for one in several), SECONDS, target=1.0),
        Ratio(f"{work}, most resident", "2 GB", min(one.peak_bytes for one in several), BYTES, "B", 1.0),
    ]


def version_of(source: Path) -> int:
    """The version of run files that a build writes."""
    code = "import gpuprof.record as r; print(r.SCHEMA_VERSION)"
    return int(used(["-c", code], source).output)


def write_plain(run: Any, path: Path, version: int) -> None:
    """A run with a list for each column, as an older build reads it."""
    path.write_text(json.dumps(run.to_dict() | {"schema_version": version}, allow_nan=False, separators=(",", ":")))


if __name__ == "__main__":
    sys.exit(main())
