"""What reading traces costs: of the profiler's events to tables beside torch's own ``prof.events()``, and of a file.

One profile of a small decoder's training steps on the CPU is recorded, and both readers are fed from it. Another build
records one of its own. The file is one of `bench_import.py`, with all of its steps taken as one; a build that cannot
read files yet is left out there.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_import
import side_by_side
from side_by_side import ROOT, Ratio

HERE = Path(__file__).resolve()


def record(events: int) -> tuple[Any, Any]:
    """A profile of about that many events, and the module calls in it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from gpuprof.passes import trace
    from gpuprof.workload import from_module

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=64
    )
    ids = torch.zeros(1, 8, dtype=torch.long)
    one = from_module(LlamaForCausalLM(config), (), {"input_ids": ids, "labels": ids})
    first = trace.record(one, lambda: None)
    trace.ingest(*first)  # what it imports is no part of what is measured
    per_step = len(trace.read(first[0]))
    steps = max(1, events // per_step)
    many = from_module(one.model, step=lambda: [one.step() for _ in range(steps)])
    return trace.record(many, lambda: None)


def least_s(run: Callable[[], Any], rounds: int) -> float:
    """The least processor time of some rounds."""
    times = []
    for _ in range(rounds):
        gc.collect()
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def growth_bytes(run: Callable[[], Any]) -> int:
    """By how much more memory is resident at most while something runs than before: for once in a process.

    What was let go before, as by the recording, goes back to the system first; it would be taken again without growth.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # of glibc, as is torch's own build
    Path("/proc/self/clear_refs").write_text("5")  # the most from here on
    before = _resident_bytes("VmRSS")
    run()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def of_profile(events: int, rounds: int, figure: str) -> dict[str, float]:
    """What one build takes for a profile: seconds, beside torch's too, or bytes, or those of the binding's own list."""
    from gpuprof.passes import trace

    profiler, ownership = record(events)
    results = profiler.profiler.kineto_results
    if figure == "binding":
        return {"binding": growth_bytes(results.events)}
    if figure == "bytes":
        return {"bytes": growth_bytes(lambda: trace.ingest(profiler, ownership))}
    found = {"events": len(results.events()), "s": least_s(lambda: trace.ingest(profiler, ownership), rounds)}
    if figure == "torch_s":  # what events() keeps from its first call is not what is timed here
        found["torch_s"] = least_s(lambda: profiler.profiler._parse_kineto_results(results), rounds)
    return found


def of_file(path: Path, rounds: int) -> dict[str, float]:
    """What one build takes for a file; nothing of one that reads none."""
    import gpuprof

    if not hasattr(gpuprof, "read_trace"):
        return {}

    def read() -> None:
        gpuprof.read_trace(path, step="all")

    import gpuprof.imported  # its libraries are no part of the reading

    return {"bytes": growth_bytes(read), "s": least_s(read, rounds)}


def child(source: Path, *arguments: object) -> dict[str, float]:
    said = side_by_side.used([HERE, "--child", *map(str, arguments)], source).output
    return dict(json.loads(said.splitlines()[-1]))


def main() -> int:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="how many the profile and the file have, about")
    parser.add_argument("--child", nargs="+", help="of one build: profile or file")
    asked = parser.parse_args()
    if asked.child:
        what, first, rounds, *figure = asked.child
        print(json.dumps(of_file(Path(first), int(rounds)) if what == "file" else
                         of_profile(int(first), int(rounds), *figure)))  # fmt: skip
        return 0
    with side_by_side.unpacked(asked.base) as base, tempfile.TemporaryDirectory() as folder:

        def of(source: Path, *figures: str) -> dict[str, float]:
            found: dict[str, float] = {}
            for figure in figures:  # each in a process of its own
                found |= child(source, "profile", asked.events, asked.rounds, figure)
            return found

        ours, theirs = of(ROOT, "bytes", "binding", "torch_s"), of(base, "bytes", "s")
        path = Path(folder) / "trace.json"
        bench_import.at_least(asked.events, path)
        files = {source: child(source, "file", path, asked.rounds) for source in (base, ROOT)}
    profile, file = (
        f"a profile of {ours['events']:,.0f} events to tables",
        f"a file of {asked.events:,} events to a run",
    )
    print(f"{profile}: {ours['s'] / ours['events'] * 1e6:.2f} us per event")
    rows = [
        Ratio(profile, "torch's prof.events()", ours["s"], ours["torch_s"], target=0.08),
        Ratio(f"the most memory for {profile}", "the older build's", ours["bytes"], theirs["bytes"], "bytes", 0.6),
        Ratio("of it the binding's list of events", "all of it", ours["binding"], ours["bytes"], "bytes"),
        Ratio(profile, "the older build", ours["s"] / ours["events"], theirs["s"] / theirs["events"], "s per event"),
    ]
    here, there = files[ROOT], files[base]
    if there:
        rows += [
            Ratio(file, "the older build", here["s"], there["s"]),
            Ratio(f"the most memory for {file}", "the older build's", here["bytes"], there["bytes"], "bytes"),
        ]
    else:
        print(f"{file}: {here['s']:.3f} s, {here['bytes'] / 1e6:.0f} MB; the older build reads none")
    return side_by_side.finish(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
