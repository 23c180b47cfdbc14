"""What many ranks cost: what gpuprof adds to a step under DDP, and the run of a job made of its ranks' files.

Steps: two processes on this CPU run one step of a model under DDP, by turns in a plain loop and in gpuprof's timing
pass, which has nothing attached. The rounds of either are held against those of the other beside it.

Files: a preset is profiled once on this CPU, and its run saved as that of every rank. They are gathered in a process
of its own, whose imports count as memory and not as time; beside it stands what loading one of the files takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import gpuprof
from gpuprof.job_part import summed

MOST_S, MOST_BYTES, MOST_ADDED = 5.0, 1e9, 0.05

STEPPING = """
import json, sys, time
import torch, torch.distributed as dist
import gpuprof

rounds, steps = map(int, sys.argv[1:3])
dist.init_process_group("gloo")
torch.manual_seed(0)
layers = [layer for _ in range(3) for layer in (torch.nn.Linear(768, 768), torch.nn.ReLU())]
model, x = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers)), torch.randn(256, 768)

def step():
    model(x).square().mean().backward()
    model.zero_grad()

def plain():
    times = []
    for number in range(steps + 2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times[2:]

def inside():
    run = gpuprof.profile(model, step=step, passes=["time"], warmup=2, steps=steps, peak_tflops=1.0)
    return run.samples.loc[run.samples["phase"] == "step", "time_s"].tolist()

found = [(plain(), inside()) if number % 2 else (inside(), plain())[::-1] for number in range(rounds)]
if dist.get_rank() == 0:
    print("\\n" + json.dumps(found))
dist.barrier()
dist.destroy_process_group()
"""

GATHERING = """
import json, re, sys, time
from pathlib import Path
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
    # not getrusage: that one keeps the peak of the process that this one was started by
    "peak_bytes": int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024,
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


def held_against(rounds: int, steps: int) -> tuple[float, float, list[float]]:
    """Seconds of a step in a plain loop and in the timing pass, medians of all, and the ratio of each round's."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "stepping.py"
        script.write_text(STEPPING)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, str(rounds), str(steps)], check=True, capture_output=True, text=True, env=environment
        )
    found = json.loads(done.stdout.splitlines()[-1])
    plain, inside = (median(time_s for one in found for time_s in one[side]) for side in (0, 1))
    return plain, inside, sorted(median(one[1]) / median(one[0]) for one in found)


def bench_steps(rounds: int, steps: int) -> dict[str, Any]:
    """What the timing pass adds to a step; something where the rounds agree in it."""
    plain, inside, ratios = held_against(rounds, steps)
    low, high = (ratios[round(at * (len(ratios) - 1))] for at in (0.25, 0.75))
    print(
        f"a step under DDP on two ranks: {plain * 1e3:.2f} ms in a plain loop, {inside * 1e3:.2f} ms in the timing pass"
    )
    print(f"ratio of {rounds} rounds of {steps} steps: median {median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")
    return {"plain_s": plain, "inside_s": inside, "ratios": ratios, "quartiles": [low, high]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="as 'gpuprof profile' takes it")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--run", type=Path, metavar="FILE", help="a saved run instead of profiling one")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15, help="of steps, by turns; 0 for the files alone")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    steps = bench_steps(args.rounds, args.steps) if args.rounds else None
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
        args.json.write_text(json.dumps({"ranks": args.ranks, **figures, "steps": steps}, indent=1) + "\n")
    added = steps is not None and median(steps["ratios"]) >= 1 + MOST_ADDED and steps["quartiles"][0] > 1
    return int(figures["gathered_s"] >= MOST_S or figures["peak_bytes"] >= MOST_BYTES or added)


if __name__ == "__main__":
    sys.exit(main())
