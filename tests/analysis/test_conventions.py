"""Whole runs read in every convention."""

import csv
import math
from pathlib import Path

import pytest
import torch
import transformers
from releases import rotary_product
from runs import gpu_run, ops_row
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import gpuprof
from gpuprof.analysis.conventions import beside, difference, in_words, misfits
from gpuprof.analysis.modules import by_module, convention_by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.totals import totals
from gpuprof.cli import options
from gpuprof.errors import GpuprofError
from gpuprof.render import render
from gpuprof.render.view import View
from gpuprof.schema import table
from gpuprof.theory import CONVENTIONS
from gpuprof.workload import load_preset

REFERENCE = Path(__file__).parents[1] / "data" / "reports" / "calflops_llava_onevision_qwen2_7b.tsv"

# modules of the report by path in today's transformers; the language model stands for two of them
VISION = "vision_tower.vision_model"
MOVED = [
    (f"{VISION}.", "model.vision_tower."),
    (VISION, "model.vision_tower"),
    ("vision_tower", "model.vision_tower"),
    ("multi_modal_projector", "model.multi_modal_projector"),
    ("language_model.lm_head", "lm_head"),
    ("language_model.model", "model.language_model"),
]

# what the report prints, as calflops_llava_onevision_qwen2_7b.tsv has it
REPORT = """
-	8.03 B	53.19 T	111.82 T
vision_tower	397.75 M	4.63 T	9.26 T
vision_tower.vision_model	397.75 M	4.63 T	9.26 T
vision_tower.vision_model.embeddings	1.52 M	7.9 G	15.83 G
vision_tower.vision_model.embeddings.patch_embedding	678.53 K	7.9 G	15.82 G
vision_tower.vision_model.embeddings.position_embedding	839.81 K	0	0
vision_tower.vision_model.encoder	396.23 M	4.62 T	9.24 T
vision_tower.vision_model.encoder.layers.0-25	15.24 M	177.58 G	355.38 G
vision_tower.vision_model.encoder.layers.0-25.self_attn	5.31 M	61.92 G	123.83 G
vision_tower.vision_model.encoder.layers.0-25.self_attn.k_proj	1.33 M	15.48 G	30.96 G
vision_tower.vision_model.encoder.layers.0-25.self_attn.v_proj	1.33 M	15.48 G	30.96 G
vision_tower.vision_model.encoder.layers.0-25.self_attn.q_proj	1.33 M	15.48 G	30.96 G
vision_tower.vision_model.encoder.layers.0-25.self_attn.out_proj	1.33 M	15.48 G	30.96 G
vision_tower.vision_model.encoder.layers.0-25.layer_norm1	2.3 K	0	67.18 M
vision_tower.vision_model.encoder.layers.0-25.mlp	9.92 M	115.67 G	231.38 G
vision_tower.vision_model.encoder.layers.0-25.mlp.activation_fn	0	0	50.2 M
vision_tower.vision_model.encoder.layers.0-25.mlp.fc1	4.96 M	57.83 G	115.67 G
vision_tower.vision_model.encoder.layers.0-25.mlp.fc2	4.96 M	57.83 G	115.67 G
vision_tower.vision_model.encoder.layers.0-25.layer_norm2	2.3 K	0	67.18 M
vision_tower.vision_model.post_layernorm	2.3 K	0	67.18 M
multi_modal_projector	16.98 M	197.98 G	395.97 G
multi_modal_projector.linear_1	4.13 M	48.16 G	96.32 G
multi_modal_projector.act	0	0	0
multi_modal_projector.linear_2	12.85 M	149.82 G	299.65 G
language_model	7.62 B	48.36 T	102.16 T
language_model.model	7.07 B	48.36 T	102.16 T
language_model.model.embed_tokens	545.23 M	0	0
language_model.model.layers.0-27	233.06 M	1.73 T	3.65 T
language_model.model.layers.0-27.self_attn	29.36 M	217.59 G	435.27 G
language_model.model.layers.0-27.self_attn.q_proj	12.85 M	95.19 G	190.39 G
language_model.model.layers.0-27.self_attn.k_proj	1.84 M	13.6 G	27.2 G
language_model.model.layers.0-27.self_attn.v_proj	1.84 M	13.6 G	27.2 G
language_model.model.layers.0-27.self_attn.o_proj	12.85 M	95.19 G	190.39 G
language_model.model.layers.0-27.mlp	203.69 M	1.51 T	3.02 T
language_model.model.layers.0-27.mlp.gate_proj	67.9 M	503.17 G	1.01 T
language_model.model.layers.0-27.mlp.up_proj	67.9 M	503.17 G	1.01 T
language_model.model.layers.0-27.mlp.down_proj	67.9 M	503.17 G	1.01 T
language_model.model.layers.0-27.mlp.act_fn	0	0	140.39 M
language_model.model.layers.0-27.input_layernorm	3.58 K	0	95.22 G
language_model.model.layers.0-27.post_attention_layernorm	3.58 K	0	95.22 G
language_model.model.norm	3.58 K	0	95.22 G
language_model.model.rotary_emb	0	474.3 K	2.85 M
language_model.lm_head	545.23 M	3.82 G	7.63 G
"""
LINES = [line.split("\t") for line in REPORT.strip().splitlines()]


