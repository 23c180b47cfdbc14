"""Names, kinds and shapes of operators."""

from __future__ import annotations

PRODUCTS = ("matmul", "convolution", "attention", "recurrent")
"""Kinds of operators that multiply matrices."""


def plain_op(op: str) -> str:
    """An operator without its overload, in place or not: ``aten::add`` for ``aten::add_.Tensor``."""
    return op.partition(".")[0].rstrip("_")


def input_shapes(shapes: str) -> str:
    """Shapes of a row of ``ops`` as a row of ``kernels`` has them: of the tensor inputs alone."""
    return " ".join(shape for shape in shapes.partition("->")[0].split() if shape != "scalar")
