"""Formulas against figures derived by hand and published ones; rules on rows against torch's own counter."""

from dataclasses import asdict, replace

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.theory import CONVENTIONS, Architecture, convention, formulas
from gpuprof.theory.calflops import count as calflops
from gpuprof.theory.calflops import count_today
from gpuprof.theory.rows import Count, Row, flash, read_shapes, torch_counter

# huggingface.co/meta-llama/Llama-3.1-8B: 8,030,261,248 parameters, 32 layers, 128,256 x 4,096 in and out, not tied
LLAMA = Architecture(
    kind="decoder", params=8_030_261_248, trainable_params=8_030_261_248, embedding_params=525_336_576,
    token_embedding_params=525_336_576, head_params=525_336_576, vector_params=65 * 4096, layers=32,
    attention_layers=32, hidden=4096, heads=32, head_dim=128, v_head_dim=128, batch=1, seq=2048, mode="train",
    head="lm_head",
)  # fmt: skip

# nanoGPT's transformer_sizing.ipynb: GPT-2 without biases, 124,337,664 parameters, of them 1024 x 768 for positions
GPT2 = Architecture(
    kind="decoder", params=124_337_664, trainable_params=124_337_664, embedding_params=38_597_376 + 786_432,
    token_embedding_params=38_597_376, head_params=38_597_376, tied=True, vector_params=25 * 768, layers=12,
    attention_layers=12, hidden=768, heads=12, head_dim=64, v_head_dim=64, batch=1, seq=1024, mode="train",
    head="lm_head",
)  # fmt: skip

# One layer of width 4 with 2 heads of 2 in each stack, 12 h^2 = 192 weights in the encoder's, 16 h^2 = 256 in the
# decoder's, of them 2 h^2 = 32 for keys and values; a table of 10 x 4 that both look up and the head multiplies with
SEQ2SEQ = Architecture(
    kind="encoder-decoder", params=256 + 40, trainable_params=256 + 40, embedding_params=40, token_embedding_params=40,
    head_params=40, tied=True, memory_params=32, layers=1, attention_layers=1, hidden=4, heads=2, head_dim=2,
    v_head_dim=2, batch=3, seq=5, head="lm_head",
    encoder=Architecture(
        kind="encoder", params=192 + 40, trainable_params=192 + 40, embedding_params=40, token_embedding_params=40,
        layers=1, attention_layers=1, causal=False, hidden=4, heads=2, head_dim=2, v_head_dim=2, batch=3, seq=7,
    ),
)  # fmt: skip


def total(parts):
    return sum(parts.values())


def row(op="aten::mm", inputs=((2, 3), (3, 4)), results=((2, 4),), **fields):
    return Row(
        **{
            "op": op, "kind": "matmul", "phase": "forward", "module_class": "Linear", "attends": False,
            "inputs": inputs, "results": results, "calls": 1, "causal": 48, "full": 48, "device": "cpu", **fields,
        }
    )  # fmt: skip


def test_palm_of_llama():
    # per token 6 x 8,030,261,248 + 12 x 32 x 32 x 128 x 2048 = 48,181,567,488 + 3,221,225,472
    assert total(formulas.palm(LLAMA)) == 51_402_792_960 * 2048


def test_torchtitan_of_llama():
    # per token 6 x (8,030,261,248 - 525,336,576) + 6 x 32 x 32 x 256 x 2048 = 45,029,548,032 + 3,221,225,472
    assert total(formulas.torchtitan(LLAMA)) == 48_250_773_504 * 2048


def test_palm_of_gpt2_is_what_nanogpt_prints():
    # transformer_sizing.ipynb: "palm_flops: 879894724608, flops: 874944921600, ratio: 1.0057"
    assert total(formulas.palm(GPT2)) == 879_894_724_608


@pytest.mark.parametrize("of", [formulas.megatron_paper, formulas.megatron])
def test_megatron_of_gpt2_is_what_nanogpt_counts(of):
    # the same notebook's 874,944,921,600; Megatron-LM's main halves the attention: 12 layers x 3 x 3,221,225,472
    halved = 12 * 3 * 3_221_225_472 // 2 if of is formulas.megatron else 0

    assert total(of(GPT2)) == 874_944_921_600 - halved


def test_megatron_with_recomputation_is_narayanans_formula():
    b, s, h, layers, vocab = 4, 2048, 12288, 96, 51200  # GPT-3
    gpt3 = replace(
        GPT2, params=layers * 12 * h * h + (vocab + s) * h, embedding_params=(vocab + s) * h, head_params=vocab * h,
        vector_params=0, layers=layers, hidden=h, heads=96, head_dim=128, v_head_dim=128, batch=b, seq=s,
    )  # fmt: skip
    # 96 B s L h^2 (1 + s / 6h + V / 16Lh), over the common denominator 48Lh
    expected = 96 * b * s * layers * h * h * (48 * layers * h + 8 * layers * s + 3 * vocab) // (48 * layers * h)

    assert total(formulas.megatron_hfu(gpt3)) == expected


