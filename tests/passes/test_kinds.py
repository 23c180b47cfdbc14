"""The counting pass on sparse, complex, wrapped and packed tensors, on branches, and on generators."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops import map as map_over
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import gpuprof
from gpuprof.analysis.totals import totals
from gpuprof.errors import GpuprofError
from gpuprof.profiler import run_passes
from gpuprof.workload import Options, build

COMPLEX = torch.complex64


class Function(nn.Module):
    """A function of its inputs, and of parameters that it may use."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, tensor in parameters.items():
            self.register_parameter(name, tensor)

    def forward(self, *inputs):
        return self.function(*inputs)


def given(*shape, dtype=None):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def counted(model, *inputs, mode="train", rules=True):
    """The run, and its matmul FLOPs by phase."""
    run = gpuprof.profile(model, tuple(inputs), passes=["count"], mode=mode)
    assert not rules or run.passes["count"].facts["ops_without_rule"] == []
    flops = run.ops.groupby("phase")["flops_full"].sum()
    return run, (int(flops["forward"]), int(flops.get("backward", 0)))


# -- sparse: what is stored meets every column

STORED, ROWS, INNER, COLUMNS = 6, 10, 12, 4
EACH = 2 * STORED * COLUMNS


def adjacency(layout):
    matrix = torch.zeros(ROWS, INNER)
    if layout is torch.sparse_bsr:
        matrix[0, 0] = 1.0  # one element, which stores a whole block
        return matrix.to_sparse(layout=layout, blocksize=(2, 2))
    matrix[torch.arange(STORED), torch.arange(STORED)] = 1.0
    return matrix.to_sparse(layout=layout)


def test_the_product_of_the_issue():
    dense = 2 * ROWS * INNER * COLUMNS
    assert (dense, EACH) == (960, 48)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize(
    "product",
    [lambda a, x: a @ x, torch.sparse.mm, lambda a, x: torch.sparse.addmm(torch.ones(ROWS, COLUMNS), a, x)],
    ids=["matmul", "sparse.mm", "sparse.addmm"],
)
def test_sparse_products_count_what_is_stored(layout, product):
    a = adjacency(layout)
    assert counted(Function(lambda x: product(a, x)), given(INNER, COLUMNS))[1] == (EACH, EACH)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_factor_on_the_right_and_one_vector(layout):
    a = adjacency(layout)
    assert counted(Function(lambda x: x @ a), given(COLUMNS, ROWS))[1] == (EACH, EACH)
    assert counted(Function(lambda x: a @ x), given(INNER))[1] == (2 * STORED, 2 * STORED)


def test_blocks_count_whole():
    a = adjacency(torch.sparse_bsr)
    assert counted(Function(lambda x: a @ x), torch.randn(INNER, COLUMNS), mode="forward")[1][0] == 2 * 4 * COLUMNS


def test_a_trained_sparse_matrix():
    """csr has its gradient where something is stored; coo takes it from the whole product, which is what runs."""
    for layout, gradient in ((torch.sparse_csr, EACH), (torch.sparse_coo, 2 * ROWS * COLUMNS * INNER)):
        a = nn.Parameter(adjacency(layout))
        assert counted(Function(partial(torch.sparse.mm, a), a=a), given(INNER, COLUMNS))[1] == (EACH, EACH + gradient)


def test_sampled_product_and_reduction():
    square = (torch.eye(6) + torch.eye(6).roll(1, 0)).to_sparse_csr()
    model = Function(lambda x, y: torch.sparse.sampled_addmm(square, x, y).to_dense())
    assert counted(model, given(6, 3), given(3, 6))[1] == (2 * 12 * 3, 2 * 2 * 12 * 3)
    a = nn.Parameter(adjacency(torch.sparse_csr))
    assert counted(Function(lambda x: torch.sparse.mm(a, x, "mean"), a=a), given(INNER, COLUMNS))[1] == (EACH, 2 * EACH)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_two_sparse_factors_meet_where_both_store(layout):
    # a diagonal and one row: row 0 of the right factor has 6 elements, all others one
    left, right = torch.eye(6), torch.eye(6)
    right[0] = 1.0
    a, b = (matrix.to_sparse(layout=layout) for matrix in (left, right))
    assert counted(Function(lambda: (a @ b).to_dense()), mode="forward")[1][0] == 2 * (6 + 5)


