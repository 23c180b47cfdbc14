from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gpuprof.theory import AttentionFacts, TensorSpec, cost_of, masked_matmul, unmasked_pairs, with_facts
from gpuprof.theory.masks import _band

T = TensorSpec
CAUSAL = AttentionFacts(causal=True, window=None, head_dims=(8, 8))


def test_unmasked_pairs_against_counting_them():
    windows = [None, *range(1, 10)]
    for queries, keys, causal, window, align in itertools.product(
        range(9), range(9), (True, False), windows, ("top-left", "bottom-right")
    ):
        offset = keys - queries if align == "bottom-right" else 0
        seen = 0
        for query, key in itertools.product(range(queries), range(keys)):
            behind = query + offset - key
            near = window is None or abs(behind) < window
            seen += near and (behind >= 0 or not causal)
        case = queries, keys, causal, window, align
        assert unmasked_pairs(queries, keys, causal=causal, window=window, align=align) == seen, case


def test_a_band_with_different_reach_to_each_side_against_counting_it():
    for queries, keys, left, right in itertools.product(range(7), range(7), (None, 0, 1, 3), (None, 0, 2, 4)):
        seen = sum(
            (left is None or key >= query + keys - queries - left)
            and (right is None or key <= query + keys - queries + right)
            for query in range(queries)
            for key in range(keys)
        )
        assert _band(queries, keys, left, right, "bottom-right") == seen


def test_pairs_are_a_closed_form():
    # A loop would not end.
    n = 10**9
    assert unmasked_pairs(n, n, causal=True) == n * (n + 1) // 2
    assert unmasked_pairs(n, n, causal=True, window=100) == 100 * n - 99 * 100 // 2


# Two batches of three query heads and one key head, 4 queries, 6 keys, head sizes 8 and 5.
Q, K, V, OUT = T((2, 3, 4, 8)), T((2, 1, 6, 8)), T((2, 1, 6, 5)), T((2, 3, 4, 5))
Qs, Ks, Vs, RAW_OUT = T((2, 4, 3, 8)), T((2, 6, 1, 8)), T((2, 6, 1, 5)), T((2, 4, 3, 5))
LSE, SEED, MASK = T((2, 3, 4)), T((), "int64"), T((1, 1, 4, 6))
SQUARE, TOP_LEFT, BOTTOM_RIGHT = 24, 1 + 2 + 3 + 4, 3 + 4 + 5 + 6
HEADS = 6

FORWARD = {
    "_scaled_dot_product_flash_attention_for_cpu": ((Q, K, V, 0.0, True), TOP_LEFT),
    "_scaled_dot_product_flash_attention": ((Q, K, V, 0.0, True), BOTTOM_RIGHT),
    "_scaled_dot_product_flash_attention.quantized": ((Q, K, V, None, None, None, 0.0, True), BOTTOM_RIGHT),
    "_scaled_dot_product_efficient_attention": ((Q, K, V, None, True, 0.0, True), TOP_LEFT),
    "_scaled_dot_product_cudnn_attention": ((Q, K, V, None, True, 0.0, True), TOP_LEFT),
    "_scaled_dot_product_fused_attention_overrideable": ((Q, K, V, None, 0.0, True), TOP_LEFT),
    "scaled_dot_product_attention": ((Q, K, V, None, 0.0, True), TOP_LEFT),
    "_scaled_dot_product_attention_math": ((Q, K, V, None, 0.0, True), TOP_LEFT),
    "_flash_attention_forward": ((Qs, Ks, Vs, None, None, 4, 6, 0.0, True, False), BOTTOM_RIGHT),
    "_efficient_attention_forward": ((Qs, Ks, Vs, None, None, None, None, None, 0.0, 1), TOP_LEFT),
    "_cudnn_attention_forward": ((Q, K, V, None, None, None, 4, 6, True, 0.0, True), TOP_LEFT),
    "flash_attn::_flash_attn_forward": ((Qs, Ks, Vs, 0.0, 1.0, True, -1, -1, 0.0, None, False), BOTTOM_RIGHT),
    "flash_attn_3::_flash_attn_forward": ((Qs, Ks, Vs, *[None] * 21, True), BOTTOM_RIGHT),
}  # fmt: skip