def test_mosaic_takes_heads_for_as_wide_as_the_model():
    narrow = replace(GPT2, head_dim=32, v_head_dim=32)
    per_sequence = 2 * 124_337_664 * 1024 + 12 * 2 * 2 * 768 * 1024**2  # llm-foundry's README

    assert total(formulas.mosaic(narrow)) == 3 * per_sequence
    assert total(formulas.palm(narrow)) < 3 * per_sequence


def test_chinchilla_counts_the_embedding_and_the_softmax():
    # appendix F, forward: embedding and logits 2sVh each; a layer 8sh^2 + 4s^2 h + 3Hs^2 + 16sh^2
    s, h, vocab = 1024, 768, 50257
    forward = 4 * s * vocab * h + 12 * (24 * s * h * h + 4 * s * s * h + 3 * 12 * s * s)

    assert total(formulas.chinchilla(GPT2)) == 3 * forward


def test_torchtitan_of_experts_takes_those_at_work():
    # 8 experts of 1000 parameters in one layer, 2 at work, 500 others that multiply, a table of 100
    moe = replace(
        LLAMA, params=8600, trainable_params=8600, embedding_params=100, head_params=100, vector_params=0,
        expert_params=8000, router_params=50, experts=8, top_k=2, layers=1, heads=1, head_dim=4, v_head_dim=2, batch=3,
        seq=10, hidden=4,
    )  # fmt: skip

    assert total(formulas.torchtitan(moe)) == 30 * (6 * (8600 - 6000 - 100) + 6 * 1 * 1 * (4 + 2) * 10)
    assert formulas.megatron(moe) == {
        "layers": 6 * 30 * (2000 + 400 - 50), "attention": 3 * 3 * 100 * (4 + 2), "head": 6 * 30 * 100,
    }  # fmt: skip


def test_two_stacks_of_unequal_length():
    # decoder 3 x 5 = 15 positions, encoder 3 x 7 = 21; pairs 5 x 5 and 7 x 7 of their own, 5 x 7 across, 4 h FLOPs each
    own, across = 3 * 16 * (25 + 49), 3 * 16 * 35
    layers = 2 * (15 * (256 - 32) + 21 * (192 + 32))

    assert formulas.megatron(SEQ2SEQ) == {
        "layers": 3 * layers, "attention": 3 * (own - 3 * 16 * 25 // 2 + across), "head": 3 * 2 * 15 * 40,
    }  # fmt: skip
    assert formulas.chinchilla(SEQ2SEQ) == {
        "layers": 3 * layers, "attention": 3 * (own + across), "head": 3 * 2 * 15 * 40,
        "embedding": 3 * 2 * (15 + 21) * 40, "softmax": 3 * 3 * 2 * 3 * (25 + 35 + 49),
    }  # fmt: skip
    assert formulas.palm(SEQ2SEQ) == {
        "layers": 3 * 2 * (15 * 256 + 21 * 192), "attention": 3 * (own + across), "head": 3 * 2 * 15 * 40,
        "embedding": 3 * 2 * 21 * 40,
    }  # fmt: skip
    assert formulas.megatron_hfu(SEQ2SEQ)["recompute"] == layers + own + across


def test_a_forward_alone_is_a_third():
    for name in ("palm", "chinchilla", "megatron", "torchtitan", "mosaic"):
        parts = CONVENTIONS[name].parts
        assert 3 * total(parts(replace(LLAMA, mode="forward"))) == total(parts(LLAMA)), name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "vision"}, "a vision model with stages, or without the one convolution that embeds patches"),
        ({"kind": "audio"}, "a model of sound"),
        ({"kind": "multimodal"}, "text and images"),
        ({"kind": "other-head"}, "a head, or more of them, that gpuprof does not know"),
        ({"kind": "other-layers"}, "attention other than scaled dot-product"),
        ({"kind": "other"}, "no transformer that gpuprof knows"),
        ({"kind": "encoder", "layers": 0}, "the sizes of the layers or of the step are not known"),
        ({"mode": "generate"}, "a generation"),
        ({"trainable_params": 1000}, "8,030,260,248 of 8,030,261,248 are frozen"),
        ({"head_params": 0}, "this model has none"),
        ({"attention_layers": 8}, "each of the 32 layers, and 8 attend"),
        ({"attention_layers": 33}, "that of the 32 layers, and this model has 1 more"),
        ({"experts": 8, "top_k": 2}, "8 per layer, 2 of them at work"),
    ],
)
def test_a_formula_says_why_it_does_not_fit(changes, reason):
    facts = vars(replace(LLAMA, **changes))

    with pytest.raises(GpuprofError, match=reason) as caught:
        convention("palm", facts, "it")
    assert str(caught.value).startswith("convention palm does not fit it: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({}, "torchtitan", "decoder-only language models, and this is an encoder and a decoder"),
        ({}, "mosaic", "decoder-only language models, and this is an encoder and a decoder"),
        ({}, "megatron-paper", "one stack of GPT's layers"),
        ({"head_params": 0}, "palm", "this model has none"),
        ({"memory_params": 0}, "palm", "are not known"),
        ({"encoder": replace(SEQ2SEQ.encoder, seq=0)}, "palm", "are not known"),
        ({"encoder": replace(SEQ2SEQ.encoder, trainable_params=32)}, "palm", "200 of 232 are frozen"),
        ({"experts": 8}, "megatron", "experts in decoder-only"),
    ],
)
def test_a_formula_says_why_it_does_not_fit_two_stacks(changes, name, reason):
    assert reason in CONVENTIONS[name].applies_to(asdict(replace(SEQ2SEQ, **changes)))


