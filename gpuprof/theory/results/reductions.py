"""Results of reductions, losses and windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rules import Missing, NotKnownError, TensorSpec
from .base import Result, dtype_of, gives, kind_of, like, pair, per_dim, resized, shape_of, spec_of

# -- reductions


def _reduced(x: TensorSpec, dims: Any, keep: bool) -> tuple[int, ...]:
    """Shape without these dimensions: all of them where none is named."""
    count = len(x.shape)
    named = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % count for dim in named} if named and count else set(range(count))
    return tuple(1 if dim in gone else size for dim, size in enumerate(x.shape) if keep or dim not in gone)


def _summed(dtype: str) -> str:
    return "int64" if dtype and kind_of(dtype) < 2 else dtype


@gives("sum nansum prod")
def _sum(x: TensorSpec, *rest: Any) -> TensorSpec:
    dims, keep, dtype = (None, False, *rest) if len(rest) < 2 else rest[:3]
    return spec_of(_reduced(x, dims, keep), dtype_of(dtype, _summed(x.dtype)))


@gives("mean")
def _mean(x: TensorSpec, *rest: Any) -> TensorSpec:
    dims, keep, dtype = (None, False, *rest) if len(rest) < 2 else rest[:3]
    return spec_of(_reduced(x, dims, keep), dtype_of(dtype, x.dtype))


@gives("amax amin logsumexp")
def _amax(x: TensorSpec, dims: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return like(x, _reduced(x, dims, keep))


@gives("any all")
def _any(x: TensorSpec, dims: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return spec_of(_reduced(x, dims, keep), "uint8" if x.dtype == "uint8" else "bool")


@gives("argmax argmin")
def _argmax(x: TensorSpec, dim: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return spec_of(_reduced(x, dim, keep), "int64")


@gives("max min median")
def _max(x: TensorSpec, *rest: Any) -> Any:
    if not rest:
        return like(x, ())
    if isinstance(rest[0], TensorSpec):
        return pair(x, rest[0])
    shape = _reduced(x, *rest[:2])
    return like(x, shape), spec_of(shape, "int64")


@gives("histc")
def _histc(x: TensorSpec, bins: int = 100, *_: Any) -> TensorSpec:
    return like(x, (bins,))


@gives("cummax cummin")
def _cummax(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, spec_of(x.shape, "int64")


@gives("cumsum cumprod")
def _cumsum(x: TensorSpec, dim: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return spec_of(x.shape, dtype_of(dtype, _summed(x.dtype)))


@gives("linalg_vector_norm")
def _vector_norm(x: TensorSpec, order: Any, dims: Any, keep: bool, dtype: Any, *_: Any) -> TensorSpec:
    return spec_of(_reduced(x, dims, keep), dtype_of(dtype, x.dtype))


@gives("norm")
def _norm(x: TensorSpec, order: Any = 2, dims: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return like(x, _reduced(x, dims, keep))


@gives("var std")
def _var(x: TensorSpec, dims: Any, correction: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return like(x, _reduced(x, None if isinstance(dims, bool) else dims, keep))


@gives("var_mean std_mean")
def _var_mean(x: TensorSpec, *rest: Any) -> tuple[TensorSpec, TensorSpec]:
    return (_var(x, *rest),) * 2


@gives("topk")
def _topk(x: TensorSpec, k: int, dim: int = -1, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    found = resized(x, dim, k)
    return found, spec_of(found.shape, "int64")


@gives("sort")
def _sort(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, spec_of(x.shape, "int64")


# -- losses


def _loss(x: TensorSpec, shape: Sequence[int], reduction: Any) -> TensorSpec:
    if isinstance(reduction, Missing):
        raise NotKnownError
    return like(x, () if reduction else shape)


@gives("mse_loss smooth_l1_loss huber_loss soft_margin_loss")
def _pairwise_loss(x: TensorSpec, target: TensorSpec, reduction: Any = 1, *_: Any) -> TensorSpec:
    return _loss(x, shape_of(x, target), reduction)


@gives("binary_cross_entropy")
def _cross_entropy(x: TensorSpec, target: Any, weight: Any = None, reduction: Any = 1, *_: Any) -> TensorSpec:
    return _loss(x, x.shape, reduction)


@gives("binary_cross_entropy_with_logits")
def _cross_entropy_with_logits(
    x: TensorSpec, target: Any, weight: Any = None, positive: Any = None, reduction: Any = 1, *_: Any
) -> TensorSpec:
    return _loss(x, x.shape, reduction)


@gives("nll_loss_forward nll_loss2d_forward")
def _nll_loss(x: TensorSpec, target: TensorSpec, weight: Any, reduction: Any, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return _loss(x, target.shape, reduction), like(x, ())


# -- windows


def _pooled(x: TensorSpec, dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> TensorSpec:
    each = [per_dim(value, dims) for value in (kernel, stride if stride else kernel, padding, dilation)]
    spatial = []
    for size, k, s, p, d in zip(x.shape[-dims:], *each, strict=True):
        room = size + 2 * p - d * (k - 1) - 1
        count = -(-room // s) + 1 if ceil else room // s + 1
        spatial.append(count - 1 if ceil and (count - 1) * s >= size + p else count)  # a window begins in the input
    return like(x, (*x.shape[:-dims], *spatial))


def _max_pool(dims: int) -> Result:
    def pool(
        x: TensorSpec, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False, *_: Any
    ) -> tuple[TensorSpec, TensorSpec]:
        found = _pooled(x, dims, kernel, stride, padding, dilation, ceil)
        return found, spec_of(found.shape, "int64")

    return pool


def _avg_pool(dims: int) -> Result:
    def pool(x: TensorSpec, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, *_: Any) -> TensorSpec:
        return _pooled(x, dims, kernel, stride, padding, 1, ceil)

    return pool


for _dims in (2, 3):
    gives(f"max_pool{_dims}d_with_indices")(_max_pool(_dims))
    gives(f"avg_pool{_dims}d")(_avg_pool(_dims))


@gives("_adaptive_avg_pool2d _adaptive_avg_pool3d")
def _adaptive(x: TensorSpec, size: Sequence[int], *_: Any) -> TensorSpec:
    return like(x, (*x.shape[: -len(size)], *size))


@gives("adaptive_max_pool2d adaptive_max_pool3d")
def _adaptive_max(x: TensorSpec, size: Sequence[int], *_: Any) -> tuple[TensorSpec, TensorSpec]:
    found = _adaptive(x, size)
    return found, spec_of(found.shape, "int64")


_UPSAMPLES = (
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)


@gives(_UPSAMPLES)
def _upsample(x: TensorSpec, size: Sequence[int] | None, *rest: Any) -> TensorSpec:
    if size is None:  # but factors, which come last
        size = [int(length * factor) for length, factor in zip(x.shape[2:], rest[-1], strict=True)]
    return like(x, (*x.shape[:2], *size))


@gives(" ".join(f"{name}_backward" for name in _UPSAMPLES.split()))
def _upsample_backward(grad: TensorSpec, size: Any, input_size: Sequence[int], *_: Any) -> TensorSpec:
    return like(grad, input_size)
