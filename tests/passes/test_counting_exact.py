"""Module totals of convolutions, recurrent layers and mixtures of experts; counting without weights."""

import json
import runpy
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from releases import without_rotary
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import gpuprof
from gpuprof.passes import counting
from gpuprof.profiler import run_passes
from gpuprof.workload import Options, build, from_module, load_preset, preset_names


def flops(model, given, column="flops_full", **kwargs):
    """{(module, phase): matmul FLOPs} of each module by itself."""
    torch.manual_seed(0)
    run = gpuprof.profile(model, given, passes=["count"], **kwargs)
    assert run.passes["count"].facts["ops_without_rule"] == []
    rows = run.ops[run.ops["flops_full"].fillna(0) > 0]
    return {key: int(total) for key, total in rows.groupby(["module", "phase"])[column].sum().items()}


def test_convolutions():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),  # 8 x 8
        nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2),  # 4 x 4
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),  # 8 x 8
        nn.Conv2d(4, 4, 5, groups=4),  # depthwise, 4 x 4
    )
    batch = 2
    forward = [
        2 * batch * (8 * 8) * 8 * 4 * 9,
        2 * batch * (4 * 4) * 6 * (8 // 2) * 9,
        2 * batch * (4 * 4) * 6 * (4 // 2) * 4,  # each input element meets the whole kernel
        2 * batch * (4 * 4) * 4 * 1 * 25,
    ]
    found = flops(model, torch.randn(batch, 4, 8, 8))
    for index, count in enumerate(forward):
        assert found[str(index), "forward"] == count
        assert found[str(index), "backward"] == (2 if index else 1) * count  # the image needs no gradient


def test_a_frozen_convolution_has_no_weight_gradient():
    model = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, groups=2).requires_grad_(False))
    found = flops(model, torch.randn(2, 4, 10))
    assert found["0", "backward"] == found["0", "forward"] == 2 * 2 * 8 * 4 * 4 * 3
    assert found["1", "backward"] == found["1", "forward"] == 2 * 2 * 6 * 4 * 2 * 3


BATCH, TIME, INPUT, STATE = 2, 5, 8, 6


def gates(number, width):
    return 2 * TIME * BATCH * number * STATE * (width + STATE)


def test_lstm():
    found = flops(nn.Sequential(nn.LSTM(INPUT, STATE)), torch.randn(TIME, BATCH, INPUT), mode="forward")
    assert found == {("0", "forward"): gates(4, INPUT)}
    model = nn.LSTM(INPUT, STATE, num_layers=2, bidirectional=True, batch_first=True)
    found = flops(model, torch.randn(BATCH, TIME, INPUT).requires_grad_())
    forward = 2 * gates(4, INPUT) + 2 * gates(4, 2 * STATE)
    assert found == {("", "forward"): forward, ("", "backward"): 2 * forward}


def test_gru():
    found = flops(nn.GRU(INPUT, STATE), torch.randn(TIME, BATCH, INPUT))
    step = 2 * BATCH * 3 * STATE * STATE  # of the hidden state, in one of TIME steps
    into = 2 * TIME * BATCH * 3 * STATE * INPUT
    assert found["", "forward"] == into + TIME * step
    # weights of both; the gradient of the state, but for the first, which is a constant
    assert found["", "backward"] == into + TIME * step + (TIME - 1) * step


EXPERTS, CHOSEN, WIDTH, HIDDEN = 4, 2, 16, 24


@pytest.mark.parametrize("how", [None, "eager", "batched_mm"])
def test_only_chosen_experts_count(how):
    config = AutoConfig.for_model(
        "mixtral", vocab_size=40, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, **({} if how is None else {"experts_implementation": how})).train()
    ids = torch.randint(0, 40, (2, 6))
    found = flops(model, {"input_ids": ids, "labels": ids})
    tokens = 12
    all_of_them = tokens * EXPERTS * 3 * 2 * WIDTH * HIDDEN
    routed = all_of_them * CHOSEN // EXPERTS
    experts, gate = "model.layers.0.mlp.experts", "model.layers.0.mlp.gate"
    assert found[experts, "forward"] == routed
    assert found[experts, "backward"] == 2 * routed
    assert found[gate, "forward"] == 2 * tokens * WIDTH * EXPERTS
    assert found[gate, "backward"] == 2 * found[gate, "forward"]


# -- without weights

