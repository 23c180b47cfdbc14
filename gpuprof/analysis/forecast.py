"""What a prediction of a step of another size says; `gpuprof.fit` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpuprof.analysis.memory import Prediction

What = Literal["batch_size", "seq_len", "prompt_len", "new_tokens"]


@dataclass(frozen=True)
class Sized:
    """A prediction and the size that it is for.

    Attributes:
        batch_size: samples per step; None where the workload does not say.
        seq_len: positions per sample; None where the workload has none.
        prompt_len: positions of a generation's prompt, likewise.
        new_tokens: tokens that it generates, likewise.
        activations: bytes that its forward keeps for the backward.
        cache: bytes that the cache of a generation holds at the end of each of its phases.
        prediction: of the step's peak.
    """

    batch_size: int | None
    seq_len: int | None
    prompt_len: int | None
    new_tokens: int | None
    activations: int
    cache: dict[str, int]
    prediction: Prediction


@dataclass(frozen=True)
class Fit:
    """The largest size that fits.

    Attributes:
        what: of what it is the largest.
        capacity: bytes that there are.
        largest: it; None where not even 1 fits.
        beyond: the next, which does not fit; None where something else than memory is the limit.
        limit: what that is, in words; empty where it is memory.
    """

    what: What
    capacity: int
    largest: Sized | None
    beyond: Sized | None
    limit: str


@dataclass(frozen=True)
class Forecast:
    """A prediction, and how well the simulation that it rests on meets the measured step.

    Attributes:
        sized: for a given size; None where the largest was asked for.
        fit: the largest that fits; None where a size was given.
        miss: as in `gpuprof.fit.Sizes`.
        calibration: as in `gpuprof.fit.Sizes`.
    """

    sized: Sized | None
    fit: Fit | None
    miss: int | None
    calibration: float
