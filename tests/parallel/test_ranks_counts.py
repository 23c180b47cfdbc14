"""What a pass measures in one rank of a job, by DDP, FSDP2, tensor and pipeline parallel, held against arithmetic."""

import copy
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from ranks import launch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import gpuprof
from gpuprof.analysis.communication import account
from gpuprof.analysis.modules import without_rule
from gpuprof.parallel.layout import layout

ROWS, WIDTH, HIDDEN, CLASSES = 128, 64, 256, 128


class Block(nn.Module):
    def __init__(self, hidden=HIDDEN):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Two blocks and a head; counted are 2 x 128 x (4 x 64 x 256 + 64 x 128) FLOPs of a forward."""

    def __init__(self, hidden=HIDDEN, again=False):
        super().__init__()
        self.layers, self.head, self.again = nn.ModuleList([Block(hidden), Block(hidden)]), nn.Linear(WIDTH, CLASSES), again

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return self.head(x)


def mesh(name):
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))


def sharded(net, **how):
    for layer in net.layers:
        fully_shard(layer, mesh=mesh("dp"), **how)
    return fully_shard(net, mesh=mesh("dp"), **how)


def in_tensors(net):
    plan = {"layers.*.up": ColwiseParallel(), "layers.*.down": RowwiseParallel()}
    return parallelize_module(net, mesh("tp"), plan)


class LocalFlops(TorchDispatchMode):
    """What torch's own formulas make of the operators that run on the shards of this rank."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def profiled(model, rows=ROWS):
    """Figures of a training step whose inputs have gradients too; checks what holds of every one."""
    x = torch.randn(rows, WIDTH, requires_grad=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    step()
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    tensors = [*model.parameters(), *model.buffers(), *state, *(p.grad for p in model.parameters())]
    before = [local(tensor).detach().clone() for tensor in tensors]
    run = gpuprof.profile(model, step=step, optimizer=optimizer, passes=["count", "trace", "memory"])
    after = [local(tensor).detach() for tensor in tensors]
    same = len(before) == len(after) and all(map(torch.equal, before, after))

    def forward_and_backward():
        model(x).square().mean().backward()

    flops = LocalFlops()
    with flops:
        forward_and_backward()
    messages = CommDebugMode()
    with messages:
        forward_and_backward()

    ops, memory = run.ops, run.memory[run.memory["source"] == "analytic"]
    told = ops[ops["kind"] == "communication"]
    waits = told["op"].str.contains("wait_tensor|_wrap_tensor")
    found, times = account(run), run.kernels.groupby("module")["duration_ns"].sum()
    assert found.compute_ns + found.exposed_ns + found.idle_ns == found.step_ns
    assert without_rule(run).empty
    return {
        "outcomes": {name: outcome.status for name, outcome in run.passes.items()},
        "flops": ops[ops["flops_full"] > 0].groupby("phase")["flops_full"].sum().to_dict(),
        "torch_flops": flops.flops,
        "messages": told[~waits][["module", "phase", "op", "calls", "bytes", "group"]].values.tolist(),
        "torch_messages": {str(name): calls for name, calls in messages.get_comm_counts().items()},
        "without_rule": run.passes["count"].facts["ops_without_rule"],
        "memory": memory[memory["module"] == ""].set_index("quantity")["bytes"].to_dict(),
        "activations": memory[memory["quantity"] == "activations"].set_index("module")["bytes"].to_dict(),
        "tree": run.tree[["module", "class", "params", "param_bytes"]].values.tolist(),
        "communication": sorted(set(run.kernels[run.kernels["op"].isin(told[~waits]["op"].str.partition(".")[0])]["module"])),
        "owned": float(times.drop(["(unattributed)"], errors="ignore").sum() / times.sum()),
        "warnings": run.warnings,
        "restored": same,
        "layout": layout(model),
    }


def ddp():
    torch.manual_seed(0)
    return profiled(nn.parallel.DistributedDataParallel(Net()))


def fsdp():
    return profiled(sharded(Net(), reshard_after_forward=True))


def fsdp_kept():
    return profiled(sharded(Net(), reshard_after_forward=False))


def fsdp_again():
    return profiled(sharded(Net(again=True), reshard_after_forward=True))


def fsdp_parts_again():
    net = Net(again=True)
    for layer in net.layers:
        fully_shard(layer.up, mesh=mesh("dp")), fully_shard(layer.down, mesh=mesh("dp"))
    return profiled(fully_shard(net, mesh=mesh("dp")))


def tensors():
    return profiled(in_tensors(Net()))
