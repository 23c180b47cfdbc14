import gc
import os
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gpuprof
from gpuprof.analysis.kernel_time import kernel_times, union_ns
from gpuprof.passes import kineto_events, trace
from gpuprof.schema import TABLES, UNATTRIBUTED
from gpuprof.traces.events import KERNEL, OPERATOR, RANGE, Event, Events, apart, host_kind
from gpuprof.traces.owners import KernelCall, attribute
from gpuprof.workload import from_module
from gpuprof.workload.training import checkpoint

MAIN, DEVICE_THREAD = 1, 2
STREAM, OTHER_STREAM = 7, 20
COMPOSITE = {"aten::linear", "aten::matmul", "aten::reshape"}


class Timeline:
    """Writes down events; each range lasts until what was written inside it ends."""

    def __init__(self):
        self.events = []
        self.clock = 0
        self.correlation = 0

    def host(self, name, *inside, thread=MAIN, kind=None, **fields):
        """A host event around whatever the functions in ``inside`` write."""
        self.correlation += 1
        own, start, place = self.correlation, self.clock, len(self.events)
        self.clock += 1
        for write in inside:
            write(own)
        self.clock += 1
        self.events.insert(place, Event(name, kind or host_kind(name), thread, start, self.clock, own, **fields))

    def op(self, name, *inside, **fields):
        return lambda _: self.host(name, *inside, **fields)

    def phase(self, name, thread=MAIN):
        self.host(f"gpuprof:phase:{name}", thread=thread)

    def call(self, index, *inside, thread=MAIN):
        return lambda _: self.host(f"gpuprof#{index}", *inside, thread=thread)

    def node(self, name, number, *inside, thread=DEVICE_THREAD, forward_thread=MAIN):
        return lambda _: self.host(
            f"autograd::engine::evaluate_function: {name}",
            *inside,
            thread=thread,
            number=number,
            forward_thread=forward_thread,
        )

    def kernel(self, name, start, end, stream=STREAM):
        """A kernel launched by the host event around."""
        return lambda correlation: self.events.append(
            Event(name, KERNEL, stream, start, end, 5000 + len(self.events), correlation)
        )

    def run(self, *written):
        for write in written:
            write(0)


def attributed(timeline, calls=(), nodes=()):
    """``nodes`` says which module made an autograd node: {(thread, number): module}."""

    def maker(thread, number):
        return dict(nodes).get((thread, number))

    return attribute(*apart(Events.of(timeline.events)), list(calls), maker, COMPOSITE.__contains__)[:3]


def places(kernels):
    return list(zip(kernels["kernel"], kernels["module"], kernels["phase"], kernels["op"], strict=True))


def one_layer(t):
    """Forward of a linear layer on one thread, its backward on another, and an optimizer step."""
    t.phase("forward")
    mm = t.op("aten::mm", t.kernel("gemm", 1000, 1100))
    t.run(t.call(0, t.call(1, t.op("aten::linear", t.op("aten::addmm", mm, shapes=[[2, 3], [3, 4]])))))
    t.phase("backward")
    t.run(
        t.node(
            "AddmmBackward0",
            10,
            t.op(
                "AddmmBackward0",
                t.op("aten::mm", t.kernel("dgrad", 1200, 1300), thread=DEVICE_THREAD),
                t.op("aten::mm", t.kernel("wgrad", 1300, 1400), thread=DEVICE_THREAD),
                thread=DEVICE_THREAD,
            ),
        ),
        t.node("torch::autograd::AccumulateGrad", -1, t.op("aten::add_", t.kernel("add", 1400, 1450), thread=2)),
    )
    t.phase("other")
    t.phase("optimizer")
    t.run(t.op("aten::_foreach_add_", t.kernel("foreach", 1500, 1600)))
    t.phase("other")
    return t


ONE_LAYER = {"calls": [("", False), ("fc", False)], "nodes": {(MAIN, 10): "fc"}}


