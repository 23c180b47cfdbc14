"""A recording becomes a run: whose work each kernel is, which step it is of, what it cost. Recordings made by hand."""

import json

import pandas as pd
import pytest
from traces.recording import Recording

import gpuprof
from gpuprof.analysis.comparison import workload_key
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.ranks import by_rank
from gpuprof.analysis.totals import totals
from gpuprof.analysis.untold import untold
from gpuprof.errors import GpuprofError
from gpuprof.render import render
from gpuprof.render.view import View

M, K, N = 64, 256, 128
FORWARD = 2 * M * K * N
FLOATS = ["float"] * 3


def training_step(t, begin, busy=100.0):
    """A linear layer in a net: forward, backward on autograd's thread, and a fused optimizer without an operator."""
    at = begin + 100
    t.module("Net_0", at, at + 100).module("Linear_0", at + 10, at + 90)
    number = 5 + int(begin)
    t.op("aten::linear", at + 20, at + 80, [[M, K], [N, K], [N]], FLOATS, number=number)
    t.op("aten::addmm", at + 30, at + 70, [[N], [M, K], [K, N], [], []], [*FLOATS, "Scalar", "Scalar"],
         ["", "", "", "1", "1"], number=number)  # fmt: skip
    t.kernel("ampere_sgemm_128x64_tn", at + 40, begin + 300, begin + 300 + busy)
    t.node("AddmmBackward0", number, begin + 250, begin + 300)
    t.op("aten::mm", begin + 260, begin + 290, [[K, M], [M, N]], FLOATS[:2], ["", ""], tid=11)
    t.kernel("ampere_sgemm_128x64_nt", begin + 270, begin + 300 + busy, begin + 300 + 2 * busy, tid=11)
    t.node("torch::autograd::AccumulateGrad", None, begin + 300, begin + 320)
    t.op(
        "aten::add_",
        begin + 305,
        begin + 315,
        [[K, N], [K, N], []],
        ["float", "float", "Scalar"],
        ["", "", "1"],
        tid=11,
    )
    t.kernel("elementwise", begin + 310, begin + 300 + 2 * busy, begin + 310 + 2 * busy, tid=11)
    t.label("Optimizer.step#AdamW.step", begin + 400, begin + 450)
    t.kernel("fused_adam", begin + 420, begin + 310 + 2 * busy, begin + 330 + 2 * busy)


@pytest.fixture
def recording():
    t = Recording()
    for number, busy in enumerate((100.0, 110.0, 150.0)):
        t.step(number, number * 1000, number * 1000 + 1000)
        training_step(t, number * 1000, busy)
    return t


def places(run):
    kernels = run.kernels
    return list(zip(kernels["kernel"], kernels["module"], kernels["phase"], kernels["op"], strict=True))


def test_whose_work_each_kernel_is(recording, tmp_path):
    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"), step=0)

    assert places(run) == [
        ("ampere_sgemm_128x64_tn", "Net_0.Linear_0", "forward", "aten::addmm"),
        ("ampere_sgemm_128x64_nt", "Net_0.Linear_0", "backward", "aten::mm"),
        ("elementwise", "Net_0.Linear_0", "backward", "aten::add_"),
        ("fused_adam", "(unattributed)", "optimizer", "Optimizer.step#AdamW.step"),
    ]
    assert run.kernels["start_ns"].tolist() == [0, 100_000, 200_000, 210_000]
    assert run.kernels["duration_ns"].tolist() == [100_000, 100_000, 10_000, 20_000]
    assert run.kernels["shapes"].tolist() == [f"{N} {M}x{K} {K}x{N}", f"{K}x{M} {M}x{N}", f"{K}x{N} {K}x{N}", ""]
    assert run.tree[["module", "class", "calls"]].values.tolist() == [
        ["", "(recording)", 1], ["Net_0", "Net", 1], ["Net_0.Linear_0", "Linear", 1],
    ]  # fmt: skip
    assert (run.workload["name"], run.workload["mode"], run.workload["dtype"]) == ("Net", "train", "float32")


def test_of_several_steps_the_median_one_with_each_as_a_sample(recording, tmp_path):
    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"))

    # from the first kernel of a step to that of the next, the last to the end of its kernels
    assert run.samples["time_s"].tolist() == [1000e-6, 1000e-6, 330e-6]
    assert run.passes["trace"].facts["step"] == 0  # 330, 1000, 1000: the first of those of the median
    assert totals(run)["step_s"] == 1000e-6
    assert totals(run)["flops"] == 2 * FORWARD


