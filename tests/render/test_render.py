import csv
import io
import json

import pandas as pd
import pytest
from runs import counted_run, generation_run, gpu_run, ops_row, tree_row

import gpuprof
from gpuprof.analysis.modules import MODULE_COLUMNS, by_module
from gpuprof.analysis.ranks import rank_rows
from gpuprof.record import PassOutcome
from gpuprof.render import FORMATS, render
from gpuprof.render.tree import build
from gpuprof.render.view import BY, View
from gpuprof.schema import table

CONTRACT = [
    "module", "class", "calls", "params", "trainable_params", "macs", "flops_forward", "flops_recompute",
    "flops_backward", "flops_forward_full", "flops_backward_full", "vector_flops_forward", "vector_flops_recompute",
    "vector_flops_backward", "time_forward_s", "time_recompute_s", "time_backward_s", "flops_per_s_forward",
    "flops_per_s_backward", "kernel_mfu_forward", "kernel_mfu_backward", "kernel_mfu",
]  # fmt: skip


def labels(node, depth=0):
    yield depth, node.label
    for child in node.children:
        yield from labels(child, depth + 1)


def test_the_module_table_keeps_its_contract():
    assert set(CONTRACT) <= set(MODULE_COLUMNS)
    rows = list(csv.DictReader(io.StringIO(render(gpu_run(), "csv"))))

    assert [row["module"] for row in rows] == ["", "layers", "layers.0", "layers.1", "head", "(unattributed)"]
    assert rows[0]["flops_backward"] == "8000"
    assert rows[-1]["params"] == rows[-1]["kernel_mfu"] == ""


def test_csv_of_a_count_alone_leaves_times_empty():
    run = gpu_run()
    del run.passes["trace"]

    rows = list(csv.DictReader(io.StringIO(render(run, "csv"))))

    assert (rows[0]["flops_forward"], rows[0]["time_forward_s"], rows[0]["kernel_mfu"]) == ("4000", "", "")


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "tree"])
def test_every_table_in_every_format(format, by):
    run = counted_run() if by != "part" else generation_run()
    run.ranks = table("ranks", [*rank_rows(run, 0), *rank_rows(run, 1)])
    text = render(run, format, View(by=by))

    assert text.endswith("\n")
    if format == "json":
        assert isinstance(json.loads(text), list)
    if format == "csv":
        assert len({len(line) for line in csv.reader(io.StringIO(text))}) == 1


def test_json_keeps_integers_and_nulls():
    rows = {row["module"]: row for row in json.loads(render(gpu_run(), "json"))}

    assert rows["head"]["flops_forward"] == 2000
    assert rows["(unattributed)"]["kernel_mfu"] is None


def test_equal_layers_fold_and_their_times_are_averaged_with_their_spread():
    run = gpu_run()
    run.kernels.loc[(run.kernels["module"] == "layers.1") & (run.kernels["phase"] == "forward"), "duration_ns"] = 60

    tree = build(by_module(run))

    assert list(labels(tree)) == [(0, "Net"), (1, "layers: ModuleList"), (2, "(0-1): 2 x Block"), (1, "head: Linear")]
    block = tree.children[0].children[0]
    assert block.figures["flops_forward"] == 1000
    assert block.figures["time_forward_s"] == pytest.approx(40e-9)  # of 20 and 60
    assert block.spread["time_forward_s"] == pytest.approx(0.5)
    assert block.figures["flops_per_s_forward"] == pytest.approx(1000 / 40e-9)


def test_layers_that_differ_in_a_count_do_not_fold():
    run = gpu_run()
    run.ops.loc[(run.ops["module"] == "layers.1") & (run.ops["phase"] == "forward"), "flops_causal"] = 999

    assert [label for _, label in labels(build(by_module(run)))][2:4] == ["0: Block", "1: Block"]


def test_children_of_folded_layers_are_folded_with_them():
    run = gpu_run()
    inner = [tree_row(f"layers.{n}.fc", "Linear", 10) for n in (0, 1)]
    rows = run.tree.to_dict(orient="records")
    run.tree = table("tree", [*rows[:3], inner[0], rows[3], inner[1], rows[4]])
    run.ops = table("ops", [ops_row(f"layers.{n}.fc", "forward", "aten::mm.default", 500) for n in (0, 1)])
    run.kernels = run.kernels.assign(module=[m.replace("layers.0", "layers.0.fc") for m in run.kernels["module"]])

    tree = list(labels(build(by_module(run))))

    assert tree[2:4] == [(2, "(0-1): 2 x Block"), (3, "fc: Linear")]


