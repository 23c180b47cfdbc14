"""The architecture of a Hugging Face model, as closed formulas ask for it."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from gpuprof.theory.masks import AttentionFacts
from gpuprof.workload.causality import attention_facts

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEAD_DIM = ("qk_head_dim", "head_dim", "d_kv")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts")
_ROUTERS = (["gate"], ["router"])
_KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj", "key", "value"}
# Models whose attention is a scaled dot product, where the release of transformers does not run it as one operator yet.
_SPELLED_OUT = {"t5", "mt5", "umt5"}
_SOUND = {"input_features", "input_values"}
# Parameters that are a position of their own beside the patches.
_TOKENS = {"cls_token", "class_embedding", "distillation_token", "register_tokens", "detection_tokens"}
# Classes with a head that is no language model's: it meets every position, or one per sequence.
_HEAD_OF_EACH = ("ForTokenClassification", "ForQuestionAnswering")
_HEAD_OF_ONE = ("ForSequenceClassification", "ForImageClassification", "ForMultipleChoice", "WithProjection")

_Named = list[tuple[str, nn.Parameter]]


def architecture_facts(model: Any, description: dict[str, Any]) -> dict[str, Any] | None:
    """Fields of `gpuprof.theory.Architecture`, in JSON's types; None for a model without a configuration.

    Where a configuration or a model raises when it is asked, as those do whose layers differ, they are not known: None.

    Args:
        model: the model, frozen as it will be trained.
        description: of the workload: its inputs and its mode.
    """
    if not isinstance(getattr(model, "config", None), PretrainedConfig):
        return None
    try:
        return _facts(model, description)
    except Exception:  # nobody's count ends for want of a formula
        return None


def _facts(model: Any, description: dict[str, Any]) -> dict[str, Any]:
    base = _base(model)
    kind = _kind(model, base)
    facts = {"kind": kind, "mode": description["mode"], **(_ends(model, base, kind) or {"kind": "other-head"})}
    shapes = {entry["name"]: entry["shape"] for entry in description["inputs"]}
    named = list(model.named_parameters())
    if facts["kind"] == "encoder-decoder":
        encoder, decoder = base.get_encoder(), base.get_decoder()
        head = [model.get_submodule(facts["head"])] if facts["head"] else []
        theirs = {id(p) for p in encoder.parameters()}
        ours = {id(p) for module in (decoder, *head) for p in module.parameters()}
        texts = (shapes.get(name, []) for name in ("decoder_input_ids", "labels", "input_ids"))
        facts["encoder"] = {
            "kind": "encoder",
            "mode": facts["mode"],
            **_parameters(model, [(name, p) for name, p in named if id(p) in theirs], {}),
            **_sizes(encoder, base.config, "encoder"),
            **_lengths(shapes.get("input_ids", [])),
        }
        named = [(name, p) for name, p in named if id(p) not in theirs or id(p) in ours]
        facts |= _sizes(decoder, base.config, "decoder", cross=True)
        facts |= _lengths(next((text for text in texts if len(text) > 1), []))
    elif facts["kind"] in ("decoder", "encoder"):
        facts |= _sizes(base, base.config, facts["kind"]) | _lengths(shapes.get("input_ids", []))
    elif facts["kind"] == "vit":
        facts |= _sizes(base, base.config, "encoder")
        facts |= _image_lengths(shapes.get("pixel_values", []), model.get_submodule(facts["patch"]), named)
    return facts | _parameters(model, named, facts)


def _base(model: Any) -> Any:
    """The model without its head: Hugging Face's word for it, or the only model inside."""
    base = getattr(model, "base_model", model)
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inside[0] if base is model and len(inside) == 1 else base


def _kind(model: Any, base: Any) -> str:
    """The kind of model; of transformers that are no language model's decoder only where all is as formulas have it."""
    if not isinstance(base, PreTrainedModel):
        return "other"
    name, config, reads = type(model).__name__, base.config, model.main_input_name
    if reads in _SOUND:
        return "audio"
    if getattr(config, "text_config", None) is not None or getattr(config, "vision_config", None) is not None:
        return "multimodal"
    if reads == "pixel_values":
        stages = isinstance(getattr(config, "depths", None), list)
        kind = "vit" if _patch(model) and not stages else "vision"
    elif getattr(config, "is_encoder_decoder", False) and base.get_decoder() is not base:
        kind = "encoder-decoder"
    elif any(facts.causal for path, module in model.named_modules() if (facts := attention_facts(module, path))):
        language = name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return "decoder" if language or name.endswith(_HEAD_OF_EACH + _HEAD_OF_ONE) else "other"
    else:
        kind = "encoder" if hasattr(config, "vocab_size") else "other"
    return kind if kind in ("vision", "other") or _plain(model, base) else "other-layers"


def _plain(model: Any, base: Any) -> bool:
    """Whether attention is scaled dot-product attention, and each matrix a linear layer's, a table or the patches'."""
    known = (nn.Linear, Conv1D, nn.Embedding, nn.MultiheadAttention)
    patch = _patch(model)
    bare = (
        (name, p)
        for path, module in model.named_modules()
        if not isinstance(module, known) and path != patch
        for name, p in module.named_parameters(recurse=False)
    )
    scaled = getattr(base, "_supports_sdpa", False) or base.config.model_type in _SPELLED_OUT
    return scaled and all(_is_vector(name, p) or _is_table(name, p) for name, p in bare)


