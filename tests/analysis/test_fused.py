import pandas as pd
import pytest
from runs import compiled_run, gpu_run, kernel_row, row

from gpuprof.analysis.fused import lines
from gpuprof.analysis.op_tables import KERNEL_COLUMNS, by_kernel, by_op, without_rule
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.ran import ran
from gpuprof.analysis.totals import totals
from gpuprof.schema import table

NORM, GELU, SUM = "triton_per_fused_native_layer_norm_gelu_0", "triton_poi_fused_gelu_0", "triton_red_fused_sum_1"


def test_a_fused_kernel_has_its_modules_its_work_and_its_rates():
    frame = by_kernel(compiled_run())

    assert list(frame) == KERNEL_COLUMNS
    fused = row(frame, kernel=NORM)
    assert fused["owners"] == "norm 66.3 %, act 33.7 %"  # 67 and 34 of 101 ns
    assert (fused["flops"], fused["vector_flops"], fused["bytes"]) == (0, 60 + 20 + 90, 64 + 32 + 48)
    assert fused["bytes_per_s"] == pytest.approx(144 / 101e-9)
    assert pd.isna(fused["flops_per_s"])
    assert (fused["kernels"], fused["graph"], fused["kind"]) == (1, 0, "vector")
    assert row(frame, kernel=GELU)["owners"] == "act 66.7 %, act (recompute) 33.3 %"


def test_modules_that_cannot_be_told_apart_are_named():
    fused = row(by_kernel(compiled_run()), kernel=SUM)

    assert fused["owners"] == "(fused: norm, fc)"
    assert pd.isna(fused["bytes"])
    assert pd.isna(fused["bytes_per_s"])
    assert fused["vector_flops"] == 180


def test_a_kernel_that_also_runs_outside_compiled_code_has_no_rate():
    gemm = row(by_kernel(compiled_run()), kernel="gemm")

    assert gemm["owners"] == "fc 60.0 %, head 40.0 %"
    assert pd.isna(gemm["flops"])
    assert pd.isna(gemm["flops_per_s"])


def test_flops_of_a_call_of_two_kernels_are_the_longer_ones():
    run = compiled_run()
    run.kernels = run.kernels[run.kernels["compiled"].str.startswith("0/extern")]
    reduction = kernel_row("fc", "forward", "aten::addmm", 20, 5, kernel="splitKreduce") | {
        "compiled": "0/extern_kernels.addmm:2"
    }
    run.kernels = table("kernels", [*run.kernels.to_dict("records"), reduction])

    frame = by_kernel(run)

    assert row(frame, kernel="gemm")["flops"] == 1000
    assert row(frame, kernel="gemm")["flops_per_s"] == pytest.approx(1000 / 20e-9)
    assert pd.isna(row(frame, kernel="splitKreduce")["flops"])


def test_kernels_of_one_name_in_two_graphs_are_two():
    run = compiled_run()
    run.kernels.loc[run.kernels["kernel"] == GELU, "kernel"] = NORM

    frame = by_kernel(run)

    assert frame.loc[frame["kernel"] == NORM, "graph"].tolist() == [0, 1]


def test_kernels_of_an_eager_run_have_no_columns_of_the_compiler():
    assert list(by_kernel(gpu_run())) == ["kernel", "time_s", "time_share", "kernels", "median_s", "kind", "ops"]


def test_operators_have_what_was_counted_beside_what_the_compiler_made_of_it():
    frame = by_op(compiled_run())

    mm, fused, gelu = (row(frame, op=op) for op in ("aten::mm", "inductor::fused_gelu", "aten::gelu"))
    assert (mm["calls"], mm["flops"], mm["flops_compiled"]) == (4, 2800, 2000)
    assert mm["flops_per_s"] == pytest.approx(2800 / 72e-9)
    assert (fused["kind"], fused["vector_flops_compiled"], fused["kernels"]) == ("vector", 70 + 180, 1)
    assert pd.isna(fused["calls"])
    assert pd.isna(fused["vector_flops"])
    assert (gelu["calls"], gelu["vector_flops"]) == (1, 90)
    assert pd.isna(gelu["time_s"])
    assert "aten::erf" not in set(frame["op"])


def test_a_rate_is_of_what_ran_and_not_of_what_was_counted():
    """An addmm that the compiler made a product of, and an addition in a fused kernel."""
    run = compiled_run()
    rows = run.nodes["op"] == "aten::addmm.default"
    run.nodes.loc[rows, "op"] = "aten::mm.default"
    run.kernels.loc[run.kernels["compiled"].str.startswith("0/extern"), "op"] = "aten::mm"

    frame = by_op(run)

    assert row(frame, op="aten::addmm")["flops_per_s"] == pytest.approx(400 / 8e-9)  # the head's alone
    assert row(frame, op="aten::mm")["flops_per_s"] == pytest.approx(3800 / 92e-9)


