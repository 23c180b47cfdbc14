"""What results are made of, shapes that broadcast and dtypes that promote, and where each operator's is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..rules import ITEM_BYTES, Missing, NotKnownError, TensorSpec

Result = Callable[..., Any]

RESULTS: dict[str, Result] = {}

# torch's numbers of dtypes, as arguments have them
_DTYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
    8: "complex32", 9: "complex64", 10: "complex128", 11: "bool", 12: "qint8", 13: "quint8", 14: "qint32",
    15: "bfloat16", 23: "float8_e5m2", 24: "float8_e4m3fn", 25: "float8_e5m2fnuz", 26: "float8_e4m3fnuz", 27: "uint16",
    28: "uint32", 29: "uint64", 44: "float8_e8m0fnu", 45: "float4_e2m1fn_x2",
}  # fmt: skip


def gives(names: str, namespace: str = "aten") -> Callable[[Result], Result]:
    """Register the decorated function, which has the operators' own arguments, for these names."""

    def register(result: Result) -> Result:
        RESULTS.update({f"{namespace}::{name}": result for name in names.split()})
        return result

    return register


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that these broadcast to.

    Raises:
        ValueError: they do not.
    """
    sizes = []
    for at in range(-max(map(len, shapes), default=0), 0):
        found = {shape[at] for shape in shapes if len(shape) >= -at} - {1}
        if len(found) > 1:
            raise ValueError(f"{shapes} do not broadcast")
        sizes.append(found.pop() if found else 1)
    return tuple(sizes)


_COMPLEX = {"float16": "complex32", "bfloat16": "complex64", "float32": "complex64", "float64": "complex128"}


def kind_of(dtype: str) -> int:
    """Of bool, integer, floating and complex, which decide before the size."""
    return 0 if dtype == "bool" else 1 if "int" in dtype else 3 if dtype.startswith("complex") else 2


def promoted(*operands: Any) -> str:
    """The dtype that operands promote to; empty where that of a tensor is not known.

    Tensors with dimensions decide before those without, and these before numbers: the latter count only where they are
    of a higher kind (bool, integer, floating, complex). A `MISSING` number is taken to be a real one.

    Args:
        operands: tensors and numbers of Python; what is neither does not count.
    """
    levels: tuple[list[str], ...] = ([], [], [])
    unknown = any(isinstance(value, Missing) for value in operands)
    for value in operands:
        if isinstance(value, TensorSpec):
            levels[0 if value.shape else 1].append(value.dtype)
        elif isinstance(value, (bool, int, float, complex)):
            levels[2].append({bool: "bool", int: "int64", float: "float32", complex: "complex64"}[type(value)])
    best = ""
    for level in levels:
        if not all(level):
            return ""
        for dtype in level[1:]:
            level[0] = _higher(level[0], dtype)
        if level and (not best or kind_of(level[0]) > kind_of(best)):
            best = _COMPLEX[best] if best in _COMPLEX and kind_of(level[0]) == 3 else level[0]
    return "" if unknown and best and kind_of(best) < 2 else best


def _higher(a: str, b: str) -> str:
    low, high = sorted((a, b), key=lambda dtype: (kind_of(dtype), ITEM_BYTES.get(dtype, 1)))
    if kind_of(high) == 3:
        return max(_COMPLEX.get(low, low), high, key=lambda dtype: ITEM_BYTES[dtype] if kind_of(dtype) == 3 else 0)
    if {a, b} == {"float16", "bfloat16"}:
        return "float32"
    return "int16" if {a, b} == {"int8", "uint8"} else high


def fraction(dtype: str) -> str:
    """What arithmetic that leaves the integers makes of a dtype."""
    return "float32" if dtype and kind_of(dtype) < 2 else dtype


def dtype_of(number: Any, default: str) -> str:
    """The dtype that an argument names, its default where it names none."""
    if isinstance(number, Missing):
        raise NotKnownError
    return default if number is None else _DTYPES[number]


def spec_of(shape: Sequence[int], dtype: str) -> TensorSpec:
    """A tensor of this shape and dtype."""
    return TensorSpec(tuple(shape), dtype)


def like(x: TensorSpec, shape: Sequence[int]) -> TensorSpec:
    """A tensor of this shape, of the dtype of another."""
    return TensorSpec(tuple(shape), x.dtype)


def only_if(mask: Any, x: TensorSpec | None) -> TensorSpec | None:
    """A gradient that is asked for; None where it is not."""
    return x if mask else None


def first(x: TensorSpec, *_: Any) -> TensorSpec:
    """The first argument, as the result of what changes it in place or leaves its shape and dtype."""
    if not isinstance(x, TensorSpec):
        raise NotKnownError
    return x


def second(_x: Any, y: TensorSpec, *_: Any) -> TensorSpec:
    """The second, likewise."""
    return first(y)


def per_dim(value: Any, dims: int) -> Sequence[int]:
    """A size for each dimension, where one may be given for all."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * dims if len(sizes) == 1 else sizes


def shape_of(*operands: Any) -> tuple[int, ...]:
    """The shape that tensors among the operands broadcast to."""
    return broadcast(*(value.shape for value in operands if isinstance(value, TensorSpec)))


def pair(a: Any, b: Any, *_: Any) -> TensorSpec:
    """Two operands, broadcast and promoted."""
    return spec_of(shape_of(a, b), promoted(a, b))


def resized(x: TensorSpec, dim: int, size: int) -> TensorSpec:
    """A tensor that has another size in one dimension."""
    shape = list(x.shape)
    shape[dim] = size
    return like(x, shape)


def accumulated(dtype: str) -> str:
    """The dtype that sums of a dtype are kept in."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype
