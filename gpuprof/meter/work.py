"""What a counted micro-batch comes to: FLOPs in the meter's convention, and the time they would take at the peak."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from gpuprof.analysis.counted import counted
from gpuprof.passes.counting import Counted
from gpuprof.record import MODEL, PassOutcome, Run


class Work(NamedTuple):
    """Work of a micro-batch, of an optimizer's step, or of a whole step of them.

    Attributes:
        flops: model FLOPs, forward and backward, in the convention of the meter.
        hardware: FLOPs that the operators really do, recomputation and the optimizer's among them.
        ideal_s: seconds of the model FLOPs at the peaks of their dtypes; None where one has none.
        hardware_ideal_s: the same of the hardware's.
    """

    flops: int = 0
    hardware: int = 0
    ideal_s: float | None = 0.0
    hardware_ideal_s: float | None = 0.0

    def plus(self, other: Work) -> Work:
        """Both together."""
        return Work(
            self.flops + other.flops, self.hardware + other.hardware, _sum(self.ideal_s, other.ideal_s),
            _sum(self.hardware_ideal_s, other.hardware_ideal_s),
        )  # fmt: skip


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def work_of(about: dict[str, Any], found: Counted, ops: pd.DataFrame) -> Work:
    """Price rows of a count.

    Args:
        about: ``workload``, ``device``, ``environment`` and ``settings`` of a run.
        found: what was counted.
        ops: rows of its ``ops``.
    """
    rows = counted(Run(**about, passes={"count": PassOutcome("done")}, ops=ops, tree=found.tree))
    model = rows[rows["phase"].isin(MODEL)]
    return Work(
        int(model["flops"].sum()), int(rows["flops_hardware"].sum()), _seconds(model["ideal_s"]),
        _seconds(rows["hardware_ideal_s"]),
    )  # fmt: skip


def _seconds(column: pd.Series) -> float | None:
    seconds = float(column.sum(skipna=False))
    return None if pd.isna(seconds) else seconds
