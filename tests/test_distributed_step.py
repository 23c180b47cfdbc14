"""Communication of a real step: rank 0 of two, whose fake backend calls what a real one does and sends nothing."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from runs import row
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import gpuprof
from gpuprof.analysis.communication import account, collectives
from gpuprof.analysis.op_tables import without_rule
from gpuprof.parallel.units import unit_of
from gpuprof.traces.events import (
    FUNCTION,
    NODE,
    NODE_PREFIX,
    OPERATOR,
    RANGE,
    SUBCLASS,
    Event,
    Events,
    apart,
    host_kind,
)
from gpuprof.traces.owners import attribute

WEIGHTS = (64 * 256 + 256 + 256 * 64 + 64) * 4  # bytes of both layers


@pytest.fixture
def world():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.fixture
def world_of_one():
    """DDP asks for results, which the fake backend has none of."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))


def profiled(model, step):
    """What a step communicates, by operator; checks what holds of every step."""
    run = gpuprof.profile(model, step=step, passes=["count", "trace"])
    messages = run.ops[run.ops["kind"] == "communication"]
    assert (messages["flops_full"] == 0).all()
    assert run.passes["count"].facts["ops_without_rule"] == []
    assert without_rule(run).empty
    found = account(run)
    assert found.compute_ns + found.exposed_ns + found.idle_ns == found.step_ns
    assert found.communication_ns > 0
    assert collectives(run)["exposed_s"].sum() == pytest.approx(found.exposed_ns * 1e-9)
    assert set(collectives(run)["kind"]) == {"communication"}
    return messages.groupby("op")[["calls", "bytes"]].sum().to_dict("index"), run


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_the_gradients_of_ddp():
    model, x = nn.parallel.DistributedDataParallel(net()), torch.ones(4, 64)
    messages, _ = profiled(model, lambda: model(x).sum().backward())

    assert messages["c10d::allreduce_.default"] == {"calls": 1, "bytes": WEIGHTS}


@pytest.mark.usefixtures("world")
def test_the_shards_of_fsdp():
    model, x = net(), torch.ones(4, 64)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=True)
    messages, run = profiled(model, lambda: model(x).sum().backward())

    copies = run.ops[run.ops["op"].str.startswith("fsdp::")]
    assert set(copies["kind"]) == {"movement"}
    # gathered for the forward, and once more for the backward
    assert messages["c10d::_allgather_base_.default"] == {"calls": 2, "bytes": 2 * WEIGHTS}
    assert messages["c10d::_reduce_scatter_base_.default"] == {"calls": 1, "bytes": WEIGHTS}


@pytest.mark.usefixtures("world")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_functional_collectives_and_the_wait_for_them():
    model, x, group = net(), torch.ones(4, 64), dist.group.WORLD

    def step():
        y = model(x)
        # the sum is a tensor of a class of its own, which waits inside the first operator that it is given to
        (y * functional.all_reduce(y.detach(), "sum", group)).sum().backward()

    messages, run = profiled(model, step)
    assert messages["_c10d_functional::all_reduce.default"] == {"calls": 1, "bytes": 4 * 64 * 4}
    assert messages["_c10d_functional::wait_tensor.default"] == {"calls": 1, "bytes": 0}
    waits = run.kernels[run.kernels["op"] == "_c10d_functional::wait_tensor"]
    assert len(waits) == 1
    assert row(collectives(run), name="_c10d_functional::wait_tensor")["calls"] == 1


def test_an_operator_that_waits_first_is_those_that_it_calls():
    """Wait for 60 of the 80 that aten::mul takes on a tensor of a class of its own, then multiply for 10."""
    events = [
        Event("aten::mul", OPERATOR, 1, 0, 80),
        Event("_c10d_functional::wait_tensor", OPERATOR, 1, 5, 65),
        Event("c10d::helper", OPERATOR, 1, 10, 20),
        Event("aten::mul", OPERATOR, 1, 68, 78),
        Event("c10d::allreduce_", OPERATOR, 1, 90, 99),
        Event("aten::copy_", OPERATOR, 1, 92, 95),
    ]
    kernels = attribute(*apart(Events.of(events)), [], lambda *_: None, lambda name: False).kernels
    assert list(zip(kernels["op"], kernels["start_ns"], kernels["duration_ns"], strict=True)) == [
        ("_c10d_functional::wait_tensor", 0, 60),
        ("aten::mul", 63, 10),
        ("c10d::allreduce_", 85, 9),
    ]


def owners(events, **how):
    def maker(thread, number):
        return {7: "layer"}.get(number)

    kernels = attribute(*apart(Events.of(events)), [], maker, lambda name: False, **how).kernels
    return list(zip(kernels["op"], kernels["module"], kernels["phase"], strict=True))


