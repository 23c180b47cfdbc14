"""What `result_of` says of a call is what torch makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpuprof.theory import TensorSpec
from gpuprof.theory.priced import tensor_specs
from gpuprof.theory.results import result_of
from gpuprof.theory.results.base import broadcast, promoted
from gpuprof.theory.rules import MISSING, Missing

T = TensorSpec
NUMBER = Missing(number=True)
x, y, z = torch.randn(2, 3, 8, 8), torch.randn(3, 1, 8), torch.rand(2, 3, 8, 8)
whole, flags, half = torch.arange(12).reshape(3, 4), torch.tensor([True, False]), torch.randn(4, 4).bfloat16()
a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)


DTYPES = "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool".split()
NUMBERS = {getattr(torch, name): number for number, name in enumerate(DTYPES)} | {torch.bfloat16: 15}
"""torch's numbers of dtypes, as c10/core/ScalarType.h has them."""


def plain(value):
    """An argument or a result as a trace tells it, which has no texts, devices and layouts."""
    if isinstance(value, torch.Tensor):
        return T(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    return (
        NUMBERS[value]
        if isinstance(value, torch.dtype)
        else value
        if isinstance(value, (int, float, complex))
        else None
    )


class Held(TorchDispatchMode):
    """Holds every call against `result_of`: arguments in the order of the schema with their defaults, as in a trace."""

    def __init__(self):
        super().__init__()
        self.unknown, self.wrong, self.held = set(), [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        given = tuple(
            plain(args[at] if at < len(args) else kwargs.get(argument.name, argument.default_value))
            for at, argument in enumerate(func._schema.arguments)
        )
        said = result_of(func._schema.name, given, "cpu")
        if said is MISSING:
            self.unknown.add(func._schema.name)
            return made
        real, found = tensor_specs((plain(made),)), tensor_specs((said,))
        if len(real) == len(found):  # a factory's default dtype is nobody's to tell
            real = [spec if each.dtype else spec._replace(dtype="") for spec, each in zip(real, found, strict=True)]
        self.held += 1
        if real != found:
            self.wrong.append((func._schema.name, given, found, real))
        return made


def backward(made):
    """Of a sum over it, twice on the way so that no gradient is expanded from a scalar."""
    (made * 1.5).sum().backward()


GROUPS = {
    "products": lambda: [
        backward(a @ b), torch.addmm(b[0], a, b), torch.baddbmm(x[0], x[0], x[0]), torch.addbmm(x[0, 0], x[0], x[0]),
        torch.mv(a, b[:, 0]), torch.dot(a[0], a[1]), torch.addmv(a[:, 0], a, b[:, 0]), F.linear(x, y[:2, 0]),
        torch._int_mm(torch.ones(32, 32).char(), torch.ones(32, 16).char()), torch.cdist(x[0], y.expand(3, 30, 8)),
        F.bilinear(a, a, torch.randn(6, 4, 4)), torch.linalg.cholesky(torch.eye(3)), torch.linalg.inv(torch.eye(3)),
        torch.linalg.solve_triangular(torch.eye(8), x, upper=False), torch.einsum("abcd,abde->abce", x, x),
    ],
    "convolutions": lambda: [
        backward(net(x))
        for net in (
            nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.Conv2d(3, 4, (3, 1), padding=(2, 0), dilation=2, bias=False),
            nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), nn.ConvTranspose2d(3, 6, (2, 3), (3, 2), groups=3, dilation=(2, 1)),
            nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 4, 3, padding=1), nn.ConvTranspose1d(5, 2, 4, 3)),
            nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, (1, 3, 3), (1, 2, 1))),
            nn.Conv2d(3, 3, 8, padding="same"),
        )
    ],
    "attention": lambda: [
        backward(F.scaled_dot_product_attention(q, k, k, is_causal=causal))
        for q, k, causal in ((x.clone().requires_grad_(), x, True), (x.clone().requires_grad_(), z[:, :, :5], False))
    ],
    "elementwise": lambda: [
        x + y, x - 2, 2 - whole, whole + 1.5, whole + half[:3], half * x[0, 0, :4, :4], x * torch.tensor(2.0).double(),
        whole * torch.tensor(True), flags + 1, whole / 2, x / y, whole // 2, whole % 3, x**2, 2**whole, half.sqrt(),
        whole.exp(), x.sigmoid().tanh(), x > y, whole == 3, ~flags, -x, x.abs(), torch.where(flags, 1.0, whole[:2, :1]),
        torch.where(x > 0, x, y), x.clamp(0, 1), whole.clamp(min=1.5), torch.maximum(x, y), torch.addcmul(x, y, z),
        torch.lerp(x, z, 0.5), x.masked_fill(x > 0, 0), F.gelu(x), F.silu(half), F.dropout(x), F.glu(x, 3),
        x.softmax(1), half.log_softmax(0), x.isnan(), torch.atan2(x, y), torch.bitwise_and(whole, 3), x.round(),
        x.clone().add_(1).mul_(y).relu_(), (1j * x).real, torch.logical_and(flags, flags), torch.rsub(whole.float(), 1),
    ],
    "reductions": lambda: [
        x.sum(), whole.sum(), flags.sum(0), x.sum((1, -1)), x.sum(1, keepdim=True), half.sum(0, dtype=torch.float32),
        x.mean(), x.mean((2, 3), keepdim=True), x.amax(1), x.max(), x.max(1), x.max(2, keepdim=True), x.argmax(),
        x.argmax(1), x.argmin(-1, keepdim=True), flags.any(), (x > 0).all(1), x.var(1), x.std(),
        torch.var_mean(x, (1, 2)),
        x.cumsum(1), flags.cumsum(0), x.logsumexp((0, 1)), x.prod(1), x.norm(), x.norm(dim=1), whole.prod(),
        torch.linalg.vector_norm(x, dim=(1, 2)), x.topk(2, 1), x.sort(1), torch.sort(x, stable=True, dim=1),
        x.cummax(0), x.median(), torch.histc(x, 7),
    ],
    "norms": lambda: [
        *(backward(net(x.clone().requires_grad_())) for net in (
            nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval(), nn.LayerNorm((8, 8)),
            nn.LayerNorm(8, elementwise_affine=False), nn.GroupNorm(3, 3), nn.InstanceNorm2d(3, affine=True),
        )),
        nn.LayerNorm(4).bfloat16()(half),
    ],
    "windows": lambda: [
        *(backward(net(x.clone().requires_grad_())) for net in (
            nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((2, 3), dilation=(1, 2)),
            nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveAvgPool2d((3, 2)),
            nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=1.7), nn.Upsample((5, 9), mode="bilinear"),
            nn.Upsample(scale_factor=2, mode="bicubic"),
        )),
        nn.MaxPool3d(2)(x), nn.AvgPool3d((1, 2, 2))(x),
    ],
    "copies": lambda: [
        x.clone(), x.half(), x.to(torch.bfloat16).float(), torch.cat([x, z], 1), torch.cat([whole, whole.float()]),
        torch.cat([torch.tensor([]), x[0, 0, 0]]), torch.stack([x, z], -1), x.flip(0), x.roll(1), y.repeat(2, 1, 3, 1),
        F.pad(x, (1, 2, 0, 3)), x.index_select(1, torch.tensor([0, 2, 2])), x.gather(3, whole[None, None, :3, :3] % 8),
        F.embedding(whole, torch.ones(12, 5)), x.tril(),
        x.scatter(0, whole[None, None] % 2, 1.0),
        backward(F.embedding(whole % 3, a)), backward(a[0:2, 1].clone()), backward(b.diagonal().clone()),
    ],
    "views": lambda: [
        x.view(6, -1), x.reshape(-1), y.expand(2, -1, 8, 8), x.permute(3, 0, 2, 1), x.transpose(1, -1),
        a.t(), a.detach(), x.unsqueeze(-1), x.unsqueeze(0), y.squeeze(), y.squeeze(1),
        y.squeeze((0, 1)), x.select(1, -1),
        x[:, 1:], x[:, :, ::3], x[..., -3:], x.split(3, 2), x.split([1, 2], 1), x.unbind(1),
        x.chunk(3, 3), x.as_strided((2, 2), (1, 2)),
        x.diagonal(1, 2, 3), x.diagonal(-2, -1, 0), torch.tensor(1.0).squeeze(0), torch.tensor(1.0).t(),
    ],
    "made of nothing": lambda: [
        torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 3),
        torch.full((2,), 1.5), torch.full((2,), True), torch.rand(2, 2), torch.randn(3), torch.zeros_like(half),
        torch.ones_like(half, dtype=torch.float32), torch.full_like(whole, 1), x.new_zeros(3), x.new_full((2,), 1),
        torch.arange(5), torch.arange(2, 9, 3), torch.arange(0, 1, 0.3), torch.arange(4, dtype=torch.float32),
        torch.empty(3, 3),
    ],
    "losses": lambda: [
        F.mse_loss(x, z), F.mse_loss(x, z, reduction="none"), F.smooth_l1_loss(x, z), F.huber_loss(x, z),
        backward(F.cross_entropy(a, torch.tensor([0, 1, 2]))), F.nll_loss(a, torch.tensor([0, 1, 2]), reduction="none"),
        F.nll_loss(x, torch.ones(2, 8, 8).long()),
        F.binary_cross_entropy(z, z), F.binary_cross_entropy_with_logits(x, z), F.soft_margin_loss(x, z),
        backward(F.mse_loss(a, torch.ones(3, 4))), backward(F.binary_cross_entropy_with_logits(a, torch.ones(3, 4))),
    ],
    "cells": lambda: [backward(nn.LSTMCell(4, 8)(a)[0]), backward(nn.GRUCell(4, 8)(a))],
    "lists": lambda: [
        torch._foreach_add([x, y], 1), torch._foreach_mul_([x.clone()], 2.0), torch._foreach_norm([x, y]),
        torch._foreach_sqrt([z]),
        *(
            optimizer([nn.Parameter(torch.ones(2), requires_grad=True)]).step(lambda: torch.tensor(0.0))
            for optimizer in (lambda p: torch.optim.AdamW(p, fused=True), lambda p: torch.optim.SGD(p, fused=True))
        ),
    ],
}  # fmt: skip
NOT_TOLD = {
    "elementwise": {"aten::view_as_real"},
    "products": {"aten::eye", "aten::_linalg_check_errors"},
    "lists": {"profiler::_record_function_enter_new", "profiler::_record_function_exit"},
}
"""Operators of a group whose result is not told; that of every other one is."""


