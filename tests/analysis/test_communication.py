"""Communication by hand: on a device of 100 FLOP/ns, in nanoseconds."""

import numpy as np
import pytest
from runs import gpu_run, kernel_row, row, tree_row
from test_budget import op, parts_ns, run_of

import gpuprof
from gpuprof.analysis.budget import budget
from gpuprof.analysis.communication import COLLECTIVE_COLUMNS, Account, account, collectives
from gpuprof.analysis.hints import hints
from gpuprof.analysis.op_tables import by_kernel, by_op, without_rule
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.roofline import by_bound, roofline
from gpuprof.render import render
from gpuprof.render.page import render_page
from gpuprof.render.roofline import render_roofline
from gpuprof.render.view import View
from gpuprof.schema import table

NS = 1e-9
REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def step():
    """Products in 0-100 and 120-150; all-reduce in 50-180, whose copy runs in 180-190; a gather nobody owns in 185-210.

    Nothing runs in 210-230, then a kernel whose name is that of a collective does, until 240.
    """
    messages = op("", "backward", "c10d::allreduce_.default", 0, kind="communication", nbytes=4096)
    kernels = [
        kernel_row("fc", "backward", "aten::mm", 0, 100),
        kernel_row("", "backward", "c10d::allreduce_", 50, 130, kernel=REDUCE, stream="9", call=1),
        kernel_row("fc", "backward", "aten::mm", 120, 30, call=2),
        kernel_row("", "backward", "c10d::allreduce_", 180, 10, kernel="Memcpy DtoD (Device -> Device)", call=1),
        kernel_row("", "optimizer", "", 185, 25, kernel="void x::cross_device_reduce_2stage<float>(int)", call=None),
        kernel_row("", "backward", "mylib::step", 230, 10, kernel="mylib::all_gather_kernel<int>(int*)", call=3),
    ]
    products = op("fc", "backward", "aten::mm.default", 9000, calls=2)
    return run_of([products, messages], kernels, tree=[tree_row("", "Net"), tree_row("fc", "Linear")])


def test_computation_exposed_communication_and_idle_time_are_the_step():
    found = account(step())

    assert found == Account(compute_ns=140, communication_ns=160, exposed_ns=80, idle_ns=20, step_ns=240)
    assert found.compute_ns + found.exposed_ns + found.idle_ns == found.step_ns


def test_the_account_of_any_step_is_what_every_instant_says():
    random = np.random.default_rng(5)
    for _ in range(40):
        begin, long = random.integers(3, 60, 12), random.integers(0, 15, 12)
        talks = random.random(12) < 0.4
        rows = [
            kernel_row("", "forward", "c10d::send" if talk else "aten::mm", int(at), int(took), stream=str(at % 3))
            for at, took, talk in zip(begin, long, talks, strict=True)
        ]
        sums = dict.fromkeys(Account._fields, 0)
        for instant in range(int(begin.min()), int((begin + long).max())):
            here = talks[(begin <= instant) & (instant < begin + long)]
            sums["step_ns"] += 1
            sums["communication_ns"] += bool(here.any())
            sums["compute_ns" if (~here).any() else "exposed_ns" if len(here) else "idle_ns"] += 1

        assert account(run_of([], rows)) == Account(**sums)


def test_without_kernels_there_is_no_account():
    with pytest.raises(gpuprof.GpuprofError, match="no kernels: profile with the trace pass"):
        account(run_of([], []))


def test_collectives_by_name():
    found = collectives(step())

    assert list(found.columns) == COLLECTIVE_COLUMNS
    reduce = row(found, name="c10d::allreduce")
    assert (reduce["kind"], reduce["calls"], reduce["bytes"]) == ("communication", 1, 4096)
    # 50-190, of which 100-120 and 150-190 are in the open
    assert (reduce["time_s"], reduce["exposed_s"]) == (pytest.approx(140 * NS), pytest.approx(60 * NS))
    alone = row(found, name="x::cross_device_reduce_2stage")
    assert (alone["calls"], alone["time_s"], alone["exposed_s"]) == (1, pytest.approx(25 * NS), pytest.approx(20 * NS))
    assert found["exposed_s"].sum() == pytest.approx(80 * NS)
    maybe = row(found, name="mylib::all_gather_kernel")
    assert (maybe["kind"], maybe["time_s"]) == ("perhaps communication", pytest.approx(10 * NS))
    assert found["bytes"].isna().tolist() == [False, True, True]
    assert found["exposed_s"].isna().tolist() == [False, False, True]


def test_tables_have_communication_as_a_kind():
    run = step()
    assert row(by_op(run), op="c10d::allreduce")["kind"] == "communication"
    kinds = by_kernel(run).set_index("kernel")["kind"]
    assert kinds[REDUCE] == kinds["Memcpy DtoD (Device -> Device)"] == "communication"
    assert kinds["gemm"] == "matmul"
    phases = by_phase(run).set_index("phase")["communication_time_s"]
    assert (phases["backward"], phases["optimizer"]) == (pytest.approx(140 * NS), pytest.approx(25 * NS))
    assert "communication_time_s" not in by_phase(gpu_run())
    assert without_rule(run)["op"].tolist() == ["mylib::step"]


def test_a_run_that_was_counted_before_there_was_a_rule_knows_the_kind_by_the_name():
    run = step()
    run.ops = run.ops[run.ops["op"] == "aten::mm.default"]
    assert row(by_op(run), op="c10d::allreduce")["kind"] == "communication"
    assert collectives(run)["bytes"].isna().all()


def test_the_budget_takes_all_that_an_operator_of_communication_launches():
    found = budget(step())

    assert parts_ns(found) == {"ideal": 90, "matmul": 40, "communication": 80, "idle_launch": 20, "other": 10}
    assert found.parts.set_index("part")["what"]["communication"] == "of 160.0 ns in all"
    assert "Perhaps communication by name, but not counted as that: mylib::all_gather_kernel, 10.00 ns in all." in (
        found.notes
    )
    told = [hint.text for hint in hints(found) if "communication" in hint.text]
    assert told == [
        "3 communication kernels are not hidden by computation for 80.00 ns, 33.3 % of the step, of 160.0 ns that "
        "they run"
    ]


@pytest.mark.parametrize("by", ["op", "kernel", "class"])
def test_no_roof_of_memory_holds_for_communication(by):
    run = step()
    run.device["memory_bandwidth"] = 1e9
    rows = roofline(run, by)
    talks = rows[rows["kind"] == "communication"]
    assert by_bound(rows)["communication"] == pytest.approx((130 + 10 + 25) / 305)
    assert set(talks["bound"]) == {"communication"}
    assert talks[["of_roof", "intensity", "roof_flops_per_s"]].isna().all(axis=None)
    assert "communication takes 54.1 %" in render_roofline(run)


def test_the_report_and_the_page_tell_of_communication():
    run = step()
    assert "160.0 ns in the traced step; no computation hides 80.00 ns, 33.3 % of the step" in " ".join(
        render(run, "tree", View(width=160)).split()
    )
    assert '<h2 id="communication">' in render_page(run)
    text = render(run, "table", View("communication"))
    assert text.split("\n")[1].split() == [
        "c10d::allreduce",
        "communication",
        "1",
        "4.000",
        "KiB",
        "140.0",
        "ns",
        "60.00",
        "ns",
    ]


def test_views_of_a_run_without_kernels_are_empty():
    run = run_of([], [])
    run.kernels = table("kernels", [])
    assert collectives(run).empty
