from __future__ import annotations

import pytest
import torch

from gpuprof.theory import TensorSpec, cost_of

T = TensorSpec
INT = T((4,), "int32")


@pytest.mark.parametrize(
    ("op", "args", "out", "flops", "vector"),
    [
        ("mm.default", (T((2, 3)), T((3, 5))), T((2, 5)), 2 * 2 * 3 * 5, 0),
        ("addmm.default", (T((5,)), T((2, 3)), T((3, 5))), T((2, 5)), 60, 10),
        ("bmm.default", (T((7, 2, 3)), T((7, 3, 5))), T((7, 2, 5)), 7 * 60, 0),
        ("baddbmm.default", (T((7, 2, 5)), T((7, 2, 3)), T((7, 3, 5))), T((7, 2, 5)), 7 * 60, 70),
        ("addbmm.default", (T((2, 5)), T((7, 2, 3)), T((7, 3, 5))), T((2, 5)), 7 * 60, 10),
        ("mv.default", (T((2, 3)), T((3,))), T((2,)), 12, 0),
        ("addmv.default", (T((2,)), T((2, 3)), T((3,))), T((2,)), 12, 2),
        ("dot.default", (T((3,)), T((3,))), T(()), 6, 0),
        ("linear.default", (T((4, 2, 3)), T((5, 3)), T((5,))), T((4, 2, 5)), 4 * 60, 40),
        ("linear.default", (T((4, 2, 3)), T((3,))), T((4, 2)), 4 * 12, 0),
        ("matmul.default", (T((4, 1, 2, 3)), T((6, 3, 5))), T((4, 6, 2, 5)), 24 * 60, 0),
        ("matmul.default", (T((3,)), T((3, 5))), T((5,)), 30, 0),
        ("linear_backward.default", (T((2, 3)), T((2, 5)), T((5, 3)), [True, True, True]), (), 120, 10),
        ("linear_backward.default", (T((2, 3)), T((2, 5)), T((5, 3)), [False, True, False]), (), 60, 0),
        ("_int_mm.default", (T((2, 3), "int8"), T((3, 5), "int8")), T((2, 5), "int32"), 60, 0),
        ("_weight_int8pack_mm.default", (T((2, 8)), T((5, 8), "int8"), T((5,))), T((2, 5)), 160, 0),
        ("_weight_int4pack_mm.default", (T((2, 64)), T((1, 1, 32, 4)), 32, T((2, 8, 2))), T((2, 8)), 2048, 0),
        ("_scaled_mm.default", (T((2, 16)), T((16, 5)), T(()), T(()), T((5,))), T((2, 5)), 320, 10),
        ("_scaled_mm.default", (T((2, 16)), T((16, 5)), T(()), T(())), T((2, 5)), 320, 0),
        # Two four-bit values in each element.
        (
            "_scaled_mm_v2.default",
            (T((2, 8), "float4_e2m1fn_x2"), T((8, 5)), [T(())], [0], [0], [T(())], [0], [0], None, None),
            T((2, 5)),
            320,
            0,
        ),
        ("_grouped_mm.default", (T((10, 3)), T((4, 3, 5)), INT), T((10, 5)), 10 * 2 * 15, 0),
        ("_grouped_mm.default", (T((3, 10)), T((10, 5)), INT), T((4, 3, 5)), 10 * 2 * 15, 0),
        ("_grouped_mm.default", (T((4, 5, 3)), T((3, 10)), INT), T((5, 10)), 10 * 2 * 15, 0),
        ("_grouped_mm.default", (T((4, 2, 3)), T((4, 3, 5))), T((4, 2, 5)), 4 * 60, 0),
        # Half of the weight is left after 2:4 pruning.
        ("_sparse_semi_structured_linear.default", (T((2, 8)), T((5, 4)), T((5, 1))), T((2, 5)), 80, 0),
    ],
)
def test_matmul_flops_by_hand(op, args, out, flops, vector):
    cost, kind = cost_of(f"aten::{op}", args, {}, out)
    assert (cost.full, cost.vector, kind) == (flops, vector, "matmul")


C = "complex64"


def sparse(shape, stored, places=None):
    return T(shape, stored=stored, values=places)


