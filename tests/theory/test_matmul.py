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
