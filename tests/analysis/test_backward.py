"""Counted ratios against figures derived by hand, and the cause given for each."""

import runpy
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest
import torch
from releases import without_rotary
from runs import counted_run, gpu_run, kernel_row, ops_row, row, tree_row
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import gpuprof
from gpuprof.analysis import backward as b
from gpuprof.analysis import backward_causes as c
from gpuprof.profiler import run_passes
from gpuprof.schema import table
from gpuprof.workload import training

STUDY = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "study_backward.py"))


def count(model, inputs, **options):
    torch.manual_seed(0)
    return gpuprof.profile(model, inputs, passes=["count"], **options)


def found(run, by="module"):
    """{module or class: (forward FLOPs, backward FLOPs, cause)}, and every cause predicts what was counted."""
    rows = run.backward_ratios(by)
    explained = rows[rows["flops_explained"].notna()]
    assert (explained["flops_explained"] == explained["flops_backward"]).all()
    return {
        name: (int(forward), int(backward), cause)
        for name, forward, backward, cause in rows[[by, "flops_forward", "flops_backward", "cause"]].itertuples(
            index=False
        )
    }


# -- SmolLM2-135M without weights, T tokens

T = 16
Q = OUT = 2 * T * 576 * 576
K = V = 2 * T * 576 * 192
MLP = 3 * 2 * T * 576 * 1536
ATTENTION = 4 * 9 * 64 * (T * (T + 1) // 2)  # 9 heads of 64, two products over the unmasked pairs
LAYER = Q + K + V + OUT + MLP + ATTENTION
HEAD = 2 * T * 576 * 49152
DOWN = 2 * 2 * T * 576 * 8  # both adapters
UP = 2 * T * 8 * (576 + 192)


def study(variant, **options):
    workload = STUDY["make"](variant, T, weightless=True)
    return without_rotary(run_passes(workload, passes=["count"], **options))


@pytest.mark.parametrize("variant", ["plain", "eager"])
def test_all_trained_is_exactly_two(variant):
    run = study(variant)
    figures = b.whole(run)

    assert (figures["flops_forward"], figures["flops_backward"]) == (30 * LAYER + HEAD, 2 * (30 * LAYER + HEAD))
    assert (figures["ratio_flops"], figures["error_flops"]) == (2.0, 0.0)
    assert {cause["cause"] for cause in figures["causes"]} == {c.TWO}
    attention = row(run.backward_ratios(), module="model.layers.3.self_attn")
    hardware = Fraction(attention["flops_hardware_backward"], attention["flops_hardware_forward"])
    products = Q + K + V + OUT
    if variant == "plain":  # the fused kernel does five products in the backward, for two in the forward
        assert hardware == Fraction(2 * products + ATTENTION * 5 // 2, products + ATTENTION)
        assert attention["reason"] == "fused attention computes its scores again: 2.5 x in hardware"
    else:
        assert hardware == 2
        assert attention["reason"] == ""


def test_frozen_lower_half():
    run = study("frozen-half")
    rows = found(run)

    assert rows["model.layers.14"] == (LAYER, 0, c.NOTHING_TRAINED)
    assert rows["model.layers.15"] == (LAYER, 2 * LAYER, c.TWO)  # its norm is trained, so q, k, v have both gradients
    assert rows["lm_head"] == (HEAD, HEAD, c.FROZEN)  # tied to the frozen embeddings
    assert rows["model.embed_tokens"] == (0, 0, c.EMBEDDING)
    assert rows[""] == (30 * LAYER + HEAD, 30 * LAYER + HEAD, c.MIXED)  # 15 of 30 at 2, the head at 1: exactly 1
    assert row(run.backward_ratios(), module="")["reason"] == "mixed: model.layers.0-14 0x; lm_head 1x"
    assert b.whole(run)["error_flops"] == 0.5  # 3 assumed for 2
    causes = {entry["cause"]: (entry["flops_forward"], entry["flops_backward"]) for entry in b.whole(run)["causes"]}
    assert causes == {c.TWO: (15 * LAYER, 30 * LAYER), c.NOTHING_TRAINED: (15 * LAYER, 0), c.FROZEN: (HEAD, HEAD)}


def test_adapters_on_a_frozen_base():
    run = study("lora")
    rows = found(run)

    first = 2 * ATTENTION + OUT + MLP + DOWN + 2 * UP  # nothing is trained before: no gradient for q, k, v or the input
    later = Q + K + V + 2 * ATTENTION + OUT + MLP + 2 * DOWN + 2 * UP
    forward = LAYER + DOWN + UP
    assert rows["model.layers.0"] == (forward, first, c.MIXED)
    assert rows["model.layers.1"] == rows["model.layers.29"] == (forward, later, c.MIXED)
    assert rows["model.layers.0.self_attn.q_proj.base"] == (Q, 0, c.NOTHING_TRAINED)
    assert rows["model.layers.0.self_attn.q_proj.down"][1:] == (DOWN // 2, c.NO_INPUT_GRADIENT)
    assert rows["model.layers.0.self_attn.k_proj"] == (K, 0, c.NOT_PASSED)
    assert rows["model.layers.1.self_attn.k_proj"] == (K, K, c.FROZEN)
    assert rows["model.layers.1.mlp"] == (MLP, MLP, c.FROZEN)
    ratio = Fraction(first + 29 * later + HEAD, 30 * forward + HEAD)
    assert Fraction(rows[""][1], rows[""][0]) == ratio
    assert float(ratio) == pytest.approx(1.0014, abs=5e-5)


def test_the_published_figure_of_adapters():
    run = without_rotary(run_passes(STUDY["make"]("lora", 128, weightless=True), passes=["count"]))
    figures = b.whole(run)

    # the sums of the test above with 128 tokens
    assert Fraction(figures["flops_backward"], figures["flops_forward"]) == Fraction(120918, 119071)


def test_of_eager_attention_over_frozen_keys_one_factor_has_no_gradient():
    workload = STUDY["build"](STUDY["MODEL"], STUDY["Options"](seq_len=T, attention="eager"), weightless=True)
    STUDY["adapt"](workload.model)
    run = run_passes(workload, passes=["count"])
    of_attention = row(run.backward_ratios(), module="model.layers.0.self_attn")

    # queries, values and weights of layer 0 need a gradient, its keys do not: 3 of the 4 gradients, half ATTENTION each
    assert "its own products 1.500x" in of_attention["reason"]
    assert found(run)["model.layers.0.self_attn"][1] == 3 * ATTENTION // 2 + OUT + DOWN + 2 * UP


# -- checkpoints, on a Llama small enough to run

TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


@pytest.mark.parametrize("reentrant", [True, False])
def test_recompute_is_apart(reentrant):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY)).train()
    training.checkpoint(model, "reentrant" if reentrant else "non-reentrant")
    ids = torch.randint(0, 64, (2, 8))
    run = without_rotary(count(model, {"input_ids": ids, "labels": ids}))
    tokens, pairs = 16, 2 * 4 * (8 * 9 // 2)
    down = 2 * tokens * 32 * 48
    layer = 2 * tokens * 32 * (32 + 16 + 16 + 32) + 3 * down + 2 * pairs * (8 + 8)
    forward = 3 * layer + 2 * tokens * 32 * 64

    # without reentrancy a checkpoint stops when it has its last tensor: before the last product
    recompute = 3 * (layer if reentrant else layer - down)
    figures = b.whole(run)
    assert [figures[f"flops_{phase}"] for phase in ("forward", "recompute", "backward")] == [
        forward, recompute, 2 * forward,
    ]  # fmt: skip
    assert figures["error_flops"] == 0
    assert figures["error_flops_recompute"] == pytest.approx(3 * forward / (3 * forward + recompute) - 1)
    assert found(run)["model.layers.1"] == (layer, 2 * layer, c.TWO)
    said = row(run.backward_ratios(), module="model.layers.1")["reason"]
    assert said == f"recompute apart: {1 if reentrant else (layer - down) / layer:.3f} x forward"


# -- single causes


def test_inputs_without_gradient_and_frozen_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2).requires_grad_(False), nn.Linear(4, 5))
    rows = found(count(model, torch.randn(2, 3, 8, 8)))

    first, second, third = 2 * 2 * 36 * 4 * 3 * 9, 2 * 2 * 16 * 4 * 2 * 9, 2 * 2 * 16 * 4 * 5
    assert rows["0"] == (first, first, c.NO_INPUT_GRADIENT)
    assert rows["1"] == (second, second, c.FROZEN)
    assert rows["2"] == (third, 2 * third, c.TWO)
    assert rows[""] == (first + second + third, first + second + 2 * third, c.MIXED)


