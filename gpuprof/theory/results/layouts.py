"""Results of copies, gathers and views, and of what is made of nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ..rules import NotKnownError, TensorSpec
from .base import dtype_of, gives, like, promoted, resized, spec_of

# -- copies and gathers


@gives("_to_copy")
def _to_copy(x: TensorSpec, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(x.shape, dtype_of(dtype, x.dtype))


@gives("cat")
def _cat(parts: Sequence[TensorSpec], dim: int = 0, *_: Any) -> TensorSpec:
    whole = [part for part in parts if part.shape != (0,)] or list(parts[:1])  # which may stand for nothing at all
    sizes = sum(part.shape[dim] for part in whole)
    return resized(whole[0], dim, sizes)._replace(dtype=promoted(*parts))


@gives("stack")
def _stack(parts: Sequence[TensorSpec], dim: int = 0, *_: Any) -> TensorSpec:
    shape = list(parts[0].shape)
    shape.insert(dim % (len(shape) + 1), len(parts))
    return spec_of(shape, promoted(*parts))


@gives("repeat")
def _repeat(x: TensorSpec, times: Sequence[int], *_: Any) -> TensorSpec:
    shape = (1,) * (len(times) - len(x.shape)) + x.shape
    return like(x, [size * count for size, count in zip(shape, times, strict=True)])


@gives("constant_pad_nd")
def _pad(x: TensorSpec, pad: Sequence[int], *_: Any) -> TensorSpec:
    shape = list(x.shape)
    for place in range(len(pad) // 2):
        shape[-1 - place] += pad[2 * place] + pad[2 * place + 1]
    return like(x, shape)


@gives("slice_backward select_backward diagonal_backward unfold_backward")
def _into_zeros(grad: TensorSpec, sizes: Sequence[int], *_: Any) -> TensorSpec:
    return like(grad, sizes)


@gives("index_select")
def _index_select(x: TensorSpec, dim: int, index: TensorSpec, *_: Any) -> TensorSpec:
    return resized(x, dim, index.numel) if x.shape else x


@gives("gather")
def _gather(x: TensorSpec, dim: Any, index: TensorSpec, *_: Any) -> TensorSpec:
    return like(x, index.shape)


@gives("embedding")
def _embedding(table: TensorSpec, indices: TensorSpec, *_: Any) -> TensorSpec:
    return like(table, (*indices.shape, *table.shape[1:]))


@gives("embedding_dense_backward")
def _embedding_backward(grad: TensorSpec, indices: Any, rows: int, *_: Any) -> TensorSpec:
    return like(grad, (rows, grad.shape[-1]))


@gives("_embedding_bag_dense_backward")
def _embedding_bag_backward(
    grad: TensorSpec, indices: Any, bag_of: Any, sizes: Any, greatest: Any, rows: int, *_: Any
) -> TensorSpec:
    return like(grad, (rows, grad.shape[-1]))


# -- made of nothing


@gives("zeros ones empty")
def _made(size: Sequence[int], dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(size, dtype_of(dtype, ""))


@gives("rand randn")
def _random(size: Sequence[int], *rest: Any) -> TensorSpec:
    return spec_of(size, dtype_of(rest[-4], ""))  # perhaps after a generator


@gives("empty_strided")
def _strided(size: Sequence[int], stride: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(size, dtype_of(dtype, ""))


@gives("full")
def _full(size: Sequence[int], value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(size, dtype_of(dtype, promoted(value) if type(value) in (bool, int) else ""))


@gives("scalar_tensor")
def _scalar(value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of((), dtype_of(dtype, ""))


@gives("zeros_like ones_like empty_like rand_like randn_like")
def _made_like(x: TensorSpec, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(x.shape, dtype_of(dtype, x.dtype))


@gives("full_like")
def _full_like(x: TensorSpec, value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(x.shape, dtype_of(dtype, x.dtype))


@gives("new_zeros new_ones new_empty")
def _new(x: TensorSpec, size: Sequence[int], dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(size, dtype_of(dtype, x.dtype))


@gives("new_full new_empty_strided")
def _new_full(x: TensorSpec, size: Sequence[int], value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(size, dtype_of(dtype, x.dtype))


@gives("arange")
def _arange(*args: Any) -> TensorSpec:
    *numbers, dtype, _layout, _device, _pinned = args
    start, end, step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    whole = all(isinstance(number, int) for number in numbers)
    return spec_of((math.ceil((end - start) / step),), dtype_of(dtype, "int64" if whole else ""))


# -- views


@gives("view _unsafe_view _reshape_alias reshape")
def _view(x: TensorSpec, size: Any, *_: Any) -> TensorSpec:
    if isinstance(size, int):  # as another dtype
        raise NotKnownError
    rest = math.prod(length for length in size if length != -1)
    return like(x, [x.numel // rest if length == -1 else length for length in size])


@gives("expand")
def _expand(x: TensorSpec, size: Sequence[int], *_: Any) -> TensorSpec:
    shape = (1,) * (len(size) - len(x.shape)) + x.shape
    return like(x, [old if new == -1 else new for old, new in zip(shape, size, strict=True)])


@gives("as_strided resize_ as_strided_")
def _as_strided(x: TensorSpec, size: Sequence[int], *_: Any) -> TensorSpec:
    return like(x, size)


@gives("permute")
def _permute(x: TensorSpec, dims: Sequence[int]) -> TensorSpec:
    return like(x, [x.shape[dim] for dim in dims])


@gives("transpose transpose_")
def _transpose(x: TensorSpec, a: int, b: int) -> TensorSpec:
    shape = list(x.shape)
    if shape:
        shape[a], shape[b] = shape[b], shape[a]
    return like(x, shape)


@gives("t t_")
def _t(x: TensorSpec) -> TensorSpec:
    return like(x, x.shape[::-1])


@gives("unsqueeze unsqueeze_")
def _unsqueeze(x: TensorSpec, dim: int) -> TensorSpec:
    at = dim % (len(x.shape) + 1)
    return like(x, (*x.shape[:at], 1, *x.shape[at:]))


@gives("squeeze squeeze_")
def _squeeze(x: TensorSpec, dims: Any = None) -> TensorSpec:
    count = len(x.shape)
    named = range(count) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % count for dim in named} if count else set()
    return like(x, [size for dim, size in enumerate(x.shape) if size != 1 or dim not in gone])


@gives("select")
def _select(x: TensorSpec, dim: int, *_: Any) -> TensorSpec:
    at = dim % len(x.shape)
    return like(x, (*x.shape[:at], *x.shape[at + 1 :]))


@gives("slice")
def _slice(x: TensorSpec, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> TensorSpec:
    taken = range(x.shape[dim])[slice(start, end, step)]
    return resized(x, dim, len(taken))


_MOST = 10_000
"""Results that one call has; more is no call, but what a broken file says."""


@gives("split unsafe_split")
def _split(x: TensorSpec, size: int, dim: int = 0) -> tuple[TensorSpec, ...]:
    length = x.shape[dim]
    if length > _MOST * size:
        raise NotKnownError
    return tuple(resized(x, dim, min(size, length - start)) for start in range(0, max(length, 1), size))


@gives("split_with_sizes unsafe_split_with_sizes")
def _split_with_sizes(x: TensorSpec, sizes: Sequence[int], dim: int = 0) -> tuple[TensorSpec, ...]:
    if [*accumulate(sizes)][-1] != x.shape[dim]:
        raise ValueError(sizes)
    return tuple(resized(x, dim, size) for size in sizes)


@gives("unbind")
def _unbind(x: TensorSpec, dim: int = 0) -> tuple[TensorSpec, ...]:
    if x.shape[dim] > _MOST:
        raise NotKnownError
    return (_select(x, dim),) * x.shape[dim]


@gives("diagonal")
def _diagonal(x: TensorSpec, offset: int = 0, dim1: int = 0, dim2: int = 1) -> TensorSpec:
    count = len(x.shape)
    one, two = dim1 % count, dim2 % count
    length = min(x.shape[one] + min(offset, 0), x.shape[two] - max(offset, 0))
    return like(x, [*(size for dim, size in enumerate(x.shape) if dim not in (one, two)), max(length, 0)])


@gives("_local_scalar_dense equal is_same_size record_stream")
def _no_tensor(*_: Any) -> None:
    return None


# -- lists


_FOREACH = "add sub mul div neg abs sqrt rsqrt exp log reciprocal sign sigmoid tanh erf pow maximum minimum clamp_min "
_FOREACH += "clamp_max max round floor ceil sin cos trunc frac log1p log2 expm1 addcmul addcdiv lerp copy zero"


@gives(" ".join(f"_foreach_{name}" for name in _FOREACH.split()))
def _foreach(x: Sequence[TensorSpec], *_: Any) -> tuple[TensorSpec, ...]:
    return tuple(x)


@gives("_foreach_norm")
def _foreach_norm(x: Sequence[TensorSpec], *_: Any) -> tuple[TensorSpec, ...]:
    return tuple(like(part, ()) for part in x)


gives(" ".join(f"_foreach_{name}_" for name in _FOREACH.split()))(_no_tensor)
gives("_fused_adam_ _fused_adamw_ _fused_sgd_ _fused_adagrad_ _amp_foreach_non_finite_check_and_unscale_")(_no_tensor)
