"""Closed forms for the FLOPs of a whole step, each as its source has it.

A formula gives its parts, so that what it counts otherwise than the operators that ran can be named:

- ``layers``: matrix multiplications with the layers' weights
- ``head``: with the output head's
- ``transform``: with those between the last layer and the head: a pooler, a masked-language head's transform
- ``patches``: with those that embed the patches of an image
- ``attention``: the products of queries, keys and values
- ``embedding``: lookup tables, counted as if they were multiplied with
- ``vectors``: norms and biases, counted likewise because they are in the number of parameters
- ``softmax``: the softmax of attention
- ``recompute``: a forward that is run once more in the backward

With T tokens in B sequences of s, L layers of H heads, and P parameters of one kind, a forward is 2 P T, and
attention over the whole square 2 B s^2 L H (d_qk + d_v), which is 4 B s^2 h L where heads are as wide as the model.

The sources write them for decoders. gpuprof reads them for other transformers stack by stack, with the same terms: a
weight costs 2 FLOPs at each position that it meets, so that the weights of a pooler and a classifier count once per
sequence, those of the patch embedding per patch, and those of the keys and values of cross-attention per position of
the encoder. Only attention that is causal has half a square; cross-attention is queries times the encoder's positions.
"""

from __future__ import annotations

from .architecture import Architecture

Parts = dict[str, int]


def palm(arch: Architecture) -> Parts:
    """6 N + 12 L H Q s per position: every parameter multiplies at each of its stack, attention is the whole square."""
    return _by_parameters(arch, lookup=True, square=_square(arch))


def torchtitan(arch: Architecture) -> Parts:
    """6 (N - N_emb) + 6 L H (d_qk + d_v) s per token, N of what a token meets; tied tables are the head."""
    return _by_parameters(arch, lookup=arch.tied, square=_square(arch))


def mosaic(arch: Architecture) -> Parts:
    """3 (2 N + 4 L d_model s) per token, N of what a token meets: attention as wide as the model."""
    return _by_parameters(arch, lookup=True, square=4 * arch.batch * arch.seq**2 * arch.layers * arch.hidden)


def chinchilla(arch: Architecture) -> Parts:
    """Every matrix multiplication of appendix F, with the embedding as one, and the softmax; a backward is two."""
    forward = _weights(arch) | {
        "embedding": sum(2 * stack.tokens * stack.token_embedding_params for stack in arch.stacks),
        "attention": _square(arch),
        "softmax": sum(3 * _scores(stack) for stack in arch.stacks),
    }
    return _times(arch.passes, forward)


def megatron(arch: Architecture) -> Parts:
    """Three times the forward: 2 m n k of every multiplication, half of a causal square, no router."""
    forward = _weights(arch)
    forward["layers"] -= 2 * arch.tokens * arch.router_params
    return _times(arch.passes, forward | {"attention": _square(arch) - _masked(arch)})


def megatron_paper(arch: Architecture) -> Parts:
    """72 B L s h^2 (1 + s / 6h + V / 12hL) a training step; a classifier's V meets one position, not s."""
    forward = {
        "layers": 24 * arch.tokens * arch.layers * arch.hidden**2,
        "attention": 4 * arch.tokens * arch.layers * arch.seq * arch.hidden,
        "head": _weights(arch)["head"],
    }
    return _times(arch.passes, forward)


def megatron_hfu(arch: Architecture) -> Parts:
    """96 B L s h^2 (1 + s / 6h + V / 16hL) a training step, written for any width of heads and feed-forward."""
    weights, square = _weights(arch), _square(arch)
    forward = {"layers": weights["layers"], "attention": square, "head": weights["head"]}
    return _times(3, forward) | {"recompute": weights["layers"] + square}


def _weights(arch: Architecture) -> Parts:
    """Two FLOPs of a forward for each matrix parameter and position that it meets."""
    layers = sum(stack.tokens * stack.layer_weights for stack in arch.stacks)
    return {
        "layers": 2 * (layers + arch.batch * arch.memory * arch.memory_params),
        "head": 2 * arch.head_tokens * arch.head_params,
        "transform": 2 * arch.head_tokens * arch.transform_params,
        "patches": 2 * arch.batch * arch.patches * arch.patch_params,
    }


def _by_parameters(arch: Architecture, lookup: bool, square: int) -> Parts:
    """Two FLOPs per parameter and position of its stack, lookup tables included or not, and attention."""
    forward = {"attention": square}
    for stack in arch.stacks:
        kinds = {
            "layers": stack.layer_weights + stack.memory_params,
            "vectors": stack.vector_params,
            "embedding": stack.table_params if lookup else 0,
            "head": stack.head_params,
            "transform": stack.transform_params,
            "patches": stack.patch_params,
        }
        for part, params in kinds.items():
            forward[part] = forward.get(part, 0) + 2 * stack.tokens * params
    return _times(arch.passes, forward)


