#!/usr/bin/env bash
# In the backward torch's FlopCounterMode counts the weight gradient of a grouped convolution as if there were no groups.
#
# Expected: a backward is two forwards, the gradient of the input and that of the weight, whatever the groups: each weight takes part in as many
#   products as it did before. Forward and backward are counted by one file, so by one idea of a convolution.
# Happens: forward and input gradient are divided by the groups, the weight gradient is not. With 4 groups the backward has 1 + 4 times
#   the forward, and a depthwise convolution of C channels 1 + C times, the transposed one as well. So training a MobileNet block (expand to
#   192, depthwise 3 x 3, project) has 26.5 times the FLOPs of its forward rather than 3, nearly all of them in the layer that does least. A
#   convolution that is written as one per group and concatenated is counted right.
# Who meets it: whoever trains MobileNet, EfficientNet, ConvNeXt, a Conformer or a Mamba with its causal convolution, and takes FLOPs or MFU from the
#   counter, or from what is made of it (Lightning's measure_flops): they are as many times too high as the layers are grouped.
# Versions: torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torch/utils/flop_counter.py, conv_backward_flop, which has the groups among its arguments
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
SIDE = 20


def flops(model, channels=16):
    """FLOPs of the forward and of the backward of a batch of two, whose input wants a gradient."""
    x = torch.ones(2, channels, SIDE, SIDE, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = model(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


class Groups(nn.Module):
    """The same as a convolution with groups, written as one for each of them."""

    def __init__(self, groups):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(16 // groups, 32 // groups, 3, padding=1) for _ in range(groups))

    def forward(self, x):
        return torch.cat([part(piece) for part, piece in zip(self.parts, x.chunk(len(self.parts), dim=1), strict=True)], dim=1)


for groups in (1, 2, 4, 16):
    hand = 2 * 2 * SIDE**2 * 9 * 16 * 32 // groups  # a multiply-add being 2, at each of a batch's positions
    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        forward, backward = flops(kind(16, 32, 3, padding=1, groups=groups))
        print(f"{kind.__name__}, {groups} groups: {forward:,} forward, {backward:,} backward, {backward / forward:g} x")
        assert (forward, backward) == (hand, (1 + groups) * hand), "that has changed"
    assert flops(Groups(groups)) == (hand, 2 * hand), "that has changed"
print("one convolution for each group: backward 2 x forward")
INNER = 192
block = nn.Sequential(
    nn.Conv2d(32, INNER, 1), nn.ReLU(), nn.Conv2d(INNER, INNER, 3, padding=1, groups=INNER), nn.ReLU(), nn.Conv2d(INNER, 32, 1)
)
forward, backward = flops(block, 32)
depthwise = 2 * 2 * SIDE**2 * 9 * INNER
print(f"a block of MobileNet: {forward:,} forward, {forward + backward:,} trained, {(forward + backward) / forward:.1f} x")
assert backward == 2 * forward + (INNER - 1) * depthwise, "that has changed"
PYTHON
echo "as described"
