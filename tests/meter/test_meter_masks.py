"""Tokens that are no padding are counted when somebody asks, of masks as they were."""

import torch

from gpuprof.meter.tokens import Tokens

CPU = torch.device("cpu")


def batch(real):
    ids = torch.zeros(2, 8, dtype=torch.long)
    return [("input_ids", ids), ("attention_mask", (torch.arange(8) < real).long().expand(2, 8).clone())]


def test_tokens_of_several_micro_batches():
    tokens = Tokens(CPU)

    assert tokens.together([tokens.held(batch(5)), tokens.held(batch(3))]) == (32, 2 * 5 + 2 * 3, 4)


def test_a_mask_that_was_written_to_since_is_not_known_and_never_wrong():
    tokens = Tokens(CPU)
    one, other = batch(5), batch(3)
    held = [tokens.held(one), tokens.held(other)]
    other[1][1].fill_(1)

    assert tokens.together(held) == (32, None, 4)
    assert tokens.together(held[:1]) == (16, 10, 2)


def test_a_mask_of_inference_has_no_version():
    tokens = Tokens(CPU)
    with torch.inference_mode():
        held = tokens.held(batch(5))

    assert tokens.together([held]) == (16, 10, 2)


def test_without_a_mask_nothing_is_known_of_padding():
    tokens = Tokens(CPU)

    assert tokens.together([tokens.held(batch(5)[:1])]) == (16, None, 2)
