"""Named models sharded over two processes: figures worked out by hand for a llama of two layers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from workload.conftest import write_tiny

import gpuprof
from gpuprof.analysis.replication import replication
from gpuprof.errors import GpuprofError
from gpuprof.passes.unsharded import count_unsharded
from gpuprof.record import Run, load
from gpuprof.workload import Options, build

HERE = Path(__file__).parent

HIDDEN, INNER, VOCABULARY, HEADS, HEAD, POSITIONS = 64, 128, 256, 4, 16, 2 * 16
PROJECTIONS = 2 * POSITIONS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER)
ATTENTION = 2 * 2 * HEADS * HEAD * 2 * (16 * 17 // 2)  # two products, of each of two sequences the unmasked pairs
MODEL = 2 * (PROJECTIONS + ATTENTION) + 2 * POSITIONS * HIDDEN * VOCABULARY

NORMS = 5 * HIDDEN
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER
PARAMETERS = VOCABULARY * HIDDEN + 2 * LAYER + NORMS  # the head is the embedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder):
    """What each of two processes saw."""
    for name in ("smollm2-135m", "gpt2", "mixtral-8x7b", "t5-small", "siglip-so400m-384"):
        write_tiny(folder, name)
    for name, changes in {
        "three-heads": {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48},
        "odd": {"intermediate_size": 129},
    }.items():
        shutil.move(write_tiny(folder / name, "smollm2-135m", **changes), folder / f"{name}.made")
        shutil.rmtree(folder / name)
        shutil.move(folder / f"{name}.made", folder / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "sharded.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


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
def test_all_ranks_together_do_what_the_unsharded_model_does(ranks, folder, how, batches):
    runs = [load(folder / f"{how}.rank{rank}.run.json") for rank in range(2)]
    job = Run({"parallel": [how]}, {}, {}, ops=pd.concat([run.ops for run in runs], ignore_index=True))
    options = Options(parallel=how, batch_size=2, seq_len=16)

    found = replication(job, count_unsharded((str(folder / "tiny-smollm2-135m"), options)), batches)

    repeated = {path for path in found["repeated"] if not path.endswith("rotary_emb")}  # of older releases, a product
    assert (repeated, found["missing"]) == (set(), {})
    if not found["repeated"]:
        assert found["flops"] == batches * 3 * MODEL


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
