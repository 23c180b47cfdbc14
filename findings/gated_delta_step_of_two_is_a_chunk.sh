#!/usr/bin/env bash
# With a cache, a step of two tokens of Qwen3-Next pays for 64 in its linear-attention layers, a step of one does not.
#
# Expected: linear attention has a state of fixed size, and its cost is linear in the tokens. A step that checks a draft of one token,
#   two tokens in all, does twice the work of a step of one; a prompt of two tokens does a thirty-second of a prompt of 64.
# Happens: one token with a state takes the recurrent form, anything else the chunked form, whose tokens are padded to 64: 1 to 64 tokens
#   cost 6 x (64^2 x head + 64 x head^2) FLOPs per head in the layer's bmm, and 65 twice that. This small model counts 106,880 FLOPs for
#   one token after a prompt and 2,184,960 for two. (The recurrent form is element-wise, some 7,000 FLOPs here that the counter
#   leaves out.) At 32 heads of 128, as in the 80B model, the chunk has 302 M FLOPs a layer, by the formula, where a token's projections
#   have 67 M.
# Who meets it: whoever predicts the gain of speculative decoding: the step from one to two tokens is dear, each further one up to 64
#   adds its projections only. And whoever compares FLOPs per token of decode and prefill: they are not of one kind.
# Versions: transformers 5.24.0, no flash-linear-attention (5.17.0 the same), torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/qwen3_next/modeling_qwen3_next.py, Qwen3NextGatedDeltaNet.forward and the chunked gated delta rule
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = Qwen3NextConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2,
    linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    shared_expert_intermediate_size=32, vocab_size=97,
)
model = Qwen3NextForCausalLM(config).eval()
layer = "Qwen3NextForCausalLM.model.layers.0.linear_attn"
bmm = torch.ops.aten.bmm


def count(tokens, prompt=0):
    ids = torch.zeros(1, tokens, dtype=torch.long)
    with torch.no_grad():
        given = {"cache": model(input_ids=torch.zeros(1, prompt, dtype=torch.long), use_cache=True).cache} if prompt else {}
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, use_cache=True, **given)
    counts = counter.get_flop_counts()[layer]
    products = sum(counts.get(name, 0) for name in (bmm, torch.ops.aten.mm))
    total, chunks = counter.get_total_flops(), counts.get(bmm, 0)
    print(f"{tokens:2} tokens after {prompt:2}: the model {total:,}; the layer {products:,}, of that bmm {chunks:,}")
    return total, chunks


prompts = [count(tokens)[1] for tokens in (1, 2, 64, 65)]
assert len(set(prompts[:3])) == 1, "that has changed"
assert prompts[0] == 4 * 6 * (64**2 * 16 + 64 * 16**2), "that has changed"  # four heads of 16
assert prompts[3] == 2 * prompts[0], "that has changed"
steps = {tokens: count(tokens, prompt=70) for tokens in (1, 2, 5, 64)}
assert steps[1][1] == 0, "that has changed"
assert steps[2][1] == steps[5][1] == steps[64][1] == prompts[0], "that has changed"
assert steps[2][0] > 20 * steps[1][0], "that has changed"
PYTHON
echo "as described"
