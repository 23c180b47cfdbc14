"""Block masks of flex_attention: pairs by their function, hardware FLOPs by the blocks that are computed."""

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import gpuprof
from gpuprof.analysis.totals import totals
from gpuprof.passes.flex import pairs_left

BLOCK = 128


def causal(b, h, q, k):
    return q >= k


def window(width):
    return lambda b, h, q, k: (q >= k) & (q - k < width)


def documents(lengths):
    """Tokens of a document see those before them in it; whose a token is, is looked up in a tensor."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return lambda b, h, q, k: (q >= k) & (document[q] == document[k])


def triangle(n):
    return n * (n + 1) // 2


class Attention(nn.Module):
    def __init__(self, mask, **options):
        super().__init__()
        self.mask, self.options = mask, options

    def forward(self, q, k, v):
        return flex_attention(q, k, v, block_mask=self.mask, **self.options)


def counted(mask, shape=(1, 1, 1024, 64), key_heads=None, **options):
    batch, heads, length, head = shape
    q = torch.randn(shape, requires_grad=True)
    k, v = (torch.randn(batch, key_heads or heads, length, head, requires_grad=True) for _ in range(2))
    return gpuprof.count(Attention(mask, **options), (q, k, v))


def figures(run):
    """Forward, whole square and hardware FLOPs of the forward; backward and hardware FLOPs of the backward."""
    rows = run.ops[run.ops["kind"] == "attention"].set_index("phase")
    (forward, backward) = (rows.loc[phase] for phase in ("forward", "backward"))
    return (
        int(forward["flops_causal"]), int(forward["flops_full"]), int(forward["flops_hardware"]),
        int(backward["flops_causal"]), int(backward["flops_hardware"]),
    )  # fmt: skip


def expected(pairs, square, computed, head=64):
    """Two products forward; four backward, and in hardware the scores once more."""
    return tuple(2 * head * n for n in (2 * pairs, 2 * square, 2 * computed, 4 * pairs, 5 * computed))


def of(mask_mod, queries=1024, keys=None, batch=None, heads=None, **options):
    return create_block_mask(mask_mod, batch, heads, queries, keys or queries, device="cpu", **options)


def test_causal_in_one_block():
    run = counted(of(causal, 128), (1, 4, 128, 128))

    assert figures(run)[:3] == (16_908_288, 33_554_432, 33_554_432)
    assert figures(run) == expected(4 * triangle(128), 4 * 128**2, 4 * 128**2, head=128)
    assert totals(run)["flops_forward"] == 16_908_288
    assert totals(run, "full")["flops_forward"] == 33_554_432
    assert run.tree["causality"].tolist() == ["known"]


def test_a_window_of_32_in_1024():
    """Each of 8 rows has the block on the diagonal, and all but the first the one before."""
    run = counted(of(window(32)))

    assert figures(run)[:3] == (8_261_632, 268_435_456, 62_914_560)
    assert figures(run) == expected(triangle(32) + 992 * 32, 1024**2, 15 * BLOCK**2)


def test_documents_looked_up_in_a_tensor():
    """Of 300 and 212 tokens: both have blocks 2, and there one meets the other."""
    lengths = (300, 212)
    run = counted(of(documents(lengths), 512), (1, 1, 512, 64))

    # rows of blocks 0, 1, 2 of the first document see 1, 2, 3; row 3 has the second alone: blocks 2 and 3
    assert figures(run) == expected(sum(map(triangle, lengths)), 512**2, (1 + 2 + 3 + 2) * BLOCK**2)


def test_a_mask_of_each_sequence():
    """Keys beyond each sequence's own length are padding; a row of blocks beyond it is computed all the same."""
    lengths = torch.tensor([256, 100])
    run = counted(of(lambda b, h, q, k: k < lengths[b], 256, batch=2), (2, 3, 256, 64))

    # the first sees all; the second the keys of one block of two
    pairs, computed = 256 * 256 + 256 * 100, 256 * 256 + 256 * BLOCK
    assert figures(run) == expected(3 * pairs, 3 * 2 * 256**2, 3 * computed)


