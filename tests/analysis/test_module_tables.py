import numpy as np
import pandas as pd
import pytest
from runs import counted_run, gpu_run, kernel_row, row

from gpuprof.analysis import kernel_time, modules, op_tables, phase_table, totals
from gpuprof.schema import table


def test_counts_roll_up_and_add_up():
    frame = gpu_run().modules()

    assert row(frame, module="layers.1")["flops_forward"] == 1000
    assert row(frame, module="layers")["flops_forward"] == 2000
    root, rest = row(frame, module=""), row(frame, module="(unattributed)")
    assert (root["flops_forward"], root["flops_backward"], root["macs"]) == (4000, 8000, 2000)
    assert root["flops_forward_full"] == 8000
    assert (rest["flops_forward"], rest["flops_backward"]) == (0, 0)


def test_times_rates_and_mfu():
    frame = gpu_run().modules()

    head = row(frame, module="head")
    assert head["time_forward_s"] == pytest.approx(40e-9)
    assert head["time_backward_s"] == pytest.approx(160e-9)
    assert head["flops_per_s_forward"] == pytest.approx(50e9)
    assert (head["kernel_mfu_forward"], head["kernel_mfu_backward"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert head["kernel_mfu"] == pytest.approx(60 / 200)
    assert row(frame, module="")["kernel_mfu"] == pytest.approx(0.3)
    assert row(frame, module="(unattributed)")["time_forward_s"] == 0.0


def test_another_convention_changes_counts_and_mfu_only():
    full = row(gpu_run().modules("full"), module="head")

    assert (full["flops_forward"], full["kernel_mfu_forward"]) == (4000, pytest.approx(1.0))
    assert full["time_forward_s"] == pytest.approx(40e-9)


def test_what_no_pass_measured_is_missing_not_zero():
    run = gpu_run()
    run.passes["trace"].status = "failed"

    head = row(run.modules(), module="head")

    assert head["flops_forward"] == 2000
    for column in ("time_forward_s", "flops_per_s_forward", "kernel_mfu_forward", "kernel_mfu"):
        assert pd.isna(head[column])


def test_no_peak_no_mfu_but_a_rate():
    run = gpu_run()
    run.device["peaks"] = {}

    head = row(run.modules(), module="head")

    assert pd.isna(head["kernel_mfu"])
    assert head["flops_per_s_forward"] == pytest.approx(50e9)


def test_a_dtype_without_a_peak_leaves_no_mfu():
    run = gpu_run()
    run.ops.loc[run.ops["module"] == "head", "dtype"] = "float64"

    frame = run.modules()

    assert pd.isna(row(frame, module="head")["kernel_mfu"])
    assert pd.isna(row(frame, module="")["kernel_mfu"])
    assert row(frame, module="layers")["kernel_mfu"] == pytest.approx(0.3)


def test_overlapping_streams_are_not_added_twice():
    kernels = table(
        "kernels",
        [
            kernel_row("a", "forward", "x", 0, 100, stream="1"),
            kernel_row("a", "forward", "x", 50, 100, stream="2"),  # half of it beside the first
            kernel_row("b", "forward", "x", 120, 10, stream="1"),  # all of it beside the second
        ],
    )

    times = kernel_time.kernel_times(kernels, ["", "a", "b"])

    assert times["a"]["forward"] == pytest.approx(150e-9)
    assert times["b"]["forward"] == pytest.approx(10e-9)
    assert times[""]["forward"] == pytest.approx(150e-9)


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(5, 9)], 4), ([(0, 4), (4, 6)], 6), ([(0, 10), (2, 3), (20, 21)], 11), ([(8, 9), (0, 1)], 2)],
)
def test_union(intervals, length):
    start, end = (np.array([pair[side] for pair in intervals], dtype="int64") for side in (0, 1))

    assert kernel_time.union_ns(start, end) == length


def test_by_class_counts_a_module_inside_its_own_class_once():
    run = gpu_run()
    run.tree.loc[run.tree["module"] == "layers", "class"] = "Block"

    block = row(modules.by_class(run), **{"class": "Block"})

    assert (block["modules"], block["flops_forward"]) == (3, 2000)
    assert block["kernel_mfu"] == pytest.approx(0.3)