def test_every_kernel_goes_to_its_module_phase_and_operator():
    kernels, _, facts = attributed(one_layer(Timeline()), **ONE_LAYER)

    assert places(kernels) == [
        ("gemm", "fc", "forward", "aten::addmm"),
        ("dgrad", "fc", "backward", "aten::mm"),
        ("wgrad", "fc", "backward", "aten::mm"),
        ("add", "fc", "backward", "aten::add_"),
        ("foreach", UNATTRIBUTED, "optimizer", "aten::_foreach_add_"),
    ]
    assert kernels["start_ns"].tolist() == [0, 200, 300, 400, 500]
    assert kernels["duration_ns"].tolist() == [100, 100, 100, 50, 100]
    assert kernels["shapes"].iloc[0] == "2x3 3x4"
    assert facts["kernels"] == facts["kernels_linked"] == 5


def test_the_backward_of_what_the_root_itself_did_is_the_root_s():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::nll_loss_forward", t.kernel("loss", 0, 5))))
    t.phase("backward")
    t.run(t.node("NllLossBackward0", 3, t.op("aten::nll_loss_backward", t.kernel("grad", 5, 9), thread=2)))

    kernels, _, _ = attributed(t, [("", False)], {(MAIN, 3): ""})

    assert kernels["module"].tolist() == ["", ""]


def test_two_kernels_of_one_operator_are_one_call():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::mm", t.kernel("splitK", 0, 10), t.kernel("reduce", 10, 12)), t.op("aten::mm")))

    kernels, _, _ = attributed(t, [("fc", False)])

    assert kernels["kernel"].tolist() == ["splitK", "reduce"]
    assert kernels["call"].nunique() == 1


def test_copies_and_fills_are_the_work_of_their_operator():
    t = Timeline()
    t.phase("forward")
    copy = t.op("aten::copy_", t.kernel("Memcpy HtoD (Pageable -> Device)", 0, 10))
    t.run(t.call(0, t.op("aten::zeros", t.op("aten::zero_", t.kernel("Memset (Device)", 10, 12))), copy))

    kernels, _, _ = attributed(t, [("m", False)])

    assert places(kernels) == [
        ("Memcpy HtoD (Pageable -> Device)", "m", "forward", "aten::copy_"),
        ("Memset (Device)", "m", "forward", "aten::zeros"),
    ]


def test_a_kernel_without_a_recorded_launcher_is_unattributed_and_told():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::mm", t.kernel("gemm", 0, 10))))
    t.events += [Event("stray", KERNEL, STREAM, 10, 20, 1, 99999), Event("unlinked", KERNEL, STREAM, 20, 30, 2, 0)]

    kernels, _, facts = attributed(t, [("fc", False)])

    assert places(kernels)[1:] == [("stray", UNATTRIBUTED, "other", ""), ("unlinked", UNATTRIBUTED, "other", "")]
    assert kernels["call"].isna().tolist() == [False, True, True]
    assert (facts["kernels"], facts["kernels_linked"]) == (3, 1)


def test_a_kernel_launched_by_a_function_of_the_users_is_its_module_s():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("MyKernel", t.kernel("triton_", 0, 10))))
    t.phase("backward")
    t.run(t.node("MyKernelBackward", 4, t.op("MyKernelBackward", t.kernel("triton_bwd", 10, 20), thread=2)))

    kernels, _, facts = attributed(t, [("m", False)], {(MAIN, 4): "m"})

    assert places(kernels) == [
        ("triton_", "m", "forward", "MyKernel"),
        ("triton_bwd", "m", "backward", "MyKernelBackward"),
    ]
    assert facts["kernels_linked"] == 2


def test_accumulating_a_gradient_follows_the_node_before_it_on_the_same_thread():
    t = Timeline()
    t.phase("backward")

    def accumulate(kernel, at):
        return t.node("torch::autograd::AccumulateGrad", -1, t.op("aten::add_", t.kernel(kernel, at, at + 1), thread=2))

    t.run(
        t.node("MmBackward0", 5, t.op("aten::mm", t.kernel("b", 0, 1), thread=2)),
        accumulate("b.weight", 1),
        t.node("MmBackward0", 4, t.op("aten::mm", t.kernel("a", 2, 3), thread=2)),
        accumulate("a.weight", 3),
        accumulate("a.bias", 4),
    )

    kernels, _, _ = attributed(t, [], {(MAIN, 4): "a", (MAIN, 5): "b"})

    assert kernels["module"].tolist() == ["b", "b", "a", "a", "a"]


