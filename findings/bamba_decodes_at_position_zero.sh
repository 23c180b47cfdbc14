#!/usr/bin/env bash
# Bamba and MiniMax called with their cache, but without position_ids, put each new token at position 0.
#
# Expected: model(token, cache=cache) is a decode step, as for Llama: with no position_ids given the model counts on from what its cache
#   has seen, so a loop of such calls gives what generate() does.
# Happens: Bamba counts from 0 in each call, cache or none. MiniMax asks its cache, which answers 0, as its first layer is a
#   linear one whose state lies elsewhere. So each decoded token is rotated to position 0: it attends to its past as if it stood before
#   it. Shapes, times and FLOPs are right, and nothing warns; the logits are others, and with position_ids they are those of the
#   whole. generate() passes position_ids, so there it does not show.
# Who meets it: whoever writes a decode loop for many models, as for a benchmark or for perplexity of a continuation.
# Versions: transformers 5.24.0 (5.17.0 the same), torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/bamba/modeling_bamba.py, BambaModel.forward; minimax/modeling_minimax.py, MiniMaxModel.forward
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from transformers import (
    BambaConfig, BambaForCausalLM, FalconH1Config, FalconH1ForCausalLM, LlamaConfig, LlamaForCausalLM, MiniMaxConfig, MiniMaxForCausalLM,
)

print("transformers", transformers.__version__, "torch", torch.__version__)
plain = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
minimax = {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "block_size": 8}
models = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**plain)),
    "Falcon-H1": (FalconH1ForCausalLM, FalconH1Config(**plain, **mamba, mamba_d_ssm=128)),
    "Bamba": (BambaForCausalLM, BambaConfig(**plain, **mamba, attn_layer_indices=[1])),
    "MiniMax": (MiniMaxForCausalLM, MiniMaxConfig(**plain, **minimax)),
}
for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model, ids = kind(config).eval(), torch.randint(3, 97, (1, 24))
    off, chosen = {}, {}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # larger than at the start of training, so that all counts
        whole = model(input_ids=ids).logits[0, -1]
        for told in (False, True):
            cache = model(input_ids=ids[:, :23], use_cache=True)["past_key_values"]
            where = {"position_ids": torch.tensor([[23]])} if told else {}
            last = model(input_ids=ids[:, 23:], cache=cache, **where).logits[0, -1]
            off[told] = ((last - whole).abs().max() / whole.abs().max()).item()
    print(f"{name}: the step's logits are off by {off[False]:.0e} of the largest, with position_ids by {off[True]:.0e}")
    assert off[True] < 1e-4, "that has changed"
    assert (off[False] > 1e-3) == (name in ("Bamba", "MiniMax")), "that has changed"
PYTHON
echo "as described"
