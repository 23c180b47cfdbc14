"""Workloads of the GPU checks: a few layers of the models that the presets are of, at the presets' sizes.

gpuprof profile scripts/gpu_workloads.py:qwen2_layers --dtype bfloat16 --counters minimal
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig

from gpuprof.workload.options import Options, resolve_dtype
from gpuprof.workload.presets import load_preset


def qwen2_layers(options: Options) -> dict[str, Any]:
    """Two layers of Qwen2 7B and its head, trained on 1 x 2048 tokens."""
    return _language_model(_few_layers("qwen2-7b", options, layers=2), options)


def small_qwen2_layers(options: Options) -> dict[str, Any]:
    """Two layers of Qwen2 0.5B and its head."""
    return _language_model(_few_layers("qwen2-0.5b", options, layers=2), options)


def siglip_layers(options: Options) -> dict[str, Any]:
    """Two layers of SigLIP so400m with its patch embedding, 8 images of 384 x 384: 729 positions, heads of 72."""
    model = _few_layers("siglip-so400m-384", options, layers=2)
    size = model.config.image_size
    return {"model": model, "inputs": {"pixel_values": torch.randn(options.batch_size or 8, 3, size, size)}}


def siglip_layers_flash(options: Options) -> dict[str, Any]:
    """The same with FlashAttention 2, where torch would take cuDNN's attention."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    return siglip_layers(options)


def _language_model(model: Any, options: Options) -> dict[str, Any]:
    ids = torch.randint(0, model.config.vocab_size, (options.batch_size or 1, options.seq_len or 2048))
    return {"model": model, "inputs": {"input_ids": ids, "labels": ids}}


def _few_layers(preset: str, options: Options, layers: int) -> Any:
    chosen = load_preset(preset)
    config = AutoConfig.for_model(**{**chosen["config"], "num_hidden_layers": layers})
    how = {"attn_implementation": options.attention} if options.attention else {}
    # made where it runs and in its dtype: filling billions of float32 on the host takes ten times as long
    with torch.device(options.device or "cpu"):
        return getattr(transformers, chosen["architecture"])._from_config(
            config, dtype=resolve_dtype(options.dtype or "float32"), **how
        )