def test_a_reentrant_checkpoint_keeps_the_numbers_of_two_threads_apart():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::mm", t.kernel("forward", 0, 10))))
    t.phase("backward")
    again = t.call(
        1,
        t.op("aten::add", t.kernel("residual again", 10, 11), thread=2),
        t.call(2, t.op("aten::mm", t.kernel("forward again", 11, 20), thread=2), thread=2),
        thread=2,
    )
    # number 7 was given twice: by the main thread to another module, by the device thread to this recomputation
    backward = t.node("MmBackward0", 7, t.op("aten::mm", t.kernel("dgrad", 20, 30), thread=2), forward_thread=2)
    leftover = t.node("AddBackward0", 9, t.op("aten::add", t.kernel("leftover", 30, 31), thread=2), forward_thread=2)
    t.run(
        t.node("CheckpointFunctionBackward", 6, again, backward, leftover),
        t.node("MmBackward0", 7, t.op("aten::mm", t.kernel("elsewhere", 31, 40), thread=2)),
    )

    kernels, _, _ = attributed(
        t,
        [("layer.fc", False), ("layer", True), ("layer.fc", True)],
        {(MAIN, 6): "layer", (MAIN, 7): "embed", (DEVICE_THREAD, 7): "layer.fc"},
    )

    assert places(kernels) == [
        ("forward", "layer.fc", "forward", "aten::mm"),
        ("residual again", "layer", "recompute", "aten::add"),
        ("forward again", "layer.fc", "recompute", "aten::mm"),
        ("dgrad", "layer.fc", "backward", "aten::mm"),
        ("leftover", "layer", "backward", "aten::add"),  # nobody's number: its runner's
        ("elsewhere", "embed", "backward", "aten::mm"),
    ]


def test_a_node_that_a_node_has_made_belongs_to_the_module_of_that_one():
    t = Timeline()
    t.phase("backward")
    made = t.op("aten::mul", number=3, thread=DEVICE_THREAD)  # asks for the next number, and makes no node
    t.run(
        t.node("MmBackward0", 10, made, t.op("aten::mm", number=3, thread=DEVICE_THREAD)),
        t.node("torch::autograd::AccumulateGrad", -1, t.op("aten::add", number=4, thread=DEVICE_THREAD)),
        t.op("aten::sum", number=5, thread=DEVICE_THREAD),  # in no node
        t.node(
            "MmBackward0", 3, t.op("aten::mm", t.kernel("second", 1000, 1100), number=6, thread=2), forward_thread=2
        ),
        t.node("MmBackward0", 6, t.op("aten::mm", t.kernel("third", 1100, 1200), thread=2), forward_thread=2),
        t.node("AddBackward0", 4, t.op("aten::mul", t.kernel("of a sum", 1200, 1300), thread=2), forward_thread=2),
        t.node("SumBackward0", 5, t.op("aten::expand", t.kernel("outside", 1300, 1400), thread=2), forward_thread=2),
    )
    kernels, _, _ = attributed(t, nodes={(MAIN, 10): "fc"})

    owners = dict(zip(kernels["kernel"], kernels["module"], strict=True))
    assert owners == {"second": "fc", "third": "fc", "of a sum": "fc", "outside": "(unattributed)"}


def test_what_runs_between_the_modules_of_a_recomputation_is_recomputation():
    t = Timeline()
    t.phase("backward")

    def mm(name, at):
        return t.op("aten::mm", t.kernel(name, at, at + 1), thread=2)

    inside = [t.call(0, mm("a", 1), thread=2), mm("between", 2), t.call(1, mm("b", 3), thread=2), mm("after", 4)]
    t.run(t.node("OwnCheckpointBackward", 6, mm("before", 0), *inside))

    kernels, _, _ = attributed(t, [("m.a", True), ("m.b", True)], {(MAIN, 6): "m"})

    phases = dict(zip(kernels["kernel"], kernels["phase"], strict=True))
    assert phases == {
        "before": "backward",
        "a": "recompute",
        "between": "recompute",
        "b": "recompute",
        "after": "backward",
    }


