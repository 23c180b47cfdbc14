"""Where the phases of a step begin, by the events of its host."""

from __future__ import annotations

import re
from bisect import bisect_right

from gpuprof.late import np
from gpuprof.traces.events import NODE, PHASE, PHASE_MARK, RANGE, Events

SERVED = re.compile(r"execute_(?:\d+_)?context_(\d+)\(.*\)_generation_(\d+)\(.*\)").fullmatch
"""How vLLM's worker names a batch: by how many requests are in their context (the prompt), and how many generate."""


def marked(host: Events) -> list[tuple[int, str]]:
    """Where phases begin, as gpuprof marked them."""
    rows = host.rows(PHASE)
    names = [host.names[sort][len(PHASE_MARK) :] for sort in host.sort[rows].tolist()]
    return sorted(zip(host.start[rows].tolist(), names, strict=True))


def backwards(host: Events) -> list[tuple[int, str]]:
    """Where nodes begin to run, on any thread, and where none runs any more."""
    marks: list[tuple[int, str]] = []
    reach = 0
    rows = host.rows(NODE)
    for start, end in sorted(zip(host.start[rows].tolist(), host.end[rows].tolist(), strict=True)):
        if marks and start <= reach:
            marks.pop()
        else:
            marks.append((start, "backward"))
        reach = max(reach, end)
        marks.append((reach, "forward"))
    return marks


def served(host: Events) -> list[tuple[int, str]]:
    """Where vLLM runs a batch of prefills alone, or of decodes alone, and where it ends; one of both is neither."""
    marks: list[tuple[int, str]] = []
    batches = [SERVED(name) if kind == RANGE else None for name, kind in zip(host.names, host.kinds, strict=True)]
    for row in np.flatnonzero(np.array([batch is not None for batch in batches], np.bool_)[host.sort]).tolist():
        found = batches[host.sort[row]]
        context, generation = map(int, found.groups()) if found else (0, 0)
        if bool(context) != bool(generation):
            marks += [(int(host.start[row]), "prefill" if context else "decode"), (int(host.end[row]), "forward")]
    return sorted(marks)


def last_backward(marks: list[tuple[int, str]], start: int, end: int) -> int:
    """When the last node ended that ran in the step of an optimizer, 0 if none did.

    Then it was given a closure that computes the loss and its gradients, as Lightning does, and until then what makes
    nodes of autograd is a forward: the optimizer's own work makes none.

    Args:
        marks: as `backwards` gives them.
        start: of that step, nanoseconds.
        end: of it.
    """
    place = bisect_right(marks, (end, "forward"))
    return marks[place - 1][0] if place and marks[place - 1][0] > start else 0
