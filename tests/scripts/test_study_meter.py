"""The count by hand of the meter's table against the meter in a loop, and against figures worked out on paper."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import study_meter

    return study_meter


TINY = LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "lora", "padded", "accumulated", "checkpointed"])
def test_the_meter_reads_what_is_counted_by_hand(study, name):
    if name == "lora":
        pytest.importorskip("peft")

    assert study.by_meter(TINY, study.CASES[name], 32) == study.by_hand(TINY, study.CASES[name], 32)


def test_a_plain_step_is_this_number(study):
    # 32 tokens: q and o 64 x 64, k and v 64 x 32, three of 64 x 112; 528 pairs of 4 heads of 16; the head to 96
    layer = 2 * 32 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 112) + 4 * 4 * 16 * 528
    step = 3 * (3 * layer + 2 * 32 * 64 * 96)

    assert step == 21_860_352
    assert study.by_hand(TINY, study.CASES["plain"], 32) == step
    assert study.by_hand(TINY, study.CASES["accumulated"], 32) == 4 * step


def test_torchtitan_s_formula_is_this_number(study):
    # without biases: the layers' weights and norms, the last norm, and the table that is the head too
    parameters = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 112 + 2 * 64) + 64 + 96 * 64
    flops = (6 * parameters + 6 * 3 * 4 * 2 * 16 * 32) * 32

    assert study.by_torchtitan(TINY, study.CASES["plain"], 32) == flops


def test_one_way_leaves_the_next_the_model_it_had(study):
    pytest.importorskip("lightning")
    case = study.CASES["plain"]
    study.by_lightning(TINY, case, 32)  # which has attention written out

    assert study.model_of(TINY, case).config._attn_implementation == "sdpa"


def test_a_cell_says_how_far_it_is(study):
    assert study._against(1_000_000_000, 1_000_000_000) == "1.0 (exact)"
    assert study._against(740_000_000, 1_000_000_000) == "0.7 (-26.0%)"


def test_the_table_stands_with_its_facts(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study, "LlamaConfig", lambda **_: TINY)
    monkeypatch.setattr(study, "WAYS", {"Meter": study.by_meter, "torchtitan's formula": study.by_torchtitan})

    assert study.main(["--seq-len", "32", "--cases", "plain", "--results", str(tmp_path)]) == 0

    (folder,) = tmp_path.iterdir()
    (case,) = json.loads((folder / "results.json").read_text())["cases"]
    assert (case["by_hand"], case["flops"]["Meter"]) == (21_860_352, 21_860_352)
    page = (folder / "table.md").read_text()
    assert "| plain: everything trained | 0.022 | 0.0 (exact) | 0.0 (+5.6%) |" in page
    assert "- command: .venv/bin/python scripts/study_meter.py --seq-len 32" in page
    assert capsys.readouterr().out == page


def test_a_meter_that_is_wrong_is_a_finding(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "LlamaConfig", lambda **_: TINY)
    monkeypatch.setattr(study, "WAYS", {"Meter": lambda *_: 1})

    assert study.main(["--seq-len", "32", "--cases", "plain", "--results", str(tmp_path)]) == 1
