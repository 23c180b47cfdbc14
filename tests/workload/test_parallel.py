"""Named models sharded over two processes: figures worked out by hand for a llama of two layers."""

import json
import os
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from parallel.ranks import launch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from workload.conftest import DECODER, write_tiny

import gpuprof
from gpuprof.analysis.replication import model_flops, replication
from gpuprof.errors import GpuprofError
from gpuprof.passes.unsharded import count_unsharded
from gpuprof.run import Run
from gpuprof.schema import columns, table
from gpuprof.workload import Options, build

HIDDEN, INNER, VOCABULARY, HEADS, HEAD, POSITIONS = 64, 128, 256, 4, 16, 2 * 16
PROJECTIONS = 2 * POSITIONS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER)
ATTENTION = 2 * 2 * HEADS * HEAD * 2 * (16 * 17 // 2)  # two products, of each of two sequences the unmasked pairs
MODEL = 2 * (PROJECTIONS + ATTENTION) + 2 * POSITIONS * HIDDEN * VOCABULARY

NORMS = 5 * HIDDEN
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER
PARAMETERS = VOCABULARY * HIDDEN + 2 * LAYER + NORMS  # the head is the embedding
SIZES = {"batch_size": 2, "seq_len": 16, "device": "cpu"}


def tiny(name, **changes):
    """A small model's directory in a folder of its own, in that of the launch."""
    launched = Path(os.environ["GPUPROF_CACHE"]).parent
    return write_tiny(Path(tempfile.mkdtemp(dir=launched)), name, **changes)


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def seen(how):
    """A sharded model beside the same one by itself."""
    reference = tiny("smollm2-135m")
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
        "ops": columns(run.ops),
        "tree": columns(run.tree),
    }  # fmt: skip


def together_as(how):
    """The training options at once: recompute that ran, and which parameters have a gradient."""
    reference = tiny("smollm2-135m")
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


def refusal(reference, **options):
    try:
        build(reference, Options(device="cpu", **options))
    except GpuprofError as error:
        return str(error)
    return ""


def ddp():
    return seen("ddp")


def fsdp():
    return seen("fsdp")


def tp():
    return seen("tp")


def together():
    return {how: together_as(how) for how in ("ddp", "fsdp", "tp")}


def normed():
    """Norms of single heads, whose gradients come from all ranks' heads; some of them frozen."""
    sizes = DECODER | {"head_dim": HEAD, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    folder = Path(tiny("smollm2-135m"))
    (folder / "config.json").write_text(json.dumps(sizes | {"tie_word_embeddings": False}))
    options = SIZES | {"freeze": ("*.q_norm",)}
    alone, sharded = (build(str(folder), Options(**options, parallel=how)) for how in ("none", "tp"))
    alone.step(), sharded.step()
    gradients = {name: p.grad for name, p in alone.model.named_parameters() if p.grad is not None}
    found = {name: whole(p.grad) for name, p in sharded.model.named_parameters() if p.grad is not None}
    return {
        "same names": list(found) == list(gradients),
        "k_norms": sum(name.endswith("k_norm.weight") for name in found),
        "q_norms": sum(name.endswith("q_norm.weight") for name in found),
        "apart": max(float((found[name] - gradient).abs().max()) for name, gradient in gradients.items()),
    }


def unused():
    """SigLIP's pooler is not in the loss: of its first step DDP would complain in the second."""
    workload = build(tiny("siglip-so400m-384"), Options(device="cpu", parallel="ddp"))
    workload.step(), workload.step()
    return workload.model.find_unused_parameters


def generated():
    """Whether the tokens are those of the model by itself on the first batch."""
    reference = tiny("smollm2-135m")
    options = {"mode": "generate", "prompt_len": 8, "new_tokens": 3, "device": "cpu"}
    alone = build(reference, Options(**options)).step()
    return {
        how: torch.equal(build(reference, Options(**options, parallel=how)).step(), alone) for how in ("fsdp", "tp")
    }


def refused():
    llama, siglip = "smollm2-135m", tiny("siglip-so400m-384")
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}
    return {
        "heads": refusal(tiny(llama, **heads), parallel="tp"),
        "features": refusal(tiny(llama, intermediate_size=129), parallel="tp"),
        "no plan": refusal(tiny("gpt2"), parallel="tp"),
        "experts": refusal(tiny("mixtral-8x7b"), parallel="tp"),
        "encoder": refusal(tiny("t5-small"), parallel="fsdp", mode="generate"),
        "reentrant": refusal(siglip, parallel="ddp", checkpointing="reentrant"),
    }


