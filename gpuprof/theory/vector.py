"""Everything that is not a product of matrices: elementwise work, reductions, data movement, views.

Vector FLOPs are an estimate. Each arithmetic operation on one element counts 1, a transcendental one (exp,
erf, sin, sqrt, division) too, since what it costs differs from device to device; random numbers, casts and
copies count 0. The scalars alpha and value of ``add``, ``sub`` and the like are not counted. The tables below
state the estimate of every operator, per element of the result, of the input or of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .rules import Cost, Kind, TensorSpec, bytes_of, flop_rule, tensors

# FLOPs per element of the (first) result.
_PER_OUTPUT = {
    1: """
        add sub rsub mul div divide true_divide floor_divide remainder fmod multiply subtract neg abs sign sgn
        square reciprocal sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh
        asinh acosh atanh tanh erf erfc erfinv sigmoid floor ceil round trunc frac pow float_power atan2 hypot
        maximum minimum fmax fmin clamp clamp_min clamp_max relu relu6 threshold hardtanh eq ne lt le gt ge
        greater less greater_equal less_equal not_equal logical_and logical_or logical_not logical_xor
        bitwise_and bitwise_or bitwise_not bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__
        __xor__ __lshift__ __rshift__ isnan isinf isfinite isposinf isneginf nan_to_num where lgamma digamma
        special_i0 special_i1 copysign heaviside logaddexp ldexp nextafter ger outer special_erf i0 xlogy
        deg2rad angle _conj_physical conj_physical dequantize quantize_per_tensor hardshrink
        softshrink bucketize searchsorted
    """,
    2: """
        silu leaky_relu prelu _prelu_kernel hardsigmoid logit sinc log_sigmoid_forward native_dropout
        _fused_dropout dropout alpha_dropout feature_dropout addr glu
        fake_quantize_per_tensor_affine_cachemask
    """,
    3: "addcmul addcdiv lerp elu celu selu softplus hardswish",
    4: "mish upsample_linear1d",
    8: "upsample_bilinear2d _upsample_bilinear2d_aa",
    10: "grid_sampler_2d",
    16: "upsample_trilinear3d grid_sampler_3d",
    32: "upsample_bicubic2d _upsample_bicubic2d_aa",
}

# FLOPs per element of the first argument, all of which is read. A softmax takes the maximum, difference,
# exponential, sum and quotient (5); a norm in training the sum, difference, square, sum, and product with the
# inverse deviation, weight and bias (7; without the mean and the bias 4), in inference a scale and a shift
# (2).
_PER_INPUT = {
    1: """
        sum nansum mean nanmean prod amax amin aminmax max min argmax argmin any all cumsum cumprod cummax
        cummin median nanmedian count_nonzero histc bincount adaptive_avg_pool1d _adaptive_avg_pool2d
        adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d equal _is_all_true
        _is_any_true is_nonzero _assert_async trace logcumsumexp
    """,
    2: """
        norm linalg_vector_norm linalg_norm renorm dist l1_loss _weight_norm_interface
        _native_batch_norm_legit_no_training _batch_norm_no_update
    """,
    3: "mse_loss smooth_l1_loss huber_loss",
    4: "var std var_mean std_mean logsumexp kl_div rms_norm _fused_rms_norm binary_cross_entropy",
    5: """
        _softmax _log_softmax _safe_softmax _masked_softmax softmax log_softmax special_softmax _sparse_softmax
        _sparse_log_softmax
    """,
    6: "binary_cross_entropy_with_logits soft_margin_loss",
    7: """
        layer_norm native_layer_norm native_group_norm group_norm instance_norm _native_batch_norm_legit
        _native_batch_norm_legit_functional _batch_norm_with_update
    """,
}

# FLOPs per element of the gradient that comes in, the first argument; twice the forward's for a norm.
_PER_GRADIENT = {
    1: """
        threshold_backward hardtanh_backward max_pool2d_with_indices_backward max_pool3d_with_indices_backward
        adaptive_max_pool2d_backward adaptive_max_pool3d_backward embedding_dense_backward
        upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
        _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward
        _upsample_nearest_exact3d_backward hardshrink_backward softshrink_backward
        value_selecting_reduction_backward max_unpool2d
    """,
    2: "native_dropout_backward leaky_relu_backward hardsigmoid_backward _prelu_kernel_backward "
    "log_sigmoid_backward _masked_scale",
    3: "sigmoid_backward tanh_backward elu_backward softplus_backward logit_backward glu_backward",
    4: "_softmax_backward_data _log_softmax_backward_data _masked_softmax_backward hardswish_backward "
    "upsample_linear1d_backward _sparse_softmax_backward_data _sparse_log_softmax_backward_data",
    5: "silu_backward",
    8: "_fused_rms_norm_backward mish_backward upsample_bilinear2d_backward _upsample_bilinear2d_aa_backward",
    14: "native_layer_norm_backward native_group_norm_backward batch_norm_backward",
    16: "upsample_trilinear3d_backward",
    20: "grid_sampler_2d_backward",
    32: "upsample_bicubic2d_backward _upsample_bicubic2d_aa_backward grid_sampler_3d_backward",
}

# Gradients of losses: FLOPs per element of the gradient that goes out (the one that comes in is a scalar).
_PER_OUTPUT_GRADIENT = {
    2: "mse_loss_backward smooth_l1_loss_backward huber_loss_backward",
    4: "binary_cross_entropy_backward soft_margin_loss_backward",
    # Every input element gets its share of one output's gradient.
    1: "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward",
}

# FLOPs per element of a list of tensors, the first argument.
_FOREACH = {
    1: """
        add sub mul div neg abs sqrt rsqrt exp log reciprocal sign sigmoid tanh erf pow maximum minimum
        clamp_min clamp_max max round floor ceil sin cos trunc frac log1p log2 expm1
    """,
    2: "norm",
    3: "addcmul addcdiv lerp",
}

# No FLOPs; every input is read once and every output written once.
_COPIES = """
    clone _to_copy contiguous to cat concat hstack vstack stack flip roll repeat repeat_interleave
    constant_pad_nd pad slice_backward select_backward diagonal_backward unfold_backward tril triu masked_fill
    masked_fill_ masked_scatter masked_select nonzero one_hot _pack_padded_sequence _pad_packed_sequence
    _pack_padded_sequence_backward slice_scatter select_scatter scatter index_put index_copy index_fill
    index_fill_ reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d
    reflection_pad1d_backward reflection_pad2d_backward replication_pad2d_backward pixel_shuffle
    pixel_unshuffle channel_shuffle im2col upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _reshape_copy view_copy
    expand_copy permute_copy narrow_copy split_copy split_with_sizes_copy unbind_copy transpose_copy t_copy
    block_diag diag_embed _convert_weight_to_int4pack bernoulli poisson complex view_as_complex_copy rot90
    tril_indices triu_indices meshgrid unfold_copy combinations cartesian_prod _to_dense _copy_from
    _nested_view_from_buffer_copy _reshape_alias_copy _cudnn_rnn_flatten_weight pin_memory _pin_memory
    index_select_backward masked_scatter_backward
    to_padded_tensor nested_to_padded_tensor _nested_from_padded _nested_from_padded_tensor
    _nested_from_padded_and_nested_example _nested_tensor_from_mask _nested_tensor_from_tensor_list
    _nested_get_values_copy _nested_view_from_jagged_copy _nested_select_backward _nested_sum_backward
    _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward
    tril_ triu_ lu_unpack sparse_mask _to_sparse _to_sparse_csr
    _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _coalesce coalesce _spdiags
