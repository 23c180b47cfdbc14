"""The time of a step, from the timed ones."""

from __future__ import annotations

from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.late import pd
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
    """The time of the step, or what a phase has of it; None where it was not timed.

    The step's is the median of its launches, and of a launch the median of its steps, of a training their mean
    (`typical`). A phase has the part of it that it has in `middle_steps`, so the phases of a step add up to it.
    """
    if not run.has("samples"):
        return None
    found = of_launches(run)
    of_phase = run.samples[run.samples["phase"] == phase]
    if found.empty or of_phase.empty:
        return None
    if phase == "step":
        return float(found.median())
    middle = middle_steps(run)
    inside = pd.MultiIndex.from_frame(of_phase[["launch", "step"]]).isin(middle.index)
    return float(found.median() * of_phase.loc[inside, "time_s"].sum() / middle.sum())


def middle_steps(run: Record) -> pd.Series:
    """Seconds, by launch and step, of the steps that phases are told of: of each launch those between its quartiles.

    Of a launch of two steps both; of a training all, whose time is a mean.
    """
    steps = run.samples[run.samples["phase"] == "step"].set_index(["launch", "step"])["time_s"]
    launches = steps.groupby("launch")
    low, high = (launches.transform("quantile", quantile) for quantile in (0.25, 0.75))
    return steps if run.metered else steps[steps.between(low, high) | (launches.transform("size") <= 2)]


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