SMALLER = runpy.run_path(str(Path(__file__).parents[1] / "workload" / "conftest.py"))["SMALLER"]
GENERATORS = ["smollm2-135m", "qwen2-7b", "llama-3.1-8b", "mixtral-8x7b", "gpt2", "t5-small", "whisper-small"]
CASES = [(name, mode) for name in preset_names() for mode in ("train", "forward")]
CASES += [(name, "generate") for name in GENERATORS]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_without_weights_each_module_counts_the_same(tmp_path, name, mode):
    preset = load_preset(name)
    config = dict(preset["config"])
    for key, value in SMALLER[name].items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    # with dropout a CPU really runs attention as plain products, where without weights it counts as the fused operator
    config |= {key: 0.0 for key in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop") if key in config}
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [preset["architecture"]]}))
    # as long as a text has to be, where that can be chosen
    text = {"seq_len": 32} if "seq_len" in preset.get("defaults", {}) else {}
    lengths = {"prompt_len": 6, "new_tokens": 4} if mode == "generate" else text
    options = Options(mode=mode, batch_size=2, device="cpu", dtype="float32", **lengths)
    counts = []
    for weightless in (False, True):
        run = run_passes(build(str(tmp_path), options, weightless=weightless), passes=["count"])
        table = run.modules().set_index("module")
        columns = ["class", "calls", "params", "trainable_params"]
        columns += [name for name in table if name.startswith(("flops_forward", "flops_back", "flops_hard"))]
        counts.append(table[columns].dropna(axis=0))
        assert (run.tree["causality"] != "unknown").all()
    really, weightless = counts
    assert really.loc["", "flops_forward"] > 0
    different = (really != weightless).any(axis=1)
    assert not different.any(), (really[different].to_dict("index"), weightless[different].to_dict("index"))


def by_phase(checkpointing):
    run = without_rotary(gpuprof.count("smollm2-135m", seq_len=16, checkpointing=checkpointing))
    return run.ops.groupby("phase")["flops_full"].sum()


@pytest.fixture(scope="module")
def plain():
    return by_phase("none")


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_checkpoints_without_weights_recompute_what_a_real_step_does(plain, kind):
    again = by_phase(kind)

    assert (again["forward"], again["backward"]) == (plain["forward"], plain["backward"])
    down_proj = 2 * 16 * 1536 * 576  # a recomputation that may stop early does not come to the last product
    layers = plain["forward"] - 2 * 16 * 49152 * 576
    assert again["recompute"] == layers - (30 * down_proj if kind == "non-reentrant" else 0)


def test_a_call_that_returns_another_size_is_another_row():
    """What is looked for in six numbers is there once, then five times: 48 bytes are read, and 8 written for each."""
    some, most = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    some[0], most[0] = 1, 0
    counted = counting.count(from_module(nn.Linear(1, 1), step=lambda: [torch.nonzero(x) for x in (some, most, some)]))

    rows = counted.ops.set_index("shapes")[["op", "calls", "bytes"]].to_dict("index")
    assert rows == {
        "6 -> 1x1": {"op": "aten::nonzero.default", "calls": 2, "bytes": 2 * (48 + 8)},
        "6 -> 5x1": {"op": "aten::nonzero.default", "calls": 1, "bytes": 48 + 5 * 8},
    }


def test_numbers_that_are_read_are_one_call_whatever_they_are():
    values = torch.arange(5.0)
    counted = counting.count(from_module(nn.Linear(1, 1), step=lambda: [value.item() for value in values]))

    assert counted.result == [0, 1, 2, 3, 4]
    rows = counted.ops[counted.ops["op"] == "aten::_local_scalar_dense.default"]
    assert rows[["shapes", "calls"]].to_numpy().tolist() == [["scalar -> ", 5]]


def test_a_call_may_return_a_tensor_or_none():
    library = torch.library.Library("gpuprof_tests", "FRAGMENT")
    library.define("odd(Tensor x) -> Tensor?")
    answers = iter([torch.ones(2), None, torch.ones(2), torch.ones(3), None])
    library.impl("odd", lambda _: next(answers), "CompositeExplicitAutograd")

    def step():
        return [torch.ops.gpuprof_tests.odd(torch.ones(4)) for _ in range(5)]

    counted = counting.count(from_module(nn.Linear(1, 1), step=step))

    assert [None if out is None else len(out) for out in counted.result] == [2, None, 2, 3, None]
    rows = counted.ops[counted.ops["op"] == "gpuprof_tests::odd.default"]
    assert dict(zip(rows["shapes"], rows["calls"], strict=True)) == {"4 -> 2": 2, "4 -> ": 2, "4 -> 3": 1}


def test_a_call_that_fails_is_no_work_but_has_its_number():
    numbers = []
    one, other = torch.ones(2, 3), torch.ones(3, 4)

    @contextmanager
    def mark(number):
        numbers.append(number)
        yield

    def step():
        with suppress(RuntimeError):
            torch.mm(one, one)
        torch.mm(one, other)

    counted = counting.count(from_module(nn.Linear(1, 1), step=step), mark=mark)

    assert numbers == [0, 1]
    assert counted.row_of == [None, 0]
    assert counted.ops[["shapes", "calls", "flops_full"]].to_numpy().tolist() == [["2x3 3x4 -> 2x4", 1, 2 * 2 * 3 * 4]]
