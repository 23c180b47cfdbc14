"""Results of what goes element by element, and of norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rules import TensorSpec
from .base import (
    Result,
    accumulated,
    dtype_of,
    first,
    fraction,
    gives,
    kind_of,
    like,
    only_if,
    pair,
    promoted,
    resized,
    second,
    shape_of,
    spec_of,
)

# -- element by element


def _same(x: TensorSpec, *_: Any) -> TensorSpec:
    return first(x)


def _same_fraction(x: TensorSpec, *_: Any) -> TensorSpec:
    return x._replace(dtype=fraction(x.dtype))


def _same_bool(x: TensorSpec, *_: Any) -> TensorSpec:
    return spec_of(x.shape, "bool")


def _pair_fraction(a: Any, b: Any, *_: Any) -> TensorSpec:
    return spec_of(shape_of(a, b), fraction(promoted(a, b)))


def _pair_bool(a: Any, b: Any, *_: Any) -> TensorSpec:
    return spec_of(shape_of(a, b), "bool")


_ELEMENTWISE: list[tuple[Result, str]] = [
    (
        _same,
        """
        neg abs sign sgn relu silu gelu mish elu celu selu softplus hardswish hardsigmoid hardtanh leaky_relu threshold
        hardshrink softshrink floor ceil round trunc frac square positive bitwise_not _prelu_kernel nan_to_num
        clone contiguous flip roll tril triu bernoulli conj_physical _conj_physical logcumsumexp lift_fresh detach alias
        scatter scatter_add scatter_reduce index_add index_copy index_fill index_put _index_put_impl_ _unsafe_index_put
        masked_scatter _pin_memory slice_scatter select_scatter renorm lift _conj native_dropout_backward _masked_scale
        embedding_renorm_ _amp_update_scale_ relu6 hardswish_backward sigmoid_backward tanh_backward threshold_backward
        silu_backward gelu_backward elu_backward leaky_relu_backward mish_backward hardtanh_backward softplus_backward
        hardsigmoid_backward logit_backward hardshrink_backward softshrink_backward
        """,
    ),
    (
        _same_fraction,
        """
        sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh asinh acosh atanh tanh erf
        erfc erfinv sigmoid reciprocal logit sinc lgamma digamma i0 special_i0 special_i1
        """,
    ),
    (_same_bool, "isnan isinf isposinf isneginf logical_not"),
    (
        pair,
        """
        add sub rsub mul remainder fmod floor_divide pow maximum minimum fmax fmin bitwise_and bitwise_or bitwise_xor
        bitwise_left_shift bitwise_right_shift copysign heaviside xlogy
        """,
    ),
    (_pair_fraction, "atan2 hypot logaddexp logaddexp2"),
    (_pair_bool, "eq ne lt le gt ge logical_and logical_or logical_xor"),
    (
        second,
        """
        mse_loss_backward smooth_l1_loss_backward huber_loss_backward binary_cross_entropy_backward
        soft_margin_loss_backward nll_loss_backward nll_loss2d_backward max_pool2d_with_indices_backward
        max_pool3d_with_indices_backward avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward
        _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward log_sigmoid_backward
        glu_backward resize_as_ set_
        """,
    ),
]
for _function, _names in _ELEMENTWISE:
    gives(_names)(_function)


@gives("div true_divide")
def _quotient(a: Any, b: Any, *mode: Any) -> TensorSpec:
    dtype = promoted(a, b)
    whole = mode and dtype and kind_of(dtype) < 2 and not isinstance(mode[0], TensorSpec)
    return spec_of(shape_of(a, b), "" if whole else fraction(dtype))  # whole if it rounds, in a way that is a text


@gives("where")
def _where(condition: TensorSpec, a: Any, b: Any, *_: Any) -> TensorSpec:
    return spec_of(shape_of(condition, a, b), promoted(a, b))


@gives("clamp clamp_min clamp_max")
def _clamp(x: TensorSpec, *bounds: Any) -> TensorSpec:
    return spec_of(shape_of(x, *bounds), promoted(x, *bounds))


@gives("addcmul addcdiv lerp")
def _three(a: TensorSpec, b: TensorSpec, c: Any, *_: Any) -> TensorSpec:
    return spec_of(shape_of(a, b, c), promoted(a, b, c if isinstance(c, TensorSpec) else None))


@gives("masked_fill")
def _masked_fill(x: TensorSpec, mask: TensorSpec, *_: Any) -> TensorSpec:
    return like(x, shape_of(x, mask))


@gives("native_dropout")
def _dropout(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, spec_of(x.shape, "bool")


@gives("_fused_dropout")
def _fused_dropout(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, spec_of(x.shape, "uint8")


@gives("glu")
def _glu(x: TensorSpec, dim: int = -1, *_: Any) -> TensorSpec:
    return resized(x, dim, x.shape[dim] // 2)


@gives("_softmax _log_softmax")
def _softmax(x: TensorSpec, dim: Any, to_float: bool, *_: Any) -> TensorSpec:
    return spec_of(x.shape, "float32" if to_float else x.dtype)


@gives("_safe_softmax")
def _safe_softmax(x: TensorSpec, dim: Any, dtype: Any = None) -> TensorSpec:
    return spec_of(x.shape, dtype_of(dtype, x.dtype))


@gives("_softmax_backward_data _log_softmax_backward_data")
def _softmax_backward(grad: TensorSpec, result: Any, dim: Any, dtype: Any, *_: Any) -> TensorSpec:
    return spec_of(grad.shape, dtype_of(dtype, grad.dtype))


# -- norms


@gives("native_layer_norm")
def _layer_norm(x: TensorSpec, normalized: Sequence[int], *_: Any) -> tuple[TensorSpec, ...]:
    kept = len(x.shape) - len(normalized)
    each = like(x, (*x.shape[:kept], *(1,) * len(normalized)))
    return x, each, each


@gives("_fused_rms_norm")
def _rms_norm(x: TensorSpec, normalized: Sequence[int], *_: Any) -> tuple[TensorSpec, ...]:
    _, each, _again = _layer_norm(x, normalized)
    return x, each._replace(dtype=accumulated(x.dtype))


@gives("native_layer_norm_backward")
def _layer_norm_backward(
    grad: Any, x: TensorSpec, normalized: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Sequence[bool],
    *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    return only_if(mask[0], x), only_if(mask[1], weight), only_if(mask[2], bias)


@gives("_fused_rms_norm_backward")
def _rms_norm_backward(
    grad: Any, x: TensorSpec, normalized: Any, rstd: Any, weight: Any, mask: Sequence[bool], *_: Any
) -> tuple[TensorSpec | None, ...]:
    return only_if(mask[0], x), only_if(mask[1], weight)


@gives("native_group_norm")
def _group_norm(
    x: TensorSpec, weight: Any, bias: Any, batch: int, channels: Any, size: Any, groups: int, *_: Any
) -> tuple[TensorSpec, ...]:
    each = like(x, (batch, groups))
    return x, each, each


@gives("native_group_norm_backward")
def _group_norm_backward(
    grad: Any, x: TensorSpec, mean: Any, rstd: Any, weight: Any, batch: Any, channels: int, size: Any, groups: Any,
    mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    each = like(x, (channels,))
    return only_if(mask[0], x), only_if(mask[1], each), only_if(mask[2], each)


@gives("native_batch_norm")
def _batch_norm(
    x: TensorSpec, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any
) -> tuple[TensorSpec, ...]:
    each = like(x, x.shape[1:2] if training else (0,))
    return x, each, each


@gives("miopen_batch_norm")
def _miopen_batch_norm(
    x: TensorSpec, weight: TensorSpec, bias: Any, mean: Any, var: Any, training: bool, *_: Any
) -> tuple[TensorSpec, ...]:
    each = like(weight, weight.shape if training else (0,))
    return x, each, each


@gives("cudnn_batch_norm")
def _cudnn_batch_norm(x: TensorSpec, weight: TensorSpec, *rest: Any) -> tuple[TensorSpec, ...]:
    return *_miopen_batch_norm(x, weight, *rest), spec_of((0,), "uint8")  # what it keeps for the backward is little


@gives("native_batch_norm_backward")
def _batch_norm_backward(
    grad: Any, x: TensorSpec, weight: Any, mean: Any, var: Any, save_mean: Any, save_var: Any, training: Any,
    epsilon: Any, mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    each = weight or like(x, x.shape[1:2])
    return only_if(mask[0], x), only_if(mask[1], each), only_if(mask[2], each)


@gives("cudnn_batch_norm_backward miopen_batch_norm_backward")
def _cudnn_batch_norm_backward(x: TensorSpec, grad: Any, weight: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return x, weight, weight
