"""Recordings of compiled code: regions, fused kernels, and what stays unknown. Recorded on a CPU, and made by hand."""

import gzip
import json
from pathlib import Path

import pytest
from traces.recording import Recording

import gpuprof
from gpuprof.analysis.known_flops import priced_share
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.totals import totals
from gpuprof.analysis.unpriced import ratio_withheld
from gpuprof.analysis.untold import untold

DATA = Path(__file__).parent / "data" / "compiled"
REGION = "Torch-Compiled Region: 0/0"
BLOCK = 2 * 2 * (8 * 16) * 64 * 256  # FLOPs of one forward of a block: two products of 128 rows, 64 by 256


def nested(name, number):
    """Events of a step by start, each with the names of those around it."""
    events = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))["traceEvents"]
    step = next(e for e in events if e["name"] == f"ProfilerStep#{number}")
    events.sort(key=lambda e: (e["ts"], -e["dur"]))
    around, found = [], []
    for event in events:
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        if step["ts"] <= event["ts"] < step["ts"] + step["dur"]:
            found.append((event, [e["name"] for e in around]))
        around.append(event)
    return found


def operators(events, *around):
    """Outermost operators that are directly in ranges whose names begin so, and their nanoseconds."""
    rows = [
        event
        for event, names in events
        if event["name"].startswith(("aten::", "graph_")) and names and names[-1].startswith(around)
    ]
    return len(rows), sum(round(row["dur"] * 1000) for row in rows)


def times(run, path):
    row = by_module(run).set_index("module").loc[path]
    return round(row["time_forward_s"] * 1e9), round(row["time_backward_s"] * 1e9)


def test_a_region_is_a_scope_with_its_forward_and_its_backward():
    run = gpuprof.read_trace(DATA / "whole-net.json.gz", step=1)
    events = nested("whole-net", 1)
    path = f"model.{REGION}"
    forward, forward_ns = operators(events, "CompiledFunction", "## Call CompiledFxGraph fup")
    # gradients of its parameters are taken in nodes that follow
    backward, backward_ns = operators(events, "## Call CompiledFxGraph f4q", "torch::autograd::AccumulateGrad")
    kernels = run.kernels[run.kernels["module"] == path]

    assert list(run.tree["module"]) == ["", "model", path]
    assert (forward, backward) == (5 + 5 + 1, 10 + 7 + 14)  # products, fused kernels; a view, gradients
    assert kernels.groupby("phase")["duration_ns"].agg(["count", "sum"]).to_numpy().tolist() == [
        [backward, backward_ns],
        [forward, forward_ns],
    ]
    assert times(run, path) == (forward_ns, backward_ns)
    regions = run.passes["trace"].facts["regions"]
    assert list(regions) == [path]
    assert {direction: [key[:3] for key in keys] for direction, keys in regions[path].items()} == {
        "forward": ["fup"],
        "backward": ["f4q"],
    }
    inside = (forward_ns + backward_ns) / run.kernels["duration_ns"].sum()
    assert (
        f"{100 * inside:.1f} % of the kernel time is in 1 compiled region: modules inside are unknown; gpuprof profile "
        "--compile tells them."
    ) in untold(run)


def test_fused_kernels_are_operators_by_what_is_fused_in_them():
    run = gpuprof.read_trace(DATA / "whole-net.json.gz", step=1)
    generated = [event for event, _ in nested("whole-net", 1) if event["name"].startswith("graph_")]
    ops = by_op(run).set_index("op")
    rows = ops[ops.index.str.startswith("inductor::")]

    assert len(generated) == 12
    assert rows["calls"].sum() == rows["kernels"].sum() == 12
    assert round(rows["time_s"].sum() * 1e9) == sum(round(event["dur"] * 1000) for event in generated)
    assert set(rows["kind"]) == {"vector"}
    assert list(rows["flops"]) == [0] * len(rows)
    assert rows["vector_flops"].isna().all()
    # the same work in two places of the forward
    gelu = [event for event in generated if event["name"] == "graph_0_cpp_fused_gelu_view_1"]
    assert len(gelu) == rows.loc["inductor::fused_gelu_view", "calls"] == 2
    assert "inductor::fused_gelu_gelu_backward_sum_view" in rows.index
    assert not any("without shapes" in sentence for sentence in untold(run))
    head = 2 * 128 * 64 * 10
    assert totals(run)["flops_forward"] == 2 * BLOCK + head
    assert priced_share(run) == 1.0


