"""What each FLOP counter is off by: gpuprof and its peers against closed forms derived by hand in this script.

    python scripts/bench_accuracy.py --markdown docs/accuracy.md

The peers are needed here only: pip install calflops deepspeed fvcore ptflops torchinfo psutil. One that is missing is a
column that says so. Every tool runs in processes of its own, with a time limit per case; a tool that raises leaves its
process in no known state, so the next case gets a new one. Exits with 1 unless gpuprof is exact on every row.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import torch
from side_by_side import cpu_name
from torch import nn
from torch.nn import functional as F

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH = 2

# -- the battery: models, and what their mathematics needs. One multiply-accumulate is 2 FLOPs, attention is the whole
# query x key square also where it is causal, elementwise work and lookups are 0. No layer has a bias, so whether a tool
# counts adding one makes no difference.


LAYERS_AND_MODELS = "Layers and models"
INSIDE = "Products inside other operators"
SPARSE = "Sparse"
COMPLEX = "Complex"
MASKED = "Packed, nested and masked sequences"
SECTIONS = {
    LAYERS_AND_MODELS: "",
    INSIDE: "Distances by a product of the width K + 2, grids, bilinear forms; the branch of a condition, the rounds "
    "of a scan; linear algebra by the operations of LAPACK Working Note 41; 8-bit weights; a model that yields.",
    SPARSE: "What is stored meets every column: 2 x stored x columns.",
    COMPLEX: "A multiply-accumulate of complex numbers is 8 real FLOPs. torch makes three real convolutions of a "
    "complex one, and those are counted.",
    MASKED: "Each sequence is a square of its own, and a token is multiplied once. Of a block mask the unmasked pairs "
    "are the convention `causal`, and those in the blocks that a kernel computes the hardware FLOPs.",
}
"""Parts of the page, and a sentence about each."""


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and its FLOPs by hand."""

    name: str
    """Title of the row."""
    build: Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]
    """Model and its inputs, in the order of its forward's parameters."""
    parts: dict[str, tuple[int, int]]
    """{part: (FLOPs of the forward, FLOPs of the backward)}."""
    recompute: bool = False
    """Whether the backward above holds what a checkpoint runs again."""
    training_only: bool = False
    """Whether its forward alone is that of another row."""
    labels: bool = False
    """Whether training takes the inputs as labels too, as Hugging Face's causal language models do."""
    forward_only: bool = False
    """Whether it has no backward."""
    counted: str = "flops_full"
    """The column of gpuprof's operator table that is held against the figures."""
    section: str = LAYERS_AND_MODELS
    """Which part of the page it is in."""

    @property
    def forward(self) -> int:
        """FLOPs of the forward."""
        return sum(forward for forward, _ in self.parts.values())

    @property
    def both(self) -> int:
        """FLOPs of forward and backward."""
        return self.forward + sum(backward for _, backward in self.parts.values())


class Whole(nn.Module):
    """One layer as a child: some counters do not see a model that is itself a layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):  # noqa: D102
        return self.layer(x)


class Recurrent(nn.Module):
    """A recurrent layer with its initial state as plain tensors; returns the outputs of all steps."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x, h, c=None):  # noqa: D102
        return self.layer(x, h if c is None else (h, c))[0]


