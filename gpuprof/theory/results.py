"""Shape and dtype of an operator's result from its arguments, for those who have recorded no more than these.

Arguments stand in the order of the operator's schema, as a trace has them: keyword arguments among the others, and an
``out`` argument behind them. Of an operator that is not here, or where an argument that decides is `MISSING`, the
result is `MISSING` too: it is never guessed. A factory that is told no dtype takes torch's default one, which nobody
records either: there the dtype is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from .rules import ITEM_BYTES, MISSING, Missing, NotKnownError, TensorSpec, tensors

Result = Callable[..., Any]

_RESULTS: dict[str, Result] = {}

# torch's numbers of dtypes, as arguments have them
_DTYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
    8: "complex32", 9: "complex64", 10: "complex128", 11: "bool", 12: "qint8", 13: "quint8", 14: "qint32",
    15: "bfloat16", 23: "float8_e5m2", 24: "float8_e4m3fn", 25: "float8_e5m2fnuz", 26: "float8_e4m3fnuz", 27: "uint16",
    28: "uint32", 29: "uint64", 44: "float8_e8m0fnu", 45: "float4_e2m1fn_x2",
}  # fmt: skip

# a GPU keeps the statistics of these in float32, whatever the dtype of what they are of
_STATISTICS = frozenset(["aten::native_layer_norm", "aten::native_group_norm", "aten::native_batch_norm"])


def result_of(op: str, args: tuple[Any, ...], device: str) -> Any:
    """The result of a call: a `TensorSpec`, a tuple of them, None where there is none, `MISSING` where nobody knows.

    Args:
        op: ``namespace::name``.
        args: all of the schema's arguments in its order, tensors as `TensorSpec`.
        device: type of the device.
    """
    found = _RESULTS.get(op)
    if found is None and op.startswith("aten::") and op.endswith("_") and not op.startswith("aten::_"):
        found = _first
    if found is None:
        return MISSING
    try:
        result = found(*args)
        for spec in tensors(result):
            if not all(isinstance(size, int) and size >= 0 for size in spec.shape):
                return MISSING
    except (NotKnownError, ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError):
        return MISSING  # arguments that nobody recorded, or that no call of this operator in a torch of today has
    if op in _STATISTICS and device != "cpu":
        return (result[0], *(spec._replace(dtype=_accumulated(spec.dtype)) for spec in result[1:]))
    return result


def _accumulated(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def _result(names: str, namespace: str = "aten") -> Callable[[Result], Result]:
    """Register the decorated function, which has the operators' own arguments, for these names."""

    def register(result: Result) -> Result:
        _RESULTS.update({f"{namespace}::{name}": result for name in names.split()})
        return result

    return register


# -- what shapes and dtypes become


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that these broadcast to.

    Raises:
        ValueError: they do not.
    """
    sizes = []
    for at in range(-max(map(len, shapes), default=0), 0):
        found = {shape[at] for shape in shapes if len(shape) >= -at} - {1}
        if len(found) > 1:
            raise ValueError(f"{shapes} do not broadcast")
        sizes.append(found.pop() if found else 1)
    return tuple(sizes)


_COMPLEX = {"float16": "complex32", "bfloat16": "complex64", "float32": "complex64", "float64": "complex128"}


def _kind(dtype: str) -> int:
    """Of bool, integer, floating and complex, which decide before the size."""
    return 0 if dtype == "bool" else 1 if "int" in dtype else 3 if dtype.startswith("complex") else 2


def promoted(*operands: Any) -> str:
    """The dtype that operands promote to; empty where that of a tensor is not known.

    Tensors with dimensions decide before those without, and these before numbers: the latter count only where they are
    of a higher kind (bool, integer, floating, complex). A `MISSING` number is taken to be a real one.

    Args:
        operands: tensors and numbers of Python; what is neither does not count.
    """
    levels: tuple[list[str], ...] = ([], [], [])
    unknown = any(isinstance(value, Missing) for value in operands)
    for value in operands:
        if isinstance(value, TensorSpec):
            levels[0 if value.shape else 1].append(value.dtype)
        elif isinstance(value, (bool, int, float, complex)):
            levels[2].append({bool: "bool", int: "int64", float: "float32", complex: "complex64"}[type(value)])
    best = ""
    for level in levels:
        if not all(level):
            return ""
        for dtype in level[1:]:
            level[0] = _higher(level[0], dtype)
        if level and (not best or _kind(level[0]) > _kind(best)):
            best = _COMPLEX[best] if best in _COMPLEX and _kind(level[0]) == 3 else level[0]
    return "" if unknown and best and _kind(best) < 2 else best


def _higher(a: str, b: str) -> str:
    low, high = sorted((a, b), key=lambda dtype: (_kind(dtype), ITEM_BYTES.get(dtype, 1)))
    if _kind(high) == 3:
        return max(_COMPLEX.get(low, low), high, key=lambda dtype: ITEM_BYTES[dtype] if _kind(dtype) == 3 else 0)
    if {a, b} == {"float16", "bfloat16"}:
        return "float32"
    return "int16" if {a, b} == {"int8", "uint8"} else high


def _fraction(dtype: str) -> str:
    """What arithmetic that leaves the integers makes of a dtype."""
    return "float32" if dtype and _kind(dtype) < 2 else dtype


def _dtype(number: Any, default: str) -> str:
    """The dtype that an argument names, its default where it names none."""
    if isinstance(number, Missing):
        raise NotKnownError
    return default if number is None else _DTYPES[number]


def _spec(shape: Sequence[int], dtype: str) -> TensorSpec:
    return TensorSpec(tuple(shape), dtype)


def _like(x: TensorSpec, shape: Sequence[int]) -> TensorSpec:
    return TensorSpec(tuple(shape), x.dtype)


def _if(mask: Any, x: TensorSpec | None) -> TensorSpec | None:
    return x if mask else None


def _first(x: TensorSpec, *_: Any) -> TensorSpec:
    if not isinstance(x, TensorSpec):
        raise NotKnownError
    return x


def _second(_x: Any, y: TensorSpec, *_: Any) -> TensorSpec:
    return _first(y)


def _per_dim(value: Any, dims: int) -> Sequence[int]:
    """A size for each dimension, where one may be given for all."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * dims if len(sizes) == 1 else sizes


