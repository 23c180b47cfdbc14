"""What one call says in the ``ops`` table: its cost by its rule, on each sequence where tensors are nested."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from .masked import with_facts
from .masks import AttentionFacts
from .names import without_overload
from .nested import Nested, first_nested
from .rules import Cost, Kind, NotKnownError, TensorSpec, cost_of, least_bytes, total

FIGURES = ("flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes")


class Described(NamedTuple):
    """What a call says in the ``ops`` table, whoever makes it.

    Attributes:
        op: name of the operator.
        kind: as its rule has it, empty without one.
        shapes: of its tensors, and of its results.
        dtype: what it computes in; empty where that is not known.
        priced: `FIGURES` of one call, each None where it is not known.
        causality: of the module, as far as this call tells: known, unknown or empty.
        bound: whether its FLOPs are at most those.
        lacks: why a trace does not tell its FLOPs; empty where it does, and of a call that was counted.
    """

    op: str
    kind: str
    shapes: str
    dtype: str
    priced: tuple[int | None, ...]
    causality: str
    bound: bool = False
    lacks: str = ""


def describe(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, facts: AttentionFacts | None, device: str
) -> Described:
    """What a call says, tensors as `TensorSpec`.

    Args:
        op: ``namespace::name``, with or without its overload.
        args: positional arguments.
        kwargs: keyword arguments.
        out: the result, `MISSING` where it is not known.
        facts: of the attention module that owns the call.
        device: type of the device.
    """
    specs = tensor_specs(args) + tensor_specs(tuple(kwargs.values()))
    results = tensor_specs((out,))
    shapes = f"{shapes_text(specs)} -> {shapes_text(results)}"
    dtype = dtype_of(specs + results)
    found = price(op, args, kwargs, out, facts, device)
    if found is None:
        return Described(op, "", shapes, dtype, (None,) * 5, "")
    cost, known, kind = found
    causality = "unknown" if not known else "known" if kind == "attention" or cost.causal is not None else ""
    causal = cost.full if cost.causal is None else cost.causal
    hardware = cost.full if cost.hardware is None else cost.hardware
    priced = (causal, cost.full, hardware, cost.vector, _bytes(cost, kind, args, kwargs, out, specs + results))
    return Described(op, kind, shapes, cost.dtype or dtype, priced, causality, cost.bound)


def _bytes(
    cost: Cost, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, specs: list[TensorSpec]
) -> int | None:
    if kind != "view" and not all(spec.dtype for spec in specs):  # nobody knows the size of an element
        return None
    try:
        return least_bytes(cost, kind, args, kwargs, out)
    except NotKnownError:
        return None


def tensor_specs(value: Any) -> list[TensorSpec]:
    """Every tensor in a nest of tuples, a nested one with its sequences one after the other."""
    if isinstance(value, TensorSpec):
        return [value]
    if isinstance(value, Nested):
        return [value.packed()] if value else []
    return [spec for item in value for spec in tensor_specs(item)] if isinstance(value, tuple) else []


def shapes_text(specs: list[TensorSpec], most: int = 8) -> str:
    """Their shapes as the ``ops`` table has them."""
    text = " ".join([_shape_text(spec.shape) for spec in specs[:most]])
    return text if len(specs) <= most else f"{text} and {len(specs) - most} more"


@lru_cache(1 << 12)
def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def dtype_of(specs: list[TensorSpec]) -> str:
    """Dtype of the first floating tensor, else of the first."""
    names = [spec.dtype for spec in specs]
    return next((name for name in names if "float" in name or "complex" in name), names[0] if names else "")


def price(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, facts: AttentionFacts | None, device: str
) -> tuple[Cost, bool, Kind] | None:
    """Cost of a call, whether its causal FLOPs are known, and its kind; None without a rule.

    On nested tensors it is that of the same operator on each of their sequences, added up.
    """
    if "padded" not in kwargs and first_nested((args, tuple(kwargs.values()), out)) is None:
        found = cost_of(op, args, kwargs, out)
        return None if found is None else (*with_facts(op, args, kwargs, out, *found, facts), found[1])
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
    plain, nested = without_overload(op), first_nested(args)
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
    nested = first_nested(call)
    return Counter([call] if nested is None else [_at(call, index, len(nested)) for index in range(len(nested))])


def _at(value: Any, index: int, length: int) -> Any:
    if isinstance(value, Nested):
        return value[index] if len(value) == length else value.packed()
    if isinstance(value, TensorSpec) and len(value.shape) > 2 and value.shape[0] == length:  # a batch beside it
        return value._replace(shape=(1, *value.shape[1:]))
    if isinstance(value, tuple) and not isinstance(value, TensorSpec):
        return tuple(_at(item, index, length) for item in value)
    return value