GRAPH = """
import torch
from torch import nn

class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8, bias=False)
        a = torch.zeros(10, 12)
        a[torch.arange(6), torch.arange(6)] = 1.0
        self.register_buffer("a", a.to_sparse(), persistent=False)

    def forward(self, x):
        return torch.sparse.mm(self.a, self.layer(x))

def make():
    return Graph(), torch.randn(12, 4)
"""


def test_a_graph_layer_counts_the_same_without_weights(tmp_path):
    file = tmp_path / "graph.py"
    file.write_text(GRAPH)
    for weightless in (False, True):
        run = run_passes(build(f"{file}:make", Options(device="cpu"), weightless=weightless), passes=["count"])
        flops = run.ops.groupby("phase")["flops_full"].sum()
        linear, product = 2 * 12 * 4 * 8, 2 * 6 * 8
        assert (flops["forward"], flops["backward"]) == (linear + product, linear + product)


def test_a_sparse_tensor_on_meta_is_no_zero():
    lost = adjacency(torch.sparse_coo).to("meta")
    with pytest.raises(GpuprofError, match="does not know how much it stores"):
        counted(
            Function(lambda x: x + (lost @ torch.ones(INNER, 1, device="meta")).sum()),
            torch.ones(1, device="meta"),
            mode="forward",
        )


def test_a_sparse_triangle_is_named():
    """Only what it stores in one triangle is read, so its size alone, 4 x 4 for each column, would be wrong."""
    triangle = torch.eye(4).to_sparse_csr()
    run, flops = counted(
        Function(lambda b: torch.triangular_solve(b, triangle)[0]), torch.ones(4, 2), mode="forward", rules=False
    )
    assert flops == (0, 0)
    assert run.passes["count"].facts["ops_without_rule"] == ["aten::triangular_solve.default"]


# -- complex: 8 real FLOPs for a multiply-accumulate


@pytest.mark.parametrize(
    ("function", "shapes", "forward"),
    [
        (lambda x, y: (x @ y).abs(), ((3, 4), (4, 5)), 8 * 3 * 4 * 5),
        (lambda x, y: torch.einsum("bij,jk->bik", x, y).abs(), ((2, 3, 4), (4, 5)), 2 * 8 * 3 * 4 * 5),
        (lambda x, y: torch.linalg.multi_dot([x, y, y]).abs(), ((3, 4), (4, 4)), 2 * 8 * 3 * 4 * 4),
    ],
)
def test_complex_products(function, shapes, forward):
    run, (found, backward) = counted(Function(function), *(given(*shape, dtype=COMPLEX) for shape in shapes))
    assert (found, backward) == (forward, 2 * forward)
    assert set(run.ops.loc[run.ops["kind"] == "matmul", "dtype"]) == {"complex64"}


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_a_complex_convolution_is_three_real_ones(kind):
    layer = kind(2, 3, 3, bias=False, dtype=COMPLEX)
    positions = 6 if kind is nn.Conv1d else 8  # outputs, transposed inputs
    forward = 3 * 2 * 2 * positions * 2 * 3 * 3
    assert counted(Function(lambda x: layer(x).abs()), given(2, 2, 8, dtype=COMPLEX))[1] == (forward, 2 * forward)


def test_a_complex_number_for_a_result_is_a_good_step():
    run, flops = counted(Function(torch.vdot), given(5, dtype=COMPLEX), given(5, dtype=COMPLEX), mode="forward")
    assert flops == (8 * 5, 0)
    assert run.warnings == []


