"""What counting costs: gpuprof without weights beside torch's FlopCounterMode on meta tensors, in one process.

Both count the published LLaVA-OneVision report's workload: 16 image crops, a prompt of 7,405 positions, 7 new tokens.
Exits with 1 if a total is not what the mathematics says.
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
from torch.utils.flop_counter import FlopCounterMode

from gpuprof.passes import counting
from gpuprof.workload import Options, build, weightless
from gpuprof.workload.steps import cache_argument, returned_cache

MODEL = "llava-onevision-qwen2-7b"
CROPS, PROMPT, NEW_TOKENS = 16, 7405, 7
EXPECTED = {"full": 129_418_906_075_136, "causal": 118_414_984_134_656}


def gpuprof_counter() -> Callable[[], dict[str, int]]:
    options = Options(mode="generate", image_crops=CROPS, prompt_len=PROMPT, new_tokens=NEW_TOKENS)
    workload = build(MODEL, options, weightless=True)

    def count() -> dict[str, int]:
        ops = counting.count(workload, weightless.execute).ops
        # some releases of transformers compute the rotary angles by a matmul of 948,608 FLOPs
        ops = ops[~ops["module"].str.endswith("rotary_emb")]
        return {name: int(ops[f"flops_{name}"].sum()) for name in EXPECTED}

    return count


def torch_counter() -> Callable[[], dict[str, int]]:
    """The same modules called one by one: the whole model looks at the values of its inputs, which meta lacks."""
    model: Any = build(MODEL, Options(mode="generate", image_crops=CROPS), weightless=True).model
    inner, config = model.model, model.config
    size, dtype = config.vision_config.image_size, model.dtype

    def run() -> None:
        crops = torch.empty(CROPS, 3, size, size, dtype=dtype, device="meta")
        inner.multi_modal_projector(inner.vision_tower(crops).last_hidden_state)
        prompt = torch.empty(1, PROMPT, config.text_config.hidden_size, dtype=dtype, device="meta")
        output = inner.language_model(inputs_embeds=prompt, use_cache=True)
        model.lm_head(output.last_hidden_state[:, -1:])
        token = torch.zeros(1, 1, dtype=torch.long, device="meta")
        for _ in range(NEW_TOKENS - 1):
            cache = {cache_argument(inner.language_model): returned_cache(model, output)}
            output = inner.language_model(input_ids=token, use_cache=True, **cache)
            model.lm_head(output.last_hidden_state)

    def count() -> dict[str, int]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        rotary = sum(
            sum(flops.values()) for path, flops in counter.get_flop_counts().items() if path.endswith("rotary_emb")
        )
        return {"full": counter.get_total_flops() - rotary}

    return count


def alternate(counters: dict[str, Callable[[], dict[str, int]]], rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Seconds of every round of each counter, taken in turns, and the totals of its last."""
    seconds: dict[str, list[float]] = {name: [] for name in counters}
    totals: dict[str, dict[str, int]] = {}
    for number in range(rounds + 1):
        for name, count in counters.items():
            start = time.perf_counter()
            totals[name] = count()
            if number:  # the first round pays for imports and caches
                seconds[name].append(time.perf_counter() - start)
    return seconds, totals


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    counters = {"gpuprof": gpuprof_counter(), "FlopCounterMode": torch_counter()}
    seconds, totals = alternate(counters, args.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    right = {
        f"{name} {convention}": total == EXPECTED[convention]
        for name, found in totals.items()
        for convention, total in found.items()
    }
    result = {
        "workload": f"{MODEL} generate, {CROPS} crops, prompt {PROMPT}, {NEW_TOKENS} new tokens",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "median_s": medians,
        "ratio": medians["gpuprof"] / medians["FlopCounterMode"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "totals": totals,
        "expected": EXPECTED,
        "totals_right": right,
    }
    for name in counters:
        least, most = min(seconds[name]), max(seconds[name])
        found = ", ".join(f"{convention} {total:,}" for convention, total in totals[name].items())
        print(f"{name:16} {medians[name]:7.3f} s  ({least:.3f} to {most:.3f})  {found}")
    print(f"ratio {result['ratio']:.2f}, peak of the process {result['peak_rss_bytes'] / 1e9:.2f} GB")
    for name, good in right.items():
        if not good:
            print(f"{name}: not the expected total", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
