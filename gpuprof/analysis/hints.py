"""What to change first: at most five hints from a budget, each with its evidence and what it would gain.

A gain is an estimate that the sentence explains: the time of the work less what the same work needs by a figure of this
run or its device. It is what there is to win at most, and gains overlap: they do not add up. Where the largest part of
the budget has no such hint, one says what to measure next, and claims no gain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpuprof.analysis import hints_of_waiting as waiting
from gpuprof.analysis import hints_of_work as work
from gpuprof.analysis.budget import Budget
from gpuprof.analysis.consistency import withheld_of_kernels
from gpuprof.analysis.hints_of_work import LEAST_GAIN, Looked
from gpuprof.analysis.next_steps import next_step
from gpuprof.analysis.once import once

MOST = 5
"""Hints that are given."""


WORTH = 0.25
"""Share of the largest part below which a gain is small beside it: it is no answer to that part, and not first."""


class Hint(NamedTuple):
    """One thing to change, or to measure next.

    Attributes:
        text: what takes the time, and what it would need instead: a sentence with its figures.
        gain_s: seconds of the step that it would save; None where nothing is known of that.
        gain_share: the same as a share of the step.
        action: what to do.
        part: of the budget, the one that it is about; of several the largest.
    """

    text: str
    gain_s: float | None
    gain_share: float | None
    action: str
    part: str


@once
def hints(found: Budget) -> list[Hint]:
    """The `MOST` hints with the largest gain, that first; fewer where the record has evidence for fewer.

    One about the largest part beside the ideal is always among them. If no gain worth `WORTH` of it is known, that one
    has no gain. It comes first where all gains are small beside the part, and last where they are not.

    Args:
        found: what `gpuprof.analysis.budget.budget` gives.
    """
    rates = not withheld_of_kernels(found.run)
    gains = [  # of a job each rank's own run has them: they are told by kernels
        (gain_s, Hint(text, gain_s, gain_s / found.step_s, action, _largest(found, parts)))
        for look, parts in ({} if found.run.is_job else _LOOKS).items()
        if rates or look not in _BY_RATE
        for text, gain_s, action in look(found)
        if gain_s >= LEAST_GAIN * found.step_s
    ]
    gains.sort(key=lambda gain: -gain[0])
    best = [hint for _, hint in gains]
    if found.rest.empty or found.rest["share"][0] < LEAST_GAIN:
        return best[:MOST]
    part, worth = str(found.rest["part"][0]), WORTH * float(found.rest["time_s"][0])
    own = next((hint for gain_s, hint in gains if hint.part == part and gain_s >= worth), None)
    if own is not None:
        return best[:MOST] if own in best[:MOST] else [*best[: MOST - 1], own]
    text, action = next_step(found, part)
    own = Hint(text, None, None, action, part)
    small = not gains or gains[0][0] < worth
    return [own, *best[: MOST - 1]] if small else [*best[: MOST - 1], own]


def _largest(found: Budget, parts: tuple[str, ...]) -> str:
    return max(parts, key=found.seconds)


_LOOKS: dict[Callable[[Budget], Looked], tuple[str, ...]] = {
    work.attention: ("attention",),
    work.precision: ("matmul", "attention"),
    waiting.decoding: ("idle_launch", "idle_host"),
    waiting.launches: ("idle_launch",),
    waiting.host: ("idle_host",),
    work.recompute: ("recompute",),
    work.optimizer: ("optimizer",),
    work.logits: ("matmul",),
    work.batch: ("memory_bytes",),
    work.cache: ("memory", "memory_bytes"),
    work.elementwise: ("memory",),
    work.alignment: ("matmul",),
    work.layout: ("matmul",),
    work.communication: ("communication",),
    work.clock: ("clock",),
}
"""Where to look for hints, and the parts of the budget that they are about."""

_BY_RATE = (work.attention, work.precision, work.alignment)
"""Those that say how long FLOPs take."""
