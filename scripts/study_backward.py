"""Backward over forward of one model, trained in six ways: what is counted and what it takes.

Writes results/<device>/<date>-backward/ (results.json, table.md, ratios.png, ratios.svg).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gpuprof.analysis.backward import backward_ratios, whole
from gpuprof.files import write_atomically
from gpuprof.profiler import run_passes
from gpuprof.render.backward_chart import ratio_bars
from gpuprof.render.charts import save_picture
from gpuprof.run import Run
from gpuprof.units import MISSING
from gpuprof.workload import Options, Workload, build

MODEL = "smollm2-135m"
RANK = 8
LOWER_HALF = ("model.embed_tokens", "model.layers.[0-9].*", "model.layers.1[0-4].*")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("everything trained, SDPA attention", {}),
    "eager": ("everything trained, eager attention", {"attention": "eager"}),
    "frozen-half": ("embeddings (tied to the head) and layers 0-14 frozen", {"freeze": LOWER_HALF}),
    "lora": (f"base frozen, adapters of rank {RANK} on q_proj and v_proj", {}),
    "checkpoint-reentrant": ("everything trained, reentrant checkpoints", {"checkpointing": "reentrant"}),
    "checkpoint-non-reentrant": ("everything trained, non-reentrant checkpoints", {"checkpointing": "non-reentrant"}),
}


class Adapter(torch.nn.Module):
    """A frozen linear layer with a trained product of two narrow ones beside it, as in LoRA (arXiv 2106.09685)."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        like = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base
        self.down = torch.nn.Linear(base.in_features, rank, **like)
        self.up = torch.nn.Linear(rank, base.out_features, **like)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The projection with its adapter."""
        return self.base(x) + self.up(self.down(x))


def adapt(model: torch.nn.Module, rank: int = RANK) -> None:
    """Freeze a model and put adapters on the query and value projections."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name in ("q_proj", "v_proj"):
            if isinstance(base := getattr(module, name, None), torch.nn.Linear):
                setattr(module, name, Adapter(base, rank))


def make(variant: str, seq_len: int, weightless: bool = False, batch_size: int = 1, device: str = "cpu") -> Workload:
    dtype = "float32" if device == "cpu" else "bfloat16"
    options = Options(device=device, dtype=dtype, batch_size=batch_size, seq_len=seq_len, **VARIANTS[variant][1])
    workload = build(MODEL, options, weightless=weightless)
    if variant == "lora":
        adapt(workload.model)
    return workload


def finding(variant: str, run: Run) -> dict[str, Any]:
    """Figures of a variant; ratios of time are of medians and of the fastest forward and backward."""
    times = run.samples.pivot(index="step", columns="phase", values="time_s")
    ratios = times["backward"] / times["forward"]
    figures = whole(run)
    return {
        "variant": variant,
        "what": VARIANTS[variant][0],
        "options": {name: list(v) if isinstance(v, tuple) else v for name, v in VARIANTS[variant][1].items()},
        "whole": figures,
        "step_ratio_quartiles": [float(ratios.quantile(q)) for q in (0.25, 0.5, 0.75)],
        "step_ratio_fastest": float(times["backward"].min() / times["forward"].min()),
        "steps": len(times),
        "forward_s": times["forward"].tolist(),
        "backward_s": times["backward"].tolist(),
        "classes": json.loads(backward_ratios(run, "class").to_json(orient="records")),
    }


def shown(value: float | None, how: str) -> str:
    """A figure, or what stands for one that is withheld; the reason is among the run's warnings."""
    return MISSING if value is None else format(value, how)


def table(found: list[dict[str, Any]]) -> str:
    heads = [
        "variant",
        "by FLOPs",
        "hardware",
        "recompute / forward",
        "error of 3 x forward",
        "by time, recompute in it",
    ]
    heads += ["its quartiles", "of the fastest", "by operator time, recompute apart"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in found:
        figures, (low, middle, high) = row["whole"], row["step_ratio_quartiles"]
        again = figures["flops_recompute"] / figures["flops_forward"]
        ratios = [figures["ratio_flops"], figures["ratio_hardware"], again]
        lines.append(
            [f"{row['variant']}: {row['what']}", *(shown(ratio, ".4f") for ratio in ratios),
             shown(figures["error_flops"], "+.1%"), f"{middle:.2f}", f"{low:.2f}-{high:.2f}",
             f"{row['step_ratio_fastest']:.2f}", shown(figures["ratio_time"], ".2f")]
        )  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(about: dict[str, Any], found: list[dict[str, Any]], folder: Path) -> None:
    bars = pd.DataFrame(
        {
            "label": [row["variant"] for row in found],
            "ratio_flops": [row["whole"]["ratio_flops"] for row in found],
            "ratio_time": [row["step_ratio_quartiles"][1] for row in found],
        }
    )
    how = f"by time: median of {found[0]['steps']} undisturbed steps, recompute in it"
    title = f"{about['model']} · {about['device']}\n{how}"
    for suffix in (".png", ".svg"):
        save_picture(ratio_bars(bars, title), folder / f"ratios{suffix}")


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cuda trains in bfloat16, a CPU in float32")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; one is steadier where the CPU is shared")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--results", type=Path, help="folder of the device; results/cpu or results/<its name>")
    command = sys.argv[1:] if command is None else command
    arguments = parser.parse_args(command)

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found, run = [], None
    for variant in arguments.variants:
        workload = make(variant, arguments.seq_len, batch_size=arguments.batch_size, device=arguments.device)
        run = run_passes(workload, passes=["count", "time", "trace"], warmup=2, steps=arguments.steps)
        found.append(finding(variant, run))
        print(f"{variant}: {shown(found[-1]['whole']['ratio_flops'], '.4f')} by FLOPs", *run.warnings, file=sys.stderr)
    assert run is not None
    threads, device = run.environment["threads"], run.device["name"]
    if run.device["type"] == "cpu":
        device = f"CPU ({device}, {threads} thread{'s' if threads > 1 else ''})"
    about = {
        "command": " ".join([".venv/bin/python scripts/study_backward.py", *command]),
        "device": device,
        "date": run.environment["date"],
        "torch": run.environment["torch"],
        "transformers": run.environment["transformers"],
        "model": f"{MODEL}, batch {arguments.batch_size}, sequence {arguments.seq_len}, {run.workload['dtype']}",
        "convention": run.settings["convention"],
    }
    place = "cpu" if run.device["type"] == "cpu" else re.sub(r"\W+", "-", device.lower())
    folder = (arguments.results or Path("results") / place) / f"{about['date'][:10]}-backward"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps({**about, "variants": found}, indent=1) + "\n")
    stated = "\n".join(f"- {name}: {value}" for name, value in about.items())
    write_atomically(folder / "table.md", f"# Backward over forward\n\n{stated}\n\n{table(found)}")
    draw(about, found, folder)
    print(table(found), end="")


if __name__ == "__main__":
    main()
