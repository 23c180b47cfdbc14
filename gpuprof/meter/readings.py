"""The figures of some steps, under the names that dashboards have for them."""

from __future__ import annotations

from typing import NamedTuple

from gpuprof.meter.work import Work


class Sample(NamedTuple):
    """A step.

    Attributes:
        number: from 1 on.
        time_s: seconds inside of it, its micro-batches together.
        between_s: seconds since the end of the one before that were not inside of it; None of the first.
        signatures: numbers of those of its micro-batches, in order, and of the optimizer's step.
        work: None where something in it was not counted.
        estimated: whether some of the work is a mean: it depends on more than shapes, and this step was not counted.
        tokens: positions of text.
        non_padding: those that are no padding.
        samples: first dimension of what the model is given.
        dropped: why its time is left out; empty where it counts.
    """

    number: int
    time_s: float
    between_s: float | None
    signatures: tuple[int, ...]
    work: Work | None
    estimated: bool
    tokens: int | None
    non_padding: int | None
    samples: int | None
    dropped: str


def figures(samples: list[Sample]) -> dict[str, float]:
    """What several steps came to; what is not known is left out.

    Rates are of the steps whose time counts and whose work is known, over the time inside of them.
    """
    kept = [sample for sample in samples if not sample.dropped]
    if not kept:
        return {}
    seconds = sum(sample.time_s for sample in kept)
    found = {"device/step_s": seconds / len(kept)}
    gaps = sorted(sample.between_s for sample in kept if sample.between_s is not None)
    if gaps:
        found["device/between_s"] = gaps[len(gaps) // 2]
    for name in ("tokens", "non_padding"):
        amounts = [amount for sample in kept if (amount := getattr(sample, name)) is not None]
        if len(amounts) == len(kept):
            found[f"device/{name.removesuffix('s')}{'s' * (name == 'tokens')}_per_sec"] = sum(amounts) / seconds
    done = [(sample.time_s, sample.work) for sample in kept if sample.work is not None]
    if done:
        time_s = sum(one for one, _ in done)
        work = Work()
        for _, one in done:
            work = work.plus(one)
        found["device/flops_per_sec"] = work.flops / time_s
        if work.ideal_s:
            found["device/mfu"] = work.ideal_s / time_s
            found["device/mfu_peak_tflops"] = work.flops / work.ideal_s / 1e12
        if work.hardware_ideal_s:
            found["device/hfu"] = work.hardware_ideal_s / time_s
    return found
