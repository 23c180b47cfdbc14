"""What a meter tells of the steps that have ended: their figures from one reading to the next, and counts so far."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from gpuprof.analysis.too_fast import MOST
from gpuprof.errors import GpuprofError
from gpuprof.meter.machine import Machine
from gpuprof.meter.ranks import of_all
from gpuprof.meter.readings import Sample, Totals, figures, totals

Warn = Callable[..., None]


class Account:
    """Samples of steps, added up. What is to be warned of goes through ``warn``: a text, and what it is of."""

    def __init__(self) -> None:
        self._dropped = self._estimated = 0
        self._flops: int | None = None  # of the last step whose work is known

    def add(self, samples: list[Sample], machine: Machine, warn: Warn) -> tuple[Totals | None, dict[str, float]]:
        """Take samples in: what those come to whose times count, and the figures of this process by name."""
        kept = [sample for sample in samples if not sample.dropped]
        self._dropped += len(samples) - len(kept)
        self._estimated += sum(sample.estimated for sample in kept)
        known = (sum(sample.work.model.values()) for sample in reversed(samples) if sample.work)
        self._flops = next(known, self._flops)
        mine, found = totals(kept, machine.peaks()), dict[str, float]()
        if mine is not None:
            found |= {f"device/{name}": value for name, value in _possible(figures([mine]), machine, warn).items()}
        if (clock_mhz := machine.clock_mhz()) is not None:
            found["device/clock_mhz"] = clock_mhz
        return mine, found

    def so_far(self) -> dict[str, float]:
        """What is known of the whole training, by name."""
        return {
            **({} if self._flops is None else {"meter/flops_per_step": self._flops}),
            **({"meter/estimated_steps": self._estimated} if self._estimated else {}),
            "meter/dropped_steps": self._dropped,
        }


def of_job(model: torch.nn.Module, mine: Totals | None, machine: Machine | None, warn: Warn) -> dict[str, float]:
    """Figures of all processes of the job together, each of which has to call this; none if one has none.

    Args:
        model: whose steps they are.
        mine: what those of this process came to.
        machine: that they ran on; None before the first of them.
        warn: as for `Account`.
    """
    try:
        found = of_all(model, mine)
    except GpuprofError as error:
        warn(f"no figures of all processes together: {error}")
        return {}
    return found if machine is None else _possible(found, machine, warn)


def _possible(found: dict[str, float], machine: Machine, warn: Warn) -> dict[str, float]:
    """Figures without those that cannot be, as the same rule has it for a run."""
    most = max(found.get("mfu", 0.0), found.get("hfu", 0.0))
    if most > 1:
        warn(
            f"{most:.0%} of the peak ({machine.peak}) is more than there is: is that the right peak "
            "(peak_tflops), and is all that a step does inside of its block?",
            "above the peak",
        )
    if most > MOST.get(machine.denominator, math.inf):
        return {name: value for name, value in found.items() if name not in ("mfu", "hfu", "flops_per_sec")}
    return found