def test_the_step_that_is_asked_for(recording, tmp_path):
    path = recording.save(tmp_path / "trace.json")

    run = gpuprof.read_trace(path, step=2)

    assert run.samples["time_s"].tolist() == [330e-6]
    assert run.kernels["duration_ns"].sum() == 330_000
    with pytest.raises(GpuprofError, match="no step 7: there are 0, 1, 2; or take --step all"):
        gpuprof.read_trace(path, step=7)


def test_all_is_the_whole_window_as_one_step(recording, tmp_path):
    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"), step="all")

    assert run.samples["time_s"].tolist() == [2330e-6]  # from 300 to 2,630 us
    assert totals(run)["flops"] == 6 * FORWARD
    assert len(run.kernels) == 12


def test_flops_and_mfu_of_a_step(recording, tmp_path):
    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"), step=0)
    sums, modules = totals(run), by_module(run).set_index("module")

    assert (sums["flops_forward"], sums["flops_backward"]) == (FORWARD, FORWARD)
    assert sums["mfu"] == pytest.approx(2 * FORWARD / 1000e-6 / 66.9e12, rel=1e-3)
    linear = modules.loc["Net_0.Linear_0"]
    assert linear["flops_per_s_forward"] == pytest.approx(FORWARD / 100e-6)
    assert linear["flops_per_s_backward"] == pytest.approx(FORWARD / 110e-6)


def test_kernels_launched_before_the_window_are_of_no_step(recording, tmp_path):
    recording.kernel("early", None, 10.0, 250.0, correlation=3)

    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"), step="all")

    assert "early" not in set(run.kernels["kernel"])
    facts = run.passes["trace"].facts
    assert (facts["early_kernels"], facts["early_ns"], facts["all_ns"]) == (1, 240_000, 240_000 + 90_000 + 720_000)


def test_kernels_of_a_graph_share_its_launch(recording, tmp_path):
    recording.kernel("in_graph", 440, 650, 655, call="cudaGraphLaunch", correlation=77)
    recording.kernel("in_graph_too", None, 655, 660, correlation=77)

    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"), step=0)

    assert places(run)[4:] == [
        ("in_graph", "(unattributed)", "optimizer", "cudaGraphLaunch"),
        ("in_graph_too", "(unattributed)", "optimizer", "cudaGraphLaunch"),
    ]
    assert run.passes["trace"].facts["graph_ns"] == 10_000


def test_what_a_checkpoint_runs_again_is_recompute(recording, tmp_path):
    """In a node that has operators without a number, those with one make nodes: a forward."""
    t = Recording()
    t.step(0, 0, 1000)
    t.node("MmBackward0", 5, 100, 200)
    t.op("aten::mm", 110, 120, [[M, K], [K, N]], number=9, tid=11)
    t.kernel("again", 115, 300, 310, tid=11)
    t.op("aten::mm", 130, 140, [[K, M], [M, N]], tid=11)
    t.kernel("gradient", 135, 310, 320, tid=11)
    t.op("aten::mm", 20, 30, [[M, K], [K, N]], number=5)
    t.kernel("forward", 25, 290, 300)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert [(row[0], row[2]) for row in places(run)] == [
        ("forward", "forward"), ("again", "recompute"), ("gradient", "backward"),
    ]  # fmt: skip
    assert totals(run)["flops_recompute"] == FORWARD


def test_a_backward_that_is_to_be_differentiated_is_no_recompute(tmp_path):
    t = Recording()
    t.node("MmBackward0", 5, 100, 200)
    t.op("aten::mm", 130, 140, [[K, M], [M, N]], number=9, tid=11)
    t.kernel("gradient", 135, 310, 320, tid=11)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert [row[2] for row in places(run)] == ["backward"]