def test_by_op_sets_torchs_estimate_beside_the_count():
    frame = op_tables.by_op(gpu_run())

    mm = row(frame, op="aten::mm")
    assert (mm["flops"], mm["flops_profiler"], mm["kernels"]) == (4000, 4000, 3)
    assert mm["kernel_mfu"] == pytest.approx(0.5)
    bmm = row(frame, op="aten::bmm")
    assert bmm["flops"] == 8000
    assert pd.isna(bmm["flops_profiler"])


def test_an_operator_without_a_rule_is_named_with_its_share_of_time():
    run = gpu_run()

    missing = op_tables.without_rule(run)

    assert missing["op"].tolist() == ["mylib::step"]
    assert missing["time_share"].tolist() == pytest.approx([40 / (80 + 320 + 40)])
    assert pd.isna(row(op_tables.by_op(run), op="mylib::step")["flops"])


def test_by_kernel():
    frame = op_tables.by_kernel(gpu_run())

    assert frame["kernel"].tolist() == ["gemm", "step"]
    assert row(frame, kernel="gemm")["ops"] == "aten::bmm aten::mm"
    assert row(frame, kernel="gemm")["time_share"] == pytest.approx(400 / 440)


def test_by_phase():
    frame = phase_table.by_phase(gpu_run())

    assert frame["phase"].tolist() == ["forward", "backward", "optimizer"]
    forward = row(frame, phase="forward")
    assert forward["time_s"] == pytest.approx(80e-9)
    assert (forward["flops_per_s"], forward["mfu"]) == (pytest.approx(50e9), pytest.approx(0.5))
    assert forward["kernel_time_s"] == pytest.approx(80e-9)
    assert forward["kernel_flops_per_s"] == pytest.approx(50e9)
    assert forward["kernel_mfu"] == pytest.approx(0.5)


def test_totals():
    sums = totals.totals(gpu_run())

    assert (sums["flops_forward"], sums["flops_backward"], sums["backward_ratio"]) == (4000, 8000, 2.0)
    assert sums["step_s"] == pytest.approx(480e-9)
    assert sums["step_iqr_s"] == pytest.approx(48e-9)
    assert sums["flops_per_s"] == pytest.approx(12000 / 480e-9)
    assert sums["mfu"] == pytest.approx(120 / 480)
    assert sums["denominator"] == "datasheet"
    assert sums["tokens_per_s"] == pytest.approx(8 / 480e-9)
    assert sums["kernel_s"] == pytest.approx(440e-9)
    assert sums["owned_share"] == 1.0
    assert sums["peak_bytes"] == 1200


def test_hardware_flops_make_the_hfu():
    run = gpu_run()
    run.ops["flops_hardware"] = run.ops["flops_hardware"] * 2

    sums = totals.totals(run)

    assert sums["mfu"] == pytest.approx(0.25)
    assert sums["hfu"] == pytest.approx(0.5)


def test_work_on_a_module_that_is_not_in_the_tree_is_a_bug_not_a_lost_row():
    run = gpu_run()
    run.ops.loc[0, "module"] = "nowhere"

    with pytest.raises(AssertionError, match="nowhere"):
        run.modules()


def test_executed_flops_roll_up_by_phase_and_are_missing_without_counters():
    frame = counted_run().modules()

    assert row(frame, module="head")["flops_executed_forward"] == 3000
    assert row(frame, module="")["flops_executed_forward"] == 1000 + 1000 + 3000
    assert row(frame, module="")["flops_executed_backward"] == 8000
    assert row(frame, module="")["flops_executed_recompute"] == 0
    assert row(modules.by_class(counted_run()), **{"class": "Block"})["flops_executed_forward"] == 2000
    assert gpu_run().modules()["flops_executed_forward"].isna().all()


def test_of_a_class_executed_flops_are_known_only_where_all_of_it_is():
    run = counted_run()
    run.counters.loc[0, ["tensor_bfloat16", "tensor_instructions"]] = [0, 7]

    frame = modules.by_class(run)
    assert frame.loc[frame["class"] == "Block", "flops_executed_forward"].isna().all()
    assert row(frame, **{"class": "Linear"})["flops_executed_forward"] == 3000
