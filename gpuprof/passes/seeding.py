"""The same random numbers in every step, whoever draws them."""

from __future__ import annotations

import random

import torch

from gpuprof.late import np


def seed_all(seed: int) -> None:
    """Seed torch on every device, Python and numpy's global generator: a forward may draw from any of them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
