"""Where an operator is booked: its owner and phase, as it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpuprof.attribution import NOWHERE, Ownership, Scope, in_backward
from gpuprof.passes.phases import Phase
from gpuprof.schema import GRADIENT_ALLREDUCE

_GRADIENTS = Scope(GRADIENT_ALLREDUCE)

_current_node, _current_backward = torch._C._current_autograd_node, torch._C._current_graph_task_id
_grad_enabled = torch.is_grad_enabled

_NUMBERLESS = 1 << 63
"""From there on are the numbers of nodes that have none, as AccumulateGrad."""


class Place:
    """Owner and phase of the operator that runs now."""

    def __init__(self, ownership: Ownership, phase: Phase, unit_of: Callable[[str], str | None]) -> None:
        self.ownership = ownership
        self._open = ownership.open_here()  # operators are seen on this thread alone
        self.phase = phase
        self._unit_of = unit_of
        self._labels: list[Scope | None] = []  # of each that is open the unit, or that of the one around
        self._units: dict[str, Scope] = {}
        self._last_owner = NOWHERE
        self._at: tuple[int, int] | None = None  # backward and number of the last node
        # what runs a backward: nothing, or the node that holds a checkpoint's own
        self._runners: dict[int, Scope] = {}

    def now(self, reduces: bool = False) -> tuple[Scope, str]:
        """What is booked now. It is asked of every operator: all in one piece, as calls take longer than what they do.

        Args:
            reduces: whether the operator is an all-reduce: a bucket of gradients is sent when the last of them is
                there, and that is not this one's module's work.
        """
        node, phase, running = _current_node(), self.phase.name, self._open
        if node is None or phase == "optimizer":  # which a hook may step in the middle of a backward
            scope = running[-1].scope if running else NOWHERE
        elif running and running[-1].in_backward:
            scope, phase = running[-1].scope, "recompute"
        else:
            at = _current_backward(), node._sequence_nr()
            if at != self._at:  # else one more operator of the same node
                self._at, self._last_owner = at, self._owner(*at)
            scope, phase = self._last_owner, "backward"
            if self.phase.keeps_graph:
                self.ownership.claim(scope)
            elif _grad_enabled():  # a function of somebody's own that runs its forward again
                phase = "recompute"
        if self._labels and self._labels[-1] is not None:
            return self._labels[-1], phase
        if reduces and phase == "backward" and (node is None or node._sequence_nr() >= _NUMBERLESS):
            return _GRADIENTS, phase
        return scope, phase

    def label_begins(self, label: str) -> None:
        """A label of anybody's: FSDP says in its own which unit it works for."""
        unit = self._unit_of(label)
        around = self._labels[-1] if self._labels else None
        self._labels.append(around if unit is None else self._units.setdefault(unit, Scope(unit)))

    def label_ends(self) -> None:
        """The last one that began ends."""
        if self._labels:
            self._labels.pop()

    def phase_changed(self, _: str) -> None:
        """An outermost backward begins or ends; what a hook does inside of one changes nothing here."""
        if in_backward():
            return
        self._last_owner, self._at = NOWHERE, None
        self._runners.clear()
        if self.phase.keeps_graph:
            self.ownership.claim(self.ownership.running())

    def _owner(self, backward: int, number: int) -> Scope:
        runner = self._runners.get(backward)
        if runner is None:
            runner = self._runners[backward] = self._last_owner
        if number >= _NUMBERLESS:  # AccumulateGrad has no number: it follows the node whose gradient it takes
            return self._last_owner
        return self.ownership.maker(self.ownership.thread(), number) or runner
