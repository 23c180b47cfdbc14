#!/usr/bin/env bash
# A complex convolution in torch is three real convolutions, not the four of the definition; a complex matmul is one product of
# complex numbers.
#
# Expected: (a + ib)(c + id) takes four products, so a complex convolution does 4 x the FLOPs of a real one of its sizes, as a
#   complex matmul does (8 M N K against 2 M N K).
# Happens: aten::convolution runs three times, on the real parts, on the imaginary parts and on their sums (Gauss's three products),
#   in the backward as well; nn.Linear of the same dtype runs one aten::addmm on complex tensors. So a count of 8 FLOPs per
#   multiply-accumulate is a third too high for what a complex convolution executes, and right for a matmul.
# Who meets it: whoever counts FLOPs or MFU of complex-valued networks, or compares a convolution of 1 x 1 with the matmul that
#   it is equal to.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: aten/src/ATen/native/Convolution.cpp, complex_convolution
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import collections

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if name in ("convolution", "convolution_backward", "addmm", "mm"):
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            self.calls[name, str(tensors[0].dtype)] += 1
        return func(*args, **(kwargs or {}))


def run(layer, *shape):
    x = torch.randn(shape, dtype=torch.complex64, requires_grad=True)
    with Seen() as seen:
        layer(x).abs().sum().backward()
    return dict(seen.calls)


print("torch", torch.__version__)
convolution = run(nn.Conv1d(4, 6, 1, dtype=torch.complex64), 2, 4, 8)
linear = run(nn.Linear(4, 6, dtype=torch.complex64), 16, 4)
print("Conv1d:", convolution)
print("Linear:", linear)
assert convolution == {("convolution", "torch.float32"): 3, ("convolution_backward", "torch.float32"): 3}
assert linear == {("addmm", "torch.complex64"): 1, ("mm", "torch.complex64"): 2}
PYTHON
