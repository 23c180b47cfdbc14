"""Operators of compiled graphs: owners, phases, FLOPs and the bytes that a kernel's time is split by."""

import operator

import pytest
import torch
import torch._inductor.inductor_prims
import torch._prims.rng_prims
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpuprof.analysis.shares import split_ns
from gpuprof.compiled.capture import captured
from gpuprof.compiled.nodes import operators, owners, place, strangers
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory import Cost, TensorSpec, cost_of

aten, prims = torch.ops.aten, torch.ops.prims


def said(node):
    return node.meta.get("module")


class Graph(torch.fx.Graph):
    """A graph made by hand: what each node makes is a tensor on the meta device, and its module in its own words."""

    def given(self, name, *shape, dtype=torch.float32):
        node = self.placeholder(name)
        node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        return node

    def add(self, name, target, *args, module=None, tag=None, stack=True, **meta):
        node = self.create_node("call_function", target, args, {}, name)
        values = torch.fx.node.map_arg(args, lambda given: given.meta["val"])
        node.meta |= {"val": target(*values), "module": module, "partitioner_tag": tag, **meta}
        if stack:
            node.meta["fwd_nn_module_stack" if tag == "is_backward" else "nn_module_stack"] = {}
        return node


def rows_of(graph, kernels, direction="forward", **options):
    return operators(graph, 0, kernels, direction, said, **options)


def row_of(rows, op, module=None, kernel=None):
    (found,) = [
        row
        for row in rows
        if row["op"].startswith(op) and module in (None, row["module"]) and kernel in (None, row["kernel"])
    ]
    return found


def moved_by(rows, kernel):
    totals = {}
    for row in rows:
        if row["kernel"] == kernel and row["kind"] != "view":
            owner = row["module"], row["phase"]
            totals[owner] = (
                None if None in (row["moved"], totals.get(owner, 0)) else totals.get(owner, 0) + row["moved"]
            )
    return totals


@pytest.mark.parametrize(
    ("duration", "weights", "shares"),
    [
        (10, [1, 1, 1], [3, 3, 4]),
        (7, [0, 5, 0, 9], [0, 2, 0, 5]),
        (1, [1, 1], [0, 1]),
        (0, [3, 4], [0, 0]),
        (2**62 + 1, [1, 2**70], [0, 2**62 + 1]),
        (13_631, [33_280, 33_792, 1], [6763, 6867, 1]),
    ],
)
def test_shares_are_whole_and_add_up(duration, weights, shares):
    assert split_ns(duration, weights) == shares


def test_a_share_is_never_a_nanosecond_off():
    weights = [7, 0, 123_457, 1, 99_991, 3] * 50
    shares = split_ns(1_000_003, weights)

    assert sum(shares) == 1_000_003
    assert all(
        abs(share * sum(weights) - 1_000_003 * weight) < sum(weights)
        for share, weight in zip(shares, weights, strict=True)
    )
    assert {share for share, weight in zip(shares, weights, strict=True) if not weight} == {0}


def test_a_product_is_priced_as_anywhere():
    graph = Graph()
    bias, a, b = graph.given("bias", 7), graph.given("a", 3, 5), graph.given("b", 5, 7)
    batch = graph.given("batch", 2, 7, 5)
    graph.add("addmm", aten.addmm.default, bias, a, b, module="up")
    graph.add("mm", aten.mm.default, a, b, module="up")
    graph.add("bmm", aten.bmm.default, batch, graph.given("other", 2, 5, 4), module="up")
    graph.add(
        "conv", aten.convolution.default, graph.given("x", 2, 3, 8, 8), graph.given("w", 4, 3, 3, 3), None, [1, 1],
        [0, 0], [1, 1], False, [0, 0], 1, module="conv",
    )  # fmt: skip
    rows = rows_of(graph, {}, calls=3)

    # one multiply-accumulate is 2 FLOPs, in three calls of the graph
    assert row_of(rows, "aten::addmm")["flops_hardware"] == 3 * 2 * 3 * 5 * 7
    assert row_of(rows, "aten::addmm")["vector_flops"] == 3 * 3 * 7
    assert row_of(rows, "aten::mm")["flops_hardware"] == 3 * 2 * 3 * 5 * 7
    assert row_of(rows, "aten::bmm")["flops_hardware"] == 3 * 2 * 2 * 7 * 5 * 4
    assert row_of(rows, "aten::convolution")["flops_hardware"] == 3 * 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)
    assert row_of(rows, "aten::mm") == {
        "graph": 0, "kernel": "", "repeat": 0, "module": "up", "phase": "forward", "op": "aten::mm.default",
        "kind": "matmul", "shapes": "3x5 5x7 -> 3x7", "dtype": "float32", "calls": 3, "moved": None,
        "flops_causal": 630, "flops_full": 630, "flops_hardware": 630, "vector_flops": 0,
        "bytes": 3 * 4 * (15 + 35 + 21),
    }  # fmt: skip


