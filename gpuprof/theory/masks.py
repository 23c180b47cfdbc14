"""What is known of the mask of an attention, and how many query-key pairs it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Align = Literal["top-left", "bottom-right"]


@dataclass(frozen=True)
class AttentionFacts:
    """What is known of the attention of one module.

    Attributes:
        causal: whether a query sees no later keys; None where that cannot be known.
        window: how many keys a query may see up to and including its own; where the attention is not causal,
            as many to the other side too. None for no limit. Hugging Face's bidirectional ``sliding_window``
            does not count the query's own key, so it is one less than this.
        head_dims: size of a query and key head, and of a value head.
        align: which query stands at which key, see `unmasked_pairs`; Hugging Face's masks put the last at the last.
    """

    causal: bool | None
    window: int | None
    head_dims: tuple[int, ...]
    align: Align = "bottom-right"


def unmasked_pairs(
    queries: int, keys: int, *, causal: bool, window: int | None = None, align: Align = "top-left"
) -> int:
    """Number of query-key pairs that a mask leaves.

    Args:
        queries: number of queries.
        keys: number of keys.
        causal: whether a query sees no later keys.
        window: see `AttentionFacts`.
        align: which query stands at which key: ``top-left``, the first at the first (torch's ``is_causal``),
            or ``bottom-right``, the last at the last (a cache of earlier keys; FlashAttention).
    """
    reach = None if window is None else window - 1
    return _band(queries, keys, left=reach, right=0 if causal else reach, align=align)


def _band(queries: int, keys: int, left: int | None, right: int | None, align: Align) -> int:
    """Pairs with the key at most ``left`` before and ``right`` after the query's own; None for no limit."""
    offset = keys - queries if align == "bottom-right" else 0

    def pairs_before(limit: int) -> int:
        # Query i sees the first i + limit keys, as far as they exist.
        return _ramp(queries + limit, keys) - _ramp(limit, keys)

    total = queries * keys if right is None else pairs_before(offset + right + 1)
    return total if left is None else total - pairs_before(offset - left)


def _ramp(stop: int, top: int) -> int:
    """Sum of t limited to 0..top, over all t < stop."""
    stop = max(stop, 0)
    slope = min(stop, top + 1)
    return slope * (slope - 1) // 2 + (stop - slope) * top