def _scores(stack: Architecture) -> int:
    """Scores of attention: of each query with every position of its stack, and of the encoder's in cross-attention."""
    return stack.tokens * stack.layers * stack.heads * (stack.seq + stack.memory)


def _square(arch: Architecture) -> int:
    """FLOPs of attention over the whole square, forward."""
    return sum(2 * _scores(stack) * (stack.head_dim + stack.v_head_dim) for stack in arch.stacks)


def _masked(arch: Architecture) -> int:
    """What of them is half of a causal square."""
    width = arch.heads * (arch.head_dim + arch.v_head_dim)
    return arch.tokens * arch.seq * arch.layers * width if arch.causal else 0


def _times(passes: int, forward: Parts) -> Parts:
    """The parts of a step of so many forwards, without those that the model does not have."""
    return {part: passes * flops for part, flops in forward.items() if flops}


_STACKS = {
    "decoder": "a decoder",
    "encoder": "an encoder",
    "encoder-decoder": "an encoder and a decoder",
    "vit": "a vision transformer",
}
_OTHERS = {
    "vision": "a vision model with stages, or without the one convolution that embeds patches",
    "audio": "a model of sound",
    "multimodal": "a model of text and images or sound",
    "other-head": "a model with a head, or more of them, that gpuprof does not know",
    "other-layers": "a transformer with weights other than linear layers', or attention other than scaled dot-product",
    "other": "no transformer that gpuprof knows the sizes of",
}


def misfit(arch: Architecture) -> str | None:
    """Why a formula for transformers of plain layers does not describe a step; None where it does."""
    if arch.kind not in _STACKS:
        return (
            f"it is for plain transformers of text or of image patches, and this is {_OTHERS.get(arch.kind, arch.kind)}"
        )
    if arch.mode == "generate":
        return "it is for steps over whole sequences, and this is a generation"
    if arch.kind in ("decoder", "encoder-decoder") and not arch.head_params:
        return "it counts a language-model head, and this model has none"
    for stack in arch.stacks:
        if arch.mode == "train" and stack.trainable_params < stack.params:
            frozen = stack.params - stack.trainable_params
            return f"its backward is of every parameter, and {frozen:,} of {stack.params:,} are frozen"
        cross = not stack.encoder or stack.memory_params
        if not stack.layers or not stack.heads or not stack.tokens or not cross:
            return "the sizes of the layers or of the step are not known"
        if stack.attention_layers > stack.layers:
            more = stack.attention_layers - stack.layers
            return f"it knows no attention but that of the {stack.layers} layers, and this model has {more} more"
        if stack.attention_layers < stack.layers:
            return f"it counts attention in each of the {stack.layers} layers, and {stack.attention_layers} attend"
        if stack.experts and arch.kind != "decoder":
            return "it knows of experts in decoder-only language models alone"
    return None


def misfit_decoder(arch: Architecture) -> str | None:
    """The same for formulas of programs that train nothing else than decoders."""
    if arch.kind != "decoder" and arch.kind in _STACKS:
        return f"it is for decoder-only language models, and this is {_STACKS[arch.kind]}"
    return misfit(arch)


def misfit_dense(arch: Architecture) -> str | None:
    """The same for formulas that know of no experts."""
    reason = misfit(arch)
    if reason is None and arch.experts:
        return f"it knows of no experts, and this model has {arch.experts} per layer, {arch.top_k} of them at work"
    return reason


def misfit_gpt(arch: Architecture) -> str | None:
    """The same for the shape of GPT: 12 h^2 weights a layer, and heads as wide together as the model."""
    reason = misfit_dense(arch)
    if reason is not None:
        return reason
    if arch.encoder:
        return "it is for one stack of GPT's layers, and this model has two, with cross-attention"
    wide = arch.heads * (arch.head_dim + arch.v_head_dim) == 2 * arch.hidden
    if not wide or arch.layer_weights != 12 * arch.layers * arch.hidden**2:
        return "it is for GPT's layers: four matrices of h x h, two of h x 4h, and heads as wide together as the model"
    return None


def misfit_recompute(arch: Architecture) -> str | None:
    """The same for formulas with a recomputed forward."""
    reason = misfit_dense(arch)
    if reason is None and arch.mode != "train":
        return "it counts a forward that the backward repeats, and this step has no backward"
    return reason
