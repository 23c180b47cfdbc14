import json

import pytest
from runs import compiled_run, eager_run

from gpuprof.analysis.budget import budget
from gpuprof.analysis.fused import lines
from gpuprof.analysis.modules import by_phase, totals
from gpuprof.render import render
from gpuprof.render.page import render_page
from gpuprof.render.view import View
from gpuprof.schema import table


def words(text):
    return " ".join(text.split())


def test_the_header_says_whose_compiled_kernels_are():
    text = words(render(compiled_run(), "tree", View(width=120)))

    # 60 of 241 ns are products of one module, 101 + 30 split, 10 are not; 40 are outside
    assert (
        "Compiled code has 83.4 % of the kernel time: 24.9 % of it has one module, 54.4 % is split over the modules "
        "fused in a kernel, by the bytes that each moves, 4.1 % is of fused modules and cannot be split. What it "
        "computes again in the backward takes 4.1 % of the kernel time."
    ) in text


def test_nothing_is_said_of_a_run_without_compiled_code():
    assert lines(eager_run()) == []


def test_what_has_no_module_is_told():
    run = compiled_run()
    nobodys = run.kernels["compiled"].str.startswith("1/extern")
    run.kernels.loc[nobodys, "module"] = "(unattributed)"
    run.nodes.loc[run.nodes["op"] == "aten::mm.default", "module"] = "(unattributed)"

    assert "8.3 % of it has one module" in lines(run)[0]
    assert lines(run)[0].endswith(", 16.6 % is of no module.")


def test_a_trace_without_cuda_graphs_says_so_and_a_region_why_its_modules_have_no_times():
    run = compiled_run()
    run.passes["trace"].facts |= {"without_cuda_graphs": True, "hidden": [""]}
    run.graphs.loc[0, "unmapped"] = "operators that the graph has not: mul_3"

    said = lines(run)

    assert said[0] == "The step runs in CUDA graphs; the traced one ran the same kernels without them."
    assert said[-2:] == [
        "Not all kernels of graph 0, forward (net.py:14), could be given to operators: operators that the graph has "
        "not: mul_3.",
        "Modules inside (root) cannot be told apart and have no times.",
    ]


def test_a_trace_that_did_not_look_into_compiled_code_says_so():
    run = compiled_run()
    run.nodes = table("nodes", [])
    run.kernels["compiled"] = ""

    assert lines(run) == ["Compiled code was not looked into: modules that it hides have no times."]


@pytest.mark.parametrize("format", ["tree", "csv", "json", "table"])
def test_times_that_are_not_known_are_empty_in_every_format(format):
    run = compiled_run()
    run.passes["trace"].facts["hidden"] = [""]

    text = render(run, format, View(width=200))

    if format == "csv":
        head, *rows = [line.split(",") for line in text.splitlines()]
        fc = dict(zip(head, next(row for row in rows if row[0] == "fc"), strict=True))
        assert (fc["time_forward_s"], fc["time_recompute_s"], fc["time_backward_s"], fc["kernel_mfu"]) == (
            "",
            "",
            "",
            "",
        )
        assert fc["flops_forward"] == "1000"
    elif format == "json":
        fc = next(row for row in json.loads(text) if row["module"] == "fc")
        assert fc["time_forward_s"] is None
    else:
        fc = next(line for line in text.splitlines() if line.strip("├─└ │").startswith("fc"))
        assert fc.split()[-4:] == ["-"] * 4


def test_layers_of_which_one_is_not_known_have_no_mean():
    run = compiled_run()
    for frame in (run.tree, run.ops, run.nodes, run.kernels):
        frame["module"] = frame["module"].replace({"fc": "0", "head": "1"})
    run.tree["class"] = run.tree["class"].replace({"LayerNorm": "Linear"})
    run.ops = run.ops[run.ops["module"].isin(["0", "1"])].copy()
    for name in ("flops_causal", "flops_full", "flops_hardware"):
        run.ops.loc[:, name] = 100
    run.nodes = table("nodes", [])
    run.kernels = run.kernels[run.kernels["module"] != "0"].copy()

    text = render(run, "tree", View(width=120))

    folded = next(line for line in text.splitlines() if "2 x Linear" in line)
    assert folded.split()[-4:] == ["-"] * 4


def test_kernels_for_people_have_owners_figures_and_rates():
    text = render(compiled_run(), "table", View(by="kernel", width=120))

    gelu = next(line for line in text.splitlines() if line.startswith("triton_poi"))
    assert words(gelu) == "triton_poi_fused_gelu_0 act 66.7 %, act… 30.00 ns 0 96 B - 3.200 GB/s 12.4 % 1"
    assert "Owners are the modules that a kernel has work of" in text


def test_kernels_for_machines_have_owners_in_full():
    text = render(compiled_run(), "csv", View(by="kernel"))

    assert text.splitlines()[3].startswith('triton_poi_fused_gelu_0,"act 66.7 %, act (recompute) 33.3 %",')


def test_the_page_has_a_section_on_compilation():
    page = render_page(compiled_run())

    assert 'id="compilation"' in page
    assert "forward (net.py:14)" in page
    assert ">act 66.7 %, act (recompute) 33.3 %</td>" in page
    assert 'id="compilation"' not in render_page(eager_run())


def slices(run, category):
    events = json.loads(render(run, "perfetto"))["traceEvents"]
    return [event for event in events if event.get("cat") == category]


def test_a_fused_kernel_is_one_slice_that_lists_its_modules():
    kernels = slices(compiled_run(), "kernel")

    assert len(kernels) == 9
    assert kernels[0]["args"] == {
        "op": "inductor::fused_native_layer_norm_gelu", "shapes": "", "norm in the forward, us": 0.067,
        "act in the forward, us": 0.034,
    }  # fmt: skip
    assert (kernels[0]["dur"], kernels[1]["args"]["flops of the call"]) == (0.101, 1000)


def test_modules_along_time_have_their_parts():
    modules = slices(compiled_run(), "module")

    norm, act = (next(one for one in modules if one["args"]["module"] == name) for name in ("norm", "act"))
    assert (norm["ts"], norm["dur"], act["ts"], act["dur"]) == (0, 0.067, 0.067, 0.034)
    root = next(one for one in modules if one["args"]["module"] == "(root)")
    assert (root["args"]["kernels"], root["args"]["flops"]) == (3, 1400)


def test_where_hardware_flops_are_not_known_there_is_no_hfu():
    """A product ran outside compiled code that was not counted there: whose it is, or what, nobody knows."""
    run = compiled_run()
    run.kernels.loc[run.kernels["module"] == "head", "shapes"] = "7x7 7x7"

    sums = totals(run)

    assert (sums["flops_hardware"], sums["hfu"]) == (None, None)
    assert sums["mfu"] == pytest.approx(0.14)
    assert run.modules()["flops_hardware"].isna().all()
    assert by_phase(run)["flops_hardware"].isna().all()
    assert budget(run).hfu is None
    text = words(render(run, "tree", View(width=120)))
    assert "hardware -; vector" in text
    assert "MFU 14.0 %, HFU - of datasheet" in text
