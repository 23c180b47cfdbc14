"""Shares of a whole number that add up to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def split_ns(duration: int, weights: Sequence[int | None]) -> list[int] | None:
    """A duration in proportion to weights, in whole ns: each share is where the running sum of the exact ones is.

    Exact shares are rounded down where they end, so that shares differ from them by less than 1 ns, a weight of 0 has
    none, and they always add up.

    Args:
        duration: in ns.
        weights: bytes, say.

    Returns:
        None where a weight is not known, or all are 0: there is no proportion.
    """
    known = [weight for weight in weights if weight is not None]
    whole = sum(known)
    if len(known) < len(weights) or not whole:
        return None
    ends = [0]
    before = 0
    for weight in known:
        before += weight
        ends.append(duration * before // whole)
    return [end - begin for begin, end in pairwise(ends)]
