"""What an attention module says of itself: causal or not, its window, its head dimensions."""

from __future__ import annotations

from typing import Any

from torch import nn

from gpuprof.theory.masks import AttentionFacts

# T5's and its kin's attention modules by the names they have in every checkpoint: of a sequence to itself, and of a
# decoder to what was encoded.
_T5_SELF, _T5_CROSS = "SelfAttention", "EncDecAttention"
_HEAD_DIMS = ("head_dim", "attention_head_size", "key_value_proj_dim", "qk_head_dim", "v_head_dim", "kdim")


def attention_facts(module: nn.Module, path: str) -> AttentionFacts | None:
    """Facts of an attention module, or None if the module is none.

    A module is taken for one if it says whether it is causal (``is_causal``, as Hugging Face's do) or if it has
    attention in its class name and a head dimension. Where it does not say, ``causal`` is None: its products can
    only be counted over the whole square.

    Args:
        module: the module.
        path: where it is in its model.
    """
    said = getattr(module, "is_causal", None)
    causal = said if isinstance(said, bool) else _t5_causal(module, path.rpartition(".")[2])
    named = "attention" in type(module).__name__.lower()
    dims = _head_dims(module) if named or causal is not None else ()
    if not dims:
        return None
    try:
        window = _window(module) if causal else None
    except (
        Exception
    ):  # a configuration that does not tell, as those whose layers differ: nor is it known what is masked
        causal = window = None
    return AttentionFacts(causal=causal, window=window, head_dims=dims)


def _t5_causal(module: nn.Module, name: str) -> bool | None:
    """Whether T5's attention is causal in releases of transformers (5.4) where it says only whose it is.

    Encoder, decoder and the attention between them share a class there; a decoder masks its own sequence only.
    """
    decoders = getattr(module, "is_decoder", None)
    if not isinstance(decoders, bool) or name not in (_T5_SELF, _T5_CROSS):
        return None
    return decoders and name == _T5_SELF


def _head_dims(module: nn.Module) -> tuple[int, ...]:
    dims = {value for name in _HEAD_DIMS if isinstance(value := getattr(module, name, None), int) and value > 0}
    if not dims:
        width = _first_int(module, "embed_dim", "hidden_size", "all_head_size", "d_model", "dim")
        heads = _first_int(module, "num_heads", "num_attention_heads", "n_heads")
        if width and heads and width % heads == 0:
            dims.add(width // heads)
    return tuple(sorted(dims))


def _first_int(module: nn.Module, *names: str) -> int | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _window(module: nn.Module) -> int | None:
    """Keys that a query may look back on, itself included; None for all."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window if isinstance(module.sliding_window, int) else None
    config: Any = getattr(module, "config", None)
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if kinds is not None and isinstance(index, int):
        return window if kinds[index] == "sliding_attention" else None
    return window
