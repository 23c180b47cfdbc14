"""Convolution: 2 FLOPs for each use of a weight, exactly, whatever the groups, stride, dilation or dimension.

A weight is stored as (out channels, in channels / groups, *kernel), or as (in channels, out channels /
groups, *kernel) for a transposed convolution, so in both one slice ``weight[0]`` is what a single output
(transposed: input) element is multiplied with. That product is the whole rule; groups never appear. Products
with padding are counted, as is usual.

The gradients of the input and of the weight pair the same elements as the forward does, so each costs the
same. torch's own registry forgets the groups in the backward. A bias is one vector FLOP per output element.

torch carries out a complex convolution as three real ones, which is what is counted: 6 FLOPs for each use of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .matmul import mac_flops
from .rules import Cost, TensorSpec, flop_rule


def convolution_flops(pivot: TensorSpec, weight: TensorSpec) -> int:
    """FLOPs of one convolution, or of one of its two gradients.

    Args:
        pivot: the output (N, C, *spatial), or the input where the convolution is transposed.
        weight: as torch stores it.
    """
    return mac_flops(pivot) * pivot.numel * math.prod(weight.shape[1:])


def _bias(bias: Any, out: TensorSpec) -> int:
    return out.numel if isinstance(bias, TensorSpec) else 0


@flop_rule("aten::convolution", "aten::_convolution", "aten::convolution_overrideable", kind="convolution")
def _convolution(
    x: TensorSpec,
    weight: TensorSpec,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *_: Any,
    out: TensorSpec,
    **__: Any,
) -> Cost:
    return Cost(full=convolution_flops(x if transposed else out, weight), vector=_bias(bias, out))


@flop_rule(
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv3d",
    "aten::mkldnn_convolution",
    "aten::miopen_convolution",
    "aten::miopen_depthwise_convolution",
    "aten::cudnn_convolution_relu",
    "mkldnn::_convolution_pointwise",
    kind="convolution",
)
def _forward(x: TensorSpec, weight: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=convolution_flops(out, weight), vector=_bias(bias, out))


@flop_rule("mkldnn::_convolution_pointwise.binary", kind="convolution")
def _forward_binary(
    x: TensorSpec, other: TensorSpec, weight: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=convolution_flops(out, weight), vector=out.numel + _bias(bias, out))


@flop_rule("mkldnn::_convolution_pointwise_.binary", kind="convolution")
def _forward_binary_in_place(
    other: TensorSpec, x: TensorSpec, weight: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=convolution_flops(out, weight), vector=out.numel + _bias(bias, out))


@flop_rule("aten::cudnn_convolution", kind="convolution")
def _cudnn(x: TensorSpec, weight: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> int:
    return convolution_flops(out, weight)


@flop_rule("aten::cudnn_convolution_add_relu", kind="convolution")
def _cudnn_add_relu(
    x: TensorSpec,
    weight: TensorSpec,
    z: TensorSpec,
    alpha: Any,
    bias: Any,
    *_: Any,
    out: TensorSpec,
    **__: Any,
) -> Cost:
    return Cost(full=convolution_flops(out, weight), vector=out.numel + _bias(bias, out))


@flop_rule(
    "aten::_slow_conv2d_forward",
    "aten::slow_conv3d_forward",
    "aten::thnn_conv2d",
    "aten::slow_conv3d",
    "aten::slow_conv_dilated2d",
    "aten::slow_conv_dilated3d",
    "aten::_conv_depthwise2d",
    "aten::conv_depthwise3d",
    kind="convolution",
)
def _slow(
    x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any = None, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=convolution_flops(out, weight), vector=_bias(bias, out))


@flop_rule(
    "aten::conv_transpose1d",
    "aten::conv_transpose2d",
    "aten::conv_transpose3d",
    "aten::miopen_convolution_transpose",
    "mkldnn::_convolution_transpose_pointwise",
    kind="convolution",
)
def _transposed(x: TensorSpec, weight: TensorSpec, bias: Any = None, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(full=convolution_flops(x, weight), vector=_bias(bias, out))


@flop_rule("aten::cudnn_convolution_transpose", kind="convolution")
def _cudnn_transposed(x: TensorSpec, weight: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return convolution_flops(x, weight)


@flop_rule("aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d", kind="convolution")
def _slow_transposed(
    x: TensorSpec, weight: TensorSpec, kernel: Any, bias: Any = None, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(full=convolution_flops(x, weight), vector=_bias(bias, out))


def _gradients(pivot: TensorSpec, weight: TensorSpec, grad: TensorSpec, output_mask: Sequence[bool]) -> Cost:
    return Cost(
        full=convolution_flops(pivot, weight) * (bool(output_mask[0]) + bool(output_mask[1])),
        vector=grad.numel if output_mask[2] else 0,
    )


@flop_rule("torchvision::deform_conv2d", kind="convolution")
def _deformed(
    x: TensorSpec, weight: TensorSpec, offset: Any, mask: Any, bias: TensorSpec, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    # Gathering the inputs that the offsets point at is interpolation, and not of these products.
    return Cost(full=convolution_flops(out, weight), vector=out.numel)


@flop_rule("torchvision::_deform_conv2d_backward", kind="convolution")
def _deformed_backward(grad: TensorSpec, x: TensorSpec, weight: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(full=2 * convolution_flops(grad, weight), vector=grad.numel)


@flop_rule("aten::convolution_backward", kind="convolution")
def _backward(
    grad: TensorSpec,
    x: TensorSpec,
    weight: TensorSpec,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    *_: Any,
    out: Any,
    **__: Any,
) -> Cost:
    return _gradients(x if transposed else grad, weight, grad, output_mask)


@flop_rule("aten::convolution_backward_overrideable", kind="convolution")
def _backward_overrideable(
    grad: TensorSpec,
    x: TensorSpec,
    weight: TensorSpec,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    *_: Any,
    out: Any,
    **__: Any,
) -> Cost:
    return _gradients(x if transposed else grad, weight, grad, output_mask)


# Of torch before 1.11, whose backward of a convolution called one operator for each gradient.
@flop_rule(
    *(f"aten::{library}_convolution_backward_input" for library in ("cudnn", "miopen", "mkldnn")), kind="convolution"
)
def _input_gradient(size: Any, grad: TensorSpec, weight: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return convolution_flops(grad, weight)


@flop_rule(
    "aten::cudnn_convolution_backward_weight",
    "aten::miopen_convolution_backward_weight",
    "aten::mkldnn_convolution_backward_weights",
    kind="convolution",
)
def _weight_gradient(size: Sequence[int], grad: TensorSpec, x: TensorSpec, *_: Any, out: Any, **__: Any) -> int:
    return convolution_flops(grad, TensorSpec(tuple(size)))


@flop_rule("aten::_slow_conv2d_backward.output_mask", kind="convolution")
def _slow_backward(
    grad: TensorSpec,
    x: TensorSpec,
    weight: TensorSpec,
    kernel: Any,
    stride: Any,
    padding: Any,
    output_mask: Sequence[bool],
    *_: Any,
    out: Any,
    **__: Any,
) -> Cost:
    return _gradients(grad, weight, grad, output_mask)