def test_a_gradient_of_a_gradient_is_of_the_module_whose_node_made_it(tmp_path):
    """Both threads number their nodes from 5 on; the profiler calls the main one 1 and autograd's 2."""
    t = Recording()
    t.module("Net_0", 0, 50).module("Linear_0", 5, 20)
    t.op("aten::mm", 10, 15, number=5).op("aten::sum", 30, 35, number=6)
    t.node("MmBackward0", 5, 100, 200, thread=1)
    t.op("aten::mm", 130, 140, number=5, tid=11)
    t.node("MmBackward0", 5, 300, 400, thread=2)
    t.op("aten::mm", 330, 340, tid=11)
    t.node("SumBackward0", 6, 500, 600, thread=1)
    t.op("aten::expand_copy", 530, 540, tid=11)
    for at, name in (12, "forward"), (135, "gradient"), (335, "of_gradient"), (535, "sum"):
        t.kernel(name, at, 1000 + at, 1010 + at, tid=10 if at < 100 else 11)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert [row[:3] for row in places(run)] == [
        ("forward", "Net_0.Linear_0", "forward"),
        ("gradient", "Net_0.Linear_0", "backward"),
        ("of_gradient", "Net_0.Linear_0", "backward"),
        ("sum", "Net_0", "backward"),
    ]


def test_replicas_of_a_model_number_their_nodes_alike(tmp_path):
    """Each in a thread of its own, their losses added up by the main one, whose numbers they have too."""
    t = Recording()
    for tid, name in (23, "third"), (21, "first"), (22, "second"):  # as a file lists them: in no order
        t.label(name, tid * 10, tid * 10 + 9, tid=tid)
        t.op("aten::mm", tid * 10 + 1, tid * 10 + 4, number=4, tid=tid)
        t.op("aten::sum", tid * 10 + 5, tid * 10 + 8, number=5, tid=tid)
    t.op("aten::add", 250, 255, number=5)
    t.node("AddBackward0", 5, 300, 310, thread=1)
    for thread, name in (7, "first"), (8, "second"), (9, "third"):
        t.node("MmBackward0", 4, thread * 100, thread * 100 + 50, thread=thread)
        t.op("aten::mm", thread * 100 + 10, thread * 100 + 40, tid=11)
        t.kernel(f"of_{name}", thread * 100 + 20, 1000 + thread * 10, 1005 + thread * 10, tid=11)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert [row[:2] for row in places(run)] == [("of_first", "first"), ("of_second", "second"), ("of_third", "third")]


@pytest.mark.parametrize("scope", ["module", "label", "none"])
def test_what_an_optimizer_is_given_to_call_is_no_optimizer(tmp_path, scope):
    """As Lightning does: forward and backward run in the optimizer's step, and what it does itself makes no nodes."""
    t = Recording()
    t.label("Optimizer.step#SAM.step", 0, 500).label("Optimizer.step#AdamW.step", 1, 18)  # one calls the other
    if scope == "module":
        t.module("Net_0", 20, 100)
    elif scope == "label":
        t.label("training_step", 20, 100)
    t.op("aten::zero_", 5, 15, number=-1)
    t.op("aten::mm", 30, 80, [[M, K], [K, N]], number=9)
    t.node("MmBackward0", 9, 200, 300)
    t.op("aten::mm", 220, 280, [[K, M], [M, N]], tid=11)
    t.op("aten::add_", 400, 420, number=9)  # of an optimizer of somebody's who does without no_grad
    for at, name in (10, "zero"), (40, "product"), (250, "gradient"), (410, "step"), (450, "fused"):
        t.kernel(name, at, 1000 + at, 1010 + at, tid=11 if at == 250 else 10)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert [(kernel, phase) for kernel, _, phase, _ in places(run)] == [
        ("zero", "optimizer"), ("product", "forward"), ("gradient", "backward"), ("step", "optimizer"),
        ("fused", "optimizer"),
    ]  # fmt: skip
    sums = totals(run)
    assert (sums["flops_forward"], sums["flops_backward"], sums["flops"]) == (FORWARD, FORWARD, 2 * FORWARD)


def test_a_step_begins_on_the_main_stream_where_another_runs_ahead(tmp_path):
    """Step 1 has a kernel of its own stream long before step 0, which waits for the device, begins."""
    t = Recording()
    for number in range(3):
        t.step(number, number * 100, number * 100 + 100)
        for at in (10, 30):
            t.kernel("gemm", number * 100 + at, 5000 + number * 1000 + 10 * at, 5050 + number * 1000 + 10 * at)
    t.kernel("ahead", 150, 200, 4000, stream=9)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert run.samples["time_s"].tolist() == pytest.approx([1000e-6, 1000e-6, 250e-6])