def test_depth_cuts_the_tree():
    assert [label for _, label in labels(build(by_module(gpu_run()), depth=1))] == [
        "Net", "layers: ModuleList", "head: Linear",
    ]  # fmt: skip
    assert "layers.0" not in render(gpu_run(), "csv", View(depth=1))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_tree_keeps_to_its_width_and_says_what_matters(width):
    text = render(gpu_run(), "tree", View(width=width))

    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    for part in ("net · train", "causal", "2.000 x forward as counted", "MFU 25.0 %", "(0-1): 2 x Block"):
        assert part in text
    assert "mylib::step (3 calls, 9.1 % of kernel time)" in " ".join(text.split())


def test_colour_only_when_asked():
    assert "\x1b[" in render(gpu_run(), "tree", View(color=True))


def test_names_are_no_markup():
    run = gpu_run()
    run.tree.loc[run.tree["module"] == "head", "class"] = "Odd[red]|<b>"

    assert "head: Odd[red]|<b>" in render(run, "tree")
    assert r"Odd[red]\|&lt;b>" in render(run, "markdown")


def test_unknown_peak_is_said_with_its_remedy():
    run = gpu_run()
    run.device |= {"peaks": {}, "peak_remedy": "no peak is known: give --peak-tflops"}

    assert "no MFU: no peak is known: give --peak-tflops" in render(run, "tree")


def test_unknown_causality_and_skipped_passes_are_said():
    run = gpu_run()
    run.tree.loc[run.tree["module"] == "layers.0", "causality"] = "unknown"
    run.passes["telemetry"] = gpuprof.record.PassOutcome("skipped", "no GPU", "use one")
    run.warnings.append("the loss is nan")

    text = render(run, "tree")

    assert "Causality unknown, attention counted full: layers.0." in text
    assert "Pass telemetry skipped: no GPU; use one" in text
    assert "Warning: the loss is nan" in text


def test_a_traced_step_much_slower_than_the_timed_one_is_said():
    run = gpu_run()
    run.samples["time_s"] = run.samples["time_s"] / 2

    assert "Tracing slowed the step" in render(run, "tree")
    assert "Tracing slowed the step" not in render(gpu_run(), "tree")


def test_top_and_sort():
    text = render(gpu_run(), "csv", View(by="op", sort="flops", top=1))

    assert pd.read_csv(io.StringIO(text))["op"].tolist() == ["aten::bmm"]


@pytest.mark.parametrize(
    ("format", "view", "message"),
    [
        ("pdf", View(), "no format 'pdf'"),
        ("csv", View(by="layer"), "cannot show by 'layer'"),
        ("tree", View(by="op"), "a tree is by module"),
        ("csv", View(sort="speed"), "no column 'speed'"),
    ],
)
def test_bad_views_are_one_line(format, view, message):
    with pytest.raises(gpuprof.GpuprofError, match=message):
        render(gpu_run(), format, view)


def test_an_empty_run_renders():
    run = gpuprof.Run({"name": "m", "mode": "train"}, {"type": "cpu", "name": "c"}, {})
    run.tree = table("tree", [tree_row("", "M")])

    for format in FORMATS.keys() - {"perfetto"}:  # which is of the trace alone
        assert render(run, format)


def test_by_convention_says_where_the_difference_comes_from():
    rows = {row["convention"]: row for row in json.loads(render(gpu_run(), "json", View(by="convention")))}

    assert (rows["causal"]["flops"], rows["causal"]["difference"]) == (12000, 0)
    assert (rows["full"]["flops"], rows["full"]["difference_percent"]) == (24000, 100.0)
    assert rows["full"]["because"]


