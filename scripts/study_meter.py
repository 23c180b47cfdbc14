"""FLOPs of a training step by hand and as four ways say them.

Each way is what its users have: the Trainer's ``total_flos`` after a step of the Trainer, Lightning's ``measure_flops``
of a batch times the batches, torchtitan's formula, and `gpuprof.Meter` in the loop that trains. The count by hand is
derived here from the configuration alone, with nothing of gpuprof.

Writes results/<device>/<date>-meter/ (results.json, table.md). Exit status 1 where the Meter is not the count by hand.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gpuprof import Meter
from gpuprof.files import write_atomically
from gpuprof.hardware.device import describe, environment
from gpuprof.workload.presets import load_preset

MODEL = "smollm2-135m"
RANK = 8


class Case(NamedTuple):
    """A way to train.

    Attributes:
        what: it is, in words.
        lengths: tokens of each sequence of a micro-batch that are no padding, as shares of the longest.
        micro_batches: of a step.
        lora: adapters of `RANK` on the query and value projections are trained, and nothing else.
        checkpointed: layers are run again in the backward.
    """

    what: str
    lengths: tuple[float, ...] = (1.0,)
    micro_batches: int = 1
    lora: bool = False
    checkpointed: bool = False


CASES = {
    "plain": Case("everything trained"),
    "lora": Case(f"LoRA of rank {RANK} on q_proj and v_proj (peft)", lora=True),
    "padded": Case("four sequences, padded to the longest: 62.5 % are tokens", lengths=(1.0, 0.75, 0.5, 0.25)),
    "accumulated": Case("four micro-batches a step", micro_batches=4),
    "checkpointed": Case("layers checkpointed, not reentrant", checkpointed=True),
}


def by_hand(config: LlamaConfig, case: Case, seq_len: int) -> int:
    """Model FLOPs of a step, a multiply-accumulate as 2, attention over the pairs that a causal mask leaves.

    The reasons, line by line, are in results/README.md.
    """
    h, v, f, layers = config.hidden_size, config.vocab_size, config.intermediate_size, config.num_hidden_layers
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    kv = config.num_key_value_heads * width
    tokens = len(case.lengths) * seq_len  # padding is multiplied like the rest
    q = o = 2 * tokens * h * h
    k = value = 2 * tokens * h * kv
    mlp = 3 * 2 * tokens * h * f
    attention = 2 * (2 * width) * heads * len(case.lengths) * (seq_len * (seq_len + 1) // 2)
    head = 2 * tokens * h * v
    layer = q + k + value + o + mlp + attention
    if not case.lora:
        return 3 * (layers * layer + head) * case.micro_batches
    down = 2 * (2 * tokens * h * RANK)  # into the rank: of the queries and of the values
    up = 2 * tokens * RANK * (h + kv)
    forward = layers * (layer + down + up) + head
    # no base weight has a gradient; inputs have one, but in the first layer those of q, k, v and their adapters
    inputs = layers * (o + mlp) + (layers - 1) * (q + k + value + down) + layers * up + head
    return (forward + inputs + layers * (down + up) + layers * 2 * attention) * case.micro_batches


def by_torchtitan(config: LlamaConfig, case: Case, seq_len: int) -> int:
    """6 N + 6 L H (d_qk + d_v) s a token, with N all parameters but a lookup table that is not the head too."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model_of(config, case).parameters())
    width = config.hidden_size // config.num_attention_heads
    table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * 2 * width * seq_len
    return (6 * (parameters - table) + attention) * len(case.lengths) * seq_len * case.micro_batches


def model_of(config: LlamaConfig, case: Case) -> torch.nn.Module:
    """The model as it is trained."""
    torch.manual_seed(0)
    model: torch.nn.Module = LlamaForCausalLM(copy.deepcopy(config)).train()  # a model may change its own
    if case.checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if case.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
    return model


def sequences(config: LlamaConfig, case: Case, seq_len: int) -> list[dict[str, torch.Tensor]]:
    """The sequences of a micro-batch; those with padding have a mask."""
    found = []
    for share in case.lengths:
        ids = torch.randint(1, config.vocab_size, (seq_len,))
        real = torch.arange(seq_len) < round(share * seq_len)
        mask = {"attention_mask": real.long()} if len(case.lengths) > 1 else {}
        found.append({"input_ids": ids, "labels": torch.where(real, ids, -100), **mask})
    return found


