"""A real model sharded over processes of this machine: what each counts and holds, and all of them against one process.

Writes results/cpu/<date>-ranks/ (results.json, table.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.distributed as dist

import gpuprof
from gpuprof.analysis.replication import model_flops, replication, sentence
from gpuprof.files import write_atomically
from gpuprof.passes.unsharded import count_unsharded
from gpuprof.record import load
from gpuprof.run import Run
from gpuprof.workload import Options, Workload, build

MODEL = "smollm2-135m"


class Variant(NamedTuple):
    """One way to shard the model.

    Attributes:
        world: how many processes.
        what: for people.
        options: of the workload.
        reshard: whether FSDP drops the weights of a block between forward and backward.
        plan: of tensor parallelism that is not the option's, as 9 heads are not shared by two.
    """

    world: int
    what: str
    options: dict[str, Any]
    reshard: bool = True
    plan: bool = False


VARIANTS = {
    "ddp": Variant(2, "DDP", {"parallel": "ddp"}),
    "fsdp": Variant(2, "FSDP2", {"parallel": "fsdp"}),
    "fsdp-kept": Variant(2, "FSDP2, weights kept until the backward", {"parallel": "fsdp"}, reshard=False),
    "fsdp-checkpoint": Variant(
        2, "FSDP2, non-reentrant checkpoints", {"parallel": "fsdp", "checkpointing": "non-reentrant"}
    ),
    "tp-2": Variant(2, "tensor parallel, MLPs only: 9 heads are not shared by two", {}, plan=True),
    "tp-3": Variant(3, "tensor parallel", {"parallel": "tp"}),
}


def make(variant: Variant, seq_len: int) -> Workload:
    """The workload of one process, its optimizer with a learning rate, so that a step changes the parameters."""
    options = Options(device="cpu", seq_len=seq_len, optimizer="none" if variant.plan else "adamw", **variant.options)
    workload = build(MODEL, options)
    if variant.plan:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        styles = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
        plan = {f"model.layers.*.mlp.{name}": style for name, style in styles.items()}
        mesh = init_device_mesh("cpu", (variant.world,), mesh_dim_names=("tp",))
        parallelize_module(workload.model, mesh, plan, src_data_rank=None)
        workload.optimizer = torch.optim.AdamW(workload.model.parameters())
        plain, optimizer = workload.step, workload.optimizer

        def step() -> Any:
            loss = plain()
            optimizer.step()
            return loss

        workload.step = step
    if not variant.reshard:
        model: Any = workload.model
        model.set_reshard_after_forward(False)
    assert workload.optimizer is not None
    for group in workload.optimizer.param_groups:
        group["lr"] = 1e-3
    return workload


def local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def held(workload: Workload) -> dict[str, list[torch.Tensor]]:
    """Parameters and optimizer state of this process."""
    assert workload.optimizer is not None
    state = (value for state in workload.optimizer.state.values() for value in state.values())
    tensors = [local(value) for value in state if isinstance(value, torch.Tensor)]
    return {"parameters": [local(p.detach()) for p in workload.model.parameters()], "optimizer state": tensors}


def rank_main(names: list[str], seq_len: int, folder: Path) -> None:
    """One process: every variant, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in names:
        workload = make(VARIANTS[name], seq_len)
        workload.step()  # so that the optimizer has a state to put back
        before = {what: [tensor.clone() for tensor in tensors] for what, tensors in held(workload).items()}
        run = gpuprof.profile(
            workload.model, step=workload.step, optimizer=workload.optimizer, passes=["count", "memory"]
        )
        after = held(workload)
        facts = {
            what: {
                "bytes": sum(tensor.nbytes for tensor in tensors),
                "as before": all(torch.equal(old, new) for old, new in zip(tensors, after[what], strict=True)),
            }
            for what, tensors in before.items()
        }
        stem = folder / f"{name}.rank{dist.get_rank()}"
        run.save(stem.with_suffix(f"{stem.suffix}.json"))
        write_atomically(stem.with_suffix(f"{stem.suffix}.facts"), json.dumps(facts))
        dist.barrier()
    dist.destroy_process_group()


