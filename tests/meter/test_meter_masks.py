"""Tokens that are no padding are counted when somebody asks, of masks as they were."""

import torch

from gpuprof.meter.tokens import Padding

CPU = torch.device("cpu")


def mask(real):
    return (torch.arange(8) < real).long().expand(2, 8).clone()


def unmasked(padding, *masks):
    named = {str(number): mask for number, mask in enumerate(masks)}
    return padding.unmasked(named, list(named))


def test_tokens_of_several_masks():
    padding = Padding(CPU)

    assert padding.real(unmasked(padding, mask(5), mask(3))) == 2 * 5 + 2 * 3


def test_a_mask_that_was_written_to_since_is_not_known_and_never_wrong():
    padding = Padding(CPU)
    one, other = mask(5), mask(3)
    seen = unmasked(padding, one, other)
    other.fill_(1)

    assert padding.real(seen) is None
    assert padding.real(unmasked(padding, one)) == 10


def test_a_mask_of_inference_has_no_version():
    padding = Padding(CPU)
    with torch.inference_mode():
        seen = unmasked(padding, mask(5))

    assert padding.real(seen) == 10


def test_without_a_mask_nothing_is_known_of_padding():
    assert Padding(CPU).real(None) is None
