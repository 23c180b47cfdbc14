"""What a pass measures in one rank of a job, by DDP, FSDP2, tensor and pipeline parallel, held against arithmetic."""

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
from torch.utils.flop_counter import flop_registry

import gpuprof
from gpuprof.analysis.communication import account
from gpuprof.analysis.op_tables import without_rule
from gpuprof.parallel.layout import layout
from gpuprof.passes import counting
from gpuprof.theory.names import communicates
from gpuprof.workload import from_module

ROWS, WIDTH, HIDDEN, CLASSES = 128, 64, 256, 128


class Block(nn.Module):
    def __init__(self, hidden=HIDDEN):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Blocks and a head; with two, 2 x 128 x (4 x 64 x 256 + 64 x 128) FLOPs of a forward are counted."""

    def __init__(self, hidden=HIDDEN, blocks=2, again=""):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Block(hidden) for _ in range(blocks)), nn.Linear(WIDTH, CLASSES)
        self.again = again  # what runs once more in the backward: each block, or all as one

    def forward(self, x):
        if self.again == "all":
            return self.head(checkpoint(nn.Sequential(*self.layers), x, use_reentrant=False))
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return self.head(x)


class Embedded(nn.Module):
    """81,920 parameters, none of them a bias: 327,680 bytes."""

    def __init__(self):
        super().__init__()
        self.table, self.net = nn.Embedding(128, WIDTH), Net()
        for layer in self.net.modules():
            layer.register_parameter("bias", None) if isinstance(layer, nn.Linear) else None

    def forward(self, x):
        return self.net(self.table.weight + x)


def mesh(name):
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))


def sharded(net, **how):
    """By FSDP: each block is a unit, and the rest of the net, which is not sharded again after the forward."""
    for layer in net.layers:
        fully_shard(layer, mesh=mesh("dp"), **how)
    return fully_shard(net, mesh=mesh("dp"))


def in_tensors(net, over=None):
    """By tensor parallelism: the blocks alone, and the head is on every rank."""
    # a local tensor does not say how wide the whole is: rows after columns that do not divide evenly need a DTensor
    plan = {"layers.*.up": ColwiseParallel(use_local_output=False), "layers.*.down": RowwiseParallel()}
    return parallelize_module(net, over or mesh("tp"), plan)


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


def calls(rows, count):
    """Calls of products and collectives by module, phase and operator."""
    rows = rows.assign(op=rows["op"].str.partition(".")[0])
    rows = rows[rows["op"].isin(["aten::mm", "aten::addmm"]) | rows["op"].map(communicates)]
    return {"|".join(key): int(n) for key, n in count(rows.groupby(["module", "phase", "op"])).items()}


def profiled(model, passes=("count", "trace", "memory")):
    """Figures of a training step whose inputs have gradients too."""
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
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
    run = gpuprof.profile(model, step=step, optimizer=optimizer, passes=passes)
    after = [local(tensor).detach() for tensor in tensors]
    same = len(before) == len(after) and all(map(torch.equal, before, after))

    def without_update():
        model(x).square().mean().backward()

    flops = LocalFlops()
    with flops:
        without_update()
    messages = CommDebugMode()
    with messages:
        without_update()

    ops, memory = run.ops, run.memory[run.memory["source"] == "analytic"]
    told = ops[(ops["kind"] == "communication") & (ops["bytes"] > 0)]  # no waits
    figures = {
        "outcomes": {name: outcome.status for name, outcome in run.passes.items()},
        "warnings": run.warnings,
        "flops": forward_and_backward(ops),
        "recompute": int(ops.loc[ops["phase"] == "recompute", "flops_full"].sum()),
        "torch_flops": flops.flops,
        "messages": told[["module", "phase", "op", "calls", "bytes", "group"]].values.tolist(),
        "torch_messages": sum(messages.get_comm_counts().values()),
        "without_rule": run.passes["count"].facts["ops_without_rule"] + without_rule(run)["op"].tolist(),
        "memory": memory[memory["module"] == ""].set_index("quantity")["bytes"].to_dict(),
        "activations": memory[memory["quantity"] == "activations"].set_index("module")["bytes"].to_dict(),
        "tree": run.tree.set_index("module")[["params", "param_bytes"]].T.to_dict("list"),
        "gradients_at_the_end": int(run.timeline["gradient_bytes"].iloc[-1]),
        "restored": same,
        "layout": layout(model),
    }
    if "trace" in passes:
        found = account(run)
        figures["account"] = [found.compute_ns, found.exposed_ns, found.idle_ns, found.step_ns]
        figures["counted"] = calls(ops, lambda groups: groups["calls"].sum())
        figures["traced"] = calls(run.kernels, lambda groups: groups["call"].nunique())
    return figures


def ddp():
    torch.manual_seed(0)
    return profiled(nn.parallel.DistributedDataParallel(Net()))


def ddp_with_buffers():
    """Gradients are views of the buckets: every step writes into those of the step before."""
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), Net())
    return profiled(nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True))


def fsdp():
    return profiled(sharded(Net()))


def fsdp_kept():
    return profiled(sharded(Net(), reshard_after_forward=False))


def fsdp_embedded():
    net = Embedded()
    sharded(net.net)
    return profiled(fully_shard(net, mesh=mesh("dp")))


def fsdp_all_again():
    return profiled(sharded(Net(blocks=3, again="all")))


def fsdp_of_blocks():
    """No unit is the root of the others."""
    net = Net()
    for layer in net.layers:
        fully_shard(layer, mesh=mesh("dp"))
    return profiled(net)


def tensors():
    return profiled(in_tensors(Net()))


def cold_tensors():
    """The very first step with these shapes, whose sharding torch then works out on fake tensors of the whole."""
    net, x = in_tensors(Net(hidden=384)), torch.ones(ROWS, WIDTH)
    workload = from_module(net, (x,), {}, step=lambda: net(x).sum().backward())
    first, second = (counting.count(workload).ops for _ in range(2))
    return [forward_and_backward(ops) for ops in (first, second)]


def forward_and_backward(ops):
    sums = ops.groupby("phase")["flops_full"].sum()
    return [int(sums["forward"]), int(sums["backward"])]


def pipeline():
    """The net cut in two, four microbatches, counted twice: the first time its stages tell each other their shapes."""
    rank, net = dist.get_rank(), Net()
    model = nn.Sequential(net.layers[0]) if rank == 0 else nn.Sequential(net.layers[1], net.head)
    stage = PipelineStage(model, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, 4, loss_fn=nn.functional.mse_loss)
    x, target = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ROWS, CLASSES)

    def step():
        model.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=target)

    found = []
    for _ in range(2):
        run = gpuprof.profile(model, step=step, passes=["count", "trace", "memory"])
        told = run.ops[run.ops["kind"] == "communication"]
        split = account(run)
        found.append(
            {
                "flops": forward_and_backward(run.ops),
                "messages": told.groupby(["op", "group"])[["calls", "bytes"]].sum().reset_index().values.tolist(),
                "without_rule": run.passes["count"].facts["ops_without_rule"],
                "account": [split.compute_ns, split.exposed_ns, split.idle_ns, split.step_ns],
                "outcomes": {name: outcome.status for name, outcome in run.passes.items()},
                "layout": layout(model),
                "warnings": run.warnings,
            }
        )
    return found


def uneven_tensors():
    return profiled(in_tensors(Net(hidden=258)), ["count", "memory"])


def uneven_fsdp():
    return profiled(sharded(Net(hidden=258)), ["count", "memory"])


def two_dimensions():
    whole, net = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")), Net()
    in_tensors(net, whole["tp"])
    for layer in net.layers:
        fully_shard(layer, mesh=whole["dp"])
    return profiled(fully_shard(net, mesh=whole["dp"]), ["count", "memory"])


OF_TWO = [
    "ddp", "ddp_with_buffers", "fsdp", "fsdp_kept", "fsdp_embedded", "fsdp_all_again", "fsdp_of_blocks", "tensors",
    "cold_tensors", "pipeline",
]  # fmt: skip
PROFILED = OF_TWO[:-2]
FORWARD = 2 * ROWS * (4 * WIDTH * HIDDEN + WIDTH * CLASSES)
HEAD = 2 * ROWS * WIDTH * CLASSES
UP, DOWN, LAST = ((n * m + m) * 4 for n, m in ((WIDTH, HIDDEN), (HIDDEN, WIDTH), (WIDTH, CLASSES)))  # bytes
BLOCK = UP + DOWN
NET = 2 * BLOCK + LAST
GATHER, SCATTER, REDUCE = (
    "c10d::_allgather_base_.default",
    "c10d::_reduce_scatter_base_.default",
    "c10d::allreduce_.default",
)


@pytest.fixture(scope="module")
def two():
    return launch(__file__, OF_TWO)


@pytest.fixture(scope="module")
def four():
    return launch(__file__, ["uneven_tensors", "uneven_fsdp", "two_dimensions"], world=4)


@pytest.mark.parametrize("case", PROFILED)
def test_what_holds_of_every_rank(two, case):
    for rank in two:
        found = rank[case]
        assert set(found["outcomes"].values()) == {"done"}
        # how fast this machine is was measured while others used it
        assert [line for line in found["warnings"] if "best matmul measured" not in line] == []
        assert found["restored"]  # parameters, gradients, buffers and the optimizer's state, bit for bit
        assert found["without_rule"] == []
        compute, exposed, idle, step = found["account"]
        assert compute + exposed + idle == step
        assert sum(found["flops"]) + found["recompute"] == found["torch_flops"]
        assert sum(calls for _, _, _, calls, _, _ in found["messages"]) == found["torch_messages"]
        # the product at which a recomputation stops is called, and ends before it multiplies
        assert {key: n for key, n in found["traced"].items() if "recompute|aten" not in key} == {
            key: n for key, n in found["counted"].items() if "recompute|aten" not in key
        }
        assert found["gradients_at_the_end"] == found["memory"]["gradients"]
    assert two[0][case]["messages"] == two[1][case]["messages"]


@pytest.mark.parametrize("case", ["ddp", "fsdp", "fsdp_kept", "fsdp_embedded", "fsdp_of_blocks"])
def test_data_parallel_counts_as_one_process(two, case):
    for rank in two:
        assert rank[case]["flops"] == [FORWARD, 2 * FORWARD] == [18_874_368, 37_748_736]
        assert rank[case]["recompute"] == 0


def test_the_gradients_of_ddp_are_no_module_s(two):
    assert two[0]["ddp"]["messages"] == [["(gradient all-reduce)", "backward", REDUCE, 1, NET, "dp"]]
    assert two[0]["ddp"]["memory"]["parameters"] == NET
    assert two[1]["ddp"]["layout"] == {
        "world": 2, "rank": 1, "mesh": {"dp": 2}, "groups": {"dp": [0, 1]}, "parallel": ["ddp"],
    }  # fmt: skip


def test_the_buffers_of_ddp(two):
    """Two statistics of 64 and how many batches there were, sent before the forward."""
    found = two[0]["ddp_with_buffers"]
    sent = [(module, nbytes) for module, phase, _, _, nbytes, _ in found["messages"] if phase == "forward"]
    assert sent == [("", 2 * WIDTH * 4), ("", 8)]
    assert found["memory"]["buffers"] == 2 * WIDTH * 4 + 8


def test_the_units_of_fsdp(two):
    """Gathered for the forward, the blocks once more for the backward; the gradients of each are scattered."""
    forward = [["", LAST], ["layers.0", BLOCK], ["layers.1", BLOCK]]
    scattered = sorted([unit, "backward", SCATTER, 1, nbytes, "dp"] for unit, nbytes in forward)
    once = sorted([unit, "forward", GATHER, 1, nbytes, "dp"] for unit, nbytes in forward)
    again = [[f"layers.{n}", "backward", GATHER, 1, BLOCK, "dp"] for n in (0, 1)]

    assert sorted(two[0]["fsdp"]["messages"]) == sorted(once + again + scattered)  # 5 are gathered
    assert sorted(two[0]["fsdp_kept"]["messages"]) == sorted(once + scattered)  # 3


def test_units_that_have_no_root(two):
    assert sorted((unit, op) for unit, _, op, *_ in two[0]["fsdp_of_blocks"]["messages"]) == sorted(
        (f"layers.{n}", op) for n in (0, 1) for op in (GATHER, SCATTER)
    )


def test_memory_of_fsdp_is_that_of_the_shards(two):
    """Half of each parameter and of its gradient, twice as much for the optimizer and 4 bytes for each of its steps."""
    for rank in two:
        embedded, net, activations = rank["fsdp_embedded"], rank["fsdp"], rank["fsdp"]["activations"]
        assert embedded["memory"]["parameters"] == embedded["memory"]["gradients"] == 163_840
        assert embedded["memory"]["optimizer_state"] == 327_680 + 6 * 4
        assert embedded["tree"][""] == [81_920, 163_840]
        assert net["memory"]["parameters"] == NET // 2
        assert net["memory"]["optimizer_state"] == NET + 10 * 4
        assert net["tree"]["layers.0"] == [BLOCK // 4, BLOCK // 2]
        # inputs of the products, and what the loss squares; not the weights that were gathered
        product = {f"layers.{n}{name}": ROWS * m * 4 for n in (0, 1) for name, m in (("", HIDDEN), (".up", WIDTH))}
        assert activations == {**product, "head": ROWS * WIDTH * 4, "(unattributed)": ROWS * CLASSES * 4}
        assert rank["ddp"]["activations"] == {
            f"module.{name}" if name != "(unattributed)" else name: nbytes for name, nbytes in activations.items()
        }


def test_what_fsdp_gathers_for_a_recomputation_is_part_of_it(two):
    """Three blocks run again as one: the last is gathered before, with it the next to last, the first in it."""
    found = two[0]["fsdp_all_again"]
    assert found["recompute"] == 3 * (FORWARD - HEAD) // 2 - 2 * ROWS * HIDDEN * WIDTH  # it stops at the last product
    gathered = [[unit, phase, calls] for unit, phase, op, calls, _, _ in found["messages"] if op == GATHER]
    assert [row for row in gathered if row[1] != "forward"] == [
        ["layers.2", "backward", 1], ["layers.1", "backward", 1], ["layers.0", "recompute", 1],
    ]  # fmt: skip


def test_tensor_parallel_counts_what_each_rank_multiplies(two):
    """Half of the blocks and all of the head, which is what the ranks together do more than the model."""
    for rank in two:
        found = rank["tensors"]
        assert found["flops"] == [(FORWARD - HEAD) // 2 + HEAD, FORWARD - HEAD + 2 * HEAD]
        assert sum(found["flops"]) == 31_457_280
        # of the blocks half of each weight and of the first bias; bias of the second and head are whole
        assert found["memory"]["parameters"] == 2 * ((UP + DOWN - WIDTH * 4) // 2 + WIDTH * 4) + LAST
        assert found["tree"][""] == [NET // 4, found["memory"]["parameters"]]
        assert found["activations"]["layers.0"] == ROWS * HIDDEN * 4 // 2
    assert sum(sum(rank["tensors"]["flops"]) for rank in two) - 3 * FORWARD == 3 * HEAD == 6_291_456


def test_the_module_that_redistributes_owns_what_is_sent(two):
    reduce, nbytes = "_c10d_functional::all_reduce.default", ROWS * WIDTH * 4
    assert sorted(two[0]["tensors"]["messages"]) == [
        ["layers.0.down", "forward", reduce, 1, nbytes, "tp"],
        ["layers.0.up", "backward", reduce, 1, nbytes, "tp"],
        ["layers.1.down", "forward", reduce, 1, nbytes, "tp"],
        ["layers.1.up", "backward", reduce, 1, nbytes, "tp"],
    ]


def test_the_first_step_of_shards_counts_as_a_further_one(two):
    forward = 2 * ROWS * 4 * WIDTH * 384 // 2 + HEAD
    backward = 2 * forward - 2 * ROWS * WIDTH * 384 // 2  # the input has no gradient
    assert two[0]["cold_tensors"] == two[1]["cold_tensors"] == [[forward, backward]] * 2


def test_a_pipeline_counts_its_stages(two):
    block = (FORWARD - HEAD) // 2
    for rank, flops in zip(two, (block, block + HEAD), strict=True):
        for found in rank["pipeline"]:
            assert set(found["outcomes"].values()) == {"done"}
            assert found["warnings"] == []
            assert found["without_rule"] == []
            assert found["flops"] == [flops, 2 * flops]
            nbytes = ROWS * WIDTH * 4  # of the activations, and of their gradients
            assert found["messages"] == [
                ["c10d::recv_.default", "pp", 4, nbytes],
                ["c10d::send.default", "pp", 4, nbytes],
            ]
            compute, exposed, idle, step = found["account"]
            assert compute + exposed + idle == step
            assert found["layout"]["mesh"] == {"pp": 2}
    assert [block, block + HEAD] == [8_388_608, 10_485_760]


def test_uneven_shards_are_not_padded_for_their_flops(four):
    """258 columns over 4 are 65, 65, 65 and 63."""
    for rank, columns in zip(four, (65, 65, 65, 63), strict=True):
        found = rank["uneven_tensors"]
        forward = 2 * ROWS * 4 * WIDTH * columns + HEAD
        assert found["flops"] == [forward, 2 * forward]
        assert sum(found["flops"]) == found["torch_flops"]
        assert found["restored"]
        assert found["tree"]["layers.0"] == [2 * WIDTH * 258 + 258 + WIDTH, (2 * WIDTH * columns + columns + WIDTH) * 4]
    whole = 3 * 2 * ROWS * (4 * WIDTH * 258 + WIDTH * CLASSES)
    assert sum(sum(rank["uneven_tensors"]["flops"]) for rank in four) == whole + 3 * 3 * HEAD


def test_the_padding_of_uneven_shards_is_held_once(four):
    """Every rank has room for 65 of the 258 rows; the elements of all add up to the model's."""
    padded = 2 * (65 * WIDTH + 65 + WIDTH // 4 * 258 + WIDTH // 4) * 4 + LAST // 4
    for rank in four:
        found = rank["uneven_fsdp"]
        assert found["flops"] == [2 * ROWS * (4 * WIDTH * 258 + WIDTH * CLASSES) * factor for factor in (1, 2)]
        assert found["memory"]["parameters"] == found["memory"]["gradients"] == padded
        assert found["restored"]
        gathered = {unit: nbytes for unit, _, op, _, nbytes, _ in found["messages"] if op == GATHER}
        assert gathered == {"": LAST, "layers.0": 2 * padded - LAST // 2, "layers.1": 2 * padded - LAST // 2}
    params = four[0]["uneven_fsdp"]["tree"][""][0]
    assert sum(rank["uneven_fsdp"]["tree"][""][1] for rank in four) == 4 * params == 300_048


def test_a_mesh_of_two_dimensions(four):
    """Data parallel outside, tensor parallel inside: ranks 0 and 1 share a tensor, 0 and 2 a unit of FSDP."""
    for number, rank in enumerate(four):
        found, first = rank["two_dimensions"], number - number % 2
        assert found["layout"] == {
            "world": 4, "rank": number, "mesh": {"dp": 2, "tp": 2},
            "groups": {"dp": [number % 2, number % 2 + 2], "tp": [first, first + 1], "world": [0, 1, 2, 3]},
            "parallel": ["fsdp", "tp"],
        }  # fmt: skip
        assert sum(found["flops"]) == found["torch_flops"] == 31_457_280
        groups = {(group, op.rpartition("::")[2]) for *_, op, _, _, group in found["messages"]}
        assert groups == {
            ("dp", "_allgather_base_.default"), ("dp", "_reduce_scatter_base_.default"), ("tp", "all_reduce.default"),
        }  # fmt: skip
