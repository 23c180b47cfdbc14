"""Which phase of the step is running: forward, backward, optimizer or other, and in a generation which part of it.

One mechanism for our own steps and for a user's: a call of the model, or of one of its direct children where a step
calls these one by one, opens the forward; `torch.autograd`'s way into the engine opens and closes the backward;
`torch.optim`'s global hooks the optimizer, in which a closure that computes the loss and its gradients (L-BFGS, and all
that Lightning runs) starts as the step does. What the loss needs after the model's call is still forward, and so is
what goes on after a gradient that has a graph of its own (``create_graph=True``). In a generation every call of the
model and of its encoder begins a part (see `gpuprof.passes.generation`), which lasts until the next.
"""

from __future__ import annotations

import threading
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
from gpuprof.calls import Around, calls_through
from gpuprof.passes.generation import Part, Parts
from gpuprof.schema import FORWARD
from gpuprof.undo import patched, undoing
from gpuprof.workload import Workload


@dataclass
class Phase:
    """The phase that runs now.

    Attributes:
        name: forward, backward, optimizer or other; of a generation encode, prefill or decode.
        keeps_graph: the running backward builds a graph of itself (``create_graph=True``).
        open: phases that are open, the outermost first. They nest: an optimizer may call for a backward (L-BFGS), and
            a hook in a backward may step an optimizer.
        first: the phase in which a step starts.
        parts: of a generation, those of the step that have begun.
        generating: of a generation, what tells its parts.
        changed: called with the name at every change.
    """

    name: str = "forward"
    keeps_graph: bool = False
    open: list[str] = field(default_factory=lambda: ["other"])
    first: str = "forward"
    parts: list[Part] = field(default_factory=list)
    generating: Parts | None = None
    changed: Callable[[str], None] | None = None

    def start(self) -> None:
        """A step starts."""
        self.name, self.keeps_graph, self.open, self.parts = self.first, False, ["other"], []

    def enter(self, name: str) -> None:
        """It is this one from now on, in what is open."""
        self.name = name
        if self.changed is not None:
            self.changed(name)

    def begin(self, name: str) -> None:
        """One opens, inside those that are open."""
        self.open.append(name)
        self.enter(name)

    def end(self, name: str, after: str | None = None) -> None:
        """One closes; it goes on in the one around it, or in another."""
        if name in self.open:  # with what an exception, which somebody caught, left open inside
            while self.open.pop() != name:
                pass
        self.enter(after or self.open[-1])


@contextmanager
def observed_phases(
    workload: Workload, changed: Callable[[str], None] | None = None, part: Around | None = None, here: bool = False
) -> Iterator[Phase]:
    """Keep track of the phase, and call ``changed(name)`` at every change, and where a part of a generation begins.

    The step starts in the forward, a generation in what its first part is taken for. Everything is put back afterwards,
    also after an exception.

    Args:
        workload: whose step is run.
        changed: see above.
        part: runs the calls that begin parts, when these have begun.
        here: a backward or an optimizer's step in another thread, autograd's own among them, is none of this step's.
    """
    thread = threading.get_ident()
    generating = Parts(workload) if workload.description.get("mode") == "generate" else None
    first = "forward" if generating is None else generating.first
    phase = Phase(first, first=first, generating=generating, changed=changed)

    def elsewhere() -> bool:
        return here and threading.get_ident() != thread

    around = _forwards(phase) if generating is None else _parts(phase, generating, part)
    autograd: Any = torch.autograd
    with (
        undoing() as undo,
        patched(autograd, {"_engine_run_backward": _backwards(phase, elsewhere, autograd._engine_run_backward)}),
        calls_through(around, _beginning(workload, generating)),
    ):
        starts, ends = _optimizers(phase, elsewhere)
        undo(register_optimizer_step_pre_hook(starts).remove)
        undo(register_optimizer_step_post_hook(ends).remove)
        yield phase


def _beginning(workload: Workload, generating: Parts | None) -> list[torch.nn.Module]:
    """Modules whose calls begin the forward or a part, none of them inside a compiled region."""
    model = workload.model
    calling: list[torch.nn.Module] = []
    if generating is not None:
        calling = generating.modules
    elif workload.description.get("step") == "given":  # gpuprof's own calls its model before all else, and never again
        calling = [model, *model.children()]
    hidden = inside_compiled(model) if calling else set()
    return [module for module in dict.fromkeys(calling) if module not in hidden]


def _forwards(phase: Phase) -> Around:
    """What runs around the calls that begin the forward."""

    def forward_starts(_: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not in_backward() and phase.name not in FORWARD:
            phase.enter("forward")
        return call(*args, **kwargs)

    return forward_starts


def _parts(phase: Phase, generating: Parts, part: Around | None) -> Around:
    """What runs around the calls that begin a part of a generation; ``part`` as for `observed_phases`."""
    inside = 0  # calls of what begins parts, in one another

    def part_starts(module: torch.nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal inside
        if not inside:
            if not phase.parts:
                generating.start()
            phase.parts.append(generating.part_of(module, args, kwargs))
            phase.enter(phase.parts[-1].phase)
        begins = not inside
        inside += 1
        try:
            return part(module, call, args, kwargs) if begins and part is not None else call(*args, **kwargs)
        finally:
            inside -= 1

    return part_starts


def _backwards(phase: Phase, elsewhere: Callable[[], bool], run_backward: Callable[..., Any]) -> Callable[..., Any]:
    """What stands for the way into the engine, which both backward and grad call, also when imported by name."""

    def backward(outputs: Any, gradients: Any, keep: bool, create: bool, *args: Any, **kwargs: Any) -> Any:
        if in_backward() or elsewhere():  # a checkpoint's own backward inside the backward
            return run_backward(outputs, gradients, keep, create, *args, **kwargs)
        phase.keeps_graph = create
        before = phase.name
        phase.begin("backward")
        try:
            return run_backward(outputs, gradients, keep, create, *args, **kwargs)
        finally:
            phase.end("backward", after=before if create else None)  # with a gradient as part of the loss that goes on

    return backward


def _optimizers(phase: Phase, elsewhere: Callable[[], bool]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Hooks before and after the step of an optimizer; a closure that it is given starts as a step does."""

    def starts(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if elsewhere():
            return args, kwargs
        phase.begin("optimizer")
        if len(args) > 1:
            return (args[0], in_place(args[1]), *args[2:]), kwargs
        return args, kwargs | {"closure": in_place(kwargs["closure"])} if "closure" in kwargs else kwargs

    def in_place(closure: Any) -> Any:
        def forward_and_backward() -> Any:
            phase.begin("other")
            phase.enter("forward")
            try:
                return closure()
            finally:
                phase.end("other")

        return forward_and_backward if callable(closure) else closure

    def ends(*_: Any) -> None:
        if not elsewhere():
            phase.end("optimizer")

    return starts, ends
