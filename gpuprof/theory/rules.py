"""The registry of FLOP rules: what one call of an operator costs, from plain shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gpuprof.errors import GpuprofError
from gpuprof.theory.names import communicates, without_overload

RULES_VERSION = 2
"""Raised whenever a rule changes a figure: runs of different versions are not comparable."""

Kind = Literal["matmul", "convolution", "attention", "recurrent", "vector", "movement", "view", "communication"]

PRODUCTS = ("matmul", "convolution", "attention", "recurrent")
"""Kinds of operators that multiply matrices."""

ITEM_BYTES = {
    "float64": 8, "complex64": 8, "int64": 8, "uint64": 8, "complex128": 16,
    "float32": 4, "int32": 4, "uint32": 4, "complex32": 4,
    "bfloat16": 2, "float16": 2, "int16": 2, "uint16": 2,
}  # fmt: skip
"""Bytes per element; every dtype that is not named takes one."""


class TensorSpec(NamedTuple):
    """All that a rule sees of a tensor.

    Attributes:
        shape: sizes, outermost first.
        dtype: torch's name without the prefix, e.g. ``bfloat16``.
        stored: how many elements a sparse tensor stores, whole blocks included; None of a dense one.
        index_bytes: bytes of a sparse tensor's indices.
        values: what a tensor of integers holds, or the (rows, columns) of what a sparse matrix stores; only for
            rules that ask for it, see `flop_rule`, and None where it is not known.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    stored: int | None = None
    index_bytes: int = 0
    values: tuple[Any, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of elements that there are: of a sparse tensor those that it stores."""
        return math.prod(self.shape) if self.stored is None else self.stored

    @property
    def nbytes(self) -> int:
        """Bytes of a dense tensor of this shape, or of what a sparse one stores."""
        return self.numel * ITEM_BYTES.get(self.dtype, 1) + self.index_bytes


class NotKnownError(Exception):
    """Something has asked for an argument, or a result, that nobody knows."""


class Missing:
    """What stands for an argument or a result that nobody recorded: whoever decides by it, cannot.

    Args:
        number: whether it is a number at least, or numbers, and no tensor.
        truth: what it counts as where only its truth is asked for; None where that is not known either.
    """

    __slots__ = ("_truth", "number")

    def __init__(self, number: bool = False, truth: bool | None = None) -> None:
        self.number = number
        self._truth = truth

    def __bool__(self) -> bool:
        return self._not_known() if self._truth is None else self._truth

    def _not_known(self, *_: Any) -> Any:
        raise NotKnownError

    __hash__ = object.__hash__
    __getattr__ = __getitem__ = __iter__ = __len__ = __index__ = __int__ = __float__ = _not_known
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _not_known
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _not_known


MISSING = Missing()


@dataclass(frozen=True)
class Cost:
    """What one call of an operator costs. One multiply-accumulate is 2 FLOPs.

    Attributes:
        full: matmul FLOPs with attention counted over the whole query x key square.
        causal: matmul FLOPs over the unmasked pairs only; ``None`` means the same as ``full``.
        hardware: matmul FLOPs that the operator really does, its own recomputation and masked-out pairs
            that it computes anyway included; ``None`` means the same as ``full``.
        vector: elementwise FLOPs, an estimate per element stated where the rule stands.
        nbytes: least bytes moved, of communication those of its message; ``None`` means every tensor input read
            once and every output written once.
        dtype: what it multiplies in; empty for the dtype of its first floating tensor.
        bound: whether the FLOPs are only known not to be more.
    """

    full: int = 0
    causal: int | None = None
    hardware: int | None = None
    vector: int = 0
    nbytes: int | None = None
    dtype: str = ""
    bound: bool = False


RuleFunction = Callable[..., Cost | int | None]


class Rule(NamedTuple):
    """A rule, the kind of work it describes, and whether it needs values."""

    cost: RuleFunction
    kind: Kind
    values: bool = False


_RULES: dict[str, Rule] = {}


def flop_rule(*names: str, kind: Kind = "matmul", values: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function as the FLOP rule of the named operators.

    The function is called with the operator's own arguments, positional and keyword as the schema has them,
    every tensor replaced by its `TensorSpec`, and with the keyword ``out``: the `TensorSpec` of the result,
    or a tuple of them. An ``out`` argument of the operator's own is the same tensor as its result and is not
    passed twice. It returns a `Cost`, or a plain number of matmul FLOPs, or None where shapes alone do not
    tell the cost (a page table): the call then counts as one without a rule.

    Args:
        names: ``namespace::name``, or ``namespace::name.overload`` for one overload alone. A rule of one's
            own replaces the built-in one.
        kind: the kind of work, by which reports group operators.
        values: whether the rule reads `TensorSpec.values`: offsets of packed sequences, places in a sparse matrix.

    Raises:
        GpuprofError: there is no name, or it is none: the decorator is called, ``@flop_rule("mylib::op")``.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise GpuprofError('a FLOP rule needs the names of its operators: @gpuprof.flop_rule("mylib::op")')

    def register(cost: RuleFunction) -> RuleFunction:
        for name in names:
            _RULES[name] = Rule(cost, kind, values)
        return cost

    return register


def rule_for(op: str) -> Rule | None:
    """The rule of an operator, ``namespace::name`` or ``namespace::name.overload``; None if there is none.

    Whatever `gpuprof.theory.names.communicates` has one: `message`, unless another is registered.
    """
    return _RULES.get(op) or _RULES.get(without_overload(op)) or (_COMMUNICATION if communicates(op) else None)


def message(*args: Any, out: Any = None, **kwargs: Any) -> Cost:
    """Cost of communication: no FLOPs, and the bytes of the message as this process sees it.

    They are numel x itemsize of the largest argument or result, a list of tensors being one: what an all-reduce or a
    broadcast works on in place, what a gather receives, what a scatter sends. They are not those on the wire, which
    depend on the algorithm, nor those of memory.
    """
    return Cost(nbytes=max(map(bytes_of, (*args, *kwargs.values(), out))))


_COMMUNICATION = Rule(message, "communication")


def cost_of(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[Cost, Kind] | None:
    """Cost of one call, or None where the operator has no rule or its rule cannot tell from these arguments.

    Args:
        op: ``namespace::name.overload``.
        args: positional arguments, tensors as `TensorSpec`.
        kwargs: keyword arguments, likewise.
        out: the result, likewise.

    Raises:
        GpuprofError: The rule fails, or gives less than nothing.
    """
    rule = rule_for(op)
    if rule is None:
        return None
    try:
        cost = rule.cost(*args, **{**kwargs, "out": out})
        if cost is not None and not isinstance(cost, Cost):
            cost = Cost(full=int(cost))
    except NotKnownError:
        return None
    except Exception as error:  # whatever a rule of the user's own may raise
        raise GpuprofError(f"the FLOP rule of {op} raised {type(error).__name__}: {error}") from error
    if cost is not None and min(cost.full, cost.causal or 0, cost.hardware or 0, cost.vector) < 0:
        raise GpuprofError(f"the FLOP rule of {op} gives less than 0 FLOPs: {cost}")
    return None if cost is None else (cost, rule.kind)


def total(costs: Sequence[Cost]) -> Cost:
    """What calls cost together."""
    return Cost(
        full=sum(cost.full for cost in costs),
        causal=sum(cost.full if cost.causal is None else cost.causal for cost in costs),
        hardware=sum(cost.full if cost.hardware is None else cost.hardware for cost in costs),
        vector=sum(cost.vector for cost in costs),
        nbytes=None if any(cost.nbytes is None for cost in costs) else sum(cost.nbytes or 0 for cost in costs),
        dtype=costs[0].dtype if costs else "",
        bound=any(cost.bound for cost in costs),
    )


def tensors(value: Any) -> Iterator[TensorSpec]:
    """Every `TensorSpec` in a nest of lists, tuples and dicts, in order.

    Raises:
        NotKnownError: nobody knows whether there is another, see `MISSING`.
    """
    if isinstance(value, TensorSpec):
        yield value
    elif isinstance(value, Missing):
        if not value.number:
            raise NotKnownError
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def bytes_of(*values: Any) -> int:
    """Bytes of every tensor in a nest of lists, tuples and dicts."""
    return sum(spec.nbytes for spec in tensors(values))


def least_bytes(cost: Cost, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Least bytes one call must move.

    They are what its rule says, else every input read once and every output written once.
    A `TensorSpec` has no strides, so an expanded input counts as if it were dense, and a tensor passed twice
    is read twice.

    Args:
        cost: what `cost_of` returned.
        kind: likewise; a view moves nothing.
        args: positional arguments, tensors as `TensorSpec`.
        kwargs: keyword arguments, likewise; those named ``out...`` are only written.
        out: the result, likewise.
    """
    if kind == "view":
        return 0
    if cost.nbytes is not None:
        return cost.nbytes
    inputs = [value for name, value in kwargs.items() if not name.startswith("out")]
    return bytes_of(args, inputs, out)
