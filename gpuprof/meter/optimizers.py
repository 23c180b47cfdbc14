"""The optimizer's step ends a step of the loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from gpuprof.errors import GpuprofError


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of torch in what a loop or a framework calls one.

    Args:
        given: None, an optimizer, one that a framework has wrapped (its ``optimizer``), or several of them.

    Raises:
        GpuprofError: something else.
    """
    if given is None:
        return []
    one = given
    while isinstance(inner := getattr(one, "optimizer", None), torch.optim.Optimizer) or hasattr(inner, "optimizer"):
        one = inner
    if isinstance(one, torch.optim.Optimizer):
        return [one]
    if isinstance(given, Iterable) and not isinstance(given, (str, dict, torch.Tensor)):
        return [each for item in given for each in optimizers_of(item)]
    raise GpuprofError(
        f"the meter needs a torch.optim.Optimizer, several of them or None, and not {type(given).__name__}: its step "
        "is where a step of the loop ends"
    )
