"""The time of a step, from the timed ones."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gpuprof.errors import GpuprofError
from gpuprof.record import Record


def typical(run: Record, times: Any) -> Any:
    """What stands for the times of each group of steps: their median; of a training their mean, as of what they do."""
    return times.mean() if run.metered else times.median()


def varied(run: Record) -> bool:
    """Whether it is of a training whose steps were not all of the same shapes."""
    return run.metered and run.passes["time"].facts.get("kinds", 1) > 1


def of_launches(run: Record, phase: str = "step") -> pd.Series:
    """Typical seconds of a phase, or of the whole step, in each launch: steps of one process share its mood.

    Args:
        run: the run.
        phase: ``step``, or as in the record.
    """
    samples = run.samples[run.samples["phase"] == phase]
    return typical(run, samples.groupby("launch")["time_s"])


def step_seconds(run: Record, phase: str = "step") -> float | None:
    """The time of a phase, or of the whole step: the median of its launches; None where it was not timed.

    Of a launch it is the median of its steps, and of a training their mean: `typical`.
    """
    found = of_launches(run, phase)
    return None if found.empty else float(found.median())


def refuse_log(run: Record, what: str, name: str) -> None:
    """Refuse the log of a training where what a pass finds is asked for.

    Args:
        run: any.
        what: is asked for.
        name: of the pass.

    Raises:
        GpuprofError: it is such a log, and what has it instead.
    """
    if run.metered:
        outcome = run.passes[name]
        raise GpuprofError(f"no {what} of a training: {outcome.reason}; {outcome.remedy}")


def traced(run: Record) -> str:
    """What the kernels of a run are of, in words."""
    return "traced step" if not run.recorded else "recorded step" if step_seconds(run) else "recording"
