"""A small language model of one's own, as `gpuprof profile examples/own_model.py:make` takes it."""

import os

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, LAYERS, WORDS = 128, 4, 2, 1000
FUSED = os.environ.get("FUSED", "1") == "1"
"""Whether attention is torch's own; without it every score is kept, which is what the slower of two runs is for."""


class Attention(nn.Module):
    """Causal self-attention, all heads at once."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        batch, length, _ = hidden.shape
        query, key, value = (
            part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in self.qkv(hidden).chunk(3, -1)
        )
        if FUSED:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = query @ key.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
            later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
            mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, hidden):
        hidden = hidden + self.attention(self.norms[0](hidden))
        return hidden + self.mlp(self.norms[1](hidden))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words):
        hidden = self.embedding(words)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def make(batch_size=4, seq_len=64):
    """A model, a batch, and a loss of the model's output: all that a training step needs."""
    words = torch.randint(WORDS, (batch_size, seq_len))

    def loss(logits):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), words.to(logits.device)[:, 1:].flatten())

    return Model(), words, loss
