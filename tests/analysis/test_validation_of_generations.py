"""A report of a generation: what of its figures is prefill and what decode, and one that is of the prefill alone."""

import csv
import io
import json

import pytest
import torch
from test_validation import LLAVA, only, report_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import gpuprof
from gpuprof.analysis.validation import validate
from gpuprof.render.validation import render_validation

CONFIG = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "attn_implementation": "eager",
}  # fmt: skip


@pytest.fixture(scope="module")
def llava(llava_run):
    return validate(LLAVA, llava_run)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two sequences of 32 positions and 5 new tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    LlamaConfig(**CONFIG, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    return gpuprof.count(str(folder), mode="generate", batch_size=2, prompt_len=32, new_tokens=5, attention="eager")


def of_forward(**options):
    """What torch's own counter makes of one real forward of the prompt, as the report that it would print."""
    with FlopCounterMode(display=False, depth=9) as counter, torch.no_grad():
        LlamaForCausalLM(LlamaConfig(**CONFIG))(input_ids=torch.zeros(2, 32, dtype=torch.long), **options)
    counts = {name.partition(".")[2]: of_ops for name, of_ops in counter.get_flop_counts().items()}
    return report_of(
        "torch-counter", [(path, "", "flops", sum(of_ops.values()), 0.5) for path, of_ops in counts.items()]
    )


def test_the_reference_figures_are_of_a_prefill_and_six_steps_of_decoding(llava):
    # q and o, k and v, gate, up and down of 28 layers, and the head: at one position each
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    weights = 28 * layer + 3584 * 152128
    scores = 28 * 2 * 28 * 128 * sum(range(7406, 7412))  # both products of 28 heads, with all positions so far
    decode = 2 * (6 * weights + scores)

    assert llava.phases == {
        "prefill": {"causal": 118_414_984_134_656 - decode, "full": 129_418_906_075_136 - decode},
        "decode": {"causal": decode, "full": decode},
    }
    total = only(llava, "(total)", "flops_forward")
    assert (total["prefill"], total["decode"], total["encode"]) == (118_414_984_134_656 - decode, decode, None)
    assert only(llava, "(total)", "macs_forward")["decode"] == decode // 2
    vision = only(llava, "vision_tower", "flops")
    assert (vision["prefill"], vision["decode"]) == (vision["causal"], 0)
    assert only(llava, "language_model.lm_head", "macs")["decode"] == 6 * 3584 * 152128
    assert only(llava, "language_model.lm_head", "params")["decode"] is None
    assert llava.sentences.endswith(
        "Of the counted 118.3 TFLOPs (99.9 %) are of the prefill, 102.7 GFLOPs (0.1 %) are of the decode: a rate or an "
        "MFU over all of them says nothing of the decode, however long it takes."
    )


def test_every_format_has_the_phases(llava):
    rows = list(csv.DictReader(io.StringIO(render_validation(llava, "csv"))))
    head = next(row for row in rows if row["module"].endswith("lm_head") and row["quantity"] == "macs")
    assert (head["encode"], head["prefill"], head["decode"]) == ("", str(3584 * 152128), str(6 * 3584 * 152128))
    found = json.loads(render_validation(llava, "json"))
    assert found["phases"] == llava.phases
    assert {figure["decode"] for figure in found["figures"] if figure["module"] == "vision_tower"} >= {0, None}
    for name in ("tree", "table"):
        heads = next(line for line in render_validation(llava, name).splitlines() if line.startswith("line "))
        assert {"counted", "prefill", "decode", "error"} <= set(heads.split())
    assert "| full | prefill | decode | error |" in render_validation(llava, "markdown")
    assert "<th>decode</th>" in render_validation(llava, "html")


def test_a_report_of_the_prefill_alone(tiny):
    found = validate(of_forward(logits_to_keep=1), tiny)

    judged = found.lines.set_index("module")[["verdict", "cause"]]
    assert set(judged["verdict"]) <= {"right", "explained"}
    for module in ("", "model.layers.0", "model.layers.0.self_attn", "model.layers.1.mlp.up_proj", "lm_head"):
        assert judged.loc[module, "cause"].startswith("the prefill alone"), module
    # 64 + 8 positions of two layers, 2 + 8 of the head, scores of 32 x 32 and of 33 to 36
    full = 2 * (72 * 2 * 36864 + 10 * 64 * 256) + 2 * 2 * 4 * 64 * (32 * 32 + sum(range(33, 37)))
    assert full == 12_134_400
    assert "are counted (full square: 12.13 MFLOPs): the prefill alone" in found.sentences


def test_a_report_of_a_forward_with_all_logits(tiny):
    line = only(validate(of_forward(), tiny), "lm_head", "flops")

    assert line["claimed"] == 2 * 2 * 32 * 64 * 256
    assert (line["verdict"], line["cause"]) == (
        "explained",
        "the prefill alone, output layer at every position (+2.032 MFLOPs)",
    )


def test_a_figure_of_neither_stays_unexplained(tiny):
    prefill = 2 * 2 * 32 * 64 * 128
    lines = validate(
        report_of("torch-counter", [("model.layers.0.mlp.up_proj", "Linear", "flops", prefill + 1000, 0.5)]), tiny
    ).lines

    assert (lines.iloc[0]["verdict"], lines.iloc[0]["cause"]) == ("unexplained", "")


def test_a_forward_has_no_phases():
    run = gpuprof.count(torch.nn.Linear(4, 4), {"input": torch.randn(2, 4)}, mode="forward")
    found = validate(report_of("thop", [("", "Linear", "macs", 32, 0.5)]), run)

    assert (found.phases, found.lines.iloc[0]["verdict"]) == ({}, "right")
    assert found.lines[["encode", "prefill", "decode"]].isna().all(axis=None)
    assert "decode" not in render_validation(found, "table")