def test_the_phase_holds_on_every_thread():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::mm", t.kernel("replica", 0, 5), thread=9), thread=9))
    t.phase("optimizer")
    t.run(t.op("aten::add_", t.kernel("update", 5, 9), thread=9))

    kernels, _, _ = attributed(t, [("m", False)])

    assert kernels["phase"].tolist() == ["forward", "optimizer"]


def test_without_a_device_every_operator_call_is_its_own_kernel():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::linear", t.op("aten::addmm", t.op("aten::mm")), flops=0), t.op("aten::relu")))

    kernels, _, facts = attributed(t, [("m", False)])

    assert kernels["op"].tolist() == ["aten::addmm", "aten::relu"]  # no composite, nothing nested
    assert kernels["call"].tolist() == [0, 1]
    assert facts["kernels"] == facts["kernels_linked"] == 2


def test_torch_s_own_estimates_are_booked_where_the_work_is():
    t = Timeline()
    t.phase("forward")
    t.run(t.call(0, t.op("aten::linear", t.op("aten::addmm", flops=48))))
    t.phase("backward")
    t.run(t.node("AddmmBackward0", 2, t.op("aten::mm", flops=40, thread=2), t.op("aten::mm", flops=41, thread=2)))

    _, estimates, _ = attributed(t, [("m", False)], {(MAIN, 2): "m"})

    assert estimates.to_dict("records") == [
        {
            "module": "m",
            "phase": "forward",
            "op": "aten::addmm",
            "within": "aten::addmm",
            "calls": 1,
            "flops_profiler": 48,
        },
        {"module": "m", "phase": "backward", "op": "aten::mm", "within": "aten::mm", "calls": 2, "flops_profiler": 81},
    ]


def test_overlapping_streams_count_once_in_a_module_and_in_its_parent():
    t = Timeline()
    t.phase("forward")
    a = t.call(1, t.op("aten::mm", t.kernel("a1", 0, 100)), t.op("aten::mm", t.kernel("a2", 50, 150, OTHER_STREAM)))
    b = t.call(2, t.op("aten::mm", t.kernel("b", 140, 200)))
    t.run(t.call(0, a, b))

    kernels, _, _ = attributed(t, [("", False), ("a", False), ("b", False)])
    times = kernel_times(kernels, ["", "a", "b", UNATTRIBUTED])

    assert times["a"]["forward"] == pytest.approx(150e-9, rel=1e-12)
    assert times["b"]["forward"] == pytest.approx(60e-9, rel=1e-12)
    assert times[""]["forward"] == pytest.approx(200e-9, rel=1e-12)
    assert set(kernels["stream"]) == {"7", "20"}


def test_modules_add_up_to_the_whole():
    kernels, _, _ = attributed(one_layer(Timeline()), **ONE_LAYER)
    times = kernel_times(kernels, ["", "fc", UNATTRIBUTED])
    start = kernels["start_ns"].to_numpy("int64")

    total = union_ns(start, start + kernels["duration_ns"].to_numpy("int64"))
    assert sum(times[""].values()) + sum(times[UNATTRIBUTED].values()) == pytest.approx(total * 1e-9, rel=1e-12)


# reading


class Raw:
    """One event of the profiler's binding, of which only what a torch release has can be asked."""

    def __init__(self, name, device, missing=(), **fields):
        defaults = {
            "name": name, "device_type": device, "start_thread_id": 1, "device_resource_id": 7, "start_ns": 10,
            "end_ns": 20, "correlation_id": 3, "linked_correlation_id": 0, "sequence_nr": -1, "fwd_thread_id": 0,
            "flops": 0, "shapes": [], "scope": 0, "is_user_annotation": False, "activity_type": "",
        }  # fmt: skip
        self.fields = {field: value for field, value in (defaults | fields).items() if field not in missing}


