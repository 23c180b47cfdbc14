"""Results of products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rules import TensorSpec
from .base import broadcast, dtype_of, gives, like, only_if, per_dim, spec_of

# -- products


@gives("mm")
def _mm(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return like(a, (a.shape[0], b.shape[1]))


@gives("_int_mm")
def _int_mm(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return spec_of((a.shape[0], b.shape[1]), "int32")


@gives("bmm")
def _bmm(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return like(a, (a.shape[0], a.shape[1], b.shape[2]))


@gives("addmm _addmm_activation")
def _addmm(bias: Any, a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _mm(a, b)


@gives("baddbmm")
def _baddbmm(bias: Any, a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return _bmm(a, b)


@gives("addbmm")
def _addbmm(bias: Any, a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return like(a, (a.shape[1], b.shape[2]))


@gives("mv")
def _mv(a: TensorSpec, *_: Any) -> TensorSpec:
    return like(a, a.shape[:1])


@gives("addmv")
def _addmv(bias: Any, a: TensorSpec, *_: Any) -> TensorSpec:
    return _mv(a)


@gives("dot vdot")
def _dot(a: TensorSpec, *_: Any) -> TensorSpec:
    return like(a, ())


@gives("linear mkldnn_linear")
def _linear(a: TensorSpec, weight: TensorSpec, *_: Any) -> TensorSpec:
    return like(a, (*a.shape[:-1], *weight.shape[:-1]))


@gives("_scaled_mm")
def _scaled_mm(
    a: TensorSpec, b: TensorSpec, scale_a: Any, scale_b: Any, bias: Any, scale: Any, dtype: Any, *_: Any
) -> TensorSpec:
    return spec_of((a.shape[0], b.shape[1]), dtype_of(dtype, a.dtype))


@gives("_grouped_mm")
def _grouped_mm(a: TensorSpec, b: TensorSpec, offsets: Any = None, bias: Any = None, dtype: Any = None) -> TensorSpec:
    shape = (*a.shape[:-1], b.shape[-1]) if len(a.shape) == len(b.shape) else (a.shape[-2], b.shape[-1])
    groups = offsets.shape if len(a.shape) == len(b.shape) == 2 else ()
    return spec_of((*groups, *shape), dtype_of(dtype, a.dtype))


@gives("_euclidean_dist _cdist_forward")
def _distances(x: TensorSpec, y: TensorSpec, *_: Any) -> TensorSpec:
    return like(x, (*broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2]))


@gives("_trilinear")
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
    return like(a, [size for dim, size in enumerate(broadcast(*sizes)) if dim not in summed])


@gives("linalg_cholesky_ex linalg_inv_ex")
def _factored(a: TensorSpec, *_: Any) -> tuple[TensorSpec, ...]:
    return a, spec_of(a.shape[:-2], "int32")


@gives("linalg_solve_triangular")
def _solved(a: TensorSpec, b: TensorSpec, *_: Any) -> TensorSpec:
    return like(b, (*broadcast(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]))


# -- convolutions


def _convolved(x: TensorSpec, weight: TensorSpec, stride: Any, padding: Any, dilation: Any) -> TensorSpec:
    kernel = weight.shape[2:]
    each = (per_dim(value, len(kernel)) for value in (stride, padding, dilation))
    spatial = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(x.shape[2:], kernel, *each, strict=True)
    ]
    return like(x, (x.shape[0], weight.shape[0], *spatial))


def _transposed(
    x: TensorSpec, weight: TensorSpec, stride: Any, padding: Any, dilation: Any, more: Any, groups: int
) -> TensorSpec:
    kernel = weight.shape[2:]
    each = (per_dim(value, len(kernel)) for value in (stride, padding, dilation, more))
    spatial = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1 + o
        for size, k, s, p, d, o in zip(x.shape[2:], kernel, *each, strict=True)
    ]
    return like(x, (x.shape[0], weight.shape[1] * groups, *spatial))


@gives("convolution _convolution convolution_overrideable")
def _convolution(
    x: TensorSpec, weight: TensorSpec, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *_: Any,
) -> TensorSpec:  # fmt: skip
    if transposed:
        return _transposed(x, weight, stride, padding, dilation, output_padding, groups)
    return _convolved(x, weight, stride, padding, dilation)


@gives("cudnn_convolution")
def _cudnn(x: TensorSpec, weight: TensorSpec, padding: Any, stride: Any, dilation: Any, *_: Any) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@gives("miopen_convolution miopen_depthwise_convolution mkldnn_convolution")
def _miopen(
    x: TensorSpec, weight: TensorSpec, bias: Any, padding: Any, stride: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


gives("_convolution_pointwise", "mkldnn")(_miopen)


@gives("cudnn_convolution_relu")
def _cudnn_relu(
    x: TensorSpec, weight: TensorSpec, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@gives("cudnn_convolution_add_relu")
def _cudnn_add_relu(
    x: TensorSpec, weight: TensorSpec, z: Any, alpha: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@gives("slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d")
def _slow_dilated(
    x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> TensorSpec:
    return _convolved(x, weight, stride, padding, dilation)


@gives("_slow_conv2d_forward slow_conv3d_forward")
def _slow(x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any, stride: Any, padding: Any, *_: Any) -> TensorSpec:
    return _convolved(x, weight, stride, padding, 1)


@gives("cudnn_convolution_transpose")
def _cudnn_transpose(
    x: TensorSpec, weight: TensorSpec, padding: Any, output_padding: Any, stride: Any, dilation: Any, groups: int,
    *_: Any,
) -> TensorSpec:  # fmt: skip
    return _transposed(x, weight, stride, padding, dilation, output_padding, groups)


@gives("miopen_convolution_transpose")
def _miopen_transpose(x: TensorSpec, weight: TensorSpec, bias: Any, *rest: Any) -> TensorSpec:
    return _cudnn_transpose(x, weight, *rest)


@gives("slow_conv_transpose2d slow_conv_transpose3d")
def _slow_transpose(
    x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
    dilation: Any, *_: Any,
) -> TensorSpec:  # fmt: skip
    return _transposed(x, weight, stride, padding, dilation, output_padding, 1)


@gives("convolution_backward")
def _convolution_backward(
    grad: TensorSpec, x: TensorSpec, weight: TensorSpec, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: Any, output_padding: Any, groups: Any, mask: Sequence[bool], *_: Any,
) -> tuple[TensorSpec | None, ...]:  # fmt: skip
    return only_if(mask[0], x), only_if(mask[1], weight), only_if(mask[2], like(grad, grad.shape[1:2]))
