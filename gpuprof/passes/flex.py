"""flex_attention in the counting pass: one operator forward and one backward, carried out by a stand-in.

It is made to be compiled. Eagerly it spells out the whole square, has no backward on a CPU and no `meta` at all, and
a compiled one hides from the count. What it costs is known from its arguments, so while counting a plain attention
computes in its place: of the same shapes, at the same order of memory, but without its mask and score function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.attention.flex_attention
from torch.utils._python_dispatch import _disable_current_modes

Book = Callable[[Any, tuple[Any, ...], Callable[[], Any]], Any]
"""Counts a call of an operator with these arguments, and returns what the given function computes."""


@contextmanager
def flex_attention_booked(book: Book) -> Iterator[None]:
    """Book every call of flex_attention, compiled or not, where compilation is off; put back afterwards."""
    library: Any = torch.nn.attention.flex_attention
    ours = {
        "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True,
        "_validate_device": lambda *_: None,
        "flex_attention_hop": lambda *args, **_: _StandIn.apply(book, *args),
    }
    theirs = {name: getattr(library, name, None) for name in ours}
    if None in theirs.values():  # another torch: flex_attention is then counted as that torch lets it be
        yield
        return
    vars(library).update(ours)
    try:
        yield
    finally:
        vars(library).update(theirs)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, book: Book, query: Any, key: Any, value: Any, *rest: Any) -> Any:
        def run() -> tuple[torch.Tensor, ...]:
            with _disable_current_modes():
                scores = query.new_zeros(query.shape[:-1], dtype=torch.float32)
                return _attend(query, key, value), scores, scores.clone()

        out, lse, most = book(torch.ops.higher_order.flex_attention, (query, key, value, *rest), run)
        ctx.book, ctx.rest = book, rest
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.mark_non_differentiable(lse, most)
        return out, lse, most

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, lse = ctx.saved_tensors

        def run() -> tuple[torch.Tensor, ...]:
            with _disable_current_modes(), torch.enable_grad():
                inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
                return torch.autograd.grad(_attend(*inputs), inputs, grads[0])

        _, block_mask, *options = ctx.rest
        args = (query, key, value, out, lse, grads[0], None, None, None, block_mask, *options)
        given = ctx.book(torch.ops.higher_order.flex_attention_backward, args, run)
        return None, *given, *(None for _ in ctx.rest)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    shared = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=shared)
