"""FLOPs of shapes between others that were counted: of most models they are a polynomial of batch size and length."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction
from itertools import product

import torch

from gpuprof.meter.work import Work

_DEGREE = 2  # in one size: attention is the square of a length
_TOTAL = 3  # in all of them: that square for each of a batch
_PROOFS = 2  # points beside those that a polynomial is made of, which it has to meet to the FLOP

Key = tuple[tuple[tuple[str, torch.Size | int, torch.dtype], ...], bool, torch.dtype | None]
"""Of a micro-batch: its tensors as `gpuprof.meter.signature.key_of` has them, training or not, dtype of autocast."""


class Shapes:
    """What was counted, by what is the same of it but for sizes."""

    def __init__(self) -> None:
        self._points: dict[Hashable, list[tuple[tuple[int, ...], Work]]] = {}

    def add(self, key: Key, work: Work) -> None:
        """A signature was counted."""
        family, sizes = _family(key)
        self._points.setdefault(family, []).append((sizes, work))

    def work(self, key: Key) -> Work | None:
        """The work of a signature that was not counted; None where that is not proven. See `between`."""
        family, sizes = _family(key)
        return between(self._points.get(family, []), sizes)


def _family(key: Key) -> tuple[Hashable, tuple[int, ...]]:
    tensors, *rest = key
    shapes = [shape if isinstance(shape, torch.Size) else () for _, shape, _ in tensors]
    names = tuple((name, len(shape), dtype) for (name, _, dtype), shape in zip(tensors, shapes, strict=True))
    return (names, *rest), tuple(size for shape in shapes for size in shape)


def between(points: Sequence[tuple[tuple[int, ...], Work]], sizes: tuple[int, ...]) -> Work | None:
    """The work at some sizes, by the polynomial through points.

    It is of degree 2 in each of at most two sizes, of 3 in both. There has to be only one that goes through the points,
    and two more of them have to lie on it, to the FLOP. Outside of what was counted nothing is said: what attends to
    a window, say, is another polynomial beyond it. Nor is it for a size that the differences of those counted cannot
    make: of multiples of 16 a model that pads to these is a polynomial too, and of the sizes between them it is not.

    Args:
        points: sizes and work of what was counted.
        sizes: those that are asked for, as many.

    Returns:
        None where that is not so; without the hardware's FLOPs where only those, which tiles round up, are not.
    """
    where: dict[tuple[int, ...], int] = {}  # each size that varies, by its values at the points: what is asked for
    for values, size in zip(zip(*(point for point, _ in points), strict=True), sizes, strict=False):
        if not min(values) <= size <= max(values) or where.setdefault(values, size) != size:
            return None
        grid = math.gcd(*(value - values[0] for value in values))
        if grid and (size - values[0]) % grid:
            return None
    varying = [values for values in where if len(set(values)) > 1]
    exponents = [
        each for each in product(range(_DEGREE + 1), repeat=len(varying)) if sum(each) <= _TOTAL
    ]  # fmt: skip
    if not varying or len(varying) > 2 or len(points) < len(exponents) + _PROOFS:
        return None
    rows = [[_power(at, each) for each in exponents] for at in zip(*varying, strict=True)]
    asked = [_power([where[values] for values in varying], each) for each in exponents]
    works = [work for _, work in points]
    model = _at(rows, [work.model for work in works], asked)
    if model is None:
        return None
    hardware = [work.hardware for work in works if work.hardware is not None]
    return Work(model, _at(rows, hardware, asked) if len(hardware) == len(works) else None)


def _power(sizes: Sequence[int], exponents: Sequence[int]) -> int:
    return math.prod(size**exponent for size, exponent in zip(sizes, exponents, strict=True))


def _at(rows: list[list[int]], flops: Sequence[dict[str, int]], asked: list[int]) -> dict[str, int] | None:
    """FLOPs by dtype where the terms are those asked for; None where no polynomial, or more than one, fits all rows."""
    dtypes = sorted({dtype for each in flops for dtype in each})
    solved = _solved([
        [*map(Fraction, row), *(Fraction(each.get(dtype, 0)) for dtype in dtypes)]
        for row, each in zip(rows, flops, strict=True)
    ], len(asked))  # fmt: skip
    if solved is None:
        return None
    found = {
        dtype: sum(term * coefficients[place] for term, coefficients in zip(asked, solved, strict=True))
        for place, dtype in enumerate(dtypes)
    }
    if any(amount < 0 or amount.denominator != 1 for amount in map(Fraction, found.values())):
        return None
    return {dtype: int(amount) for dtype, amount in found.items() if amount}


def _solved(rows: list[list[Fraction]], unknowns: int) -> list[list[Fraction]] | None:
    """Gauss's elimination: for each unknown its value under each right-hand side, which the rows end with."""
    for column in range(unknowns):
        pivot = next((row for row in range(column, len(rows)) if rows[row][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for row in range(len(rows)):
            if row != column and rows[row][column]:
                factor = rows[row][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    if any(value for row in rows[unknowns:] for value in row):
        return None
    return [row[unknowns:] for row in rows[:unknowns]]
