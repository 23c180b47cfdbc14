"""What `gpuprof show` of a saved run takes: whole processes in seconds of processor time. No GPU needed.

A counted run of `MODEL` is held against an interpreter that imports pandas. It and runs that were measured, which are
in the repository, are also held against an older build, which counts the one and has to read the others. It says less
of them: it had no verdict.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from side_by_side import ROOT, Ratio, finish, least_s, parser, unpacked, used

MODEL = "qwen2-7b"
PANDAS = ["-c", "import pandas"]
MEASURED = {
    "a training on an H200": ROOT / "results/nvidia-h200/2026-11-28/runs/reference-train.json.gz",
    "a generation on an H200": ROOT / "results/nvidia-h200/2026-11-28/runs/reference-generate.json.gz",
    "a small training on an H200": ROOT / "examples/h200-train.json.gz",
}
LIMIT = 1.15
"""Showing a counted run over the import of pandas."""


def main() -> int:
    asked = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, unpacked(asked.base) as base:
        run = Path(folder) / "run.json"
        used(["-m", "gpuprof", "count", MODEL, "-q", "-o", str(run)], base)
        runs = {f"a counted {MODEL}": run} | MEASURED
        commands = {"import pandas": (PANDAS, ROOT)} | {
            f"{name}, {state}": (["-m", "gpuprof", "show", str(path)], source)
            for name, path in runs.items()
            for state, source in (("here", ROOT), ("base", base))
        }
        seconds = least_s(commands, asked.rounds)
    rows = [
        Ratio(f"gpuprof show, {name}", f"the build of {asked.base}", seconds[f"{name}, here"], seconds[f"{name}, base"])
        for name in runs
    ]
    counted = rows[0]
    rows.insert(
        0, Ratio(counted.work, "python -c 'import pandas'", counted.here, seconds["import pandas"], target=LIMIT)
    )
    return finish(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