def test_formulas_that_fit_two_stacks():
    facts = asdict(SEQ2SEQ)

    assert Architecture.from_facts(facts) == SEQ2SEQ
    fitting = [name for name, how in CONVENTIONS.items() if how.parts and not how.applies_to(facts)]
    assert fitting == ["palm", "chinchilla", "megatron", "megatron-hfu"]


def test_only_formulas_need_facts():
    assert convention("calflops", None).name == "calflops"
    with pytest.raises(GpuprofError, match="does not record them"):
        convention("palm", None)
    with pytest.raises(GpuprofError, match="no convention 'plam': known are causal, full"):
        convention("plam", None)
    assert CONVENTIONS["megatron-paper"].applies_to(vars(GPT2)) == ""
    assert "GPT's layers" in CONVENTIONS["megatron-paper"].applies_to(vars(LLAMA))
    assert "no backward" in CONVENTIONS["megatron-hfu"].applies_to(vars(replace(LLAMA, mode="forward")))


def test_every_convention_names_itself_its_source_and_its_assumptions():
    for name, how in CONVENTIONS.items():
        assert how.name == name
        assert how.title.endswith(".")
        assert how.source
        assert not (how.rule and how.parts)
        assert all(sentence.endswith(".") for sentence in how.assumptions)
        assert how.assumptions or name in ("causal", "full")


def test_facts_of_another_gpuprof_are_read():
    assert Architecture.from_facts({"layers": 3, "moons": 2}) == Architecture(layers=3)
    older = {**asdict(LLAMA), "ffn": 14336}
    for name in ("causal", "pooled", "transform", "transform_params", "memory_params", "patches", "encoder"):
        del older[name]
    assert Architecture.from_facts(older) == LLAMA


def test_shapes_are_read_back():
    assert read_shapes("2x3 scalar 4 -> 7 8x9") == (((2, 3), (), (4,)), ((7,), (8, 9)))
    assert read_shapes("1 2 3 4 5 6 7 8 and 3 more -> ")[0] == tuple((n,) for n in range(1, 9))


def test_flash_halves_what_is_causal_and_takes_two_and_a_half_forwards():
    # 2 heads, 10 x 10, head size 4: forward 4 x 2 x 100 x 4 = 3200 over the square, 1760 unmasked
    forward = row(op="aten::_flash_attention_forward", kind="attention", causal=1760, full=3200)
    backward = row(op="aten::_flash_attention_backward", kind="attention", causal=3520, full=6400)

    assert flash(forward).flops == 1600
    assert flash(backward).flops == 4000
    assert flash(forward._replace(causal=3200)).flops == 3200
    assert flash(row(causal=None, full=None)).flops is None


def test_torch_counter_leaves_out_what_it_does_not_know():
    cpu = row(op="aten::_scaled_dot_product_flash_attention_for_cpu", kind="attention", causal=30, full=48)

    assert torch_counter(cpu).flops == 0
    assert torch_counter(cpu._replace(device="meta")).flops == 48
    assert torch_counter(row(op="aten::_grouped_mm")).flops == 0


def test_torch_counter_of_a_fused_backward_with_heads_of_two_sizes():
    # one head, 5 x 7, keys of 6 and values of 4: three products with 6, two with 4, 2 x 35 FLOPs each
    shapes = ((1, 1, 5, 4), (1, 1, 5, 6), (1, 1, 7, 6), (1, 1, 7, 4))
    backward = row(
        op="aten::_scaled_dot_product_efficient_attention_backward", kind="attention", inputs=shapes,
        full=2 * 35 * 2 * (6 + 4),
    )  # fmt: skip

    assert torch_counter(backward).flops == 2 * 35 * (3 * 6 + 2 * 4)


