"""Products with quantized weights: bitsandbytes, torchao, and torch's own quantized operators.

A product costs what its sizes say, whatever its weight is packed into, and is priced at the dtype that it multiplies
in: weights of 4 bits are unpacked into the dtype of the activations, int8 and float8 are multiplied as they are.
Unpacking and packing are an estimate of 2 vector FLOPs per element (a scale and a shift, or a lookup and a scale).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .convolution import convolution_flops
from .matmul import matmul_flops
from .recurrent import GATE_FLOPS
from .rules import Cost, TensorSpec, flop_rule, tensors

UNPACK_FLOPS = 2


def _bias(bias: Any, out: TensorSpec) -> int:
    return 0 if bias is None else out.numel


# -- bitsandbytes


@flop_rule("bitsandbytes::gemm_4bit", "bitsandbytes::gemv_4bit")
def _four_bits(a: TensorSpec, b: Any, shape: Sequence[int], *rest: Any, out: Any, bias: Any = None, **_: Any) -> Cost:
    """(..., K) x a weight of ``shape`` (N, K), unpacked on the way."""
    bias = rest[3] if len(rest) > 3 else bias  # after absmax, block size and quantization of gemm_4bit
    rows = math.prod(a.shape[:-1])
    return Cost(
        full=matmul_flops(a, shape[0]),
        vector=UNPACK_FLOPS * math.prod(shape) + (rows * shape[0] if bias is not None else 0),
    )


@flop_rule("bitsandbytes::int8_linear_matmul")
def _int8(a: TensorSpec, b: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return matmul_flops(a, b.shape[0])


@flop_rule("bitsandbytes::int8_scaled_mm")
def _int8_scaled(a: TensorSpec, b: TensorSpec, *rest: Any, out: TensorSpec, bias: Any = None, **_: Any) -> Cost:
    bias = rest[2] if len(rest) > 2 else bias
    return Cost(full=matmul_flops(a, b.shape[0]), vector=UNPACK_FLOPS * out.numel + _bias(bias, out), dtype=a.dtype)


@flop_rule("bitsandbytes::int8_mixed_scaled_mm")
def _int8_mixed(
    a: TensorSpec, quantized: TensorSpec, b: TensorSpec, *rest: Any, out: Sequence[TensorSpec],
    outlier_cols: Any = None, **_: Any,
) -> Cost:  # fmt: skip
    """All columns in int8, and those of outliers once more in the activations' dtype."""
    outliers = rest[2] if len(rest) > 2 else outlier_cols
    columns = b.shape[0]
    again = 0 if outliers is None else 2 * math.prod(a.shape[:-1]) * outliers.numel * columns
    return Cost(
        full=matmul_flops(quantized, columns) + again, vector=UNPACK_FLOPS * out[0].numel, dtype=quantized.dtype
    )


@flop_rule("bitsandbytes::dequantize_4bit", "bitsandbytes::dequantize_blockwise", kind="vector")
@flop_rule("bitsandbytes::int8_vectorwise_dequant", "bitsandbytes::int8_mm_dequant", kind="vector")
def _unpacked(a: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=UNPACK_FLOPS * sum(spec.numel for spec in tensors(out)))


