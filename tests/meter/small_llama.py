"""A Llama that trains in milliseconds, rows of tokens for it, and what a micro-batch of them costs by hand."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY, LENGTH = 64, 128, 2, 4, 2, 128, 16


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS, vocab_size=VOCABULARY,
        )
    )  # fmt: skip


class Rows(torch.utils.data.Dataset):
    """Rows of tokens, the same at each place whoever asks; of some the last tokens are padding."""

    def __init__(self, rows, length=LENGTH, padded=0):
        self.rows, self.length, self.padded = rows, length, padded

    def __len__(self):
        return self.rows

    def __getitem__(self, place):
        if not 0 <= place < self.rows:
            raise IndexError(place)
        tokens = torch.randint(VOCABULARY, (self.length,), generator=torch.Generator().manual_seed(place))
        mask = (torch.arange(self.length) < self.length - self.padded).long()
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}


def attention_flops(rows, length=LENGTH):
    """Of scores and values of a layer's forward: a token sees itself and those before, and nothing else is counted."""
    pairs = length * (length + 1) // 2
    return rows * 2 * 2 * pairs * HIDDEN


def layer_flops(rows, length=LENGTH):
    """Of a layer's forward."""
    narrow = HIDDEN // HEADS * KV_HEADS
    weights = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * narrow + 3 * HIDDEN * INTERMEDIATE
    return 2 * rows * length * weights + attention_flops(rows, length)


def forward_flops(rows, length=LENGTH):
    """Of the matrix products of a forward."""
    return LAYERS * layer_flops(rows, length) + 2 * rows * length * HIDDEN * VOCABULARY


def train_flops(rows, length=LENGTH):
    """Forward, and the gradients of both factors of each product."""
    return 3 * forward_flops(rows, length)