def test_gradients_that_are_sent_are_no_module_s():
    """DDP sends a bucket in the hook of the last gradient in it; a product's own node sends for its module.

    What FSDP's first version scatters in such a hook is the gradient of one unit.
    """
    events = [
        Event(f"{NODE_PREFIX}MmBackward0", NODE, 1, 0, 40, number=7),
        Event("MmBackward0", FUNCTION, 1, 1, 39, number=7),
        Event("_c10d_functional::all_reduce", OPERATOR, 1, 5, 15),
        Event("aten::mm", OPERATOR, 1, 20, 30),
        Event(f"{NODE_PREFIX}torch::autograd::AccumulateGrad", NODE, 1, 50, 90),
        Event("aten::detach", OPERATOR, 1, 55, 60),
        Event("c10d::allreduce_", OPERATOR, 1, 65, 80),
        Event("c10d::_reduce_scatter_base_", OPERATOR, 1, 82, 88),
    ]
    assert owners(events) == [
        ("_c10d_functional::all_reduce", "layer", "backward"),
        ("aten::mm", "layer", "backward"),
        ("aten::detach", "layer", "backward"),
        ("c10d::allreduce_", "(gradient all-reduce)", "backward"),
        ("c10d::_reduce_scatter_base_", "layer", "backward"),
    ]


def test_a_label_that_names_a_unit_owns_what_is_in_it():
    """Of labels inside each other the innermost that names one; what is in none is the node's."""
    kinds = [host_kind(name, label=True) for name in ("FSDP::pre_backward (b)", "FSDP::pre_backward", "step::one")]
    assert kinds == [RANGE] * 3
    events = [
        Event(f"{NODE_PREFIX}MmBackward0", NODE, 1, 0, 90, number=7),
        Event("FSDP::pre_backward (b)", RANGE, 1, 5, 60),
        Event("c10d::_allgather_base_", OPERATOR, 1, 10, 15),
        Event("FSDP::backward_prefetch for a", RANGE, 1, 20, 50),
        Event("step::one", RANGE, 1, 25, 40),
        Event("c10d::_allgather_base_", OPERATOR, 1, 30, 35),
        Event("aten::mm", OPERATOR, 1, 70, 80),
    ]
    units = {"FSDP::pre_backward (b)": "b", "FSDP::backward_prefetch for a": "a"}
    assert owners(events, unit_of=units.get) == [
        ("c10d::_allgather_base_", "b", "backward"),
        ("c10d::_allgather_base_", "a", "backward"),
        ("aten::mm", "layer", "backward"),
    ]


def test_an_operator_on_shards_is_that_on_the_shard_of_this_rank():
    """A class of tensors takes it over; of a nested tensor a trace has no shape, and it stays what was called."""
    for shapes, op_at in (([[128, 64]], 20), ([[]], 0)):
        events = [
            Event("aten::mm", OPERATOR, 1, 0, 90, shapes=shapes),
            Event("PythonSubclass", SUBCLASS, 1, 5, 80),
            Event("aten::mm", OPERATOR, 1, 20, 60, shapes=[[128, 32]]),
        ]
        both = Events.of([Event("aten::t", OPERATOR, 1, -1, 0), *events])
        kernels = attribute(*apart(both), [], lambda *_: None, lambda name: False).kernels
        assert list(kernels["start_ns"][kernels["op"] == "aten::mm"]) == [op_at + 1]
    assert host_kind("PythonSubclass") == SUBCLASS


@pytest.mark.usefixtures("world")
def test_units_by_the_labels_of_fsdp():
    """A name is from the root on; several modules in one unit are what they are in; no root, no unit."""
    model = nn.ModuleDict({"body": nn.Sequential(net(), net(), nn.Sequential(net()))})
    mesh = init_device_mesh("cpu", (2,))
    for part in (model["body"][0], model["body"]):
        fully_shard(part, mesh=mesh)
    unit = unit_of(model)

    assert unit("FSDP::all_gather (0)") == unit("FSDP::backward_prefetch for 0") == "body.0"
    assert unit("FSDP::post_backward_reduce (0) [pg=2]") == "body.0"
    assert unit("FSDP::root_pre_forward") == unit("FSDP::post_backward_rs_wait ()") == "body"
    assert unit("FSDP::all_gather (2.0, 2.0.0)") == "body.2.0"
    assert unit("FSDP::all_gather (0, 2.0)") == "body"
    for label in ("FSDP::all_gather (nowhere)", "FSDP::backward_prefetch for None", "step", "FSDP::step (0) and more"):
        assert unit(label) is None

    rootless = nn.Sequential(net(), net())
    for part in rootless:
        fully_shard(part, mesh=mesh)
    assert unit_of(rootless)("FSDP::all_gather") is None
