"""Rates of a table: work over time, missing where they are withheld."""

from __future__ import annotations

from gpuprof.analysis.consistency import withheld_of_kernels
from gpuprof.analysis.generation import bandwidth
from gpuprof.late import pd
from gpuprof.record import Record


def ratio(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
    """Quotient, missing where the denominator or either side is missing or 0."""
    above, below = (s.astype("Float64") for s in (numerator, denominator))
    return (above / below.where(below > 0)).where(above > 0)


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """The same of plain values."""
    if numerator is None or denominator is None or not (numerator > 0 and denominator > 0):
        return None
    return numerator / denominator


def rate(run: Record, work: pd.Series, time: pd.Series, reason: str | None = None) -> pd.Series:
    """FLOP/s, or MFU where the work is ideal time; missing where they are withheld, below the whole step by default."""
    found = ratio(work, time)
    return found.mask(found.notna()) if (withheld_of_kernels(run) if reason is None else reason) else found


def ideal_move_s(run: Record, moved_bytes: pd.Series) -> pd.Series:
    """Time that bytes would take at the preferred bandwidth; missing where none is known."""
    name, per_s = bandwidth(run)
    return moved_bytes.astype("Float64") / (per_s if name else pd.NA)
