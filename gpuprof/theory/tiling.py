"""What a kernel must execute: the FLOPs of one launch, predicted from its name and the shapes it works on.

Kernels multiply in whole tiles, so they execute more than the mathematics needs, and their names say how large the
tiles are. A prediction is a closed form of the shapes, never a fit to what was measured; every cause in it comes with
the FLOPs that it adds to, or takes from, those counted.

Sources: the tile rules of CUTLASS (whole tiles in every dimension, its implicit convolutions and strided gradient),
the loop bounds of FlashAttention 2 and of the memory-efficient kernels that torch carries (``fmha_cutlass``), and
Lavin and Gray 2015 for Winograd's minimal filtering. cuBLAS, nvjet and cuDNN are closed: there only the name is known,
and that nvjet works in whole clusters and how it splits a depth, an H200 has shown (``tests/data/nvidia-h200``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from gpuprof.late import pattern

from .kernel_names import Tile, tile_of
from .masks import unmasked_pairs
from .names import without_overload
from .rows import Shape, elements

EXACT = "exact"
TILES = "tile padding"
CLUSTERS = "cluster padding"
SPLIT_K = "split-K padding"
CHANNELS = "channel padding"
TAPS = "every filter tap padded"
POSITIONS = "all input positions"
WINOGRAD = "Winograd"
CAUSAL_BLOCKS = "causal blocks"
BLOCKS = "block padding"
SQUARE = "whole square"
HEADS = "head padding"
TWICE = "scores computed twice"
THREE_TF32 = "three TF32 products"
SCALAR = "outside tensor cores"

MMA_DEPTH = {"float64": 4, "float32": 8, "float16": 16, "bfloat16": 16}
"""Numbers that one tensor-core instruction sums over at least, by dtype (float32 as TF32); 32 of 8 bits."""


class Call(NamedTuple):
    """One call of an operator.

    Attributes:
        op: ``namespace::name.overload``.
        kind: as in the ``ops`` table.
        inputs: shapes of the tensor inputs.
        results: shapes of the tensor results.
        dtype: dtype of the first floating input.
        causal: its matmul FLOPs over the unmasked pairs.
        full: over the whole square.
        hardware: that the operator really does.
    """

    op: str
    kind: str
    inputs: tuple[Shape, ...]
    results: tuple[Shape, ...]
    dtype: str
    causal: int
    full: int
    hardware: int


class Expectation(NamedTuple):
    """What one launch may execute, and why.

    Attributes:
        flops: matmul FLOPs executed.
        base: of them, those counted.
        parts: causes, each with the FLOPs that it adds to those counted; a negative number is saved.
        tensor: whether on tensor cores; else as scalar FLOPs, and none on tensor cores.
    """

    flops: int
    base: int
    parts: tuple[tuple[str, int], ...] = ()
    tensor: bool = True

    @property
    def cause(self) -> str:
        """The causes in words."""
        words = [name for name, _ in self.parts] or [EXACT]
        return ", ".join(words if self.tensor else [*words, SCALAR])


_FUSED = pattern(r"flash|fmha|sdpa|atten|attn|triton", re.IGNORECASE)
_SCALAR = pattern(r"gemv|sgemm|hgemm|simt|ffma|dot_kernel|gemmSN|gemmk1|scudnn", re.IGNORECASE)
_FFT = pattern(r"fft|cgemm", re.IGNORECASE)


@cache
def expectations(call: Call, kernel: str, grid: tuple[int, int, int] = (1, 1, 1)) -> tuple[Expectation, ...]:
    """Every number of matmul FLOPs that one launch of a kernel plausibly executes for a call, the simplest first.

    Args:
        call: what the operator worked on.
        kernel: name of the kernel, demangled.
        grid: thread blocks, x by y by z: they say into how many slices a depth is split.

    Returns:
        A kernel whose name does not rule out tensor cores is expected on them and outside them: which of the two it
        was, is measured. Empty where there is no closed form: an FFT, recurrent layers in one kernel, products whose
        sizes are data.
    """
    if _FFT.search(kernel):
        return ()
    tile = tile_of(kernel)
    if call.kind == "attention" and _FUSED.search(kernel):
        found = _fused_attention(call, kernel, tile)
    else:
        depth = MMA_DEPTH.get(call.dtype, 32)
        found = [
            expectation
            for base, steps in _products(call, kernel, tile)
            for expectation in _tiled(base, steps, tile, depth, kernel, grid)
        ]
    simplest: dict[tuple[int, bool], Expectation] = {}
    for on_tensor_cores in (False,) if _SCALAR.search(kernel) else (True, False):
        for expectation in sorted(found, key=lambda e: len(e.parts)):
            simplest.setdefault((expectation.flops, on_tensor_cores), expectation._replace(tensor=on_tensor_cores))
    return tuple(simplest.values())


class _Gemm(NamedTuple):
    """A batch of products (m, k) x (k, n)."""

    batch: int
    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k


_Steps = list[tuple[str, _Gemm]]
"""How a counted product becomes the one that runs: causes, and what there is to multiply after each."""


def _pad(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _expect(base: int, steps: Iterable[tuple[str, int]]) -> Expectation:
    """An expectation from causes and the FLOPs that there are after each; a step that changes nothing is no cause."""
    parts, flops = [], base
    for cause, after in steps:
        if after != flops:
            parts.append((cause, after - flops))
        flops = after
    return Expectation(flops, base, tuple(parts))


def _tiled(
    base: int, steps: _Steps, tile: Tile | None, depth: int, kernel: str, grid: tuple[int, int, int]
) -> list[Expectation]:
    """A product as it is, and in whole tiles."""
    causes = [(cause, gemm.flops) for cause, gemm in steps]
    found = [_expect(base, causes)]
    if tile is None:
        return found
    batch, m, n, k = steps[-1][1]
    deep = tile.k or depth
    # cuBLAS stores by columns and computes the transposed product, so its m is torch's n; cuDNN's is not
    for rows, columns in ((n, m), (m, n)):
        tiles = _Gemm(batch, _pad(rows, tile.m), _pad(columns, tile.n), k)
        clusters = tiles._replace(m=_pad(rows, tile.m * tile.cluster[0]), n=_pad(columns, tile.n * tile.cluster[1]))
        depths = [(TILES, _pad(k, deep)), (TILES, _pad(k, depth))]
        if (slices := _slices(clusters, tile, kernel, grid)) > 1:
            depths.append((SPLIT_K, slices * _pad(-(-k // slices), deep)))
        for cause, summed in depths:
            steps_of_tiles = [(cause, tiles._replace(k=summed).flops), (CLUSTERS, clusters._replace(k=summed).flops)]
            found.append(_expect(base, [*causes, *steps_of_tiles]))
    return found


def _slices(whole: _Gemm, tile: Tile, kernel: str, grid: tuple[int, int, int]) -> int:
    """Into how many slices a kernel may split the depth of a product in whole tiles; below 2 it does not.

    The third dimension of its grid has them, and the batch; nvjet has a flat grid: a block for each slice of a tile.
    """
    if "nvjet" not in kernel:
        return grid[2] // whole.batch
    blocks, tiles = math.prod(grid), whole.batch * (whole.m // tile.m) * (whole.n // tile.n)
    return blocks // tiles if "splitK" in kernel and blocks % tiles == 0 else 1


def _products(call: Call, kernel: str, tile: Tile | None) -> list[tuple[int, _Steps]]:
    """The products of matrices that a launch may be, each with its counted FLOPs."""
    if call.kind == "matmul":
        return _matmul(call)
    if call.kind == "convolution":
        return _convolution(call, kernel, tile)
    if call.kind == "attention":
        return _unfused_attention(call)
    return []


# Operators whose first result is their product.
_MATMULS = {
    f"aten::{name}"
    for name in "mm addmm bmm baddbmm mv addmv dot vdot _addmm_activation _int_mm _scaled_mm _scaled_mm_v2".split()
}


def _matmul(call: Call) -> list[tuple[int, _Steps]]:
    name = without_overload(call.op)
    if name not in _MATMULS or not call.full or not call.results:
        return []
    *rows, n = call.results[0] or (1,)  # a vector is a row; a number is both
    batch = rows[0] if "bmm" in name else 1
    m = math.prod(rows) // batch
    return [(call.hardware, [(EXACT, _Gemm(batch, m, n, call.full // (2 * batch * m * n)))])]


def _convolution(call: Call, kernel: str, tile: Tile | None) -> list[tuple[int, _Steps]]:
    """A convolution or its gradients as products of matrices, whether or not these are ever laid out in memory.

    Each joins the tensor of ``few`` positions (the output; of a transposed convolution the input), the one of ``many``
    and the weight, and gives one of them from the other two.
    """
    backward = "backward" in call.op
    out = call.inputs[0] if backward else call.results[0]
    x, weight = call.inputs[1:3] if backward else call.inputs[:2]
    transposed = "transpose" in call.op or out[1] != weight[0]
    few, many = (x, out) if transposed else (out, x)
    base = 2 * elements(few) * elements(weight[1:])
    if not base:
        return []
    gives = {shape for shape in (x, weight) if shape in call.results} if backward else {out}
    named = kernel.lower()
    if backward and re.search("wgrad|dgrad|fprop", named):
        gives &= {weight} if "wgrad" in named else {x}
    inner, taps = weight[1], elements(weight[2:])
    groups = many[1] // inner
    outer, images = weight[0] // groups, few[0]
    aligned = (_pad(inner, 4), _pad(inner, 8))  # channels as tensor cores want them, of TF32 and of 16 bits
    deep = tile.k if tile and tile.k else 1
    found: list[_Steps] = []
    if few in gives:
        gemm = _Gemm(groups, images * elements(few[2:]), outer, taps * inner)
        wide = [(CHANNELS, gemm._replace(k=taps * channels)) for channels in aligned]
        found += [[(EXACT, gemm), step] for step in (*wide, (TAPS, gemm._replace(k=taps * _pad(inner, deep))))]
        found += _winograd(gemm, few, inner, weight, kernel)
    if many in gives:
        plain = _Gemm(groups, images * elements(many[2:]), inner, taps * outer)
        # of a strided input each position meets the taps of its own remainder alone, if the kernel knows
        sizes = [-(-large // max(round(large / small), 1)) for large, small in zip(many[2:], few[2:], strict=True)]
        for gemm in (plain, plain._replace(m=images * math.prod(sizes))):
            wide = [(CHANNELS, gemm._replace(n=channels)) for channels in aligned]
            taps_padded = gemm._replace(k=gemm.k // outer * _pad(outer, deep))
            found += [[(POSITIONS, gemm), step] for step in (*wide, (TAPS, taps_padded))]
        found += _winograd(plain, many, outer, weight, kernel)
    if weight in gives:
        gemm = _Gemm(groups, outer, taps * inner, images * elements(few[2:]))
        found += [[(EXACT, gemm), (CHANNELS, gemm._replace(n=taps * channels))] for channels in aligned]
    return [(base, steps[:count]) for steps in found for count in range(1, len(steps) + 1)]


def _winograd(gemm: _Gemm, to: Shape, channels: int, weight: Shape, kernel: str) -> list[_Steps]:
    """F(m x m, 3 x 3): squares of m x m results from (m + 2)^2 products each, where the plain way takes 9 m^2."""
    # a plain product for such a filter may be the middle one of a Winograd in several kernels
    plain = "gemm" in kernel and not re.search("implicit|fprop|dgrad|wgrad|conv", kernel)
    if weight[2:] != (3, 3) or not (plain or "winograd" in kernel.lower()):
        return []
    size = re.search(r"winograd.*?(?<!\d)([24])x\1(?!\d)", kernel, re.IGNORECASE)
    found: list[_Steps] = []
    for m in (int(size[1]),) if size else (2, 4):
        squares = to[0] * math.prod(-(-positions // m) for positions in to[2:])
        found.append([(WINOGRAD, _Gemm(gemm.batch * (m + 2) ** 2, squares, gemm.n, channels))])
    return found


class _Attention(NamedTuple):
    """One call of an attention.

    Attributes:
        heads: query heads of the whole batch.
        kv_heads: key heads, likewise.
        queries: per head.
        keys: per head.
        qk_dim: size of a query and key head.
        v_dim: size of a value head.
        pairs: unmasked pairs per head.
        offset: query i sees the first i + 1 + offset keys; None where the mask is not causal, or there is none.
        backward: whether it computes the gradients.
    """

    heads: int
    kv_heads: int
    queries: int
    keys: int
    qk_dim: int
    v_dim: int
    pairs: int
    offset: int | None
    backward: bool

    @property
    def square(self) -> int:
        """Pairs per head, masked ones too."""
        return self.queries * self.keys

    def dims(self) -> list[int]:
        """Head dimension of each product of a fused kernel: scores and values; or scores and four gradients."""
        return [self.qk_dim] * 3 + [self.v_dim] * 2 if self.backward else [self.qk_dim, self.v_dim]


def _attention(call: Call) -> _Attention | None:
    """A call read from its shapes; None where these do not give the counted FLOPs."""
    backward = "backward" in call.op
    first = 1 if backward and "flex" not in call.op else 0
    shapes = call.inputs[first : first + 3]
    if len(shapes) < 3 or not call.full:
        return None
    q, k, v = shapes
    for at in (-2, -3):  # the sequence stands after the heads, or before them
        if min(map(len, shapes)) < 1 - at:
            continue
        queries, keys, dims = q[at], k[at], q[-1] + v[-1]
        heads = elements(q) // (queries * q[-1])
        each = 2 * heads * dims * (2 if backward else 1)
        if each * queries * keys != call.full:
            continue
        pairs = call.causal // each
        offset = None
        if pairs != queries * keys:
            if pairs == unmasked_pairs(queries, keys, causal=True, align="bottom-right"):
                offset = keys - queries
            elif pairs == unmasked_pairs(queries, keys, causal=True):
                offset = 0
        kv_heads = elements(k) // (keys * k[-1])
        return _Attention(heads, kv_heads, queries, keys, q[-1], v[-1], pairs, offset, backward)
    return None


def _unfused_attention(call: Call) -> list[tuple[int, _Steps]]:
    """Scores and weighted values of an attention as two batched products over the whole square."""
    a = _attention(call)
    if a is None or a.backward:
        return []
    scores, values = _Gemm(a.heads, a.queries, a.keys, a.qk_dim), _Gemm(a.heads, a.queries, a.v_dim, a.keys)
    of_scores = call.hardware * scores.flops // call.full
    return [(of_scores, [(SQUARE, scores)]), (call.hardware - of_scores, [(SQUARE, values)])]


_Work = list[tuple[int, int, int]]
"""Products of an attention: pairs of query and key per head, head dimension, and what a kernel pads that to."""


def _fused_attention(call: Call, kernel: str, tile: Tile | None) -> list[Expectation]:
    """Attention in one kernel: as counted, over the whole square, and in blocks where these are known."""
    a = _attention(call)
    if a is None:
        return []
    base, dims, again, deep = call.hardware, a.dims(), [a.qk_dim, a.v_dim], MMA_DEPTH.get(call.dtype, 32)
    flex, multiples = "flex" in call.op, [1, deep]
    if flex:  # blocks of its masks by default, and heads as Triton takes them
        multiples.append(1 << (max(again) - 1).bit_length())
        tile = Tile(128, 128, multiples[-1])
    # a backward of two loops, one for the queries and one for the keys, needs the scores and their gradient in both
    ways = [dims, dims + again] if a.backward and (flex or tile is None) else [dims]
    counted = base // (2 * a.heads * sum(dims))
    found = [
        _attended(a, base, [(pairs, dim, _pad(dim, multiple)) for dim in way])
        for way in ways
        for pairs in (counted, a.square)
        for multiple in multiples
    ]
    if tile is None:
        return found
    packed = a._replace(heads=a.kv_heads, queries=a.heads // a.kv_heads, offset=None)
    shapes = [a, packed] if a.queries == 1 and not a.backward else [a]  # a single query of each head that shares keys
    # a name of cuDNN's gives the rows of one warp group, of which one or two take a block
    for rows in (tile.m, 2 * tile.m) if "cudnn" in kernel else (tile.m,):
        for shape in shapes:
            for offset in dict.fromkeys((shape.offset, None)):
                seen = _seen(shape, rows, offset)
                cause = BLOCKS if offset is None else CAUSAL_BLOCKS
                if "fmha_cutlass" in kernel:
                    times = 3 if call.dtype == "float32" else 1
                    found.append(_attended(shape, base, _memory_efficient(shape, rows, tile.n, seen), cause, times))
                    continue
                pairs = rows * sum(_pad(keys, tile.n) for keys in seen)
                for way in ways:
                    built = [(pairs, dim, (dim == a.qk_dim and tile.k) or _pad(dim, deep)) for dim in way]
                    needed = [(pairs, dim, _pad(dim, deep)) for dim in way]
                    found += [_attended(shape, base, work, cause) for work in (built, needed)]
    return found


def _seen(a: _Attention, rows: int, offset: int | None) -> list[int]:
    """Keys that each block of queries goes through."""
    starts = range(0, a.queries, rows)
    return [a.keys if offset is None else min(max(start + rows + offset, 0), a.keys) for start in starts]


def _memory_efficient(a: _Attention, rows: int, columns: int, seen: list[int]) -> _Work:
    """Products of the ``fmha_cutlass`` kernels: each in tiles of rows x columns, or the other way round, 32 deep.

    So a head dimension that is summed over is padded to 32, one that is given to the tile; and so are queries and keys.
    """
    deep = 32
    blocks = [-(-keys // columns) for keys in seen]
    whole = rows * columns * sum(blocks)
    if not a.backward:
        by_keys = rows * sum(_pad(keys, deep) for keys in seen)
        return [(whole, a.qk_dim, _pad(a.qk_dim, deep)), (by_keys, a.v_dim, _pad(a.v_dim, columns))]
    queries = [min(rows, a.queries - index * rows) for index in range(len(seen))]
    by_queries = columns * sum(_pad(some, deep) * count for some, count in zip(queries, blocks, strict=True))
    by_keys = rows * sum(_pad(min(count * columns, a.keys), deep) for count in blocks)
    return [
        (whole, a.qk_dim, _pad(a.qk_dim, deep)),  # scores
        (whole, a.v_dim, _pad(a.v_dim, deep)),  # their gradient
        (by_keys, a.qk_dim, _pad(a.qk_dim, columns)),  # gradients of the queries,
        (by_queries, a.qk_dim, _pad(a.qk_dim, rows)),  # of the keys
        (by_queries, a.v_dim, _pad(a.v_dim, rows)),  # and of the values
    ]


def _attended(a: _Attention, base: int, work: _Work, blocks: str = SQUARE, times: int = 1) -> Expectation:
    """An expectation from the products of an attention: those counted come first, in whatever order."""

    def flops(products: _Work) -> int:
        return 2 * a.heads * sum(pairs * dim for pairs, dim, _ in products)

    once = work[: len(a.dims())]
    wide = flops([(pairs, padded, padded) for pairs, _, padded in work])
    square = [(SQUARE, flops([(a.square, dim, dim) for _, dim, _ in once]))] if blocks == BLOCKS else []
    steps = [(blocks, flops(once)), (TWICE, flops(work)), (HEADS, wide), (THREE_TF32, times * wide)]
    return _expect(base, [*square, *steps])