_SDPA = OUT, Q, K, V
_RAW = RAW_OUT, Qs, Ks, Vs
BACKWARD = {
    "_scaled_dot_product_flash_attention_for_cpu_backward": ((*_SDPA, OUT, LSE, 0.0, True), TOP_LEFT),
    "_scaled_dot_product_flash_attention_backward": (
        (*_SDPA, OUT, LSE, None, None, 4, 6, 0.0, True, SEED, SEED), BOTTOM_RIGHT),
    "_scaled_dot_product_efficient_attention_backward": (
        (*_SDPA, None, OUT, LSE, SEED, SEED, 0.0, [True] * 4, True), TOP_LEFT),
    "_scaled_dot_product_cudnn_attention_backward": (
        (*_SDPA, OUT, LSE, SEED, SEED, None, None, None, 4, 6, 0.0, True), TOP_LEFT),
    "_scaled_dot_product_fused_attention_overrideable_backward": (
        (*_SDPA, None, [True] * 4, OUT, LSE, None, None, 4, 6, 0.0, True, SEED, SEED), TOP_LEFT),
    "_flash_attention_backward": (
        (*_RAW, RAW_OUT, LSE, None, None, 4, 6, 0.0, True, SEED, SEED), BOTTOM_RIGHT),
    "_efficient_attention_backward": (
        (*_RAW, None, RAW_OUT, None, None, 4, 6, LSE, 0.0, SEED, SEED, 2, False), BOTTOM_RIGHT),
    "_cudnn_attention_backward": (
        (*_SDPA, OUT, LSE, SEED, SEED, None, None, None, 4, 6, 0.0, True), TOP_LEFT),
    "flash_attn::_flash_attn_backward": (
        (*_RAW, RAW_OUT, LSE, Qs, Ks, Vs, 0.0, 1.0, True, -1, -1, 0.0, None, False), BOTTOM_RIGHT),
    "flash_attn_3::_flash_attn_backward": ((*_RAW, RAW_OUT, LSE, *[None] * 10, True), BOTTOM_RIGHT),
}  # fmt: skip


def full_name(name: str) -> str:
    name = name if "::" in name else f"aten::{name}"
    return name if "." in name else f"{name}.default"


@pytest.mark.parametrize("name", FORWARD)
def test_every_fused_forward_is_two_products(name):
    args, pairs = FORWARD[name]
    cost, kind = cost_of(full_name(name), args, {}, (OUT, LSE))
    assert kind == "attention"
    assert cost.full == HEADS * SQUARE * 2 * (8 + 5)
    assert cost.causal == cost.hardware == HEADS * pairs * 2 * (8 + 5)
    assert cost.vector == HEADS * pairs * 5
    assert with_facts(full_name(name), args, {}, (OUT, LSE), cost, kind, None) == (cost, True)


@pytest.mark.parametrize("name", BACKWARD)
def test_every_fused_backward_is_four_products_and_one_recomputed(name):
    args, pairs = BACKWARD[name]
    cost, kind = cost_of(full_name(name), args, {}, (Q, K, V))
    assert kind == "attention"
    assert cost.full == HEADS * SQUARE * 2 * 2 * (8 + 5)
    assert cost.causal == HEADS * pairs * 2 * 2 * (8 + 5)
    assert cost.hardware == HEADS * pairs * 2 * (3 * 8 + 2 * 5)


def test_with_equal_head_sizes_the_hardware_does_two_and_a_half_times_the_forward():
    q, lse = T((1, 2, 16, 8)), T((1, 2, 16))
    forward, _ = cost_of("aten::_scaled_dot_product_flash_attention_for_cpu.default", (q, q, q), {}, (q, lse))
    args = q, q, q, q, q, lse, 0.0, False
    backward, _ = cost_of("aten::_scaled_dot_product_flash_attention_for_cpu_backward.default", args, {}, ())
    assert backward.full == 2 * forward.full
    assert 2 * backward.hardware == 5 * forward.hardware


def test_sliding_windows_of_the_kernels():
    q = T((1, 8, 2, 4))
    raw = q, q, q, None, None, 8, 8, 0.0, True, False
    windowed, _ = cost_of("aten::_flash_attention_forward.default", raw, {"window_size_left": 2}, ())
    assert windowed.causal == 2 * (1 + 2 + 3 * 6) * 2 * 8
    package = q, q, q, 0.0, 1.0, False, 2, 1, 0.0, None, False
    both, _ = cost_of("flash_attn::_flash_attn_forward.default", package, {}, ())
    assert both.causal == 2 * (2 + 3 + 4 * 5 + 3) * 2 * 8
    efficient = q, q, q, None, None, None, None, None, 0.0, 1
    windowed, _ = cost_of("aten::_efficient_attention_forward.default", efficient, {"window_size": 3}, ())
    assert windowed.causal == 2 * (1 + 2 + 3 * 6) * 2 * 8