"""

# No FLOPs; the result is written and nothing is read.
_FILLS = """
    fill_ fill zero_ zeros zeros_like ones ones_like full full_like new_zeros new_ones new_full arange
    linspace logspace eye scalar_tensor range rand rand_like randn randn_like randint randint_like randperm
    bernoulli_ uniform_ normal_ random_ exponential_ log_normal_ cauchy_ geometric_ trunc_normal_ normal
    normal_functional uniform exponential hann_window hamming_window blackman_window kaiser_window bartlett_window
    tensor _efficientzerotensor
"""

# No FLOPs; as much is read as is written, and the indices.
_GATHERS = "index gather index_select embedding take take_along_dim _unsafe_index _unsafe_masked_index"
GATHERS = frozenset(f"aten::{name}" for name in _GATHERS.split())
"""Operators that read of their first argument only as much as they write."""

# Nothing is computed and nothing moves.
_VIEWS = """
    view reshape _unsafe_view _reshape_alias transpose transpose_ t t_ permute movedim swapaxes expand
    expand_as view_as as_strided as_strided_ slice select squeeze squeeze_ unsqueeze unsqueeze_ split
    split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk chunk tensor_split unbind detach
    detach_ alias unfold narrow diagonal flatten unflatten view_as_real view_as_complex real imag conj _conj
    _neg_view lift lift_fresh lift_fresh_copy empty empty_like empty_strided empty_permuted new_empty
    new_empty_strided resize_ resize_as_ set_ set_data _local_scalar_dense item is_same_size size stride numel
    sym_size sym_numel sym_stride sym_storage_offset is_floating_point is_complex is_pinned result_type
    _has_compatible_shallow_copy_type record_stream requires_grad_ retain_grad _version output_nr data numpy_T
    matrix_H mT positive _assert_scalar _assert_tensor_metadata _functional_assert_async promote_types
    can_cast _cudnn_init_dropout_state hsplit vsplit dsplit
    values _nested_tensor_size _nested_tensor_strides _nested_tensor_storage_offsets _nested_view_from_buffer
    _nested_view_from_jagged _nested_compute_contiguous_strides_offsets _nested_get_values _nested_get_offsets
    _nested_get_lengths _nested_get_ragged_idx _nested_get_min_seqlen _nested_get_max_seqlen
    _nested_get_jagged_dummy _nested_tensor_from_mask_left_aligned
    _indices _values indices values crow_indices
    col_indices ccol_indices row_indices is_coalesced _coalesced_ sparse_dim dense_dim _nnz _dimI _dimV
    _sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_unsafe _sparse_compressed_tensor_unsafe
    _linalg_check_errors
