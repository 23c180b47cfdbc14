"""Which phase of the step is running: forward, backward, optimizer or other.

One mechanism for our own steps and for a user's: a call of the model, or of one of its direct children where a step
calls these one by one, opens the forward; `torch.autograd`'s way into the engine opens and closes the backward;
`torch.optim`'s global hooks the optimizer. What the loss needs after the model's call is still forward, and so is what
goes on after a gradient that has a graph of its own (``create_graph=True``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gpuprof.attribution import in_backward, inside_compiled
from gpuprof.calls import calls_through
from gpuprof.undo import patched, undoing
from gpuprof.workload import Workload


@dataclass
class Phase:
    """The phase that runs now.

    Attributes:
        name: forward, backward, optimizer or other.
        keeps_graph: the running backward builds a graph of itself (``create_graph=True``).
        open: phases that are open, the outermost first. They nest: an optimizer may call for a backward (L-BFGS), and
            a hook in a backward may step an optimizer.
    """

    name: str = "forward"
    keeps_graph: bool = False
    open: list[str] = field(default_factory=lambda: ["other"])

    def start(self) -> None:
        """A step starts, in the forward."""
        self.name, self.keeps_graph, self.open = "forward", False, ["other"]


@contextmanager
def observed_phases(workload: Workload, changed: Callable[[str], None] | None = None) -> Iterator[Phase]:
    """Keep track of the phase, and call ``changed(name)`` at every change. The step starts in ``forward``.

    Everything is put back afterwards, also after an exception.
    """
    phase = Phase()

    def enter(name: str) -> None:
        phase.name = name
        if changed is not None:
            changed(name)

    def begin(name: str) -> None:
        phase.open.append(name)
        enter(name)

    def end(name: str, after: str | None = None) -> None:
        if name in phase.open:  # with what an exception, which somebody caught, left open inside
            while phase.open.pop() != name:
                pass
        enter(after or phase.open[-1])

    autograd: Any = torch.autograd
    # what both backward and grad call, also when they were imported by name
    run_backward = autograd._engine_run_backward

    def backward(outputs: Any, gradients: Any, keep: bool, create: bool, *args: Any, **kwargs: Any) -> Any:
        if in_backward():  # a checkpoint's own backward inside the backward
            return run_backward(outputs, gradients, keep, create, *args, **kwargs)
        phase.keeps_graph = create
        before = phase.name
        begin("backward")
        try:
            return run_backward(outputs, gradients, keep, create, *args, **kwargs)
        finally:
            end("backward", after=before if create else None)  # with a gradient as part of the loss that goes on

    def optimizer_starts(*_: Any) -> None:
        begin("optimizer")

    def optimizer_ends(*_: Any) -> None:
        end("optimizer")

    def forward_starts(_: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not in_backward() and phase.name != "forward":
            enter("forward")
        return call(*args, **kwargs)

    calling: list[torch.nn.Module] = []
    if workload.description.get("step") == "given":  # gpuprof's own calls its model before all else, and never again
        model = workload.model
        hidden = inside_compiled(model)
        calling = [module for module in dict.fromkeys((model, *model.children())) if module not in hidden]
    with (
        undoing() as undo,
        patched(autograd, {"_engine_run_backward": backward}),
        calls_through(forward_starts, calling),
    ):
        undo(register_optimizer_step_pre_hook(optimizer_starts).remove)
        undo(register_optimizer_step_post_hook(optimizer_ends).remove)
        yield phase
