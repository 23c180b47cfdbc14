"""What torch's own counter, which needs tabulate, prints of a training step: `python count_flops.py > report.txt`."""

import torch
from own_model import WORDS, Model
from torch.utils.flop_counter import FlopCounterMode

model = Model()
with FlopCounterMode(depth=4):
    model(torch.randint(WORDS, (4, 128))).mean().backward()
