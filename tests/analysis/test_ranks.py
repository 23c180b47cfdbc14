"""Ranks by hand: on a device of 100 FLOP/ns in bfloat16 and 50 in float32, in nanoseconds."""

import json

import pytest
from runs import gpu_run, kernel_row, row, tree_row
from test_budget import op, run_of
from typer.testing import CliRunner

import gpuprof
from gpuprof.analysis.ranks import RANK_COLUMNS, by_rank, rank_rows, straggler
from gpuprof.cli import app
from gpuprof.render import render
from gpuprof.render.page import render_page
from gpuprof.render.view import View
from gpuprof.schema import table

NS = 1e-9
PEAKS = {"datasheet": {"bfloat16": 100e9, "float32": 50e9}}


def one_rank(compute, waits, step_ns=None):
    """Three products for so long, a message from 10 ns before their end on and for so long after it."""
    kernels = [
        kernel_row("fc", "forward", "aten::mm", 0, compute - 40, call=0),
        kernel_row("fc", "recompute", "aten::mm", compute - 40, 20, call=1),
        kernel_row("fc", "backward", "aten::mm", compute - 20, 20, call=2),
        kernel_row("", "backward", "c10d::allreduce_", compute - 10, waits + 10, kernel="ncclDevKernel", call=3),
    ]
    ops = [
        op("fc", "forward", "aten::mm.default", 2000, full=3000, hardware=4000),
        op("fc", "backward", "aten::mm.default", 1000, dtype="float32"),
        op("fc", "recompute", "aten::mm.default", 500),
        op("", "backward", "c10d::allreduce_.default", 0, kind="communication", nbytes=64),
    ]
    tree = [tree_row("", "Net"), tree_row("fc", "Linear")]
    return run_of(ops, kernels, step_ns, tree=tree, peaks=PEAKS)


def job(*steps):
    """A run of ranks from (computation, exposed communication) of each rank, step by step."""
    rows = [
        figures
        for number, ranks in enumerate(steps)
        for rank, (compute, waits) in enumerate(ranks)
        for figures in rank_rows(one_rank(compute, waits), rank, number)
    ]
    run = one_rank(100, 50)
    run.ranks = table("ranks", rows)
    return run


def test_the_rows_of_a_rank_are_sums():
    rows = {(one["quantity"], one["dtype"]): one["amount"] for one in rank_rows(one_rank(100, 50, 160), rank=3, step=7)}

    assert rows == {
        ("step_ns", ""): 160, ("compute_ns", ""): 100, ("communication_ns", ""): 60, ("exposed_ns", ""): 50,
        ("idle_ns", ""): 10, ("kernels", ""): 4,
        ("flops_causal", "bfloat16"): 2000, ("flops_causal", "float32"): 1000,
        ("flops_full", "bfloat16"): 3000, ("flops_full", "float32"): 1000,
        ("flops_hardware", "bfloat16"): 4500, ("flops_hardware", "float32"): 1000,
    }  # fmt: skip
    assert {(one["rank"], one["step"]) for one in rank_rows(one_rank(100, 50), 3, 7)} == {(3, 7)}


def test_a_step_that_tracing_slowed_is_as_long_as_its_kernels():
    rows = {one["quantity"]: one["amount"] for one in rank_rows(one_rank(100, 50, 140), 0)}
    assert (rows["step_ns"], rows["idle_ns"]) == (150, 0)


def test_ranks_side_by_side():
    found = by_rank(job([(100, 50), (130, 20)]))

    assert list(found.columns) == RANK_COLUMNS
    first, second = found.to_dict("records")
    times = [first[f"{name}_s"] / NS for name in ("step", "compute", "exposed", "idle", "communication")]
    assert times == pytest.approx([150, 100, 50, 0, 60])
    assert (first["rank"], first["kernels"], first["flops"]) == (0, 4, 3000)
    # 2000 FLOPs at 100 FLOP/ns and 1000 at 50 are 40 of 150 ns
    assert (first["flops_per_s"], first["mfu"]) == (pytest.approx(20e9), pytest.approx(40 / 150))
    assert (second["compute_s"], second["exposed_s"]) == (pytest.approx(130 * NS), pytest.approx(20 * NS))
    assert row(by_rank(job([(100, 50), (130, 20)]), "full"), rank=1)["flops"] == 4000