# -- products


@_result("mm")
def _mm(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _like(a, (a.shape[0], b.shape[1]))


@_result("_int_mm")
def _int_mm(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _spec((a.shape[0], b.shape[1]), "int32")


@_result("bmm")
def _bmm(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _like(a, (a.shape[0], a.shape[1], b.shape[2]))


@_result("addmm _addmm_activation")
def _addmm(bias: Any, a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _mm(a, b)


@_result("baddbmm")
def _baddbmm(bias: Any, a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _bmm(a, b)


@_result("addbmm")
def _addbmm(bias: Any, a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _like(a, (a.shape[1], b.shape[2]))


@_result("mv")
def _mv(a: TensorSpec, *_: Any) -> TensorSpec:
    return _like(a, a.shape[:1])


@_result("addmv")
def _addmv(bias: Any, a: TensorSpec, *_: Any) -> TensorSpec:
    return _mv(a)


@_result("dot vdot")
def _dot(a: TensorSpec, *_: Any) -> TensorSpec:
    return _like(a, ())


@_result("linear mkldnn_linear")
def _linear(a: TensorSpec, weight: TensorSpec, *_: Any) -> TensorSpec:
    return _like(a, (*a.shape[:-1], *weight.shape[:-1]))


@_result("_scaled_mm")
def _scaled_mm(
    a: TensorSpec, b: TensorSpec, scale_a: Any, scale_b: Any, bias: Any, scale: Any, dtype: Any, *_: Any
) -> TensorSpec:
    return _spec((a.shape[0], b.shape[1]), _dtype(dtype, a.dtype))


@_result("_grouped_mm")
def _grouped_mm(a: TensorSpec, b: TensorSpec, offsets: Any = None, bias: Any = None, dtype: Any = None) -> TensorSpec:
    shape = (*a.shape[:-1], b.shape[-1]) if len(a.shape) == len(b.shape) else (a.shape[-2], b.shape[-1])
    groups = offsets.shape if len(a.shape) == len(b.shape) == 2 else ()
    return _spec((*groups, *shape), _dtype(dtype, a.dtype))


@_result("_euclidean_dist _cdist_forward")
def _distances(x: TensorSpec, y: TensorSpec, *_: Any) -> TensorSpec:
    return _like(x, (*broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2]))


@_result("_trilinear")
def _trilinear(
    a: TensorSpec, b: TensorSpec, c: TensorSpec, expand_a: Any, expand_b: Any, expand_c: Any, summed: Sequence[int],
    *_: Any,
) -> TensorSpec:  # fmt: skip
    sizes = []
    for x, dims in ((a, expand_a), (b, expand_b), (c, expand_c)):
        shape = list(x.shape)
        for dim in sorted(dims):
            shape.insert(dim, 1)
        sizes.append(shape)
    return _like(a, [size for dim, size in enumerate(broadcast(*sizes)) if dim not in summed])


@_result("linalg_cholesky_ex linalg_inv_ex")
def _factored(a: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return a, _spec(a.shape[:-2], "int32")


@_result("linalg_solve_triangular")
def _solved(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _like(b, (*broadcast(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]))


# -- convolutions


def _convolved(x: TensorSpec, weight: TensorSpec, stride: Any, padding: Any, dilation: Any) -> TensorSpec:
    kernel = weight.shape[2:]
    each = (_per_dim(value, len(kernel)) for value in (stride, padding, dilation))
    spatial = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(x.shape[2:], kernel, *each, strict=True)
    ]
    return _like(x, (x.shape[0], weight.shape[0], *spatial))


def _transposed(
    x: TensorSpec, weight: TensorSpec, stride: Any, padding: Any, dilation: Any, more: Any, groups: int
) -> TensorSpec:
    kernel = weight.shape[2:]
    each = (_per_dim(value, len(kernel)) for value in (stride, padding, dilation, more))
    spatial = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1 + o
        for size, k, s, p, d, o in zip(x.shape[2:], kernel, *each, strict=True)
    ]
    return _like(x, (x.shape[0], weight.shape[1] * groups, *spatial))


@_result("convolution _convolution convolution_overrideable")
def _convolution(
    x: TensorSpec, weight: TensorSpec, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *_: Any,
) -> TensorSpec:  # fmt: skip
    if transposed:
        return _transposed(x, weight, stride, padding, dilation, output_padding, groups)
    return _convolved(x, weight, stride, padding, dilation)


@_result("cudnn_convolution")
def _cudnn(x: TensorSpec, weight: TensorSpec, padding: Any, stride: Any, dilation: Any, *_: Any) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@_result("miopen_convolution miopen_depthwise_convolution mkldnn_convolution")
def _miopen(
    x: TensorSpec, weight: TensorSpec, bias: Any, padding: Any, stride: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


_result("_convolution_pointwise", "mkldnn")(_miopen)


@_result("cudnn_convolution_relu")
def _cudnn_relu(
    x: TensorSpec, weight: TensorSpec, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@_result("cudnn_convolution_add_relu")
def _cudnn_add_relu(
    x: TensorSpec, weight: TensorSpec, z: Any, alpha: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@_result("slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d")
def _slow_dilated(
    x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@_result("_slow_conv2d_forward slow_conv3d_forward")
def _slow(x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any, stride: Any, padding: Any, *_: Any) -> TensorSpec:
    return _convolved(x, weight, stride, padding, 1)


@_result("cudnn_convolution_transpose")
def _cudnn_transpose(
    x: TensorSpec, weight: TensorSpec, padding: Any, output_padding: Any, stride: Any, dilation: Any, groups: int,
    *_: Any,
) -> TensorSpec:  # fmt: skip
    return _transposed(x, weight, stride, padding, dilation, output_padding, groups)


@_result("miopen_convolution_transpose")
def _miopen_transpose(x: TensorSpec, weight: TensorSpec, bias: Any, *rest: Any) -> TensorSpec:
    return _cudnn_transpose(x, weight, *rest)


@_result("slow_conv_transpose2d slow_conv_transpose3d")
def _slow_transpose(
    x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
    dilation: Any, *_: Any,
) -> TensorSpec:  # fmt: skip
    return _transposed(x, weight, stride, padding, dilation, output_padding, 1)


@_result("convolution_backward")
def _convolution_backward(
    grad: TensorSpec, x: TensorSpec, weight: TensorSpec, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: Any, output_padding: Any, groups: Any, mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    return _if(mask[0], x), _if(mask[1], weight), _if(mask[2], _like(grad, grad.shape[1:2]))


# -- attention


@_result("_scaled_dot_product_flash_attention_for_cpu")
def _cpu_attention(q: TensorSpec, k: TensorSpec, v: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return q, _spec(q.shape[:-1], "float64" if q.dtype == "float64" else "float32")


@_result("_scaled_dot_product_flash_attention")
def _flash(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, dropout: Any = 0.0, causal: Any = False, debug: bool = False, *_: Any
) -> tuple[Any, ...]:
    if debug or not isinstance(dropout, (float, int, Missing)):  # scales of quantized operands instead
        raise NotKnownError
    return q, _spec(q.shape[:-1], "float32"), *_random_state(), _like(q, (0,))


def _random_state() -> tuple[TensorSpec, TensorSpec]:
    return _spec((2,), "uint64"), _spec((), "uint64")


@_result("_flash_attention_forward")
def _flash_forward(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, dropout: Any,
    causal: Any, debug: bool, *_: Any,
) -> tuple[TensorSpec, ...]:  # fmt: skip
    if cu_q is not None or debug:
        raise NotKnownError
    batch, queries, heads, _size = q.shape
    return q, _spec((batch, heads, queries), "float32"), *_random_state(), _like(q, (0,))


@_result("_scaled_dot_product_efficient_attention")
def _efficient(q: TensorSpec, k: TensorSpec, v: TensorSpec, bias: Any, lse: bool, *_: Any) -> tuple[TensorSpec, ...]:
    *batch, queries, _size = q.shape
    rows = -(-queries // 32) * 32 if lse else 0  # padded to whole blocks of a kernel
    seed = _spec((), "int64")
    return _like(q, (*batch, queries, v.shape[-1])), _spec((*batch, rows), "float32"), seed, seed


@_result("_scaled_dot_product_cudnn_attention")
def _cudnn_attention(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, bias: Any, lse: bool, dropout: Any = 0.0, causal: Any = False,
    debug: bool = False, *_: Any,
) -> tuple[TensorSpec, ...]:  # fmt: skip
    if debug:
        raise NotKnownError
    *batch, queries, _size = q.shape
    seed = _spec((), "int64")
    result = _like(q, (*batch, queries, v.shape[-1]))
    return (result, _spec((*batch, queries, 1), "float32"), seed, seed) if lse else (result, seed, seed)


@_result(
    "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward "
    "_scaled_dot_product_cudnn_attention_backward _flash_attention_backward"
)
def _attention_backward(grad: Any, q: TensorSpec, k: TensorSpec, v: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return q, k, v


@_result("_scaled_dot_product_efficient_attention_backward")
def _efficient_backward(
    grad: Any, q: TensorSpec, k: TensorSpec, v: TensorSpec, bias: TensorSpec | None, o: Any, lse: Any, seed: Any,
    offset: Any, dropout: Any, mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    return q, k, v, _if(mask[3], bias)


@_result("_native_multi_head_attention")
def _multi_head(
    q: TensorSpec, k: TensorSpec, v: TensorSpec, width: Any, heads: int, qkv_weight: Any, qkv_bias: Any,
    proj_weight: Any, proj_bias: Any, mask: Any, need_weights: bool, average: bool, *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    batch, queries, _width = q.shape
    scores = (batch, *(() if average else (heads,)), queries, k.shape[1])
    return q, _like(q, scores) if need_weights else None


@_result("_transformer_encoder_layer_fwd")
def _encoder_layer(x: TensorSpec, *_: Any) -> TensorSpec:
    return x


# -- recurrent cells


@_result("_thnn_fused_lstm_cell")
def _lstm_cell(gates: TensorSpec, hidden: Any, cell: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return cell, cell, gates


@_result("_thnn_fused_lstm_cell_backward_impl")
def _lstm_cell_backward(
    grad_h: Any, grad_c: Any, cx: TensorSpec, cy: Any, workspace: TensorSpec, bias: bool
) -> tuple[TensorSpec | None, ...]:
    return workspace, cx, _if(bias, _like(workspace, workspace.shape[1:]))


@_result("_thnn_fused_gru_cell")
def _gru_cell(gates: Any, hidden: Any, hx: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    batch, size = hx.shape
    return hx, _like(hx, (batch, 5 * size))


@_result("_thnn_fused_gru_cell_backward")
def _gru_cell_backward(grad: TensorSpec, workspace: Any, bias: bool) -> tuple[TensorSpec | None, ...]:
    batch, size = grad.shape
    gates, per_gate = _like(grad, (batch, 3 * size)), _if(bias, _like(grad, (3 * size,)))
    return gates, gates, grad, per_gate, per_gate


# -- element by element


def _same(x: TensorSpec, *_: Any) -> TensorSpec:
    return _first(x)


def _same_fraction(x: TensorSpec, *_: Any) -> TensorSpec:
    return x._replace(dtype=_fraction(x.dtype))


def _same_bool(x: TensorSpec, *_: Any) -> TensorSpec:
    return _spec(x.shape, "bool")


def _shape_of(*operands: Any) -> tuple[int, ...]:
    return broadcast(*(value.shape for value in operands if isinstance(value, TensorSpec)))


def _pair(a: Any, b: Any, *_: Any) -> TensorSpec:
    return _spec(_shape_of(a, b), promoted(a, b))


def _pair_fraction(a: Any, b: Any, *_: Any) -> TensorSpec:
    return _spec(_shape_of(a, b), _fraction(promoted(a, b)))


def _pair_bool(a: Any, b: Any, *_: Any) -> TensorSpec:
    return _spec(_shape_of(a, b), "bool")


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
        _pair,
        """
        add sub rsub mul remainder fmod floor_divide pow maximum minimum fmax fmin bitwise_and bitwise_or bitwise_xor
        bitwise_left_shift bitwise_right_shift copysign heaviside xlogy
        """,
    ),
    (_pair_fraction, "atan2 hypot logaddexp logaddexp2"),
    (_pair_bool, "eq ne lt le gt ge logical_and logical_or logical_xor"),
    (
        _second,
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
    _result(_names)(_function)


@_result("div true_divide")
def _quotient(a: Any, b: Any, *mode: Any) -> TensorSpec:
    dtype = promoted(a, b)
    whole = mode and dtype and _kind(dtype) < 2 and not isinstance(mode[0], TensorSpec)
    return _spec(_shape_of(a, b), "" if whole else _fraction(dtype))  # whole if it rounds, in a way that is a text


@_result("where")
def _where(condition: TensorSpec, a: Any, b: Any, *_: Any) -> TensorSpec:
    return _spec(_shape_of(condition, a, b), promoted(a, b))


@_result("clamp clamp_min clamp_max")
def _clamp(x: TensorSpec, *bounds: Any) -> TensorSpec:
    return _spec(_shape_of(x, *bounds), promoted(x, *bounds))


@_result("addcmul addcdiv lerp")
def _three(a: TensorSpec, b: TensorSpec, c: Any, *_: Any) -> TensorSpec:
    return _spec(_shape_of(a, b, c), promoted(a, b, c if isinstance(c, TensorSpec) else None))


@_result("masked_fill")
def _masked_fill(x: TensorSpec, mask: TensorSpec, *_: Any) -> TensorSpec:
    return _like(x, _shape_of(x, mask))


@_result("native_dropout")
def _dropout(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, _spec(x.shape, "bool")


@_result("_fused_dropout")
def _fused_dropout(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, _spec(x.shape, "uint8")


@_result("glu")
def _glu(x: TensorSpec, dim: int = -1, *_: Any) -> TensorSpec:
    return _resized(x, dim, x.shape[dim] // 2)


@_result("_softmax _log_softmax")
def _softmax(x: TensorSpec, dim: Any, to_float: bool, *_: Any) -> TensorSpec:
    return _spec(x.shape, "float32" if to_float else x.dtype)


@_result("_safe_softmax")
def _safe_softmax(x: TensorSpec, dim: Any, dtype: Any = None) -> TensorSpec:
    return _spec(x.shape, _dtype(dtype, x.dtype))


@_result("_softmax_backward_data _log_softmax_backward_data")
def _softmax_backward(grad: TensorSpec, result: Any, dim: Any, dtype: Any, *_: Any) -> TensorSpec:
    return _spec(grad.shape, _dtype(dtype, grad.dtype))


# -- norms


@_result("native_layer_norm")
def _layer_norm(x: TensorSpec, normalized: Sequence[int], *_: Any) -> tuple[TensorSpec, ...]:
    kept = len(x.shape) - len(normalized)
    each = _like(x, (*x.shape[:kept], *(1,) * len(normalized)))
    return x, each, each


@_result("_fused_rms_norm")
def _rms_norm(x: TensorSpec, normalized: Sequence[int], *_: Any) -> tuple[TensorSpec, ...]:
    _, each, _again = _layer_norm(x, normalized)
    return x, each._replace(dtype=_accumulated(x.dtype))


@_result("native_layer_norm_backward")
def _layer_norm_backward(
    grad: Any, x: TensorSpec, normalized: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Sequence[bool],
    *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    return _if(mask[0], x), _if(mask[1], weight), _if(mask[2], bias)


@_result("_fused_rms_norm_backward")
def _rms_norm_backward(
    grad: Any, x: TensorSpec, normalized: Any, rstd: Any, weight: Any, mask: Sequence[bool], *_: Any
) -> tuple[TensorSpec | None, ...]:
    return _if(mask[0], x), _if(mask[1], weight)


@_result("native_group_norm")
def _group_norm(
    x: TensorSpec, weight: Any, bias: Any, batch: int, channels: Any, size: Any, groups: int, *_: Any
) -> tuple[TensorSpec, ...]:
    each = _like(x, (batch, groups))
    return x, each, each


@_result("native_group_norm_backward")
def _group_norm_backward(
    grad: Any, x: TensorSpec, mean: Any, rstd: Any, weight: Any, batch: Any, channels: int, size: Any, groups: Any,
    mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    each = _like(x, (channels,))
    return _if(mask[0], x), _if(mask[1], each), _if(mask[2], each)


@_result("native_batch_norm")
def _batch_norm(
    x: TensorSpec, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any
) -> tuple[TensorSpec, ...]:
    each = _like(x, x.shape[1:2] if training else (0,))
    return x, each, each


@_result("miopen_batch_norm")
def _miopen_batch_norm(
    x: TensorSpec, weight: TensorSpec, bias: Any, mean: Any, var: Any, training: bool, *_: Any
) -> tuple[TensorSpec, ...]:
    each = _like(weight, weight.shape if training else (0,))
    return x, each, each


@_result("cudnn_batch_norm")
def _cudnn_batch_norm(x: TensorSpec, weight: TensorSpec, *rest: Any) -> tuple[TensorSpec, ...]:
    return *_miopen_batch_norm(x, weight, *rest), _spec((0,), "uint8")  # what it keeps for the backward is little


@_result("native_batch_norm_backward")
def _batch_norm_backward(
    grad: Any, x: TensorSpec, weight: Any, mean: Any, var: Any, save_mean: Any, save_var: Any, training: Any,
    epsilon: Any, mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    each = weight or _like(x, x.shape[1:2])
    return _if(mask[0], x), _if(mask[1], each), _if(mask[2], each)


@_result("cudnn_batch_norm_backward miopen_batch_norm_backward")
def _cudnn_batch_norm_backward(x: TensorSpec, grad: Any, weight: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return x, weight, weight


# -- reductions


def _reduced(x: TensorSpec, dims: Any, keep: bool) -> tuple[int, ...]:
    """Shape without these dimensions: all of them where none is named."""
    count = len(x.shape)
    named = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % count for dim in named} if named and count else set(range(count))
    return tuple(1 if dim in gone else size for dim, size in enumerate(x.shape) if keep or dim not in gone)


def _summed(dtype: str) -> str:
    return "int64" if dtype and _kind(dtype) < 2 else dtype


@_result("sum nansum prod")
def _sum(x: TensorSpec, *rest: Any) -> TensorSpec:
    dims, keep, dtype = (None, False, *rest) if len(rest) < 2 else rest[:3]
    return _spec(_reduced(x, dims, keep), _dtype(dtype, _summed(x.dtype)))


@_result("mean")
def _mean(x: TensorSpec, *rest: Any) -> TensorSpec:
    dims, keep, dtype = (None, False, *rest) if len(rest) < 2 else rest[:3]
    return _spec(_reduced(x, dims, keep), _dtype(dtype, x.dtype))


@_result("amax amin logsumexp")
def _amax(x: TensorSpec, dims: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return _like(x, _reduced(x, dims, keep))


@_result("any all")
def _any(x: TensorSpec, dims: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return _spec(_reduced(x, dims, keep), "uint8" if x.dtype == "uint8" else "bool")


@_result("argmax argmin")
def _argmax(x: TensorSpec, dim: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return _spec(_reduced(x, dim, keep), "int64")


@_result("max min median")
def _max(x: TensorSpec, *rest: Any) -> Any:
    if not rest:
        return _like(x, ())
    if isinstance(rest[0], TensorSpec):
        return _pair(x, rest[0])
    shape = _reduced(x, *rest[:2])
    return _like(x, shape), _spec(shape, "int64")


@_result("histc")
def _histc(x: TensorSpec, bins: int = 100, *_: Any) -> TensorSpec:
    return _like(x, (bins,))


@_result("cummax cummin")
def _cummax(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, _spec(x.shape, "int64")


@_result("cumsum cumprod")
def _cumsum(x: TensorSpec, dim: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(x.shape, _dtype(dtype, _summed(x.dtype)))


@_result("linalg_vector_norm")
def _vector_norm(x: TensorSpec, order: Any, dims: Any, keep: bool, dtype: Any, *_: Any) -> TensorSpec:
    return _spec(_reduced(x, dims, keep), _dtype(dtype, x.dtype))


@_result("norm")
def _norm(x: TensorSpec, order: Any = 2, dims: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return _like(x, _reduced(x, dims, keep))


@_result("var std")
def _var(x: TensorSpec, dims: Any, correction: Any = None, keep: bool = False, *_: Any) -> TensorSpec:
    return _like(x, _reduced(x, None if isinstance(dims, bool) else dims, keep))


@_result("var_mean std_mean")
def _var_mean(x: TensorSpec, *rest: Any) -> tuple[TensorSpec, TensorSpec]:
    return (_var(x, *rest),) * 2


@_result("topk")
def _topk(x: TensorSpec, k: int, dim: int = -1, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    found = _resized(x, dim, k)
    return found, _spec(found.shape, "int64")


@_result("sort")
def _sort(x: TensorSpec, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return x, _spec(x.shape, "int64")


# -- losses


def _loss(x: TensorSpec, shape: Sequence[int], reduction: Any) -> TensorSpec:
    if isinstance(reduction, Missing):
        raise NotKnownError
    return _like(x, () if reduction else shape)


@_result("mse_loss smooth_l1_loss huber_loss soft_margin_loss")
def _pairwise_loss(x: TensorSpec, target: TensorSpec, reduction: Any = 1, *_: Any) -> TensorSpec:
    return _loss(x, _shape_of(x, target), reduction)


@_result("binary_cross_entropy")
def _cross_entropy(x: TensorSpec, target: Any, weight: Any = None, reduction: Any = 1, *_: Any) -> TensorSpec:
    return _loss(x, x.shape, reduction)


@_result("binary_cross_entropy_with_logits")
def _cross_entropy_with_logits(
    x: TensorSpec, target: Any, weight: Any = None, positive: Any = None, reduction: Any = 1, *_: Any
) -> TensorSpec:
    return _loss(x, x.shape, reduction)


@_result("nll_loss_forward nll_loss2d_forward")
def _nll_loss(x: TensorSpec, target: TensorSpec, weight: Any, reduction: Any, *_: Any) -> tuple[TensorSpec, TensorSpec]:
    return _loss(x, target.shape, reduction), _like(x, ())


# -- windows


def _pooled(x: TensorSpec, dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> TensorSpec:
    each = [_per_dim(value, dims) for value in (kernel, stride if stride else kernel, padding, dilation)]
    spatial = []
    for size, k, s, p, d in zip(x.shape[-dims:], *each, strict=True):
        room = size + 2 * p - d * (k - 1) - 1
        count = -(-room // s) + 1 if ceil else room // s + 1
        spatial.append(count - 1 if ceil and (count - 1) * s >= size + p else count)  # a window begins in the input
    return _like(x, (*x.shape[:-dims], *spatial))


def _max_pool(dims: int) -> Result:
    def pool(
        x: TensorSpec, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False, *_: Any
    ) -> tuple[TensorSpec, TensorSpec]:
        found = _pooled(x, dims, kernel, stride, padding, dilation, ceil)
        return found, _spec(found.shape, "int64")

    return pool


def _avg_pool(dims: int) -> Result:
    def pool(x: TensorSpec, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, *_: Any) -> TensorSpec:
        return _pooled(x, dims, kernel, stride, padding, 1, ceil)

    return pool


for _dims in (2, 3):
    _result(f"max_pool{_dims}d_with_indices")(_max_pool(_dims))
    _result(f"avg_pool{_dims}d")(_avg_pool(_dims))


@_result("_adaptive_avg_pool2d _adaptive_avg_pool3d")
def _adaptive(x: TensorSpec, size: Sequence[int], *_: Any) -> TensorSpec:
    return _like(x, (*x.shape[: -len(size)], *size))


@_result("adaptive_max_pool2d adaptive_max_pool3d")
def _adaptive_max(x: TensorSpec, size: Sequence[int], *_: Any) -> tuple[TensorSpec, TensorSpec]:
    found = _adaptive(x, size)
    return found, _spec(found.shape, "int64")


_UPSAMPLES = (
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)


@_result(_UPSAMPLES)
def _upsample(x: TensorSpec, size: Sequence[int] | None, *rest: Any) -> TensorSpec:
    if size is None:  # but factors, which come last
        size = [int(length * factor) for length, factor in zip(x.shape[2:], rest[-1], strict=True)]
    return _like(x, (*x.shape[:2], *size))


@_result(" ".join(f"{name}_backward" for name in _UPSAMPLES.split()))
def _upsample_backward(grad: TensorSpec, size: Any, input_size: Sequence[int], *_: Any) -> TensorSpec:
    return _like(grad, input_size)


# -- copies and gathers


def _resized(x: TensorSpec, dim: int, size: int) -> TensorSpec:
    shape = list(x.shape)
    shape[dim] = size
    return _like(x, shape)


@_result("_to_copy")
def _to_copy(x: TensorSpec, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(x.shape, _dtype(dtype, x.dtype))


@_result("cat")
def _cat(parts: Sequence[TensorSpec], dim: int = 0, *_: Any) -> TensorSpec:
    whole = [part for part in parts if part.shape != (0,)] or list(parts[:1])  # which may stand for nothing at all
    sizes = sum(part.shape[dim] for part in whole)
    return _resized(whole[0], dim, sizes)._replace(dtype=promoted(*parts))


@_result("stack")
def _stack(parts: Sequence[TensorSpec], dim: int = 0, *_: Any) -> TensorSpec:
    shape = list(parts[0].shape)
    shape.insert(dim % (len(shape) + 1), len(parts))
    return _spec(shape, promoted(*parts))


@_result("repeat")
def _repeat(x: TensorSpec, times: Sequence[int], *_: Any) -> TensorSpec:
    shape = (1,) * (len(times) - len(x.shape)) + x.shape
    return _like(x, [size * count for size, count in zip(shape, times, strict=True)])


@_result("constant_pad_nd")
def _pad(x: TensorSpec, pad: Sequence[int], *_: Any) -> TensorSpec:
    shape = list(x.shape)
    for place in range(len(pad) // 2):
        shape[-1 - place] += pad[2 * place] + pad[2 * place + 1]
    return _like(x, shape)


@_result("slice_backward select_backward diagonal_backward unfold_backward")
def _into_zeros(grad: TensorSpec, sizes: Sequence[int], *_: Any) -> TensorSpec:
    return _like(grad, sizes)


@_result("index_select")
def _index_select(x: TensorSpec, dim: int, index: TensorSpec, *_: Any) -> TensorSpec:
    return _resized(x, dim, index.numel) if x.shape else x


@_result("gather")
def _gather(x: TensorSpec, dim: Any, index: TensorSpec, *_: Any) -> TensorSpec:
    return _like(x, index.shape)


@_result("embedding")
def _embedding(table: TensorSpec, indices: TensorSpec, *_: Any) -> TensorSpec:
    return _like(table, (*indices.shape, *table.shape[1:]))


@_result("embedding_dense_backward")
def _embedding_backward(grad: TensorSpec, indices: Any, rows: int, *_: Any) -> TensorSpec:
    return _like(grad, (rows, grad.shape[-1]))


@_result("_embedding_bag_dense_backward")
def _embedding_bag_backward(
    grad: TensorSpec, indices: Any, bag_of: Any, sizes: Any, greatest: Any, rows: int, *_: Any
) -> TensorSpec:
    return _like(grad, (rows, grad.shape[-1]))


# -- made of nothing


@_result("zeros ones empty")
def _made(size: Sequence[int], dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(size, _dtype(dtype, ""))


@_result("rand randn")
def _random(size: Sequence[int], *rest: Any) -> TensorSpec:
    return _spec(size, _dtype(rest[-4], ""))  # perhaps after a generator


@_result("empty_strided")
def _strided(size: Sequence[int], stride: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(size, _dtype(dtype, ""))


@_result("full")
def _full(size: Sequence[int], value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(size, _dtype(dtype, promoted(value) if type(value) in (bool, int) else ""))


@_result("scalar_tensor")
def _scalar(value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec((), _dtype(dtype, ""))


@_result("zeros_like ones_like empty_like rand_like randn_like")
def _made_like(x: TensorSpec, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(x.shape, _dtype(dtype, x.dtype))


@_result("full_like")
def _full_like(x: TensorSpec, value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(x.shape, _dtype(dtype, x.dtype))


@_result("new_zeros new_ones new_empty")
def _new(x: TensorSpec, size: Sequence[int], dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(size, _dtype(dtype, x.dtype))


@_result("new_full new_empty_strided")
def _new_full(x: TensorSpec, size: Sequence[int], value: Any, dtype: Any = None, *_: Any) -> TensorSpec:
    return _spec(size, _dtype(dtype, x.dtype))


@_result("arange")
def _arange(*args: Any) -> TensorSpec:
    *numbers, dtype, _layout, _device, _pinned = args
    start, end, step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    whole = all(isinstance(number, int) for number in numbers)
    return _spec((math.ceil((end - start) / step),), _dtype(dtype, "int64" if whole else ""))


# -- views


@_result("view _unsafe_view _reshape_alias reshape")
def _view(x: TensorSpec, size: Any, *_: Any) -> TensorSpec:
    if isinstance(size, int):  # as another dtype
        raise NotKnownError
    rest = math.prod(length for length in size if length != -1)
    return _like(x, [x.numel // rest if length == -1 else length for length in size])


@_result("expand")
def _expand(x: TensorSpec, size: Sequence[int], *_: Any) -> TensorSpec:
    shape = (1,) * (len(size) - len(x.shape)) + x.shape
    return _like(x, [old if new == -1 else new for old, new in zip(shape, size, strict=True)])


@_result("as_strided resize_ as_strided_")
def _as_strided(x: TensorSpec, size: Sequence[int], *_: Any) -> TensorSpec:
    return _like(x, size)


@_result("permute")
def _permute(x: TensorSpec, dims: Sequence[int]) -> TensorSpec:
    return _like(x, [x.shape[dim] for dim in dims])


@_result("transpose transpose_")
def _transpose(x: TensorSpec, a: int, b: int) -> TensorSpec:
    shape = list(x.shape)
    if shape:
        shape[a], shape[b] = shape[b], shape[a]
    return _like(x, shape)


@_result("t t_")
def _t(x: TensorSpec) -> TensorSpec:
    return _like(x, x.shape[::-1])


@_result("unsqueeze unsqueeze_")
def _unsqueeze(x: TensorSpec, dim: int) -> TensorSpec:
    at = dim % (len(x.shape) + 1)
    return _like(x, (*x.shape[:at], 1, *x.shape[at:]))


@_result("squeeze squeeze_")
def _squeeze(x: TensorSpec, dims: Any = None) -> TensorSpec:
    count = len(x.shape)
    named = range(count) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % count for dim in named} if count else set()
    return _like(x, [size for dim, size in enumerate(x.shape) if size != 1 or dim not in gone])


@_result("select")
def _select(x: TensorSpec, dim: int, *_: Any) -> TensorSpec:
    at = dim % len(x.shape)
    return _like(x, (*x.shape[:at], *x.shape[at + 1 :]))


@_result("slice")
def _slice(x: TensorSpec, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> TensorSpec:
    taken = range(x.shape[dim])[slice(start, end, step)]
    return _resized(x, dim, len(taken))


_MOST = 10_000
"""Results that one call has; more is no call, but what a broken file says."""


@_result("split unsafe_split")
def _split(x: TensorSpec, size: int, dim: int = 0) -> tuple[TensorSpec, ...]:
    length = x.shape[dim]
    if length > _MOST * size:
        raise NotKnownError
    return tuple(_resized(x, dim, min(size, length - start)) for start in range(0, max(length, 1), size))


@_result("split_with_sizes unsafe_split_with_sizes")
def _split_with_sizes(x: TensorSpec, sizes: Sequence[int], dim: int = 0) -> tuple[TensorSpec, ...]:
    if [*accumulate(sizes)][-1] != x.shape[dim]:
        raise ValueError(sizes)
    return tuple(_resized(x, dim, size) for size in sizes)


@_result("unbind")
def _unbind(x: TensorSpec, dim: int = 0) -> tuple[TensorSpec, ...]:
    if x.shape[dim] > _MOST:
        raise NotKnownError
    return (_select(x, dim),) * x.shape[dim]


@_result("diagonal")
def _diagonal(x: TensorSpec, offset: int = 0, dim1: int = 0, dim2: int = 1) -> TensorSpec:
    count = len(x.shape)
    one, two = dim1 % count, dim2 % count
    length = min(x.shape[one] + min(offset, 0), x.shape[two] - max(offset, 0))
    return _like(x, [*(size for dim, size in enumerate(x.shape) if dim not in (one, two)), max(length, 0)])


@_result("_local_scalar_dense equal is_same_size record_stream")
def _no_tensor(*_: Any) -> None:
    return None


# -- lists


_FOREACH = "add sub mul div neg abs sqrt rsqrt exp log reciprocal sign sigmoid tanh erf pow maximum minimum clamp_min "
_FOREACH += "clamp_max max round floor ceil sin cos trunc frac log1p log2 expm1 addcmul addcdiv lerp copy zero"


@_result(" ".join(f"_foreach_{name}" for name in _FOREACH.split()))
def _foreach(x: Sequence[TensorSpec], *_: Any) -> tuple[TensorSpec, ...]:
    return tuple(x)


@_result("_foreach_norm")
def _foreach_norm(x: Sequence[TensorSpec], *_: Any) -> tuple[TensorSpec, ...]:
    return tuple(_like(part, ()) for part in x)


_result(" ".join(f"_foreach_{name}_" for name in _FOREACH.split()))(_no_tensor)
_result("_fused_adam_ _fused_adamw_ _fused_sgd_ _fused_adagrad_ _amp_foreach_non_finite_check_and_unscale_")(_no_tensor)