@pytest.fixture(scope="module")
def ranks():
    """What each of two processes saw."""
    return launch(__file__, ["ddp", "fsdp", "tp", "together", "normed", "unused", "generated", "refused"])


@pytest.mark.parametrize("how", ["ddp", "fsdp", "tp"])
def test_every_rank_has_the_weights_of_the_seed(ranks, how):
    for rank in ranks:
        assert rank[how]["same_weights"]
        assert rank[how]["tied"]
        assert rank[how]["optimizes"]
        assert rank[how]["unchanged"]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_each_rank_does_the_whole_model_on_a_batch_of_its_own(ranks, how):
    for rank in ranks:
        assert rank[how]["flops"] == {"forward": MODEL, "backward": 2 * MODEL}
        assert rank[how]["notes"][-1] == "each of 2 processes has a batch of its own: 2 samples in each"
        assert rank[how]["facts"]
    first, second = ranks
    assert first[how]["loss"] == first[how]["loss_alone"]
    assert second[how]["loss"] != second[how]["loss_alone"]


def test_the_ranks_share_a_batch_under_tensor_parallelism(ranks):
    for rank in ranks:
        assert rank["tp"]["flops"] == {"forward": MODEL // 2, "backward": MODEL}
        assert rank["tp"]["loss"] == pytest.approx(rank["tp"]["loss_alone"], abs=1e-5)
        assert rank["tp"]["gradients_apart"] < 1e-5
        assert rank["tp"]["notes"][-1] == "all 2 processes work on one batch"
        assert not rank["tp"]["facts"]


@pytest.mark.parametrize(("how", "batches"), [("ddp", 2), ("fsdp", 2), ("tp", 1)])
def test_all_ranks_together_do_what_the_unsharded_model_does(ranks, tmp_path, how, batches):
    ops = pd.concat([table("ops", rank[how]["ops"]) for rank in ranks], ignore_index=True)
    job = Run({}, {}, {}, ops=ops, tree=table("tree", ranks[0][how]["tree"]))
    options = Options(parallel=how, batch_size=2, seq_len=16)

    whole = count_unsharded((write_tiny(tmp_path, "smollm2-135m"), options))
    found = replication(job, model_flops(whole), batches)

    # older releases make the rotary angles by a product, which both ranks of a batch do
    angles = int(whole.loc[whole["module"] == "model.rotary_emb", "flops_causal"].sum())
    assert found["flops"] == batches * (3 * MODEL + angles)
    assert found["repeated"] == ({"model.rotary_emb": angles} if angles and how == "tp" else {})
    assert found["missing"] == {}


def test_what_a_rank_holds(ranks):
    sums = [
        {how: sum(_numel(s) for s in rank[how]["shapes"].values()) for how in ("ddp", "fsdp", "tp")} for rank in ranks
    ]
    assert sums == [{"ddp": PARAMETERS, "fsdp": PARAMETERS // 2, "tp": (PARAMETERS - NORMS) // 2 + NORMS}] * 2
    assert [rank["fsdp"]["state"] for rank in ranks] == [PARAMETERS] * 2  # two moments of half of them
    # nothing of the whole weights stays behind a shard
    assert [rank["tp"]["storage"] for rank in ranks] == [4 * ((PARAMETERS - NORMS) // 2 + NORMS)] * 2
    shapes = ranks[1]["tp"]["shapes"]
    layer = "model.layers.1."
    assert shapes[f"{layer}self_attn.q_proj.weight"] == [HIDDEN // 2, HIDDEN]
    assert shapes[f"{layer}self_attn.k_proj.weight"] == [HIDDEN // 4, HIDDEN]
    assert shapes[f"{layer}self_attn.o_proj.weight"] == [HIDDEN, HIDDEN // 2]
    assert shapes[f"{layer}mlp.down_proj.weight"] == [HIDDEN, INNER // 2]
    assert shapes["model.embed_tokens.weight"] == [VOCABULARY // 2, HIDDEN]


def _numel(shape):
    return torch.Size(shape).numel()


def test_wrappers(ranks):
    assert [ranks[0][how]["class"] for how in ("ddp", "fsdp", "tp")] == [
        "DistributedDataParallel", "FSDPLlamaForCausalLM", "LlamaForCausalLM",
    ]  # fmt: skip
    assert ranks[0]["fsdp"]["units"] == ["", "model.layers.0", "model.layers.1"]
    assert ranks[0]["fsdp"]["described"] == ""  # told by its modules


@pytest.mark.parametrize("how", ["ddp", "fsdp", "tp"])
def test_with_checkpoints_a_frozen_layer_and_an_optimizer(ranks, how):
    # the embedding before the frozen layer is trained, so both layers run again, each but for its last product
    again = 2 * (PROJECTIONS - 2 * POSITIONS * HIDDEN * INNER + ATTENTION)
    for rank in ranks:
        assert rank["together"][how]["recompute"] == again // (2 if how == "tp" else 1)
        frozen = rank["together"][how]["without_gradient"]
        assert len(frozen) == 9
        assert all(name.startswith("model.layers.0.") for name in frozen)


def test_norms_of_heads(ranks):
    for rank in ranks:
        assert (rank["normed"]["same names"], rank["normed"]["k_norms"], rank["normed"]["q_norms"]) == (True, 2, 0)
        assert rank["normed"]["apart"] < 1e-5


def test_parameters_that_get_no_gradient(ranks):
    assert ranks[0]["unused"]


def test_generation(ranks):
    assert ranks[0]["generated"] == {"fsdp": True, "tp": True}
    assert ranks[1]["generated"] == {"fsdp": False, "tp": True}  # another prompt, or the same


def test_what_cannot_be_sharded_ends_in_a_line(ranks):
    assert ranks[0]["refused"] == ranks[1]["refused"] == {
        "heads": "--parallel tp: LlamaForCausalLM has 3 attention heads, which 2 processes cannot share: their number "
        "has to divide 3",
        "features": "--parallel tp: model.layers.0.mlp.gate_proj of LlamaForCausalLM has 129 out_features, which 2 "
        "processes cannot share evenly",
        "no plan": "--parallel tp: transformers has no plan of tensor parallelism for GPT2LMHeadModel; use ddp or fsdp",
        "experts": "--parallel tp: MixtralForCausalLM wants model.layers.*.mlp.experts.gate_up_proj sharded as "
        "packed_colwise, which torch.distributed.tensor.parallel has no style for; use ddp or fsdp",
        "encoder": "--parallel fsdp: T5ForConditionalGeneration cannot --mode generate, which calls its encoder by "
        "itself, and FSDP gathers the weights where the whole model is called; use --mode forward",
        "reentrant": "--parallel ddp: SiglipVisionModel has parameters without a gradient, and DDP cannot look for "
        "them under reentrant checkpoints; use --checkpointing non-reentrant",
    }  # fmt: skip


@pytest.mark.parametrize("world", ["", "1", "two"])
def test_one_process_shards_nothing(monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(GpuprofError) as refusal:
        build("gpt2", Options(parallel="fsdp"))
    assert str(refusal.value) == (
        "--parallel fsdp needs several processes: run it as 'torchrun --nproc-per-node N -m gpuprof profile gpt2 "
        "--parallel fsdp'"
    )


def test_processes_without_a_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GpuprofError, match=r"^--parallel tp needs the processes of a job as one group: call torch\."):
        build("gpt2", Options(parallel="tp", device="cpu", seq_len=8))


def test_a_file_shards_its_model_itself(tmp_path):
    (tmp_path / "net.py").write_text("def make(): ...")
    with pytest.raises(GpuprofError, match=r"^--parallel ddp is for a model by name: \S+ shards its model itself$"):
        build(f"{tmp_path}/net.py:make", Options(parallel="ddp"))
    with pytest.raises(GpuprofError, match=r"^parallel: only for a model given by name; here the module says it$"):
        gpuprof.profile(torch.nn.Linear(1, 1), torch.ones(1), parallel="ddp")


def test_what_options_refuse():
    with pytest.raises(GpuprofError, match=r"^--parallel 'pp' is not one of: none, ddp, fsdp, tp$"):
        Options(parallel="pp")
    with pytest.raises(GpuprofError, match=r"^--parallel ddp averages gradients, and --mode forward has none: leave"):
        Options(parallel="ddp", mode="forward")
    with pytest.raises(GpuprofError, match=r"^--parallel tp shards a model that runs: a count without weights is of"):
        gpuprof.count("gpt2", parallel="tp")
