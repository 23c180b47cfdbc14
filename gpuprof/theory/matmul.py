"""Matrix multiplication: 2MNK FLOPs for (M, K) x (K, N), exactly, for every way torch spells it.

A bias is one vector FLOP per output element. The scalars alpha and beta, the scales of quantized operands and
a fused activation's own arithmetic are not counted, except where a rule says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .rules import Cost, TensorSpec, flop_rule

VALUES_PER_ELEMENT = {"float4_e2m1fn_x2": 2}
"""Numbers that one element of a packed dtype holds."""


def matmul_flops(a: TensorSpec, columns: int) -> int:
    """FLOPs of ``a @ b``: 2 for each element of ``a`` and each column of ``b``.

    Args:
        a: left operand, (..., M, K) with every batch dimension of the product, or a vector (K,).
        columns: N of the right operand, 1 for a vector.
    """
    return 2 * a.numel * VALUES_PER_ELEMENT.get(a.dtype, 1) * columns


def _last(shape: Sequence[int]) -> int:
    return shape[-1] if shape else 1


@flop_rule("aten::mm", "aten::bmm", "aten::_int_mm")
def _mm(a: TensorSpec, b: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return matmul_flops(a, b.shape[-1])


@flop_rule("aten::_scaled_mm", "aten::_scaled_mm_v2")
def _scaled_mm(a: TensorSpec, b: TensorSpec, *rest: Any, out: TensorSpec, bias: Any = None, **_: Any) -> Cost:
    # One operator takes two scales before the bias; the other two lists, each with its recipes and swizzles.
    position = 2 if isinstance(rest[0], TensorSpec) else 6
    bias = rest[position] if len(rest) > position else bias
    return Cost(full=matmul_flops(a, b.shape[-1]), vector=out.numel if bias is not None else 0)


@flop_rule("aten::addmm", "aten::addmm_", "aten::baddbmm", "aten::baddbmm_", "aten::_addmm_activation")
def _addmm(bias: TensorSpec, a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=matmul_flops(a, b.shape[-1]), vector=out.numel)


@flop_rule("aten::addbmm", "aten::addbmm_")
def _addbmm(bias: TensorSpec, a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=matmul_flops(a, b.shape[-1]), vector=out.numel)


@flop_rule("aten::mv", "aten::dot", "aten::vdot")
def _mv(a: TensorSpec, vector: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return matmul_flops(a, 1)


@flop_rule("aten::addmv", "aten::addmv_")
def _addmv(bias: TensorSpec, a: TensorSpec, vector: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=matmul_flops(a, 1), vector=out.numel)


@flop_rule("aten::matmul")
def _matmul(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    # Batch dimensions broadcast, so count from the result: each of its elements is a dot product of length K.
    return 2 * out.numel * _last(a.shape)


# Of nested tensors alone; elsewhere the backward of a matmul is made of further ones.
@flop_rule("aten::matmul_backward")
def _matmul_backward(
    grad: TensorSpec, a: TensorSpec, b: TensorSpec, output_mask: Sequence[bool], *_: Any, out: Any, **__: Any
) -> int:
    return 2 * grad.numel * _last(a.shape) * (bool(output_mask[0]) + bool(output_mask[1]))


@flop_rule("aten::inner")
def _inner(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return 2 * out.numel * _last(a.shape)


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