class Attention(nn.Module):
    """Self-attention with projections, by torch's fused function; fewer key heads than query heads are grouped."""

    def __init__(self, width: int, heads: int, key_heads: int, causal: bool):
        super().__init__()
        self.heads, self.key_heads, self.causal, self.size = heads, key_heads, causal, width // heads
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, key_heads * self.size, bias=False)
        self.value = nn.Linear(width, key_heads * self.size, bias=False)

    def forward(self, x):  # noqa: D102
        batch, length, width = x.shape
        q = self.query(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k = self.key(x).view(batch, length, self.key_heads, self.size).transpose(1, 2)
        v = self.value(x).view(batch, length, self.key_heads, self.size).transpose(1, 2)
        grouped = {"enable_gqa": True} if self.key_heads < self.heads else {}
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, **grouped)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Adapted(nn.Module):
    """A linear layer and a low-rank adapter beside it (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):  # noqa: D102
        return self.base(x) + self.up(self.down(x))


def product(rows: int, inner: int, columns: int) -> int:
    """FLOPs of [rows, inner] x [inner, columns]."""
    return 2 * rows * inner * columns


def trained(forward: int) -> tuple[int, int]:
    """A product whose two factors both need a gradient: each costs the same again."""
    return forward, 2 * forward


def differentiable(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def convolution(
    name: str, dims: int, channels: int, outputs: int, kernel: int, size: int, *, transposed: bool = False, **how: int
) -> Case:
    """Every output meets (inputs / groups) x kernel weights; transposed, every input (outputs / groups) x kernel.

    `size` is the length of each side of the input.
    """
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")
    stride, padding, dilation = how.get("stride", 1), how.get("padding", 0), how.get("dilation", 1)
    side = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    weights = channels * outputs // how.get("groups", 1) * kernel**dims
    positions = size**dims if transposed else side**dims

    def build():
        return Whole(kind(channels, outputs, kernel, bias=False, **how)), {
            "x": differentiable(BATCH, channels, *[size] * dims)
        }

    return Case(name, build, {"convolution": trained(2 * BATCH * positions * weights)})


def two_convolutions() -> Case:
    """An image needs no gradient, so the first layer has that of its weight only."""

    def build():
        layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False))
        return Whole(layers), {"x": torch.randn(BATCH, 3, 8, 8)}

    first, second = (2 * BATCH * 64 * 8 * channels * 9 for channels in (3, 8))
    return Case("Two Conv2d on an image without gradient", build, {"first": (first, first), "second": trained(second)})


def attention(name: str, key_heads: int = 4, causal: bool = False) -> Case:
    width, heads, length = 32, 4, 16
    size = width // heads

    def build():
        return Attention(width, heads, key_heads, causal), {"x": differentiable(BATCH, length, width)}

    outer = 2 * product(BATCH * length, width, width)  # query and out
    inner = 2 * product(BATCH * length, width, key_heads * size)  # key and value
    square = 2 * BATCH * heads * product(length, size, length)  # scores, and the mix of the values
    return Case(name, build, {"projections": trained(outer + inner), "attention": trained(square)})


def recurrent(name: str, gates: int) -> Case:
    """The initial state needs a gradient like any other input, so that each product costs two of itself."""
    length, width, state = 5, 8, 6
    states = 3 - (gates == 3)  # an LSTM has a cell state too

    def build():
        layer = (nn.LSTM if gates == 4 else nn.GRU)(width, state, bias=False)
        given = {"x": differentiable(length, BATCH, width)}
        return Recurrent(layer), given | {key: differentiable(1, BATCH, state) for key in ("h", "c")[: states - 1]}

    forward = length * (product(BATCH, width, gates * state) + product(BATCH, state, gates * state))
    return Case(name, build, {"gates": trained(forward)})


# A tiny decoder: W wide, heads of D, feed-forward of HIDDEN, V tokens.
W, HEADS, KEY_HEADS, HIDDEN, LAYERS, V, LENGTH = 32, 4, 2, 48, 2, 64, 16
D, T = W // HEADS, BATCH * LENGTH
QUERY = product(T, W, HEADS * D)
KEY = VALUE = product(T, W, KEY_HEADS * D)
OUT = product(T, HEADS * D, W)
SCORES = MIX = BATCH * HEADS * product(LENGTH, D, LENGTH)
GATE = UP = product(T, W, HIDDEN)
DOWN = product(T, HIDDEN, W)
HEAD = product(T, W, V)
LAYER = QUERY + KEY + VALUE + SCORES + MIX + OUT + GATE + UP + DOWN
RANK = 4
EXPERTS, CHOSEN = 4, 2


def decoder(kind: str, attn: str, **more: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=V, hidden_size=W, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, use_cache=False, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn).train()
    return model, {"input_ids": torch.randint(0, V, (BATCH, LENGTH))}


def llama(attn: str) -> Case:
    layers = LAYERS * (LAYER - SCORES - MIX)
    parts = {"linear": trained(layers + HEAD), "attention": trained(LAYERS * (SCORES + MIX))}
    return Case(f"Llama, {attn}", lambda: decoder("llama", attn), parts, labels=True)


def checkpointed(recompute: bool) -> Case:
    """Without reentrancy a layer is run again up to its last saved tensor: the input of its last product."""

    def build():
        model, given = decoder("llama", "eager")
        # transformers renames it, and warns at the older name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        return model, given

    parts = {"model": trained(LAYERS * LAYER + HEAD)}
    if recompute:
        parts["recompute"] = 0, LAYERS * (LAYER - DOWN)
    name = f"Llama, eager, checkpointed: {'recompute included' if recompute else 'model FLOPs'}"
    return Case(name, build, parts, recompute, training_only=True, labels=True)


def lora() -> Case:
    """Adapters on query and value of a frozen Llama; a frozen product has the gradient of its input only.

    The input of the first layer is a frozen lookup without gradient, and so are its keys: there query, key and value
    have no gradient of their input, the adapters' first halves only that of the weight, the scores only that of the
    query.
    """

    def build():
        model, given = decoder("llama", "eager")
        model.requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj, RANK)
            layer.self_attn.v_proj = Adapted(layer.self_attn.v_proj, RANK)
        return model, given

    down = 2 * product(T, W, RANK)
    up = product(T, RANK, HEADS * D) + product(T, RANK, KEY_HEADS * D)
    after = OUT + GATE + UP + DOWN
    later = LAYERS - 1
    parts = {
        "frozen linear": (LAYERS * (QUERY + KEY + VALUE + after) + HEAD,
                          LAYERS * after + later * (QUERY + KEY + VALUE) + HEAD),
        "adapters": (LAYERS * (down + up), LAYERS * 2 * up + down + later * 2 * down),
        "attention": (LAYERS * (SCORES + MIX), LAYERS * 2 * MIX + SCORES + later * 2 * SCORES),
    }  # fmt: skip
    return Case("Llama, eager, LoRA on query and value", build, parts, labels=True)


def mixtral() -> Case:
    """Each token meets the experts chosen for it, of three products each, and the router."""
    more = {"num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    dense = LAYERS * (QUERY + KEY + VALUE + OUT + product(T, W, EXPERTS)) + HEAD
    parts = {
        "linear": trained(dense),
        "attention": trained(LAYERS * (SCORES + MIX)),
        "experts": trained(LAYERS * CHOSEN * (GATE + UP + DOWN)),
    }
    return Case(
        "Mixtral, eager, experts by grouped_mm", lambda: decoder("mixtral", "eager", **more), parts, labels=True
    )


def linear() -> Case:
    rows, inner, columns = (BATCH, 5, 7), 24, 40
    return Case(
        "Linear on [2, 5, 7, 24]",
        lambda: (Whole(nn.Linear(inner, columns, bias=False)), {"x": differentiable(*rows, inner)}),
        {"linear": trained(product(prod(rows), inner, columns))},
    )


def embedding() -> Case:
    return Case(
        "Embedding (a lookup: 0)",
        lambda: (Whole(nn.Embedding(V, W)), {"x": torch.randint(0, V, (BATCH, LENGTH))}),
        {"lookup": (0, 0)},
    )


# -- kinds that counters stumble over: products that are not called so, and tensors that are more than a shape


class Function(nn.Module):
    """A function of its inputs; what it multiplies with is its state."""

    def __init__(self, function: Callable[..., Any], **state: Any):
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros(()))  # tools ask the first parameter for its device
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def forward(self, x, y=None):  # noqa: D102
        return self.function(self, x) if y is None else self.function(self, x, y)


def function(
    name: str, section: str, given: Callable[[], Any], parts: dict[str, tuple[int, int]], how: Any, state: Any = dict,
    **more: Any,
) -> Case:  # fmt: skip
    """A case of one function; `given` makes its input or two inputs, `state` what it multiplies with."""

    def build():
        inputs = given()
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return Function(how, **state()), dict(zip("xy", inputs, strict=False))

    return Case(name, build, parts, section=section, **more)


def inside() -> list[Case]:
    m, n, k = 40, 30, 8
    points = product(m, k, n)
    outputs, first, second = 3, 5, 7
    pairs = 2 * T * outputs
    rows, inner = 4, 16
    linear = product(rows, inner, inner)
    size, columns = 6, 4
    # 1 and m - j operations make a column of L, and 2 (m - j)^2 update the rest; each column of the solution takes n^2
    # products and n (n - 1) sums
    factors = sum(1 + (size - j) + 2 * (size - j) ** 2 for j in range(1, size + 1))
    solved = columns * (size**2 + size * (size - 1))
    layer = lambda: {"layer": nn.Linear(inner, inner, bias=False)}  # noqa: E731

    def rounds(model, x):
        def step(carry, x):
            carry = model.layer(carry) + x
            return carry, carry.clone()

        return torch._higher_order_ops.scan(step, torch.zeros_like(x[0]), x)[1]

    def yielded(model, x):
        for _ in range(3):
            x = model.layer(x)
            yield x

    def quantized():
        return {"layer": torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(inner, 24)), {nn.Linear})}

    x = lambda *shape: lambda: differentiable(*shape)  # noqa: E731
    return [
        function("cdist", INSIDE, lambda: (differentiable(BATCH, m, k), differentiable(BATCH, n, k)),
                 {"distances": (BATCH * product(m, k + 2, n), BATCH * 2 * points)}, lambda _, x, y: torch.cdist(x, y)),
        function("affine_grid", INSIDE, x(BATCH, 2, 3), {"grid": (BATCH * product(64, 3, 2),) * 2},
                 lambda _, x: F.affine_grid(x, [BATCH, 1, 8, 8], align_corners=False)),
        function("Bilinear", INSIDE, lambda: (differentiable(T, first), differentiable(T, second)),
                 {"bilinear": (pairs * second * (first + 1),
                               pairs * (2 * first * second + first * (second + 1) + second * (first + 1)))},
                 lambda m, x, y: m.layer(x, y), lambda: {"layer": nn.Bilinear(first, second, outputs, bias=False)}),
        function("torch.cond", INSIDE, x(rows, inner), {"linear": trained(linear)},
                 lambda m, x: torch.cond(x.sum() > -1e9, lambda x: m.layer(x), lambda x: x.clone(), (x,)), layer),
        # the first state is a constant
        function("scan of 5 rounds", INSIDE, x(5, rows, inner), {"linear": (5 * linear, 9 * linear)}, rounds, layer),
        function("linalg.solve", INSIDE, lambda: (
                     (torch.eye(size) + torch.rand(size, size) / 9).requires_grad_(), differentiable(size, columns)),
                 {"solution": (factors + solved, solved + product(size, columns, size))},
                 lambda _, x, y: torch.linalg.solve(x, y)),
        function("Linear, dynamically quantized", INSIDE, lambda: torch.randn(rows, inner),
                 {"linear": (product(rows, inner, 24), 0)}, lambda m, x: m.layer(x), quantized, forward_only=True),
        function("Generator of three Linear", INSIDE, lambda: torch.randn(rows, inner), {"linear": (3 * linear, 0)},
                 yielded, layer, forward_only=True),
    ]  # fmt: skip


def sparse() -> list[Case]:
    stored, rows, inner, columns = 10, 16, 24, 8
    each = 2 * stored * columns

    def graph(layout: torch.layout) -> dict[str, Any]:
        dense = torch.zeros(rows, inner)
        dense[torch.arange(stored), torch.arange(stored)] = 1.0
        return {"a": dense.to_sparse(layout=layout)}

    coo, csr = (lambda: graph(torch.sparse_coo)), (lambda: graph(torch.sparse_csr))
    x = lambda: differentiable(inner, columns)  # noqa: E731
    both = {"product": (each, each)}
    layer = {"linear": trained(product(inner, columns, columns)), "product": (each, each)}
    return [
        function("sparse.mm, coo", SPARSE, x, both, lambda m, x: torch.sparse.mm(m.a, x), coo),
        function("A @ x, csr", SPARSE, x, both, lambda m, x: m.a @ x, csr),
        function("Graph layer: A (x W)", SPARSE, x, layer, lambda m, x: m.a @ m.layer(x),
                 lambda: coo() | {"layer": nn.Linear(columns, columns, bias=False)}),
    ]  # fmt: skip


def complex_numbers() -> list[Case]:
    rows, inner, columns, kernel, length = 6, 8, 5, 3, 16
    dtype = torch.complex64
    linear = 4 * product(rows, inner, columns)
    convolved = 3 * 2 * BATCH * (length - kernel + 1) * columns * inner * kernel

    def given(*shape: int) -> Callable[[], torch.Tensor]:
        return lambda: torch.randn(shape, dtype=dtype, requires_grad=True)

    return [
        function("Linear, complex", COMPLEX, given(rows, inner), {"linear": trained(linear)},
                 lambda m, x: m.layer(x).abs(), lambda: {"layer": nn.Linear(inner, columns, bias=False, dtype=dtype)}),
        function("einsum, complex", COMPLEX, lambda: (given(rows, inner)(), given(inner, columns)()),
                 {"product": trained(linear)}, lambda _, x, y: torch.einsum("ij,jk->ik", x, y).abs()),
        function("Conv1d, complex", COMPLEX, given(BATCH, inner, length), {"convolution": trained(convolved)},
                 lambda m, x: m.layer(x).abs(),
                 lambda: {"layer": nn.Conv1d(inner, columns, kernel, bias=False, dtype=dtype)}),
    ]  # fmt: skip


def masked() -> list[Case]:
    from torch.nn.attention.varlen import varlen_attn  # from then on torch's counter has rules for it

    lengths, heads, size = (3, 5, 2), 2, 8
    tokens, ends = sum(lengths), [0, 3, 8, 10]
    square = sum(heads * 2 * product(length, size, length) for length in lengths)
    long, window, block = 128, 16, 32
    each = heads * 4 * size  # of a pair of query and key
    # of the four rows of blocks all see their own block, and all but the first the one before
    near = window * (window + 1) // 2 + (long - window) * window
    blocks = (4 + 3) * block**2

    def packed(model, x):
        return varlen_attn(x, x, x, model.ends, model.ends, max(lengths), max(lengths))

    def flex(model, x):
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(x, x, x, block_mask=model.mask)

    def mask(seen: Callable[..., Any]) -> Callable[[], dict[str, Any]]:
        from torch.nn.attention.flex_attention import create_block_mask

        return lambda: {"mask": create_block_mask(seen, None, None, long, long, device="cpu", BLOCK_SIZE=block)}

    def causal(b, h, q, k):
        return q >= k

    def windowed(b, h, q, k):
        return (q >= k) & (q - k < window)

    def nested(model, x):
        return model.layer(torch.nested.nested_tensor_from_jagged(x, model.ends)).values()

    x = lambda: torch.randn(1, heads, long, size)  # noqa: E731
    return [
        # it runs on a GPU alone: counted without values, but for the offsets
        function("Varlen attention of 3, 5 and 2 tokens", MASKED,
                 lambda: torch.randn(tokens, heads, size, device="meta", requires_grad=True),
                 {"attention": trained(square)}, packed, lambda: {"ends": torch.tensor(ends, dtype=torch.int32)}),
        function("Linear on a nested tensor of 3, 5 and 2 tokens", MASKED,
                 lambda: differentiable(tokens, size), {"linear": trained(product(tokens, size, size))}, nested,
                 lambda: {"layer": nn.Linear(size, size, bias=False), "ends": torch.tensor(ends)}),
        function("flex_attention, causal block mask: unmasked pairs", MASKED, x,
                 {"attention": (each * (long * (long + 1) // 2), 0)}, flex, mask(causal),
                 counted="flops_causal", forward_only=True),
        function("flex_attention, window of 16 in 128: unmasked pairs", MASKED, x, {"attention": (each * near, 0)},
                 flex, mask(windowed), counted="flops_causal", forward_only=True),
        function("flex_attention, window of 16 in 128: blocks of 32", MASKED, x, {"attention": (each * blocks, 0)},
                 flex, mask(windowed), counted="flops_hardware", forward_only=True),
    ]  # fmt: skip


CASES: dict[str, Case] = {
    case.name: case
    for case in [
        linear(),
        convolution("Conv1d", 1, 4, 6, 3, 16, padding=1),
        convolution("Conv2d", 2, 4, 6, 3, 8, padding=1),
        convolution("Conv3d", 3, 4, 6, 3, 5),
        convolution("Conv2d, strided", 2, 4, 6, 3, 9, stride=2, padding=1),
        convolution("Conv2d, dilated", 2, 4, 6, 3, 9, dilation=2),
        convolution("Conv2d, 4 groups", 2, 16, 16, 3, 8, padding=1, groups=4),
        convolution("Conv2d, depthwise, 32 channels", 2, 32, 32, 3, 8, padding=1, groups=32),
        convolution("Conv1d, depthwise, dilated", 1, 8, 8, 4, 16, groups=8, dilation=2),
        convolution("ConvTranspose1d, strided", 1, 6, 4, 4, 8, transposed=True, stride=2, padding=1),
        convolution("ConvTranspose2d, strided", 2, 6, 4, 2, 5, transposed=True, stride=2),
        convolution("ConvTranspose2d, 2 groups", 2, 8, 4, 3, 5, transposed=True, groups=2),
        convolution("ConvTranspose3d, strided", 3, 6, 4, 2, 4, transposed=True, stride=2),
        two_convolutions(),
        attention("Attention block, SDPA"),
        attention("Attention block, SDPA, causal", causal=True),
        attention("Attention block, SDPA, GQA 4:2", key_heads=2, causal=True),
        recurrent("LSTM", 4),
        recurrent("GRU", 3),
        embedding(),
        llama("eager"),
        llama("sdpa"),
        checkpointed(recompute=False),
        checkpointed(recompute=True),
        lora(),
        mixtral(),
        *inside(),
        *sparse(),
        *complex_numbers(),
        *masked(),
    ]
}

# -- the tools. Each returns {"forward": FLOPs, "both": FLOPs of forward and backward}; a tool that also states MACs of
# its own gives those, doubled, as "macs_forward" and "macs_both"; "uncounted" are operators it says it does not know.


def backward_assumed(flops: int | float, macs: int | float | None = None) -> dict[str, Any]:
    """Figures of a tool that counts the forward only, with its backward of twice that."""
    figures = {"forward": round(flops), "both": 3 * round(flops)}
    return figures | ({} if macs is None else {"macs_forward": 2 * round(macs), "macs_both": 6 * round(macs)})


def by_gpuprof(case: Case) -> dict[str, Any]:
    import gpuprof

    found: dict[str, Any] = {"uncounted": set()}
    for column, mode in (("forward", "forward"), ("both", "train"))[: 2 - case.forward_only]:
        model, given = case.build()
        labels = {"labels": given["input_ids"]} if case.labels and mode == "train" else {}
        run = gpuprof.profile(model, kwargs=given | labels, passes=["count"], mode=mode, convention="full")
        ops = run.ops if case.recompute else run.ops[run.ops["phase"] != "recompute"]
        found[column] = int(ops[case.counted].fillna(0).sum())
        found["uncounted"] |= {str(name) for name in run.passes["count"].facts["ops_without_rule"]}
    return found | {"uncounted": sorted(found["uncounted"])}


def by_torch(case: Case) -> dict[str, Any]:
    from torch.utils.flop_counter import FlopCounterMode

    model, given = case.build()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(**given)
        if isinstance(output, Iterator):
            list(output)
    forward = counter.get_total_flops()
    if case.forward_only:
        return {"forward": forward}
    model, given = case.build()
    labels = {"labels": given["input_ids"]} if case.labels else {}
    with FlopCounterMode(display=False) as counter:
        output = model(**given, **labels)
        (output.loss if case.labels else output.mean()).backward()
    return {"forward": forward, "both": counter.get_total_flops()}


def by_deepspeed(case: Case) -> dict[str, Any]:
    from deepspeed.profiling.flops_profiler import get_model_profile

    model, given = case.build()
    return backward_assumed(*get_model_profile(model, kwargs=given, print_profile=False, as_string=False)[:2])


def by_calflops(case: Case) -> dict[str, Any]:
    from calflops import calculate_flops

    model, given = case.build()
    return backward_assumed(*calculate_flops(model, kwargs=given, print_results=False, output_as_string=False)[:2])


def by_fvcore(case: Case) -> dict[str, Any]:
    from fvcore.nn import FlopCountAnalysis

    model, given = case.build()
    with torch.no_grad():
        analysis = FlopCountAnalysis(model.eval(), tuple(given.values()))
        return backward_assumed(2 * analysis.total()) | {"uncounted": sorted(analysis.unsupported_ops())}


def by_ptflops(case: Case) -> dict[str, Any]:
    from ptflops import get_model_complexity_info

    model, given = case.build()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        macs, _ = get_model_complexity_info(
            model, (1,), input_constructor=lambda _: given, as_strings=False, print_per_layer_stat=False
        )
    if macs is None:
        raise RuntimeError(said.getvalue().strip().splitlines()[-1])
    return backward_assumed(2 * macs)


def by_torchinfo(case: Case) -> dict[str, Any]:
    from torchinfo import summary

    model, given = case.build()
    return backward_assumed(2 * summary(model, input_data=given, verbose=0).total_mult_adds)


@dataclass(frozen=True)
class Tool:
    """One counter."""

    measure: Callable[[Case], dict[str, Any]]
    package: str
    module: str
    notes: list[str] = field(default_factory=list)


ASSUMES = "backward taken as twice the forward"
TOOLS = {
    "gpuprof": Tool(by_gpuprof, "gpuprof", "gpuprof", ["convention `full`; counts the backward"]),
    "FlopCounterMode": Tool(
        by_torch,
        "torch",
        "torch",
        [
            "counts the backward; recompute is part of it, and so are the scores that a fused attention computes again",
            "on CUDA it has a rule for SDPA, on a CPU none",
        ],
    ),
    "DeepSpeed": Tool(by_deepspeed, "deepspeed", "deepspeed", [ASSUMES, "FLOPs and MACs"]),
    "calflops": Tool(by_calflops, "calflops", "calflops", [ASSUMES, "FLOPs and MACs"]),
    "fvcore": Tool(by_fvcore, "fvcore", "fvcore", [ASSUMES, "prints MACs, doubled here"]),
    "ptflops": Tool(by_ptflops, "ptflops", "ptflops", [ASSUMES, "prints MACs, doubled here"]),
    "torchinfo": Tool(by_torchinfo, "torchinfo", "torchinfo", [ASSUMES, "prints mult-adds, doubled here"]),
}
COLUMNS = {"forward": "Forward", "both": "Forward and backward"}


def measure(tool: str, case: str) -> dict[str, Any]:
    """What a tool says of a case, here and now; an error of the tool is a result."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TOOLS[tool].measure(CASES[case])
    except Exception as error:
        message = (str(error).strip() or "without a word").splitlines()[0]
        return {"error": f"raises {type(error).__name__}: {message}"}