def printed(value, prefixes="TGMK"):
    """A figure as calflops prints it: two decimals, trailing zeros dropped."""
    for power, prefix in zip((4, 3, 2, 1), prefixes, strict=True):
        if value >= 1000**power:
            return f"{float(round(value / 1000**power, 2))} {prefix}".replace(".0 ", " ")
    return str(value)


@pytest.fixture(scope="module")
def llava_as_calflops(llava_run):
    return convention_by_module(llava_run, "calflops").set_index("module")[["params", "macs", "flops"]]


@pytest.fixture(scope="module")
def llama():
    return gpuprof.count("llama-3.1-8b", seq_len=2048)


@pytest.fixture(scope="module")
def gpt2():
    return gpuprof.count("gpt2", seq_len=1024)


@pytest.fixture(scope="module")
def bert():
    return gpuprof.count("bert-base", mode="train", batch_size=2, seq_len=128)


@pytest.fixture(scope="module")
def t5():
    return gpuprof.count("t5-small", mode="train", batch_size=2, seq_len=64)


@pytest.fixture(scope="module")
def vit():
    return gpuprof.count("vit-base-16", mode="train", batch_size=2)


def figures(modules, path):
    """Params, MACs and FLOPs of a module of the report, as today's tree has them."""
    if path == "-":
        return modules.loc[""]
    if path == "language_model":
        return modules.loc["model.language_model"] + modules.loc["lm_head"]
    old, new = next(pair for pair in MOVED if path.startswith(pair[0]))
    found = new + path.removeprefix(old)
    if (within := f"model.{VISION}") in modules.index:  # some releases of transformers still have this level
        found = found.replace("model.vision_tower", within) if path.startswith(VISION) else found
    if "-" not in found:
        return modules.loc[found]
    before, _, after = found.partition(".0-")
    last, _, rest = after.partition(".")
    layers = [modules.loc[f"{before}.{n}" + (f".{rest}" if rest else "")] for n in range(int(last) + 1)]
    assert all((layer == layers[0]).all() for layer in layers)
    return layers[0]


@pytest.mark.parametrize(("path", "params", "macs", "flops"), LINES, ids=[line[0] for line in LINES])
def test_every_line_of_the_report(llava_as_calflops, path, params, macs, flops):
    found = figures(llava_as_calflops, path)

    assert printed(found["params"], "TBMK") == params
    assert printed(found["macs"]) == macs
    assert printed(found["flops"]) == flops