for field in (*kineto_events.FIELDS, "activity_type", "metadata_json", "is_hidden_event"):
    setattr(Raw, field, lambda self, field=field: self.fields[field])


def profiler_of(*events):
    results = SimpleNamespace(events=lambda: list(events))
    activities = {torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA}
    return SimpleNamespace(profiler=SimpleNamespace(kineto_results=results), activities=activities)


HOST, GPU = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA


@pytest.mark.parametrize("missing", [(), ("activity_type", "metadata_json", "is_hidden_event")], ids=["2.13", "2.11"])
def test_only_operators_ranges_and_kernels_are_read(missing):
    node = "autograd::engine::evaluate_function: MmBackward0"
    read = trace.read(
        profiler_of(
            Raw("aten::mm", HOST, missing, correlation_id=11, flops=48, shapes=[[2, 3], [3, 4]]),
            Raw(node, HOST, missing, correlation_id=12, sequence_nr=5, fwd_thread_id=1),
            Raw("gpuprof#0", HOST, missing, is_user_annotation=True, correlation_id=13),
            Raw("cudaLaunchKernel", HOST, missing, linked_correlation_id=11, correlation_id=901),
            Raw("cudaDeviceSynchronize", HOST, missing, correlation_id=11),  # CUDA's numbers are another sequence
            Raw("cuLaunchKernelEx", HOST, missing, correlation_id=12),
            Raw("INVALID", HOST, missing, correlation_id=11),  # Kineto's word for a call whose name it does not know
            Raw("gpuprof#0", GPU, missing, is_user_annotation=True),
            Raw("Stream Wait Event", GPU, missing),
            Raw("sm90_xmma_gemm", GPU, missing, linked_correlation_id=11, correlation_id=901, device_resource_id=20),
        )
    )

    events = sorted(read, key=lambda event: event.kind == KERNEL)
    assert [e.name for e in events] == ["aten::mm", node, "gpuprof#0", "sm90_xmma_gemm"]
    assert events[0] == Event("aten::mm", OPERATOR, 1, 10, 20, 11, 0, -1, 0, 48, [[2, 3], [3, 4]])
    assert (events[1].number, events[1].forward_thread) == (5, 1)
    assert events[3] == Event("sm90_xmma_gemm", KERNEL, 20, 10, 20, 901, 11)


def test_the_installed_torch_offers_every_field_that_is_read():
    binding = torch._C._autograd._KinetoEvent
    assert {"name", "device_type", "linked_correlation_id", "is_user_annotation"} <= set(kineto_events.FIELDS)
    assert all(hasattr(binding, field) for field in kineto_events.FIELDS)


def test_what_an_operator_calls_has_no_shapes_unless_it_may_take_its_place():
    """Also where both begin at once, and the inner one comes first."""
    shapes = [[2, 3], [3, 4]]
    times = {"aten::addmm": (10, 30), "aten::mm": (12, 20), "aten::mv": (40, 45), "aten::sum": (40, 60)}
    ops = [
        Raw(name, HOST, start_ns=start, end_ns=end, shapes=shapes, correlation_id=number)
        for number, (name, (start, end)) in enumerate(times.items())
    ]
    assert {e.name: e.shapes for e in trace.read(profiler_of(*ops))} == dict.fromkeys(times, shapes) | {"aten::mm": ()}
    mode = Raw("PythonDispatchMode", HOST, start_ns=70, end_ns=80)
    assert {e.name: e.shapes for e in trace.read(profiler_of(*ops, mode)) if e.kind == OPERATOR} == dict.fromkeys(
        times, shapes
    )


