import csv
import io
import json
import subprocess
import sys

import pytest
from runs import gpu_run

import gpuprof
from gpuprof.analysis.budget import PART_COLUMNS, PARTS, budget
from gpuprof.render.budget import FORMATS, budget_chart, headline, render_budget
from gpuprof.render.charts import subject
from gpuprof.render.view import View

PART_CONTRACT = ["part", "title", "time_s", "share", "what"]
ROW_CONTRACT = [
    "time_s", "share", "ideal_s", "clock_s", "recompute_s", "matmul_shape_s", "matmul_s", "attention_s",
    "memory_bytes_s", "memory_s", "optimizer_s", "communication_s", "idle_launch_s", "idle_host_s", "other_s",
]  # fmt: skip


def idle_run():
    """The run of two layers, its kernels with a gap of 40 ns before the last, the optimizer's."""
    run = gpu_run()
    run.kernels.loc[run.kernels["phase"] == "optimizer", "start_ns"] += 40
    return run


def shown(view=None, run=None):
    return render_budget(budget(run or idle_run()), "text", view or View(by="part"))


def test_the_headline():
    assert headline(budget(gpu_run())) == (
        "Step 480.0 ns: MFU 25.0 %, HFU 25.0 % of datasheet (datasheet dense peak), convention causal."
    )
    run = gpu_run()
    run.device["peaks"] = {}
    assert headline(budget(run)) == "Step 480.0 ns."


@pytest.mark.parametrize(
    ("name", "threads", "words"),
    [
        ("Xeon", 2, "CPU (Xeon, 2 threads)"),
        ("Xeon", 1, "CPU (Xeon, 1 thread)"),
        ("Xeon", None, "CPU (Xeon)"),
        ("CPU", None, "CPU"),  # a recording's
    ],
)
def test_a_cpu_is_said_as_far_as_it_is_known(name, threads, words):
    run = gpu_run()
    run.device |= {"type": "cpu", "name": name}
    run.environment["threads"] = threads

    assert subject(run).rpartition(" · ")[2] == words


def test_the_waterfall_of_characters():
    lines = shown(View(by="part", width=80)).splitlines()
    by_part = {line.split("  ")[0]: line for line in lines}

    # the bar has 80 - 26 - 24 = 30 columns: 7.5 of them ideal, then 17.5, 2.5 and 2.5
    assert by_part["ideal: model FLOPs at peak"].endswith("120.0 ns   25.0 %  " + "█" * 8)
    assert by_part["matmul: above ideal"].endswith("280.0 ns   58.3 %  " + " " * 8 + "█" * 17)
    assert by_part["optimizer"].rstrip().endswith("40.00 ns    8.3 %  " + " " * 25 + "█" * 3)
    assert by_part["idle launch: GPU waits"].endswith("40.00 ns    8.3 %  " + " " * 28 + "█" * 2)
    assert by_part["step"].endswith("480.0 ns  100.0 %")


def test_a_narrow_waterfall_cuts_titles_and_no_figure():
    lines = shown(View(by="part", width=52)).splitlines()
    # 52 less 11 of the bar, 6 of gaps, 9 of a time and 8 of a share (both may be negative) leave 18 for a title
    assert any(line.startswith("ideal: model FLOP…  120.0 ns   25.0 %  ███") for line in lines)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("by", ["part", "class", "module"])
def test_text_keeps_to_its_width(width, by):
    text = shown(View(by=by, width=width))

    assert max(map(len, text.splitlines())) <= width
    assert ("12.00 KFLOPs at bfloat16 100.0 GFLOP/s" in text) is (width >= 100)
    assert ("Not shown at this width" in text) is (width < 100)
    assert "\x1b" not in text
    assert "\x1b" in shown(View(by=by, width=width, color=True))


def test_sections_of_the_text():
    text = shown()

    assert "Block x 2 200.0 ns 41.7 % matmul 140 ns, ideal 60.0 ns" in " ".join(text.split())
    assert "(unattributed)" in text
    assert "waited for" in text
    assert "mylib::step" in text
    assert "1. No gain known: matmul (above ideal) takes 280.0 ns, 58.3 % of the step" in text
    assert "2. Up to 40.00 ns (8.3 %): the GPU waits for launches 40.00 ns, 8.3 % of the step: 1 gap of" in text
    assert "waited for" not in shown(run=gpu_run())  # no gap in its trace


def test_what_is_left_out_is_one_row():
    text = shown(View(by="module", top=1))

    assert "3 others" in text
    # the head is 200 ns of 480
    assert "280.0 ns  58.3 %" in next(line for line in text.splitlines() if "3 others" in line)


def test_a_negative_part_is_marked():
    run = gpu_run()
    run.device["peaks"] = {"measured": {"bfloat16": 40e9}}
    run.ops = run.ops[run.ops["phase"] != "backward"]
    run.kernels = run.kernels[run.kernels["phase"] != "backward"]
    text = shown(run=run)

    assert "▒" in text
    assert "-20.00 ns   -4.2 %" in text  # 100 ns ideal in 80 of products, of a step of 480
    assert "Matmul is negative: products were faster than the peak" in " ".join(text.split())


