"""What it costs to make the run of a job from the saved runs of its ranks: seconds, and memory at its peak.

A preset is profiled once on this CPU, and its run saved as that of every rank. They are gathered in a process of its
own, whose imports count as memory and not as time; so does reading one of the files alone, beside which that is held.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gpuprof
from gpuprof.job import summed

MOST_S, MOST_BYTES = 5.0, 1e9

GATHERING = """
import json, resource, sys, time
import gpuprof, gpuprof.job

*paths, out = sys.argv[1:]
start = time.perf_counter()
gpuprof.load(paths[0])
one = time.perf_counter()
job = gpuprof.read_job(paths)
gathered = time.perf_counter()
job.save(out)
saved = time.perf_counter()
gpuprof.load(out)
print(json.dumps({
    "one_s": one - start, "gathered_s": gathered - one, "saved_s": saved - gathered,
    "loaded_s": time.perf_counter() - saved, "flops": int(job.ops["flops_causal"].sum()),
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def rank_files(run: gpuprof.Run, world: int, folder: Path) -> list[Path]:
    """The run as each rank of a data-parallel job would have saved it."""
    place = {"world": world, "mesh": {"dp": world}, "groups": {"dp": list(range(world))}, "parallel": ["ddp"]}
    paths = []
    for rank in range(world):
        run.workload = {**run.workload, **place, "rank": rank}
        run.ranks, run.doubts = run.ranks.head(0), {}
        paths.append(summed(run).save(folder / f"run.rank{rank}.json"))
    return paths


def gather(paths: list[Path], out: Path) -> dict[str, Any]:
    """Figures of one gathering."""
    command = [sys.executable, "-c", GATHERING, *map(str, paths), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="as 'gpuprof profile' takes it")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--run", type=Path, metavar="FILE", help="a saved run instead of profiling one")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    run = gpuprof.load(args.run) if args.run else gpuprof.profile(args.model, batch_size=1, seq_len=args.seq_len)
    flops = int(run.ops["flops_causal"].sum())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = rank_files(run, args.ranks, folder)
        figures = gather(paths, folder / "run.json")
        figures["file_bytes"] = paths[0].stat().st_size
        figures["job_bytes"] = (folder / "run.json").stat().st_size
    if figures["flops"] != args.ranks * flops:
        raise AssertionError(f"{figures['flops']} FLOPs of the job, {args.ranks} x {flops} of its ranks")
    sizes = (f"{figures[name] / 1e6:.1f} MB" for name in ("file_bytes", "job_bytes"))
    print(f"{args.ranks} ranks: files of {next(sizes)} each, {next(sizes)} of the job")
    each_ms = figures["gathered_s"] / args.ranks * 1e3
    print(f"gathered in {figures['gathered_s']:.2f} s (below {MOST_S:g} s): {each_ms:.0f} ms for each rank,")
    print(f"where loading the whole run of one takes {figures['one_s'] * 1e3:.0f} ms")
    print(f"peak memory {figures['peak_bytes'] / 1e6:.0f} MB (below {MOST_BYTES / 1e6:.0f} MB)")
    print(f"the job saved in {figures['saved_s']:.2f} s, loaded in {figures['loaded_s']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps({"ranks": args.ranks, **figures}, indent=1) + "\n")
    return int(figures["gathered_s"] >= MOST_S or figures["peak_bytes"] >= MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
