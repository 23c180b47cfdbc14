"""What calflops would print, its faults included.

calflops replaces functions of ``torch.nn.functional`` and ``torch`` and adds up what each call would cost. So it sees
the forward alone, in evaluation mode, and only what goes through a function that it replaced. Written from its
behaviour, and from the report of LLaVA-OneVision that this project sets out to validate (`tests/data/reports`), whose
every line `count` reproduces:

- Multiplications are 2 FLOPs per MAC, and a bias is free in linear layers but not in convolutions.
- Fused attention, RMS norm as one operator, ``bmm``, recurrent MACs and everything that is not named here are 0.
- Additions and multiplications cost the elements of the result, with the shapes lined up **from the left**:
  ``weight * hidden`` of an RMS norm, (h,) with (1, T, h), counts as h x T x h.
- Norms, activations, softmax and pooling cost a few FLOPs per input element and no MACs.
- A function that was bound before the patch is not seen: ``GELUActivation`` is 0.
- A backward is twice the forward.

In that report additions and products count also where Python writes them as operators (``+``, ``*``). calflops 0.3.2
on torch 2.13 does not see those: that is `count_today`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

from gpuprof.late import pattern

from .rows import NOTHING, Count, Row, Shape, elements

BACKWARD_FACTOR = 2
"""Forwards that a backward is taken for."""

# Modules of torch's own that call one of its functions: additions and products inside that are not seen one by one.
_ONE_FUNCTION = pattern(r"Linear|Conv(Transpose)?[123]d|(Layer|Group|RMS)Norm|(Batch|Instance)Norm[123]d|Multihead.*")
_UNSEEN_ACTIVATIONS = {"GELUActivation"}


def count(row: Row) -> Count:
    """MACs and FLOPs that calflops gives a row; those of phases other than the forward are 0."""
    if row.phase != "forward" or not row.inputs:
        return NOTHING
    rule = _RULES.get(row.op.rstrip("_") if row.op in _ALSO_IN_PLACE else row.op)
    if rule is None:
        return _adaptive_pool(row) if "AdaptiveAvgPool" in row.module_class else NOTHING
    if row.full is None or (rule is _upsample and not row.results):
        return Count(None, None)  # of a recording that does not tell the shapes
    macs, flops = rule(row)
    return Count(macs * row.calls, flops * row.calls)


def count_today(row: Row) -> Count:
    """The same for calflops 0.3.2 on torch 2.13: operators, and activations bound before the patch, are not seen."""
    unseen = row.op in ("aten::add", "aten::mul") or row.module_class == "GELUTanh"
    return NOTHING if unseen else count(row)


def _mm(row: Row) -> tuple[int, int]:
    left, right = row.inputs[-2:]  # before them an addmm has what is added
    macs = elements(left) * right[-1]
    # GPT-2's Conv1D calls torch.addmm, whose addend counts; a linear layer's does not.
    addend = elements(row.inputs[0]) if len(row.inputs) == 3 and row.module_class == "Conv1D" else 0
    return macs, 2 * macs + addend


def _bmm(row: Row) -> tuple[int, int]:
    # torch.bmm is not replaced and torch.matmul is; of the two, attention spelled out in Python calls the second.
    if row.module_class == "MultiheadAttention":
        return 0, 0
    return _mm(row)


def _baddbmm(row: Row) -> tuple[int, int]:
    added, left, right = row.inputs[:3]
    macs = elements(left) * right[-1]
    return macs, 2 * macs + elements(added)


def _convolution(row: Row) -> tuple[int, int]:
    x, weight = row.inputs[:2]
    out = row.results[0]
    if out[1] == weight[0] and x[1] % weight[1] == 0:
        macs = elements(weight) * out[0] * elements(out[2:])
        return macs, 2 * macs + (elements(out) if len(row.inputs) > 2 else 0)
    # Transposed: the channels of one group are divided by the groups again. The bias, which it counts over the
    # positions of a convolution the other way, is left out: the stride is not known here.
    groups = max(out[1] // weight[1], 1)
    macs = elements(weight[2:]) * x[1] * (weight[1] // groups) * x[0] * elements(x[2:])
    return macs, 2 * macs


def _norm(row: Row) -> tuple[int, int]:
    return 0, elements(row.inputs[0]) * (5 if len(row.inputs) > 1 else 4)


def _batch_norm(row: Row) -> tuple[int, int]:
    # After the input come weight and bias, then running mean and variance, each pair only where there is one.
    if row.module_class.startswith("InstanceNorm"):
        return _norm(row)
    return 0, elements(row.inputs[0]) * (2 if len(row.inputs) == 5 else 1)


def _per_input(row: Row) -> tuple[int, int]:
    return 0, 0 if row.module_class in _UNSEEN_ACTIVATIONS else elements(row.inputs[0])


def _upsample(row: Row) -> tuple[int, int]:
    # Given a size it is the size, without batch and channels; given a factor it is the input's elements.
    module = row.module_class.startswith("Upsampl")
    return 0, elements(row.inputs[0] if module else row.results[0][2:])


def _elementwise(row: Row) -> tuple[int, int]:
    if _ONE_FUNCTION.fullmatch(row.module_class):
        return 0, 0
    flops = elements(_from_the_left(*row.inputs[:2]))
    if row.op == "aten::mul" and "RotaryEmbedding" in row.module_class and _is_outer(row.inputs):
        # Frequencies times positions: a matrix multiplication in the transformers of the report, a broadcast today.
        return flops, 2 * flops
    return 0, flops


def _is_outer(inputs: tuple[Shape, ...]) -> bool:
    return len(inputs) == 2 and inputs[0][-1:] == (1,) and len(inputs[1]) == 1


def _from_the_left(*shapes: Shape) -> Shape:
    return tuple(max(sizes) for sizes in zip_longest(*shapes, fillvalue=1))


def _adaptive_pool(row: Row) -> Count:
    return Count(0, elements(row.inputs[0]) * row.calls) if row.op == "aten::mean" else NOTHING


_NAMES: dict[Callable[[Row], tuple[int, int]], str] = {
    _mm: "mm addmm",
    _bmm: "bmm",
    _baddbmm: "baddbmm",
    _convolution: "convolution _convolution cudnn_convolution",
    _norm: "native_layer_norm native_group_norm",
    _batch_norm: "native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit",
    _per_input: """
        gelu silu relu leaky_relu elu _prelu_kernel _softmax max_pool1d max_pool2d_with_indices
        max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_max_pool2d adaptive_max_pool3d
    """,
    _upsample: "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
    _elementwise: "add mul",
}
_RULES = {f"aten::{name}": rule for rule, names in _NAMES.items() for name in names.split()}
# Activations may work in place; additions and multiplications that do are other methods, which it does not replace.
_ALSO_IN_PLACE = {f"aten::{name}_" for name in "relu silu leaky_relu elu gelu".split()}
