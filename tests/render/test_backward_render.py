import csv
import io
import json
import subprocess
import sys

import pytest
from runs import counted_run, gpu_run, kernel_row, ops_row, tree_row

import gpuprof
from gpuprof.analysis.backward import RATIO_COLUMNS
from gpuprof.pictures import SUFFIXES
from gpuprof.render.backward import FORMATS, render_backward, verdict
from gpuprof.render.backward_chart import backward_chart, chart_rows
from gpuprof.render.view import View
from gpuprof.schema import table

CONTRACT = [
    "module", "class", "params", "trainable_params", "flops_forward", "flops_recompute", "flops_backward",
    "flops_hardware_forward", "flops_hardware_recompute", "flops_hardware_backward", "flops_executed_forward",
    "flops_executed_recompute", "flops_executed_backward", "time_forward_s", "time_recompute_s", "time_backward_s",
    "ratio_flops", "ratio_hardware", "ratio_executed", "ratio_time", "flops_explained", "cause", "reason",
]  # fmt: skip


def frozen_run():
    """The layers frozen: they pass the input gradient only."""
    run = gpu_run()
    layers = run.tree["module"].str.startswith("layers")
    run.tree.loc[layers, "trainable_params"] = 0
    halved = (run.ops["phase"] == "backward") & run.ops["module"].str.startswith("layers")
    for column in ("flops_causal", "flops_full", "flops_hardware"):
        run.ops.loc[halved, column] //= 2
    return run


def test_the_verdict_is_two_sentences():
    assert verdict(gpu_run()) == (
        "Counted, the backward has 2.000 x the FLOPs of the forward (convention causal; 2.000 x in hardware): "
        "assuming 2 x is exact. "
        "Measured, it took 4.000 x the forward's kernel time (4.250 x in undisturbed steps): "
        "assuming 2 x puts its time 50.0 % too low."
    )
    assert verdict(frozen_run()).startswith(
        "Counted, the backward has 1.500 x the FLOPs of the forward (convention causal; 1.500 x in hardware): assuming "
        "2 x counts the step 20.0 % too high: of the forward's FLOPs, 50.0 % have frozen weights (1 x). "
    )


def test_a_trace_that_was_slowed_is_no_measure_of_the_backward():
    """440 ns of kernels in steps of 240 ns: 1.83 x. Undisturbed the backward took 170 ns and the forward 40."""
    run = gpu_run()
    run.device["type"] = "cpu"
    run.samples["time_s"] /= 2

    assert verdict(run).endswith(
        "Measured, it took 4.250 x the forward's time in undisturbed steps: assuming 2 x puts its time 52.9 % too low. "
        "By operator time it took 4.000 x, of a traced step that tracing slowed 1.8 x: read times of modules as shares."
    )


def test_recompute_is_said_apart():
    run = gpu_run()
    run.ops = table("ops", [*run.ops.to_dict(orient="records"), ops_row("head", "recompute", "aten::mm.default", 2000)])
    again = kernel_row("head", "recompute", "aten::mm", 500, 10)
    run.kernels = table("kernels", [*run.kernels.to_dict(orient="records"), again])

    assert "; recompute, another 0.500 x, apart" in verdict(run)
    assert "in undisturbed steps, recompute included" in verdict(run)
    assert "recompute apart: 1.000 x forward" in render_backward(run)
    assert "recompute" in render_backward(run, view=View(width=120)).split("\n\n")[1].splitlines()[0]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("by", ["module", "class"])
@pytest.mark.parametrize("top", [None, 2])
def test_text_keeps_to_its_width(width, by, top):
    text = render_backward(frozen_run(), "text", View(width=width, by=by, top=top))

    assert max(map(len, text.splitlines())) <= width
    assert "frozen" in text


def test_equal_layers_fold_and_repetition_is_not_repeated():
    lines = render_backward(frozen_run()).splitlines()

    assert any("layers: ModuleList" in line and "weights frozen: input gradient only" in line for line in lines)
    assert any("(0-1): 2 x Block" in line and "as above" in line for line in lines)
    assert any("Net" in line and "mixed: layers 1x" in line for line in lines)