def test_fused_attention_of_a_cpu_does_the_unmasked_pairs():
    graph = Graph()
    heads = [graph.given(name, 1, 2, 16, 8) for name in "qkv"]
    attend = aten._scaled_dot_product_flash_attention_for_cpu.default
    graph.add("whole", attend, *heads, 0.0, False, module="whole")
    graph.add("causal", attend, *heads, 0.0, True, module="causal")
    rows = rows_of(graph, {})

    assert row_of(rows, "aten::", "whole")["flops_hardware"] == 2 * 2 * 16 * 16 * (8 + 8)
    assert row_of(rows, "aten::", "causal")["flops_hardware"] == 2 * 2 * (16 * 17 // 2) * (8 + 8)


def test_operators_of_compilers_have_rules():
    graph = Graph()
    x = graph.given("x", 2, 4, 6, 6)
    graph.add("cast", prims.convert_element_type.default, x, torch.bfloat16, module="m")
    pool = graph.add(
        "pool", prims._low_memory_max_pool_with_offsets.default, x, [3, 3], [2, 2], [1, 1], [1, 1], False, module="m"
    )
    offsets = graph.add("offsets", operator.getitem, pool, 1)
    graph.add(
        "places", prims._low_memory_max_pool_offsets_to_indices.default, offsets, [3, 3], [6, 6], [2, 2], [1, 1],
        [1, 1], module="m",
    )  # fmt: skip
    rows = rows_of(graph, {})

    assert [(row["kind"], row["vector_flops"]) for row in rows] == [
        ("movement", 0),
        ("vector", 9 * 2 * 4 * 3 * 3),  # nine comparisons for each element of the result
        ("movement", 0),
    ]


def test_a_fused_multiply_and_add_is_two():
    x = TensorSpec((4, 8))

    assert cost_of("prims::fma.default", (x, x, x), {}, x) == (Cost(vector=64), "vector")


def test_a_fused_convolution_knows_its_weight_from_what_it_adds():
    x, weight, bias, out = (TensorSpec(shape) for shape in ((2, 3, 8, 8), (4, 3, 3, 3), (4,), (2, 4, 6, 6)))
    cost = Cost(full=2 * 288 * 27, vector=2 * 288)

    for op, args in (
        ("_convolution_pointwise", (x, out, weight, bias)),
        ("_convolution_pointwise_", (out, x, weight, bias)),
    ):
        assert cost_of(f"mkldnn::{op}.binary", args, {}, out) == (cost, "convolution")


def test_an_operator_with_a_state_of_random_numbers_is_that_operator():
    graph = Graph()
    heads = [graph.given(name, 1, 2, 16, 8) for name in "qkv"]
    state = graph.given("state", 16, dtype=torch.uint8)
    attend = aten._scaled_dot_product_flash_attention_for_cpu.default
    made = (torch.empty(1, 2, 16, 8, device="meta"), torch.empty(1, 2, 16, device="meta"))
    higher = torch._prims.rng_prims
    for target, args, result in (
        (higher.run_and_save_rng_state, (attend, *heads), (state.meta["val"], made)),
        (higher.run_with_rng_state, (state, attend, *heads), made),
    ):
        node = graph.create_node("call_function", target, args)
        node.meta |= {"val": result, "module": "attn", "nn_module_stack": {}}
    (row,) = rows_of(graph, {})

    assert (row["op"], row["calls"]) == ("aten::_scaled_dot_product_flash_attention_for_cpu.default", 2)
    assert row["flops_hardware"] == 2 * (2 * 2 * 16 * 16 * (8 + 8))


def mm_plus_mm(match, a, b, c, d):
    """As Inductor has it in a graph: a function, and no operator."""


def test_a_function_of_inductors_is_priced_by_its_name():
    graph = Graph()
    a, b = graph.given("a", 3, 5), graph.given("b", 5, 7)
    node = graph.create_node("call_function", mm_plus_mm, (a, b, a, b), {}, "both")
    node.meta |= {"val": torch.empty(3, 7, device="meta"), "module": "m", "nn_module_stack": {}}
    (row,) = rows_of(graph, {})

    assert (row["op"], row["flops_hardware"], row["vector_flops"]) == ("inductor::mm_plus_mm", 2 * 210, 21)


def test_what_has_no_rule_is_unknown():
    graph = Graph()
    node = graph.create_node("call_function", test_what_has_no_rule_is_unknown, (graph.given("x", 4),), {}, "own")
    node.meta |= {"val": torch.empty(4, device="meta"), "module": "m", "nn_module_stack": {}}
    (row,) = rows_of(graph, {"own_kernel:1": ["own"]})

    assert (row["kind"], row["op"]) == ("", "inductor::test_what_has_no_rule_is_unknown")
    assert [row[figure] for figure in ("flops_causal", "flops_hardware", "vector_flops", "bytes")] == [None] * 4
    assert row["moved"] == 16  # it reads its input, whatever it does


def test_symbolic_sizes_count_by_their_hints_and_are_unknown_without():
    from torch._dynamo.source import ConstantSource
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    sizes = ShapeEnv()
    rows = sizes.create_symintnode(
        sizes.create_symbol(
            6, ConstantSource("rows"), dynamic_dim=torch.fx.experimental.symbolic_shapes.DimDynamic.DYNAMIC
        ),
        hint=6,
    )
    found = {}
    for name, length in (("hint", rows), ("none", sizes.create_unbacked_symint())):
        graph = Graph()
        x, w = graph.given("x", 1), graph.given("w", 5, 7)
        with FakeTensorMode(shape_env=sizes):
            x.meta["val"] = torch.empty(length, 5)
            w.meta["val"] = torch.empty(5, 7)
            graph.add("mm", aten.mm.default, x, w, module="m")
        (found[name],) = rows_of(graph, {"extern_kernels.mm:1": ["mm"]})

    assert [found["hint"][column] for column in ("shapes", "flops_hardware")] == ["6x5 5x7 -> 6x7", 2 * 6 * 5 * 7]
    assert [found["none"][column] for column in ("shapes", "kind", "flops_hardware", "bytes", "moved")] == [
        "?x5 5x7 -> ?x7", "matmul", None, None, None,
    ]  # fmt: skip


def test_a_sum_of_gradients_belongs_to_the_input_made_last():
    graph = Graph()
    grad = graph.given("tangents_1", 4, 8)
    first = graph.add("mul", aten.mul.Tensor, grad, grad, module="norm", tag="is_backward")
    second = graph.add("neg", aten.neg.default, grad, module="down", tag="is_backward")
    said_so = {"is_gradient_acc": True, "stack_trace": "Gradient addition node", "stack": False}
    one = graph.add("one", aten.add.Tensor, second, first, tag="is_backward", **said_so)
    given = graph.add("given", aten.add.Tensor, first, grad, tag="is_backward", **said_so)
    found = owners(graph, said)

    assert (found[one], found[given]) == ("down", "norm")
    assert {row["phase"] for row in rows_of(graph, {}, "backward")} == {"backward"}


def test_a_product_that_adds_a_gradient_belongs_to_the_module_of_its_factors():
    graph = Graph()
    grad, x = graph.given("tangents_1", 6, 4), graph.given("x", 4, 8)
    logits = graph.add("logits", aten.neg.default, grad, module="lm_head", tag="is_backward")
    table = graph.add("table", aten.mm.default, grad, x, module="embed", tag="is_backward")
    tied = graph.add(
        "tied", aten.addmm.default, table, logits, x, tag="is_backward", stack=False, is_gradient_acc=True
    )  # fmt: skip

    assert owners(graph, said)[tied] == "lm_head"


def test_what_the_compiler_adds_belongs_to_its_input_or_to_its_users():
    graph = Graph()
    running, x = graph.given("running_mean", 8), graph.given("x", 4, 8)
    seed = graph.add("seed", prims.inductor_seeds.default, 1, torch.device("meta"), stack=False)
    shared = graph.add("shared", aten.full_like.default, running, 0.0, stack=False)
    mean = graph.add("mean", aten.mean.dim, x, [0], module="net.bn")
    lookup = graph.add("lookup", prims.inductor_lookup_seed.default, seed, 0, module="drop")
    graph.add("first", aten.add.Tensor, mean, shared, module="net.bn")
    graph.add("second", aten.add.Tensor, mean, shared, module="net.head")
    loss = graph.add("loss", aten.sum.default, mean)  # of a function that is no module's
    copied = graph.add("copied", aten.copy_.default, running, mean, stack=False, stack_trace="File net.py")
    found = owners(graph, said)

    assert [found[node] for node in (seed, lookup, shared, loss, copied)] == [
        "drop", "drop", "net", UNATTRIBUTED, "net.bn",
    ]  # fmt: skip


def test_an_optimizer_that_is_compiled_has_its_phase():
    graph = Graph()
    weight, grad = graph.given("weight", 3, 5), graph.given("grad", 3, 5)
    where = {"stack": False, "stack_trace": '  File "/lib/torch/optim/sgd.py", line 1, in step'}
    step = graph.add("step", aten.sub.Tensor, weight, grad, **where)
    graph.add("copy_", aten.copy_.default, weight, step, **where)
    rows = rows_of(graph, {"cpp_fused_copy__sub_0:1": ["step", "copy_"]}, "whole")

    assert {(row["module"], row["phase"]) for row in rows} == {(UNATTRIBUTED, "optimizer")}
    # read are the weight and its gradient, the weight is written, and what is written into it leaves by that alone
    assert [row["moved"] for row in rows] == [2 * 60, 60]


def test_each_tensor_is_read_once_and_views_are_looked_through():
    graph = Graph()
    both = graph.given("both", 4, 16)  # 256 bytes
    halves = graph.add("halves", aten.split.Tensor, both, 8, 1, module="mlp")
    gate, up = (graph.add(f"half{at}", operator.getitem, halves, at) for at in (0, 1))
    act = graph.add("act", aten.sigmoid.default, gate, module="act")
    product = graph.add("product", aten.mul.Tensor, gate, act, module="act")
    out = graph.add("out", aten.mul.Tensor, product, up, module="mlp")
    turned = graph.add("turned", aten.permute.default, both, [1, 0], module="mlp")
    total = graph.add("total", aten.sum.default, turned, module="mlp")
    graph.output((graph.add("flat", aten.view.default, out, [32], module="mlp"), total))
    rows = rows_of(graph, {"cpp_fused_0:1": ["half0", "act", "product", "out", "total", "turned", "unknown"]})

    # act reads one half once; mlp the other half, the rest when it sums up both (together no more than there is), and
    # writes the result, which leaves as a view of it, and the sum
    assert moved_by(rows, "cpp_fused_0:1") == {("act", "forward"): 128, ("mlp", "forward"): 256 + 128 + 4}
    assert strangers(graph, {"cpp_fused_0:1": ["act", "unknown"]}) == ["unknown"]


def test_a_table_is_read_where_it_is_looked_up():
    graph = Graph()
    table, places = graph.given("table", 50_000, 16), graph.given("places", 2, 5, dtype=torch.int64)
    graph.output(graph.add("rows", aten.embedding.default, table, places, module="embed"))
    (row,) = rows_of(graph, {"cpp_fused_embedding_0:1": ["rows"]})

    assert row["moved"] == 10 * 8 + 2 * (10 * 16 * 4)


def test_what_a_second_kernel_does_again_is_a_repeat_and_not_written_twice():
    graph = Graph()
    x, w = graph.given("x", 8, 8), graph.given("w", 8, 8)
    twice = graph.add("twice", aten.add.Tensor, x, x, module="a")
    graph.add("sine", aten.sin.default, twice, module="b")
    product = graph.add("mm", aten.mm.default, graph.add("cosine", aten.cos.default, twice, module="c"), w, module="d")
    graph.output(product)
    rows = rows_of(graph, {"one:1": ["twice", "sine"], "two:2": ["twice", "cosine"], "extern_kernels.mm:3": ["mm"]})

    again = row_of(rows, "aten::add", kernel="two:2")
    assert (row_of(rows, "aten::add", kernel="one:1")["repeat"], again["repeat"]) == (0, 1)
    assert moved_by(rows, "one:1") == {("a", "forward"): 256, ("b", "forward"): 0}
    assert moved_by(rows, "two:2") == {("a", "forward"): 256, ("c", "forward"): 256}
    assert moved_by(rows, "extern_kernels.mm:3") == {("d", "forward"): 3 * 256}


def test_a_kernel_of_a_library_does_its_operator_alone():
    graph = Graph()
    grad, *heads = (graph.given(name, 1, 2, 16, 8) for name in ("grad", "q", "k", "v"))
    scaled = graph.add("mul", aten.mul.Tensor, grad, 2.0, module="drop")
    attend = aten._scaled_dot_product_flash_attention_for_cpu.default
    graph.add("attend", attend, scaled, *heads[1:], 0.0, False, module="attn")
    # as Inductor tells it where the input of attention is written first
    both = ["mul", "attend"]
    extern = "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:2"
    rows = rows_of(graph, {"cpp_fused_mul_0:1": both, extern: both})

    assert [(row["module"], row["kernel"], row["repeat"]) for row in rows] == [
        ("drop", "cpp_fused_mul_0:1", 0), ("attn", extern, 0),
    ]  # fmt: skip
    assert moved_by(rows, "cpp_fused_mul_0:1") == {("drop", "forward"): 2 * 1024}


def test_a_copy_of_an_input_is_the_operators_that_needs_it():
    graph = Graph()
    a, b = graph.given("a", 4, 8), graph.given("b", 8, 4)
    turned = graph.add("turned", aten.permute.default, a, [1, 0], module="act")
    graph.output(
        graph.add("mm", aten.mm.default, graph.add("back", aten.t.default, turned, module="act"), b, module="fc")
    )
    rows = rows_of(graph, {"cpp_fused_mm_0:1": ["turned", "mm"], "extern_kernels.mm:2": ["mm"]})

    done = [(row["kernel"], row["repeat"]) for row in rows if row["module"] == "fc"]
    assert done == [("extern_kernels.mm:2", 0), ("cpp_fused_mm_0:1", 1)]
    assert place([row for row in rows if row["kernel"] == "cpp_fused_mm_0:1"]) == ("fc", "forward")


def test_a_kernel_that_is_not_named_after_its_operator_does_all_that_it_says():
    graph = Graph()
    graph.output(graph.add("seeds", prims.inductor_seeds.default, 2, torch.device("meta"), module="drop"))
    (row,) = rows_of(graph, {"aten.randint.low_out:1": ["seeds"]})

    assert (row["kernel"], row["moved"]) == ("aten.randint.low_out:1", 16)


@pytest.mark.parametrize(
    ("owned", "found"),
    [
        ([("a.b.c", "forward")], ("a.b.c", "forward")),
        ([("a.b.c", "forward"), ("a.d", "forward")], ("a", "forward")),
        ([("a.b", "backward"), ("a.b.c", "recompute")], ("a.b", "backward")),
        ([("a", "recompute"), ("b", "recompute")], ("", "recompute")),
        ([("a", "forward"), (UNATTRIBUTED, "forward")], (UNATTRIBUTED, "forward")),
        ([], (UNATTRIBUTED, "other")),
    ],
)
def test_the_place_of_a_kernel_is_the_one_that_its_owners_are_in(owned, found):
    idle = [("view", 0), ("movement", 0)] if owned else []
    rows = [{"module": module, "phase": phase, "kind": "vector", "moved": 0} for module, phase in owned]

    assert place(rows + [{"module": "z", "phase": "forward", "kind": kind, "moved": at} for kind, at in idle]) == found


class Net(nn.Module):
    def __init__(self, again=False):
        super().__init__()
        self.up, self.norm, self.act, self.down = nn.Linear(24, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 16)
        self.again = again

    def body(self, x):
        return self.down(self.act(self.norm(self.up(x))))

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)


