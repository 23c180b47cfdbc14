"""What a closed formula needs to know of a model and its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A transformer and the sizes of one step, as `gpuprof.workload.facts` reads them off a Hugging Face model.

    It is one stack of layers with what comes before and after them. Of an encoder-decoder it is the decoder, and
    `encoder` is the other stack. Sizes that the model does not have are 0. Every parameter of a stack is counted once,
    also where two of its modules share it; a table that both stacks look up is in both.

    Attributes:
        kind: decoder, encoder, encoder-decoder, vit, vision, audio, multimodal or other.
        params: all parameters.
        trainable_params: those that require a gradient.
        embedding_params: in tables that are looked up: of tokens, of positions, of distances.
        token_embedding_params: of them, in the table of tokens.
        head_params: weights of the output head; its table is also the tokens' where they are tied.
        tied: whether they are.
        transform_params: weights between the last layer and the head: of a pooler, of the transform before a
            masked-language head.
        pooled: whether head and transform meet one position per sequence, as in a classifier, and not all.
        patch_params: weights of the convolution that embeds patches.
        memory_params: weights that make keys and values of the encoder's positions, for cross-attention.
        vector_params: of norms and biases, and tokens that are learned: of a class, a mask.
        expert_params: in routed experts.
        router_params: in what routes to them.
        layers: transformer layers.
        attention_layers: those of them that attend; attention elsewhere counts too.
        causal: whether a position attends to none after it.
        hidden: width of the residual stream.
        heads: query heads per layer.
        head_dim: size of a query and key head.
        v_head_dim: size of a value head.
        experts: routed experts per layer.
        top_k: experts that a token is sent to.
        batch: sequences per step.
        seq: positions per sequence; of an image its patches, and the tokens that are learned beside them.
        patches: patches per image.
        mode: train, forward or generate.
        head: path of the output head.
        transform: path of the transform.
        patch: path of the convolution.
        encoder: the encoder of an encoder-decoder.
    """

    kind: str = "other"
    params: int = 0
    trainable_params: int = 0
    embedding_params: int = 0
    token_embedding_params: int = 0
    head_params: int = 0
    tied: bool = False
    transform_params: int = 0
    pooled: bool = False
    patch_params: int = 0
    memory_params: int = 0
    vector_params: int = 0
    expert_params: int = 0
    router_params: int = 0
    layers: int = 0
    attention_layers: int = 0
    causal: bool = True
    hidden: int = 0
    heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    experts: int = 0
    top_k: int = 0
    batch: int = 0
    seq: int = 0
    patches: int = 0
    mode: str = "train"
    head: str = ""
    transform: str = ""
    patch: str = ""
    encoder: Architecture | None = None

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Architecture:
        """The architecture that a run recorded; facts of another gpuprof that this one does not know are left out."""
        known = {field.name: facts[field.name] for field in fields(cls) if field.name in facts}
        if known.get("encoder"):
            known["encoder"] = cls.from_facts(known["encoder"])
        return cls(**known)

    @property
    def stacks(self) -> tuple[Architecture, ...]:
        """This stack, and the encoder where there is one."""
        return (self,) if self.encoder is None else (self, self.encoder)

    @property
    def tokens(self) -> int:
        """Positions of one step."""
        return self.batch * self.seq

    @property
    def head_tokens(self) -> int:
        """Positions of one step that the head meets."""
        return self.batch if self.pooled else self.tokens

    @property
    def memory(self) -> int:
        """Positions of the encoder, per sequence."""
        return self.encoder.seq if self.encoder else 0

    @property
    def idle_expert_params(self) -> int:
        """Parameters of the experts that a token is not sent to."""
        return self.expert_params * (self.experts - self.top_k) // self.experts if self.experts else 0

    @property
    def table_params(self) -> int:
        """Parameters that are only looked up: a table that is also the head's multiplies."""
        return self.embedding_params - (self.head_params if self.tied else 0)

    @property
    def layer_weights(self) -> int:
        """Matrix parameters that one position of the stack meets in its layers, routers included."""
        ends = self.head_params + self.transform_params + self.patch_params + self.memory_params
        return self.params - self.idle_expert_params - self.table_params - self.vector_params - ends

    @property
    def passes(self) -> int:
        """Forward passes that a step costs as most formulas have it: a backward is two."""
        return 3 if self.mode == "train" else 1
