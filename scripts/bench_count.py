"""What counting costs beside torch's FlopCounterMode, and beside an older build.

Three steps, each counted by both in a process of its own, taking turns:

- without weights: the published LLaVA-OneVision report's workload, 16 image crops, a prompt of 7,405 positions, 7 new
  tokens. FlopCounterMode runs the same modules on meta tensors.
- a training step of SmolLM2 135M with 8 layers and 4,096 words, really run on a CPU in one thread, 1 x 32 positions:
  what each adds to the plain step.
- a generation by the same model, 32 positions and 8 new tokens, likewise. gpuprof also counts the bytes that it moves.

Fails if a total is not what the mathematics says.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Ratio, finish, parser, unpacked, used

MODEL = "llava-onevision-qwen2-7b"
CROPS, PROMPT, NEW_TOKENS = 16, 7405, 7
WEIGHTLESS = {"full": 129_418_906_075_136, "causal": 118_414_984_134_656}

LAYERS, WORDS, POSITIONS, MADE = 8, 4096, 32, 8
WIDTH, KEYS, INNER = 576, 192, 1536
LAYER = WIDTH * (2 * WIDTH + 2 * KEYS + 3 * INNER)
"""Weights of a layer that tokens are multiplied by."""

Totals = Callable[[], dict[str, int]]
"""What a count comes to, added up when that is asked for; of a plain step nothing."""

Counter = Callable[[], Totals]
"""Counts one step."""


def weightless_execute() -> Any:
    """How this build carries out operators without weights."""
    try:
        from gpuprof.workload.weightless import execute
    except ImportError:  # where it was in older builds
        from gpuprof.passes.weightless import execute
    return execute


def totals(counted: Any) -> dict[str, int]:
    """Matmul FLOPs of a count by convention, without attention as well."""
    ops = counted.ops
    # some releases of transformers compute the rotary angles by a small matmul
    ops = ops[~ops["module"].str.endswith("rotary_emb")]
    products = ops[ops["kind"] != "attention"]
    return {
        "full": int(ops["flops_full"].sum()),
        "causal": int(ops["flops_causal"].sum()),
        "products": int(products["flops_full"].sum()),
    }


def flop_counter(step: Callable[[], Any], name: str) -> Counter:
    """FlopCounterMode around a step, and what its total is called."""
    from torch.utils.flop_counter import FlopCounterMode

    def count() -> Totals:
        with FlopCounterMode(display=False) as counter:
            step()
        return partial(added_up, counter)

    def added_up(counter: FlopCounterMode) -> dict[str, int]:
        by_module = counter.get_flop_counts().items()
        rotary = sum(sum(flops.values()) for path, flops in by_module if path.endswith("rotary_emb"))
        return {name: counter.get_total_flops() - rotary}

    return count


def without_weights() -> tuple[dict[str, Counter], dict[str, int]]:
    import torch

    from gpuprof.passes import counting
    from gpuprof.workload import Options, build

    asked = Options(mode="generate", image_crops=CROPS, prompt_len=PROMPT, new_tokens=NEW_TOKENS)
    workload, execute = build(MODEL, asked, weightless=True), weightless_execute()
    model: Any = build(MODEL, Options(mode="generate", image_crops=CROPS), weightless=True).model
    inner, config = model.model, model.config
    size, dtype = config.vision_config.image_size, model.dtype

    def one_by_one() -> None:
        """The same modules: the whole model looks at the values of its inputs, which meta lacks."""
        with torch.no_grad():
            crops = torch.empty(CROPS, 3, size, size, dtype=dtype, device="meta")
            inner.multi_modal_projector(inner.vision_tower(crops).last_hidden_state)
            prompt = torch.empty(1, PROMPT, config.text_config.hidden_size, dtype=dtype, device="meta")
            output = inner.language_model(inputs_embeds=prompt, use_cache=True)
            model.lm_head(output.last_hidden_state[:, -1:])
            token = torch.zeros(1, 1, dtype=torch.long, device="meta")
            for _ in range(NEW_TOKENS - 1):
                output = inner.language_model(input_ids=token, use_cache=True, past_key_values=output.past_key_values)
                model.lm_head(output.last_hidden_state)

    counters = {
        "gpuprof": lambda: partial(totals, counting.count(workload, execute)),
        "FlopCounterMode": flop_counter(one_by_one, "full"),
    }
    return counters, WEIGHTLESS


def small_model(folder: Path) -> Path:
    """A folder with the configuration of the model that is really run."""
    preset = json.loads((ROOT / "gpuprof/workload/presets/smollm2-135m.json").read_text())
    changed = {"architectures": [preset["architecture"]], "num_hidden_layers": LAYERS, "vocab_size": WORDS}
    (folder / "config.json").write_text(json.dumps(preset["config"] | changed))
    return folder


def really_run(mode: str) -> tuple[dict[str, Counter], dict[str, int]]:
    from gpuprof.passes import counting
    from gpuprof.workload import Options, build

    sizes = {"seq_len": POSITIONS} if mode == "train" else {"prompt_len": POSITIONS, "new_tokens": MADE}
    with tempfile.TemporaryDirectory() as folder:
        workload = build(str(small_model(Path(folder))), Options(mode=mode, batch_size=1, device="cpu", **sizes))

    def plain() -> Totals:
        workload.step()
        return dict

    counters = {
        "plain": plain,
        "gpuprof": lambda: partial(totals, counting.count(workload)),
        "FlopCounterMode": flop_counter(workload.step, "products"),  # which does not know the attention of a CPU
    }
    if mode == "train":
        products = 6 * POSITIONS * (LAYERS * LAYER + WIDTH * WORDS)
        attention = LAYERS * 3 * 4 * POSITIONS**2 * WIDTH
    else:
        positions = POSITIONS + MADE - 1
        products = 2 * (positions * LAYERS * LAYER + MADE * WIDTH * WORDS)
        pairs = POSITIONS**2 + sum(range(POSITIONS + 1, POSITIONS + MADE))
        attention = LAYERS * 4 * pairs * WIDTH
    return counters, {"products": products, "full": products + attention}


STEPS = {
    "without weights": (without_weights, 1),
    "train": (lambda: really_run("train"), 4),
    "generate": (lambda: really_run("generate"), 4),
}
"""What is counted, and how often for each round that is asked for: short ones more often."""


Seconds = dict[str, dict[str, list[float]]]
"""Of processor time, by step and counter, one of each round."""


def measured(step: str, rounds: int, only: str | None) -> dict[str, list[float]]:
    """What each counter takes for a step; a round before those that count is left out.

    Raises:
        SystemExit: a total is not the expected one.
    """
    import torch

    torch.set_num_threads(1)
    make, often = STEPS[step]
    try:
        counters, expected = make()
    except Exception:
        if only is None:
            raise
        return {}  # a step that the older build cannot take
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds * often + 1):
        for name, count in counters.items():
            if only is not None and name not in ("plain", only):
                continue
            start = time.process_time()
            found = count()
            took = time.process_time() - start
            wrong = {what: total for what, total in found().items() if total != expected.get(what, total)}
            if wrong:
                sys.exit(f"{step}: {name} counts {wrong}, which should be {expected}")
            if number:
                seconds[name].append(took)
    return seconds


def added(seconds: dict[str, list[float]], name: str) -> float:
    """What a counter adds to the plain step of the same round, the median: that step's own time varies by more."""
    return statistics.median(map(operator.sub, seconds[name], seconds["plain"]))


