"""Whether the passes saw one step, and what is withheld in every view where they did not."""

import json

import pandas as pd
import pytest
from runs import gpu_run, kernel_row, ops_row

from gpuprof.analysis.backward import backward_ratios, whole
from gpuprof.analysis.budget import budget, budget_by
from gpuprof.analysis.check import check
from gpuprof.analysis.comparison import launches
from gpuprof.analysis.consistency import (
    inconsistencies,
    misbooked,
    mismatches,
    unchecked,
    withheld,
    withheld_of_kernels,
    withheld_of_owners,
)
from gpuprof.analysis.memory import account
from gpuprof.analysis.modules import by_class, by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.roofline import roofline
from gpuprof.analysis.sweep import sweep_table
from gpuprof.analysis.totals import totals
from gpuprof.errors import GpuprofError
from gpuprof.render import render
from gpuprof.render.backward import render_backward
from gpuprof.render.budget import render_budget
from gpuprof.render.page import render_page
from gpuprof.render.regression import render_check
from gpuprof.render.sweep import FORMATS as SWEEP_FORMATS
from gpuprof.render.view import View
from gpuprof.schema import table
from gpuprof.sweep import Point


def test_passes_that_agree():
    run = gpu_run()
    run.ops.loc[run.ops["op"] == "mylib::step.default", "kind"] = "vector"

    assert mismatches(run) == []
    assert withheld(run) == ""


def test_a_call_that_was_counted_but_not_traced_is_said():
    run = gpu_run()
    run.ops.loc[0, "calls"] = 2

    assert mismatches(run) == ["aten::mm in the forward: counted 4 calls, traced 3: the passes ran different steps"]


def test_a_call_that_was_traced_but_not_counted_is_said():
    run = gpu_run()
    more = [kernel_row("head", "forward", "aten::addmm", 1000, 10, call=number) for number in (20, 21)]
    more[1]["shapes"] = "4 0x8 8x4"  # a product of nothing is none
    more.append(kernel_row("head", "forward", "aten::add", 1010, 10, call=22))
    run.kernels = pd.concat([run.kernels, table("kernels", more)], ignore_index=True)

    assert mismatches(run) == ["aten::addmm in the forward: counted 0 calls, traced 1: the passes ran different steps"]


def test_a_compiled_region_calls_other_operators():
    run = gpu_run()
    run.ops.loc[0, "calls"] = 2
    run.passes["trace"].facts["compiled"] = True

    assert mismatches(run) == []


def test_a_recomputation_that_a_checkpoint_stops():
    run = gpu_run()
    run.device["type"] = "cpu"
    run.ops = pd.concat([run.ops, table("ops", [ops_row("head", "recompute", "aten::mm.default", 5)])])
    more = [kernel_row("head", "recompute", "aten::mm", 1000, 10, call=number) for number in (30, 31)]
    run.kernels = pd.concat([run.kernels, table("kernels", more)], ignore_index=True)

    assert mismatches(run) == []


@pytest.mark.parametrize(
    ("timed", "line"),
    [
        ({"4x8": 3}, None),
        ({"4x8": 2, "1x8": 1}, "1 of 3 timed steps at 1x8"),
        ({"1x8": 2, "2x8": 1}, "3 of 3 timed steps at 1x8 and others"),
        ({"": 3}, "3 of 3 timed steps at no call of the model"),
    ],
)
def test_inputs_of_timed_steps(timed, line):
    run = gpu_run()
    run.passes["count"].facts = {"inputs": "4x8", "inputs_before": "9x8"}
    run.passes["time"].facts = {"inputs": timed}

    end = "; let the step take batches of one shape"
    assert mismatches(run) == ([] if line is None else [f"the inputs of the step vary: counted at 4x8, {line}{end}"])


def test_inputs_before_the_counted_step_are_held_where_the_timed_ones_show_none():
    run = gpu_run()
    run.passes["count"].facts = {"inputs": "4x8", "inputs_before": "9x8"}

    assert mismatches(run) == [
        "the inputs of the step vary: counted at 4x8, the step before at 9x8; let the step take batches of one shape"
    ]


