"""The figures of some steps, under the names that dashboards have for them."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpuprof.meter.tokens import added
from gpuprof.meter.work import Work, seconds


class Sample(NamedTuple):
    """A step.

    Attributes:
        number: from 1 on.
        time_s: seconds inside of it, its micro-batches together.
        between_s: seconds since the end of the one before that were not inside of it; None of the first, and where the
            meter itself worked then.
        signatures: numbers of those of its micro-batches, in order, and of the optimizer's step; None of a micro-batch
            that nobody told anything of.
        work: None where something in it was not counted.
        estimated: whether some of the work is a mean: it depends on more than shapes.
        tokens: positions of text.
        non_padding: those that are no padding.
        samples: first dimension of what the model is given.
        dropped: why its time is left out; empty where it counts.
    """

    number: int
    time_s: float
    between_s: float | None
    signatures: tuple[int | None, ...]
    work: Work | None
    estimated: bool
    tokens: int | None
    non_padding: int | None
    samples: int | None
    dropped: str


class Totals(NamedTuple):
    """What several steps of a process come to, those whose time counts; JSON-ready. None is not known.

    Attributes:
        steps: how many.
        time_s: seconds inside of them.
        between_s: median seconds between them.
        tokens: of all of them, as the next two.
        non_padding: see `Sample`.
        samples: see `Sample`.
        known_s: seconds inside of those whose work is known, which the others are of.
        flops: model FLOPs.
        ideal_s: seconds that these would take at the peaks of their dtypes.
        hardware_ideal_s: the same of the FLOPs that were really done.
    """

    steps: int
    time_s: float
    between_s: float | None
    tokens: int | None
    non_padding: int | None
    samples: int | None
    known_s: float
    flops: int
    ideal_s: float | None
    hardware_ideal_s: float | None


def totals(samples: Iterable[Sample], peaks: Mapping[str, float]) -> Totals | None:
    """What several steps come to; None where no time among them counts.

    Args:
        samples: the steps.
        peaks: FLOP/s by dtype.
    """
    kept = [sample for sample in samples if not sample.dropped]
    if not kept:
        return None
    gaps = [sample.between_s for sample in kept if sample.between_s is not None]
    known = [sample for sample in kept if sample.work is not None]
    model, hardware = Counter[str](), Counter[str]()
    told = True  # what was really done of all of them
    for work, times in _alike([sample.work for sample in known]):
        model.update({dtype: times * flops for dtype, flops in work.model.items()})
        hardware.update({dtype: times * flops for dtype, flops in (work.hardware or {}).items()})
        told = told and work.hardware is not None
    return Totals(
        len(kept), sum([sample.time_s for sample in kept]), statistics.median(gaps) if gaps else None,
        added([sample.tokens for sample in kept]), added([sample.non_padding for sample in kept]),
        added([sample.samples for sample in kept]), sum([sample.time_s for sample in known]), sum(model.values()),
        seconds(model, peaks), seconds(hardware, peaks) if told else None,
    )  # fmt: skip


def _alike(works: Iterable[Work | None]) -> Iterator[tuple[Work, int]]:
    """Neighbours that are one object, and how many of them."""
    for _, several in itertools.groupby(works, key=id):
        same = list(several)
        if same[0] is not None:
            yield same[0], len(same)


def figures(processes: Sequence[Totals], sharing: int | None = 1) -> dict[str, float]:
    """The figures of a process, or of several together; what is not known of one of them is left out.

    Times are those of the slowest process, rates the sum of all, and a utilisation the mean of the devices.

    Args:
        processes: what each came to.
        sharing: how many of them have the same batch; None where that is not known.
    """
    found = {"step_s": max(one.time_s / one.steps for one in processes)}
    gaps = [one.between_s for one in processes if one.between_s is not None]
    if gaps:
        found["between_s"] = max(gaps)
    amounts = ("tokens", "tokens"), ("non_padding", "non_padding_tokens"), ("samples", "samples")
    for field, name in amounts:
        known = [(getattr(one, field), one.time_s) for one in processes]
        if sharing is not None and all(amount is not None for amount, _ in known):
            found[f"{name}_per_sec"] = sum(amount / time_s for amount, time_s in known) / sharing
    if not all(one.known_s for one in processes):
        return found
    time_s = sum(one.known_s for one in processes)
    found["flops_per_sec"] = sum(one.flops / one.known_s for one in processes)
    ideal_s = added(one.ideal_s for one in processes)
    if ideal_s:
        found["mfu"] = ideal_s / time_s
        found["mfu_peak_tflops"] = sum(one.flops for one in processes) / ideal_s / 1e12
    hardware_ideal_s = added(one.hardware_ideal_s for one in processes)
    if hardware_ideal_s:
        found["hfu"] = hardware_ideal_s / time_s
    return found


def logged(sample: Sample) -> list[Any]:
    """A step as `gpuprof.log.Log.write` takes it."""
    signatures = [None] if sample.work is None else list(sample.signatures)
    times = [sample.number, sample.time_s, sample.between_s]
    return [*times, signatures, sample.tokens, sample.non_padding, sample.samples, sample.dropped]