def test_regions_are_below_the_modules_that_are_compiled():
    run = gpuprof.read_trace(DATA / "blocks.json.gz", step=1)
    events = nested("blocks", 1)
    modules = by_module(run).set_index("module")

    assert run.workload["name"] == "Net"
    assert list(modules.index) == [
        "", "Net_0", "Net_0.Block_0", f"Net_0.Block_0.{REGION}", "Net_0.Block_1",
        "Net_0.Block_1.Torch-Compiled Region: 0/1", "Net_0.Linear_0", "(unattributed)",
    ]  # fmt: skip
    for block, keys in ((0, ("fee", "f5k")), (1, ("fj6", "ffx"))):
        forward_ns, backward_ns = (operators(events, f"## Call CompiledFxGraph {key}")[1] for key in keys)
        path = f"Net_0.Block_{block}.Torch-Compiled Region: 0/{block}"
        row = modules.loc[path]
        assert (row["flops_forward"], row["flops_backward"]) == (BLOCK, 2 * BLOCK)
        kernels = run.kernels[run.kernels["module"] == path]
        assert kernels.loc[kernels["phase"] == "forward", "duration_ns"].sum() == forward_ns
        taken = kernels["kernel"].isin(["aten::detach", "aten::add_"])
        assert kernels.loc[(kernels["phase"] == "backward") & ~taken, "duration_ns"].sum() == backward_ns
        assert times(run, f"Net_0.Block_{block}") == times(run, path)


def test_what_a_graph_break_leaves_to_python_stays_where_the_model_has_it():
    run = gpuprof.read_trace(DATA / "graph-break.json.gz", step=1)
    modules = by_module(run).set_index("module")

    assert list(modules.index[:-1]) == [
        "", "Net_0", f"Net_0.{REGION}", "Net_0.Head_0", "Net_0.Head_0.Linear_0", "Net_0.Torch-Compiled Region: 1/0",
    ]  # fmt: skip
    rows = 64
    assert modules["flops_forward"].tolist()[1:6] == [
        2 * rows * (16 * 32 + 32 * 8 + 8 * 4), 2 * rows * 16 * 32, 2 * rows * 32 * 8, 2 * rows * 32 * 8,
        2 * rows * 8 * 4,
    ]  # fmt: skip
    # the first region needs no gradient of its input, the second does
    assert modules.loc[f"Net_0.{REGION}", "flops_backward"] == 2 * rows * 16 * 32
    assert modules.loc["Net_0.Torch-Compiled Region: 1/0", "flops_backward"] == 4 * rows * 8 * 4
    events = nested("graph-break", 1)
    (_, forward_ns), (_, later_ns) = (operators(events, f"## Call CompiledFxGraph {key}") for key in ("fo3", "fev"))
    assert times(run, f"Net_0.{REGION}")[0] == forward_ns
    assert times(run, "Net_0.Torch-Compiled Region: 1/0")[0] == later_ns


def test_fused_kernels_without_events_are_time_that_is_said():
    run = gpuprof.read_trace(DATA / "without-kernels.json.gz", step=1)
    events = nested("without-kernels", 1)
    whole = sum(round(e["dur"] * 1000) for e, _ in events if e["name"].startswith("## Call CompiledFxGraph"))
    _, in_operators = operators(events, "## Call CompiledFxGraph")

    assert run.passes["trace"].facts["unseen_ns"] == whole - in_operators > 0
    assert not run.ops["op"].str.startswith("inductor::").any()
    said = [sentence for sentence in untold(run) if "outside its operators" in sentence]
    assert said == [
        f"Compiled code took {(whole - in_operators) / 1000:.0f} us outside its operators: kernels fused for a CPU are "
        "recorded where torch._inductor.config.cpp.enable_kernel_profile was set when they were compiled."
    ]