def test_machine_formats_keep_their_contract():
    assert set(CONTRACT) <= set(RATIO_COLUMNS)
    rows = list(csv.DictReader(io.StringIO(render_backward(frozen_run(), "csv"))))
    assert (rows[1]["module"], rows[1]["ratio_flops"], rows[1]["cause"]) == ("layers", "1.0", "frozen")
    data = json.loads(render_backward(frozen_run(), "json", View(by="class")))
    assert data["whole"]["error_flops"] == pytest.approx(0.2)
    assert {row["class"]: row["ratio_time"] for row in data["rows"]}["Linear"] == 4.0
    assert data["verdict"] == verdict(frozen_run())


def test_top_is_furthest_first_and_depth_cuts():
    rows = list(csv.DictReader(io.StringIO(render_backward(frozen_run(), "csv", View(top=2)))))
    assert [row["module"] for row in rows] == ["", "layers"]  # 2000 FLOPs away each; the head is not
    rows = list(csv.DictReader(io.StringIO(render_backward(frozen_run(), "csv", View(depth=1)))))
    assert [row["module"] for row in rows] == ["", "layers", "head", "(unattributed)"]


@pytest.mark.parametrize("format", FORMATS)
def test_without_times(format):
    run = gpu_run()
    del run.passes["trace"], run.passes["time"]
    text = render_backward(run, format)

    assert "4.000 x" not in text
    assert "4.250" not in text
    if format in ("text", "markdown"):
        assert "Its time was not measured." in text


def test_names_are_no_markup():
    run = gpu_run()
    run.tree.loc[run.tree["module"] == "head", "class"] = "Odd[red]|<b>"

    assert "Odd[red]|<b>" in render_backward(run)
    assert r"Odd[red]\|&lt;b>" in render_backward(run, "markdown", View(by="class"))


def test_bad_requests_are_one_line(tmp_path):
    with pytest.raises(gpuprof.GpuprofError, match="no format 'tree'"):
        render_backward(gpu_run(), "tree")
    with pytest.raises(gpuprof.GpuprofError, match="by 'op'"):
        render_backward(gpu_run(), "csv", View(by="op"))
    with pytest.raises(gpuprof.GpuprofError, match=r"ends in .png or .svg"):
        backward_chart(gpu_run(), tmp_path / "chart.pdf")
    with pytest.raises(gpuprof.GpuprofError, match="cannot write"):
        backward_chart(gpu_run(), tmp_path / "missing" / "chart.png")


def test_without_matplotlib_the_way_to_get_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(gpuprof.GpuprofError, match=r"pip install 'gpuprof\[plot\]'"):
        backward_chart(gpu_run(), tmp_path / "chart.png")


def test_matplotlib_is_loaded_late():
    code = "import sys, gpuprof.render.backward_chart; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_charts_of_both_kinds(tmp_path):
    png = backward_chart(frozen_run(), tmp_path / "a.png", View(by="class"))
    assert png.read_bytes().startswith(b"\x89PNG")
    svgs = [backward_chart(frozen_run(), tmp_path / name, View(by="class")).read_text() for name in ("a.svg", "b.svg")]
    assert svgs[0] == svgs[1]  # the same run draws the same picture
    for part in ("assumed: 2.0", "by counted FLOPs", "by time", "Block x 2", "1.500", "4.00"):
        assert part in svgs[0]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "a.svg", "b.svg"]


def layers_of_times(*backward_ns):
    """A net whose layers each take 100 us forward, of which the gradients take what is given."""
    run = gpu_run()
    layers = [tree_row(f"layers.{index}", "Block", 100) for index in range(len(backward_ns))]
    run.tree = table("tree", [tree_row("", "Net", 100), tree_row("layers", "ModuleList", 100), *layers])
    phases = [("forward", 10, [100_000] * len(backward_ns)), ("backward", 20, backward_ns)]
    run.ops = table("ops", [
        ops_row(f"layers.{index}", phase, "aten::mm.default", flops)
        for phase, flops, times in phases for index in range(len(times))
    ])  # fmt: skip
    run.kernels = table("kernels", [
        kernel_row(f"layers.{index}", phase, "aten::mm", at, ns)
        for phase, _, times in phases for index, ns in enumerate(times)
        for at in [(phase == "backward") * 50_000_000 + index * 1_000_000]
    ])  # fmt: skip
    return run