"""


def _first(value: Any) -> int:
    """Elements of the first tensor in a nest."""
    return next((spec.numel for spec in tensors(value)), 0)


def _total(value: Any) -> int:
    """Elements of all tensors in a nest."""
    return sum(spec.numel for spec in tensors(value))


def _register(names: list[str], rule: Callable[..., Cost], kind: Kind = "vector") -> None:
    flop_rule(*(f"aten::{name}" for name in names), kind=kind)(rule)


def _with_in_place(text: str) -> list[str]:
    return [spelling for name in text.split() for spelling in (name, f"{name}_")]


def per_output(flops: int) -> Callable[..., Cost]:
    """A rule of so many vector FLOPs for each element of the first result."""
    return lambda *args, out, **_: Cost(vector=flops * _first(out))


def per_input(flops: int) -> Callable[..., Cost]:
    """A rule of so many vector FLOPs for each element of the first argument."""
    return lambda *args, out, **_: Cost(vector=flops * _first(args))


def _foreach(flops: int) -> Callable[..., Cost]:
    return lambda *args, out, **_: Cost(vector=flops * _total(args[0]))


def _foreach_in_place(flops: int) -> Callable[..., Cost]:
    # In place there is no result: what is written is the first list again.
    return lambda *args, out, **kwargs: Cost(
        vector=flops * _total(args[0]), nbytes=bytes_of(args, kwargs) + bytes_of(args[0])
    )


for _flops, _text in _PER_OUTPUT.items():
    _register(_with_in_place(_text), per_output(_flops))
for _flops, _text in _PER_INPUT.items():
    _register(_with_in_place(_text), per_input(_flops))
for _flops, _text in _PER_GRADIENT.items():
    _register(_text.split(), per_input(_flops))
for _flops, _text in _PER_OUTPUT_GRADIENT.items():
    _register(_text.split(), per_output(_flops))
for _flops, _text in _FOREACH.items():
    _register([f"_foreach_{name}" for name in _text.split()], _foreach(_flops))
    _register([f"_foreach_{name}_" for name in _text.split()], _foreach_in_place(_flops))

_register(_COPIES.split(), lambda *args, out, **_: Cost(), "movement")
_register(_FILLS.split(), lambda *args, out, **_: Cost(nbytes=bytes_of(out)), "movement")
_register(_VIEWS.split(), lambda *args, out, **_: Cost(), "view")
_PROFILER = ("_record_function_enter", "_record_function_enter_new", "_record_function_exit")
flop_rule(*(f"profiler::{name}" for name in _PROFILER), kind="view")(lambda *args, out, **_: Cost())


@flop_rule(*GATHERS, kind="movement")
def _gather(source: TensorSpec, *indices: Any, out: TensorSpec, **_: Any) -> Cost:
    return Cost(nbytes=bytes_of(indices) + 2 * out.nbytes)


@flop_rule("aten::embedding", kind="movement")
def _embedding(table: TensorSpec, indices: TensorSpec, *_: Any, out: TensorSpec, **__: Any) -> Cost:
    return Cost(nbytes=indices.nbytes + 2 * out.nbytes)


@flop_rule("aten::copy_", "aten::copy", kind="movement")
def _copy(target: TensorSpec, source: Any, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(nbytes=bytes_of(source, target))


@flop_rule("aten::_foreach_copy_", kind="movement")
def _foreach_copy(targets: Any, sources: Any, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(nbytes=bytes_of(sources, targets))


@flop_rule("aten::_foreach_zero_", kind="movement")
def _foreach_zero(targets: Any, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(nbytes=bytes_of(targets))


@flop_rule(
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index_put",
    "prims::_unsafe_index_put_",
    kind="movement",
)
def _index_put(
    target: TensorSpec,
    indices: Any,
    values: TensorSpec,
    accumulate: bool = False,
    *_: Any,
    out: Any,
    **__: Any,
) -> Cost:
    # The target is touched only where the indices point: written, and read first if values are added to it.
    written = values.nbytes * (2 if accumulate else 1)
    return Cost(vector=values.numel if accumulate else 0, nbytes=bytes_of(indices, values) + written)


@flop_rule("aten::_unsafe_masked_index_put_accumulate", kind="movement")
def _masked_index_put(
    target: TensorSpec, mask: Any, indices: Any, values: TensorSpec, *_: Any, out: Any, **__: Any
) -> Cost:
    return Cost(vector=values.numel)


@flop_rule("aten::scatter_", "aten::index_copy_", kind="movement")
def _scatter(target: TensorSpec, dim: int, index: TensorSpec, source: Any = None, *_: Any, out: Any, **__: Any) -> Cost:
    # Written is where the indices point, one element for each; a scalar source takes no bytes.
    written = bytes_of(source) or index.numel * target.nbytes // max(target.numel, 1)
    return Cost(nbytes=bytes_of(index, source) + written)


@flop_rule("aten::scatter_add", "aten::scatter_reduce", "aten::index_add", "aten::index_reduce", kind="vector")
def _scatter_add(
    target: TensorSpec, dim: int, index: TensorSpec, source: TensorSpec, *_: Any, out: Any, **__: Any
) -> Cost:
    return Cost(vector=source.numel)


@flop_rule("aten::scatter_add_", "aten::scatter_reduce_", "aten::index_add_", "aten::index_reduce_", kind="vector")
def _scatter_add_in_place(
    target: TensorSpec, dim: int, index: TensorSpec, source: TensorSpec, *_: Any, out: Any, **__: Any
) -> Cost:
    return Cost(vector=source.numel, nbytes=bytes_of(index, source) + 2 * source.nbytes)


@flop_rule("aten::gelu", "aten::gelu_", kind="vector")
def _gelu(x: TensorSpec, *_: Any, approximate: str = "none", out: Any, **__: Any) -> Cost:
    # x/2 * (1 + erf(x / sqrt 2)), or with the polynomial of the tanh approximation.
    return Cost(vector=(5 if approximate == "none" else 9) * x.numel)


@flop_rule("aten::gelu_backward", kind="vector")
def _gelu_backward(grad: TensorSpec, x: TensorSpec, *_: Any, approximate: str = "none", out: Any, **__: Any) -> Cost:
    return Cost(vector=(11 if approximate == "none" else 19) * x.numel)


# As for every norm, by whether it is training.
_BATCH_NORM_FLOPS = {True: 7, False: 2}


@flop_rule(
    "aten::native_batch_norm",
    "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
    "aten::batch_norm",
    kind="vector",
)
def _batch_norm(
    x: TensorSpec, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any, out: Any, **__: Any
) -> Cost:
    return Cost(vector=_BATCH_NORM_FLOPS[bool(training)] * x.numel)


@flop_rule("aten::native_batch_norm_backward", kind="vector")
def _batch_norm_backward(
    grad: TensorSpec,
    x: TensorSpec,
    weight: Any,
    mean: Any,
    var: Any,
    save_mean: Any,
    save_invstd: Any,
    training: bool,
    *_: Any,
    out: Any,
    **__: Any,
) -> Cost:
    return Cost(vector=2 * _BATCH_NORM_FLOPS[bool(training)] * x.numel)


@flop_rule("aten::cudnn_batch_norm_backward", "aten::miopen_batch_norm_backward", kind="vector")
def _cudnn_batch_norm_backward(x: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=2 * _BATCH_NORM_FLOPS[True] * x.numel)


@flop_rule("aten::nll_loss_forward", "aten::nll_loss2d_forward", kind="vector")
def _nll_loss(x: TensorSpec, target: TensorSpec, *_: Any, out: Sequence[TensorSpec], **__: Any) -> Cost:
    # One element of each row is read: the target's.
    picked = target.numel * x.nbytes // max(x.numel, 1)
    return Cost(vector=2 * target.numel, nbytes=target.nbytes + picked + bytes_of(out))


@flop_rule("aten::nll_loss_backward", "aten::nll_loss2d_backward", kind="vector")
def _nll_loss_backward(
    grad: TensorSpec, x: TensorSpec, target: TensorSpec, *_: Any, out: TensorSpec, **__: Any
) -> Cost:
    return Cost(vector=target.numel, nbytes=bytes_of(grad, target, out))


def window(size: Any, dims: int) -> int:
    """Elements of a pooling window, whose size may be given once for all dimensions."""
    sizes = [size] if isinstance(size, int) else list(size)
    return math.prod(sizes) if len(sizes) > 1 else sizes[0] ** dims


# Dimensions that the window slides along.
_POOLS = {
    1: "max_pool1d avg_pool1d",
    2: "max_pool2d max_pool2d_with_indices avg_pool2d mkldnn_max_pool2d",
    3: "max_pool3d max_pool3d_with_indices avg_pool3d mkldnn_max_pool3d",
}


def _pool(dims: int) -> Callable[..., Cost]:
    # One comparison or addition for each element of each window.
    return lambda x, kernel, *args, out, **_: Cost(vector=_first(out) * window(kernel, dims))


def _pool_backward(dims: int) -> Callable[..., Cost]:
    return lambda grad, x, kernel, *args, out, **_: Cost(vector=grad.numel * window(kernel, dims))


for _dims, _text in _POOLS.items():
    _register(_text.split(), _pool(_dims))
for _dims in (2, 3):
    _register([f"avg_pool{_dims}d_backward"], _pool_backward(_dims))


@flop_rule("torchvision::nms", kind="vector")
def _suppressed(boxes: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    # At most each pair of boxes: the sides and the area of what both cover, of their union, and its share.
    return Cost(vector=9 * boxes.shape[0] * (boxes.shape[0] - 1) // 2)


@flop_rule(
    *(f"torchvision::{name}" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")), kind="vector"
)
def _regions(*_: Any, out: Any, **__: Any) -> Cost:
    # As a bilinear resize, whatever the number of samples that are averaged.
    return Cost(vector=8 * _first(out))


@flop_rule(
    *(f"torchvision::_{name}_backward" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")),
    kind="vector",
)
def _regions_backward(grad: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=8 * grad.numel)


def _sorting(count: int, length: int) -> int:
    """Comparisons to sort ``count`` elements in runs of ``length``."""
    return count * max(1, (length - 1).bit_length())


@flop_rule("aten::sort", "aten::argsort", "aten::msort", kind="vector")
def _sort(x: TensorSpec, dim: int = -1, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=_sorting(x.numel, x.shape[dim] if x.shape else 1))


@flop_rule("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", kind="vector")
def _unique(x: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=_sorting(x.numel, x.numel))


@flop_rule("aten::topk", "aten::kthvalue", "aten::mode", "aten::multinomial", kind="vector")
def _topk(x: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    # Selection passes over the elements once.
    return Cost(vector=x.numel)


@flop_rule("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c", kind="vector")
def _fft(x: TensorSpec, dim: Sequence[int], *_: Any, out: TensorSpec, **__: Any) -> Cost:
    # The usual 5 N log2 N of a complex transform; half where one side is real.
    larger = max(x, out, key=lambda spec: spec.numel)
    flops = 5 * larger.numel * math.log2(max(2, math.prod(larger.shape[i] for i in dim)))
    return Cost(vector=int(flops if x.dtype.startswith("complex") and out.dtype.startswith("complex") else flops / 2))


@flop_rule("aten::_embedding_bag", "aten::_embedding_bag_forward_only", kind="vector")
def _embedding_bag(table: TensorSpec, indices: TensorSpec, *_: Any, out: Sequence[TensorSpec], **__: Any) -> Cost:
    gathered = indices.numel * table.shape[1]
    rows = gathered * table.nbytes // max(table.numel, 1)
    return Cost(vector=gathered, nbytes=indices.nbytes + rows + bytes_of(out))


# Optimizers, per parameter element. Written are the parameters and the moments; the gradients are only read.
def _fused_step(flops: int, written: list[Any], read: list[Any]) -> Cost:
    return Cost(vector=flops * _total(written[0]), nbytes=2 * bytes_of(written) + bytes_of(read))


@flop_rule("aten::_fused_adamw_", "aten::_fused_adam_", kind="vector")
def _fused_adam(
    parameters: Any,
    grads: Any,
    first: Any,
    second: Any,
    largest: Any,
    steps: Any,
    *_: Any,
    out: Any,
    **kwargs: Any,
) -> Cost:
    # First moment 3, second 4, denominator 3, step 3; weight decay 2, maximum of the second moments 1.
    flops = 13 + 2 * bool(kwargs.get("weight_decay")) + bool(kwargs.get("amsgrad"))
    return _fused_step(flops, [parameters, first, second, largest], [grads])


@flop_rule("aten::_fused_sgd_", kind="vector")
def _fused_sgd(parameters: Any, grads: Any, momenta: Any, *_: Any, out: Any, **kwargs: Any) -> Cost:
    # Step 2; momentum 3, weight decay 2, Nesterov 2.
    momentum, nesterov = bool(kwargs.get("momentum")), bool(kwargs.get("nesterov"))
    flops = 2 + 3 * momentum + 2 * bool(kwargs.get("weight_decay")) + 2 * nesterov
    return _fused_step(flops, [parameters, momenta], [grads])


@flop_rule("aten::_fused_adagrad_", kind="vector")
def _fused_adagrad(parameters: Any, grads: Any, sums: Any, *_: Any, out: Any, **kwargs: Any) -> Cost:
    # Sum of squares 2, denominator 2, step 3; weight decay 2.
    return _fused_step(7 + 2 * bool(kwargs.get("weight_decay")), [parameters, sums], [grads])


@flop_rule("aten::_amp_foreach_non_finite_check_and_unscale_", kind="vector")
def _unscale(grads: Any, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=2 * _total(grads), nbytes=2 * bytes_of(grads))


@flop_rule("aten::_amp_update_scale_", kind="vector")
def _update_scale(*_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=1)