def test_real_parts_by_themselves_are_what_runs():
    """A real times a complex matrix, spelled as real products of both parts, is half of a complex one."""
    model = Function(lambda x, y: torch.view_as_complex(torch.stack([x @ y.real, x @ y.imag], -1)).abs())
    assert counted(model, given(3, 4), given(4, 5, dtype=COMPLEX))[1][0] == 4 * 3 * 4 * 5


def test_the_counter_of_torch_sees_dense_and_real_ones():
    a = adjacency(torch.sparse_coo)
    model = Function(lambda x, y: (a @ x).sum() + (y @ y).abs().sum())
    inputs = given(INNER, COLUMNS), given(3, 3, dtype=COMPLEX)
    run, _ = counted(model, *inputs)
    with FlopCounterMode(display=False) as counter:
        model(*inputs).backward()
    ours = totals(run, "torch-counter")
    assert ours["flops"] == counter.get_total_flops() == 2 * (2 * ROWS * INNER * COLUMNS) + 3 * 2 * 27


# -- tensors that carry out operators by others


class Eighth(torch.Tensor):
    """Stands for torchao's float8 tensors: bfloat16 to the model, multiplied as float8."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.bfloat16, strides=data.stride())

    def __init__(self, data):
        self.data8 = data

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inner = tree_map(lambda value: value.data8 if isinstance(value, cls) else value, args)
        if func is torch.ops.aten.mm.default:
            one = torch.ones(())
            return torch._scaled_mm(*inner, one, one, out_dtype=torch.bfloat16)
        return cls(func(*inner, **(kwargs or {})))


def test_the_dtype_is_that_of_the_product_that_runs():
    a, b = (torch.ones(32, 32).to(torch.float8_e4m3fn) for _ in range(2))
    run, flops = counted(Function(lambda: torch.mm(Eighth(a), Eighth(b).t())), mode="forward")
    assert flops[0] == 2 * 32**3
    rows = run.ops[run.ops["kind"] == "matmul"]
    assert [tuple(row) for row in rows[["op", "dtype"]].to_numpy()] == [("aten::_scaled_mm.default", "float8_e4m3fn")]


def test_quantized_operators_of_torch_know_their_packed_weights():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao will move
        dynamic = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(64, 32), nn.LSTM(32, 8)), {nn.Linear, nn.LSTM}
        )
        run, flops = counted(dynamic, torch.randn(5, 3, 64), mode="forward")
    assert flops[0] == 2 * 15 * (64 * 32 + 32 * 32 + 32 * 8)
    assert set(run.ops.loc[run.ops["flops_full"] > 0, "dtype"]) == {"int8"}


# -- control flow: the branch that is taken, every round

LINEAR = 2 * 3 * 4 * 4


class Branches(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.how(self, x)


def rounds(m, x):
    def body(carry, x):
        y = m.a(carry) + x
        return y, {"kept": y.clone()}

    return scan(body, torch.zeros(3, 4), x)[1]["kept"]


def looped(m, x):
    return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, m.a(x)), (torch.tensor(0), x))[1]


BRANCHES = {
    # the input needs a gradient, so that each product has two
    "cond": (lambda m, x: torch.cond(x.sum() > -1e9, lambda x: m.a(x), lambda x: m.b(m.a(x)), (x,)), (3, 4), 1, 2),
    "the other branch": (
        lambda m, x: torch.cond(x.sum() < -1e9, lambda x: m.a(x), lambda x: m.b(m.a(x)), (x,)), (3, 4), 2, 4
    ),
    "map": (lambda m, x: map_over(lambda x: m.a(x), x), (5, 3, 4), 5, 10),
    "scan": (rounds, (5, 3, 4), 5, 5 + 4),  # the first state is a constant
    "while_loop": (looped, (3, 4), 3, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_bodies_of_control_flow_are_counted_with_their_modules(name):
    how, shape, forward, backward = BRANCHES[name]
    run, flops = counted(Branches(how), given(*shape))
    assert flops == (forward * LINEAR, backward * LINEAR)
    assert set(run.ops.loc[run.ops["flops_full"] > 0, "module"]) <= {"a", "b"}
    assert counted(Branches(how), given(*shape), mode="forward")[1] == (forward * LINEAR, 0)


def test_an_associative_scan_counts_the_products_of_its_tree():
    model = Function(lambda x: associative_scan(lambda a, b: a @ b, x, 0, combine_mode="generic"))
    assert counted(model, given(6, 4, 4), mode="forward")[1][0] == 7 * 2 * 4**3


def test_control_flow_is_as_before_afterwards():
    from torch._higher_order_ops.cond import cond_op

    model = Branches(BRANCHES["cond"][0])
    counted(model, given(3, 4))
    assert torch._higher_order_ops.cond.__globals__["cond_op"] is cond_op
    # the first call of a branch is compiled, which is no part of a step's time
    run = gpuprof.profile(model, given(3, 4), passes=["count", "time"], warmup=1, steps=1, mode="forward")
    assert run.warnings == []


# -- a forward that does its work later


class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x)
            yield x


class Lazily(Stream):
    def forward(self, x):
        return map(self.layer, [x, x])


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.stream = Stream()

    def forward(self, x):
        return list(self.stream(x))[-1]


@pytest.mark.parametrize(("kind", "calls"), [(Stream, 3), (Lazily, 2), (Inside, 3)])
def test_a_generator_is_run_to_its_end(kind, calls):
    each = 2 * 2 * 4 * 4
    run, flops = counted(kind(), torch.randn(2, 4), mode="forward")
    assert flops[0] == calls * each
    assert int(run.tree["calls"].max()) == calls


def test_what_a_generator_yields_is_trained():
    # the mean of what it yields first: one product, whose input needs no gradient
    assert counted(Stream(), torch.randn(2, 4))[1] == (3 * 64, 64)
    run = gpuprof.profile(
        Stream(), torch.randn(2, 4), passes=["count"], loss=lambda stream: sum(x.sum() for x in stream)
    )
    assert int(run.ops.loc[run.ops["phase"] == "backward", "flops_full"].sum()) == (3 + 2) * 64


def test_an_asynchronous_forward_is_refused():
    class Later(Stream):
        async def forward(self, x):
            return x

    with pytest.raises(GpuprofError, match="asynchronous"):
        counted(Later(), torch.randn(2, 4), mode="forward")


# -- sequences without values


def test_a_bound_is_said(tmp_path):
    from torch.nn.attention.varlen import varlen_attn

    file = tmp_path / "packed.py"
    file.write_text(PACKED)
    run = run_passes(build(f"{file}:make", Options(device="cpu", mode="forward"), weightless=True), passes=["count"])
    assert varlen_attn is not None
    known = {row.module: (int(row.flops_full), int(row.flops_causal)) for row in run.ops.itertuples() if row.flops_full}
    assert known == {
        "known": (2 * 2 * (9 + 25 + 4) * 16, 2 * 2 * (6 + 15 + 3) * 16),
        "lost": (2 * 2 * 50 * 16, 2 * 2 * 30 * 16),
    }
    assert [line for line in run.warnings if "upper bound" in line] == [
        "torch_attn::_varlen_attn.default is counted at an upper bound, sequences as long as the longest: "
        "its offsets have no values"
    ]


PACKED = """
import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn

class Packed(nn.Module):
    def __init__(self, known):
        super().__init__()
        self.known = known

    def forward(self, x):
        offsets = torch.tensor([0, 3, 8, 10], dtype=torch.int32)
        offsets = offsets if self.known else (offsets + x.sum()).to(torch.int32)  # computed, and so without values
        return varlen_attn(x, x, x, offsets, offsets, 5, 5, window_size=(-1, 0))

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.known, self.lost = Packed(True), Packed(False)

    def forward(self, x):
        return self.lost(self.known(x))

def make():
    return Both(), torch.randn(10, 2, 8)
"""
