"""What gpuprof adds to a generation while it times it: its step, phases and parts observed, beside a bare loop.

The bare loop is in this file: the model's calls and the greedy choice, on the same inputs and with the same cache. Both
run in this process, by turns: a round is a few steps of either, which of them first alternates, and the medians of a
round are held against each other. The ratio is the median over the rounds, its interval the one that holds the median
in at least 95 % of all cases, whatever the distribution (order statistics). Exit status 1 where 2 % or more is added.

``--model tiny`` is a decoder of two narrow layers, whose calls are so short that the cost of one is seen by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from gpuprof.hardware.device import environment
from gpuprof.passes import timing
from gpuprof.workload import Options, Workload, build
from gpuprof.workload.steps import cache_argument, returned_cache

MOST_ADDED = 0.02
CONFIDENCE = 0.95


def built(model: str, options: Options) -> Workload:
    """A workload by the name of its model, or the tiny one."""
    if model != "tiny":
        return build(model, options)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return build(folder, options)


def bare_loop(
    workload: Workload, new_tokens: int, mark: Callable[[], object] = lambda: None
) -> Callable[[], torch.Tensor]:
    """The same generation with nothing around it: as one would write it. ``mark`` is called after each token."""
    model, calls = workload.model, list[dict[str, Any]]()
    with torch.no_grad():
        hook = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
        workload.step()
        hook.remove()
    cache = cache_argument(model)
    prompt, later = ({key: value for key, value in call.items() if key != cache} for call in calls[:2])
    later.pop("input_ids")

    def loop() -> torch.Tensor:
        with torch.no_grad():
            output = model(**prompt)
            tokens = [output.logits[:, -1:].argmax(-1)]
            mark()
            for _ in range(new_tokens - 1):
                output = model(input_ids=tokens[-1], **{cache: returned_cache(model, output)}, **later)
                tokens.append(output.logits[:, -1:].argmax(-1))
                mark()
            return torch.cat(tokens, dim=1)

    return loop


def timed(loop: Callable[[], Any], steps: int, device: torch.device) -> list[float]:
    """Seconds of each step of the bare loop, by the clock that gpuprof goes by on this device."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(steps):
            loop()
            marks.append(time.perf_counter())
        return [end - begin for begin, end in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        loop()
        event.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) * 1e-3 for begin, end in itertools.pairwise(events)]


def observed(workload: Workload, steps: int) -> list[float]:
    """Seconds of each step as the timing pass has them."""
    samples, parts, _ = timing.measure(workload, steps, lambda _: None, lambda: None)
    assert len(parts), "no part of the generation was seen"
    return [float(value) for value in samples.loc[samples["phase"] == "step", "time_s"]]


def interval(values: list[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with `CONFIDENCE`; all there is of few values."""
    ordered, count = sorted(values), len(values)
    outside, cut = 2.0**-count, 0  # probability that the median lies below the value with this number
    while cut + 1 <= (count - 1) // 2 and 2 * (outside + math.comb(count, cut + 1) * 2.0**-count) <= 1 - CONFIDENCE:
        cut += 1
        outside += math.comb(count, cut) * 2.0**-count
    return ordered[cut], ordered[count - 1 - cut]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a decoder as 'gpuprof profile' takes it, or tiny")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="pairs of few steps each")
    parser.add_argument("--steps", type=int, default=3, help="steps of either in a round")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    options = Options(
        mode="generate", prompt_len=args.prompt_len, new_tokens=args.new_tokens, batch_size=args.batch_size,
        device=args.device,
    )  # fmt: skip
    workload = built(args.model, options)
    loop = bare_loop(workload, args.new_tokens)
    if not torch.equal(loop(), workload.step()):
        print("the bare loop gives other tokens: it is not the same generation", file=sys.stderr)
        return 2
    arms: dict[str, Callable[[], list[float]]] = {
        "bare": lambda: timed(loop, args.steps, workload.device),
        "gpuprof": lambda: observed(workload, args.steps),
    }
    rounds: list[dict[str, float]] = []
    for number in range(-1, args.rounds):  # the first warms up
        order = [*arms] if number % 2 else [*reversed(arms)]
        found = {name: statistics.median(arms[name]()) for name in order}
        if number >= 0:
            rounds.append(found)
    ratios = [found["gpuprof"] / found["bare"] for found in rounds]
    added = [(found["gpuprof"] - found["bare"]) / args.new_tokens for found in rounds]
    result = {
        "model": args.model, "prompt_len": args.prompt_len, "new_tokens": args.new_tokens,
        "batch_size": args.batch_size, "device": str(workload.device), "environment": environment(),
        "rounds": rounds, "ratio": statistics.median(ratios), "ratio_interval": interval(ratios),
        "added_us_per_call": statistics.median(added) * 1e6,
        "added_us_per_call_interval": [end * 1e6 for end in interval(added)], "goal_ratio": 1 + MOST_ADDED,
    }  # fmt: skip
    for name in arms:
        middle = statistics.median(found[name] for found in rounds)
        print(f"{name:8} {middle * 1e3:9.3f} ms per step of {args.new_tokens} calls")
    print(
        "ratio    {:9.4f} ({:.4f} to {:.4f} with 95 %), below {:g} wanted".format(
            result["ratio"], *result["ratio_interval"], result["goal_ratio"]
        )
    )
    print(
        "added    {:9.2f} us per call ({:.2f} to {:.2f})".format(
            result["added_us_per_call"], *result["added_us_per_call_interval"]
        )
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["ratio"] < 1 + MOST_ADDED else 1


if __name__ == "__main__":
    sys.exit(main())