def line_of(text, label):
    """A labelled line of the header, continuation lines joined."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(label))
    end = next(number for number in range(start + 1, len(lines)) if not lines[number].startswith("  "))
    return " ".join(" ".join(lines[start:end]).split())


def readings(**quantities):
    """Telemetry, each quantity at the start and at the end of a four-second window; a unit after ``__``."""
    rows = [
        {"time_s": at, "quantity": name.partition("__")[0], "unit": name.partition("__")[2], "value": value}
        for name, values in quantities.items()
        for at, value in zip((0.0, 4.0), values, strict=True)
    ]
    return table("telemetry", sorted(rows, key=lambda row: row["time_s"]))


def test_telemetry_in_one_line_with_energy_and_the_tensor_cores():
    run = gpu_run()
    run.settings |= {"warmup": 5, "steps": 15}
    # ten SMs of 10^-5 FLOPs per clock at 1500 MHz do 150,000 FLOP/s; 20 steps of 12,000 FLOPs in 4 s are 60,000
    run.device |= {"max_sm_clock_mhz": 1980, "power_limit_w": 700.0, "sm_count": 10,
                   "flops_per_clock_per_sm": {"bfloat16": 1e-5}}  # fmt: skip
    run.telemetry = readings(
        sm_clock__MHz=(1500, 1500),
        power_instant__W=(600, 624),
        temperature__C=(55, 61),
        event_reasons__mask=(0, 4),
        power_policy_time__s=(7.0, 10.1),
        energy__J=(1000, 1048),
        gpm_tensor_active__=(43.1, 43.1),
    )

    assert line_of(render(run, "tree", View(width=200)), "Telemetry") == (
        "Telemetry SM clock 1,500 of 1,980 MHz, 612 W of 700 W, power cap for 3.100 s of 4.000 s, 61 C; "
        "2.400 J per step, 5.000 KFLOP/J of model FLOPs; "
        "tensor cores busy 43.1 % by GPM where counted FLOPs ask for 40.0 %"
    )
    assert "10.00 KFLOP/J" in render(run, "tree", View(convention="full", width=200))


def test_telemetry_says_only_what_is_known():
    run = gpu_run()
    assert "Telemetry" not in render(run, "tree")
    run.telemetry = readings(temperature__C=(55, 61))
    assert line_of(render(run, "tree"), "Telemetry") == "Telemetry 61 C"


def test_a_window_too_short_for_energy_says_how_to_get_it():
    run = gpu_run()
    run.settings |= {"warmup": 1, "steps": 3}
    run.telemetry = readings(energy__J=(1000, 1048)).assign(time_s=[0.0, 0.25])

    assert line_of(render(run, "tree", View(width=200)), "Telemetry") == (
        "Telemetry a window of 250.0 ms is too short for energy (more --steps)"
    )


def test_the_measured_peak_names_where_it_comes_from():
    run = gpu_run()
    run.device["peaks"]["measured"] = {"bfloat16": 80e9}
    run.device["peak_source_measured"] = "gpuprof ceilings, 2026-01-02"

    text = " ".join(render(run, "tree", View(width=200)).split())

    assert "of measured (best matmul measured on this device: bfloat16 80.00 GFLOP/s) [gpuprof ceilings, 2026" in text
    assert "(datasheet dense peak: bfloat16 100.0 GFLOP/s) MFU" in text


def test_executed_flops_stand_in_header_and_tree_where_counters_were_read():
    """Counted 4000 forward and 8000 backward, executed 1000 more in the head's forward; six launches of 40 bytes."""
    text = render(counted_run(), "tree", View(width=250))

    executed = next(line for line in text.splitlines() if line.startswith("Executed"))
    assert "13.00 KFLOPs by the GPU's own counters, 1.083 x the counted hardware FLOPs" in executed
    assert "240 B moved in device memory; a 4096^3 matmul reads bfloat16 1 of its FLOPs" in executed
    assert next(line for line in text.splitlines() if "head: Linear" in line).split().count("1.167") == 1  # 7000 / 6000
    assert "executed" not in render(gpu_run(), "tree", View(width=160))


def test_executed_flops_by_module_and_phase():
    rows = json.loads(render(counted_run(), "json", View(by="executed", depth=1)))

    head = next(row for row in rows if (row["module"], row["phase"]) == ("head", "forward"))
    assert (head["flops_hardware"], head["flops_executed"], head["factor"], head["dram_bytes"]) == (2000, 3000, 1.5, 40)
    assert {row["module"] for row in rows} == {"", "layers", "head", "(unattributed)"}


def test_without_counters_there_is_nothing_to_show_by_executed():
    with pytest.raises(gpuprof.GpuprofError, match="no hardware counters: profile with --counters"):
        render(gpu_run(), "table", View(by="executed"))
    run = gpu_run()
    run.passes["counters"] = PassOutcome("skipped", "no ncu on PATH")
    with pytest.raises(gpuprof.GpuprofError, match="no hardware counters: no ncu on PATH"):
        render(run, "table", View(by="executed"))


def test_work_in_a_dtype_that_was_not_collected_is_named():
    run = counted_run()
    run.counters.loc[0, ["tensor_bfloat16", "tensor_instructions"]] = [0, 7]

    assert "not collected (--counters full): gemm of layers.0, 1 launch." in render(run, "tree", View(width=300))


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (None, "profile with the pass trace"),
        (PassOutcome("skipped", "it was not asked for", "ask for it"), "it was not asked for; ask for it"),
        (PassOutcome("done"), "none were traced"),
    ],
)
def test_a_table_by_kernel_needs_kernels(outcome, why):
    run = gpu_run()
    run.kernels = table("kernels", [])
    run.passes.pop("trace", None)
    if outcome is not None:
        run.passes["trace"] = outcome

    with pytest.raises(gpuprof.GpuprofError) as error:
        render(run, "table", View(by="kernel"))
    assert str(error.value) == f"this run has no kernels: {why}"