def test_a_frozen_weight_with_a_trained_bias_is_told_by_shapes():
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5))
    model[1].weight.requires_grad_(False)

    assert found(count(model, torch.randn(4, 6)))["1"] == (2 * 4 * 7 * 5, 2 * 4 * 7 * 5, c.FROZEN)


class Pooled(nn.Module):
    """A trained head whose output nobody uses."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.pooler = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        x = self.body(x)
        self.pooler(x)
        return self.norm(x)


def test_an_unused_output():
    rows = found(count(Pooled(), torch.randn(4, 6)))

    assert rows["pooler"] == (2 * 4 * 6 * 6, 0, c.UNUSED)
    assert rows["body"] == (2 * 4 * 6 * 6, 2 * 4 * 6 * 6, c.NO_INPUT_GRADIENT)
    assert rows["norm"] == (0, 0, c.NO_PRODUCT)


def test_a_module_called_twice_with_one_input_that_needs_no_gradient():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(self.fc(x))

    run = count(Twice(), torch.randn(4, 6))

    assert found(run)["fc"] == (2 * 288, 3 * 288, c.SOME_GRADIENTS)
    reason = row(run.backward_ratios(), module="fc")["reason"]
    assert reason == "3 of the 4 factors of its products need a gradient"


def test_multi_head_attention_over_inputs():
    run = count(nn.MultiheadAttention(16, 2, batch_first=True), (torch.randn(2, 3, 16),) * 3)
    tokens = 6
    packed, out = 2 * tokens * 16 * 48, 2 * tokens * 16 * 16
    products = 4 * 2 * 2 * 9 * 8  # two products of two heads of 8, full

    assert found(run)[""][:2] == (packed + out + products, packed + 2 * out + 2 * products)
    assert found(run)[""][2] == c.SOME_GRADIENTS
    assert row(run.backward_ratios(), module="")["reason"].startswith("in part: its input needs no gradient")


def test_what_no_cause_predicts_is_unexplained():
    run = gpu_run()
    run.ops.loc[(run.ops["module"] == "layers.0") & (run.ops["phase"] == "backward"), "flops_causal"] = 1700
    rows = run.backward_ratios()

    assert row(rows, module="layers.0")["cause"] == c.UNEXPLAINED
    assert row(rows, module="head")["cause"] == c.TWO
    assert row(rows, module="")["reason"] == "unexplained: layers 1.850x"
    assert pd.isna(row(rows, module="")["flops_explained"])
    assert {entry["cause"] for entry in b.whole(run)["causes"]} == {c.TWO, c.UNEXPLAINED}


# -- classes, times, and what is missing


def test_classes_and_times():
    run = gpu_run()
    rows = run.backward_ratios("class")

    blocks = row(rows, **{"class": "Block"})
    assert (blocks["modules"], blocks["flops_forward"], blocks["flops_backward"], blocks["cause"]) == (
        2, 2000, 4000, c.TWO,
    )  # fmt: skip
    assert (blocks["ratio_flops"], blocks["ratio_time"]) == (2.0, 4.0)  # 20 ns each forward, 80 backward
    figures = b.whole(run)
    assert figures["ratio_time"] == pytest.approx(4.0)
    assert figures["error_time"] == pytest.approx(-0.5)  # assumed 160 ns, took 320
    assert figures["ratio_step"] == pytest.approx(340 / 80)


def test_a_class_whose_members_differ_says_how_many():
    rows = study("frozen-half").backward_ratios("class")

    layers = row(rows, **{"class": "LlamaDecoderLayer"})
    assert (layers["cause"], layers["reason"]) == (c.MIXED, "mixed: 15 at 0x, 15 at 2x")
    assert row(rows, **{"class": "Embedding"})["cause"] == c.EMBEDDING


def test_recompute_is_in_no_ratio_of_time():
    run = gpu_run()
    run.kernels = pd.concat([run.kernels, table("kernels", [kernel_row("head", "recompute", "aten::mm", 5000, 40)])])

    head = row(run.backward_ratios(), module="head")
    assert (head["time_recompute_s"], head["ratio_time"]) == (pytest.approx(40e-9), pytest.approx(4.0))


def test_a_count_alone_has_no_times():
    run = study("plain")
    rows = run.backward_ratios()

    assert rows["ratio_time"].isna().all()
    assert b.whole(run)["error_time"] is None
    assert b.whole(run)["ratio_step"] is None


def test_a_trace_alone_has_no_counts():
    run = gpu_run()
    del run.passes["count"]
    run.ops = table("ops", [])

    head = row(run.backward_ratios(), module="head")
    assert pd.isna(head["ratio_flops"])
    assert (head["ratio_time"], head["cause"]) == (pytest.approx(4.0), "")
    assert b.whole(run)["ratio_flops"] is None


def test_runs_without_a_backward_are_refused():
    forward = count(nn.Linear(3, 3), torch.randn(2, 3), mode="forward")
    with pytest.raises(gpuprof.GpuprofError, match="no backward: profile with --mode train"):
        forward.backward_ratios()
    neither = gpuprof.Run({"name": "m", "mode": "train"}, {"type": "cpu", "name": "c"}, {})
    neither.tree = table("tree", [tree_row("", "M")])
    with pytest.raises(gpuprof.GpuprofError, match="neither counted nor traced"):
        neither.backward_ratios()
    with pytest.raises(gpuprof.GpuprofError, match="by 'op'"):
        gpu_run().backward_ratios("op")


def test_an_operator_without_a_rule_does_no_harm():
    run = gpu_run()
    extra = ops_row("head", "backward", "aten::igamma.default", None, kind="")  # which is no product
    extra.update(flops_full=None, flops_hardware=None, vector_flops=None)
    run.ops = table("ops", [*run.ops.to_dict(orient="records"), extra])

    assert row(run.backward_ratios(), module="head")["cause"] == c.TWO


def test_executed_flops_have_a_ratio_where_counters_were_read():
    """Executed forward 1000 + 1000 + 3000, backward 8000; counted 4000 and 8000."""
    run = counted_run()

    figures = b.whole(run)
    assert (figures["flops_executed_forward"], figures["flops_executed_backward"]) == (5000, 8000)
    assert figures["ratio_executed"] == pytest.approx(1.6)
    assert row(b.backward_ratios(run), module="head")["ratio_executed"] == pytest.approx(4 / 3)
    assert row(b.backward_ratios(run, "class"), **{"class": "Block"})["ratio_executed"] == pytest.approx(2.0)
    assert b.whole(gpu_run())["ratio_executed"] is None
