"""What the file of a run takes, and loading it: of a training step of Qwen2-7B that was counted, and of a recorded one.

Both builds load the same run, each from a file as it writes it; an older one has the tables that it knows. Loading is
`gpuprof.record.load` in a process that has pandas already, with and without the frames of all tables, which an older
build makes in any case.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from side_by_side import ROOT, Ratio, finish, parser, unpacked, used

RECORDED = ROOT / "results/nvidia-h200/2026-11-28/runs/reference-train.json.gz"

SAVE = """
import json, sys
from pathlib import Path
from gpuprof import record
version = record.SCHEMA_VERSION
content = json.loads(Path(sys.argv[1]).read_text()) | {"schema_version": version}
plain = Path(sys.argv[2] + ".plain.json")
plain.write_text(json.dumps(content))
run = record.load(plain)
for end in (".json", ".json.gz"):
    run.save(sys.argv[2] + end)
"""
"""Saves the run of a file of plain columns as this build does, under a name with two ends."""

LOAD = """
import json, sys, time
import numpy, pandas
from gpuprof import record
tables, found = record.TABLES, {}
for path in sys.argv[2:]:
    for frames in (True, False):
        several = []
        for _ in range(1 + int(sys.argv[1])):
            before = time.process_time()
            run = record.load(path)
            if frames:
                for name in tables:
                    getattr(run, name)
            several.append(time.process_time() - before)
        found[f"{path} {frames}"] = min(several[1:])
print(json.dumps(found))
"""
"""Seconds of loading each file, with frames and without, the least of many times after the first."""


def main() -> int:
    asked = parser(__doc__).parse_args()
    rows: list[Ratio] = []
    with tempfile.TemporaryDirectory() as folder, unpacked(asked.base) as base:
        used(["-m", "gpuprof", "count", "qwen2-7b", "-q", "-o", f"{folder}/counted.json"])
        sources = {"here": ROOT, "base": base}
        for name, path in (("counted", Path(folder) / "counted.json"), ("with kernels", RECORDED)):
            plain = Path(folder) / "plain.json"
            code = "import gpuprof, json, sys; print(json.dumps(gpuprof.load(sys.argv[1]).to_dict()))"
            plain.write_text(used(["-c", code, path]).output)
            for build, source in sources.items():
                used(["-c", SAVE, plain, f"{folder}/{build}"], source)
            rows += compared(name, folder, sources, asked.base, asked.rounds)
    return finish(rows, asked)


def compared(name: str, folder: str, sources: dict[str, Path], base: str, rounds: int) -> list[Ratio]:
    """A run as each build wrote it: the size of its files and the seconds of loading them."""
    ends, least = (".json", ".json.gz"), dict[str, float]()
    for _ in range(rounds):
        for build, source in sources.items():
            paths = [f"{folder}/{build}{end}" for end in ends]
            for key, seconds in json.loads(used(["-c", LOAD, "5", *paths], source).output).items():
                least[key] = min(seconds, least.get(key, seconds))
    rows = []
    for end in ends:
        here, there = (Path(f"{folder}/{build}{end}") for build in sources)
        target = 1 / 3 if end == ".json" else None
        size = [path.stat().st_size / 1000 for path in (here, there)]
        rows.append(Ratio(f"size of a Qwen2-7B train step, {name}, {end}", base, *size, "kB", target))
        for frames, what in ((True, "all its frames"), (False, "its columns alone")):
            seconds = [least[f"{path} {frames}"] for path in (here, there)]
            rows.append(Ratio(f"loading it, with {what}", base, *seconds, target=target))
    return rows


if __name__ == "__main__":
    sys.exit(main())
