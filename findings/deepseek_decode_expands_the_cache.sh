#!/usr/bin/env bash
# A decode step of DeepSeek-V3 in transformers multiplies the whole cache anew, layer by layer.
#
# Expected: one further token costs the projections of one position, whatever the length of the prompt, and attention over the
#   cache: of the FLOPs only attention grows with the cache. A cache of latents, as the paper's, changes memory: the up-projection
#   is folded into queries and outputs, so it does not have to be run for the past.
# Happens: 5.4.0 caches expanded keys and values, and kv_b_proj sees one position per step. In 5.17.0 to 5.24.0 the cache holds the
#   latents (1 head of kv_lora_rank + qk_rope_head_dim instead of all heads), and kv_b_proj is run over every cached position in
#   every step: here a step's FLOPs grow with the cache twelve times as fast, 1.85 x at 32 and 3.75 x at 128 positions.
# Who meets it: whoever computes decode FLOPs or MFU from 2 x parameters, or compares releases: the same token, another count.
# Versions: transformers 5.4.0 and 5.24.0 (5.17.0 and 5.23.0 as 5.24.0), torch 2.13.0, CPU; seen on 2026-11-28.
# Source: transformers/models/deepseek_v3/modeling_deepseek_v3.py; arXiv 2405.04434, section 2.1 for the folding
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > step.py <<'PYTHON'
import json
import warnings

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

warnings.filterwarnings("ignore")
torch.manual_seed(0)
config = DeepseekV3Config(
    hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=1, first_k_dense_replace=1,
    num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
    qk_nope_head_dim=8, v_head_dim=8, vocab_size=64,
)
model = DeepseekV3ForCausalLM(config).eval()
seen = []
for name, module in model.named_modules():
    if name.endswith("kv_b_proj"):
        module.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[-2]))
takes = "cache" if "cache" in model.forward.__code__.co_varnames else "past_key_values"
found = {"transformers": transformers.__version__}
for length in (32, 128):
    with torch.no_grad():
        out = model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=True)
        cache = out[takes]
        heads = cache.layers[0].keys.shape[1]
        seen.clear()
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, **{takes: cache})
    found[str(length)] = {"heads in the cache": heads, "positions of kv_b_proj": seen[0], "FLOPs": counter.get_total_flops()}
print(json.dumps(found))
PYTHON
for version in 5.4.0 5.24.0; do
    python3 -m venv "$version"
    "$version/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 "transformers==$version" 2>/dev/null
    "$version/bin/python" step.py | tee "$version.json"
done
python3 - <<'PYTHON'
import json

old, new = (json.load(open(f"{version}.json")) for version in ("5.4.0", "5.24.0"))
for length in ("32", "128"):
    print(f"{length} cached: {new[length]['FLOPs'] / old[length]['FLOPs']:.2f} x the FLOPs of 5.4.0 for one token")
    assert (old[length]["heads in the cache"], old[length]["positions of kv_b_proj"]) == (4, 1), "that has changed"
    assert (new[length]["heads in the cache"], new[length]["positions of kv_b_proj"]) == (1, int(length) + 1), "changed"
PYTHON
echo "as described"
