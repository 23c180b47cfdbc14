"""Where the phases of a step begin, by the events of its host."""

from __future__ import annotations

import re
from bisect import bisect_right

from gpuprof.traces.events import NODE, PHASE, PHASE_MARK, RANGE, Event

SERVED = re.compile(r"execute_(?:\d+_)?context_(\d+)\(.*\)_generation_(\d+)\(.*\)").fullmatch
"""How vLLM's worker names a batch: by how many requests are in their context (the prompt), and how many generate."""


def marked(host: list[Event]) -> list[tuple[int, str]]:
    """Where phases begin, as gpuprof marked them."""
    return sorted((event.start, event.name[len(PHASE_MARK) :]) for event in host if event.kind == PHASE)


def backwards(host: list[Event]) -> list[tuple[int, str]]:
    """Where nodes begin to run, on any thread, and where none runs any more."""
    marks: list[tuple[int, str]] = []
    reach = 0
    for start, end in sorted((event.start, event.end) for event in host if event.kind == NODE):
        if marks and start <= reach:
            marks.pop()
        else:
            marks.append((start, "backward"))
        reach = max(reach, end)
        marks.append((reach, "forward"))
    return marks


def served(host: list[Event]) -> list[tuple[int, str]]:
    """Where vLLM runs a batch of prefills alone, or of decodes alone, and where it ends; one of both is neither."""
    marks: list[tuple[int, str]] = []
    for event in host:
        found = SERVED(event.name) if event.kind == RANGE else None
        context, generation = map(int, found.groups()) if found else (0, 0)
        if bool(context) != bool(generation):
            marks += [(event.start, "prefill" if context else "decode"), (event.end, "forward")]
    return sorted(marks)


def last_backward(marks: list[tuple[int, str]], optimizer: Event) -> int:
    """When the last node ended that ran in the step of an optimizer, 0 if none did.

    Then it was given a closure that computes the loss and its gradients, as Lightning does, and until then what makes
    nodes of autograd is a forward: the optimizer's own work makes none.
    """
    place = bisect_right(marks, (optimizer.end, "forward"))
    return marks[place - 1][0] if place and marks[place - 1][0] > optimizer.start else 0
