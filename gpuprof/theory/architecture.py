"""What a closed formula needs to know of a model and its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A transformer and the sizes of one step, as `gpuprof.workload.facts` reads them off a Hugging Face model.

    Sizes that the model does not have are 0. Every parameter is counted once, also where two modules share it.

    Attributes:
        kind: decoder, encoder, encoder-decoder, vit, multimodal or other.
        params: all parameters.
        trainable_params: those that require a gradient.
        embedding_params: in tables that are looked up: of tokens, of positions.
        token_embedding_params: of them, in the table of tokens.
        head_params: weights of the output head; its table is also the tokens' where they are tied.
        tied: whether they are.
        vector_params: parameters with fewer than two dimensions: of norms, biases.
        expert_params: in routed experts.
        router_params: in what routes to them.
        layers: transformer layers.
        attention_layers: those of them that attend.
        hidden: width of the residual stream.
        heads: query heads per layer.
        kv_heads: key and value heads per layer.
        head_dim: size of a query and key head.
        v_head_dim: size of a value head.
        ffn: width of the feed-forward layer.
        gated: whether the feed-forward layer has a gate, so three matrices.
        vocab: size of the vocabulary.
        experts: routed experts per layer.
        top_k: experts that a token is sent to.
        batch: sequences per step.
        seq: positions per sequence.
        mode: train, forward or generate.
        head: path of the output head.
    """

    kind: str = "other"
    params: int = 0
    trainable_params: int = 0
    embedding_params: int = 0
    token_embedding_params: int = 0
    head_params: int = 0
    tied: bool = False
    vector_params: int = 0
    expert_params: int = 0
    router_params: int = 0
    layers: int = 0
    attention_layers: int = 0
    hidden: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    ffn: int = 0
    gated: bool = False
    vocab: int = 0
    experts: int = 0
    top_k: int = 0
    batch: int = 0
    seq: int = 0
    mode: str = "train"
    head: str = ""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Architecture:
        """The architecture that a run recorded; facts of a newer gpuprof that this one does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in facts.items() if name in known})

    @property
    def tokens(self) -> int:
        """Positions of one step."""
        return self.batch * self.seq

    @property
    def idle_expert_params(self) -> int:
        """Parameters of the experts that a token is not sent to."""
        return self.expert_params * (self.experts - self.top_k) // self.experts if self.experts else 0

    @property
    def active_params(self) -> int:
        """Parameters that one token meets."""
        return self.params - self.idle_expert_params

    @property
    def layer_weights(self) -> int:
        """Matrix parameters of the layers that one token meets, routers included."""
        head = 0 if self.tied else self.head_params
        return self.active_params - self.embedding_params - self.vector_params - head

    @property
    def passes(self) -> int:
        """Forward passes that a step costs as most formulas have it: a backward is two."""
        return 3 if self.mode == "train" else 1
