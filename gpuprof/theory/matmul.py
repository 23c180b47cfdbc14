"""Matrix multiplication: 2MNK FLOPs for (M, K) x (K, N), exactly, for every way torch spells it.

A complex multiply-accumulate is 8 real FLOPs, so complex products are 8MNK (`mac_flops`). torch multiplies matrices
of one dtype only: whoever multiplies a real by a complex one makes the first complex, and that is what runs.

A sparse factor counts with the elements that it stores, explicit zeros and the rest of a block included, so its product
with N columns is 2 x stored x N; two sparse factors meet element by element, which needs their places.

A bias is one vector FLOP per output element. The scalars alpha and beta, the scales of quantized operands and
a fused activation's own arithmetic are not counted, except where a rule says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .rules import Cost, TensorSpec, flop_rule, tensors

VALUES_PER_ELEMENT = {"float4_e2m1fn_x2": 2}
"""Numbers that one element of a packed dtype holds."""


def mac_flops(a: TensorSpec) -> int:
    """Real FLOPs of one multiply-accumulate in the dtype of ``a``: 2, or 8 of complex numbers, 4 products and sums."""
    return 8 if a.dtype.startswith("complex") else 2


def matmul_flops(a: TensorSpec, columns: int) -> int:
    """FLOPs of ``a @ b``, ``b`` dense: a multiply-accumulate for each element of ``a`` and each column of ``b``.

    Args:
        a: left operand, (..., M, K) with every batch dimension of the product, or a vector (K,).
        columns: N of the right operand, 1 for a vector.
    """
    return mac_flops(a) * a.numel * VALUES_PER_ELEMENT.get(a.dtype, 1) * columns


def product_flops(a: TensorSpec, b: TensorSpec) -> int | None:
    """FLOPs of ``a @ b``, each dense or sparse.

    Args:
        a: left operand, (..., M, K).
        b: right operand, (..., K, N) or a vector (K,).

    Returns:
        None where both are sparse and the places of what they store are not known.
    """
    if b.stored is None:
        return matmul_flops(a, b.shape[-1] if len(b.shape) > 1 else 1)
    if a.stored is None:
        return matmul_flops(b, a.shape[-2] if len(a.shape) > 1 else 1)
    if a.values is None or b.values is None:
        return None
    columns, rows = Counter(a.values[1]), Counter(b.values[0])
    return mac_flops(a) * sum(count * rows[place] for place, count in columns.items())


def _with_bias(flops: int | None, bias: int) -> Cost | None:
    return None if flops is None else Cost(full=flops, vector=bias)


def _last(shape: Sequence[int]) -> int:
    return shape[-1] if shape else 1


def _first_numel(out: Any) -> int:
    return next((spec.numel for spec in tensors(out)), 0)


@flop_rule("aten::mm", "aten::bmm", "aten::_int_mm", "aten::_sparse_sparse_matmul", "aten::hspmm", values=True)
def _mm(a: TensorSpec, b: TensorSpec, *_: Any, out: Any, **__: Any) -> int | None:
    return product_flops(a, b)


@flop_rule("aten::_sparse_mm_reduce_impl", values=True)
def _sparse_mm_reduce(a: TensorSpec, b: TensorSpec, reduce: str, *_: Any, out: Any, **__: Any) -> Cost:
    # A maximum or minimum of products needs a comparison where a sum needs an addition.
    return Cost(full=matmul_flops(a, b.shape[-1]), vector=_first_numel(out) if reduce == "mean" else 0)


@flop_rule("aten::_sparse_mm_reduce_impl_backward")
def _sparse_mm_reduce_backward(
    a: TensorSpec, grad: TensorSpec, b: TensorSpec, reduce: str, arg: Any, mask: Sequence[bool], *_: Any,
    out: Any, **__: Any,
) -> int:  # fmt: skip
    # Both gradients pair what is stored with the columns, as the forward does.
    return matmul_flops(a, b.shape[-1]) * (bool(mask[0]) + bool(mask[1]))


@flop_rule("aten::sparse_sampled_addmm")
def _sampled_addmm(at: TensorSpec, a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    """(M, K) x (K, N) only where ``at`` stores something: a dot product of length K for each element stored."""
    return Cost(full=matmul_flops(at, a.shape[-1]), vector=at.numel)


@flop_rule("aten::_cslt_sparse_mm")
def _cslt(a: TensorSpec, b: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # Two of four elements of the left operand are stored, so half of the products of K are computed.
    return Cost(full=mac_flops(b) * out.numel * b.shape[-2] // 2, vector=out.numel if bias is not None else 0)


@flop_rule("aten::_scaled_mm", "aten::_scaled_mm_v2")
def _scaled_mm(a: TensorSpec, b: TensorSpec, *rest: Any, out: TensorSpec, bias: Any = None, **_: Any) -> Cost:
    # One operator takes two scales before the bias; the other two lists, each with its recipes and swizzles.
    position = 2 if isinstance(rest[0], TensorSpec) else 6
    bias = rest[position] if len(rest) > position else bias
    return Cost(full=matmul_flops(a, b.shape[-1]), vector=out.numel if bias is not None else 0)


@flop_rule(
    "aten::addmm",
    "aten::addmm_",
    "aten::baddbmm",
    "aten::baddbmm_",
    "aten::addbmm",
    "aten::addbmm_",
    "aten::_addmm_activation",
    "aten::_sparse_addmm",
    "aten::sspaddmm",
    values=True,
)
def _addmm(bias: TensorSpec, a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost | None:
    return _with_bias(product_flops(a, b), out.numel)


@flop_rule("aten::mv", "aten::dot", "aten::vdot")
def _mv(a: TensorSpec, vector: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return matmul_flops(a, 1)


@flop_rule("aten::_foreach_mm")
def _foreach_mm(left: Sequence[TensorSpec], right: Sequence[TensorSpec], *_: Any, out: Any, **__: Any) -> int:
    return sum(matmul_flops(a, b.shape[-1]) for a, b in zip(left, right, strict=True))


@flop_rule("aten::addmv", "aten::addmv_")
def _addmv(bias: TensorSpec, a: TensorSpec, vector: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=matmul_flops(a, 1), vector=out.numel)


@flop_rule("aten::matmul")
def _matmul(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    # Batch dimensions broadcast, so count from the result: each of its elements is a dot product of length K.
    return mac_flops(a) * out.numel * _last(a.shape)


# Of nested tensors alone; elsewhere the backward of a matmul is made of further ones.
@flop_rule("aten::matmul_backward")
def _matmul_backward(
    grad: TensorSpec, a: TensorSpec, b: TensorSpec, output_mask: Sequence[bool], *_: Any, out: Any, **__: Any
) -> int:
    return 2 * grad.numel * _last(a.shape) * (bool(output_mask[0]) + bool(output_mask[1]))


@flop_rule("aten::inner")
def _inner(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return mac_flops(a) * out.numel * _last(a.shape)


@flop_rule(
    "aten::linear",
    "aten::mkldnn_linear",
    "mkldnn::_linear_pointwise",
)
def _linear(a: TensorSpec, weight: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(
        full=matmul_flops(a, _last(out.shape) if len(weight.shape) > 1 else 1),
        vector=out.numel if bias is not None else 0,
    )


@flop_rule("mkl::_mkl_linear")
def _linear_packed(
    a: TensorSpec, packed: TensorSpec, weight: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=matmul_flops(a, out.shape[-1]), vector=out.numel if bias is not None else 0)


@flop_rule("mkldnn::_linear_pointwise.binary")
def _linear_binary(
    a: TensorSpec, other: TensorSpec, weight: TensorSpec, bias: Any, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=matmul_flops(a, out.shape[-1]), vector=out.numel * (2 if bias is not None else 1))


@flop_rule("aten::linear_backward", "aten::mkldnn_linear_backward")
def _linear_backward(
    a: TensorSpec,
    grad: TensorSpec,
    weight: TensorSpec,
    output_mask: Sequence[bool],
    *_: Any,
    out: Any,
    **__: Any,
) -> Cost:
    forward = matmul_flops(a, _last(grad.shape))
    return Cost(
        full=forward * (bool(output_mask[0]) + bool(output_mask[1])),
        vector=grad.numel if output_mask[2] else 0,
    )


@flop_rule("aten::mkldnn_linear_backward_input")
def _linear_backward_input(
    input_size: Sequence[int], grad: TensorSpec, weight: TensorSpec, *_: Any, out: Any, **__: Any
) -> int:
    return matmul_flops(grad, input_size[-1])


@flop_rule("aten::mkldnn_linear_backward_weights")
def _linear_backward_weights(
    grad: TensorSpec, a: TensorSpec, weight: TensorSpec, bias_defined: bool, *_: Any, out: Any, **__: Any
) -> Cost:
    return Cost(full=matmul_flops(a, _last(grad.shape)), vector=grad.numel if bias_defined else 0)


@flop_rule("aten::_grouped_mm", "aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2")
def _grouped_mm(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    """Products of groups of rows, as in a mixture of experts.

    The shapes are (T, K) x (G, K, N), its gradients (M, T) x (T, N) and (G, M, K) x (K, T), or a plain batch.
    The offsets cut T into the groups, so the FLOPs do not depend on where they cut. Rows after the last
    offset, which nothing computes, cannot be told from shapes and are counted.
    """
    flops = matmul_flops(a, b.shape[-1])
    # Where the columns are what is cut, each of them meets one of the G left matrices only.
    return flops // a.shape[0] if len(a.shape) > len(b.shape) else flops


@flop_rule("transformers::grouped_mm_fallback")
def _grouped_mm_fallback(a: TensorSpec, weight: TensorSpec, offsets: TensorSpec, *, out: TensorSpec) -> int:
    return matmul_flops(a, weight.shape[-1])


@flop_rule("transformers::grouped_mm_fallback_backward")
def _grouped_mm_fallback_backward(
    a: TensorSpec, weight: TensorSpec, offsets: TensorSpec, grad: TensorSpec, *, out: Any
) -> int:
    return 2 * matmul_flops(a, weight.shape[-1])


@flop_rule(
    "aten::_weight_int8pack_mm",
    "aten::_weight_int4pack_mm",
    "aten::_weight_int4pack_mm_for_cpu",
    "aten::_weight_int4pack_mm_with_scales_and_zeros",
    "aten::_dyn_quant_matmul_4bit",
)
def _packed_weight_mm(a: TensorSpec, weight: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    # The packed weight's own shape depends on the packing; N is read off the result.
    return matmul_flops(a, out.shape[-1])


@flop_rule("aten::_sparse_semi_structured_linear")
def _sparse_linear(a: TensorSpec, weight: TensorSpec, *_: Any, out: Any, bias: Any = None, **__: Any) -> Cost:
    """Input (..., K), weight (N, K/2) without its zeros: only the products with what is left are counted."""
    rows = math.prod(a.shape[:-1])
    return Cost(full=2 * rows * weight.numel, vector=rows * weight.shape[0] if bias is not None else 0)


@flop_rule("aten::_sparse_semi_structured_mm")
def _sparse_mm(a: TensorSpec, meta: TensorSpec, b: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    """Left operand (M, K/2) without its zeros, right operand (K, N): products with what is left count."""
    return matmul_flops(a, b.shape[-1])


@flop_rule("aten::_sparse_semi_structured_addmm")
def _sparse_addmm(
    bias: TensorSpec, a: TensorSpec, meta: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=matmul_flops(a, b.shape[-1]), vector=out.numel)
