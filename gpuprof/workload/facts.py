"""The architecture of a Hugging Face model, as closed formulas ask for it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from gpuprof.workload.causality import attention_facts

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts")
_GATES = {"gate_proj", "gate_up_proj", "w3"}
_ROUTERS = {"gate", "router"}


def architecture_facts(model: torch.nn.Module, description: dict[str, Any]) -> dict[str, Any] | None:
    """Fields of `gpuprof.theory.Architecture`, in JSON's types; None for a model without a configuration.

    Args:
        model: the model, frozen as it will be trained.
        description: of the workload: its inputs and its mode.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        return None
    kind = _kind(model, config)
    if kind != "decoder":  # no formula reads more, and the sizes of several parts cannot be told as those of one
        return {"kind": kind, **_parameters(model), "mode": description["mode"]}
    hidden, heads = _first(config, _HIDDEN), _first(config, _HEADS)
    head_dim = _first(config, ("qk_head_dim", "head_dim")) or (hidden // heads if heads else 0)
    shape = next((entry["shape"] for entry in description["inputs"] if entry["name"] == "input_ids"), [0, 0])
    experts = _first(config, _EXPERTS)
    return {
        "kind": kind,
        **_parameters(model),
        "layers": _first(config, _LAYERS),
        "attention_layers": _attending(model),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": _first(config, ("num_key_value_heads",)) or heads,
        "head_dim": head_dim,
        "v_head_dim": _first(config, ("v_head_dim",)) or head_dim,
        "ffn": _first(config, _FFN) or 4 * hidden,
        "gated": any(name.rpartition(".")[2] in _GATES for name, _ in model.named_modules()),
        "vocab": _first(config, ("vocab_size",)),
        "experts": experts,
        "top_k": _first(config, _TOP_K) if experts else 0,
        "batch": shape[0],
        "seq": shape[1] if len(shape) > 1 else 0,
        "mode": description["mode"],
    }


def _attending(model: torch.nn.Module) -> int:
    """Attention modules; one around another is not counted again."""
    paths = [path for path, module in model.named_modules() if attention_facts(module)]
    return sum(not any(other.startswith(f"{path}.") for other in paths) for path in paths)


def _parameters(model: Any) -> dict[str, Any]:
    """Parameters by what they do, each once."""
    modules = dict(model.named_modules())
    tables = {id(module.weight): module.weight for module in modules.values() if isinstance(module, torch.nn.Embedding)}
    tokens = _embeddings(model, "get_input_embeddings")
    head = _embeddings(model, "get_output_embeddings")
    named = list(model.named_parameters())
    return {
        "params": sum(p.numel() for _, p in named),
        "trainable_params": sum(p.numel() for _, p in named if p.requires_grad),
        "embedding_params": sum(p.numel() for p in tables.values()),
        "token_embedding_params": 0 if tokens is None else tokens.weight.numel(),
        "head_params": 0 if head is None else head.weight.numel(),
        "tied": head is not None and id(head.weight) in tables,
        "vector_params": sum(p.numel() for _, p in named if p.dim() < 2),
        "expert_params": sum(p.numel() for name, p in named if "experts" in name.split(".")),
        "router_params": sum(p.numel() for name, p in named if p.dim() > 1 and name.split(".")[-2:-1] in _IN_ROUTERS),
        "head": next((path for path, module in modules.items() if module is head), ""),
    }


_IN_ROUTERS = [[name] for name in sorted(_ROUTERS)]


def _embeddings(model: Any, getter: str) -> Any:
    """A model's input or output table; None where it has none or does not tell."""
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return module if isinstance(getattr(module, "weight", None), torch.nn.Parameter) else None


def _kind(model: torch.nn.Module, config: Any) -> str:
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if getattr(config, "text_config", None) is not None or getattr(config, "vision_config", None) is not None:
        return "multimodal"
    if getattr(config, "patch_size", None) is not None and not hasattr(config, "vocab_size"):
        return "vit"
    causal = any(facts.causal for module in model.modules() if (facts := attention_facts(module)))
    if causal and name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "decoder"
    return "encoder" if hasattr(config, "vocab_size") and not causal else "other"


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of the fields that is a number; 0 where none is."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)
