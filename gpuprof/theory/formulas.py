"""Closed forms for the FLOPs of a whole step, each as its source has it.

A formula gives its parts, so that what it counts otherwise than the operators that ran can be named:

- ``layers``: matrix multiplications with the layers' weights
- ``head``: with the output head's
- ``attention``: the products of queries, keys and values
- ``embedding``: lookup tables, counted as if they were multiplied with
- ``vectors``: norms and biases, counted likewise because they are in the number of parameters
- ``softmax``: the softmax of attention
- ``recompute``: a forward that is run once more in the backward

With T tokens in B sequences of s, L layers of H heads, and P parameters of one kind, a forward is 2 P T, and
attention over the whole square 2 B s^2 L H (d_qk + d_v), which is 4 B s^2 h L where heads are as wide as the model.
"""

from __future__ import annotations

from .architecture import Architecture

Parts = dict[str, int]


def palm(arch: Architecture) -> Parts:
    """6 N + 12 L H Q s per token: every parameter multiplies, attention is the whole square."""
    return _by_parameters(arch, lookup=True, square=_square(arch))


def torchtitan(arch: Architecture) -> Parts:
    """6 (N - N_emb) + 6 L H (d_qk + d_v) s per token, N of what a token meets; tied tables are the head."""
    return _by_parameters(arch, lookup=arch.tied, square=_square(arch))


def mosaic(arch: Architecture) -> Parts:
    """3 (2 N + 4 L d_model s) per token, N of what a token meets: attention as wide as the model."""
    return _by_parameters(arch, lookup=True, square=4 * arch.batch * arch.seq**2 * arch.layers * arch.hidden)


def chinchilla(arch: Architecture) -> Parts:
    """Every matrix multiplication of appendix F, with the embedding as one, and the softmax; a backward is two."""
    step = arch.passes * arch.tokens
    return {
        "embedding": 2 * step * arch.vocab * arch.hidden,
        "layers": 2 * step * arch.layer_weights,
        "attention": arch.passes * _square(arch),
        "softmax": arch.passes * 3 * arch.batch * arch.layers * arch.heads * arch.seq**2,
        "head": 2 * step * arch.vocab * arch.hidden,
    }


def megatron(arch: Architecture) -> Parts:
    """Three times the forward: 2 m n k of every multiplication, half of the attention square, no router."""
    step = arch.passes * arch.tokens
    return {
        "layers": 2 * step * (arch.layer_weights - arch.router_params),
        "attention": arch.passes * _square(arch) // 2,
        "head": 2 * step * arch.vocab * arch.hidden,
    }


def megatron_paper(arch: Architecture) -> Parts:
    """72 B L s h^2 (1 + s / 6h + V / 12hL) a training step."""
    step = arch.passes * arch.tokens * arch.hidden
    return {
        "layers": 24 * step * arch.layers * arch.hidden,
        "attention": 4 * step * arch.layers * arch.seq,
        "head": 2 * step * arch.vocab,
    }


def megatron_hfu(arch: Architecture) -> Parts:
    """96 B L s h^2 (1 + s / 6h + V / 16hL) a training step, written for any width of heads and feed-forward."""
    layers, square = 2 * arch.tokens * arch.layer_weights, _square(arch)
    return {
        "layers": 3 * layers,
        "attention": 3 * square,
        "head": 6 * arch.tokens * arch.vocab * arch.hidden,
        "recompute": layers + square,
    }


def _by_parameters(arch: Architecture, lookup: bool, square: int) -> Parts:
    """Two FLOPs per active parameter and token, lookup tables included or not, and attention."""
    step = 2 * arch.passes * arch.tokens
    # A table that is also the head's multiplies, and is in the number of parameters once.
    tables = arch.embedding_params - (arch.head_params if arch.tied else 0)
    return {
        "layers": step * arch.layer_weights,
        "vectors": step * arch.vector_params,
        "embedding": step * tables if lookup else 0,
        "head": step * arch.head_params,
        "attention": arch.passes * square,
    }


def _square(arch: Architecture) -> int:
    """FLOPs of attention over the whole square, forward."""
    width = arch.heads * (arch.head_dim + arch.v_head_dim)
    return 2 * arch.batch * arch.seq**2 * arch.layers * width


_KINDS = {
    "encoder": "an encoder",
    "encoder-decoder": "an encoder and a decoder",
    "vit": "a vision transformer",
    "multimodal": "a model of text and images",
    "other": "no transformer that gpuprof knows the sizes of",
}


def misfit(arch: Architecture) -> str | None:
    """Why a formula for decoder-only language models does not describe a step; None where it does."""
    if arch.kind != "decoder":
        return f"it is for decoder-only language models, and this is {_KINDS.get(arch.kind, arch.kind)}"
    if arch.mode == "generate":
        return "it is for steps over whole sequences, and this is a generation"
    if arch.mode == "train" and arch.trainable_params < arch.params:
        frozen = arch.params - arch.trainable_params
        return f"its backward is of every parameter, and {frozen:,} of {arch.params:,} are frozen"
    if not arch.head_params:
        return "it counts a language-model head, and this model has none"
    if not arch.layers or not arch.heads or not arch.tokens:
        return "the sizes of the layers or of the step are not known"
    if arch.attention_layers != arch.layers:
        return f"it counts attention in each of the {arch.layers} layers, and {arch.attention_layers} attend"
    return None


def misfit_dense(arch: Architecture) -> str | None:
    """The same for formulas that know of no experts."""
    reason = misfit(arch)
    if reason is None and arch.experts:
        return f"it knows of no experts, and this model has {arch.experts} per layer, {arch.top_k} of them at work"
    return reason


def misfit_gpt(arch: Architecture) -> str | None:
    """The same for the shape of GPT: as many key heads as heads, a feed-forward layer of 4 h without a gate."""
    reason = misfit_dense(arch)
    if reason is None and (arch.gated or arch.ffn != 4 * arch.hidden or arch.kv_heads != arch.heads):
        return "it is for GPT's layers: as many key heads as query heads, a feed-forward layer of 4 h without a gate"
    return reason


def misfit_recompute(arch: Architecture) -> str | None:
    """The same for formulas with a recomputed forward."""
    reason = misfit_dense(arch)
    if reason is None and arch.mode != "train":
        return "it counts a forward that the backward repeats, and this step has no backward"
    return reason