def test_totals_of_the_report(llava_run):
    sums = totals(llava_run, "calflops")

    assert sums["macs"] == 53_185_756_798_144
    assert f"{sums['flops'] / 1e12:.6g}" == "111.817"
    assert f"{3 * sums['flops'] / 1e12:.6g}" == "335.45"
    assert sums["params"] == 8_030_807_584


@pytest.mark.skipif(not REFERENCE.exists(), reason="the report is not among the test data")
def test_the_lines_are_those_of_the_report():
    with REFERENCE.open() as file:
        rows = {row["module"] or "-": row for row in csv.DictReader(file, delimiter="\t")}
    missing = {path for path, row in rows.items() if row["macs"]} - {line[0] for line in LINES}

    # today's transformers has one rotary embedding for all layers
    assert missing == {"language_model.model.layers.0-27.self_attn.rotary_emb"}
    for path, *given in LINES:
        assert given == [rows[path][column] for column in ("params", "macs", "flops")]


def test_gpt2_over_the_square_is_what_nanogpt_counts(gpt2):
    # transformer_sizing.ipynb: 874,944,921,600 in a step of 1024 tokens
    assert totals(gpt2, "full")["flops"] == 874_944_921_600
    assert totals(gpt2, "megatron-paper")["flops"] == 874_944_921_600


def test_facts_of_llama(llama):
    facts = llama.workload["facts"]

    assert {name: facts[name] for name in ("kind", "layers", "attention_layers", "hidden", "heads", "causal")} == {
        "kind": "decoder", "layers": 32, "attention_layers": 32, "hidden": 4096, "heads": 32, "causal": True,
    }  # fmt: skip
    assert (facts["params"], facts["embedding_params"], facts["vector_params"]) == (8_030_261_248, 525_336_576, 266_240)
    assert (facts["tied"], facts["pooled"], facts["head"], facts["seq"]) == (False, False, "lm_head", 2048)