def test_of_several_steps_the_one_of_median_length_is_shown():
    run = job([(100, 50), (100, 50)], [(100, 90), (100, 90)], [(100, 70), (100, 70)], [(100, 99), (100, 99)])
    assert by_rank(run)["step_s"].tolist() == pytest.approx([170 * NS] * 2)


def test_of_steps_as_long_as_the_timed_one_that_of_median_work_is_shown():
    run = one_rank(100, 50)
    rows = [rank_rows(one_rank(compute, 50, 300), 0, step) for step, compute in enumerate((110, 190, 130))]
    run.ranks = table("ranks", [row for step in rows for row in step])
    found = by_rank(run).iloc[0]
    assert (found["step_s"], found["compute_s"]) == (pytest.approx(300 * NS), pytest.approx(130 * NS))


def test_what_is_not_known_of_a_rank_is_missing():
    run = job([(100, 50), (130, 20)])
    run.ranks = run.ranks[~run.ranks["quantity"].str.startswith("flops")]
    assert by_rank(run)[["flops", "flops_per_s", "mfu"]].isna().all(axis=None)
    run = job([(100, 50), (130, 20)])
    del run.device["peaks"]["datasheet"]
    assert by_rank(run)["mfu"].isna().all()
    assert by_rank(run)["flops"].tolist() == [3000, 3000]


def test_flops_of_ranks_are_exact_beyond_64_bits():
    run = job([(100, 50), (130, 20)])
    run.ranks = table("ranks", [
        {**one, "amount": 2**80 + 1 if one["quantity"] == "flops_causal" else one["amount"]}
        for one in run.ranks.to_dict("records")
    ])  # fmt: skip
    assert by_rank(run)["flops"].tolist() == [2 * (2**80 + 1)] * 2


SLOW = [(100, 55), (150, 5), (102, 53), (101, 54)]


@pytest.mark.parametrize(
    ("steps", "rank", "words"),
    [
        # rank 1 computes 48 longer than the next; the others wait 49 on average: 98 %
        ([SLOW] * 3, 1, "Straggler: in 3 of 3 steps rank 1 computes 48.00 ns longer than the next, where the others "
                        "wait 49.00 ns."),
        ([SLOW, SLOW, [(100, 5)] * 4], 1, "Straggler: in 2 of 3 steps rank 1"),
        # two slow ranks: neither holds up the others alone, for it is 10 of the 109 / 3 that they wait
        ([[(100, 55), (150, 5), (140, 15), (101, 54)]] * 3, None,
         "Uneven, no single rank: in the worst of 3 steps rank 1 computes 10.00 ns longer than the next, where the "
         "others wait 36.33 ns."),
        # computation explains 30 of 60 that rank 0 waits: the rest was idle
        ([[(100, 65), (130, 5)]] * 3, None, "Uneven, no single rank"),
        ([[(100, 50), (150, 50)]] * 3, None,
         "rank 1 computes 50.00 ns longer than the next, and no other waits for it"),
        ([SLOW, [(150, 5), (100, 55), (101, 54), (102, 53)], [(101, 54), (102, 53), (150, 5), (100, 55)]], None,
         "Uneven, no single rank: in the worst of 3 steps"),
        ([SLOW] * 2, None,
         "Uneven, no single rank: rank 1 computes 48.00 ns longer than the next, where the others wait 49.00 ns; "
         "known of 2 steps of every rank, and 3 are needed to name one."),
        ([[(1000, 6), (1005, 1)]] * 3, None, "Even: all ranks compute equally long, to 1.0 % of the step."),
    ],
)  # fmt: skip
def test_the_straggler_is_told_by_computation(steps, rank, words):
    found = straggler(job(*steps))
    assert found.rank == rank
    assert found.text.startswith(words) or words in found.text


