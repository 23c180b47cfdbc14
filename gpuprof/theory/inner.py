"""Products inside operators that are called after something else: distances, grids, bilinear forms.

Their products are exact, as those of any matmul; the arithmetic around them is an estimate per element, as in
`gpuprof.theory.vector`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .matmul import mac_flops
from .rules import Cost, TensorSpec, flop_rule

MM_FROM = 25
"""`torch.cdist` multiplies matrices where either side has more points than this, unless it is told how to compute."""


def _by_products(x: TensorSpec, y: TensorSpec, out: TensorSpec) -> Cost:
    """Euclidean distances of (..., M, K) and (..., N, K) as one product of width K + 2.

    |x - y|^2 = |x|^2 - 2 x y + |y|^2: torch appends |x|^2 and 1 to the one and 1 and |y|^2 to the other, so that the
    product does the sums too. Around it: squares and their sums, the factor -2, the clamp and the root.
    """
    return Cost(full=mac_flops(out) * out.numel * (x.shape[-1] + 2), vector=3 * x.numel + 2 * y.numel + 2 * out.numel)


def _by_differences(width: int, p: float, out: TensorSpec) -> Cost:
    """Difference, power and sum per element, and one root per distance."""
    return Cost(vector=out.numel * (width * (3 if p in (0, 1, 2, math.inf) else 4) + 1))


@flop_rule("aten::_euclidean_dist")
def _euclidean(x: TensorSpec, y: TensorSpec, *, out: TensorSpec, **_: Any) -> Cost:
    return _by_products(x, y, out)


@flop_rule("aten::cdist", "aten::_cdist_forward")
def _cdist(
    x: TensorSpec, y: TensorSpec, p: float = 2.0, compute_mode: int | None = None, *, out: TensorSpec, **_: Any
) -> Cost:
    # Modes: 0 as it sees fit, 1 always by a product, 2 never.
    fit = x.shape[-2] > MM_FROM or y.shape[-2] > MM_FROM
    if p == 2 and (compute_mode == 1 or (not compute_mode and fit)):
        return _by_products(x, y, out)
    return _by_differences(x.shape[-1], p, out)


@flop_rule("aten::_cdist_backward", kind="vector")
def _cdist_backward(grad: TensorSpec, x: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # Of one side: difference, its share of the distance, product with the gradient, sum. By a product, the distances
    # have plain products for gradients.
    return Cost(vector=4 * grad.numel * x.shape[-1])


@flop_rule("aten::_pdist_forward", kind="vector")
def _pdist(x: TensorSpec, p: float = 2.0, *, out: TensorSpec, **_: Any) -> Cost:
    return _by_differences(x.shape[-1], p, out)


@flop_rule("aten::_pdist_backward", kind="vector")
def _pdist_backward(grad: TensorSpec, x: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # As `_cdist_backward`, with a second sum for the other point of the pair.
    return Cost(vector=5 * grad.numel * x.shape[-1])


@flop_rule("aten::affine_grid_generator")
def _affine_grid(theta: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    """Homogeneous coordinates (N, positions, dims + 1) x theta transposed (N, dims + 1, dims)."""
    return 2 * out.numel * theta.shape[-1]


@flop_rule("aten::affine_grid_generator_backward")
def _affine_grid_backward(grad: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return 2 * grad.numel * out.shape[-1]


@flop_rule("aten::_trilinear")
def _trilinear(
    first: TensorSpec,
    second: TensorSpec,
    third: TensorSpec,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    summed: Sequence[int],
    unrolled: int = 1,
    *_: Any,
    out: TensorSpec,
    **__: Any,
) -> Cost:
    """A sum over ``summed`` of the product of three tensors, each with dimensions of 1 inserted where it says.

    torch runs it as two products of matrices for each index of the unrolled dimension: of the first two, summed over
    what the third does not have, and of the result with the third, summed over the rest. `nn.Bilinear` of (B, I) and
    (B, J) to O outputs so costs 2 B O J (I + 1).
    """
    sizes = [_expanded(x, dims) for x, dims in ((first, expand1), (second, expand2), (third, expand3))]
    dims = [dim for dim in range(len(sizes[0])) if dim != unrolled]
    slices = max(size[unrolled] for size in sizes)
    early = [dim for dim in dims if dim in summed and dim in expand3]
    late = [dim for dim in dims if dim in summed and dim not in expand3]
    both = {dim: 1 if dim in early else max(sizes[0][dim], sizes[1][dim]) for dim in dims}
    products = _pair({dim: sizes[0][dim] for dim in dims}, {dim: sizes[1][dim] for dim in dims}, early)
    products += _pair(both, {dim: sizes[2][dim] for dim in dims}, late)
    return Cost(full=mac_flops(first) * slices * products, vector=slices * (out.numel // max(out.shape[unrolled], 1)))


def _expanded(x: TensorSpec, dims: Sequence[int]) -> list[int]:
    shape = list(x.shape)
    for dim in sorted(dims):
        shape.insert(dim, 1)
    return shape


def _pair(left: dict[int, int], right: dict[int, int], summed: Sequence[int]) -> int:
    """Multiply-accumulates of one product; a dimension that only one side has is summed before, if it is summed."""
    return math.prod(
        min(left[dim], right[dim]) if dim in summed and 1 in (left[dim], right[dim]) else max(left[dim], right[dim])
        for dim in left
    )