def test_differences_of_llama_to_the_flop(llama):
    tokens, square = 2048, 6 * 32 * 32 * 256 * 2048**2
    angles = rotary_product(llama)
    assert angles in (0, 2 * 64 * tokens)  # 64 frequencies, half a head
    # no formula has them: a layer's forward, as it looks, and a backward of twice that, which does not run
    rotary = {"layers": -3 * angles, "backward": 2 * angles} if angles else {}
    attention = square - 6 * 32 * 32 * 256 * (2048 * 2049 // 2)  # unmasked are 2048 x 2049 / 2 pairs

    assert difference(llama, "full") == {"attention": attention}
    assert difference(llama, "palm") == {
        "attention": attention, "embedding": 6 * 525_336_576 * tokens, "vectors": 6 * 266_240 * tokens, **rotary,
    }  # fmt: skip
    assert difference(llama, "torchtitan") == {"attention": attention, "vectors": 6 * 266_240 * tokens, **rotary}
    # half the square is short of half the diagonal
    assert difference(llama, "megatron") == {"attention": -6 * 32 * 32 * 256 * 1024, **rotary}
    layers = 2 * tokens * (8_030_261_248 - 2 * 525_336_576 - 266_240)
    assert difference(llama, "megatron-hfu") == {"attention": attention, "recompute": layers + square // 3, **rotary}
    assert difference(llama, "causal") == {}
    assert "lookup tables counted as multiplications +6.455 TFLOPs" in in_words(llama, "palm")


def test_formulas_of_bert_to_the_flop(bert):
    # 12 layers of 12 h^2 weights, the transform h^2, the tied table and head V h; 512 positions and 2 kinds of token
    batch, s, h, layers, heads, vocab = 2, 128, 768, 12, 12, 30522
    weights, transform, head, tables = layers * 12 * h * h, h * h, vocab * h, (512 + 2) * h
    # biases and norms: 9 h + 4 h a layer, 2 h of the embedding's norm, 3 h and V of the head
    vectors = layers * 13 * h + 2 * h + 3 * h + vocab
    assert weights + transform + head + tables + vectors == 109_514_298
    tokens, attention = batch * s, batch * layers * 4 * s * s * h
    forward = {
        "palm": 2 * tokens * 109_514_298 + attention,
        "chinchilla": 2 * tokens * (head + weights + transform + head) + attention + 3 * batch * layers * heads * s * s,
        "megatron": 2 * tokens * (weights + transform + head) + attention,
        "megatron-paper": 24 * batch * layers * s * h * h + attention + 2 * tokens * head,
    }

    assert {name: totals(bert, name)["flops"] for name in forward} == {name: 3 * f for name, f in forward.items()}
    assert totals(bert, "megatron-hfu")["flops"] == 4 * (2 * tokens * weights + attention) + 3 * 2 * tokens * head
    # every multiplication is the formula's, and an encoder's square is not halved
    assert difference(bert, "megatron") == {}
    assert difference(bert, "megatron-paper") == {"transform": -6 * tokens * transform}
    assert difference(bert, "palm") == {"embedding": 6 * tokens * tables, "vectors": 6 * tokens * vectors}
    assert "pooler or transform before the head -906.0 MFLOPs" in in_words(bert, "megatron-paper")


def test_formulas_of_t5_to_the_flop(t5):
    # 6 layers in each stack: 4 d^2 of attention and 2 x 4 d^2 of feed-forward, in the decoder 4 d^2 more for
    # cross-attention; a tied table of V d; in each stack 32 distances for 8 heads, and norms of d
    batch, s, d, layers, heads, vocab = 2, 64, 512, 6, 8, 32128
    encoder, decoder, table, distances = layers * 12 * d * d, layers * 16 * d * d, vocab * d, 32 * heads
    norms = {"encoder": (2 * layers + 1) * d, "decoder": (3 * layers + 1) * d}
    assert encoder + decoder + table + 2 * distances + sum(norms.values()) == 60_506_624
    tokens, square = batch * s, batch * layers * 4 * s * s * d  # in each: the encoder's, the decoder's, across
    scores = 3 * batch * layers * heads * s * s
    forward = {
        "palm": 2 * tokens * (60_506_624 + table) + 3 * square,
        "chinchilla": 2 * tokens * (encoder + decoder + 3 * table) + 3 * square + 3 * scores,
        "megatron": 2 * tokens * (encoder + decoder + table) + 2 * square + square // 2,
    }

    assert {name: totals(t5, name)["flops"] for name in forward} == {name: 3 * f for name, f in forward.items()}
    hfu = 4 * (2 * tokens * (encoder + decoder) + 3 * square) + 3 * 2 * tokens * table
    assert totals(t5, "megatron-hfu")["flops"] == hfu
    # unmasked are s (s + 1) / 2 pairs of s^2, in the decoder's own attention only
    masked = 3 * (square - square * (s + 1) // (2 * s))
    assert difference(t5, "megatron") == {"attention": masked - 3 * square // 2}
    assert difference(t5, "palm") == {
        "attention": masked, "embedding": 6 * tokens * (table + 2 * distances),
        "vectors": 6 * tokens * sum(norms.values()),
    }  # fmt: skip


def test_formulas_of_vit_to_the_flop(vit):
    # 14 x 14 patches and the class; 12 layers as BERT's, patches of 3 x 16 x 16, 1000 classes
    batch, patches, s, h, layers, heads = 2, 196, 197, 768, 12, 12
    weights, patch, head, table = layers * 12 * h * h, 3 * 16 * 16 * h, 1000 * h, s * h
    # biases and norms of the layers, a last norm, the class token, the biases of the patches and of the head
    vectors = layers * 13 * h + 2 * h + h + h + 1000
    assert weights + patch + head + table + vectors == 86_567_656
    tokens, attention = batch * s, batch * layers * 4 * s * s * h
    multiplied = 2 * (tokens * weights + batch * patches * patch + batch * head) + attention
    forward = {
        "palm": 2 * tokens * 86_567_656 + attention,
        "chinchilla": multiplied + 3 * batch * layers * heads * s * s,
        "megatron": multiplied,
        "megatron-paper": 24 * batch * layers * s * h * h + attention + 2 * batch * head,
    }

    assert {name: totals(vit, name)["flops"] for name in forward} == {name: 3 * f for name, f in forward.items()}
    assert totals(vit, "megatron-hfu")["flops"] == 4 * (2 * tokens * weights + attention) + 3 * 2 * batch * head
    # nobody asks for the gradient of the pixels
    backward = 2 * batch * patches * patch
    assert difference(vit, "megatron") == {"backward": backward}
    assert difference(vit, "megatron-paper") == {"backward": backward, "patches": -6 * batch * patches * patch}
    assert difference(vit, "palm") == {
        "backward": backward, "embedding": 6 * tokens * table, "vectors": 6 * tokens * vectors,
        "head": 6 * batch * (s - 1) * head, "patches": 6 * batch * patch,
    }  # fmt: skip


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SMALL | {"vocab_size": 100, "max_position_embeddings": 40}
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}
DISTILLED = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 100}
# three layers behind two, narrower heads
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 100, "max_position_embeddings": 40,
}  # fmt: skip
T5 = {
    "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def built(tmp_path):
    """A directory with the configuration of a model."""

    def write(architecture, kind, sizes):
        config = transformers.AutoConfig.for_model(kind, **sizes)
        config.architectures = [architecture]
        config.save_pretrained(tmp_path)
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("architecture", "kind", "sizes", "halves"),
    [
        ("BertModel", "bert", TEXT, 0),
        ("RobertaForSequenceClassification", "roberta", TEXT, 0),
        ("RobertaForMaskedLM", "roberta", TEXT, 0),
        ("DistilBertForMaskedLM", "distilbert", DISTILLED, 0),
        ("DistilBertForSequenceClassification", "distilbert", DISTILLED, 0),
        ("BertForTokenClassification", "bert", TEXT, 0),
        ("ElectraForMaskedLM", "electra", TEXT | {"embedding_size": 16}, 0),
        ("T5EncoderModel", "t5", T5, 0),
        # half of the diagonal is missing in each layer of the decoder: B s H (d_qk + d_v) L
        ("BartForConditionalGeneration", "bart", SEQ2SEQ, 2 * 20 * 2 * 32 * 3),
        ("T5ForConditionalGeneration", "t5", T5 | {"feed_forward_proj": "gated-gelu"}, 2 * 20 * 4 * 32 * 3),
        ("GPT2ForSequenceClassification", "gpt2",
         {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 100, "pad_token_id": 0}, 2 * 20 * 4 * 16 * 2),
        ("DeiTForImageClassification", "deit", IMAGE, 0),
        ("Dinov2WithRegistersForImageClassification", "dinov2_with_registers", IMAGE, 0),
        ("CLIPVisionModelWithProjection", "clip_vision_model", IMAGE, 0),
        ("SiglipVisionModel", "siglip_vision_model", IMAGE | {"vision_use_head": False}, 0),
    ],
)  # fmt: skip
def test_every_multiplication_is_the_formulas(built, architecture, kind, sizes, halves):
    lengths = {} if "image_size" in sizes else {"seq_len": 20}
    run = gpuprof.count(built(architecture, kind, sizes), mode="forward", batch_size=2, **lengths)

    assert difference(run, "megatron") == ({"attention": -halves} if halves else {})


@pytest.mark.parametrize(
    ("architecture", "kind", "sizes", "reason"),
    [
        ("SiglipVisionModel", "siglip_vision_model", IMAGE, "that of the 2 layers, and this model has 1 more"),
        ("SwinForImageClassification", "swin",
         {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
         "a vision model with stages"),
        ("BertForPreTraining", "bert", TEXT, "a head, or more of them"),
        ("DebertaV2ForMaskedLM", "deberta-v2", TEXT, "attention other than scaled dot-product"),
        ("AlbertForMaskedLM", "albert", TEXT, "each of the 2 layers, and 1 attend"),
        ("T5Model", "t5", T5, "this model has none"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(built, architecture, kind, sizes, reason):
    with pytest.raises(GpuprofError, match=reason):
        gpuprof.count(built(architecture, kind, sizes), mode="forward", convention="palm")


@pytest.mark.parametrize("model", ["llama", "gpt2", "llava_run", "bert", "t5", "vit"])
def test_the_parts_sum_up_to_the_difference(model, request):
    run = request.getfixturevalue(model)
    table = beside(run)
    causal = totals(run, "causal")["flops"]

    for row in table.itertuples():
        assert row.flops == totals(run, row.convention)["flops"]
        assert row.difference == row.flops - causal == sum(difference(run, row.convention).values()), row.convention
        assert bool(row.because) == bool(row.difference)
    assert set(table["convention"]) | set(misfits(run)) == set(CONVENTIONS)


def test_formulas_fit_no_model_of_text_and_images(llava_run):
    conventions = {"causal", "full", "flash", "torch-counter", "calflops", "calflops-0.3"}
    assert set(beside(llava_run)["convention"]) == conventions
    with pytest.raises(GpuprofError, match=r"palm does not fit llava-onevision-qwen2-7b: .* text and images"):
        totals(llava_run, "palm")


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        ("bert-base", "torchtitan", "decoder-only language models, and this is an encoder"),
        ("vit-base-16", "mosaic", "decoder-only language models, and this is a vision transformer"),
        ("t5-small", "megatron-paper", "one stack of GPT's layers"),
        ("siglip-so400m-384", "palm", "that of the 27 layers, and this model has 1 more"),
        ("resnet-50", "palm", "a vision model with stages"),
        ("whisper-small", "palm", "a model of sound"),
    ],
)
def test_a_misfit_is_said_before_anything_runs(model, name, reason):
    with pytest.raises(GpuprofError, match=f"{name} does not fit {model}: .*{reason}"):
        gpuprof.count(model, convention=name)


def test_frozen_layers_do_not_fit():
    with pytest.raises(GpuprofError, match="are frozen"):
        gpuprof.count("smollm2-135m", seq_len=16, freeze=("model.layers.0",), convention="torchtitan")


def test_modules_of_a_formula_are_counted(llama):
    assert by_module(llama, "palm").equals(by_module(llama, "full"))
    assert by_module(llama, "megatron").equals(by_module(llama, "causal"))


def test_torch_counter_with_recomputation_of_every_layer_is_megatrons_hfu():
    run = gpuprof.count("smollm2-135m", seq_len=64, attention="eager", checkpointing="reentrant")
    sums = totals(run, "torch-counter")

    assert sums["flops"] == totals(run, "megatron-hfu")["flops"] + rotary_product(run)
    assert sums["flops_recompute"] == 0
    assert difference(run, "torch-counter")["recompute"] == difference(run, "megatron-hfu")["recompute"]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 8, 3, 2, groups=2)
        )
        self.linear = nn.Linear(8, 12)

    def forward(self, x):
        y = self.linear(self.convs(x).flatten(2).transpose(1, 2))
        y = y.view(y.shape[0], -1, 3, 4).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)


