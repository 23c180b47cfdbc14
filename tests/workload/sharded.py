"""What `test_parallel` runs in each of two processes: named models, sharded. Writes what it sees to rankN.json."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import gpuprof
from gpuprof.errors import GpuprofError
from gpuprof.workload import Options, build

SIZES = {"batch_size": 2, "seq_len": 16, "device": "cpu"}


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def seen(reference, how, folder):
    """A sharded model beside the same one by itself."""
    alone = build(reference, Options(**SIZES))
    same = build(reference, Options(**SIZES, parallel=how))
    weights = {name.removeprefix("module."): whole(p) for name, p in same.model.named_parameters()}
    workload = build(reference, Options(**SIZES, parallel=how, optimizer="adamw"))
    loss, loss_alone = float(workload.step()), float(alone.step())
    gradients = {name.removeprefix("module."): whole(p.grad) for name, p in workload.model.named_parameters()}
    for group in workload.optimizer.param_groups:
        group["lr"] = 1e-3  # so that a step changes what is to be as before
    before = [local(p).clone() for p in workload.model.parameters()]
    run = gpuprof.profile(workload.model, step=workload.step, passes=["count"])
    run.save(folder / f"{how}.rank{dist.get_rank()}.run.json")
    model = run.ops[run.ops["phase"].isin(["forward", "backward"])]
    model = model[~model["module"].str.endswith("rotary_emb")]  # whose angles older releases make by a product
    trained = [p for group in workload.optimizer.param_groups for p in group["params"]]
    tied = workload.model.get_submodule("module" if how == "ddp" else "")
    return {
        "class": type(workload.model).__name__,
        "shapes": {name: list(local(p).shape) for name, p in workload.model.named_parameters()},
        "storage": sum(local(p).untyped_storage().nbytes() for p in same.model.parameters()),
        "same_weights": all(torch.equal(weights[name], p) for name, p in alone.model.named_parameters()),
        "gradients_apart": max(float((gradients[n] - p.grad).abs().max()) for n, p in alone.model.named_parameters()),
        "loss": loss,
        "loss_alone": loss_alone,
        "flops": {phase: int(rows["flops_causal"].sum()) for phase, rows in model.groupby("phase")},
        "unchanged": all(
            torch.equal(old, local(p)) for old, p in zip(before, workload.model.parameters(), strict=True)
        ),
        "optimizes": {id(p) for p in trained} == {id(p) for p in workload.model.parameters()},
        "state": sum(
            local(value).numel() for state in workload.optimizer.state.values() for value in state.values()
            if value.dim()
        ),
        "tied": tied.lm_head.weight is tied.model.embed_tokens.weight,
        "units": [name for name, module in workload.model.named_modules() if isinstance(module, FSDPModule)],
        "notes": workload.description["notes"],
        "described": workload.description.get("parallel", ""),
        "facts": workload.description["facts"] is not None,
    }  # fmt: skip


def together(reference, how):
    """The training options at once: recompute that ran, and which parameters have a gradient."""
    options = Options(
        **SIZES, parallel=how, optimizer="sgd", checkpointing="non-reentrant", freeze=("model.layers.0.*",)
    )
    workload = build(reference, options)
    run = gpuprof.profile(workload.model, step=workload.step, passes=["count"])
    workload.step()
    parameters = {name.removeprefix("module."): p for name, p in workload.model.named_parameters()}
    return {
        "recompute": int(run.ops.loc[run.ops["phase"] == "recompute", "flops_causal"].sum()),
        "without_gradient": sorted(name for name, p in parameters.items() if p.grad is None),
    }


def refused(reference, **options):
    try:
        build(reference, Options(device="cpu", **options))
    except GpuprofError as error:
        return str(error)
    return ""


def main(folder):
    dist.init_process_group("gloo")
    llama = str(folder / "tiny-smollm2-135m")
    found = {how: seen(llama, how, folder) for how in ("ddp", "fsdp", "tp")}
    found["together"] = {how: together(llama, how) for how in ("ddp", "fsdp", "tp")}
    unused = build(str(folder / "tiny-siglip-so400m-384"), Options(device="cpu", parallel="ddp"))
    unused.step(), unused.step()  # the second is where DDP would complain of the first
    found["unused"] = unused.model.find_unused_parameters
    generating = Options(mode="generate", prompt_len=8, new_tokens=3, device="cpu")
    alone = build(llama, generating).step()
    found["generated"] = {
        how: torch.equal(build(llama, Options(**{**vars(generating), "parallel": how})).step(), alone)
        for how in ("fsdp", "tp")
    }
    found["refused"] = {
        "heads": refused(str(folder / "three-heads"), parallel="tp"),
        "features": refused(str(folder / "odd"), parallel="tp"),
        "no plan": refused(str(folder / "tiny-gpt2"), parallel="tp"),
        "experts": refused(str(folder / "tiny-mixtral-8x7b"), parallel="tp"),
        "encoder": refused(str(folder / "tiny-t5-small"), parallel="fsdp", mode="generate"),
        "reentrant": refused(str(folder / "tiny-siglip-so400m-384"), parallel="ddp", checkpointing="reentrant"),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
