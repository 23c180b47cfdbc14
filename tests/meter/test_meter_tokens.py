"""What a batch holds, and what it is by, in the forms that batches have."""

from dataclasses import dataclass

import pytest
import torch
from transformers import BatchEncoding

from gpuprof.meter.signature import in_words, key_of, tensors_of
from gpuprof.meter.tokens import Padding, sizes_of

IDS = torch.ones(2, 5, dtype=torch.long)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
PACKED = torch.tensor([[1, 1, 2, 2, 3], [1, 2, 0, 0, 0]])  # by the number of each sequence


@dataclass
class Batch:
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None


def held(batch):
    tensors, padding = tensors_of(batch), Padding(torch.device("cpu"))
    sizes = sizes_of(tensors)
    unmasked = padding.unmasked(dict(tensors), sizes.masks) if sizes.masks else None
    return sizes.tokens, padding.real(unmasked), sizes.samples


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": IDS, "attention_mask": MASK}, (10, 4, 2)),
        (BatchEncoding({"input_ids": IDS, "attention_mask": MASK}), (10, 4, 2)),
        ({"input_ids": IDS, "attention_mask": MASK.bool(), "use_cache": False}, (10, 4, 2)),
        ({"input_ids": IDS, "attention_mask": PACKED}, (10, 7, 2)),
        ({"input_ids": IDS, "attention_mask": torch.zeros(2, 1, 5, 5)}, (10, None, 2)),
        ({"input_ids": IDS, "labels": IDS, "decoder_input_ids": IDS}, (10, None, 2)),
        ({"labels": torch.ones(3), "input_ids": IDS}, (10, None, 2)),
        (Batch(IDS, MASK), (10, 4, 2)),
        (Batch(IDS), (10, None, 2)),
        ([{"input_ids": IDS, "attention_mask": MASK}, {"input_ids": IDS[:, :3], "attention_mask": MASK[:, :3]}],
         (16, 8, 4)),
        ([{"input_ids": IDS, "attention_mask": MASK}, {"input_ids": IDS}], (20, None, 4)),
        ((torch.ones(7, 3), torch.ones(7)), (None, None, 7)),
        (torch.ones(7, 3), (None, None, 7)),
        ({"scale": torch.ones(()), "x": torch.ones(6)}, (None, None, 6)),
        (([torch.ones(3, 8, 8)], [{"boxes": torch.ones(9, 4)}]), (None, None, None)),  # a list of images: not known
        (torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged), (None, None, 2)),
        ({"input_ids": torch.nested.nested_tensor([IDS[0], IDS[0, :2]], layout=torch.jagged)}, (7, None, 2)),
        (None, (None, None, None)),
        ("text", (None, None, None)),
    ],
)  # fmt: skip
def test_tokens_and_samples(batch, expected):
    assert held(batch) == expected


def test_the_same_key_in_every_container_with_the_same_names():
    mapping, encoding = {"input_ids": IDS, "attention_mask": MASK}, BatchEncoding({"input_ids": IDS})
    encoding["attention_mask"] = MASK
    keys = {key_of(tensors_of(batch)) for batch in (mapping, encoding, Batch(IDS, MASK), mapping | {"flag": True})}

    assert len(keys) == 1
    assert in_words(keys.pop()) == "input_ids 2x5, attention_mask 2x5"


def test_dtypes_and_shapes_and_names_make_other_keys():
    batches = [{"x": IDS}, {"x": IDS.int()}, {"x": IDS[:, :4]}, {"y": IDS}, (IDS,), IDS, {"x": IDS.t()}]
    assert len({key_of(tensors_of(batch)) for batch in batches}) == len(batches)


def test_nested_tensors_have_one_key_whatever_their_lengths():
    def batch(*lengths):
        return torch.nested.nested_tensor([torch.ones(length, 3) for length in lengths], layout=torch.jagged)

    assert key_of(tensors_of(batch(1, 2))) == key_of(tensors_of(batch(4, 3)))
