"""What a counted micro-batch comes to: FLOPs in the meter's convention, by the dtype whose peak they run against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gpuprof.analysis.counted import priced
from gpuprof.analysis.denominators import peak_dtype
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import MODEL

Flops = dict[str, int]
"""FLOPs by dtype; no dtype has none."""


class Work(NamedTuple):
    """Work of a micro-batch, of an optimizer's step, or of a whole step of them.

    Attributes:
        model: model FLOPs, forward and backward, in the convention of the meter.
        hardware: FLOPs that operators really do, recomputation and the optimizer's among them; None where not known.
    """

    model: Flops
    hardware: Flops | None


def total(works: Iterable[Work | None]) -> Work | None:
    """All of them together; None where one is not known."""
    model: Counter[str] = Counter()
    hardware: Counter[str] | None = Counter()
    for work in works:
        if work is None:
            return None
        model.update(work.model)
        if hardware is None or work.hardware is None:
            hardware = None
        else:
            hardware.update(work.hardware)
    return Work(dict(model), None if hardware is None else dict(hardware))


def mean(works: Sequence[Work]) -> Work:
    """That of one of them, to the FLOP."""
    summed = total(works)
    assert summed is not None

    def each(flops: Flops | None) -> Flops | None:
        return None if flops is None else {dtype: round(amount / len(works)) for dtype, amount in flops.items()}

    return Work(each(summed.model) or {}, each(summed.hardware))


def seconds(flops: Flops | None, peaks: Mapping[str, float]) -> float | None:
    """How long these FLOPs take at the peaks of their dtypes, FLOP/s; None where one has none."""
    if flops is None or not flops.keys() <= peaks.keys():
        return None
    return sum(amount / peaks[dtype] for dtype, amount in flops.items())


def work_of(run: Record, ops: pd.DataFrame) -> Work:
    """The work of some rows of a count.

    Args:
        run: of this count.
        ops: rows of its ``ops``.
    """
    rows = priced(run, ops)
    return Work(_by_dtype(rows[rows["phase"].isin(MODEL)], "flops", run), _by_dtype(rows, "flops_hardware", run))


def _by_dtype(rows: pd.DataFrame, column: str, run: Record) -> Flops:
    flops: Counter[str] = Counter()
    for dtype, kind, amount in zip(rows["dtype"], rows["kind"], rows[column], strict=True):
        if not pd.isna(amount) and amount:
            flops[peak_dtype(dtype, kind, run)] += int(amount)
    return dict(flops)