def launch(names: list[str], world: int, seq_len: int, folder: Path) -> None:
    """All variants of one number of processes.

    Raises:
        subprocess.CalledProcessError: a process failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [__file__, "--ranks-into", str(folder), "--seq-len", str(seq_len), "--variants", *names]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finding(name: str, seq_len: int, folder: Path) -> dict[str, Any]:
    """Figures of a variant, and its ranks against the unsharded model."""
    variant = VARIANTS[name]
    runs = [load(folder / f"{name}.rank{rank}.json") for rank in range(variant.world)]
    facts = [json.loads((folder / f"{name}.rank{rank}.facts").read_text()) for rank in range(variant.world)]
    how = variant.options.get("parallel", "tp")
    job = Run({}, {}, {}, ops=pd.concat([run.ops for run in runs], ignore_index=True), tree=runs[0].tree)
    options = Options(seq_len=seq_len, optimizer="adamw", **variant.options)
    batches = 1 if how == "tp" else variant.world
    whole = count_unsharded((MODEL, replace(options, parallel="none")))
    unsharded = replication(job, model_flops(whole), batches)
    return {
        "variant": name,
        "what": variant.what,
        "world": variant.world,
        "unsharded": unsharded,
        "said": sentence(unsharded, variant.world),
        "ranks": [figures(run) | {"held": fact} for run, fact in zip(runs, facts, strict=True)],
        "warnings": sorted({line for run in runs for line in run.warnings}),
    }


def figures(run: Run) -> dict[str, Any]:
    """What one process counted and holds."""
    model = run.ops[run.ops["phase"].isin(["forward", "backward", "recompute"])]
    messages = run.ops[run.ops["kind"] == "communication"]
    messages = messages[messages["bytes"].fillna(0) > 0]  # not the waits
    measured = run.memory[(run.memory["module"] == "") & (run.memory["phase"] == "")]
    return {
        "flops": {phase: int(rows["flops_causal"].sum()) for phase, rows in model.groupby("phase")},
        "collectives": {
            op: {"calls": int(rows["calls"].sum()), "bytes": int(rows["bytes"].sum())}
            for op, rows in messages.groupby("op")
        },
        "memory": {
            f"{row.quantity} ({row.source})": int(row.bytes)
            for row in measured.itertuples()
            if row.quantity in ("parameters", "optimizer_state") and pd.notna(row.bytes)
        },
    }


def table(found: list[dict[str, Any]]) -> str:
    """Rows of rank 0; the others are in results.json, and differ nowhere if the last column says so."""
    heads = ["variant", "ranks", "forward", "backward", "recompute", "collectives of a rank", "parameters, B"]
    heads += ["Adam's state, B", "as before", "ranks alike"]
    lines = [heads, ["---", *["---:"] * 4, "---", *["---:"] * 2, "---", "---"]]
    for row in found:
        first, *others = row["ranks"]
        flops, kept = first["flops"], first["held"]
        collectives = ", ".join(
            f"{group['calls']} {op.partition('::')[2].partition('.')[0].strip('_')} {group['bytes'] / 1e6:,.1f} MB"
            for op, group in first["collectives"].items()
        )
        unchanged = all(fact["as before"] for rank in row["ranks"] for fact in rank["held"].values())
        lines.append(
            [f"{row['variant']}: {row['what']}", str(row["world"]),
             *(f"{flops.get(phase, 0):,}" for phase in ("forward", "backward", "recompute")), collectives,
             *(f"{kept[what]['bytes']:,}" for what in ("parameters", "optimizer state")),
             "yes" if unchanged else "no", "yes" if all(other == first for other in others) else "no"]
        )  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--results", type=Path, default=Path("results/cpu"), help="folder of the device")
    parser.add_argument("--ranks-into", type=Path, help=argparse.SUPPRESS)
    command = sys.argv[1:] if command is None else command
    arguments = parser.parse_args(command)
    if arguments.ranks_into:
        rank_main(arguments.variants, arguments.seq_len, arguments.ranks_into)
        return

    with tempfile.TemporaryDirectory(prefix="gpuprof-ranks-") as made:
        folder = Path(made)
        for world in sorted({VARIANTS[name].world for name in arguments.variants}):
            names = [name for name in arguments.variants if VARIANTS[name].world == world]
            launch(names, world, arguments.seq_len, folder)
        found = [finding(name, arguments.seq_len, folder) for name in arguments.variants]
        run = load(folder / f"{arguments.variants[0]}.rank0.json")
    about = {
        "command": " ".join([".venv/bin/python scripts/study_ranks.py", *command]),
        "device": f"CPU ({run.device['name']}, {os.cpu_count()} cores), one thread and one gloo process a rank",
        "date": run.environment["date"],
        "torch": run.environment["torch"],
        "transformers": run.environment["transformers"],
        "model": f"{MODEL}, random weights, batch 1 a rank or one for all (tp), sequence {arguments.seq_len}, float32, "
        "AdamW",
        "convention": "causal",
    }
    target = arguments.results / f"{about['date'][:10]}-ranks"
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "results.json", json.dumps({**about, "variants": found}, indent=1) + "\n")
    stated = "\n".join(f"- {name}: {value}" for name, value in about.items())
    sums = "\n".join(f"- {row['variant']}: {row['said']}" for row in found)
    text = (
        f"# One model over several processes\n\n{stated}\n\n{table(found)}\nAll ranks against one process:\n\n{sums}\n"
    )
    write_atomically(target / "table.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