def test_the_chart_has_the_lines_of_the_tree_with_mean_and_spread():
    bars = chart_rows(layers_of_times(*[100_000, 300_000] * 15), View())

    assert list(bars["label"]) == ["layers: ModuleList", "(0-29): 30 x Block"]
    assert list(bars["depth"]) == [0, 1]
    assert list(bars["ratio_flops"]) == [2, 2]
    assert list(bars["ratio_time"]) == pytest.approx([2, 2])  # of 1 and 3
    assert bars["spread"].isna()[0]
    assert bars["spread"][1] == pytest.approx(0.5)  # 1 and 3 lie 1 from 2
    assert [*chart_rows(gpu_run(), View())["label"]] == ["layers: ModuleList", "(0-1): 2 x Block", "head: Linear"]
    assert [*chart_rows(gpu_run(), View(depth=1))["label"]] == ["layers: ModuleList", "head: Linear"]
    assert [*chart_rows(gpu_run(), View(by="class"))["label"]] == ["Net", "ModuleList", "Block x 2", "Linear"]
    assert [*chart_rows(gpu_run(), View(by="class", top=1))["label"]] == ["Net"]


def test_what_the_chart_leaves_out_is_said(tmp_path):
    run = layers_of_times(*[200_000] * 31)
    run.tree["class"] = ["Net", "ModuleList", *(f"Block{index}" for index in range(31))]  # none folds
    drawn = backward_chart(run, tmp_path / "a.svg", View()).read_text()

    assert "left out: what lies deeper than 1 (--depth)" in drawn
    assert [*chart_rows(run, View())["label"]] == ["layers: ModuleList"]
    assert len(chart_rows(run, View(depth=2))) == 32
    drawn = backward_chart(run, tmp_path / "b.svg", View(by="class")).read_text()
    assert "left out: 3 lines of less time" in drawn  # 33 classes
    run = layers_of_times(200_000, 200_000)
    run.tree = table("tree", [*run.tree.to_dict(orient="records"), tree_row("idle", "Idle")])
    idle = kernel_row("idle", "backward", "aten::relu", 90_000_000, 300)  # 600 us in the layers: 0.05 %
    run.kernels = table("kernels", [*run.kernels.to_dict(orient="records"), idle])
    drawn = backward_chart(run, tmp_path / "c.svg", View()).read_text()
    assert "left out: 1 line without FLOPs and below 0.2 % of the time" in drawn
    assert "left out" not in backward_chart(layers_of_times(200_000), tmp_path / "d.svg", View()).read_text()


def test_text_says_which_columns_it_leaves_out():
    for width, left_out in ((59, "forward, backward, hardware"), (109, "forward, backward"), (110, "")):
        text = " ".join(render_backward(gpu_run(), view=View(width=width)).split())
        assert (f"Left out at this width: {left_out}; --format csv has them." in text) == bool(left_out)
        assert ("Left out" in text) == bool(left_out)


def test_nothing_to_draw_is_said(tmp_path):
    run = gpu_run()
    with pytest.raises(gpuprof.GpuprofError, match="no ratio to draw"):
        backward_chart(run, tmp_path / "a.png", View(depth=0))
    assert SUFFIXES == (".png", ".svg")


def test_an_empty_backward_is_refused_in_every_format():
    run = gpuprof.Run({"name": "m", "mode": "forward"}, {"type": "cpu", "name": "c"}, {})
    run.tree = table("tree", [tree_row("", "M")])
    run.passes["count"] = gpuprof.record.PassOutcome("done")
    for format in FORMATS:
        with pytest.raises(gpuprof.GpuprofError, match="this run has no backward: profile with --mode train"):
            render_backward(run, format)


def test_the_verb(gpuprof_cli, tmp_path):
    path = gpu_run().save(tmp_path / "run.json")
    made = gpuprof_cli(
        "backward",
        path,
        "--by",
        "class",
        "--format",
        "markdown",
        "--chart",
        tmp_path / "c.svg",
        "-o",
        tmp_path / "c.md",
    )

    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert (tmp_path / "c.md").read_text().startswith("Counted, the backward has 2.000 x")
    assert (tmp_path / "c.svg").stat().st_size > 1000
    bad = gpuprof_cli("backward", path, "--chart", tmp_path / "c.gif")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("gpuprof: cannot draw") and bad.stderr.count("\n") == 1  # noqa: PT018


def test_executed_flops_have_a_column_only_where_counters_were_read():
    with_counters, without = (render_backward(run, "markdown") for run in (counted_run(), gpu_run()))

    assert "| hardware | executed | by time |" in with_counters
    assert "1.600 x as the GPU's counters say it executed" in with_counters
    assert "executed" not in without
    executed = chart_rows(counted_run(), View(by="class")).set_index("label")["ratio_executed"]
    assert executed["Linear"] == pytest.approx(4 / 3)