@pytest.mark.parametrize("group", GROUPS)
def test_it_is_what_torch_makes(group):
    with Held() as held:
        GROUPS[group]()

    assert held.wrong == []
    assert held.unknown == NOT_TOLD.get(group, set())
    assert held.held


ATEN = torch.ops.aten
Q, K, V = (2, 4, 16, 8), (2, 4, 12, 8), (2, 4, 12, 8)
ON_A_GPU = {
    "flash": (ATEN._scaled_dot_product_flash_attention.default, Q, K, V, 0.0, True, False),
    "efficient": (ATEN._scaled_dot_product_efficient_attention.default, Q, K, (2, 4, 12, 6), None, True, 0.0, True),
    "efficient without a backward": (ATEN._scaled_dot_product_efficient_attention.default, Q, K, V, None, False),
    "cudnn": (ATEN._scaled_dot_product_cudnn_attention.default, Q, K, V, None, True, 0.0, True, False),
    "flash, packed layout": (
        ATEN._flash_attention_forward.default,
        *[(2, 16, 4, 8)] * 3, None, None, 16, 16, 0.0, True, False,
    ),
    "efficient, backward": (
        ATEN._scaled_dot_product_efficient_attention_backward.default,
        Q, Q, K, V, (2, 4, 16, 12), Q, (2, 4, 32), (), (), 0.0, [True, False, True, True],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_A_GPU)
def test_attention_of_a_gpu(name):
    function, *shapes = ON_A_GPU[name]
    args = [torch.empty(arg, dtype=torch.bfloat16, device="meta") if isinstance(arg, tuple) else arg for arg in shapes]

    said = result_of(function._schema.name, tuple(map(plain, args)), "cuda")

    assert tensor_specs((said,)) == tensor_specs((plain(function(*args)),))


def test_a_gpu_keeps_the_statistics_of_a_norm_in_float32():
    said = result_of("aten::native_layer_norm", (T((2, 5, 8), "bfloat16"), (8,), None, None, 1e-5), "cuda")

    assert said == (T((2, 5, 8), "bfloat16"), T((2, 5, 1), "float32"), T((2, 5, 1), "float32"))


@pytest.mark.parametrize("first", NUMBERS)
def test_dtypes_promote_as_in_torch(first):
    """Every pair, with dimensions, without, and numbers."""
    some = torch.empty(2, dtype=first)
    for second in NUMBERS:
        for other in (torch.empty(2, dtype=second), torch.empty((), dtype=second)):
            assert promoted(plain(some), plain(other)) == str(torch.result_type(some, other))[6:], (first, second)
    for number in (True, 2, 1.5, 1j):
        assert promoted(plain(some), number) == str(torch.result_type(some, number))[6:], (first, number)


def test_shapes_that_do_not_broadcast_are_an_error():
    assert broadcast((3, 1), (2, 1, 4), ()) == (2, 3, 4)
    with pytest.raises(ValueError, match="do not broadcast"):
        broadcast((3,), (4,))


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten::convolution", (T((1, 3, 8, 8)), T((4, 3, 1, 1)), None, *[MISSING] * 6)),
        ("aten::sum", (T((2, 3)), MISSING, NUMBER, MISSING)),
        ("aten::view", (T((2, 3)), MISSING)),
        ("aten::cat", (MISSING, 0)),
        ("aten::_scaled_dot_product_efficient_attention", (*[T((1, 2, 8, 8))] * 3, None, NUMBER, 0.0, False)),
        ("aten::mm", (T((2, 3)),)),  # arguments of no call that there can be
        ("aten::conv_of_tomorrow", (T((2, 3)),)),
        ("mylib::relu_", (T((2, 3)),)),
    ],
)
def test_what_nobody_knows_is_missing(op, args):
    assert result_of(op, args, "cuda") is MISSING


def test_a_number_that_nobody_recorded_changes_no_floating_dtype():
    half, whole = T((4,), "float16"), T((4,), "int64")

    assert result_of("aten::mul", (half, NUMBER), "cuda") == half
    assert result_of("aten::mul", (whole, NUMBER), "cuda") == T((4,), "")
    assert result_of("aten::relu_", (half,), "cuda") == half
    assert result_of("aten::_foreach_add_", ((half, half), NUMBER), "cuda") is None
