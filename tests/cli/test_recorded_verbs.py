"""Every verb on runs of recordings: something right, or one line and status 2; and two of them side by side."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
from recorded import recorded_run
from runs import gpu_run
from typer.testing import CliRunner

from gpuprof.analysis.check import compare
from gpuprof.analysis.moved import moved
from gpuprof.cli import app
from gpuprof.errors import GpuprofError
from gpuprof.render.comparison import COMPARISONS
from gpuprof.render.view import View

RUNNER = CliRunner()
FOLDER = Path(__file__).parents[3] / "shared" / "traces"


def run(*arguments):
    """Output of a verb, or the line that it refuses with."""
    ended = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if isinstance(ended.exception, GpuprofError):
        assert "\n" not in str(ended.exception)
        return str(ended.exception)
    assert ended.exit_code in (0, 3), (arguments, ended.exception)
    return ended.stdout


KINDS = {
    "whole": {}, "no steps": {"steps": False}, "no modules": {"modules": False}, "no shapes": {"shapes": False},
    "bare": {"steps": False, "modules": False, "shapes": False}, "some graph": {"graph_us": 50},
    "graphs": {"graph_us": 600}, "two devices": {"devices": ["NVIDIA H100 80GB HBM3", "Tesla T4"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_view(tmp_path, kind):
    path = recorded_run(**KINDS[kind]).save(tmp_path / "run.json.gz")
    formats = itertools.cycle(["table", "csv", "json"])
    for by, format in zip(["module", "class", "op", "kernel", "phase"], formats, strict=False):
        assert run("show", path, "--by", by, "-f", format)
    for format in ("tree", "markdown", "calflops", "perfetto"):
        assert "nan" not in run("show", path, "-f", format).lower()
    known = "shapes" not in KINDS[kind]
    assert ("nothing of this recording can be counted" in run("show", path, "--by", "convention")) != known
    assert "this run has no hardware counters" in run("show", path, "--by", "executed")
    assert "needs the sizes of a Hugging Face model" in run("show", path, "--convention", "palm")
    for by, format in (("part", "text"), ("class", "markdown"), ("module", "csv"), ("part", "json")):
        assert "nan" not in run("budget", path, "--by", by, "-f", format).lower()
    assert run("backward", path)
    assert run("roofline", path)
    if not known:  # else they are measured
        assert "no matrix products in this run" in run("ceilings", "--shapes", path)
    assert "a recorded trace has no memory readings" in run("memory", path)
    run("report", path, "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ("What this recording cannot tell" in page) == (kind not in ("whole", "no steps", "two devices"))
    assert "<span>Parameters</span>" not in page


def test_what_can_only_be_measured_is_said_in_a_line(tmp_path):
    path, before = (recorded_run().save(tmp_path / f"{name}.json") for name in ("head", "base"))
    report = Path(__file__).parents[1] / "data" / "reports" / "calflops_gpt2.txt"

    assert "a recorded trace has no parameters and no paths of modules" in run("validate", report, "--run", path)
    older = recorded_run()
    older.environment["date"] = "2026-01-01T00:00:00+00:00"
    older.save(before)
    assert run("check", path, "--against", before).startswith("INCONCLUSIVE")  # a single launch
    unmarked = recorded_run(steps=False).save(tmp_path / "unmarked.json")
    assert "the head has no valid timed launch" in run("check", unmarked, "--against", before)


def test_header_of_a_recording(tmp_path):
    said = run("show", recorded_run(host_step_s=[0.5e-3, 1.5e-3], graph_us=50).save(tmp_path / "run.json"))

    lines = {line[:13].strip(): line[13:].strip() for line in said.splitlines() if line[:1].strip()}
    assert lines["Workload"] == "Net · train · bfloat16"
    assert lines["Device"] == "NVIDIA H100 80GB HBM3 · 2026-01-02T03:04:05+00:00"
    assert "Parameters" not in lines
    assert "1.500 ms median of 3 recorded steps (IQR 100.0 us), first kernel to first kernel, on the host" in said
    assert "took 500 us to 1.50 ms" in said
    assert lines["Achieved"] == (
        "at least 400.0 TFLOP/s of model FLOPs over the step; FLOPs are known of 96.0 % of the matmul kernel time"
    )
    assert "MFU at least 40.0 %, HFU at least 40.0 % of datasheet" in said


def elsewhere():
    """The recording on another device: products of the forward 2.5 times as slow, those of the backward faster."""
    there = recorded_run()
    there.device |= {"name": "AMD Instinct MI300X", "peaks": {"datasheet": {"bfloat16": 1.25e15}}}
    products = there.kernels["op"].isin(["aten::addmm", "aten::mm"])
    there.kernels.loc[products, "kernel"] = "Cijk_MT256x192x64"
    there.kernels.loc[there.kernels["op"] == "aten::addmm", "duration_ns"] = 500_000
    there.kernels.loc[there.kernels["op"] == "aten::mm", "duration_ns"] = 150_000
    return there


def test_two_devices_are_compared_as_such(tmp_path):
    base, head = recorded_run().save(tmp_path / "a.json"), elsewhere().save(tmp_path / "b.json")
    said = run("compare", base, head)

    assert " ".join(said.split()).startswith(
        "NVIDIA H100 80GB HBM3 1.400 ms -> AMD Instinct MI300X 1.800 ms of kernel time, +400.0 us (+28.6 %): "
        "aten::addmm +600.0 us (150.0 % of the difference); aten::mm -200.0 us (-50.0 % of the difference)."
    )
    assert "+600.0 us in what is new or slower, -200.0 us in what is gone or faster" in said
    assert "no verdict on the code" in said
    assert "Two devices, NVIDIA H100 80GB HBM3 and AMD Instinct MI300X" in said
    assert not {"regression", "improvement", "verdict"} & {line.split()[-1] for line in said.splitlines() if line}
    assert json.loads(run("compare", base, head, "-f", "json"))["status"] == "inconclusive"
    assert "device (NVIDIA H100 80GB HBM3 against AMD Instinct MI300X)" in run("check", head, "--against", base)


def test_what_took_the_place_of_what_under_each_operator():
    table = moved([recorded_run()], [elsewhere()], "op-kernel")

    rows = [tuple(row) for row in table[["op", "status", "change_s", "share"]].round(9).itertuples(index=False)]
    assert rows[:4] == [
        ("aten::addmm", "new", 1e-3, 2.5), ("aten::addmm", "gone", -0.4e-3, -1.0),
        ("aten::mm", "gone", -0.8e-3, -2.0), ("aten::mm", "new", 0.6e-3, 1.5),
    ]  # fmt: skip
    assert set(table["status"][4:]) == {"same"}
    assert table["share"].sum() == pytest.approx(1)


def test_gains_and_losses_that_cancel_have_no_share():
    head = recorded_run()
    head.kernels.loc[head.kernels["op"] == "aten::addmm", "duration_ns"] += 50_000
    head.kernels.loc[head.kernels["op"] == "aten::mm", "duration_ns"] -= 25_000
    found = compare(recorded_run(), head)

    assert found.moved["op"]["share"].isna().all()
    assert "they nearly cancel, so nothing has a share" in COMPARISONS["text"](found, View())


def test_recordings_without_a_step_or_of_other_work():
    head = recorded_run(steps=False)
    head.ops.loc[0, ["flops_causal", "flops_full", "flops_hardware"]] = 2 * 10**11
    found = compare(recorded_run(), head)

    assert [one.metric for one in found.verdicts] == ["flops", "kernels"]
    assert "Their model FLOPs differ: they did not do the same work, or not all of it is known." in found.notes
    assert COMPARISONS["text"](found, View()).startswith("1.400 ms -> 1.400 ms of kernel time, the same.")


def test_layers_of_a_recording_are_one():
    base, head = recorded_run(), recorded_run()
    head.kernels.loc[head.kernels["op"] == "aten::addmm", "duration_ns"] = 300_000

    table = compare(base, head, ("layer",)).moved["layer"]
    first = table.iloc[0]
    assert (first["layer"], first["phase"], first["base_kernels"]) == ("Net_*.Linear_*", "forward", 2)
    assert first["change_s"] == pytest.approx(0.2e-3)


def test_measured_runs_of_two_devices_need_one_workload():
    base, head = gpu_run(), gpu_run()
    head.device |= {"name": "Another GPU", "driver": "1"}

    found = compare(base, head)
    assert (found.status, [one.status for one in found.verdicts][:1]) == ("inconclusive", ["inconclusive"])
    head.workload["seq_len"] = 4
    with pytest.raises(GpuprofError, match=r"workload .* --allow-different workload"):
        compare(base, head)
    assert compare(base, head, allowed=["workload"]).moved["op"].empty is False


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder of recorded traces beside the repository")
def test_one_model_on_two_real_devices(tmp_path):
    paths = []
    for name in ("h100", "mi300x"):
        paths.append(tmp_path / f"{name}.json")
        run("import", FOLDER / f"{name}-bert-small-inference.json.gz", "-o", paths[-1])
    csv = tmp_path / "moved.csv"
    run("compare", *paths, "--by", "op", "-f", "csv", "-o", csv)

    table = pd.read_csv(csv)
    assert table["base_s"].sum() == pytest.approx(309e-6, abs=1e-6)  # as an independent reading has them
    assert table["head_s"].sum() == pytest.approx(391e-6, abs=1e-6)
    assert table["share"].sum() == pytest.approx(1)


def test_a_history_says_which_mfu_is_a_lower_bound(tmp_path):
    for day, graph_us in ((1, 50), (2, 0)):
        made = recorded_run(graph_us=graph_us)
        made.environment["date"] = f"2026-01-0{day}T00:00:00+00:00"
        path = made.save(tmp_path / f"{day}.json")
        assert run("check", path, "--store", tmp_path / "history.db")

    rows = [line for line in run("history", "list", "--store", tmp_path / "history.db").splitlines() if "2026" in line]
    assert ["at least 40.0 %" in line for line in rows] == [False, True]


def test_communication_is_held_against_the_recorded_step(tmp_path):
    def said(**options):
        of = recorded_run(**options)
        of.kernels.loc[0, "start_ns"] -= 3_000_000  # launched in the step, long before the rest: a copy ahead
        of.kernels.loc[len(of.kernels)] = of.kernels.iloc[-1]
        of.kernels.loc[len(of.kernels) - 1, ["op", "kernel", "call", "start_ns", "duration_ns"]] = [
            "c10d::allreduce_", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", None, 1_400_000, 150_000,
        ]  # fmt: skip
        return " ".join(run("show", of.save(tmp_path / "run.json")).split())

    assert "150.0 us in the recorded step; no computation hides 150.0 us, 10.0 % of the step" in said()
    # from -3 to 1.55 ms
    assert "150.0 us in the recording; no computation hides 150.0 us, 3.3 % of the recording" in said(steps=False)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_what_no_recording_has_takes_no_room(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    of = recorded_run()
    of.kernels["kernel"] = "Cijk_Ailk_Bljk_BBS_BH_" + "MT16x64x64_" * 40
    of.kernels.loc[3:, "start_ns"] += 10_000
    path = of.save(tmp_path / "run.json")

    tree = run("show", path)
    heading = next(line for line in tree.splitlines() if line.startswith("module "))
    assert "params" not in heading
    assert ("MACs" in heading) == (width > 80)
    assert "params" not in run("report", path, "-o", tmp_path / "page.html")
    assert ">params<" not in (tmp_path / "page.html").read_text()
    for text in (tree, run("budget", path)):
        assert max(map(len, text.splitlines())) <= width


def test_times_are_of_a_recorded_step_or_of_the_recording(tmp_path):
    for steps, words in ((True, "Times are of one recorded step"), (False, "Times are of the recording")):
        of = recorded_run(steps=steps)
        of.kernels.loc[4:, "start_ns"] += 150_000  # the host does something else
        path = of.save(tmp_path / "run.json")
        run("report", path, "-o", tmp_path / "page.html")
        assert words in run("show", path)
        assert f"{words}, backward with recompute" in (tmp_path / "page.html").read_text()
        for said in (run("show", path), run("budget", path), run("show", path, "-f", "perfetto")):
            assert "traced step" not in said


def test_conventions_of_what_is_known_in_part_are_lower_bounds(tmp_path):
    said = run("show", recorded_run(graph_us=50).save(tmp_path / "run.json"), "--by", "convention")

    assert said.rstrip().endswith("FLOPs are at least that: FLOPs are known of 96.0 % of the matmul kernel time.")


def test_figures_that_are_not_known_are_not_at_least_that(tmp_path):
    path = recorded_run(shapes=False).save(tmp_path / "run.json")

    for said in (run("show", path, "--by", "op"), run("compare", path, path)):
        assert "at least" not in said
