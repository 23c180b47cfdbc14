"""Operators of quantized weights: schemas as bitsandbytes 0.50, torchao 0.18 and torch 2.13 register them."""

from __future__ import annotations

import pytest

from gpuprof.theory import TensorSpec, cost_of

T = TensorSpec
HALF = "bfloat16"
A, OUT = T((2, 8, 64), HALF), T((2, 8, 32), HALF)
PACKED, ABSMAX, CODE = T((32 * 64 // 2, 1), "uint8"), T((32,)), T((16,))
INT8, WEIGHT8 = T((16, 64), "int8"), T((32, 64), "int8")
ROWS, COLUMNS = T((16,)), T((32,))
PRODUCT = 2 * 16 * 64 * 32
UNPACKED = 2 * 32 * 64
FLAT = T((16, 32), HALF)
FLOAT8 = T((16, 64), "float8_e4m3fn")


@pytest.mark.parametrize(
    ("op", "args", "out", "flops", "vector", "dtype"),
    [
        ("bitsandbytes::gemm_4bit", (A, PACKED, (32, 64), ABSMAX, 64, "nf4"), OUT, PRODUCT, UNPACKED, ""),
        ("bitsandbytes::gemm_4bit", (A, PACKED, (32, 64), ABSMAX, 64, "nf4", T((32,))), OUT,
         PRODUCT, UNPACKED + 512, ""),
        ("bitsandbytes::gemv_4bit", (T((1, 1, 64), HALF), PACKED, (32, 64), ABSMAX, CODE, 64), T((1, 1, 32), HALF),
         PRODUCT // 16, UNPACKED, ""),
        ("bitsandbytes::int8_linear_matmul", (INT8, WEIGHT8), T((16, 32), "int32"), PRODUCT, 0, ""),
        ("bitsandbytes::int8_scaled_mm", (INT8, WEIGHT8, ROWS, COLUMNS), FLAT, PRODUCT, 2 * 512, "int8"),
        ("bitsandbytes::int8_scaled_mm", (INT8, WEIGHT8, ROWS, COLUMNS, T((32,))), FLAT, PRODUCT, 3 * 512, "int8"),
        # three columns of outliers are multiplied again in half
        ("bitsandbytes::int8_mixed_scaled_mm", (T((16, 64), "float16"), INT8, WEIGHT8, ROWS, COLUMNS, T((3,), "int64")),
         (FLAT, None), PRODUCT + 2 * 16 * 3 * 32, 2 * 512, "int8"),
        ("torchao::float8_linear_cpu", (FLOAT8, T((1,)), T((2, 1, 32, 32), "float8_e4m3fn"), T((1,))), FLAT,
         PRODUCT, 2 * 512, "float8_e4m3fn"),
        ("torchao::da8w4_linear_cpu", (INT8, ROWS, ROWS, T((1, 2, 16, 32), "uint8"), COLUMNS, COLUMNS), FLAT,
         PRODUCT, 2 * 512, "int8"),
        ("torchao::swizzle_scaled_mm", (FLOAT8, T((64, 32), "float8_e4m3fn"), False, False, T(()), T(())), FLAT,
         PRODUCT, 0, "float8_e4m3fn"),
        # two of four weights are there
        ("torchao::rowwise_scaled_linear_sparse_cutlass_f8f8", (FLOAT8, ROWS, T((32, 32), "float8_e4m3fn"), T((4,))),
         FLAT, PRODUCT // 2, 2 * 512, ""),
        ("quantized::linear_dynamic", (T((16, 64)), (T((32, 64), "qint8"), T((32,)))), T((16, 32)),
         PRODUCT, 2 * 512, "int8"),
        ("quantized::linear", (T((16, 64), "quint8"), (T((32, 64), "qint8"), None), 1.0, 0), T((16, 32), "quint8"),
         PRODUCT, 2 * 512, "int8"),
        ("quantized::linear_dynamic_fp16", (T((16, 64)), (T((32, 64)), None)), T((16, 32)), PRODUCT, 512, ""),
        ("onednn::qlinear_pointwise", (T((16, 64), "uint8"), 1.0, 0, T((64, 32), "int8")), T((16, 32)),
         PRODUCT, 2 * 512, "int8"),
    ],
)  # fmt: skip
def test_products_by_hand(op, args, out, flops, vector, dtype):
    cost, kind = cost_of(f"{op}.default", args, {}, out)
    assert (cost.full, cost.vector, cost.dtype, kind) == (flops, vector, dtype, "matmul")


def test_quantized_convolutions_know_their_kernel_from_the_packed_weight():
    x, out, weight = T((2, 3, 8, 8), "quint8"), T((2, 8, 6, 6), "quint8"), T((8, 3, 3, 3), "qint8")
    cost, kind = cost_of("quantized::conv2d.new", (x, (weight, None), 1.0, 0), {}, out)
    assert (cost.full, cost.dtype, kind) == (2 * 2 * 8 * 36 * 27, "int8", "convolution")
    added = cost_of("quantized::conv2d_add.default", (x, out, (weight, None), 1.0, 0), {}, out)[0]
    plain = cost_of("onednn::qconv2d_pointwise.default", (x, 1.0, 0, weight), {}, out)[0]
    assert added.full == plain.full == cost.full
    assert cost_of("quantized::conv2d.new", (x, "Conv2dPackedParamsBase", 1.0, 0), {}, out) is None


def test_quantized_recurrent_layers():
    x, state = T((5, 3, 6)), T((1, 3, 8))
    weights = ((T((32, 6), "qint8"), T((32,))), (T((32, 8), "qint8"), T((32,))))
    cost, kind = cost_of("aten::quantized_lstm.input", (x, (state, state), (weights,), True, 1), {}, (x, state, state))
    assert (cost.full, cost.dtype, kind) == (2 * 15 * (32 * 6 + 32 * 8), "int8", "recurrent")
    cell = cost_of("quantized::quantized_gru_cell_dynamic.default", (T((3, 6)), T((3, 8)), *weights), {}, T((3, 8)))[0]
    assert cell.full == 2 * 3 * (32 * 6 + 32 * 8)


@pytest.mark.parametrize(
    ("op", "args", "out", "vector"),
    [
        ("dequantize_4bit", (PACKED, ABSMAX, 64, "nf4", (32, 64), HALF), T((32, 64), HALF), UNPACKED),
        ("quantize_4bit", (T((32, 64)), 64, "nf4", "uint8"), (PACKED, ABSMAX), UNPACKED),
        ("int8_vectorwise_quant", (A,), (T((2, 8, 64), "int8"), ROWS, None), 2 * 16 * 64),
    ],
)
def test_packing_is_no_product(op, args, out, vector):
    cost, kind = cost_of(f"bitsandbytes::{op}.default", args, {}, out)
    assert (cost.full, cost.vector, kind) == (0, vector, "vector")