@pytest.mark.parametrize(
    ("counted", "traced", "differ"),
    [
        (["2x4 4x4", "2x4 4x4", "2x4 4x4"], ["8x4 4x4", "2x4 4x4", "2x4 4x4"], True),
        (["8x4 4x4", "2x4 4x4", "2x4 4x4"], ["2x4 4x4", "2x4 4x4", "2x4 4x4"], True),
        (["2x4 4x4", "6x4 4x4", "4x4 4x4"], ["5x4 4x4", "5x4 4x4", "2x4 4x4"], False),  # a router's: 12 rows of 4
        (["2x4 4x4", "6x4 4x4", "4x4 4x4"], ["", "6x4 4x4", "4x4 4x4"], False),  # recorded without shapes
    ],
)
def test_products_of_other_shapes_are_another_step(counted, traced, differ):
    run = gpu_run()
    run.ops.loc[:2, "shapes"] = [f"{shapes} scalar -> 2x4" for shapes in counted]
    run.kernels.loc[:2, "shapes"] = traced
    line = "aten::mm in the forward: counted on {}, traced on {}: the passes ran different steps"

    assert mismatches(run) == ([line.format(counted[0], traced[0])] if differ else [])
    run.workload["step"] = "given"  # not every call shows its inputs: a router is not believed
    assert bool(mismatches(run)) == (differ or "" not in traced)


def given(facts, passes=("count", "time")):
    run = gpu_run()
    run.workload["step"] = "given"
    run.passes = {name: run.passes[name] for name in passes}
    run.passes["count"].facts = facts
    return run


UNCHECKED = "the step could not be checked for being one step: not every call in it shows a tensor; "


def test_what_could_not_be_checked_is_said():
    add, call = "add trace to the passes, or ", "call the model with tensors in it"
    assert unchecked(gpu_run()) == ""
    assert unchecked(given({})) == UNCHECKED + add + call
    assert unchecked(given({"inputs": "no tensor", "inputs_seen": False})) == UNCHECKED + add + call
    assert unchecked(given({"inputs": "4x8", "inputs_seen": True})) == ""
    assert unchecked(given({"inputs": "4x8"})) == ""  # of a run that was saved before there was the other
    assert unchecked(given({}, ("count",))) == ""
    traced = given({}, ("count", "time", "trace"))
    assert unchecked(traced) == ""
    traced.passes["trace"].facts["compiled"] = True
    assert unchecked(traced) == UNCHECKED + call


REASON = "withheld: aten::mm in the forward: counted 4 calls, traced 3: the passes ran different steps"


@pytest.fixture
def differing():
    run = gpu_run()
    run.ops.loc[0, "calls"] = 2
    return run


def test_the_totals(differing):
    figures = totals(differing)
    assert figures["withheld"] == REASON
    assert [figures[name] for name in ("mfu", "hfu", "flops_per_s", "backward_ratio")] == [None] * 4
    # what was counted and what was timed are known, each by itself
    assert (figures["flops_forward"], figures["flops_backward"], figures["step_s"]) == (4000, 8000, 480e-9)
    assert totals(gpu_run())["withheld"] == ""


@pytest.mark.parametrize("rows", [by_module, by_class, by_op, by_phase])
def test_the_tables(differing, rows):
    found, whole_run = rows(differing), rows(gpu_run())
    rates = [name for name in found if name.removeprefix("kernel_").startswith(("mfu", "flops_per_s"))]
    assert found[rates].isna().all(axis=None)
    assert whole_run[rates].notna().any().all()
    pd.testing.assert_frame_equal(found.drop(columns=[*rates, "calls"], errors="ignore"),
                                  whole_run.drop(columns=[*rates, "calls"], errors="ignore"))  # fmt: skip