def worker(tool: str, cases: list[str], out: Path) -> int:
    """Measure the cases until one raises, writing a line after each."""
    import importlib

    torch.set_num_threads(1)
    with out.open("a") as file:
        try:
            importlib.import_module(TOOLS[tool].module)
        except ImportError as error:
            print(json.dumps([None, {"error": f"not importable: {error}"}]), file=file)
            return 0
        for case in cases:
            result = measure(tool, case)
            print(json.dumps([case, result]), file=file, flush=True)
            if "error" in result:
                return 0
    return 0


def installed(tool: str) -> str | None:
    """Version of the tool, None if it is not there; gpuprof is that of this checkout."""
    if tool == "gpuprof":
        return re.search(r'__version__ = "(.*)"', (REPOSITORY / "gpuprof/version.py").read_text())[1]
    try:
        return version(TOOLS[tool].package)
    except PackageNotFoundError:
        return None


def in_children(tool: str, cases: list[str], limit_s: float) -> dict[str, dict[str, Any]]:
    """What a tool says of each case, measured in child processes; `limit_s` is seconds per case."""
    if installed(tool) is None:
        return {case: {"error": "not installed"} for case in cases}
    results: dict[str, dict[str, Any]] = {}
    while left := [case for case in cases if case not in results]:
        with tempfile.TemporaryDirectory() as folder:
            found, fate = _child(tool, left, Path(folder) / "results.jsonl", limit_s)
        for case, result in found:
            results |= dict.fromkeys([case] if case else left, result)
        if not found or (fate and len(found) < len(left)):
            stopped = next(case for case in cases if case not in results)
            results[stopped] = {"error": fate or "ended without a result"}
    return results


