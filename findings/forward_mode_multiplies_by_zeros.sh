#!/usr/bin/env bash
# Forward-mode differentiation multiplies the input by a matrix of zeros in each layer, as the weights have no tangent.
#
# Expected: torch.func.jvp of a linear layer costs two products, the value's and the tangent's: x W and t W. What has no tangent has
#   no part in it, as torch has tensors that are zero without storage (_efficientzerotensor) for it; in the backward, what needs no gradient
#   costs nothing.
# Happens: the product rule is run in full: x W, t W and x 0, where the zeros are made dense and multiplied. So jvp of anything
#   made of linear layers and convolutions costs three forwards, as much as a forward and a backward of all; torch.autograd.forward_ad
#   the same. A Jacobian by jacfwd pays for it once, for its tangents are one batch.
# Who meets it: whoever chooses forward mode for its cost: directional derivatives, forward gradients, Hessian products by forward over
#   reverse. And whoever takes FLOPs of a jvp as two forwards.
# Versions: torch 2.13.0, CPU; seen on 2026-11-29.
# Source: tools/autograd/derivatives.yaml, mm; aten/src/ATen/ZeroTensorFallback.cpp
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import torch
from torch.autograd import forward_ad
from torch.func import jacfwd, jvp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)


class Zeros(TorchDispatchMode):
    """Counts products, and those of which a factor is nothing but zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.convolution.default):
            factors = args[1:] if func is torch.ops.aten.addmm.default else args[:2]
            empty = any(not factor.detach().numpy().any() for factor in factors)
            found.append("by zeros" if empty else "real")
        return func(*args, **(kwargs or {}))


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def dual(model, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, x)))


torch.manual_seed(0)
linear = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
mlp = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).requires_grad_(False)
convolution = torch.nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
for name, model, x in (
    ("linear", linear, torch.randn(32, 64)), ("mlp", mlp, torch.randn(32, 64)), ("convolution", convolution, torch.randn(2, 8, 16, 16)),
):
    once = flops(lambda: model(x))
    forward_mode, by_dual = flops(lambda: jvp(model, (x,), (x,))), flops(lambda: dual(model, x))
    print(f"{name}: forward {once:,} FLOPs, jvp {forward_mode / once:.2f} x, forward_ad {by_dual / once:.2f} x")
    assert forward_mode == by_dual == 3 * once, "that has changed"
found = []
with Zeros():
    dual(linear, torch.randn(32, 64))
print("products of a linear layer:", found)
assert sorted(found) == ["by zeros", "real", "real"], "that has changed"
vector, once = torch.randn(64), flops(lambda: linear(torch.randn(64)))
whole = flops(lambda: jacfwd(linear)(vector))
print(f"jacfwd with 64 tangents: {whole / once:.0f} forwards of a vector")
assert whole == (64 + 2) * once, "that has changed"
PYTHON
echo "as described"
