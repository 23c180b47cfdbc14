"""What a kernel's name says: whether it multiplies matrices, in whole tiles of what size, and float32 as TF32."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from gpuprof.late import pattern

from .generated import TEMPLATE, generated


class Tile(NamedTuple):
    """What a thread block works on at a time, as the kernel's name has it.

    Attributes:
        m: rows; of a fused attention the queries.
        n: columns; of a fused attention the keys.
        k: depth, None where the name does not say; of a fused attention the head dimension that it was built for.
        cluster: thread blocks that are launched together, along m and n: tiles are worked on in whole clusters.
    """

    m: int
    n: int
    k: int | None
    cluster: tuple[int, int] = (1, 1)


# Families of names. Casts such as "(int)128" and blanks are gone before these are tried, the first that fits counts.
_NAMES = [
    pattern(family)
    for family in (
        r"Flash_[fb]wd_kernel_traits<(?P<k>\d+),(?P<m>\d+),(?P<n>\d+),",  # FlashAttention 2
        # FlashAttention 3: the cluster's shape, then the block's
        r"CollectiveMainloop\w+<.*?>>,cute::tuple<cute::C<(?P<m>\d+)>,cute::C<(?P<n>\d+)>,cute::C<(?P<k>\d+)>",
        r"fmha_cutlass[FB]_\w+?_(?P<m>\d+)x(?P<n>\d+)_",  # memory-efficient attention
        r"sdpa_\w+?_(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)_",  # cuDNN attention
        r"fmhaSm\d+\w?Kernel_\w*?H(?:Qk)?(?P<k>\d+)\w*?Q(?P<m>\d+)Kv(?P<n>\d+)",  # attention of TensorRT-LLM
        # attention of Composable Kernel: queries, keys, depths and values, at last the head dimension
        r"TileFmhaShape.*?(?:sequence<|IJLi)(?P<m>\d+)(?:,|ELi)(?P<n>\d+)(?:(?:,|ELi)\d+){3}(?:,|ELi)(?P<k>\d+)[>E]",
        r"tilesize(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)",  # xmma of cuBLAS and cuDNN
        r"nvjet_\w*?_(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)_",  # cuBLAS, sm_120
        # cuBLAS, Hopper and Blackwell
        r"nvjet_\w*?_(?P<m>\d+)x(?P<n>\d+)_(?P<k>\d+)x\d+_(?:(?P<across>\d+)x(?P<down>\d+)_)?",
        r"cutlass3x_\w+?_(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)_",  # CUTLASS 3 in cuBLAS
        r"Cijk_\w*?_MT(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)_",  # Tensile of rocBLAS and hipBLASLt
        r"igemm_\w*?_bt(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)_",  # implicit products of MIOpen
        r"bmm_\w+?_t(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)",  # products of TensorRT-LLM
        r"matmul_ogs\w*?_(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)x\d+",  # Triton's products of experts, sliced in depth
        r"_(?P<m>\d+)x(?P<n>\d+)_\w*?stages_(?P<k>\d+)x\d+",  # cuBLAS, Ampere
        r"_(?P<m>\d+)x(?P<n>\d+)_(?P<k>\d+)x\d+_",  # CUTLASS 2 in cuBLAS and cuDNN
        r"(?:gemm|cudnn)\w*?_(?P<m>\d+)x(?P<n>\d+)_",  # cuBLAS and cuDNN before Ampere, and outside tensor cores
        # CUTLASS 2 by its template, in cuDNN too, also mangled: the block's shape is the first
        r"GemmShape(?:<|ILi)(?P<m>\d+)(?:,|ELi)(?P<n>\d+)(?:,|ELi)(?P<k>\d+)",
        # Composable Kernel by its template, also mangled: threads, the block's shape, two vectors, the instruction's
        r"GridwiseGemm.*?(?:,|Li)(?:64|128|256|512)(?:,|ELi)(?P<m>\d+)(?:,|ELi)(?P<n>\d+)(?:,|ELi)(?P<k>\d+)"
        r"(?:(?:,|ELi)\d+){2}(?:,|ELi)(?:16|32)[,E]",
    )
]


# cuDNN's first convolutions give powers of two: grids of V100 traces are the sizes over 2^6 and 2^7 for "6, 7".
_POWERS = pattern(r"(?:convolve_sgemm|dgrad_engine|wgrad_alg0_engine)<(?:[a-z]\w*,)+\d+,(?P<m>\d+),(?P<n>\d+),")


# Functions that are a mere frame around what they run: CUTLASS, cuBLAS, Composable Kernel.
_FRAME = pattern(r"(device_)?kernel2?|kentry", re.IGNORECASE)

_PRODUCT = pattern(
    r"(?<!fb)gemm|gemv|dot_kernel|nvjet|\dcudnn|scudnn|conv(?!er)|fprop|(?<![a-z])[dw]grad|cijk_\w*_mt\d|matmul|bmm_"
    r"|marlin|wvsplitk|fused_moe_kernel|fmoe_"  # of vLLM and aiter
    r"|fmha|sdpa|flash_(fwd|bwd_d[qk])_|FlashAttn(Fwd|Bwd)Sm\d|attn_[fb]wd|bwd_kernel_(d[qk]|fuse)|unified_attention"
    r"|paged_attention|multihead_attention|(Prefill|Decode)With\w*KVCache",
    re.IGNORECASE,
)


# Steps before and after products: of a split depth, of Winograd, of addresses, of layouts, of split keys, of an
# attention's gradients.
_NO_PRODUCT = pattern(
    r"splitK_?reduce|reduce_?splitK|reduce_(1Block|wgrad)|winogradWgrad(Data|Delta|Output)"
    r"|OffsetsKernel|gemm_?(pointers|starts)|repack|finalize_matmul|combine|fmhaReduc|attention\w*_reduce"
    r"|preprocess|OGradDotO|ConvertQGrad|AppendKV",
    re.IGNORECASE,
)

_TF32 = pattern(r"tf32|tfloat32|_S_MX_|fmha_cutlass[FB]_f32_\w+_sm[89]\d", re.IGNORECASE)


# An instruction that sums in float32, by its shape: of float32 only where the name has no narrower type.
_FLOAT32_SUMS = pattern(r"(?<![a-z\d])s(1688|16816)(?!\d)")

_NARROW = pattern(r"f16|fp16|half|bfloat|i8|fp8|e4m3|e5m2", re.IGNORECASE)


@cache
def tile_of(kernel: str) -> Tile | None:
    """Tile that a kernel's name gives; None where it gives none, as most names of Triton and of FlashInfer.

    Args:
        kernel: demangled, with its template arguments, as torch.profiler and Nsight Compute print it; of CUTLASS and
            Composable Kernel also mangled.
    """
    name = re.sub(r"\(\w+\)(?=\d)|\s", "", kernel)
    for family in _NAMES:
        if match := family.search(name):
            sizes = {part: int(digits) for part, digits in match.groupdict().items() if digits}
            return Tile(sizes["m"], sizes["n"], sizes.get("k"), (sizes.get("across", 1), sizes.get("down", 1)))
    powers = _POWERS.search(name)
    return Tile(1 << int(powers["m"]), 1 << int(powers["n"]), None) if powers else None


@cache
def multiplies(kernel: str) -> bool:
    """Whether a kernel's name says that it multiplies matrices; the reduction after a split-K product does not.

    Namespaces and the types among its arguments say nothing, unless the function is a mere frame around them. Of what
    Inductor generates, templates multiply: other kernels are named after all that was fused around them too.
    """
    if made := generated(kernel):
        return made.work == TEMPLATE
    function = _function(kernel)
    said = kernel if _FRAME.fullmatch(function) else function
    return bool(_PRODUCT.search(said)) and not _NO_PRODUCT.search(said)


@cache
def tensor_float32(kernel: str) -> bool:
    """Whether a kernel's name says that it multiplies float32 on tensor cores: as TF32, on AMD as XF32.

    False where a name does not say, as all of Triton's.
    """
    summed = _FLOAT32_SUMS.search(kernel) and not _NARROW.search(kernel)
    return multiplies(kernel) and bool(_TF32.search(kernel) or summed)


def _function(kernel: str) -> str:
    """Name of a kernel's function, without namespaces, result, template arguments and parameters."""
    if mangled := re.match(r"_ZN?K?(?=\d)", kernel):
        at, name = mangled.end(), ""
        while length := re.compile(r"\d+").match(kernel, at):  # each part stands after its length
            at = length.end() + int(length[0])
            name = kernel[length.end() : at]
        return name
    plain = re.sub(r"\(anonymous namespace\)::|<unnamed>::|std::enable_if<.*?>::type", "", kernel)
    return re.split("[<(]", plain, maxsplit=1)[0].split("::")[-1].split(" ")[-1]
