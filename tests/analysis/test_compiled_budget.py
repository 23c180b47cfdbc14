from dataclasses import replace

import pytest
from runs import compiled_run, kernel_row, node_row, ops_row, row

from gpuprof.analysis.budget import budget, budget_by
from gpuprof.analysis.consistency import misbooked, mismatches
from gpuprof.analysis.hints import hints
from gpuprof.analysis.known_flops import matmul_kernels, priced_share
from gpuprof.analysis.roofline import roofline
from gpuprof.schema import table


def test_a_compiled_step_in_parts():
    found = budget(compiled_run())

    seconds = {part: round(found.seconds(part) * 1e9, 6) for part in found.parts["part"]}
    assert {part: time for part, time in seconds.items() if time} == {
        "ideal": 42.0,  # 4200 FLOPs at 100 per ns
        "recompute": 10.0,  # a third of GELU's kernel in the backward
        "matmul": 58.0,  # products of 100 ns
        "memory_bytes": 20.8,  # 144 + 64 bytes at 10 per ns; those of a kernel that is not split are not known
        "memory": 110.2,  # 101 + 20 + 10 ns less those
        "other": 59.0,  # by which the step of 300 ns is longer than the kernels
    }
    assert (found.mfu, found.hfu) == (pytest.approx(0.14), pytest.approx(0.14))
    assert row(found.parts, part="memory")["what"] == "131.0 ns in 3 kernels"


def test_modules_of_a_compiled_step_add_up_to_it():
    table = budget_by(budget(compiled_run()))

    times = {name: round(time * 1e9, 6) for name, time in zip(table["module"], table["time_s"], strict=True)}
    assert times == {"norm": 67.0, "act": 64.0, "fc": 60.0, "head": 40.0, "": 10.0, "(unattributed)": 59.0}


def attending_run():
    """Scores written out by one kernel of compiled code, between two products of its own."""
    run = compiled_run()
    run.tree.loc[run.tree["module"] == "fc", "causality"] = "known"
    shapes = {"shapes": "2x8x8 -> 2x8x8"}
    run.ops = table("ops", [
        ops_row("fc", "forward", "aten::bmm.default", 1000),
        ops_row("fc", "forward", "aten::_softmax.default", 0, kind="vector") | shapes,
    ])  # fmt: skip
    run.nodes = table("nodes", [
        node_row(0, "extern_kernels.bmm:1", "fc", "forward", "aten::bmm.default", 9, 1000, kind="matmul"),
        node_row(0, "cpp_fused_softmax_0:2", "fc", "forward", "aten::exp.default", 8, vector=5) | shapes,
        node_row(0, "cpp_fused_softmax_0:2", "norm", "forward", "aten::mul.Tensor", 8, vector=5),
    ])  # fmt: skip
    run.kernels = table("kernels", [
        kernel_row("fc", "forward", "aten::bmm", 0, 20) | {"compiled": "0/extern_kernels.bmm:1"},
        kernel_row("", "forward", "inductor::fused_softmax", 20, 40, call=1)
        | {"compiled": "0/cpp_fused_softmax_0:2"},
    ])  # fmt: skip
    return run


def test_what_a_fused_kernel_does_to_scores_is_attention():
    found = budget(attending_run())

    works = found.kernels.set_index(["op", "module"])["work"]
    assert works.to_dict() == {
        ("aten::bmm", "fc"): "attention", ("inductor::fused_softmax", "fc"): "attention",
        ("inductor::fused_softmax", "norm"): "memory",
    }  # fmt: skip


def test_no_hint_to_compile_what_is_compiled():
    run = compiled_run()
    run.device["type"] = "cpu"
    run.kernels["start_ns"] += 10 * run.kernels.index.to_numpy()  # gaps

    said = {hint.action for hint in hints(budget(run))}

    assert "more work per operator: a larger batch" in said
    assert not any("torch.compile" in action for action in said)


def test_no_hint_at_launches_where_cuda_graphs_were_left_out_for_the_trace():
    run = compiled_run()
    run.kernels["start_ns"] += 10 * run.kernels.index.to_numpy()
    with_graphs = replace(run, passes=run.passes | {"trace": replace(run.passes["trace"])})
    with_graphs.passes["trace"].facts = {"compiled": True, "without_cuda_graphs": True}

    told = ["waits for launches" in " ".join(h.text for h in hints(budget(one))) for one in (run, with_graphs)]

    assert told == [True, False]


def test_products_of_compiled_code_are_priced_by_their_own_operators():
    run = compiled_run()
    run.kernels["shapes"] = "3x3 3x3"  # of which nothing was counted
    run.kernels.loc[run.kernels["compiled"].str.startswith("1/extern"), "op"] = "triton::anything"

    products = matmul_kernels(run)

    assert len(products) == 6
    assert products["priced"].all()
    run.nodes.loc[run.nodes["op"] == "aten::mm.default", ["flops_causal", "flops_full", "flops_hardware"]] = None
    assert priced_share(run) == pytest.approx(60 / 100)


def test_a_compiled_run_is_consistent():
    assert mismatches(compiled_run()) == []
    assert misbooked(compiled_run()) == []


def test_a_module_is_too_fast_for_what_ran_of_it_and_not_for_what_was_counted():
    """Ten times the products were counted that the compiler left over."""
    run = compiled_run()
    for name in ("flops_causal", "flops_full", "flops_hardware"):
        run.ops.loc[(run.ops["module"] == "fc") & (run.ops["phase"] == "forward"), name] = 10_000
    assert misbooked(run) == []

    run.nodes.loc[run.nodes["op"] == "aten::addmm.default", "flops_hardware"] = 10_000

    assert misbooked(run)[0].startswith("fc in the forward would have run at 500.0 % of the datasheet dense peak")


def test_a_roofline_of_what_ran():
    by_op = roofline(compiled_run(), "op")

    fused = row(by_op, name="inductor::fused_native_layer_norm_gelu")
    assert (fused["flops"], fused["bytes"], fused["kind"]) == (170, 144, "vector")
    assert fused["time_s"] == pytest.approx(101e-9)
    product = row(by_op, name="aten::mm")
    assert product["flops"] == 2800
    module = row(roofline(compiled_run(), "module"), name="act", phase="recompute")
    assert (module["flops"], module["bytes"], module["time_s"]) == (70, 32, pytest.approx(10e-9))
    kernel = row(roofline(compiled_run(), "kernel"), name="triton_poi_fused_gelu_0")
    assert (kernel["flops"], kernel["bytes"], kernel["time_s"]) == (250, 96, pytest.approx(30e-9))


def test_modules_that_were_not_looked_into_are_their_region_s():
    run = compiled_run()
    run.kernels.loc[run.kernels["compiled"] != "", ["module", "compiled"]] = ["", ""]
    run.nodes = table("nodes", [])

    rows = budget_by(budget(run))

    times = {name: round(time * 1e9, 6) for name, time in zip(rows["module"], rows["time_s"], strict=True)}
    assert times == {"": 201.0, "(unattributed)": 59.0, "head": 40.0}
    assert row(rows, module="")["ideal_s"] == pytest.approx(30e-9)
