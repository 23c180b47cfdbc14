"""The presets' architectures with a few thousand parameters, as Hugging Face directories."""

import json
from functools import partial

import pytest
import torch

from gpuprof.workload import load_preset

DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "bos_token_id": 254,
    "eos_token_id": 255,
}
ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALLER = {
    "smollm2-135m": DECODER,
    "qwen2-0.5b": DECODER,
    "qwen2-7b": DECODER,
    "llama-3.1-8b": DECODER,
    "mixtral-8x7b": DECODER | {"num_local_experts": 4},
    "gpt2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "vocab_size": 256,
        "bos_token_id": 255,
        "eos_token_id": 255,
    },
    "bert-base": ENCODER | {"vocab_size": 256, "max_position_embeddings": 64},
    "t5-small": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "vocab_size": 256,
    },
    "siglip-so400m-384": ENCODER | {"image_size": 28, "patch_size": 7},
    "vit-base-16": ENCODER | {"image_size": 32, "patch_size": 8, "num_labels": 10},
    "resnet-50": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 10},
    "whisper-small": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": 50,
        "max_target_positions": 32,
        "vocab_size": 256,
        "decoder_start_token_id": 250,
        "pad_token_id": 251,
        "bos_token_id": 251,
        "eos_token_id": 251,
    },
    "llava-onevision-qwen2-7b": {
        "vision_config": ENCODER | {"image_size": 28, "patch_size": 7},
        "text_config": DECODER,
        "image_token_index": 252,
        "video_token_index": 253,
        "image_grid_pinpoints": [[28 * rows, 28 * columns] for rows in range(1, 7) for columns in range(1, 7)],
    },
}


def write_tiny(folder, name, **changes):
    """Writes a shrunken preset as `config.json` below a folder; gives its directory."""
    preset = load_preset(name)
    config = dict(preset["config"])
    for key, value in (SMALLER[name] | changes).items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    config["architectures"] = [preset["architecture"]]
    directory = folder / f"tiny-{name}"
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.fixture
def tiny(tmp_path):
    """Writes a shrunken preset as `config.json`; gives the directory."""
    return partial(write_tiny, tmp_path)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """The same defaults on every machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