def test_torch_counter_is_what_torchs_counter_says():
    model, x = Mixed(), torch.randn(2, 8, 9, 9, requires_grad=True)
    run = gpuprof.count(model, x)
    with FlopCounterMode(display=False) as counter:
        model(x).mean().backward()

    found = totals(run, "torch-counter")["flops"]

    assert found == counter.get_total_flops()
    assert found != totals(run, "full")["flops"]


def test_calflops_takes_a_backward_for_two_forwards():
    run = gpuprof.count(nn.Sequential(nn.Linear(4, 8, bias=False), nn.SiLU()), torch.randn(2, 4))
    sums = totals(run, "calflops")

    assert (sums["macs"], sums["flops_forward"], sums["flops_backward"]) == (64, 144, 288)
    assert sums["flops"] == sum(difference(run, "calflops").values()) + totals(run, "causal")["flops"]
    modules = by_module(run, "calflops").set_index("module")
    assert modules.loc["0", ["macs", "flops_forward", "flops_backward"]].tolist() == [64, 128, 256]
    for tabled in (by_op(run, "calflops"), by_phase(run, "calflops")):
        assert tabled["flops"].sum() == 432


@pytest.mark.parametrize(
    ("name", "changes", "macs", "flops"),
    [
        # what calflops 0.3.2 printed: tests/data/reports/calflops_gpt2.txt and calflops_bert_summary.txt
        ("gpt2", {"n_layer": 2, "use_cache": False}, "6.7524", "13.5073"),
        ("bert-base", {"num_hidden_layers": 2}, "4.89", "9.78"),
    ],
)
def test_calflops_of_today(name, changes, macs, flops):
    preset = load_preset(name)
    config = transformers.AutoConfig.for_model(**(preset["config"] | changes))
    model = getattr(transformers, preset["architecture"])(config).eval()
    ids = torch.zeros(2, 64, dtype=torch.long)
    sums = totals(gpuprof.count(model, kwargs={"input_ids": ids}, mode="forward"), "calflops-0.3")
    digits = len(macs.partition(".")[2])

    assert f"{sums['macs'] / 1e9:.{digits}f}" == macs
    assert f"{sums['flops'] / 1e9:.{digits}f}" == flops