def test_of_ranges_of_the_same_microseconds_the_one_called_first_is_around_the_other(tmp_path):
    t = Recording()
    for number, name in (8, "Linear_0"), (7, "Sequential_0"), (3, "Net_0"):
        t.add("python_function", f"nn.Module: {name}", 0, 10, **{"Python id": number})
    t.op("aten::mm", 2, 8, [[M, K], [K, N]])
    t.kernel("gemm", 5, 20, 30)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert places(run) == [("gemm", "Net_0.Sequential_0.Linear_0", "forward", "aten::mm")]


def test_ranks_are_held_against_one_another_by_the_numbers_of_their_steps(recording, tmp_path):
    """Rank 1 was recorded for step 1 alone; without steps there is no rate, and no mixing of both."""
    one, none = (Recording(distributedInfo={"backend": "nccl", "rank": 1, "world_size": 2}) for _ in range(2))
    one.step(1, 0, 1000)
    training_step(one, 0, busy=130.0)
    training_step(none, 0)
    first, second, third = (t.save(tmp_path / f"{at}.json") for at, t in enumerate((recording, one, none)))

    ranks = gpuprof.read_trace([first, second]).ranks

    assert sorted(set(zip(ranks["rank"], ranks["step"], strict=True))) == [(0, 0), (0, 1), (0, 2), (1, 1)]
    with pytest.raises(GpuprofError, match="trace of rank 1 has no steps, others have: take --step all"):
        gpuprof.read_trace([first, third])
    recording.events = [event for event in recording.events if not event["name"].startswith("ProfilerStep")]
    alike = by_rank(gpuprof.read_trace([recording.save(first), third]))
    assert alike[["flops_per_s", "mfu"]].isna().all(axis=None)
    assert alike["flops"].tolist() == [6 * FORWARD, 2 * FORWARD]


def test_two_processes_in_one_file_whose_kernels_cannot_be_told_apart(recording, tmp_path):
    recording.add("cuda_runtime", "cudaLaunchKernel", 10, 11, pid=2, correlation=1001)  # as the first of process 1

    with pytest.raises(GpuprofError, match="holds several processes that number their calls alike: give a file of"):
        gpuprof.read_trace(recording.save(tmp_path / "trace.json"))


def test_no_rate_of_what_vmap_runs(tmp_path):
    """The operator is told on one sample; the one inside it, on all, has the kernel."""
    t = Recording()
    t.step(1, 0, 100)
    t.op("aten::mm", 10, 50, [[1, K], [K, N]], FLOATS[:2], ["", ""])
    t.op("aten::mm", 20, 40, [[M, K], [K, N]], FLOATS[:2], ["", ""])
    t.kernel("gemm", 30, 200, 300)

    sums = totals(gpuprof.read_trace(t.save(tmp_path / "trace.json")))

    assert (sums["mfu"], sums["flops_per_s"]) == (None, None)
    assert "under torch.func" in sums["withheld"]


def test_a_copy_to_another_device_makes_it_none_of_those_that_computed(recording, tmp_path):
    recording.header["deviceProperties"].append({"id": 1, "name": "NVIDIA A100-SXM4-80GB"})
    recording.add("gpu_memcpy", "Memcpy PtoP", 350, 360, 8, 1, device=1, stream=8, correlation=1001)

    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"), step=0)

    assert run.device["name"] == "NVIDIA H100 80GB HBM3"
    assert totals(run)["mfu"] == pytest.approx(2 * FORWARD / 1000e-6 / 66.9e12, rel=1e-3)


def test_labels_are_scopes_where_there_are_no_modules(tmp_path):
    t = Recording()
    t.label("## forward.sparse ##", 0, 100).label("enumerate(DataLoader)#next", 50, 60)
    t.op("aten::mm", 20, 30, [[M, K], [K, N]])
    t.kernel("gemm", 25, 40, 50)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert places(run) == [("gemm", "## forward_sparse ##", "forward", "aten::mm")]
    assert run.tree["class"].tolist() == ["(recording)", "## forward.sparse ##"]


def test_nothing_of_the_environment_comes_into_a_run(recording, tmp_path):
    planted = "planted-0b1c2d3e4f"
    recording.header |= {"environment": {"TOKEN": planted}, "traceName": planted, "hostname": planted, planted: 1}
    recording.header["distributedInfo"] = {"backend": "nccl", "rank": 0, "world_size": 8, "env": planted}

    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"))

    assert planted not in json.dumps(run.to_dict())