def batch_of(config: LlamaConfig, case: Case, seq_len: int) -> dict[str, torch.Tensor]:
    """A micro-batch."""
    each = sequences(config, case, seq_len)
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def by_meter(config: LlamaConfig, case: Case, seq_len: int) -> int:
    """What the Meter reads after two steps of a plain loop: the first is not looked at."""
    model, batch = model_of(config, case), batch_of(config, case, seq_len)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    meter = Meter(model, optimizer)
    for _ in range(2):
        for number in range(case.micro_batches):
            with meter.step(batch):
                (model(**batch).loss / case.micro_batches).backward()
                if number + 1 == case.micro_batches:
                    optimizer.step()
                    optimizer.zero_grad()
    return int(meter.read()["meter/flops_per_step"])


def by_trainer(config: LlamaConfig, case: Case, seq_len: int) -> int:
    """The Trainer's ``total_flos`` of a step."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=1, per_device_train_batch_size=len(case.lengths), report_to="none", save_strategy="no",
            gradient_accumulation_steps=case.micro_batches, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
            logging_strategy="no",
        )  # fmt: skip
        data = sequences(config, case, seq_len) * case.micro_batches
        trainer = Trainer(model_of(config, case), arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return int(trainer.state.total_flos)


def by_lightning(config: LlamaConfig, case: Case, seq_len: int) -> int:
    """Lightning's ``measure_flops`` of a batch on the meta device, as its documentation has it, times the batches.

    With attention written out: before the fused one transformers looks at a mask's values, which are not there.
    """
    from lightning.fabric.utilities.throughput import measure_flops

    with torch.device("meta"):
        model = model_of(config, case)
    getattr(model, "base_model", model).set_attn_implementation("eager")
    batch = {name: tensor.to("meta") for name, tensor in batch_of(config, case, seq_len).items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return measure_flops(model, lambda: model(**batch), lambda output: output.loss) * case.micro_batches


WAYS: dict[str, Callable[[LlamaConfig, Case, int], int]] = {
    "Trainer's total_flos": by_trainer,
    "Lightning's measure_flops": by_lightning,
    "torchtitan's formula": by_torchtitan,
    "Meter": by_meter,
}


def finding(config: LlamaConfig, name: str, seq_len: int) -> dict[str, Any]:
    """FLOPs of a step of a case, by hand and as each way has them."""
    case = CASES[name]
    flops = {way: how(config, case, seq_len) for way, how in WAYS.items()}
    return {"case": name, "what": case.what, "by_hand": by_hand(config, case, seq_len), "flops": flops}


def table(found: list[dict[str, Any]]) -> str:
    """GFLOPs, and how far they are from those by hand."""
    lines = [["a step", "by hand, GFLOPs", *WAYS], ["---", *["---:"] * (len(WAYS) + 1)]]
    for row in found:
        cells = [_against(flops, row["by_hand"]) for flops in row["flops"].values()]
        lines.append([f"{row['case']}: {row['what']}", f"{row['by_hand'] / 1e9:,.3f}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _against(flops: int, truth: int) -> str:
    return f"{flops / 1e9:,.1f} (exact)" if flops == truth else f"{flops / 1e9:,.1f} ({flops / truth - 1:+.1%})"


def main(command: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--results", type=Path, default=Path("results/cpu"), help="folder of the device")
    command = sys.argv[1:] if command is None else command
    arguments = parser.parse_args(command)
    if arguments.seq_len < 1:
        parser.error("give a --seq-len above 0")
    warnings.simplefilter("ignore")
    config = LlamaConfig(**load_preset(MODEL)["config"])
    found = [finding(config, name, arguments.seq_len) for name in arguments.cases]
    facts = environment()
    about = {
        "command": " ".join([".venv/bin/python scripts/study_meter.py", *command]),
        "device": describe(torch.device("cpu"))["name"],
        "date": facts["date"],
        **{name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "peft", "lightning")},
        "model": f"{MODEL}, random weights, float32, sequences of {arguments.seq_len}, AdamW",
        "convention": "causal",
    }
    target = arguments.results / f"{about['date'][:10]}-meter"
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "results.json", json.dumps({**about, "cases": found}, indent=1) + "\n")
    stated = "\n".join(f"- {name}: {value}" for name, value in about.items())
    text = f"# FLOPs of a training step, by hand and four ways\n\n{stated}\n\n{table(found)}"
    write_atomically(target / "table.md", text)
    print(text, end="")
    return 0 if all(row["flops"]["Meter"] == row["by_hand"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