def test_the_backward(differing):
    rows, figures = backward_ratios(differing), whole(differing)
    assert rows[["ratio_flops", "ratio_hardware", "flops_explained"]].isna().all(axis=None)
    assert set(rows["reason"]) == {REASON}
    assert rows["ratio_time"].notna().any()
    names = ("ratio_flops", "ratio_hardware", "error_flops", "error_flops_recompute", "flops_assumed")
    assert [figures[name] for name in names] == [None] * 5
    assert (figures["causes"], figures["withheld"]) == ([], REASON)


def test_the_budget(differing):
    differing.device["memory_bandwidth"] = 1e9
    found = budget(differing)
    assert (found.mfu, found.hfu) == (None, None)
    parts = found.parts.set_index("part")["time_s"]
    assert parts[["ideal", "clock", "memory_bytes", "matmul_shape"]].isna().all()
    assert parts.sum() == pytest.approx(found.step_s)
    assert f"MFU, FLOP/s and all that FLOPs would explain are {REASON}." in found.notes
    what = found.parts.set_index("part")["what"]
    assert what["matmul"] == "400.0 ns for 12.00 KFLOPs"
    assert budget(gpu_run()).parts.set_index("part")["what"]["matmul"] == "400.0 ns for 12.00 KFLOPs: 30.00 GFLOP/s"


def test_the_roofline(differing):
    with pytest.raises(GpuprofError) as refused:
        roofline(differing)
    assert str(refused.value) == f"no roofline, FLOP/s are {REASON}"


def test_launches_and_what_is_checked(differing):
    (row,) = launches(differing).to_dict("records")
    assert pd.isna(row["mfu_datasheet"])
    assert row["step_s"] == pytest.approx(480e-9)
    found = check(differing, [gpu_run()])
    assert not [verdict for verdict in found.verdicts if verdict.metric.startswith("mfu")]
    assert f"MFU of the head {REASON}." in found.notes
    for format in ("text", "markdown", "json"):
        assert "MFU of the head withheld" in render_check(found, format)


def test_a_sweep(differing):
    rows = sweep_table([(Point("net", {}), differing)])
    assert rows["mfu"].isna().all()
    assert rows["flops_per_s"].isna().all()
    assert rows["reason"].tolist() == [f"FLOP/s and MFU {REASON}"]
    told = " ".join(SWEEP_FORMATS["text"](rows, View(width=400)).split())
    assert REASON in told
    assert "no peak of the device" not in told


def test_every_report_says_why_and_shows_no_rate(differing):
    wide = View(width=400)
    tree = render(differing, "tree", wide)
    assert f"FLOP/s and MFU {REASON}" in tree
    assert f"8.000 KFLOPs; x forward {REASON}" in tree
    assert "HFU" not in tree
    assert tree.count("MFU %") == 1
    lines = tree[tree.index("MFU %") :].splitlines()[1:5]  # the model, its layers in one line, and their head
    assert all(line.rstrip().endswith("-") for line in lines)
    for format in ("table", "markdown"):
        assert f"FLOP/s and MFU {REASON}." in render(differing, format, wide)
    assert {row["withheld"] for row in json.loads(render(differing, "json"))} == {REASON}
    assert REASON in render(differing, "csv")
    assert "withheld" not in render(gpu_run(), "csv")
    assert f"a backward was counted; times forward: {REASON}\n" in render(differing, "calflops")
    assert "2.00" not in render(differing, "calflops").partition("Total Training")[0]
    assert "counted backward is 2.00x forward" in render(gpu_run(), "calflops")


def test_the_verbs_and_the_page_say_why(differing):
    wide = View(width=400)
    for format in ("text", "markdown", "json"):
        assert REASON in render_backward(differing, format, wide)
    budgets = [render_budget(budget(differing), format, View(by="part", width=400)) for format in ("text", "markdown")]
    assert all(REASON in text and "MFU " not in text.replace("MFU, FLOP/s", "") for text in budgets)
    page = render_page(differing)
    assert f"<b>-</b><span>{REASON}</span>" in page
    assert ">HFU" not in page


def test_the_memory_account_names_its_residual():
    (forward,) = account(gpu_run()).to_dict(orient="records")

    assert (forward["moment"], forward["expected"], forward["measured"], forward["residual"]) == (
        "end of forward", 950, 1000, 50,
    )  # fmt: skip


