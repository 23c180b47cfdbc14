"""What an attention costs under the mask of its module, fused or spelled out as products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .attention import _LAYERS, _READERS, _Call
from .masks import AttentionFacts, unmasked_pairs
from .names import without_overload
from .rules import Cost, Kind


def masked_matmul(full_cost: int, m: int, n: int, k: int, facts: AttentionFacts) -> int | None:
    """FLOPs over the unmasked pairs of one attention product that ran over the whole square.

    Scores, weighted values and their four gradients all are (batched) products over a query, a key and a head
    dimension, in some order. What is left after the head dimension are queries and keys; the fewer are the queries.

    Args:
        full_cost: FLOPs of the product, 2 x batch x m x n x k.
        m: rows of the left operand.
        n: columns of the right operand.
        k: the dimension summed over.
        facts: of the module that owns the product; ``causal=None`` counts as not causal.

    Returns:
        None where no dimension is one of a head, or where two head dimensions leave open which one it is.
    """
    squares = _squares(m, n, k, facts)
    if len(squares) != 1:
        return None
    queries, keys = squares.pop()
    pairs = unmasked_pairs(queries, keys, causal=bool(facts.causal), window=facts.window, align=facts.align)
    return full_cost * pairs // (queries * keys) if queries else full_cost


def _squares(m: int, n: int, k: int, facts: AttentionFacts) -> set[tuple[int, int]]:
    """The (queries, keys) that the dimensions of a product allow."""
    dims = (m, n, k)
    found = set()
    for i, size in enumerate(dims):
        if size in facts.head_dims:
            queries, keys = sorted(dims[:i] + dims[i + 1 :])
            found.add((queries, keys))
    # A head dimension may happen to equal a sequence length: as many queries as keys is then the likely
    # reading.
    return {square for square in found if square[0] == square[1]} or found


def with_facts(
    op: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
    cost: Cost,
    kind: Kind,
    facts: AttentionFacts | None,
) -> tuple[Cost, bool]:
    """The cost of a call, its unmasked pairs corrected by what is known of the module that owns it.

    Args:
        op: ``namespace::name.overload``.
        args: positional arguments, tensors as `TensorSpec`.
        kwargs: keyword arguments, likewise.
        out: the result, likewise.
        cost: what `cost_of` returned.
        kind: likewise.
        facts: of the owning module; None where it is not an attention module.

    Returns:
        The cost, and whether its causal FLOPs are known. They are not where the call is a product of an
        attention whose mask is unknown, or a fused attention with a mask tensor in a module of which nothing
        is known; they are then those of the whole square.
    """
    name = without_overload(op)
    if name in _PRODUCTS:
        return _product_with_facts(args[_PRODUCTS[name] :], cost, facts)
    if name in _LAYERS:
        unmasked = _LAYERS[name](*args, **kwargs) or (facts is not None and facts.causal is False and not facts.window)
        return cost, unmasked
    reader = _READERS.get(op) or _READERS.get(name)
    call = reader(*args, **{key: value for key, value in kwargs.items() if key != "out"}) if reader else None
    if not isinstance(call, _Call) or call.mask == "own":
        return cost, True
    if facts is None or facts.causal is None:
        return cost, False
    pairs = unmasked_pairs(call.queries, call.keys, causal=facts.causal, window=facts.window, align=facts.align)
    square = max(call.queries * call.keys, 1)
    masked = replace(cost, causal=cost.full * pairs // square)
    if call.mask == "block" and cost.hardware is not None:
        masked = replace(masked, hardware=cost.hardware * pairs // square, vector=cost.vector * pairs // square)
    return masked, True


# Operators that are an attention product, and where their two factors begin.
_PRODUCTS = {"aten::bmm": 0, "aten::baddbmm": 1, "aten::baddbmm_": 1, "aten::matmul": 0, "aten::matmul_backward": 1}


def _product_with_facts(factors: tuple[Any, ...], cost: Cost, facts: AttentionFacts | None) -> tuple[Cost, bool]:
    a, b = factors[:2]
    if facts is None or len(a.shape) < 3 or len(b.shape) < 3:
        return cost, True
    dims = a.shape[-2], b.shape[-1], a.shape[-1]
    squares = _squares(*dims, facts)
    if not squares:
        return cost, True
    if facts.causal is None or (len(squares) > 1 and (facts.causal or facts.window)):
        return cost, False
    return replace(cost, causal=masked_matmul(cost.full, *dims, facts)), True