def test_a_rank_that_waits_for_its_input_is_no_slow_device():
    """All compute 100 ns of 250; rank 1's device is idle for 90 ns more, and the others wait as long for it."""
    rows = [
        figures
        for number in range(3)
        for rank, (waits, step_ns) in enumerate([(145, 250), (55, 250), (145, 250)])
        for figures in rank_rows(one_rank(100, waits, step_ns), rank, number)
    ]
    run = one_rank(100, 50)
    run.ranks = table("ranks", rows)
    assert straggler(run) == (
        1,
        "Straggler: in 3 of 3 steps rank 1 is idle 90.00 ns longer than the next, where the others wait 90.00 ns: its "
        "host or its input holds them up, not its computation.",
    )
    run.ranks = run.ranks[run.ranks["step"] < 2]
    assert straggler(run).text == "Even: all ranks compute equally long, to 1.0 % of the step."


def test_the_length_of_a_step_tells_nothing():
    """Rank 0 has the longer step, for it waits for rank 1 and then is idle."""
    run = job(*[[(100, 80), (150, 5)]] * 3)
    walls = run.ranks.pivot_table(index="rank", columns="quantity", values="amount", aggfunc="max")["step_ns"]
    assert walls[0] > walls[1]
    assert straggler(run).rank is None  # it explains 50 of 75
    run = job(*[[(100, 60), (150, 5)]] * 3)
    assert straggler(run).rank == 1


def test_one_rank_or_none_has_no_straggler_and_no_table():
    assert straggler(gpu_run()).text == ""
    assert straggler(job([(100, 50)])).text == ""
    with pytest.raises(gpuprof.GpuprofError, match="one rank only: import the traces of several ranks"):
        by_rank(gpu_run())
    with pytest.raises(gpuprof.GpuprofError, match="no FLOPs in convention flash: give causal or full"):
        by_rank(job([(100, 50), (130, 20)]), "flash")


def test_ranks_whose_steps_are_not_the_same_are_not_compared():
    run = job([(100, 50), (150, 5)])
    run.ranks.loc[run.ranks["rank"] == 1, "step"] = 1
    assert straggler(run).text == "No step was recorded of every rank, so none can be named."


def test_show_by_rank_and_the_reports(tmp_path):
    run = job(*[SLOW] * 3)
    path = run.save(tmp_path / "job.json")
    shown = CliRunner().invoke(app, ["show", str(path), "--by", "rank"])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:5] == ["rank", "step_s", "compute_s", "exposed_s", "idle_s"]
    assert lines[2].split()[:7] == ["1", "155.0", "ns", "150.0", "ns", "5.000", "ns"]
    assert "Straggler: in 3 of 3 steps rank 1" in shown.stdout
    as_json = json.loads(CliRunner().invoke(app, ["show", str(path), "--by", "rank", "--format", "json"]).stdout)
    assert [one["rank"] for one in as_json] == [0, 1, 2, 3]
    assert "Straggler: in 3 of 3 steps rank 1" in render(run, "tree", View())
    assert '<h2 id="ranks">' in render_page(run)
    assert "Straggler: in 3 of 3 steps rank 1" in render_page(run)
    alone = gpu_run().save(tmp_path / "alone.json")
    with pytest.raises(gpuprof.GpuprofError, match="one rank only"):
        CliRunner().invoke(app, ["show", str(alone), "--by", "rank"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("quantity", "change", "fault"),
    [
        ("idle_ns", None, "ranks has a step without one of its times"),
        ("step_ns", 0, "ranks has a figure or a time of a step missing"),
    ],
)
def test_a_broken_table_of_ranks_is_told(tmp_path, quantity, change, fault):
    run = job([(100, 50), (130, 20)])
    if change is None:
        run.ranks = run.ranks[run.ranks["quantity"] != quantity]
    else:
        run.ranks.loc[run.ranks["quantity"] == quantity, "amount"] = change
    with pytest.raises(gpuprof.GpuprofError, match=fault):
        gpuprof.load(run.save(tmp_path / "run.json"))
