"""flex_attention in the counting pass: one operator forward and one backward, carried out by a stand-in.

It is made to be compiled. Eagerly it spells out the whole square, has no backward on a CPU and no `meta` at all, and
a compiled one hides from the count. What it costs is known from its arguments, so while counting a plain attention
computes in its place: of the same shapes, at the same order of memory, but without its mask and score function.

Its block mask is counted where it has values: the pairs that it leaves by its function, the pairs in the blocks that a
kernel computes by its lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.attention.flex_attention
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch.utils._python_dispatch import _disable_current_modes

from gpuprof.theory.attention import BLOCKS
from gpuprof.undo import patched

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
    # another torch without one of these: flex_attention is then counted as that torch lets it be
    whole = all(hasattr(library, name) for name in ours)
    with patched(library, ours if whole else {}):
        yield


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, book: Book, query: Any, key: Any, value: Any, *rest: Any) -> Any:
        def run() -> tuple[torch.Tensor, ...]:
            with _disable_current_modes():
                scores = query.new_zeros(query.shape[:-1], dtype=torch.float32)
                return _attend(query, key, value), scores, scores.clone()

        score_mod, block_mask, *options = rest
        left = pairs_left(block_mask, query, key)
        rest = (score_mod, block_mask if left is None else (BLOCKS, *left), *options)
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


def pairs_left(block_mask: tuple[Any, ...], query: torch.Tensor, key: torch.Tensor) -> tuple[int, int] | None:
    """Query-key pairs of all heads and batches that a block mask leaves, and those in the blocks that are computed.

    Blocks end where the sequences do. A mask of one batch or one head is that of all.

    Args:
        block_mask: as flex_attention hands it to its operator, ``BlockMask.as_tuple()``.
        query: of shape (batch, heads, queries, size of a head).
        key: of shape (batch, key heads, keys, size of a head).

    Returns:
        None where the mask has no values, its function cannot be asked, or it is the one that torch makes up.
    """
    counts, indices, full_counts, full_indices = block_mask[2:6]
    height, width, mask_mod = block_mask[-3:]
    if tuple(block_mask[:2]) == (1, 1) or counts.is_meta:
        return None
    batch, heads, queries = query.shape[:3]
    keys = key.shape[2]
    with _disable_current_modes(), torch.no_grad():
        partial = _blocks(counts, indices)
        whole = partial[:0] if full_counts is None else _blocks(full_counts, full_indices)
        sizes = [
            (queries - blocks[:, 2] * height).clamp(0, height) * (keys - blocks[:, 3] * width).clamp(0, width)
            for blocks in (partial, whole)
        ]
        in_whole, in_partial = int(sizes[1].sum()), int(sizes[0].sum())
        try:
            unmasked = _unmasked(mask_mod, partial, (min(height, queries), min(width, keys)), (queries, keys))
        except Exception:  # a function of the user's, that only a compiler may be able to run
            return None
    times = batch * heads // (counts.shape[0] * counts.shape[1])
    return (in_whole + unmasked) * times, (in_whole + in_partial) * times


def _blocks(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Batch, head, row and column of every block in a list: so many of the indices in each row are in use."""
    used = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    return torch.cat([used.nonzero()[:, :3], indices[used][:, None]], dim=1).long()


def _unmasked(mask_mod: Any, blocks: torch.Tensor, size: tuple[int, int], ends: tuple[int, int]) -> int:
    """Pairs in these blocks, within the sequences, for which the function of a mask is true."""
    over_keys = torch.vmap(mask_mod, in_dims=(None, None, None, 0))
    over_all = torch.vmap(torch.vmap(over_keys, in_dims=(None, None, 0, None)))
    at_once = max(_AT_ONCE // (size[0] * size[1]), 1)
    found = 0
    for some in blocks.split(at_once):
        rows, columns = (
            some[:, 2 + axis, None] * size[axis] + torch.arange(size[axis], device=some.device) for axis in (0, 1)
        )
        inside = (rows < ends[0])[:, :, None] & (columns < ends[1])[:, None, :]
        with TransformGetItemToIndex():  # such functions look tensors up by a position: document[q]
            # positions beyond the ends are nobody's, but must be there to be looked up
            left = over_all(some[:, 0], some[:, 1], rows.clamp(max=ends[0] - 1), columns.clamp(max=ends[1] - 1))
        found += int((left & inside).sum())
    return found


_AT_ONCE = 1 << 24  # pairs that a mask function is asked for in one call


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    shared = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=shared)