@pytest.mark.parametrize(("queries", "keys", "qk", "v"), [
    (6, 6, 8, 8), (6, 6, 8, 5), (8, 8, 8, 8), (3, 7, 8, 8), (8, 16, 8, 8), (4, 8, 8, 8),
    (6, 6, 6, 4), (4, 4, 6, 4), (1, 9, 8, 8), (3, 7, 8, 5),
])  # fmt: skip
@pytest.mark.parametrize("window", [None, 3])
def test_all_six_products_of_an_attention_also_where_a_head_is_as_long_as_the_sequence(queries, keys, qk, v, window):
    facts = AttentionFacts(True, window, (qk, v))
    pairs = unmasked_pairs(queries, keys, causal=True, window=window, align="bottom-right")
    products = {
        "scores": (queries, keys, qk),
        "values": (queries, v, keys),
        "grad of values": (keys, v, queries),
        "grad of probabilities": (queries, keys, v),
        "grad of queries": (queries, qk, keys),
        "grad of keys": (keys, qk, queries),
        "grad of transposed keys": (qk, keys, queries),
    }
    for name, (m, n, k) in products.items():
        head = v if name in ("values", "grad of values", "grad of probabilities") else qk
        assert masked_matmul(2 * 5 * m * n * k, m, n, k, facts) == 2 * 5 * pairs * head, name


def test_a_product_without_a_head_dimension_is_no_attention():
    assert masked_matmul(2 * 3 * 4 * 5, 3, 4, 5, CAUSAL) is None


def test_a_product_that_may_be_read_in_two_ways_is_not_known():
    # 64 new queries on 128 keys with heads of 192 and 128, or 64 on 192.
    facts = AttentionFacts(True, None, (192, 128))
    args = T((2, 64, 192)), T((2, 192, 128))
    cost, kind = cost_of("aten::bmm.default", args, {}, T((2, 64, 128)))
    assert masked_matmul(cost.full, 64, 128, 192, facts) is None
    assert with_facts("aten::bmm.default", args, {}, T((2, 64, 128)), cost, kind, facts) == (cost, False)


SCORES = (T((6, 4, 8)), T((6, 8, 4)))


@pytest.mark.parametrize(
    ("op", "args", "facts", "causal", "known"),
    [
        ("bmm", SCORES, None, None, True),
        ("bmm", SCORES, CAUSAL, 6 * 10 * 16, True),
        ("baddbmm", (T((6, 4, 4)), *SCORES), CAUSAL, 6 * 10 * 16, True),
        ("bmm", SCORES, AttentionFacts(False, None, (8,)), 6 * 16 * 16, True),
        ("bmm", SCORES, AttentionFacts(None, None, (8,)), None, False),
        ("bmm", SCORES, AttentionFacts(True, 2, (8,)), 6 * (1 + 2 + 2 + 2) * 16, True),
        # No dimension of a head: a product of another kind in the same module.
        ("bmm", (T((6, 4, 3)), T((6, 3, 4))), AttentionFacts(None, None, (8,)), None, True),
        ("mm", (T((4, 8)), T((8, 4))), CAUSAL, None, True),
    ],
)
def test_facts_decide_on_plain_products(op, args, facts, causal, known):
    out = T((6, 4, 4))
    cost, kind = cost_of(f"aten::{op}.default", args, {}, out)
    corrected, is_known = with_facts(f"aten::{op}.default", args, {}, out, cost, kind, facts)
    assert (corrected.causal, is_known) == (causal, known)
    assert (corrected.full, corrected.hardware, corrected.vector) == (cost.full, cost.hardware, cost.vector)


@pytest.mark.parametrize(
    ("facts", "pairs", "known"),
    [
        (None, SQUARE, False),
        (AttentionFacts(None, None, (8, 5)), SQUARE, False),
        (AttentionFacts(False, None, (8, 5)), SQUARE, True),
        (AttentionFacts(True, None, (8, 5)), BOTTOM_RIGHT, True),
        (AttentionFacts(True, 2, (8, 5)), 2 * 4, True),
    ],
)
def test_facts_decide_on_a_mask_tensor(facts, pairs, known):
    op = "aten::_scaled_dot_product_flash_attention_for_cpu.default"
    cost, kind = cost_of(op, (Q, K, V), {"attn_mask": MASK}, (OUT, LSE))
    corrected, is_known = with_facts(op, (Q, K, V), {"attn_mask": MASK}, (OUT, LSE), cost, kind, facts)
    square = HEADS * SQUARE * 2 * (8 + 5)
    assert (corrected.full, corrected.hardware) == (square, square)
    assert (corrected.causal, is_known) == (HEADS * pairs * 2 * (8 + 5), known)


