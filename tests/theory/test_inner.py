"""Products inside operators that are called after something else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpuprof.theory import TensorSpec, cost_of

T = TensorSpec


def rows(*shape):
    return torch.randn(shape, requires_grad=True)


def products(calls):
    return [call.cost.full for call in calls if call.cost.full]


@pytest.mark.parametrize(
    ("batch", "m", "n", "width", "mode"),
    [
        ((), 400, 300, 64, None),
        ((3,), 30, 10, 8, None),
        ((2, 3), 10, 26, 8, None),
        ((), 3, 2, 8, "use_mm_for_euclid_dist"),
    ],
)
def test_distances_by_a_product(record, batch, m, n, width, mode):
    with record() as calls:
        x, y = rows(*batch, m, width), rows(*batch, n, width)
        torch.cdist(x, y, compute_mode=mode or "use_mm_for_euclid_dist_if_necessary").sum().backward()
    together = torch.Size(batch).numel()
    # the squares ride along as two more columns; backward: the weighted sum of the other side's points, of each side
    assert products(calls) == [together * 2 * m * n * (width + 2), *[together * 2 * m * n * width] * 2]


def test_the_distances_of_the_issue():
    distance = cost_of("aten::_euclidean_dist.default", (T((400, 64)), T((300, 64))), {}, T((400, 300)))[0]
    assert distance.full == 15_840_000
    assert distance.vector == 3 * 400 * 64 + 2 * 300 * 64 + 2 * 400 * 300


@pytest.mark.parametrize(
    ("m", "n", "how"),
    [
        (25, 25, {}),
        (400, 300, {"compute_mode": "donot_use_mm_for_euclid_dist"}),
        (400, 300, {"p": 1.0}),
    ],
)
def test_distances_by_differences_have_no_product(record, m, n, how):
    with record() as calls:
        torch.cdist(rows(m, 4), rows(n, 4), **how).sum().backward()
    assert products(calls) == []
    forward = next(call for call in calls if call.op.startswith("aten::_cdist_forward"))
    assert forward.cost.vector == m * n * (3 * 4 + 1)


def test_distances_that_arrive_whole_decide_by_themselves():
    whole = cost_of("aten::cdist.default", (T((5, 26, 8)), T((5, 3, 8))), {}, T((5, 26, 3)))[0]
    assert whole.full == 5 * 2 * 26 * 3 * 10
    never = cost_of("aten::_cdist_forward.default", (T((26, 8)), T((3, 8)), 2.0, 2), {}, T((26, 3)))[0]
    assert never.full == 0


@pytest.mark.parametrize(("theta", "size"), [((2, 2, 3), (2, 3, 4, 5)), ((2, 3, 4), (2, 3, 4, 5, 6))])
def test_affine_grid_is_a_product_of_homogeneous_coordinates(record, theta, size):
    with record() as calls:
        F.affine_grid(rows(*theta), list(size), align_corners=False).sum().backward()
    positions, dims = torch.Size(size[2:]).numel(), len(size) - 2
    assert products(calls) == [2 * 2 * positions * (dims + 1) * dims] * 2


def test_bilinear_is_two_products_for_each_output(record):
    batch, first, second, outputs = 14, 3, 4, 5
    with record() as calls:
        nn.Bilinear(first, second, outputs)(rows(2, 7, first), rows(2, 7, second)).sum().backward()
    pairs = 2 * batch * outputs
    assert products(calls) == [
        pairs * second * (first + 1),  # (B, I) x (I, J), then a dot product with (B, J)
        pairs * 2 * first * second,  # of the first input: the gradient times the weight, times the second input
        pairs * first * (second + 1),  # of the weight: the gradient times the first, then (I, B) x (B, J)
        pairs * second * (first + 1),  # of the second input, as the forward
    ]


def test_torch_runs_these_products_inside():
    """The products that torch's profiler sees inside an operator are those that its rule counts."""
    x, y = torch.randn(40, 8), torch.randn(30, 8)
    layer = nn.Bilinear(3, 4, 5, bias=False)
    a, b = torch.randn(14, 3), torch.randn(14, 4)
    with torch.profiler.profile(record_shapes=True, with_flops=True) as trace:
        torch.cdist(x, y)
        layer(a, b)
    inside = [event.flops for event in trace.events() if event.name in ("aten::bmm", "aten::mm")]
    assert sum(inside) == 2 * 40 * 30 * 10 + 2 * 14 * 5 * 4 * (3 + 1)
