"""What compilation gains, module by module, and what gpuprof knows of compiled code: eager and compiled in one run.

Each model is profiled as it is and compiled, one after the other, in this process. Of the compiled one it is held that

- at least 99 % of the kernel time has an owner: a module, or modules that are fused in a kernel,
- the parts of kernels add up to the kernels, in nanoseconds,
- compiled code does the FLOPs that were counted, module by module, or it is said why not.

Writes DIR/NAME.eager.json.gz, DIR/NAME.compiled.json.gz and DIR/table.md. Exit status 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import gpuprof
from gpuprof.analysis.compilation import compile_lines
from gpuprof.analysis.compiled import compiled_flops, compiled_lines
from gpuprof.analysis.consistency import owned_kernels
from gpuprof.analysis.gained import gained
from gpuprof.analysis.totals import totals
from gpuprof.run import Run
from gpuprof.units import duration

LEAST_OWNED = 0.99

MODELS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"batch_size": 1, "seq_len": 128},
    "resnet-50": {"batch_size": 4},
    "bert-base": {"batch_size": 2, "seq_len": 128},
}


class Broken(torch.nn.Module):
    """Three blocks, with a graph break after each of the first two."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.LayerNorm(width), torch.nn.Linear(width, 4 * width), torch.nn.GELU(),
                torch.nn.Linear(4 * width, width),
            )
            for _ in range(3)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        x = x + self.blocks[0](x)
        torch._dynamo.graph_break()
        x = x + self.blocks[1](x)
        torch._dynamo.graph_break()
        return x + self.blocks[2](x)


def profiled(name: str, compile: str, steps: int) -> Run:
    """One model, eager where ``compile`` is ``none``."""
    passes = ("count", "time", "trace")
    if name in MODELS:
        return gpuprof.profile(name, compile=compile, passes=passes, steps=steps, **MODELS[name])
    torch.manual_seed(0)
    model, x = Broken(), torch.randn(8, 128, 512)
    if compile != "none":
        model.compile(mode=compile)
    return gpuprof.profile(model, x, passes=passes, steps=steps)


def beside(name: str, eager: Run, compiled: Run) -> tuple[list[str], list[str]]:
    """Lines on one model, and what does not hold of it."""
    before, after = totals(eager), totals(compiled)
    wrong = [] if after["owned_share"] >= LEAST_OWNED else [f"{name}: {after['owned_share']:.2%} of the time is owned"]
    whole = int(compiled.kernels["duration_ns"].sum())
    if int(owned_kernels(compiled)["duration_ns"].sum()) != whole:
        wrong.append(f"{name}: parts do not add up to {whole:,} ns")
    flops = compiled_flops(compiled)
    unsaid = flops[(flops["flops_counted"] != flops["flops_compiled"]) & (flops["cause"] == "")]
    wrong += [
        f"{name}: {row.module} {row.phase}: {row.flops_counted} and {row.flops_compiled}" for row in unsaid.itertuples()
    ]
    lines = [
        f"## {name}",
        "",
        f"Step {duration(before['step_s'])} as it is, {duration(after['step_s'])} compiled: "
        f"{before['step_s'] / after['step_s']:.2f} x. {after['owned_share']:.2%} of the kernel time of the compiled "
        f"step has an owner; parts of {len(compiled.kernels)} kernels add up to {whole:,} ns.",
        "",
        *(f"- {line.strip()}" for line in [*compile_lines(compiled), *compiled_lines(compiled)]),
        "",
        "| class | eager | compiled | speed-up | of shared kernels | kernels | FLOPs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in gained(eager, compiled, by="class").itertuples():
        part = getattr(row, "class", row[1])
        speedup = f"{row.speedup:.2f} x" if row.speedup == row.speedup else ""
        shared = f"{row.fused_share:.0%}" if row.fused_share == row.fused_share else ""
        flops = [None if pd.isna(one) else int(one) for one in (row.eager_flops, row.compiled_flops)]
        same = "" if None in flops else "same" if flops[0] == flops[1] else f"{flops[0]:,} to {flops[1]:,}"
        lines.append(
            f"| {part} | {duration(row.eager_s)} | {duration(row.compiled_s)} | {speedup} | {shared} "
            f"| {row.eager_kernels} to {row.compiled_kernels} | {same} |"
        )
    return [*lines, ""], wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*MODELS, "two-breaks"], metavar="NAME")
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines, wrong = [], []
    for name in args.models:
        runs = [profiled(name, compile, args.steps) for compile in ("none", args.mode)]
        for run, which in zip(runs, ("eager", "compiled"), strict=True):
            run.save(args.out / f"{name}.{which}.json.gz")
        told, failed = beside(name, *runs)
        print("\n".join(told), flush=True)
        lines, wrong = lines + told, wrong + failed
    environment = runs[-1].environment
    head = [
        "# Compiled steps beside eager ones",
        "",
        f"`python scripts/bench_compile.py --mode {args.mode} --steps {args.steps}`, "
        f"{runs[-1].device.get('name') or runs[-1].device['cpu']['name']}, torch {environment.get('torch')}, "
        f"{environment.get('date', '')[:10]}. Times of modules are kernel time of one traced step.",
        "",
    ]
    (args.out / "table.md").write_text("\n".join([*head, *lines]), encoding="utf-8")
    print("\n".join(wrong) or "everything holds")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
