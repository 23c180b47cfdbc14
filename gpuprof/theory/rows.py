"""How other tools count one row of the operator table."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

Shape = tuple[int, ...]


class Row(NamedTuple):
    """What a rule sees of one row of the ``ops`` table.

    Attributes:
        op: ``namespace::name``, without the overload.
        kind: as in the table.
        phase: likewise.
        module_class: class of the module that owns the row.
        attends: whether that module attends.
        inputs: shapes of the tensor inputs.
        results: shapes of the tensor results.
        calls: how often it ran.
        causal: FLOPs of all calls over the unmasked pairs, None without a rule.
        full: over the whole square, likewise.
        device: type of the device, ``meta`` where only shapes were computed.
    """

    op: str
    kind: str
    phase: str
    module_class: str
    attends: bool
    inputs: tuple[Shape, ...]
    results: tuple[Shape, ...]
    calls: int
    causal: int | None
    full: int | None
    device: str


class Count(NamedTuple):
    """Multiply-accumulates and FLOPs of all calls of a row; None where the rule cannot tell."""

    macs: int | None
    flops: int | None


NOTHING = Count(0, 0)


@lru_cache(maxsize=4096)
def read_shapes(text: str) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Shapes of inputs and results from the table's column ``shapes``; of a long list only the first are there."""
    inputs, _, results = text.partition("->")
    return _shapes(inputs), _shapes(results)


def _shapes(text: str) -> tuple[Shape, ...]:
    words = text.partition(" and ")[0].split()
    return tuple(() if word == "scalar" else tuple(map(int, word.split("x"))) for word in words)


# Operators in FlopCounterMode's registry, torch 2.13.
_REGISTERED = {
    f"aten::{name}"
    for name in """
        mm addmm bmm baddbmm _scaled_mm convolution _convolution cudnn_convolution convolution_overrideable
        _slow_conv2d_forward convolution_backward
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_flash_attention_backward
        _scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward
        _flash_attention_forward _flash_attention_backward _efficient_attention_forward _efficient_attention_backward
    """.split()
} | {
    "higher_order::flex_attention", "higher_order::flex_attention_backward",
    "torch_attn::_varlen_attn", "torch_attn::_varlen_attn_out", "torch_attn::_varlen_attn_backward",
}  # fmt: skip

_CPU_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


def torch_counter(row: Row) -> Count:
    """What ``torch.utils.flop_counter.FlopCounterMode`` says of a row, its gaps and its overcount included."""
    # Without a device that operator stands for whichever kernel a GPU would take.
    stands_in = row.op.startswith(_CPU_ATTENTION) and row.device == "meta"
    if row.op not in _REGISTERED and not stands_in:
        return NOTHING
    dense = _dense_product(row)
    flops = row.full if dense is None else dense
    if flops is None:
        return Count(None, None)
    if row.kind == "attention" and row.op.endswith("_backward"):
        flops = _five_products(row, flops)
    elif row.op == "aten::convolution_backward":
        flops += (_groups(row) - 1) * _weight_gradient(row, flops)
    return Count(flops // 2, flops)


def flash(row: Row) -> Count:
    """As FlashAttention's benchmark counts attention: half the square if causal, a backward of 2.5 forwards."""
    flops = row.full
    if flops is None or row.causal is None:
        return Count(None, None)
    if row.causal < flops:
        flops //= 2
    if row.kind == "attention" and row.op.endswith("_backward"):
        flops = flops * 5 // 4
    return Count(flops // 2, flops)


def _dense_product(row: Row) -> int | None:
    """FLOPs of a product from its shapes alone, as if it were of real and dense matrices; None of any other row."""
    if row.op not in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm") or len(row.inputs) < 2:
        return None
    a, b = row.inputs[-2:]
    fits = len(a) == len(b) > 1 and a[-1] == b[-2]
    return 2 * elements(a) * b[-1] * row.calls if fits else None


def _five_products(row: Row, four: int) -> int:
    """FLOPs of a fused backward with the scores computed once more, from those of its four gradients."""
    if len(row.inputs) < 4:
        return four * 5 // 4
    qk, v = row.inputs[1][-1], row.inputs[3][-1]
    return four * (3 * qk + 2 * v) // (2 * (qk + v))


def _groups(row: Row) -> int:
    """Groups of a convolution, from its backward; a transposed one has its channels the other way round."""
    grad, x, weight = row.inputs[:3]
    straight = grad[1] == weight[0]
    return max((x if straight else grad)[1] // weight[1], 1)


def _weight_gradient(row: Row, flops: int) -> int:
    """FLOPs of the gradient of the weight alone: as many as those of the input's, where both are computed."""
    _, x, weight = row.inputs[:3]
    if weight not in row.results:
        return 0
    return flops // 2 if row.results[0] == x and len(row.results) > 1 else flops


def elements(shape: Shape) -> int:
    """Elements of a tensor."""
    return math.prod(shape)