# what cannot be


def test_time_that_the_trace_books_on_another_module():
    run = gpu_run()
    run.kernels.loc[0, "module"] = "layers.1"

    assert mismatches(run) == []
    assert misbooked(run) == [
        "aten::mm of layers.0 in the forward: counted 1 call, traced 0: the trace books time on another module",
        "aten::mm of layers.1 in the forward: counted 1 call, traced 2: the trace books time on another module",
    ]
    run.estimates = product_within("aten::mm", 4000).assign(module="layers.1")  # of both calls, where 2000 are counted
    assert mismatches(run) == []


def product_within(op, flops):
    """torch.profiler saw a product of so many FLOPs inside calls of an operator of the head."""
    return table("estimates", [{"module": "head", "phase": "forward", "op": "aten::bmm", "within": op, "calls": 1,
                                "flops_profiler": flops}])  # fmt: skip


@pytest.mark.parametrize(
    ("within", "flops", "counted"),
    [
        ("aten::mm", 4000, None),  # full square: 2 x 2000
        ("aten::mm", 4001, "4.000 KFLOPs"),
        ("aten::_cdist_forward", 1, "0 FLOPs"),
        ("mylib::step", 10**9, None),  # without a rule, which is said elsewhere
        ("", 10**9, None),
    ],
)
def test_a_product_that_only_torch_s_profiler_saw(within, flops, counted):
    run = gpu_run()
    run.ops = pd.concat([run.ops, table("ops", [{**ops_row("head", "forward", "mylib::step.default", None, kind=""),
                                                 "flops_full": None, "flops_hardware": None}])])  # fmt: skip
    run.estimates = product_within(within, flops)

    seen = {4001: "4.001 KFLOPs", 1: "1 FLOPs"}.get(flops)
    line = f"{within} of head in the forward: counted {counted}, torch.profiler sees products of {seen} in it: "
    assert mismatches(run) == ([] if counted is None else [line + "not all of it is counted"])


@pytest.mark.parametrize(
    ("name", "peak", "share"),
    # 12,000 FLOPs in a step of 480 ns are 25 GFLOP/s; the forward's 4,000 take 80 ns, which is 50
    [("datasheet", 23e9, "108.7 %"), ("datasheet", 24e9, None), ("measured", 19e9, "131.6 %"), ("measured", 20e9, None),
     ("given", 1e9, None)],
)  # fmt: skip
def test_a_step_above_the_peak(name, peak, share):
    run = gpu_run()
    run.device["peaks"] = {name: {"bfloat16": peak}}
    if name == "given":
        run.device["peaks"], run.settings["peak_tflops"] = {}, peak / 1e12

    found = [line for line in mismatches(run) if "time of the step" in line]
    assert [line.partition(" are ")[2].partition(" of the ")[0] for line in found] == ([share] if share else [])
    assert bool(withheld(run)) is bool(share)


@pytest.mark.parametrize(
    ("name", "peak", "lines"),
    [("datasheet", 48e9, 0), ("datasheet", 47e9, 3), ("measured", 39e9, 0), ("measured", 38e9, 3)],
)
def test_modules_above_the_peak(name, peak, lines):
    run = gpu_run()
    run.device["peaks"] = {name: {"bfloat16": peak}}

    found = misbooked(run)
    assert len(found) == lines  # the forwards of two layers and a head, all at 50 GFLOP/s
    share, words = (
        50e9 / peak,
        {"datasheet": "datasheet dense peak", "measured": "best matmul measured on this device"},
    )
    told = f"layers.0 in the forward would have run at {100 * share:.1f} % of the {words[name]}: "
    told += "some of its time is booked elsewhere"
    told += (
        ", or the peak was measured under other load: 'gpuprof ceilings' measures it anew" if name == "measured" else ""
    )
    assert found[:1] == [told][:lines]
    assert mismatches(run) == []


