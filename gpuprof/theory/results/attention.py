"""Results of attention and of recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rules import Missing, NotKnownError, TensorSpec
from .base import gives, like, only_if, spec_of

# -- attention


@gives("_scaled_dot_product_flash_attention_for_cpu")
def _cpu_attention(q: TensorSpec, k: TensorSpec, v: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return q, spec_of(q.shape[:-1], "float64" if q.dtype == "float64" else "float32")


@gives("_scaled_dot_product_flash_attention")
def _flash(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, dropout: Any = 0.0, causal: Any = False, debug: bool = False, *_: Any
) -> tuple[Any, ...]:
    if debug or not isinstance(dropout, (float, int, Missing)):  # scales of quantized operands instead
        raise NotKnownError
    return q, spec_of(q.shape[:-1], "float32"), *_random_state(), like(q, (0,))


def _random_state() -> tuple[TensorSpec, TensorSpec]:
    return spec_of((2,), "uint64"), spec_of((), "uint64")


@gives("_flash_attention_forward")
def _flash_forward(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, dropout: Any,
    causal: Any, debug: bool, *_: Any,
) -> tuple[TensorSpec, ...]:  # fmt: skip
    if cu_q is not None or debug:
        raise NotKnownError
    batch, queries, heads, _size = q.shape
    return q, spec_of((batch, heads, queries), "float32"), *_random_state(), like(q, (0,))


@gives("_scaled_dot_product_efficient_attention")
def _efficient(q: TensorSpec, k: TensorSpec, v: TensorSpec, bias: Any, lse: bool, *_: Any) -> tuple[TensorSpec, ...]:
    *batch, queries, _size = q.shape
    rows = -(-queries // 32) * 32 if lse else 0  # padded to whole blocks of a kernel
    seed = spec_of((), "int64")
    return like(q, (*batch, queries, v.shape[-1])), spec_of((*batch, rows), "float32"), seed, seed


@gives("_scaled_dot_product_cudnn_attention")
def _cudnn_attention(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, bias: Any, lse: bool, dropout: Any = 0.0, causal: Any = False,
    debug: bool = False, *_: Any,
) -> tuple[TensorSpec, ...]:  # fmt: skip
    if debug:
        raise NotKnownError
    *batch, queries, _size = q.shape
    seed = spec_of((), "int64")
    result = like(q, (*batch, queries, v.shape[-1]))
    return (result, spec_of((*batch, queries, 1), "float32"), seed, seed) if lse else (result, seed, seed)


@gives(
    "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward "
    "_scaled_dot_product_cudnn_attention_backward _flash_attention_backward"
)
def _attention_backward(grad: Any, q: TensorSpec, k: TensorSpec, v: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return q, k, v


@gives("_scaled_dot_product_efficient_attention_backward")
def _efficient_backward(
    grad: Any, q: TensorSpec, k: TensorSpec, v: TensorSpec, bias: TensorSpec | None, o: Any, lse: Any, seed: Any,
    offset: Any, dropout: Any, mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    return q, k, v, only_if(mask[3], bias)


@gives("_native_multi_head_attention")
def _multi_head(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, width: Any, heads: int, qkv_weight: Any, qkv_bias: Any,
    proj_weight: Any, proj_bias: Any, mask: Any, need_weights: bool, average: bool, *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    batch, queries, _width = q.shape
    scores = (batch, *(() if average else (heads,)), queries, k.shape[1])
    return q, like(q, scores) if need_weights else None


@gives("_transformer_encoder_layer_fwd")
def _encoder_layer(x: TensorSpec, *_: Any) -> TensorSpec:
    return x


# -- recurrent cells


@gives("_thnn_fused_lstm_cell")
def _lstm_cell(gates: TensorSpec, hidden: Any, cell: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return cell, cell, gates


@gives("_thnn_fused_lstm_cell_backward_impl")
def _lstm_cell_backward(
    grad_h: Any, grad_c: Any, cx: TensorSpec, cy: Any, workspace: TensorSpec, bias: bool
) -> tuple[TensorSpec | None, ...]:
    return workspace, cx, only_if(bias, like(workspace, workspace.shape[1:]))


@gives("_thnn_fused_gru_cell")
def _gru_cell(gates: Any, hidden: Any, hx: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    batch, size = hx.shape
    return hx, like(hx, (batch, 5 * size))


@gives("_thnn_fused_gru_cell_backward")
def _gru_cell_backward(grad: TensorSpec, workspace: Any, bias: bool) -> tuple[TensorSpec | None, ...]:
    batch, size = grad.shape
    gates, per_gate = like(grad, (batch, 3 * size)), only_if(bias, like(grad, (3 * size,)))
    return gates, gates, grad, per_gate, per_gate
