"""Attention kernels that take sequences of many lengths, packed one after another and cut by offsets.

Sequence i has the queries between ``cu_q[i]`` and ``cu_q[i + 1]`` and the keys likewise, or the first ``used_k[i]`` of
a cache; a query meets keys of its own sequence only. So `Cost.full` is the sum of the squares of the sequences, never
that of all tokens together, and `Cost.causal` that of the pairs which the kernel's own mask leaves, exactly.

Where the offsets have no values (they were computed on a device without any), shapes alone give an upper bound, marked
`Cost.bound`: as many sequences of the greatest length as there are tokens for, and one of what is left.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from .attention import _at, _attention_op, _Call, _cost, _read
from .masks import Align, _band
from .rules import Cost, TensorSpec


def packed(
    q: TensorSpec,
    k: TensorSpec,
    v: TensorSpec,
    cu_q: TensorSpec | None,
    cu_k: TensorSpec | None,
    max_q: int | None,
    max_k: int | None,
    *,
    causal: bool,
    left: int | None = None,
    right: int | None = None,
    align: Align = "bottom-right",
    used_q: TensorSpec | None = None,
    used_k: TensorSpec | None = None,
    backward: bool = False,
) -> Cost | None:
    """Cost of one call on packed sequences.

    Args:
        q: queries (..., tokens, heads, size), or (batch, queries, heads, size) where they are not packed.
        k: keys likewise, or pages of a cache (pages, size of a page, heads, size), which ``used_k`` says the use of.
        v: values likewise.
        cu_q: offsets of the sequences' queries, of one more element than there are sequences; None if not packed.
        cu_k: likewise of the keys.
        max_q: the most queries of a sequence.
        max_k: the most keys of a sequence.
        causal: whether a query sees no later keys.
        left: keys that it sees before its own; None or negative for no limit.
        right: likewise after its own.
        align: which query stands at which key.
        used_q: how many queries of each sequence are used.
        used_k: likewise of keys.
        backward: whether it computes the gradients.

    Returns:
        None where not even a bound is known: no offsets and no greatest length.
    """
    left = None if left is None or left < 0 else left
    right = 0 if causal else None if right is None or right < 0 else right
    queries, keys = _lengths(q, cu_q, used_q), _lengths(k, cu_k, used_k)
    bound = queries is None or keys is None
    if queries is None or keys is None:
        tokens = _tokens(q)
        if not max_k:
            return None
        if max_q == max_k and used_k is None and tokens == _tokens(k):
            queries = keys = [max_k] * (tokens // max_k) + [tokens % max_k]
        else:  # no query sees more than the longest keys
            queries, keys, left, right = [tokens], [max_k], None, None
    lengths = list(zip(queries, keys, strict=True))
    heads = q.shape[-2]
    scores = heads * sum(m * n for m, n in lengths)
    unmasked = heads * sum(_band(m, n, left, right, align) for m, n in lengths)
    # the pairs of all heads and sequences as those of so many queries and one key
    together = _Call(1, scores, 1, q.shape[-1], v.shape[-1], unmasked, "own", backward)
    return replace(_cost(together), bound=bound)


def _tokens(x: TensorSpec) -> int:
    return x.numel // max(x.shape[-1] * x.shape[-2], 1)


def _lengths(x: TensorSpec, offsets: TensorSpec | None, used: TensorSpec | None) -> list[int] | None:
    """Length of each sequence; None where it is not known."""
    if used is not None:
        return None if used.values is None else list(used.values)
    if offsets is not None:
        return None if offsets.values is None else [end - start for start, end in pairwise(offsets.values)]
    return [x.shape[1]] * x.shape[0] if len(x.shape) == 4 else None


# -- torch's kernels


@_attention_op("aten::_flash_attention_forward", values=True)
def _flash_forward(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, dropout: float, causal: bool, *_: Any,
    window_size_left: int | None = None, window_size_right: int | None = None, seqused_k: Any = None,
    block_table: Any = None, **__: Any,
) -> Any:  # fmt: skip
    left, right = window_size_left, window_size_right
    if any(item is not None for item in (cu_q, cu_k, seqused_k, block_table)):
        return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, left=left, right=right, used_k=seqused_k)
    return _read(q, k, v, causal=causal, left=left, right=right, align="bottom-right", layout="BSHD")


@_attention_op("aten::_flash_attention_forward_no_dropout_inplace", values=True)
def _flash_forward_into(result: Any, *args: Any, **kwargs: Any) -> Any:
    return _flash_forward(*args, **kwargs)


@_attention_op("aten::_flash_attention_backward", values=True)
def _flash_backward(
    grad: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any,
    dropout: float, causal: bool, *_: Any, window_size_left: int | None = None, window_size_right: int | None = None,
    **__: Any,
) -> Any:  # fmt: skip
    left, right = window_size_left, window_size_right
    if cu_q is not None or cu_k is not None:
        return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, left=left, right=right, backward=True)
    return _read(q, k, v, causal=causal, left=left, right=right, align="bottom-right", layout="BSHD", backward=True)


# torch.nn.attention.varlen: the window is (left, right), and causal means (-1, 0) or (left, 0).
@_attention_op("torch_attn::_varlen_attn", values=True)
def _varlen(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, causal: bool = False, scale: Any = None,
    window: Any = None, gqa: bool = False, used_k: Any = None, *_: Any, **__: Any,
) -> Any:  # fmt: skip
    left, right = window or (-1, -1)
    return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, left=left, right=right, used_k=used_k)


@_attention_op("torch_attn::_varlen_attn_out", values=True)
def _varlen_into(result: Any, *args: Any, **kwargs: Any) -> Any:
    return _varlen(*args, **kwargs)


@_attention_op("torch_attn::_varlen_attn_backward", values=True)
def _varlen_backward(
    grad: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, causal: bool,
    rng: Any, scale: Any = None, window: Any = None, *_: Any, **__: Any,
) -> Any:  # fmt: skip
    left, right = window or (-1, -1)
    return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, left=left, right=right, backward=True)


# custom_mask_type of the memory-efficient kernels; 0 is none.
_EFFICIENT_ALIGN: dict[int, Align] = {0: "top-left", 1: "top-left", 2: "bottom-right"}


@_attention_op("aten::_efficient_attention_forward", values=True)
def _efficient_forward(
    q: Any, k: Any, v: Any, bias: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, dropout: float, mask_type: int,
    *_: Any, seqlen_k: Any = None, window_size: int | None = None, backward: bool = False, **__: Any,
) -> Any:  # fmt: skip
    # Its window counts the query's own key, and zero or less is none.
    left = window_size - 1 if window_size and window_size > 0 else None
    causal, align = mask_type > 0, _EFFICIENT_ALIGN[mask_type]
    if any(item is not None for item in (cu_q, cu_k, seqlen_k)):
        how: dict[str, Any] = {"causal": causal, "left": left, "align": align, "backward": backward}
        return packed(q, k, v, cu_q, cu_k, max_q, max_k, used_k=seqlen_k, **how)
    return _read(q, k, v, causal=causal, mask=bias, left=left, align=align, layout="BSHD", backward=backward)


@_attention_op("aten::_efficient_attention_backward", values=True)
def _efficient_backward(
    grad: Any, q: Any, k: Any, v: Any, bias: Any, o: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, lse: Any,
    dropout: float, seed: Any, offset: Any, mask_type: int, *_: Any, window_size: int | None = None, **__: Any,
) -> Any:  # fmt: skip
    return _efficient_forward(
        q, k, v, bias, cu_q, cu_k, max_q, max_k, dropout, mask_type, window_size=window_size, backward=True
    )


@_attention_op("aten::_cudnn_attention_forward", values=True)
def _cudnn_forward(
    q: Any, k: Any, v: Any, bias: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, lse: bool, dropout: float = 0.0,
    causal: bool = False, *_: Any, **__: Any,
) -> Any:  # fmt: skip
    if cu_q is not None or cu_k is not None:
        return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, align="top-left")
    return _read(q, k, v, causal=causal, mask=bias)


@_attention_op("aten::_cudnn_attention_backward", values=True)
def _cudnn_backward(
    grad: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, seed: Any, offset: Any, bias: Any, cu_q: Any, cu_k: Any,
    max_q: Any, max_k: Any, dropout: float, causal: bool, *_: Any, **__: Any,
) -> Any:  # fmt: skip
    if cu_q is not None or cu_k is not None:
        return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, align="top-left", backward=True)
    return _read(q, k, v, causal=causal, mask=bias, backward=True)


# -- the flash-attn package, whose first releases with operators called their namespace otherwise. Head sizes are what
# its kernels get: padded to a multiple of 8 by the package itself.


@_attention_op("flash_attn::_flash_attn_forward", "flashattn::_flash_attn_forward")
def _package(
    q: Any, k: Any, v: Any, dropout: float, scale: Any, causal: bool, left: int, right: int, *_: Any, **__: Any
) -> Any:
    return _read(q, k, v, causal=causal, left=left, right=right, align="bottom-right", layout="BSHD")


@_attention_op("flash_attn::_flash_attn_backward", "flashattn::_flash_attn_backward")
def _package_backward(
    grad: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dq: Any, dk: Any, dv: Any, dropout: float, scale: Any,
    causal: bool, left: int, right: int, *_: Any, **__: Any,
) -> Any:  # fmt: skip
    return _read(q, k, v, causal=causal, left=left, right=right, align="bottom-right", layout="BSHD", backward=True)


@_attention_op("flash_attn::_flash_attn_varlen_forward", "flashattn::_flash_attn_varlen_forward", values=True)
def _package_varlen(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, dropout: float, scale: Any, causal: bool,
    left: int = -1, right: int = -1, *rest: Any, **__: Any,
) -> Any:  # fmt: skip
    # rest: softcap, slopes, whether to return the softmax, page table, padding on the left, keys that are used.
    if _at(rest, 4) is not None:
        return None
    used_k = _at(rest, 5)
    return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, left=left, right=right, used_k=used_k)


@_attention_op("flash_attn::_flash_attn_varlen_backward", "flashattn::_flash_attn_varlen_backward", values=True)
def _package_varlen_backward(
    grad: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dq: Any, dk: Any, dv: Any, cu_q: Any, cu_k: Any, max_q: Any,
    max_k: Any, dropout: float, scale: Any, causal: bool, left: int = -1, right: int = -1, *_: Any, **__: Any,
) -> Any:  # fmt: skip
    return packed(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, left=left, right=right, backward=True)


@_attention_op("flash_attn_3::_flash_attn_forward", values=True)
def _package_3(q: Any, k: Any, v: Any, *rest: Any, **_: Any) -> Any:
    # rest: new keys, new values, query-value products, result; 3 offsets (of queries, keys, new keys), 2 of what is
    # used, 2 longest lengths, page table, index of the batch, padding on the left, 3 of rotary, 3 scales and one more;
    # then the mask: causal, left, right, length of chunks.
    if any(_at(rest, i) is not None for i in (0, 1, 2, 6, 12, 13)) or _at(rest, 24):
        return None
    how: dict[str, Any] = {"causal": bool(_at(rest, 21)), "left": _at(rest, 22), "right": _at(rest, 23)}
    if any(_at(rest, i) is not None for i in (4, 5, 7, 8, 11)):
        lengths = (_at(rest, i) for i in (4, 5, 9, 10))
        return packed(q, k, v, *lengths, used_q=_at(rest, 7), used_k=_at(rest, 8), **how)
    return _read(q, k, v, align="bottom-right", layout="BSHD", **how)


@_attention_op("flash_attn_3::_flash_attn_backward", values=True)
def _package_3_backward(grad: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, *rest: Any, **_: Any) -> Any:
    # rest: 2 offsets, 2 of what is used, 2 longest lengths, 3 gradients, scale; then the mask.
    how: dict[str, Any] = {
        "causal": bool(_at(rest, 10)), "left": _at(rest, 11), "right": _at(rest, 12), "backward": True,
    }  # fmt: skip
    if any(_at(rest, i) is not None for i in range(4)):
        lengths = (_at(rest, i) for i in (0, 1, 4, 5))
        return packed(q, k, v, *lengths, used_q=_at(rest, 2), used_k=_at(rest, 3), **how)
    return _read(q, k, v, align="bottom-right", layout="BSHD", **how)
