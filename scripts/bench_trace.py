"""What reading a trace costs per event: gpuprof's read, attribution and tables beside torch's own ``prof.events()``.

One profile of a small decoder's training steps on the CPU is recorded, and both readers are fed from it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gpuprof.passes import trace
from gpuprof.workload import from_module

GOAL_US = 15.0


def record(events: int) -> tuple[Any, Any]:
    """A profile of about that many events, and the module calls in it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=64
    )
    ids = torch.zeros(1, 8, dtype=torch.long)
    one = from_module(LlamaForCausalLM(config), (), {"input_ids": ids, "labels": ids})
    per_step = len(trace.read(trace.record(one, lambda: None)[0]))
    steps = max(1, events // per_step)
    many = from_module(one.model, step=lambda: [one.step() for _ in range(steps)])
    return trace.record(many, lambda: None)


def timed(run: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="how many events to record, about")
    parser.add_argument("--rounds", type=int, default=5, help="times that gpuprof reads the profile")
    parser.add_argument("--torch-rounds", type=int, default=1, help="times that torch does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    profiler, ownership = record(args.events)
    count = len(profiler.profiler.kineto_results.events())
    ours = timed(lambda: trace.ingest(profiler, ownership), args.rounds)
    # what events() keeps from its first call is not what is timed here
    theirs = timed(lambda: profiler.profiler._parse_kineto_results(profiler.profiler.kineto_results), args.torch_rounds)
    per_event = {name: statistics.median(times) / count * 1e6 for name, times in (("gpuprof", ours), ("torch", theirs))}
    result = {
        "torch": torch.__version__,
        "events": count,
        "seconds": {"gpuprof": ours, "torch": theirs},
        "us_per_event": per_event,
        "ratio": per_event["gpuprof"] / per_event["torch"],
        "goal_us_per_event": GOAL_US,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(f"{count:,} events")
    print(f"gpuprof: read, attribute, tables {per_event['gpuprof']:6.2f} us per event (goal {GOAL_US:g})")
    print(f"torch:   prof.events()           {per_event['torch']:6.2f} us per event")
    print(f"ratio {result['ratio']:.2f}, peak of the process {result['peak_rss_bytes'] / 1e9:.2f} GB")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if per_event["gpuprof"] <= GOAL_US else 1


if __name__ == "__main__":
    sys.exit(main())
