"""Shape and dtype of an operator's result from its arguments, for those who have recorded no more than these.

Arguments stand in the order of the operator's schema, as a trace has them: keyword arguments among the others, and an
``out`` argument behind them. Of an operator that is not here, or where an argument that decides is `MISSING`, the
result is `MISSING` too: it is never guessed. A factory that is told no dtype takes torch's default one, which nobody
records either: there the dtype is empty.
"""

from __future__ import annotations

from typing import Any

from ..rules import MISSING, NotKnownError, tensors
from . import attention, elementwise, layouts, products, reductions
from .base import RESULTS, accumulated, first

__all__ = ["attention", "elementwise", "layouts", "products", "reductions", "result_of"]

# a GPU keeps the statistics of these in float32, whatever the dtype of what they are of
_STATISTICS = frozenset(["aten::native_layer_norm", "aten::native_group_norm", "aten::native_batch_norm"])


def result_of(op: str, args: tuple[Any, ...], device: str) -> Any:
    """The result of a call: a `TensorSpec`, a tuple of them, None where there is none, `MISSING` where nobody knows.

    Args:
        op: ``namespace::name``.
        args: all of the schema's arguments in its order, tensors as `TensorSpec`.
        device: type of the device.
    """
    found = RESULTS.get(op)
    if found is None and op.startswith("aten::") and op.endswith("_") and not op.startswith("aten::_"):
        found = first
    if found is None:
        return MISSING
    try:
        result = found(*args)
        for spec in tensors(result):
            if not all(isinstance(size, int) and size >= 0 for size in spec.shape):
                return MISSING
    except (NotKnownError, ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError):
        return MISSING  # arguments that nobody recorded, or that no call of this operator in a torch of today has
    if op in _STATISTICS and device != "cpu":
        return (result[0], *(spec._replace(dtype=accumulated(spec.dtype)) for spec in result[1:]))
    return result
