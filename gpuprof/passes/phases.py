"""Which phase of the step is running: forward, backward, optimizer or other.

One mechanism for our own steps and for a user's: the first call of the model opens the forward, `torch.autograd`'s
entry points open and close the backward, `torch.optim`'s global hooks the optimizer. What the loss needs after the
model's call is still forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gpuprof.attribution import in_backward, inside_compiled


@dataclass
class Phase:
    """The phase that runs now.

    Attributes:
        name: forward, backward, optimizer or other.
        keeps_graph: the running backward builds a graph of itself (``create_graph=True``).
    """

    name: str = "forward"
    keeps_graph: bool = False


@contextmanager
def observed_phases(model: torch.nn.Module, changed: Callable[[str], None] | None = None) -> Iterator[Phase]:
    """Keep track of the phase, and call ``changed(name)`` at every change. The step starts in ``forward``.

    Everything is put back afterwards, also after an exception.
    """
    phase = Phase()

    def enter(name: str) -> None:
        phase.name = name
        if changed is not None:
            changed(name)

    def as_backward(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if in_backward():  # a checkpoint's own backward inside the backward
                return run(*args, **kwargs)
            enter("backward")
            phase.keeps_graph = bool(kwargs.get("create_graph"))
            try:
                return run(*args, **kwargs)
            finally:
                enter("other")

        return wrapped

    def forward_starts(*_: Any) -> None:
        if not in_backward() and phase.name != "forward":
            enter("forward")

    handles = [
        register_optimizer_step_pre_hook(lambda *_: enter("optimizer")),
        register_optimizer_step_post_hook(lambda *_: enter("other")),
    ]
    if model not in inside_compiled(model):
        handles.append(model.register_forward_pre_hook(forward_starts))
    backward, grad = torch.autograd.backward, torch.autograd.grad
    torch.autograd.backward, torch.autograd.grad = as_backward(backward), as_backward(grad)
    try:
        yield phase
    finally:
        torch.autograd.backward, torch.autograd.grad = backward, grad
        for handle in handles:
            handle.remove()
