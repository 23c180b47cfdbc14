"""Every number a person reads is formatted here: SI prefixes for counts and rates, binary ones for bytes."""

from __future__ import annotations

import math

MISSING = "-"
"""Shown where a figure is not known; never 0."""

_SI = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def significant(value: float, digits: int = 4) -> str:
    """Plain decimal text with that many significant digits, without an exponent: 12.35, 0.01235, 1235."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def si(value: float | None, unit: str = "", digits: int = 4) -> str:
    """A count or a rate with a decimal prefix: ``si(53.19e12, "FLOP/s") == "53.19 TFLOP/s"``."""
    if value is None or not _known(value):
        return MISSING
    for factor, prefix in _SI:
        if abs(value) >= factor:
            return f"{significant(value / factor, digits)} {prefix}{unit}".rstrip()
    return f"{significant(value, digits) if value % 1 else int(value)} {unit}".rstrip()


def size(value: float | None) -> str:
    """Bytes with a binary prefix: ``size(1536) == "1.500 KiB"``."""
    if value is None or not _known(value):
        return MISSING
    for factor, unit in _BINARY:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {unit}"
    return f"{int(value)} B"


def duration(seconds: float | None, digits: int = 4) -> str:
    """Seconds in the unit that suits: s, ms or us."""
    if seconds is None or not _known(seconds):
        return MISSING
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= factor:
            return f"{significant(seconds / factor, digits)} {unit}"
    return "0 s" if seconds == 0 else f"{significant(seconds / 1e-9, digits)} ns"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which times up to this one read well, and its seconds: ``time_unit(7.2) == (1.0, "s")``."""
    return next(((one, name) for one, name in _TIMES if abs(seconds) >= one), _TIMES[-1])


def size_unit(nbytes: float) -> tuple[int, str]:
    """The same of bytes: ``size_unit(1536) == (1024, "KiB")``."""
    return next(((one, name) for one, name in _BINARY if abs(nbytes) >= one), (1, "B"))


def span(seconds: float) -> str:
    """A time of minutes and more in the largest whole unit of which it has two: ``span(4 * 86400) == "4 days"``."""
    for factor, unit in ((86400, "day"), (3600, "hour")):
        if seconds >= 2 * factor:
            return number(round(seconds / factor), unit)
    return number(max(round(seconds / 60), 1), "minute")


def percent(share: float | None) -> str:
    """A share of 1 as percent: ``percent(0.4123) == "41.2 %"``; tiny shares are not rounded to nothing."""
    if share is None or not _known(share):
        return MISSING
    if 0 < abs(share) < 0.0005:
        return "<0.1 %" if share > 0 else ">-0.1 %"
    return f"{share * 100:.1f} %"


def number(count: int, noun: str, plural: str = "") -> str:
    """So many things: ``number(1, "run") == "1 run"``, ``number(1200, "launch", "launches") == "1,200 launches"``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def shortened(name: str, most: int = 60) -> str:
    """A name, of a kernel say, which may be of hundreds of letters, cut to ``most`` of them."""
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