def _child(tool: str, cases: list[str], out: Path, limit_s: float) -> tuple[list[Any], str]:
    """Lines that one child wrote, and what ended it if it was not its own end."""
    out.touch()
    child = subprocess.Popen(
        [sys.executable, __file__, "--worker", tool, "--cases", json.dumps(cases), "--json", str(out)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, cwd=out.parent, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen, deadline, fate = 0, time.monotonic() + limit_s, ""
    try:
        while child.poll() is None:
            time.sleep(0.05)
            if (size := out.stat().st_size) != seen:
                seen, deadline = size, time.monotonic() + limit_s
            if time.monotonic() > deadline:
                fate = f"killed after {limit_s:g} s"
                break
        else:
            fate = f"crashed with exit code {child.returncode}" if child.returncode else ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return [json.loads(line) for line in out.read_text().splitlines()], fate


# -- the tables


def error_of(flops: int, truth: int) -> str:
    """How far a count is from the closed form."""
    if flops == truth:
        return "exact"
    if not truth:
        return f"{flops:,} FLOPs too many"
    if not flops:
        return "0: not seen"
    percent = 100 * (flops - truth) / truth
    digits = 0 if abs(percent) >= 10 else 1 if abs(percent) >= 1 else 3
    return f"{percent:+.{digits}f} %"


def cell(result: dict[str, Any], case: Case, column: str) -> str:
    """One cell: the error of the FLOPs a tool prints, and of its MACs where those say something else."""
    if "error" in result:
        said = re.sub(r"[|`<>\n]", " ", result["error"])
        return said if len(said) <= 60 else said[:57] + "..."
    truth = getattr(case, column)
    shown = error_of(result[column], truth)
    macs = result.get(f"macs_{column}")
    if macs is None or (said := error_of(macs, truth)) == shown:
        return shown
    return f"{shown} (MACs: {said})"


def right(result: dict[str, Any], case: Case, column: str) -> bool:
    """Whether a tool's FLOPs, or else its MACs, are those of the closed form."""
    return getattr(case, column) in (result.get(column), result.get(f"macs_{column}"))


def failures(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Rows of gpuprof that are not exact, or exact only because an operator has no rule."""
    for name, result in results.items():
        for column in columns_of(CASES[name]):
            if "error" in result or result[column] != getattr(CASES[name], column):
                yield f"{name}, {COLUMNS[column].lower()}: {cell(result, CASES[name], column)}"
        if result.get("uncounted"):
            yield f"{name}: operators without a rule: {', '.join(result['uncounted'])}"


def markdown(found: dict[str, dict[str, dict[str, Any]]], facts: dict[str, Any]) -> str:
    """The page: how it was made, the two tables, how to read them."""
    lines = [
        "# Counters against closed forms",
        "",
        f"`{facts['command']}`, on {facts['device']}, {facts['date']}. "
        + ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        + ". This page is written by that command; `--json FILE` has the raw counts.",
        "",
        "Each cell is the error of a tool's FLOPs against a closed form that the script derives by hand. The "
        "convention is `full`: one multiply-accumulate (MAC) is 2 FLOPs, attention is the whole square also where it "
        "is causal, elementwise work and lookups are 0. Backward is what autograd has to compute: nothing for frozen "
        "weights and for inputs without gradient.",
        "",
    ]
    lines += [f"- **{tool}**: {'; '.join(TOOLS[tool].notes)}." for tool in found]
    lines += [
        "",
        "Where a tool prints FLOPs and MACs that say different things, both are shown, MACs doubled: DeepSpeed and "
        "calflops add elementwise work to their FLOPs, which is another convention rather than a mistake; ptflops adds "
        "it to its MACs. Layers have no bias. A tool that raises says so. fvcore can list operators that it does not "
        "know (`unsupported_ops()`), gpuprof always does; FlopCounterMode, DeepSpeed and calflops leave them out "
        "without a word.",
    ]
    for section, about in SECTIONS.items():
        if not any(CASES[name].section == section for name in next(iter(found.values()))):
            continue
        lines += ["", f"## {section}", *(["", about] if about else [])]
        for column, title in COLUMNS.items():
            lines += _table(found, section, column, title)
    return "\n".join(lines) + "\n"


def columns_of(case: Case) -> list[str]:
    """The tables that a case is in."""
    return [name for name in COLUMNS if not (case.training_only and name == "forward")][: 1 if case.forward_only else 2]


def _table(found: dict[str, dict[str, dict[str, Any]]], section: str, column: str, title: str) -> Iterator[str]:
    """One table: the cases of a section in a column, and how many of them each tool has right."""
    known = next(iter(found.values()))
    names = [name for name in known if CASES[name].section == section and column in columns_of(CASES[name])]
    yield from (
        "",
        f"### {title}",
        "",
        "| model | FLOPs | " + " | ".join(found) + " |",
        "|---|---:|" + "---|" * len(found),
    )
    for name in names:
        cells = [cell(found[tool][name], CASES[name], column) for tool in found]
        yield f"| {name} | {getattr(CASES[name], column):,} | " + " | ".join(cells) + " |"
    exact = [
        str(sum(right(found[tool][name], CASES[name], column) for name in names))
        if any("error" not in found[tool][name] or not found[tool][name]["error"].startswith("not ") for name in names)
        else "none measured"
        for tool in found
    ]
    yield f"| **exact, in FLOPs or MACs** | of {len(names)} | " + " | ".join(f"**{n}**" for n in exact) + " |"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default=",".join(TOOLS), help="which tools, comma-separated (default: all)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw counts here")
    parser.add_argument("--limit", type=float, default=90, metavar="S", help="seconds per tool and case (default: 90)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=json.loads, default=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.tools = args.tools.split(",")
    if unknown := sorted(set(args.tools) - set(TOOLS)):
        parser.error(f"no tool named {', '.join(unknown)}: known are {', '.join(TOOLS)}")
    if "gpuprof" not in args.tools:
        args.tools.insert(0, "gpuprof")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.worker:
        return worker(args.worker, args.cases, args.json)
    given = sys.argv[1:] if argv is None else argv
    facts = {
        "command": shlex.join(["python", "scripts/bench_accuracy.py", *given]),
        "device": f"CPU ({cpu_name()})",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {TOOLS[tool].package: installed(tool) or "not installed" for tool in args.tools if tool != "FlopCounterMode"},
    }
    found = {}
    for tool in args.tools:
        start = time.monotonic()
        found[tool] = in_children(tool, args.cases, args.limit)
        print(f"{tool}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    page = markdown(found, facts)
    if args.markdown:
        args.markdown.write_text(page)
    else:
        print(page, end="")
    if args.json:
        cases = {
            name: {
                "closed_form": {"forward": CASES[name].forward, "both": CASES[name].both},
                "parts": CASES[name].parts,
            }
            | {"tools": {tool: found[tool][name] for tool in found}}
            for name in args.cases
        }
        args.json.write_text(json.dumps(facts | {"cases": cases}, indent=1) + "\n")
    wrong = list(failures(found["gpuprof"]))
    for line in wrong:
        print(f"gpuprof is wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