@pytest.fixture(scope="module")
def compiled():
    """Rows of the forward and of the backward of 256 rows through each net, compiled by Inductor for a CPU."""
    found = {}
    for again in (False, True):
        net = Net(again)
        net.compile()
        with captured(net, "cpu") as graphs:
            net(torch.randn(8, 32, 24)).sum().backward()
        found[again] = [
            operators(graph.nodes, number, graph.kernels, graph.direction, graph.owner)
            for number, graph in enumerate(graphs.graphs)
        ]
    torch._dynamo.reset()
    return found


def total(rows, figure, **where):
    return sum(row[figure] for row in rows if not row["repeat"] and where.items() <= row.items())


def test_a_norm_and_an_activation_in_one_kernel_are_split_by_hand(compiled):
    forward, _ = compiled[False]
    kernels = {row["kernel"] for row in forward if row["module"] in ("norm", "act") and row["kind"] != "view"}
    (kernel,) = kernels
    numbers = 8 * 32 * 48

    # The norm reads x, its weight and its bias, and leaves the mean and the inverse deviation of each row for the
    # backward. What it makes for the activation stays in the kernel; that reads nothing else, and writes its result.
    norm = 4 * (numbers + 48 + 48 + 2 * 8 * 32)
    act = 4 * numbers
    assert moved_by(forward, kernel) == {("norm", "forward"): norm, ("act", "forward"): act}
    assert (norm, act) == (51_584, 49_152)
    assert split_ns(1_000_000, [norm, act]) == [512_071, 487_929]
    assert place([row for row in forward if row["kernel"] == kernel]) == ("", "forward")