def test_a_part_that_is_negative_in_one_class_alone_is_said_too():
    run = gpu_run()
    run.device["peaks"] = {"datasheet": {"bfloat16": 100e9}}
    run.tree["class"] = [f"Class{number}" for number in range(len(run.tree))]
    run.ops["flops_causal"] = [12_000 if number == 0 else 0 for number in range(len(run.ops))]  # 120 ns, too many
    found = budget(run)
    note = "Matmul is negative in a class, though not in the step: products were faster than the peak"
    assert (found.parts["time_s"].fillna(0) >= 0).all()
    assert not any("negative" in line for line in found.notes)
    for format in ("text", "markdown"):
        assert note in render_budget(found, format, View(by="part", width=200))
    assert "negative" not in shown()


def test_markdown_has_the_same_sections():
    text = render_budget(budget(idle_run()), "markdown")

    assert "| matmul: above ideal | 280.0 ns | 58.3 % | 400.0 ns for 12.00 KFLOPs: 30.00 GFLOP/s |" in text
    assert "| step | 480.0 ns | 100.0 % |  |" in text
    assert "| Block x 2 | 200.0 ns | 41.7 % | matmul 140 ns, ideal 60.0 ns |" in text
    assert "| (unattributed) | optimizer | 1 | 40.00 ns | 8.3 % | mylib::step |" in text
    assert "\n2. Up to 40.00 ns" in text


def test_machine_formats_keep_their_contract():
    found = budget(idle_run())
    assert PART_CONTRACT == PART_COLUMNS
    parts = list(csv.DictReader(io.StringIO(render_budget(found, "csv"))))
    assert [row["part"] for row in parts] == list(PARTS)
    assert {row["part"]: row["time_s"] for row in parts}["clock"] == ""  # not known
    assert sum(float(row["time_s"] or 0) for row in parts) == pytest.approx(480e-9, rel=1e-12)
    for by, first in (("module", ["module", "class"]), ("class", ["class", "modules"])):
        rows = list(csv.DictReader(io.StringIO(render_budget(found, "csv", View(by=by)))))
        assert list(rows[0]) == [*first, *ROW_CONTRACT]
        assert sum(float(row["time_s"]) for row in rows) == pytest.approx(480e-9, rel=1e-12)
    assert len(render_budget(found, "csv", View(by="module", top=2)).splitlines()) == 3
    data = json.loads(render_budget(found, "json"))
    assert (data["step_s"], data["convention"], data["denominator"]) == (480e-9, "causal", "datasheet")
    assert data["mfu"] == pytest.approx(0.25)
    assert {part["part"]: part["time_s"] for part in data["parts"]}["clock"] is None
    assert [row["class"] for row in data["rows"]] == ["Block", "Linear", ""]
    assert data["idle"][0]["owner"] == "(unattributed)"
    assert (data["hints"][0]["gain_s"], data["hints"][0]["gain_share"]) == (None, None)
    assert data["hints"][1]["gain_s"] == pytest.approx(40e-9)
    assert data["notes"] == []


def test_a_part_has_one_name_in_text_table_and_csv():
    """In the column of a table it has underscores, and a unit."""
    found = budget(idle_run())
    for part, title in zip(found.parts["part"], found.parts["title"], strict=True):
        assert title.partition(":")[0] == part.replace("_", " ")
        assert f"{part}_s" in ROW_CONTRACT
    text = shown()
    assert "matmul: above ideal" in text
    assert "matmul 140 ns" in text


def test_bad_requests_are_one_line(tmp_path):
    found = budget(gpu_run())
    with pytest.raises(gpuprof.GpuprofError, match="no format 'tree'"):
        render_budget(found, "tree")
    with pytest.raises(gpuprof.GpuprofError, match=r"ends in .png or .svg"):
        budget_chart(found, tmp_path / "chart.pdf")
    with pytest.raises(gpuprof.GpuprofError, match="cannot write"):
        budget_chart(found, tmp_path / "missing" / "chart.png")


def test_names_are_no_markup():
    run = gpu_run()
    run.tree.loc[run.tree["module"] == "head", "class"] = "Odd[red]|<b>"

    assert "Odd[red]|<b>" in shown(run=run)
    assert r"Odd[red]\|&lt;b>" in render_budget(budget(run), "markdown")


def test_charts_of_both_kinds(tmp_path):
    png = budget_chart(budget(idle_run()), tmp_path / "a.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    svgs = [budget_chart(budget(idle_run()), tmp_path / name).read_text() for name in ("a.svg", "b.svg")]
    assert svgs[0] == svgs[1]  # the same run draws the same picture
    for part in ("ideal: model FLOPs at peak", "58.3 %", "280 ns", "idle launch: GPU waits", "MFU 25.0 %"):
        assert part in svgs[0]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "a.svg", "b.svg"]


def test_matplotlib_is_loaded_late():
    code = "import sys, gpuprof.render.budget; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_peak(format):
    run = gpu_run()
    run.device["peaks"] = {}
    text = render_budget(budget(run), format)

    assert "MFU" not in text.replace("MFU of", "")
    if format == "text":
        assert "matmul: all of it" in text
        assert "No ideal time: no peak is known of this device." in text
