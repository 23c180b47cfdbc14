"""Names and kinds of operators."""

from __future__ import annotations

PRODUCTS = ("matmul", "convolution", "attention", "recurrent")
"""Kinds of operators that multiply matrices."""


def plain_op(op: str) -> str:
    """An operator without its overload, in place or not: ``aten::add`` for ``aten::add_.Tensor``."""
    return op.partition(".")[0].rstrip("_")