@pytest.mark.parametrize(
    ("op", "args", "out", "flops"),
    [
        ("mm", (T((2, 3), C), T((3, 5), C)), T((2, 5), C), 8 * 2 * 3 * 5),
        ("bmm", (T((7, 2, 3), C), T((7, 3, 5), C)), T((7, 2, 5), C), 7 * 8 * 30),
        ("mv", (T((2, 3), "complex128"), T((3,), "complex128")), T((2,), "complex128"), 8 * 6),
        ("matmul", (T((4, 1, 2, 3), C), T((6, 3, 5), C)), T((4, 6, 2, 5), C), 24 * 8 * 30),
        # what is stored meets every column, or every row
        ("mm", (sparse((10, 12), 6), T((12, 4))), T((10, 4)), 2 * 6 * 4),
        ("mm", (T((4, 10)), sparse((10, 12), 6)), T((4, 12)), 2 * 6 * 4),
        ("_sparse_addmm", (T((10, 4)), sparse((10, 12), 6), T((12, 4))), T((10, 4)), 2 * 6 * 4),
        ("addmm", (T((10, 4)), sparse((10, 12), 6), T((12, 4))), T((10, 4)), 2 * 6 * 4),
        ("mv", (sparse((10, 12), 6), T((12,))), T((10,)), 2 * 6),
        ("hspmm", (sparse((10, 12), 6), T((12, 4))), T((10, 4)), 2 * 6 * 4),
        ("bmm", (sparse((3, 10, 12), 6), T((3, 12, 4))), T((3, 10, 4)), 2 * 6 * 4),
        ("sparse_sampled_addmm", (sparse((6, 6), 12), T((6, 3)), T((3, 6))), sparse((6, 6), 12), 2 * 12 * 3),
        ("_sparse_mm_reduce_impl", (sparse((10, 12), 6), T((12, 4)), "max"), (T((10, 4)), T((0,))), 2 * 6 * 4),
        # rows 0 1 1 of the one, in columns 0 0 2; the other has two elements in row 0, none in row 1, one in row 2
        (
            "_sparse_sparse_matmul",
            (sparse((2, 3), 3, ((0, 1, 1), (0, 0, 2))), sparse((3, 2), 3, ((0, 0, 2), (0, 1, 1)))),
            sparse((2, 2), 4),
            2 * (2 + 2 + 1),
        ),
    ],
)  # fmt: skip
def test_complex_and_sparse_products_by_hand(op, args, out, flops):
    assert cost_of(f"aten::{op}.default", args, {}, out)[0].full == flops


def test_two_sparse_factors_need_the_places_of_what_they_store():
    assert cost_of("aten::mm.default", (sparse((2, 3), 3), sparse((3, 2), 3)), {}, sparse((2, 2), 4)) is None


def test_bytes_of_a_sparse_tensor_are_those_of_what_it_stores():
    a = T((10, 12), "float32", stored=6, index_bytes=96)
    assert (a.numel, a.nbytes) == (6, 6 * 4 + 96)


def test_mixture_of_experts_fallback_of_transformers():
    args = T((10, 3)), T((4, 3, 5)), T((4,), "int64")
    forward, _ = cost_of("transformers::grouped_mm_fallback.default", args, {}, T((10, 5)))
    backward, _ = cost_of(
        "transformers::grouped_mm_fallback_backward.default", (*args, T((10, 5))), {}, (args[0], args[1])
    )
    assert (forward.full, backward.full) == (300, 600)


def test_backward_of_a_linear_layer_is_exactly_twice_its_forward(record):
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(3, 4, 6, requires_grad=True)
    with record() as calls:
        layer(x).sum().backward()
    figures = [call.cost.full for call in calls if call.cost.full]
    assert figures == [2 * 12 * 6 * 5] * 3


def test_grouped_matmul_as_torch_runs_it(record):
    tokens = torch.randn(8, 16, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(2, 16, 24, dtype=torch.bfloat16, requires_grad=True)
    offsets = torch.tensor([3, 8], dtype=torch.int32)
    with record() as calls:
        torch._grouped_mm(tokens, weights, offs=offsets).backward(torch.ones(8, 24, dtype=torch.bfloat16))
    figures = [call.cost.full for call in calls if "_grouped_mm" in call.op]
    assert figures == [2 * 8 * 16 * 24] * 3


def test_composite_operators_that_inference_mode_shows_cost_the_same(record):
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)
    with record() as plain:
        torch.nn.functional.linear(x, weight, bias)
    with torch.inference_mode(), record() as composite:
        torch.nn.functional.linear(x, weight, bias)
    assert "aten::linear.default" in {call.op for call in composite}
    assert sum(call.cost.full for call in plain) == sum(call.cost.full for call in composite) == 2 * 6 * 4 * 5
