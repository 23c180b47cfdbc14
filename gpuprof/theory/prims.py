"""Operators that only a compiler's graph has: torch's ``prims`` and what Inductor adds to them.

Estimates of elementwise work are those of `gpuprof.theory.vector`: what computes the same counts the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .matmul import product_flops
from .rules import Cost, Kind, TensorSpec, bytes_of, flop_rule
from .vector import per_input, per_output, window

_PER_OUTPUT = {
    1: """
        abs acos acosh asin asinh atan atanh cos cosh bessel_i0 bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1
        bitwise_not cbrt ceil conj_physical digamma erf erf_inv erfc erfcx exp expm1 exp2 floor isfinite lgamma log
        log1p log2 log10 ndtri neg reciprocal round sign signbit sin sinh spherical_bessel_j0 sqrt rsqrt tan tanh trunc
        add atan2 bitwise_and bitwise_or bitwise_xor div eq fmax fmin fmod gcd ge gt hypot igamma igammac le lt maximum
        minimum mul ne nextafter pow remainder shift_left shift_right_arithmetic sub zeta where frexp
    """,
    2: "fma",
}

# A softmax's first half takes the maximum, difference, exponential and sum.
_PER_INPUT = {1: "amax amin prod sum xor_sum", 4: "var prepare_softmax_online"}

# What random numbers, seeds and the places of a pool's largest elements take is integer arithmetic: no FLOPs.
_COPIES = """
    convert_element_type device_put clone cat rev collapse as_strided_scatter copy_to inductor_force_stride_order
    _low_memory_max_pool_offsets_to_indices copy_strided inductor_cvt_e8m0_rceil
"""
_FILLS = """
    iota fill scalar_tensor normal inductor_seed inductor_seeds inductor_lookup_seed inductor_random inductor_randint
    inductor_rand_eager_offset inductor_rand_eager_offsets
"""
_VIEWS = """
    as_strided broadcast_in_dim collapse_view conj expand_dims slice split_dim squeeze transpose view_of
    view_element_type reshape real imag empty_strided empty_permuted _make_token _sink_tokens
"""
_EVENTS = "record_event wait_event synchronize_event synchronize_device"
_QUANTIZED = """
    quantize_per_tensor quantize_per_channel quantize_per_token dequantize_per_tensor dequantize_per_channel
    dequantize_per_token
"""


def _names(text: str, namespace: str = "prims") -> list[str]:
    return [f"{namespace}::{name}" for name in text.split()]


def _register(kind: Kind, rule: Callable[..., Cost], *names: str) -> None:
    flop_rule(*names, kind=kind)(rule)


for _flops, _text in _PER_OUTPUT.items():
    _register("vector", per_output(_flops), *_names(_text))
for _flops, _text in _PER_INPUT.items():
    _register("vector", per_input(_flops), *_names(_text))
_register("vector", per_output(1), *_names(_QUANTIZED, "quantized_decomposed"))
_register("movement", lambda *args, out, **_: Cost(), *_names(_COPIES), "inductor::cat_slice_cat")
_register("movement", lambda *args, out, **_: Cost(nbytes=bytes_of(out)), *_names(_FILLS), "rngprims::philox_rand")
_register(
    "view", lambda *args, out, **_: Cost(), *_names(_VIEWS), *_names(_EVENTS, "streams"),
    "inductor::splitwithsizes_cat_replace", "inductor::cat_splitwithsizes_replace", "inductor::resize_storage_bytes_",
)  # fmt: skip


@flop_rule("prims::_low_memory_max_pool_with_offsets", kind="vector")
def _max_pool(x: TensorSpec, kernel: Any, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=out[0].numel * window(kernel, len(kernel)))


@flop_rule("inductor::mm_plus_mm")
def _mm_plus_mm(mat1: TensorSpec, mat2: TensorSpec, mat3: TensorSpec, mat4: TensorSpec, *, out: TensorSpec) -> Cost:
    """Two products and their sum in one kernel."""
    return Cost(full=(product_flops(mat1, mat2) or 0) + (product_flops(mat3, mat4) or 0), vector=out.numel)