def test_what_a_compiler_wrote_needs_no_rule():
    assert without_rule(compiled_run()).empty


def test_a_template_is_a_product_also_where_its_operators_are_not_known():
    run = compiled_run()
    run.nodes = table("nodes", [])
    run.kernels.loc[run.kernels["kernel"] == GELU, ["kernel", "op"]] = [
        "triton_tem_fused_mm_gelu_0",
        "inductor::fused_mm_gelu",
    ]

    frame = by_op(run)

    assert row(frame, op="inductor::fused_mm_gelu")["kind"] == "matmul"
    assert row(frame, op="inductor::fused_sum")["kind"] == "vector"


def test_what_ran_is_the_graphs_and_what_was_counted_outside_them():
    rows = ran(compiled_run())

    flops = rows.groupby(["module", "phase"])["flops_hardware"].sum()
    assert flops.to_dict() == {
        ("norm", "forward"): 0, ("norm", "backward"): 0, ("act", "forward"): 0, ("act", "recompute"): 0,
        ("act", "backward"): 0, ("fc", "forward"): 1000, ("fc", "backward"): 2000, ("head", "forward"): 400,
        ("head", "backward"): 800,
    }  # fmt: skip
    assert rows.loc[rows["op"] == "aten::addmm.default", "calls"].tolist() == [1, 1]


def test_calls_in_and_out_of_compiled_code_are_told_apart_by_their_shapes():
    run = compiled_run()
    counted = [
        {**one, "module": "fc", "shapes": f"{shape} 8x8 -> {shape}", "calls": calls, "flops_hardware": flops}
        for one in run.ops[run.ops["op"] == "aten::addmm.default"].head(1).to_dict("records")
        for shape, calls, flops in (("4x8", 3, 300), ("2x8", 2, 100))
    ]
    run.ops = table("ops", counted)
    outside = kernel_row("fc", "forward", "aten::addmm", 0, 5, call=70) | {"shapes": "4x8 8x8"}
    run.kernels = table("kernels", [outside, {**outside, "call": 71}, {**outside, "call": 71, "kernel": "reduce"}])

    rows = ran(run)

    assert rows.loc[rows["module"] == "fc", ["calls", "flops_hardware"]].head(1).to_numpy().tolist() == [[2, 200]]
    assert len(rows) == 1 + 10


def recomputing_run():
    """The compiled run, had its compiler chosen to run half of the product again, 500 FLOPs in 10 ns."""
    run = compiled_run()
    again = run.nodes.iloc[3].to_dict() | {"graph": 1, "kernel": "extern_kernels.addmm:5", "phase": "recompute"}
    again |= {"flops_causal": 500, "flops_full": 500, "flops_hardware": 500}
    run.nodes = table("nodes", [*run.nodes.to_dict("records"), again])
    launched = kernel_row("fc", "recompute", "aten::addmm", 241, 10, call=20) | {"compiled": "1/extern_kernels.addmm:5"}
    run.kernels = table("kernels", [*run.kernels.to_dict("records"), launched])
    return run


def test_recomputation_of_the_compiler_counts_as_such():
    run = recomputing_run()

    sums = totals(run)
    fc = row(run.modules(), module="fc")

    assert (sums["flops"], sums["flops_recompute"], sums["flops_hardware"]) == (4200, 500, 4700)
    assert sums["mfu"] == pytest.approx(4200 / 100e9 / 300e-9)
    assert sums["hfu"] == pytest.approx(4700 / 100e9 / 300e-9)
    assert (fc["flops_forward"], fc["flops_recompute"], fc["flops_hardware"]) == (1000, 500, 3500)
    assert fc["time_recompute_s"] == pytest.approx(10e-9)
    again = row(by_phase(run), phase="recompute")
    assert (again["flops"], again["flops_hardware"], again["vector_flops"]) == (500, 500, 70)


def test_a_checkpoint_that_the_compiler_did_without_is_no_recomputation():
    run = compiled_run()
    again = {**run.ops.iloc[2].to_dict(), "phase": "recompute"}
    run.ops = table("ops", [*run.ops.to_dict("records"), again])

    assert totals(run)["flops_recompute"] == 0
    assert totals(run)["hfu"] == pytest.approx(totals(run)["mfu"])


def test_a_graph_that_is_called_with_several_sizes_is_said_and_what_keeps_them():
    run = compiled_run()
    assert "other sizes" not in " ".join(lines(run))
    run.nodes.loc[run.nodes["graph"] == 1, ["flops_hardware", "bytes", "moved"]] = pd.NA
    said = "What 1 graph did is not known, called with other sizes than compiled for"

    assert f"{said}." in lines(run)
    run.workload["cache"] = "dynamic"
    run.ops["phase"] = run.ops["phase"].replace("forward", "decode")
    assert f"{said}: a cache that grows, where --cache static keeps its size." in lines(run)