@flop_rule("bitsandbytes::quantize_4bit", "bitsandbytes::quantize_blockwise", kind="vector")
@flop_rule("bitsandbytes::int8_vectorwise_quant", "bitsandbytes::int8_double_quant", kind="vector")
@flop_rule("torchao::quantize_affine", "torchao::dequantize_affine", kind="vector")
@flop_rule("torchao::choose_qparams_affine", "torchao::choose_scale_float8", kind="vector")
@flop_rule("torchao::quantize_affine_float8_non_decomposed", kind="vector")
@flop_rule("torchao::dequantize_affine_float8_non_decomposed", kind="vector")
def _packed(a: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    # Choosing scales takes the maximum of each block, which is as much again.
    return Cost(vector=UNPACK_FLOPS * a.numel)


@flop_rule("bitsandbytes::optimizer_update_8bit_blockwise", "bitsandbytes::optimizer_update_32bit", kind="vector")
def _optimizer(name: str, grad: TensorSpec, *states: Any, out: Any, **__: Any) -> Cost:
    # As the fused Adam of torch; moments of 8 bits are unpacked and packed again.
    quantized = sum(spec.numel for spec in tensors(states) if spec.dtype == "uint8")
    return Cost(vector=13 * grad.numel + 2 * UNPACK_FLOPS * quantized)


# -- torchao


@flop_rule("torchao::float8_linear_cpu", "torchao::da8w4_linear_cpu")
def _ao_linear(a: TensorSpec, *rest: Any, out: TensorSpec, **_: Any) -> Cost:
    """(..., K) x a packed weight of N rows; the bias is the last tensor of one dimension and N elements."""
    return Cost(full=matmul_flops(a, out.shape[-1]), vector=UNPACK_FLOPS * out.numel, dtype=a.dtype)


@flop_rule("torchao::swizzle_mm", "torchao::swizzle_scaled_mm", "torchao::mx_fp8_bf16")
def _ao_product(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # A swizzled factor keeps its number of elements, whatever shape it has: K is what is left of them.
    inner = a.numel // max(math.prod(out.shape[:-1]), 1)
    return Cost(full=2 * out.numel * inner, dtype=a.dtype)


@flop_rule("torchao::rowwise_scaled_linear_sparse_cutlass_f8f8", "float8_sparse::fp8_sparse_mm")
def _ao_sparse(a: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    """Two of four weights are stored, so half of the products of K are computed."""
    return Cost(full=matmul_flops(a, out.shape[-1]) // 2, vector=UNPACK_FLOPS * out.numel)


@flop_rule("torchao::qscaled_dot_product", kind="attention")
def _ao_attention(q: TensorSpec, k: TensorSpec, v: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # Quantized attention of a CPU; it computes the whole square, whatever it masks.
    scores = math.prod(q.shape[:-1]) * k.shape[-2]
    return Cost(full=2 * scores * (q.shape[-1] + v.shape[-1]), vector=5 * scores, dtype=q.dtype)


# -- torch's own: packed parameters are no tensors, and come as what they unpack to, (weight, bias)


@flop_rule(
    *(
        f"quantized::{name}"
        for name in """
            linear linear_relu linear_leaky_relu linear_tanh linear_dynamic linear_relu_dynamic
            linear_with_input_q_dq_qweight_dq_output_fp32 linear_with_input_q_dq_qweight_dq_relu_output_fp32
        """.split()
    ),
    *(f"sparse::qlinear{name}" for name in ("", "_relu", "_dynamic", "_relu_dynamic")),
    "onednn::qlinear_pointwise",
    "aten::_wrapped_quantized_linear_prepacked",
    "aten::fbgemm_linear_int8_weight",
    "aten::fbgemm_linear_int8_weight_fp32_activation",
)
def _linear(a: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=matmul_flops(a, out.shape[-1]), vector=UNPACK_FLOPS * out.numel, dtype="int8")


@flop_rule("quantized::linear_dynamic_fp16", "quantized::linear_relu_dynamic_fp16")
@flop_rule("onednn::linear_dynamic_fp16", "onednn::linear_relu_dynamic_fp16")
@flop_rule("aten::fbgemm_linear_fp16_weight", "aten::fbgemm_linear_fp16_weight_fp32_activation")
def _linear_half(a: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # Weights are stored in half and multiplied in the dtype of the activations.
    return Cost(full=matmul_flops(a, out.shape[-1]), vector=out.numel)


@flop_rule("quantized::matmul")
def _matmul(a: TensorSpec, b: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=2 * out.numel * a.shape[-1], vector=UNPACK_FLOPS * out.numel, dtype="int8")


@flop_rule("quantized::int4mm_packed_weight_cpu")
def _four_bit_weight(a: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return matmul_flops(a, out.shape[-1])


_CONVOLUTIONS = [f"conv{dims}d{how}" for dims in (1, 2, 3) for how in ("", "_relu", "_dynamic")]


@flop_rule(*(f"quantized::{name}" for name in _CONVOLUTIONS), kind="convolution")
def _convolution(x: TensorSpec, packed: Any, *_: Any, out: TensorSpec, **__: Any) -> Cost | None:
    weight = next(tensors(packed), None)
    return None if weight is None else _convolved(weight, out)


@flop_rule("quantized::conv2d_add", "quantized::conv2d_add_relu", kind="convolution")
def _convolution_add(x: TensorSpec, added: Any, packed: Any, *_: Any, out: TensorSpec, **__: Any) -> Cost | None:
    return _convolution(x, packed, out=out)  # type: ignore[return-value]  # as that one


@flop_rule(*(f"onednn::qconv{dims}_pointwise" for dims in ("1d", "2d", "3d", "")), kind="convolution")
def _convolution_onednn(
    x: TensorSpec, scale: Any, zero: Any, weight: TensorSpec, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return _convolved(weight, out)


def _convolved(weight: TensorSpec, out: TensorSpec) -> Cost:
    return Cost(full=convolution_flops(out, weight), vector=UNPACK_FLOPS * out.numel, dtype="int8")


def _cells(tokens: int, packed: Any) -> Cost | None:
    """Of recurrent layers: every gate weight meets every token once."""
    weights = [spec for spec in tensors(packed) if len(spec.shape) == 2]
    if not weights:
        return None
    return Cost(
        full=2 * tokens * sum(weight.numel for weight in weights),
        vector=GATE_FLOPS * tokens * sum(weight.shape[0] for weight in weights) // 2,  # input and state have a row each
        dtype="int8" if weights[0].dtype.startswith("q") else "",
    )


@flop_rule(
    *(f"quantized::quantized_{name}_cell_dynamic" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")), kind="recurrent"
)
def _cell(x: TensorSpec, state: Any, *packed: Any, out: Any, **__: Any) -> Cost | None:
    return _cells(x.shape[0], packed[:2])


@flop_rule("aten::quantized_lstm.input", "aten::quantized_gru.input", kind="recurrent")
def _stack(x: TensorSpec, state: Any, packed: Any, *_: Any, out: Any, **__: Any) -> Cost | None:
    return _cells(math.prod(x.shape[:-1]), packed)


@flop_rule("aten::quantized_lstm.data", "aten::quantized_gru.data", kind="recurrent")
def _packed_stack(x: TensorSpec, sizes: Any, state: Any, packed: Any, *_: Any, out: Any, **__: Any) -> Cost | None:
    return _cells(x.shape[0], packed)