def _ends(model: Any, base: Any, kind: str) -> dict[str, Any] | None:
    """Paths of what stands before and after the layers, and whether what stands after meets one position per sequence.

    None where the class of the model does not tell, or where more stands after the layers than a head and one matrix.
    """
    name, modules = type(model).__name__, dict(model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    linear = [path for path, module in modules.items() if isinstance(module, (nn.Linear, Conv1D))]
    within = paths.get(id(base), "")
    after = [path for path in linear if within and not path.startswith(f"{within}.")]
    pooler = [path for path in linear if path not in after and "pooler" in path.split(".")]
    language = paths.get(id(_embeddings(model, "get_output_embeddings")), "")
    of_each = bool(language) or name.endswith(_HEAD_OF_EACH)
    if (pooler and of_each) or (after and not of_each and not name.endswith(_HEAD_OF_ONE)):
        return None
    head = language or (after[-1] if after else "")
    transform = [*(path for path in after if path != head), *pooler]
    if len(transform) > 1:
        return None
    return {
        "head": head,
        "transform": transform[0] if transform else "",
        "patch": _patch(model) if kind == "vit" else "",
        "pooled": not of_each and kind != "decoder",
    }


def _patch(model: Any) -> str:
    """Path of the convolution that embeds patches; empty where there is none, or another convolution beside it."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    return next((path for path, module in found.items() if len(found) == 1 and isinstance(module, nn.Conv2d)), "")


def _parameters(model: Any, named: _Named, ends: dict[str, Any]) -> dict[str, Any]:
    """Parameters by what they do, each once.

    Args:
        model: the whole model.
        named: those of the stack.
        ends: paths of what stands before and after its layers.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tokens = tables & {id(getattr(_embeddings(model, "get_input_embeddings"), "weight", None))}
    weights = {end: model.get_submodule(ends[end]).weight for end in ("head", "transform", "patch") if ends.get(end)}
    kinds = {
        "params": [p for _, p in named],
        "trainable_params": [p for _, p in named if p.requires_grad],
        "embedding_params": [p for name, p in named if id(p) in tables or _is_table(name, p)],
        "token_embedding_params": [p for _, p in named if id(p) in tokens],
        "vector_params": [p for name, p in named if _is_vector(name, p)],
        "expert_params": [p for name, p in named if "experts" in name.split(".")],
        "router_params": [p for name, p in named if p.dim() > 1 and name.split(".")[-2:-1] in _ROUTERS],
    }
    return {
        **{kind: sum(p.numel() for p in params) for kind, params in kinds.items()},
        **{f"{end}_params": weights[end].numel() if end in weights else 0 for end in ("head", "transform", "patch")},
        "tied": "head" in weights and id(weights["head"]) in tables,
    }


def _is_vector(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is added or scaled with: of a norm, a bias, a learned token."""
    thin = parameter.dim() > 2 and parameter.numel() == max(parameter.shape)
    return parameter.dim() < 2 or thin or "token" in name.rpartition(".")[2]


def _is_table(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a table of positions that is no `nn.Embedding`."""
    return not _is_vector(name, parameter) and "position" in name.rpartition(".")[2]


def _sizes(stack: Any, config: Any, side: str, cross: bool = False) -> dict[str, Any]:
    """Sizes of the layers of one stack; with `cross`, attention that is not causal is to the encoder's positions."""
    hidden = _first(config, _HIDDEN)
    heads = _first(config, (f"{side}_attention_heads", f"num_{side}_attention_heads", *_HEADS))
    experts = _first(config, _EXPERTS)
    attending = _attending(stack)
    memory = [module for module, facts in attending if cross and facts.causal is False]
    dims = {dim for _, facts in attending for dim in facts.head_dims}
    head_dim = _first(config, _HEAD_DIM) or (dims.pop() if len(dims) == 1 else hidden // heads if heads else 0)
    return {
        "layers": _first(config, (f"{side}_layers", f"num_{side}_layers", *_LAYERS)),
        "attention_layers": len(attending) - len(memory),
        "causal": side == "decoder",
        "hidden": hidden,
        "heads": heads,
        "head_dim": head_dim,
        "v_head_dim": _first(config, ("v_head_dim",)) or head_dim,
        "experts": experts,
        "top_k": _first(config, _TOP_K) if experts else 0,
        "memory_params": sum(
            child.weight.numel()
            for module in memory
            for name, child in module.named_children()
            if name in _KEYS_AND_VALUES
        ),
    }


def _attending(stack: Any) -> list[tuple[Any, AttentionFacts]]:
    """Attention modules and what they say of themselves; one around another is not counted again."""
    modules = stack.named_modules()
    found = {path: (module, facts) for path, module in modules if (facts := attention_facts(module, path))}
    return [pair for path, pair in found.items() if not any(other.startswith(f"{path}.") for other in found)]


def _lengths(shape: list[int]) -> dict[str, int]:
    """Sequences and positions of a text of this shape."""
    return {"batch": math.prod(shape[:-1]), "seq": shape[-1]} if len(shape) > 1 else {"batch": 0, "seq": 0}


def _image_lengths(shape: list[int], patch: nn.Conv2d, named: _Named) -> dict[str, int]:
    """The same of images: their patches, and the tokens learned beside them that are no mask."""
    if len(shape) != 4:
        return {"batch": 0, "seq": 0, "patches": 0}
    padding = (0, 0) if isinstance(patch.padding, str) else patch.padding
    sides = zip(shape[2:], patch.kernel_size, patch.stride, padding, strict=True)
    patches = math.prod((side + 2 * pad - kernel) // stride + 1 for side, kernel, stride, pad in sides)
    tokens = (p for name, p in named if name.rpartition(".")[2] in _TOKENS)
    beside = sum(p.numel() // patch.out_channels for p in tokens)
    return {"batch": shape[0], "seq": patches + beside, "patches": patches}


def _embeddings(model: Any, getter: str) -> Any:
    """A model's input or output table; None where it has none or does not tell."""
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return module if isinstance(getattr(module, "weight", None), nn.Parameter) else None


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of the fields that is a number; 0 where none is."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)