def test_what_the_partitioner_computes_again_is_recompute(compiled):
    _, backward = compiled[False]
    numbers = 8 * 32 * 48

    # of the activation 1 + erf(x / sqrt 2): a product, erf, a sum; x is made again by the norm, of the mean and the
    # inverse deviation that were kept: a difference, two products, a sum
    assert total(backward, "vector_flops", module="act", phase="recompute") == 3 * numbers
    assert total(backward, "vector_flops", module="norm", phase="recompute") == 4 * numbers
    assert total(backward, "flops_hardware", phase="recompute") == 0
    assert total(backward, "flops_hardware", module="down", phase="backward") == 2 * (2 * 256 * 48 * 16)
    assert total(backward, "flops_hardware", module="up", phase="backward") == 2 * 256 * 24 * 48  # x needs no gradient


def test_a_checkpoint_in_a_region_computes_its_products_again(compiled):
    forward, backward = compiled[True]
    up, down = 2 * 256 * 24 * 48, 2 * 256 * 48 * 16

    assert total(forward, "flops_hardware", phase="forward") == up + down
    # the whole activation and the product before it; nobody needs the result of the last one again
    assert total(backward, "vector_flops", module="act", phase="recompute") == 5 * 8 * 32 * 48
    assert total(backward, "flops_hardware", phase="recompute") == up
    assert total(backward, "flops_hardware", module="up", phase="recompute") == up
    assert total(backward, "flops_hardware", phase="backward") == up + 2 * down