def formula_run():
    """`gpu_run`, told that it is a decoder of one layer: 1000 FLOPs of weights per token and pass."""
    run = gpu_run()
    run.workload["facts"] = {
        "kind": "decoder", "params": 70, "trainable_params": 70, "head_params": 20, "layers": 1, "attention_layers": 1,
        "heads": 1, "head_dim": 4, "v_head_dim": 4, "batch": 2, "seq": 4, "mode": "train", "head": "head",
    }  # fmt: skip
    return run


def test_mfu_and_rate_of_the_step_are_the_formulas():
    run = formula_run()
    counted, palm = totals(run, "full"), totals(run, "palm")

    assert palm["flops"] == 8 * (6 * 70 + 6 * (4 + 4) * 4)
    assert palm["counted_flops"] == counted["flops"] == 24000
    assert palm["mfu"] == pytest.approx(palm["flops"] / 480e-9 / 100e9)
    assert palm["flops_per_s"] == pytest.approx(palm["flops"] / 480e-9)
    assert palm["hfu"] == counted["hfu"]
    assert palm["flops_forward"] == counted["flops_forward"]


def test_the_report_names_the_formula(tmp_path):
    from gpuprof.cli import app

    path = formula_run().save(tmp_path / "run.json")
    shown = CliRunner().invoke(app, ["show", str(path), "--convention", "palm"])

    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    assert "palm: 6 N + 12 L H Q s per token" in text
    assert "4.896 KFLOPs a step by palm, 40.8 % of the counted causal FLOPs" in text
    assert "MFU 10.2 %" in text


def test_the_report_does_not_call_an_assumed_backward_counted():
    run = gpuprof.count(nn.Sequential(nn.Linear(4, 8, bias=False), nn.SiLU()), torch.randn(2, 4))
    text = " ".join(render(run, "tree", View(convention="calflops")).split())

    assert "Forward 144 FLOPs and 64 MACs (causal: 128 FLOPs)" in text
    assert "Backward 288 FLOPs = 2 x forward as calflops assumes, not counted" in text


def test_the_command_line_knows_every_convention():
    assert [option.value for option in options.Convention] == list(CONVENTIONS)


def test_rows_without_a_rule_stay_unknown():
    run = gpu_run()
    run.ops = table("ops", [ops_row("head", "forward", "aten::mm.default", 100, full=300)])

    assert totals(run, "flash")["flops"] == 150
    assert math.isclose(totals(run, "full")["flops"], 300)