def rows(here: Seconds, base: Seconds, commit: str) -> list[Ratio]:
    found = []
    whole = {name: min(each) for name, each in here["without weights"].items()}
    work = f"count {MODEL} without weights, prefill and {NEW_TOKENS - 1} decodes"
    found.append(Ratio(work, "FlopCounterMode on meta", whole["gpuprof"], whole["FlopCounterMode"], target=0.5))
    if base.get("without weights"):
        found.append(Ratio(work, f"the build of {commit}", whole["gpuprof"], min(base["without weights"]["gpuprof"])))
    for step, target in (("train", 0.6), ("generate", None)):
        work = f"what counting adds to a step of 8 layers on a CPU, {step}"
        ours, torchs = (added(here[step], name) for name in ("gpuprof", "FlopCounterMode"))
        found.append(Ratio(work, "what FlopCounterMode adds", ours, torchs, target=target))
        if base.get(step):
            found.append(Ratio(work, f"the build of {commit}", ours, added(base[step], "gpuprof")))
    return found


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = made.parse_args()
    if asked.child:
        step, counters = asked.child
        print(json.dumps(measured(step, asked.rounds, None if counters == "all" else counters)))
        return 0

    def each(source: Path, counters: str) -> Seconds:
        arguments = [__file__, "--rounds", str(asked.rounds), "--child"]
        said = {step: used([*arguments, step, counters], source).output for step in STEPS}
        return {step: json.loads(output.splitlines()[-1]) for step, output in said.items()}

    here, base = each(ROOT, "all"), {}
    if asked.base:
        with unpacked(asked.base) as source:
            base = each(source, "gpuprof")
    return finish(rows(here, base, asked.base), asked)


if __name__ == "__main__":
    sys.exit(main())