CALFLOPS = [
    # figures of calflops 0.3.2 itself, run on torch 2.13, where no other is derived beside them
    (row(calls=3), Count(72, 144)),
    (row(op="aten::addmm", inputs=((4,), (2, 3), (3, 4))), Count(24, 48)),
    (row(op="aten::addmm", inputs=((4,), (2, 3), (3, 4)), module_class="Conv1D"), Count(24, 52)),
    (row(op="aten::bmm", inputs=((5, 2, 3), (5, 3, 4))), Count(120, 240)),
    (row(op="aten::_scaled_dot_product_flash_attention", kind="attention"), Count(0, 0)),
    (row(phase="backward"), Count(0, 0)),
    (row(op="aten::convolution", inputs=((16, 3, 384, 384), (1152, 3, 14, 14), (1152,)),
         results=((16, 1152, 27, 27),)), Count(7_900_913_664, 15_815_264_256)),
    (row(op="aten::convolution", inputs=((2, 8, 12, 12), (16, 2, 3, 3)), results=((2, 16, 12, 12),)),
     Count(82_944, 165_888)),
    # transposed with 4 groups: 4 times too little
    (row(op="aten::convolution", inputs=((2, 8, 12, 12), (8, 4, 3, 3)), results=((2, 16, 25, 25),)),
     Count(20_736, 41_472)),
    (row(op="aten::native_layer_norm", inputs=((2, 8), (8,), (8,))), Count(0, 80)),
    (row(op="aten::native_layer_norm", inputs=((2, 8),)), Count(0, 64)),
    (row(op="aten::native_batch_norm", inputs=((2, 8), (8,), (8,), (8,), (8,))), Count(0, 32)),
    (row(op="aten::gelu", inputs=((2, 8),), module_class="GELUTanh"), Count(0, 16)),
    (row(op="aten::gelu", inputs=((2, 8),), module_class="GELUActivation"), Count(0, 0)),
    (row(op="aten::relu_", inputs=((2, 8),), module_class="ReLU"), Count(0, 16)),
    (row(op="aten::hardtanh", inputs=((2, 8),), module_class="ReLU6"), Count(0, 0)),
    (row(op="aten::native_batch_norm", inputs=((1, 8), (8,), (8,)), module_class="InstanceNorm2d"), Count(0, 40)),
    (row(op="aten::tanh", inputs=((2, 8),)), Count(0, 0)),
    (row(op="aten::mean", inputs=((2, 8, 3, 3),), module_class="AdaptiveAvgPool2d"), Count(0, 144)),
    # lined up from the left: (8,) with (2, 5, 8) is 8 x 5 x 8
    (row(op="aten::mul", inputs=((8,), (2, 5, 8)), module_class="RMSNorm2"), Count(0, 320)),
    (row(op="aten::add", inputs=((2, 5, 8), (5, 8)), module_class="Block"), Count(0, 5 * 8 * 8)),
    (row(op="aten::add", inputs=((2, 5, 8),), module_class="Block"), Count(0, 80)),
    (row(op="aten::add_", inputs=((2, 5, 8),), module_class="Block"), Count(0, 0)),
    (row(op="aten::add", inputs=((2, 5, 8), (8,))), Count(0, 0)),
    (row(op="aten::upsample_bilinear2d", inputs=((1, 3, 4, 4),), results=((1, 3, 7, 9),), module_class="Model"),
     Count(0, 63)),
    (row(op="aten::upsample_nearest2d", inputs=((1, 3, 4, 4),), results=((1, 3, 8, 8),), module_class="Upsample"),
     Count(0, 48)),
]  # fmt: skip


def test_calflops_of_today_sees_no_operators():
    assert count_today(row(op="aten::mul", inputs=((2, 8), (2, 8)), module_class="Block")) == Count(0, 0)
    assert count_today(row(op="aten::gelu", inputs=((2, 8),), module_class="GELUTanh")) == Count(0, 0)
    assert count_today(row()) == Count(24, 48)


@pytest.mark.parametrize(("given", "expected"), CALFLOPS, ids=lambda value: getattr(value, "op", None))
def test_calflops_counts_a_row(given, expected):
    assert calflops(given) == expected


def test_calflops_of_what_a_recording_does_not_tell_is_unknown():
    known = Row("aten::convolution", "convolution", "forward", "Conv2d", False, ((1, 2, 5, 5), (4, 2, 3, 3)),
                ((1, 4, 3, 3),), 1, 1296, 1296, "cuda")  # fmt: skip
    resized = known._replace(op="aten::upsample_nearest2d", kind="vector", causal=0, full=0)

    assert calflops(known) == (4 * 2 * 9 * 9, 2 * 4 * 2 * 9 * 9)
    assert calflops(known._replace(results=(), causal=None, full=None)) == (None, None)
    assert calflops(resized).flops == 9
    assert calflops(resized._replace(results=())) == (None, None)