def test_no_mask_at_all_is_known_to_be_full():
    op = "aten::_scaled_dot_product_efficient_attention.default"
    cost, kind = cost_of(op, (Q, K, V, None, False), {}, (OUT,))
    assert cost.causal == cost.full
    assert with_facts(op, (Q, K, V, None, False), {}, (OUT,), cost, kind, CAUSAL) == (cost, True)


@pytest.mark.parametrize("backward", [False, True])
def test_flex_attention(backward):
    op = "higher_order::flex_attention" + "_backward" * backward
    blocks = T((1, 1, 1), "int32")
    before = (Q, K, V, OUT, LSE, OUT, None, None, None) if backward else (Q, K, V, None)
    trivial = (*before, (1, 1, blocks, blocks, 1 << 30, 1 << 30, None), 1.0, {})
    masked = (*before, (4, 6, blocks, blocks, 128, 128, None), 1.0, {})
    full = HEADS * SQUARE * 2 * (8 + 5) * (1 + backward)
    hardware = HEADS * SQUARE * 2 * (3 * 8 + 2 * 5) if backward else full

    cost, kind = cost_of(op, trivial, {}, (OUT, LSE))
    assert (cost.full, cost.causal, cost.hardware) == (full, full, hardware)
    assert with_facts(op, trivial, {}, (OUT, LSE), cost, kind, None) == (cost, True)

    cost, kind = cost_of(op, masked, {}, (OUT, LSE))
    assert (cost.full, cost.causal, cost.hardware) == (full, full, hardware)
    assert with_facts(op, masked, {}, (OUT, LSE), cost, kind, None) == (cost, False)
    corrected, known = with_facts(op, masked, {}, (OUT, LSE), cost, kind, CAUSAL)
    # Blocks without an unmasked pair are skipped, so the hardware gets the mask's benefit too.
    assert known
    assert corrected.causal == full * BOTTOM_RIGHT // SQUARE
    assert corrected.hardware == hardware * BOTTOM_RIGHT // SQUARE


def total(calls, facts):
    full = causal = 0
    for call in calls:
        cost, kind = cost_of(*call)
        cost, known = with_facts(*call, cost, kind, facts)
        assert known, call
        full += cost.full
        causal += cost.full if cost.causal is None else cost.causal
    return full, causal


@pytest.mark.parametrize("seq", [6, 8, 16])
def test_eager_and_fused_and_masked_attention_cost_the_same_forward_and_backward(seq, record):
    figures = set()
    padded = torch.ones(2, seq, dtype=torch.long)
    padded[0, 0] = 0
    for attention, mask in (("eager", None), ("sdpa", None), ("sdpa", padded)):
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=50, attn_implementation=attention,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        ids = torch.randint(0, 50, (2, seq))
        with record() as forward:
            loss = model(input_ids=ids, labels=ids, attention_mask=mask).loss
        with record() as backward:
            loss.backward()
        figures.add((*total(forward, CAUSAL), *total(backward, CAUSAL)))
    assert len(figures) == 1
    full, causal, full_backward, causal_backward = figures.pop()
    tokens, hidden, inner, kv = 2 * seq, 32, 48, 16
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
    linear = 2 * tokens * (2 * per_layer + hidden * 50)
    # Two layers of two products over 2 x 4 heads of 8.
    attention = 2 * 2 * 2 * 4 * 2 * 8
    # some releases multiply the rotary angles of half a head at each position, of no weights and without a backward
    rotary = full - linear - attention * seq * seq
    assert rotary in (0, 2 * 4 * seq)
    assert causal == linear + attention * seq * (seq + 1) // 2 + rotary
    assert (full_backward, causal_backward) == (2 * (full - rotary), 2 * (causal - rotary))


@pytest.mark.parametrize("mask", [None, torch.zeros(5, 5, dtype=torch.bool)])
def test_the_fused_encoder_layer_costs_what_its_parts_cost(mask, record):
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad(), record() as fused:
        layer(x, src_mask=mask)
    assert "aten::_transformer_encoder_layer_fwd.default" in {call.op for call in fused}
    with record() as parts:
        layer(x.requires_grad_(), src_mask=mask)
    assert sum(call.cost.full for call in fused) == sum(call.cost.full for call in parts)
    call = next(call for call in fused if "encoder_layer" in call.op)
    assert with_facts(*call, call.cost, "attention", None) == (call.cost, mask is None)


def test_the_fused_multi_head_attention_costs_what_its_parts_cost(record):
    layer = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad(), record() as fused:
        layer(x, x, x)
    assert "aten::_native_multi_head_attention.default" in {call.op for call in fused}
    with record() as parts:
        layer(x.requires_grad_(), x, x)
    assert sum(call.cost.full for call in fused) == sum(call.cost.full for call in parts)