BFLOATS = ["c10::BFloat16"] * 3
DIMS = [[512, 256], [256, 1024], [512, 1024]]


def on_a_gpu(*kernels, key="fabc"):
    """A step whose label calls a region: a product of cuBLAS of 100 us, and generated kernels of 50 us each."""
    t = Recording()
    t.step(0, 0, 10_000).label("encoder", 90, 1000)
    t.op("Torch-Compiled Region: 3/1", 100, 900).op("CompiledFunction", 110, 890, number=7)
    t.label(f"## Call CompiledFxGraph {key} ##", 120, 880)
    t.op("aten::mm", 130, 150, DIMS[:2], BFLOATS[:2], ["", ""])
    t.kernel("nvjet_tst_128x256_64x4_TNT", 140, 2000, 2100)
    for place, name in enumerate(kernels):
        t.op(name, 200 + 40 * place, 230 + 40 * place, DIMS, BFLOATS, ["", "", ""])
        t.kernel(name, 210 + 40 * place, 2200 + 100 * place, 2250 + 100 * place, call="cuLaunchKernel")
    return t


def test_a_pointwise_kernel_of_triton_multiplies_nothing(tmp_path):
    run = gpuprof.read_trace(
        on_a_gpu("triton_poi_fused_addmm_gelu_0", "triton_per_fused_native_layer_norm_1").save(tmp_path / "t.json")
    )
    ops = by_op(run).set_index("op")
    assert dict(ops["kind"]) == {
        "aten::mm": "matmul", "inductor::fused_addmm_gelu": "vector", "inductor::fused_native_layer_norm": "vector",
    }  # fmt: skip
    assert priced_share(run) == 1.0
    assert set(run.kernels["module"]) == {"encoder.Torch-Compiled Region: 3/1"}
    assert run.kernels["op"].tolist() == list(ops.index)
    assert run.kernels["kernel"].tolist()[1] == "triton_poi_fused_addmm_gelu_0"
    flops = 2 * 512 * 256 * 1024
    assert totals(run)["flops_forward"] == flops
    assert run.passes["trace"].facts["regions"] == {"encoder.Torch-Compiled Region: 3/1": {"forward": ["fabc"]}}
    assert not any("no operator" in sentence or "without FLOPs" in sentence for sentence in untold(run))


def test_a_template_multiplies_what_nobody_knows(tmp_path):
    t = on_a_gpu("triton_tem_fused_mm_relu_0", "triton_tem_fused_flex_attention_1")
    run = gpuprof.read_trace(t.save(tmp_path / "t.json"))
    ops = by_op(run).set_index("op")
    assert ops.loc["inductor::template_mm_relu", "kind"] == "matmul"
    assert ops.loc["inductor::template_flex_attention", "kind"] == "attention"
    assert ops.loc[["inductor::template_mm_relu", "inductor::template_flex_attention"], "flops"].isna().all()
    assert priced_share(run) == 100 / (100 + 50 + 50)
    assert run.passes["count"].facts["ops_unread"] == dict.fromkeys(
        ["inductor::template_mm_relu", "inductor::template_flex_attention"],
        "the sizes of what its template multiplies are not recorded",
    )
    assert ratio_withheld(run).startswith("withheld: of inductor::template_")
    assert "50.0 % of the matmul kernel time is of kernels whose FLOPs are not known" in " ".join(untold(run))


