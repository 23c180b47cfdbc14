"""What a counted call costs: by its rule, on each sequence where tensors are nested, and by what is known of masks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from gpuprof.passes.specs import Nested, nested_in
from gpuprof.theory import TensorSpec, cost_of
from gpuprof.theory.attention import AttentionFacts, with_facts
from gpuprof.theory.rules import Cost, Kind, total


def price(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, facts: AttentionFacts | None, device: str
) -> tuple[Cost, bool, Kind] | None:
    """Cost of a call, whether its causal FLOPs are known, and its kind; None without a rule.

    On nested tensors it is that of the same operator on each of their sequences, added up.
    """
    costs, known, kind = [], True, None
    for (one_args, one_kwargs, one_out), times in _alone(args, tuple(kwargs.items()), out).items():
        found = cost_of(op, one_args, dict(one_kwargs), one_out)
        if found is None:
            return None
        cost, kind = found
        cost, sure = with_facts(op, one_args, dict(one_kwargs), one_out, cost, kind, facts)
        costs += [cost] * times
        known &= sure
    if kind is None:
        return None
    cost = costs[0] if len(costs) == 1 else total(costs)
    padded = kwargs.get("padded", _padded(op, args, cost, device))
    return (cost if padded is None else replace(cost, hardware=padded)), known, kind


def _padded(op: str, args: tuple[Any, ...], cost: Cost, device: str) -> int | None:
    """Matmul FLOPs of an operator on nested tensors that pads them to the longest; None where it does not.

    torch pads products of tensors with heads, and on a CPU the scores in its fused layers; there a GPU's kernels take
    each sequence by itself.
    """
    plain, nested = op.partition(".")[0], next(nested_in(args), None)
    if nested is not None and plain in _WIDTH_AT and device == "cpu":
        lengths = [spec.shape[-2] for spec in nested]
        added = len(lengths) * max(lengths) ** 2 - sum(length**2 for length in lengths)
        return cost.full + 4 * added * args[_WIDTH_AT[plain]]
    if plain not in _PADDED or nested is None or len(nested[0].shape) < 4:
        return None
    found = cost_of(op, tuple(value.padded() if isinstance(value, Nested) else value for value in args), {}, None)
    return None if found is None else found[0].full


_PADDED = ("aten::bmm", "aten::matmul_backward")
_WIDTH_AT = {"aten::_native_multi_head_attention": 3, "aten::_transformer_encoder_layer_fwd": 1}
"""torch's fused layers, and where among their arguments is the width of the model."""


def _alone(args: tuple[Any, ...], kwargs: tuple[Any, ...], out: Any) -> Counter[tuple[Any, ...]]:
    """A call on nested tensors as calls on each of their sequences, equal ones once; any other call by itself."""
    call = (args, kwargs, out)
    length = next((len(value) for value in nested_in(call)), None)
    return Counter([call] if length is None else [_at(call, index, length) for index in range(length)])


def _at(value: Any, index: int, length: int) -> Any:
    if isinstance(value, Nested):
        return value[index] if len(value) == length else value.packed()
    if isinstance(value, TensorSpec) and len(value.shape) > 2 and value.shape[0] == length:  # a batch beside it
        return value._replace(shape=(1, *value.shape[1:]))
    if isinstance(value, tuple) and not isinstance(value, TensorSpec):
        return tuple(_at(item, index, length) for item in value)
    return value
