"""How fast the CPU is while steps are timed: a product of matrices that is always the same, between the steps.

A CPU clocks as it likes, and on a shared host it waits for its neighbours; no counter says so without rights. What
slows the step slows this product too, so that a launch in a slow hour can be told from code that got slower. A GPU has
its SM clock for that, and nothing of ours runs on it between the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIZE = 512
"""Rows and columns: 2.7e8 FLOPs, and 3 MiB, more than a core's own cache, for a step leans on the shared one too."""

SHARE = 0.05
"""Of the time, at most so much is spent on it."""


def reference_product() -> Callable[[], float | None]:
    """Make a stopwatch of the product, float32, on as many threads as the step has.

    Returns:
        To be called between steps: makes the product and gives its seconds, or None where it is too soon for another.
    """
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=random, dtype=torch.float32, device="cpu") for _ in range(2))
    out = left @ right
    due = time.perf_counter()

    def measure() -> float | None:
        nonlocal due
        begin = time.perf_counter()
        if begin < due:
            return None
        torch.mm(left, right, out=out)
        end = time.perf_counter()
        due = end + (end - begin) / SHARE
        return end - begin

    return measure
