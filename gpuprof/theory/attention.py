"""Attention: FLOPs over the whole square and over the unmasked pairs, in fused kernels and plain products.

With P query-key pairs per head, the forward is two products, 2 P (d_qk + d_v) FLOPs, and the backward exactly
four, twice that. A fused backward recomputes the scores, a fifth product that only `Cost.hardware` holds.
With key heads shared between query heads, each query head still does its own products, so query heads are
what counts.

P is queries x keys in `Cost.full` and the unmasked pairs in `Cost.causal`. A kernel that masks by itself
skips what is masked, so its hardware FLOPs are those of the unmasked pairs too (that it works in whole blocks
is not counted); one that is given a mask tensor computes the whole square. Whether a mask tensor is causal
cannot be read off its shape: there, and in attention spelled out as batched products,
`gpuprof.theory.masked.with_facts` needs to know the module.

Padding, dropout and softcap change nothing here. Softmax is an estimate of 5 vector FLOPs per score forward
(scale, maximum, difference, exponential, sum) and 6 backward (scale, difference, exponential, difference,
product, scale).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from .masks import Align, _band
from .rules import Cost, TensorSpec, flop_rule, tensors

SOFTMAX_FLOPS = 5
SOFTMAX_BACKWARD_FLOPS = 6


class _Call(NamedTuple):
    """One call of a fused attention operator.

    Attributes:
        heads: query heads of the whole batch.
        queries: queries per head.
        keys: keys per head.
        qk_dim: size of a query and key head.
        v_dim: size of a value head.
        pairs: unmasked pairs per head, as far as the operator itself knows.
        mask: ``own``, the operator masks by itself (or has nothing to mask); ``tensor``, it was given a dense
            mask; ``block``, a mask that lets it skip blocks.
        backward: whether it computes the gradients.
        in_blocks: pairs that its mask of blocks leaves, and pairs in the blocks that it computes, of all heads of the
            whole batch; None where it has no such mask or its values are not known.
    """

    heads: int
    queries: int
    keys: int
    qk_dim: int
    v_dim: int
    pairs: int
    mask: Literal["own", "tensor", "block"]
    backward: bool
    in_blocks: tuple[int, int] | None = None


def _read(
    query: TensorSpec,
    key: TensorSpec,
    value: TensorSpec,
    *,
    causal: bool = False,
    mask: Any = None,
    block: bool = False,
    left: int | None = None,
    right: int | None = None,
    align: Align = "top-left",
    layout: Literal["BHSD", "BSHD"] = "BHSD",
    backward: bool = False,
) -> _Call | None:
    """A call from the arguments that matter; None where the tensors are not batches of sequences."""
    if not len(query.shape) == len(key.shape) == len(value.shape) or len(query.shape) < 3:
        return None
    if layout == "BSHD":
        if len(query.shape) != 4:
            return None
        batch, queries, heads, qk_dim = query.shape
        heads, keys = batch * heads, key.shape[1]
    else:
        *batches, queries, qk_dim = query.shape
        heads, keys = 1, key.shape[-2]
        for size in batches:
            heads *= size
    # Kernels write "no limit" as a negative number.
    left = None if left is None or left < 0 else left
    right = 0 if causal else None if right is None or right < 0 else right
    own = left is not None or right is not None or mask is None or mask.numel == 0
    return _Call(
        heads=heads,
        queries=queries,
        keys=keys,
        qk_dim=qk_dim,
        v_dim=value.shape[-1],
        pairs=_band(queries, keys, left, right, align),
        mask="own" if own else "block" if block else "tensor",
        backward=backward,
    )


def _cost(call: _Call) -> Cost:
    scores = call.heads * (call.queries * call.keys)
    unmasked, computed = call.in_blocks or (call.heads * call.pairs,) * 2
    products = (call.qk_dim + call.v_dim) * (2 if call.backward else 1)
    recomputed = call.qk_dim if call.backward else 0
    softmax = SOFTMAX_BACKWARD_FLOPS if call.backward else SOFTMAX_FLOPS
    return Cost(
        full=2 * scores * products,
        causal=2 * unmasked * products,
        hardware=2 * computed * (products + recomputed),
        vector=softmax * computed,
    )


Reader = Callable[..., _Call | Cost | None]
_READERS: dict[str, Reader] = {}


def _attention_op(*names: str, values: bool = False) -> Callable[[Reader], Reader]:
    """Register the decorated function, which has the operators' own signature, as what reads their calls.

    It returns a `Cost` where there is nothing more to know than it does.
    """

    def register(reader: Reader) -> Reader:
        def rule(*args: Any, out: Any, **kwargs: Any) -> Cost | None:
            call = reader(*args, **kwargs)
            return _cost(call) if isinstance(call, _Call) else call

        _READERS.update(dict.fromkeys(names, reader))
        flop_rule(*names, kind="attention", values=values)(rule)
        return reader

    return register


@_attention_op("aten::_scaled_dot_product_flash_attention_for_cpu")
def _cpu(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None, **_: Any) -> Any:
    return _read(q, k, v, causal=causal, mask=attn_mask)


@_attention_op("aten::_scaled_dot_product_flash_attention_for_cpu_backward")
def _cpu_backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    dropout: float,
    causal: bool,
    *,
    attn_mask: Any = None,
    **_: Any,
) -> Any:
    return _read(q, k, v, causal=causal, mask=attn_mask, backward=True)


# FlashAttention aligns the last query with the last key. scaled_dot_product_attention, whose is_causal means
# the other alignment, picks it for squares only; torch.nn.attention.bias.causal_lower_right calls it for the
# rest.
@_attention_op("aten::_scaled_dot_product_flash_attention")
def _flash(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *_: Any, **__: Any) -> Any:
    return _read(q, k, v, causal=causal, align="bottom-right")


@_attention_op("aten::_scaled_dot_product_flash_attention.quantized")
def _flash_quantized(
    q: Any, k: Any, v: Any, q_scale: Any, k_scale: Any, v_scale: Any, *rest: Any, **kwargs: Any
) -> Any:
    return _flash(q, k, v, *rest, **kwargs)


@_attention_op("aten::_scaled_dot_product_flash_attention_backward")
def _flash_backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    cum_q: Any,
    cum_k: Any,
    max_q: Any,
    max_k: Any,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> Any:
    return _read(q, k, v, causal=causal, align="bottom-right", backward=True)


@_attention_op(
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
def _biased(
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    lse: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *_: Any,
    **__: Any,
) -> Any:
    return _read(q, k, v, causal=causal, mask=bias)


@_attention_op("aten::_scaled_dot_product_efficient_attention_backward")
def _efficient_backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    o: Any,
    lse: Any,
    seed: Any,
    offset: Any,
    dropout: float,
    grad_mask: Any,
    causal: bool = False,
    *_: Any,
    **__: Any,
) -> Any:
    return _read(q, k, v, causal=causal, mask=bias, backward=True)


@_attention_op("aten::_scaled_dot_product_cudnn_attention_backward")
def _cudnn_backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    seed: Any,
    offset: Any,
    bias: Any,
    cum_q: Any,
    cum_k: Any,
    max_q: Any,
    max_k: Any,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> Any:
    return _read(q, k, v, causal=causal, mask=bias, backward=True)


@_attention_op("aten::_scaled_dot_product_fused_attention_overrideable")
def _overrideable(
    q: Any, k: Any, v: Any, bias: Any = None, dropout: float = 0.0, causal: bool = False, *_: Any, **__: Any
) -> Any:
    return _read(q, k, v, causal=causal, mask=bias)


@_attention_op("aten::_scaled_dot_product_fused_attention_overrideable_backward")
def _overrideable_backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    grad_mask: Any,
    o: Any,
    lse: Any,
    cum_q: Any,
    cum_k: Any,
    max_q: Any,
    max_k: Any,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> Any:
    return _read(q, k, v, causal=causal, mask=bias, backward=True)


@_attention_op(
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_attention_math_for_mps",
)
def _composite(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    *_: Any,
    **__: Any,
) -> Any:
    return _read(q, k, v, causal=causal, mask=attn_mask)


def _at(args: tuple[Any, ...], index: int) -> Any:
    """An argument, or None where it was left at its default, which torch then drops."""
    return args[index] if len(args) > index else None


BLOCKS = "blocks"
"""Begins what stands for a block mask whose values are known."""


def _read_blocks(q: Any, k: Any, v: Any, block_mask: Any, backward: bool = False) -> _Call | None:
    """A call of flex attention.

    Its block mask is `BLOCKS` and the two numbers of `_Call.in_blocks` where its values are known, else its tensors; of
    one query and one key is the one that torch makes up.
    """
    if block_mask and block_mask[0] == BLOCKS:
        call = _read(q, k, v, backward=backward)
        return None if call is None else call._replace(in_blocks=tuple(block_mask[1:]))
    none = not block_mask or tuple(block_mask[:2]) == (1, 1)
    return _read(q, k, v, mask=None if none else next(tensors(block_mask), None), block=True, backward=backward)


@_attention_op("higher_order::flex_attention")
def _flex(q: Any, k: Any, v: Any, score_mod: Any = None, block_mask: Any = None, *_: Any, **__: Any) -> Any:
    return _read_blocks(q, k, v, block_mask)


@_attention_op("higher_order::flex_attention_backward")
def _flex_backward(
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    grad: Any,
    grad_lse: Any,
    graph: Any,
    joint: Any,
    block_mask: Any = None,
    *_: Any,
    **__: Any,
) -> Any:
    return _read_blocks(q, k, v, block_mask, backward=True)


# The fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer in inference: projections and
# attention in one.
@flop_rule("aten::_native_multi_head_attention", kind="attention")
def _multi_head(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, width: int, heads: int, *_: Any, out: Any, **__: Any
) -> Cost:
    batch, queries, _width = q.shape
    scores = batch * queries * k.shape[1]
    # Four square projections: of the queries, of the keys, of the values, and of the result.
    projected = 2 * (q.numel + k.numel + v.numel + q.numel) * width
    return Cost(full=projected + 4 * scores * width, vector=SOFTMAX_FLOPS * heads * scores)


@flop_rule("aten::_transformer_encoder_layer_fwd", kind="attention")
def _encoder_layer(
    x: TensorSpec, width: int, heads: int, qkv_weight: TensorSpec, *rest: Any, out: Any, **_: Any
) -> Cost:
    # rest: qkv bias, out weight and bias, gelu, norm first, epsilon, two norms of two, two linears of two,
    # mask.
    weights = qkv_weight.numel + rest[1].numel + rest[10].numel + rest[12].numel
    batch, sequence, _width = x.shape
    scores = batch * sequence * sequence
    return Cost(
        full=2 * batch * sequence * weights + 4 * scores * width,
        vector=SOFTMAX_FLOPS * heads * scores,
    )


# Where these operators take their mask: whether there is none.
_LAYERS: dict[str, Callable[..., bool]] = {
    "aten::_native_multi_head_attention": lambda *args, **_: _at(args, 9) is None,
    "aten::_transformer_encoder_layer_fwd": lambda *args, **_: _at(args, 18) is None,
}
