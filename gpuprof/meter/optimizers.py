"""The optimizer's step ends a step of the loop: a hook tells of it, which is there only while a micro-batch runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    if isinstance(given, Iterable) and not isinstance(given, (str, dict)):
        return [each for item in given for each in optimizers_of(item)]
    raise GpuprofError(
        f"the meter needs a torch.optim.Optimizer, several of them or None, and not {type(given).__name__}: its step "
        "is where a step of the loop ends"
    )


class watched:  # noqa: N801 - a context, as those of contextlib
    """Call a function after each step of an optimizer, as long as the block is open.

    Args:
        optimizers: of which the first speaks: they step together.
        stepped: called after its step.
    """

    __slots__ = ("_handle", "_optimizers", "_stepped")

    def __init__(self, optimizers: list[torch.optim.Optimizer], stepped: Callable[..., None]) -> None:
        self._optimizers, self._stepped = optimizers, stepped

    def __enter__(self) -> None:
        self._handle = self._optimizers[0].register_step_post_hook(self._stepped) if self._optimizers else None

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