def test_a_product_that_may_have_become_a_sum_is_said(tmp_path):
    t = on_a_gpu("triton_red_fused_mm_silu_0", "triton_per_fused_addmm_native_layer_norm_1", "triton_poi_fused_mm_2")
    said = [sentence for sentence in untold(gpuprof.read_trace(t.save(tmp_path / "t.json"))) if "as a sum" in sentence]
    assert said == [
        "20.0 % of the kernel time is of triton_red_fused_mm_silu_0: where a compiler wrote a product out as a sum, "
        "its FLOPs are in no count."
    ]


def test_a_kernel_that_only_moves_is_movement(tmp_path):
    run = gpuprof.read_trace(on_a_gpu("triton_poi_fused__to_copy_clone_0").save(tmp_path / "t.json"))
    row = by_op(run).set_index("op").loc["inductor::fused__to_copy_clone"]
    assert (row["kind"], row["flops"], row["vector_flops"]) == ("movement", 0, 0)


def test_kernels_of_earlier_torch_have_no_call(tmp_path):
    """In files of torch 2.0 and 2.1 no event on the host has a kernel's name."""
    t = Recording().step(0, 0, 10_000).label("encoder", 90, 1000).op("CompiledFunction", 110, 890, number=7)
    t.kernel("triton_poi_fused_gelu_2", 200, 2000, 2050, call="cuLaunchKernel")
    t.kernel("triton__0d1d2d", 210, 2050, 2090, call="cuLaunchKernel")
    t.kernel("triton_poi_fused_add_3", 300, 2100, 2130, call="cudaGraphLaunch")
    t.op("aten::sum", 1100, 1110, [[8]], ["float"], [""])
    t.node("CompiledFunctionBackward", 7, 3000, 3100)
    t.kernel("triton_poi_fused_gelu_backward_0", 3010, 3200, 3270, tid=11, call="cuLaunchKernel")
    run = gpuprof.read_trace(t.save(tmp_path / "t.json"))
    rows = run.kernels[["module", "phase", "op", "duration_ns"]]
    assert rows.to_numpy().tolist() == [
        ["encoder.CompiledFunction", "forward", "inductor::fused_gelu", 50_000],
        ["encoder.CompiledFunction", "forward", "inductor::fused", 40_000],
        ["encoder.CompiledFunction", "forward", "cudaGraphLaunch", 30_000],  # as of all in graphs
        ["encoder.CompiledFunction", "backward", "inductor::fused_gelu_backward", 70_000],
    ]
    assert run.passes["trace"].facts["graph_ns"] == 30_000


def test_graphs_alone_are_regions_where_nothing_is_around_them(tmp_path):
    t = Recording().step(0, 0, 10_000).label("## Call CompiledFxGraph fabc ##", 100, 900)
    t.op("triton_poi_fused_gelu_0", 200, 230, DIMS, BFLOATS, ["", "", ""])
    t.kernel("triton_poi_fused_gelu_0", 210, 2200, 2250, call="cuLaunchKernel")
    run = gpuprof.read_trace(t.save(tmp_path / "t.json"))
    assert run.kernels["module"].tolist() == ["## Call CompiledFxGraph fabc ##"]


def test_an_eager_recording_says_nothing_of_regions(tmp_path):
    t = Recording().step(0, 0, 10_000).op("aten::relu", 100, 120, [[8]], ["float"], [""])
    t.kernel("vectorized_elementwise_kernel", 110, 200, 210)
    facts = gpuprof.read_trace(t.save(tmp_path / "t.json")).passes["trace"].facts
    assert not {"compiled", "regions", "unseen_ns"} & facts.keys()


@pytest.mark.parametrize("name", ["whole-net", "blocks", "graph-break", "without-kernels"])
def test_every_part_adds_up(name):
    run = gpuprof.read_trace(DATA / f"{name}.json.gz", step="all")
    modules = by_module(run).set_index("module")
    children = modules[~modules.index.str.contains(".", regex=False) & (modules.index != "")]
    for phase in ("forward", "backward"):
        whole = run.kernels.loc[run.kernels["phase"] == phase, "duration_ns"].sum()
        assert round(children[f"time_{phase}_s"].sum() * 1e9) == whole