@pytest.mark.parametrize(
    ("traced", "device", "teardown", "attached"),
    [(True, "cuda", None, True), (True, "cuda", "0", True), (True, "cuda", "1", False), (True, "cpu", None, False),
     (False, "cuda", None, False)],
)  # fmt: skip
def test_a_trace_of_a_gpu_leaves_cupti_attached_unless_the_user_has_it_torn_down(
    monkeypatch, traced, device, teardown, attached
):
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    if teardown is not None:
        monkeypatch.setenv("TEARDOWN_CUPTI", teardown)
    monkeypatch.setattr(trace, "_cuda_traced", traced)

    assert trace.cupti_attached(torch.device(device)) is attached


def test_steps_that_are_timed_with_cupti_attached_are_warned_of(monkeypatch):
    asked = []
    monkeypatch.setattr(trace, "cupti_attached", lambda device: bool(asked.append(device.type) or len(asked) == 2))
    first, second = (
        gpuprof.profile(torch.nn.Linear(4, 4), torch.ones(2, 4), passes=["time", "trace"], warmup=0, steps=1)
        for _ in range(2)
    )

    assert asked == ["cpu", "cpu"]
    assert first.warnings == []
    assert second.warnings == [
        "an earlier trace of this process left CUPTI attached, so the timed steps may be slower: "
        "time in a fresh process"
    ]


# whole traces on the CPU


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32, use_cache=False
    )
    return LlamaForCausalLM(config)


def traced(model, optimizer=None):
    ids = torch.zeros(1, 4, dtype=torch.long)
    return trace.trace(from_module(model, (), {"input_ids": ids, "labels": ids}, optimizer=optimizer), lambda: None)


def test_every_operator_of_a_real_training_step_has_an_owner():
    model = tiny_llama()

    result = traced(model, torch.optim.SGD(model.parameters(), lr=0.0))

    kernels = result.kernels
    assert list(kernels.columns) == list(TABLES["kernels"])
    assert set(kernels["phase"]) <= {"forward", "backward", "optimizer", "other"}
    assert set(kernels["module"]) <= {*dict(model.named_modules()), UNATTRIBUTED}
    unowned = kernels[kernels["module"] == UNATTRIBUTED]
    # the gradient that a backward starts from, the optimizer, and the loss handed back
    assert set(unowned.loc[unowned["phase"] != "optimizer", "op"]) <= {"aten::ones_like", "aten::detach"}
    assert result.outcome.facts["kernels_linked"] == result.outcome.facts["kernels"] == len(kernels)


def test_every_matrix_product_has_two_in_the_backward_of_its_own_module():
    kernels = traced(tiny_llama()).kernels

    products = kernels[kernels["op"] == "aten::mm"].groupby(["module", "phase"]).size().unstack()
    assert len(products) == 15  # 7 per layer, and the head
    assert (products["forward"] == 1).all()
    assert (products["backward"] == 2).all()


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_recomputation_is_a_phase_of_its_own(kind):
    model = tiny_llama().train()
    checkpoint(model, kind)

    kernels = traced(model).kernels

    products = kernels[kernels["op"] == "aten::mm"].groupby(["module", "phase"]).size().unstack(fill_value=0)
    inner = products.drop("lm_head")
    assert (products["backward"] == 2).all()
    assert (inner["recompute"] == 1).all()
    assert products.loc["lm_head", "recompute"] == 0
    unowned = kernels[(kernels["module"] == UNATTRIBUTED) & kernels["phase"].isin(["recompute", "backward"])]
    assert unowned.empty


def test_the_times_of_a_real_step_add_up():
    model = tiny_llama()
    kernels = traced(model).kernels

    times = kernel_times(kernels, [*dict(model.named_modules()), UNATTRIBUTED])
    whole = sum(times[""].values()) + sum(times[UNATTRIBUTED].values())
    assert whole == pytest.approx(kernels["duration_ns"].sum() * 1e-9, rel=1e-9)


