"""The time of a step, from the timed ones."""

from __future__ import annotations

import pandas as pd

from gpuprof.record import Run


def medians(run: Run, phase: str = "step") -> pd.Series:
    """Median seconds of a phase, or of the whole step, in each launch: steps of one process share its mood.

    Args:
        run: the run.
        phase: ``step``, or as in the record.
    """
    samples = run.samples[run.samples["phase"] == phase]
    return samples.groupby("launch")["time_s"].median()


def step_seconds(run: Run, phase: str = "step") -> float | None:
    """The time of a phase, or of the whole step: the median of its launches' medians; None where it was not timed."""
    found = medians(run, phase)
    return None if found.empty else float(found.median())


def traced(run: Run) -> str:
    """What the kernels of a run are of, in words."""
    return "traced step" if not run.recorded else "recorded step" if step_seconds(run) else "recording"
