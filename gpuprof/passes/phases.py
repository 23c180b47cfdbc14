"""Which phase of the step is running: forward, backward, optimizer or other.

One mechanism for our own steps and for a user's: a call of the model, or of one of its direct children where a step
calls these one by one, opens the forward; `torch.autograd`'s way into the engine opens and closes the backward;
`torch.optim`'s global hooks the optimizer. What the loss needs after the model's call is still forward.
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
        around: what the step comes back to after a backward; an optimizer may call for one of its own (L-BFGS).
    """

    name: str = "forward"
    keeps_graph: bool = False
    around: str = "other"


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

    autograd: Any = torch.autograd
    # what both backward and grad call, also when they were imported by name
    run_backward = autograd._engine_run_backward

    def backward(outputs: Any, gradients: Any, keep: bool, create: bool, *args: Any, **kwargs: Any) -> Any:
        if in_backward():  # a checkpoint's own backward inside the backward
            return run_backward(outputs, gradients, keep, create, *args, **kwargs)
        phase.keeps_graph = create
        enter("backward")
        try:
            return run_backward(outputs, gradients, keep, create, *args, **kwargs)
        finally:
            enter(phase.around)

    def optimizer_starts(*_: Any) -> None:
        phase.around = "optimizer"
        enter("optimizer")

    def optimizer_ends(*_: Any) -> None:
        phase.around = "other"
        enter("other")

    def forward_starts(*_: Any) -> None:
        if torch.compiler.is_compiling():  # a branch of torch.cond: the forward has begun around it
            return
        if not in_backward() and phase.name != "forward":
            enter("forward")

    handles = [
        register_optimizer_step_pre_hook(optimizer_starts),
        register_optimizer_step_post_hook(optimizer_ends),
    ]
    hidden = inside_compiled(model)
    handles += [
        module.register_forward_pre_hook(forward_starts)
        for module in (model, *model.children())
        if module not in hidden
    ]
    autograd._engine_run_backward = backward
    try:
        yield phase
    finally:
        autograd._engine_run_backward = run_backward
        for handle in handles:
            handle.remove()