def test_shared_key_heads_and_a_mask_of_each_head():
    """Four query heads on two key heads; every other one looks back 64 only."""
    run = counted(
        of(lambda b, h, q, k: (q >= k) & ((h % 2 == 0) | (q - k < 64)), 512, heads=4), (2, 4, 512, 32), 2,
        enable_gqa=True,
    )  # fmt: skip

    far, near = triangle(512), triangle(64) + 448 * 64
    in_far, in_near = triangle(4) * BLOCK**2, 7 * BLOCK**2
    assert figures(run) == expected(2 * 2 * (far + near), 2 * 4 * 512**2, 2 * 2 * (in_far + in_near), head=32)


def test_a_prefix_that_all_see_with_a_score_function():
    run = counted(
        of(lambda b, h, q, k: (k < 200) | (q >= k), 512), (1, 1, 512, 64), score_mod=lambda s, b, h, q, k: s + (q - k)
    )

    # below the diagonal a triangle; above it the keys of the prefix: 199 for the first query, 0 for the 200th
    pairs = triangle(512) + triangle(199)
    computed = (triangle(4) + 1) * BLOCK**2  # and the second block, of keys 128 to 199, for the first row
    assert figures(run) == expected(pairs, 512**2, computed)


def test_sequences_that_end_inside_a_block():
    run = counted(of(causal, 200), (1, 1, 200, 64))

    # the first row one block, the second, of 72 queries, all 200 keys
    assert figures(run) == expected(triangle(200), 200**2, 128 * 128 + 72 * 200)


def test_a_mask_of_blocks_alone():
    """Made of lists of blocks, without a function: all pairs in them count."""
    counts, indices = torch.tensor([[[1, 2]]], dtype=torch.int32), torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    run = counted(BlockMask.from_kv_blocks(counts, indices), (1, 2, 256, 64))

    assert figures(run) == expected(2 * 3 * BLOCK**2, 2 * 256**2, 2 * 3 * BLOCK**2)


def test_blocks_of_other_sizes():
    run = counted(of(window(32), BLOCK_SIZE=(64, 32)))

    # rows of 64 go through 2 blocks of 32 on the diagonal and one before it, but for the first
    assert figures(run) == expected(triangle(32) + 992 * 32, 1024**2, (16 * 3 - 1) * 64 * 32)


def test_no_mask_at_all():
    assert figures(counted(None, (1, 1, 256, 64))) == expected(256**2, 256**2, 256**2)


def test_another_mask_of_the_same_sizes_is_another_row():
    class Layers(nn.Module):
        def forward(self, q, k, v):
            q = flex_attention(q, k, v, block_mask=of(causal, 256))
            return flex_attention(q, k, v, block_mask=of(window(8), 256))

    run = gpuprof.count(Layers(), tuple(torch.randn(1, 1, 256, 64) for _ in range(3)), mode="forward")

    assert totals(run)["flops_forward"] == 4 * 64 * (triangle(256) + triangle(8) + 248 * 8)


def test_a_mask_that_tells_nothing():
    """Without values, or with a function that only a compiler can run. The rule then bounds it by the square, unless
    its module says what it is, and the causality is unknown (tests/theory/test_attention.py).
    """
    q = torch.empty(1, 1, 256, 64, device="meta")
    assert pairs_left(of(causal, 256).to("meta").as_tuple(), q, q) is None

    mask = of(causal, 256)
    mask.mask_mod = lambda b, h, q, k: q.item() >= k
    assert pairs_left(mask.as_tuple(), q, q) is None


def test_many_blocks_are_asked_for_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("gpuprof.passes.flex._AT_ONCE", 3 * BLOCK**2)
    q = torch.empty(2, 3, 1024, 64, device="meta")
    assert pairs_left(of(causal, 1024).as_tuple(), q, q) == (6 * triangle(1024), 6 * triangle(8) * BLOCK**2)