def test_ranks_of_a_job(recording, tmp_path):
    slow = Recording(distributedInfo={"backend": "nccl", "rank": 1, "world_size": 2})
    slow.step(0, 0, 1000)
    training_step(slow, 0, busy=130.0)
    paths = [slow.save(tmp_path / "b.json"), recording.save(tmp_path / "rank0.json")]

    run = gpuprof.read_trace(paths, step=0)

    assert run.kernels["duration_ns"].sum() == 230_000  # the lowest rank's
    compute = run.ranks[run.ranks["quantity"] == "compute_ns"].set_index("rank")["amount"]
    assert compute.to_dict() == {0: 230_000, 1: 290_000}
    with pytest.raises(GpuprofError, match="is of rank 1, as another of these files"):
        gpuprof.read_trace([paths[0], paths[0]])


def test_a_run_of_a_recording_is_saved_and_loaded(recording, tmp_path):
    run = gpuprof.read_trace(recording.save(tmp_path / "trace.json"))

    loaded = gpuprof.load(run.save(tmp_path / "run.json.gz"))

    assert loaded.to_dict() == run.to_dict()


def test_an_operator_of_a_library_around_products_is_composed_of_them(tmp_path):
    t = Recording()
    t.op("vllm::unquantized_gemm", 0, 100, [[M, K], [N, K]])
    t.op("aten::mm", 20, 30, [[M, K], [K, N]], FLOATS[:2], ["", ""])
    t.kernel("gemm", 25, 40, 50)
    t.op("vllm::fused_moe", 100, 200, [[M, K]])
    t.op("aten::empty", 120, 130, [[], []], ["", ""], ["", ""])
    t.kernel("fused", 150, 160, 170)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert [row[3] for row in places(run)] == ["aten::mm", "vllm::fused_moe"]
    assert totals(run)["flops_forward"] == FORWARD
    assert run.passes["count"].facts["ops_without_rule"] == ["vllm::fused_moe"]


@pytest.mark.parametrize("inside", ["aten::mm", "aten::convolution_overrideable", "aten::_cudnn_rnn"])
def test_a_library_s_operator_leaves_its_kernels_to_the_product_inside(inside, tmp_path):
    t = Recording()
    t.op("library::layer", 0, 100, [[M, K]])
    t.op(inside, 20, 30, [[M, K]])
    t.kernel("kernel", 25, 40, 50)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert list(run.kernels["op"]) == [inside]


def test_gradients_that_are_sent_are_no_module_s(tmp_path):
    t = Recording()
    training_step(t, 0)
    t.op("c10d::allreduce_", 312, 314, [[[K, N]]], ["TensorList"], tid=11)
    t.kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 313, 520, 540, tid=11, stream=20)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    sent = ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "(gradient all-reduce)", "backward")
    assert sent in [row[:3] for row in places(run)]


@pytest.mark.parametrize("peak", [-1.0, 0.0, float("inf"), float("nan")])
def test_a_peak_that_can_be_none_is_refused(peak, tmp_path):
    t = Recording()
    t.op("aten::mm", 0, 10, [[M, K], [K, N]])

    with pytest.raises(gpuprof.GpuprofError, match="--peak-tflops must be above 0 and finite"):
        gpuprof.read_trace(t.save(tmp_path / "trace.json"), peak_tflops=peak)


def test_all_steps_as_one_are_another_workload_than_each(recording, tmp_path):
    path = recording.save(tmp_path / "trace.json")
    one, another, whole = (workload_key(gpuprof.read_trace(path, step=step)) for step in (0, 2, "all"))

    assert one == another == workload_key(gpuprof.read_trace(path))
    assert whole != one


def test_a_recording_of_a_cpu_names_no_device_and_no_threads(tmp_path):
    t = Recording(name=None)
    t.op("aten::mm", 0, 100, [[M, K], [K, N]], FLOATS[:2], ["", ""])

    said = render(gpuprof.read_trace(t.save(tmp_path / "trace.json")), "tree", View(width=120))

    assert "Device      CPU · 2023-11-14" in " ".join(said.splitlines()).replace("Device       ", "Device      ")
    assert "--device-name" not in said
    assert "None" not in said