def test_of_many_inconsistencies_the_fastest_are_told_and_the_rest_counted():
    run = gpu_run()
    run.device["peaks"] = {"datasheet": {"bfloat16": 24.5e9}}  # the backward runs at 25 GFLOP/s, the forward at 50
    run.ops.loc[run.ops["phase"] == "backward", "flops_hardware"] *= 2
    run.ops.loc[0, "flops_hardware"] *= 3
    run.samples["time_s"] *= 10  # as a whole the step is within the peak

    assert len(misbooked(run)) == 6
    *first, last = inconsistencies(run)
    assert len(first) == 5
    assert first[0].startswith("layers.0 in the forward would have run at 612.2 % of the datasheet dense peak")
    assert last == "and 1 more such"


@pytest.mark.parametrize(("nanoseconds", "told"), [(4, None), (5, "1.1 %")])
def test_a_backward_without_an_owner(nanoseconds, told):
    run = gpu_run()  # 440 ns of kernels
    run.passes["trace"].facts["unknown_owner_ns"] = nanoseconds

    line = f"of {told} of the kernel time, in the backward, the trace does not tell the owner"
    assert misbooked(run) == ([] if told is None else [line])
    assert bool(withheld_of_owners(run)) is (told is not None)


@pytest.mark.parametrize(
    ("device", "step_ns", "found"), [("cuda", 367, False), ("cuda", 366, True), ("cpu", 100, False)]
)
def test_kernels_that_do_not_fit_into_the_step(device, step_ns, found):
    run = gpu_run()  # 440 ns of kernels
    run.device |= {"type": device, "peaks": {}}
    run.samples["time_s"] = step_ns * 1e-9

    line = (
        f"kernels of the traced step took 440.0 ns, the undisturbed step {step_ns}.0 ns: "
        "they are not of one step, or the clock was not the same"
    )
    assert misbooked(run) == ([line] if found else [])


def test_what_is_booked_wrongly_withholds_the_figures_of_modules_and_no_others():
    run = gpu_run()
    run.kernels.loc[0, "module"] = "layers.1"
    (first, second) = misbooked(run)
    reason, wide = f"withheld: {first} (and 1 more such)", View(width=400)

    assert withheld(run) == ""
    assert withheld_of_kernels(run) == reason
    assert totals(run)["mfu"] == pytest.approx(12000 / 100e9 / 480e-9)
    for rows in (by_module(run), by_class(run), by_op(run), by_phase(run)):
        rates = [column for column in rows if column.removeprefix("kernel_").startswith(("mfu", "flops_per_s"))]
        over_kernels = [name for name in rates if "kernel_time_s" not in rows or name.startswith("kernel_")]
        assert over_kernels
        assert rows[over_kernels].isna().all(axis=None)
    assert by_phase(run)["mfu"].iloc[0] == pytest.approx(4000 / 100e9 / 80e-9)  # of the timed phase, without a trace
    assert f"Kernel FLOP/s and kernel MFU {reason}." in render(run, "table", View(by="phase", width=400))
    times = by_module(run).set_index("module")["time_forward_s"]
    assert times.drop("(unattributed)").isna().all()
    assert times["(unattributed)"] == pytest.approx(80e-9)
    with pytest.raises(GpuprofError, match="no roofline, FLOP/s are withheld"):
        roofline(run)
    parts = budget(run)
    assert budget_by(parts)["module"].tolist() == ["(unattributed)"]
    assert parts.mfu == pytest.approx(0.25)
    assert parts.parts.set_index("part")["time_s"].isna()["ideal"]
    assert f"All that FLOPs would explain is {reason}." in parts.notes

    tree = render(run, "tree", wide)
    assert f"times of modules, FLOP/s and kernel MFU below the whole step {reason}" in tree
    assert "MFU 25.0 %" in tree
    assert all(f"Warning: {line}" in tree for line in (first, second))
    assert f"FLOP/s and MFU {reason}." in render(run, "table", wide)
    assert {row["withheld"] for row in json.loads(render(run, "json"))} == {reason}
    page = render_page(run)
    assert f"FLOP/s are {reason}." in page
    assert "<b>25.0 %</b>" in page
