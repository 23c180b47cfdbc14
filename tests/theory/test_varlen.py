"""Attention over packed sequences: from the offsets, or at most so much."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.attention.varlen
from torch.utils.flop_counter import flop_registry

from gpuprof.theory import TensorSpec, cost_of
from gpuprof.theory.rows import Row, flash, torch_counter

T = TensorSpec
LENGTHS = (3, 5, 2)
HEADS, QK, V = 4, 8, 6
FULL = 9 + 25 + 4
CAUSAL = 6 + 15 + 3
WINDOW = (3 + 2) + (5 + 4) + (2 + 1)  # its own key and the one before


def offsets(lengths, known=True):
    values = (0, *itertools.accumulate(lengths))
    return T((len(values),), "int32", values=values if known else None)


def tensors(total=10):
    return T((total, HEADS, QK)), T((total, 2, QK)), T((total, 2, V))


def figures(pairs, backward=False):
    return 2 * HEADS * pairs * (QK + V) * (2 if backward else 1)


def calls(cu, causal, left=-1, right=-1):
    """One call of each operator: name, arguments, keywords, whether it is a backward."""
    q, k, v = tensors()
    o, lse, state = T((10, HEADS, V)), T((HEADS, 10)), T((2,), "int64")
    of, window = (q, k, v), {"window_size_left": left, "window_size_right": right}
    back = o, *of, o, lse
    lengths = cu, cu, 5, 5
    cuda = *lengths, 0.0, 1.0, causal, left, right
    third = 1.0, causal, left, right
    yield "torch_attn::_varlen_attn", (*of, *lengths, causal, None, [left, right]), {}, False
    yield "torch_attn::_varlen_attn_out", (o, *of, *lengths, causal, None, [left, right]), {}, False
    yield "torch_attn::_varlen_attn_backward", (*back, *lengths, causal, state, None, [left, right]), {}, True
    yield "aten::_flash_attention_forward", (*of, *lengths, 0.0, causal, False), window, False
    yield "aten::_flash_attention_backward", (*back, *lengths, 0.0, causal, state, state), window, True
    for package in ("flash_attn", "flashattn"):
        yield f"{package}::_flash_attn_varlen_forward", (*of, *cuda), {}, False
        yield f"{package}::_flash_attn_varlen_backward", (*back, *of, *cuda), {}, True
    yield (
        "flash_attn_3::_flash_attn_forward",
        (*of, *[None] * 4, cu, cu, *[None] * 3, 5, 5, *[None] * 9, *third),
        {},
        False,
    )
    yield "flash_attn_3::_flash_attn_backward", (*back, cu, cu, None, None, 5, 5, *of, *third), {}, True
    if left < 0:
        yield "aten::_cudnn_attention_forward", (*of, None, *lengths, True, 0.0, causal), {}, False
        yield "aten::_cudnn_attention_backward", (*back, state, state, None, *lengths, 0.0, causal), {}, True
    one = tuple(T((1, *x.shape)) for x in of)
    kernel = {"window_size": left + 1} if left >= 0 else {}
    yield "aten::_efficient_attention_forward", (*one, None, *lengths, 0.0, int(causal)), kernel, False
    saved = T((1, 10, HEADS, V)), T((1, HEADS, 10))
    args = (saved[0], *one, None, saved[0], *lengths, saved[1], 0.0, state, state, int(causal), False)
    yield "aten::_efficient_attention_backward", args, kernel, True


def of_all(causal, left=-1, right=-1, known=True):
    found = {}
    for op, args, kwargs, backward in calls(offsets(LENGTHS, known), causal, left, right):
        cost, kind = cost_of(f"{op}.default", args, kwargs, T(()))
        assert kind == "attention"
        found[op] = (cost, backward)
    return found


@pytest.mark.parametrize(
    ("causal", "left", "pairs"),
    [(False, -1, FULL), (True, -1, CAUSAL), (True, 1, WINDOW)],
    ids=["full", "causal", "window"],
)
def test_every_kernel_is_exact_from_the_offsets(causal, left, pairs):
    for op, (cost, backward) in of_all(causal, left, 0 if causal else -1).items():
        assert (cost.full, cost.causal) == (figures(FULL, backward), figures(pairs, backward)), op
        recomputed = 2 * HEADS * pairs * QK if backward else 0
        assert cost.hardware == figures(pairs, backward) + recomputed, op
        assert not cost.bound


@pytest.mark.parametrize(("causal", "pairs"), [(False, 50), (True, 30)])
def test_without_values_as_many_of_the_longest_as_there_are_tokens_for(causal, pairs):
    for op, (cost, backward) in of_all(causal, known=False).items():
        assert cost.bound, op
        assert (cost.full, cost.causal) == (figures(50, backward), figures(pairs, backward)), op
        assert cost.causal >= figures(CAUSAL if causal else FULL, backward)


def test_a_rest_of_tokens_is_one_shorter_sequence():
    q, k, v = tensors(12)
    args = q, k, v, offsets((5, 5, 2), known=False), None, 5, 5, False
    assert cost_of("torch_attn::_varlen_attn.default", args, {}, q)[0].full == figures(25 + 25 + 4)


def test_neither_values_nor_a_longest_length_is_no_rule():
    q, k, v = (T((1, *x.shape)) for x in tensors())
    args = q, k, v, None, offsets(LENGTHS, known=False), offsets(LENGTHS, known=False), None, None, 0.0, 1
    assert cost_of("aten::_efficient_attention_forward.default", args, {}, q) is None


def test_queries_that_meet_a_cache():
    q, (_, k, v) = T((3, HEADS, QK)), tensors(20)
    one = offsets((1, 1, 1))
    # three queries, the last of their sequences: all keys are earlier ones
    args = q, k, v, one, offsets((4, 6, 10)), 1, 10, True
    assert cost_of("torch_attn::_varlen_attn.default", args, {}, q)[0].causal == figures(4 + 6 + 10)
    pages = T((8, 16, 2, QK)), T((8, 16, 2, V))
    used, table = T((3,), "int32", values=(7, 20, 33)), T((3, 4), "int32")
    args = q, *pages, one, None, 1, 33, True, None, None, False, used, table
    assert cost_of("torch_attn::_varlen_attn.default", args, {}, q)[0].full == figures(7 + 20 + 33)
    # of a batch that is not packed, through a page table
    batch = T((3, 2, HEADS, QK))
    third = batch, *pages, *[None] * 5, *[None] * 3, used, 2, 33, table, *[None] * 8, 1.0, True, -1, -1
    cost = cost_of("flash_attn_3::_flash_attn_forward.default", third, {}, batch)[0]
    assert (cost.full, cost.causal) == (figures(2 * 60), figures(2 * 60 - 3))
    # how much is used is not known: no query sees more than the longest
    args = q, *pages, one, None, 1, 33, True, None, None, False, T((3,), "int32"), table
    cost = cost_of("torch_attn::_varlen_attn.default", args, {}, q)[0]
    assert (cost.full, cost.bound) == (figures(3 * 33), True)


def test_torch_counts_the_same_squares():
    op = torch.ops.torch_attn._varlen_attn
    if op not in flop_registry:
        pytest.skip("not in this torch's registry")
    q = torch.empty(10, HEADS, QK, device="meta")
    cu = torch.tensor((0, *itertools.accumulate(LENGTHS)))
    theirs = flop_registry[op](q, q, q, cu, cu, 5, 5, True, out_val=(q,))
    assert theirs == 2 * HEADS * FULL * (QK + QK)


@pytest.mark.parametrize("backward", [False, True])
def test_conventions_of_others(backward):
    """The flash convention halves each square; FlopCounterMode takes it whole, and five products backward."""
    name = "torch_attn::_varlen_attn_backward" if backward else "torch_attn::_varlen_attn"
    shapes = tuple(x.shape for x in tensors())
    row = Row(
        op=name, kind="attention", phase="backward" if backward else "forward", module_class="", attends=True,
        inputs=((10, HEADS, V), *shapes) if backward else shapes, results=(), calls=1,
        causal=figures(CAUSAL, backward), full=figures(FULL, backward), device="cuda",
    )  # fmt: skip
    assert flash(row).flops == figures(FULL, backward) // 2 * (5 if backward else 4) // 4
    assert torch_counter(row).flops == figures(FULL, backward) + (2 * HEADS * FULL * QK if backward else 0)
