#!/usr/bin/env bash
# With activation checkpointing FlopCounterMode's counts per module no longer add up: layers have more than their block, or the block less.
#
# Expected: what a module does is in its own row and in that of each module around it, so the rows of a block's layers add up to the block's, as
#   they do without checkpoints. Checkpoints add the forward once more, and the same to each layer.
# Happens: in all the count is right, row by row it is not. Without reentry the second forward is run in the midst of the backward of the
#   block's last layer, which asks for it, so that layer's row has the second forward of all layers before it on top of its own: of three
#   alike, of which the last is spared its second forward, the rows are 4 + 4 + 5 where 4 + 4 + 3 ran, and the block's is 11. With
#   reentry the layers have 4 each, and the block that is checkpointed has 6, not 12: its backward is on the model's row
#   alone, as autograd enters it inside of another backward.
# Who meets it: whoever reads where a checkpointed model's FLOPs are, layer by layer, or subtracts a block's layers from the block.
#   Totals are sound. Mend: count without checkpoints.
# Versions: torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torch/utils/module_tracker.py; torch/utils/checkpoint.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
ROWS, WIDTH = 4, 8
PRODUCT = 2 * ROWS * WIDTH**2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x):
        return x + self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Net(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


# Products of a block, of its three layers (of each one in a forward and two in the backward), and of all three blocks.
for title, reentrant, expected in (
    ("no checkpoints", None, (9, 3, 3, 3, 27)),
    ("checkpoints without reentry", False, (11, 4, 4, 5, 33)),  # 11, 4, 4, 3 and 33 ran
    ("checkpoints with reentry", True, (6, 4, 4, 4, 36)),  # 12, 4, 4, 4 and 36 ran
):
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        Net(reentrant)(x).sum().backward()
    found = {name: sum(row.values()) // PRODUCT for name, row in counter.get_flop_counts().items()}
    for number in range(3):
        block, *layers = (found[f"Net.blocks.{number}{part}"] for part in ("", ".first", ".second", ".last"))
        print(f"{title}: {found['Global']} products in all; block {number} {block}, its layers {layers}")
        assert (block, *layers, found["Global"]) == expected, "that has changed"
PYTHON
echo "as described"