def test_the_environment_and_the_collector_are_left_alone(monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    before = dict(os.environ)
    traced(tiny_llama())
    assert dict(os.environ) == before
    assert gc.isenabled()

    monkeypatch.setenv("KINETO_LOG_LEVEL", "2")
    traced(tiny_llama())
    assert os.environ["KINETO_LOG_LEVEL"] == "2"


def test_an_empty_trace_is_empty():
    kernels, estimates, facts = attributed(Timeline())

    assert kernels.empty
    assert estimates.empty
    assert isinstance(kernels, pd.DataFrame)
    assert facts == {"events": 0, "kernels": 0, "kernels_linked": 0}


# -- compiled code


FUSED = KernelCall("0/triton_poi_fused_gelu_1:2", "triton_poi_fused_gelu_1", "inductor::fused_gelu", "act", "")
PRODUCT = KernelCall("0/extern_kernels.addmm:1", "", "", "fc", "")
AGAIN = KernelCall("1/triton_poi_fused_gelu_2:3", "triton_poi_fused_gelu_2", "inductor::fused_gelu", "act", "recompute")


def compiled_layer(t):
    """A product and a fused kernel of a compiled forward, and one of its backward, on a GPU."""

    def mark(key):
        return t.op(f"gpuprof:kernel:{key}")

    t.phase("forward")
    t.run(
        t.call(
            0,
            t.op(
                "Torch-Compiled Region: 0/0",
                t.op(
                    "## Call CompiledFxGraph None ##",
                    mark(PRODUCT.key),
                    t.op(
                        "aten::addmm", t.kernel("split_k", 1000, 1100), t.kernel("reduce", 1100, 1110), shapes=[[2, 3]]
                    ),
                    mark(FUSED.key),
                    t.op("triton_poi_fused_gelu_1", t.kernel("triton_poi_fused_gelu_1", 1110, 1150), kind=RANGE),
                    kind=RANGE,
                ),
                t.op("aten::clone", t.kernel("copy", 1150, 1160)),
            ),
        )
    )
    t.phase("backward")
    backward = t.op(
        "## Call CompiledFxGraph None ##",
        t.op(f"gpuprof:kernel:{AGAIN.key}", thread=DEVICE_THREAD),
        t.op("other_name", t.kernel("triton_red_fused_gelu_2", 1200, 1240), kind=RANGE, thread=DEVICE_THREAD),
        kind=RANGE,
        thread=DEVICE_THREAD,
    )
    t.run(t.node("CompiledFunctionBackward", 10, backward))
    return t


def test_kernels_of_compiled_code_on_a_gpu_go_to_what_their_mark_says():
    told = {call.key: call for call in (FUSED, PRODUCT, AGAIN)}
    asked = []

    def kernel_at(mark, caller, phase):
        asked.append((mark, caller, phase))
        return told[mark]

    kernels, _, facts, _ = attribute(
        *apart(Events.of(compiled_layer(Timeline()).events)), [("layer", False)], lambda *_: "layer",
        COMPOSITE.__contains__, kernel_at=kernel_at,
    )  # fmt: skip
    assert places(kernels) == [
        ("split_k", "fc", "forward", "aten::addmm"),
        ("reduce", "fc", "forward", "aten::addmm"),
        ("triton_poi_fused_gelu_1", "act", "forward", "inductor::fused_gelu"),
        ("copy", "layer", "forward", "aten::clone"),
        ("triton_red_fused_gelu_2", "act", "recompute", "inductor::fused_gelu"),
    ]
    assert list(kernels["compiled"]) == [PRODUCT.key, PRODUCT.key, FUSED.key, "", AGAIN.key]
    assert list(kernels["call"]) == [0, 0, 1, 2, 3]
    assert asked == [
        (PRODUCT.key, "layer", "forward"),
        (FUSED.key, "layer", "forward"),
        (AGAIN.key, "layer", "backward"),
    ]
    assert (facts["compiled"], "hidden" in facts) == (True, False)


def test_compiled_code_without_marks_hides_what_is_in_it():
    events = [event for event in compiled_layer(Timeline()).events if not event.name.startswith("gpuprof:kernel:")]
    kernels, _, facts, _ = attribute(
        *apart(Events.of(events)), [("layer", False)], lambda *_: "layer", COMPOSITE.__contains__
    )
    assert facts["hidden"] == ["layer"]
    assert set(kernels["module"]) == {"layer"}
    assert set(kernels["compiled"]) == {""}
