"""One printed figure: its value in plain units, and how far the printing rounded it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

NUMBER = r"[-+]?\d(?:,?\d){0,30}(?:\.\d{1,30})?(?:[eE][-+]?\d{1,2})?"
PREFIX = "[KkMGBTPEmu]?"

_EXPONENTS = {"": 0, "K": 3, "k": 3, "M": 6, "G": 9, "B": 9, "T": 12, "P": 15, "E": 18, "m": -3, "u": -6}

MEASURED = ("latency", "flops_per_s", "samples_per_s")
"""How quantities begin that are measured anew in every run."""


@dataclass(frozen=True)
class Claim:
    """A printed figure.

    Attributes:
        value: in plain units: parameters, MACs, FLOPs, FLOP/s, seconds, bytes, shares of 1.
        precision: half a unit of the last printed digit, in the same unit, or a whole one of a tool that cuts digits
            off. Tools that cut trailing zeros off (7.9 for 7.90) rounded finer than they show, so this is the most
            that printing can have changed.
    """

    value: float
    precision: float


def claim(number: str, exponent: int = 0) -> Claim:
    """A figure printed as ``number`` in units of ``10 ** exponent``; exact until the last step, the float."""
    scaled = Decimal(number.replace(",", "")).scaleb(exponent)
    last_digit = scaled.as_tuple().exponent
    assert isinstance(last_digit, int)  # the pattern NUMBER admits neither NaN nor infinity
    return Claim(float(scaled), float(Decimal(5).scaleb(last_digit - 1)))


def figure(text: str, unit: str = "") -> Claim | None:
    """A figure with a decimal prefix and a unit, e.g. ``figure("53.19 TMACs", "MACs")``; None if it is not one.

    Args:
        text: as printed, without spaces around it.
        unit: pattern of the unit.
    """
    match = re.fullmatch(rf"({NUMBER})\s*({PREFIX})(?:{unit})", text)
    return claim(match[1], _EXPONENTS[match[2]]) if match else None


def share(text: str) -> Claim | None:
    """A percentage as a share of 1: ``share("8.696%")`` is 0.08696; None if it is not one."""
    match = re.fullmatch(rf"({NUMBER})\s*%", text)
    return claim(match[1], -2) if match else None