def test_a_rule_of_one_s_own_prices_an_operator_of_a_recording(tmp_path):
    t = Recording()
    for number, op in enumerate(("of_a_trace::product", "of_a_trace::by_result")):
        t.op(op, number * 100, number * 100 + 50, [[M, K], [K, N]], FLOATS[:2], ["", ""])
        t.kernel("gemm", number * 100 + 10, number * 100 + 20, number * 100 + 30)
    gpuprof.flop_rule("of_a_trace::product")(lambda a, b, out: 2 * a.shape[0] * a.shape[1] * b.shape[1])
    gpuprof.flop_rule("of_a_trace::by_result")(lambda a, b, out: 2 * a.shape[1] * out.shape[0] * out.shape[1])

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert run.ops.set_index("op")["flops_full"].dropna().to_dict() == {"of_a_trace::product": FORWARD}
    said = "the shape of its result cannot be told from its inputs"
    assert run.passes["count"].facts["ops_unread"] == {"of_a_trace::by_result": said}


def test_attention_that_may_be_causal_is_a_range(tmp_path):
    t = Recording()
    dims = [[1, 2, 4, 8]] * 3
    t.op("aten::_scaled_dot_product_flash_attention", 0, 10, [*dims, [], [], []], ["c10::Half"] * 3 + ["Scalar"] * 3)
    t.kernel("flash_fwd_kernel", 5, 20, 30)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    # 2 heads, 16 pairs of which 10 are not masked, two products of 2 x 8 FLOPs a pair
    assert totals(run)["flops_forward"] == 1024
    assert any("384 FLOPs of it are none if it is" in line for line in untold(run))


def test_a_rank_whose_rates_are_withheld_has_no_flops_among_the_others(recording, tmp_path):
    graphs = Recording(distributedInfo={"rank": 1})
    graphs.step(0, 0, 1000)
    training_step(graphs, 0)
    graphs.kernel("in_graph", 440, 650, 750, call="cudaGraphLaunch")
    paths = [recording.save(tmp_path / "rank0.json"), graphs.save(tmp_path / "rank1.json")]

    table = by_rank(gpuprof.read_trace(paths, step=0))

    assert table["flops"].isna().tolist() == [False, True]
    assert table["mfu"].isna().tolist() == [False, True]


def test_vector_flops_that_no_file_tells_are_no_part_of_the_sum_and_said(tmp_path):
    t = Recording()
    t.op("aten::mm", 0, 10, [[M, K], [K, N]], FLOATS[:2], ["", ""])
    t.kernel("gemm", 5, 20, 30)
    t.op("aten::gelu", 10, 20, [[M, N], []], ["float", ""], ["", ""])
    t.kernel("gelu", 15, 30, 40)

    run = gpuprof.read_trace(t.save(tmp_path / "trace.json"))

    assert "; vector operators of unknown FLOPs\n" in render(run, "tree", View(width=200))
    nobodys = by_module(run).set_index("module").loc["(unattributed)"]
    assert pd.isna(nobodys["vector_flops_forward"])
    assert nobodys["flops_forward"] == FORWARD


def test_batches_of_a_server_are_prefill_decode_or_both(tmp_path):
    t = Recording()
    batches = (
        "execute_context_2(96_4608)_generation_0(0)",
        "execute_8_context_0(sq0sk0sqsq0sqsk0)_generation_8(sq8sk99sqsq8sqsk99)",
        "execute_context_1(5_25)_generation_3(3)",
    )
    for place, name in enumerate(batches):
        at = 1000 * place
        t.label(name, at, at + 500)
        for begin in (at + 10, at + 600):  # in the batch, and after it
            t.op("aten::mm", begin, begin + 40, [[M, K], [K, N]], FLOATS[:2], ["", ""])
            t.kernel("ampere_sgemm_128x64_nn", begin + 10, begin + 700, begin + 710)
    run = gpuprof.read_trace(t.save(tmp_path / "served.json"), step="all")

    assert run.kernels["phase"].tolist() == ["prefill", "forward", "decode", "forward", "forward", "forward"]
    assert dict(run.ops.groupby("phase")["flops_causal"].sum()) == {
        "prefill": FORWARD, "decode": FORWARD, "forward": 4 * FORWARD,
    }  # fmt: skip
    assert totals(run)["flops_forward"] == 6 * FORWARD
