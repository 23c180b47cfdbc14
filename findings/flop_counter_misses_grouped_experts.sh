#!/usr/bin/env bash
# torch's FlopCounterMode counts no expert of a mixture-of-experts model of transformers, as these run by default.
#
# Expected: which of its implementations multiplies by the experts changes the time, not the count: a token meets two experts of eight,
#   each of three products, and FlopCounterMode counts products.
# Happens: the default is "grouped_mm", one aten::_grouped_mm for all tokens of a projection, and that operator has no formula in the
#   counter: here 63,616 FLOPs of a token's 260,224 are counted, attention and head alone, and 196,608 of its experts are not, without
#   a warning. "eager" and "batched_mm", which are mm and bmm, are counted in full. By its source, generate() on a GPU decodes by
#   "batched_mm" and prefills by "grouped_mm", so there one count has the experts of each new token and none of the prompt's.
# Who meets it: whoever takes FLOPs or MFU of Mixtral, Qwen3-MoE, DeepSeek-V3 or gpt-oss from the counter: most of a large one is experts.
#   Mend: model.set_experts_implementation("eager") while counting, or a formula by custom_mapping.
# Versions: transformers 5.24.0 (5.17.0 and 5.4.0 the same), torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torch/utils/flop_counter.py, flop_registry; transformers/integrations/moe.py, generation/utils.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
venv/bin/python - <<'PYTHON'
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import MixtralConfig, MixtralForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
HIDDEN, INNER, LAYERS, CHOSEN = 64, 128, 2, 2
EXPERTS = LAYERS * CHOSEN * 3 * 2 * HIDDEN * INNER  # of one token: gate, up and down, a multiply-add being 2
config = MixtralConfig(
    hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=97, num_local_experts=8, num_experts_per_tok=CHOSEN,
)
model = MixtralForCausalLM(config).eval()
default = model.config._experts_implementation
counted = {}
for name in ("eager", "batched_mm", "grouped_mm"):
    model.set_experts_implementation(name)
    for tokens in (1, 64):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long))
        counted[name, tokens] = counter.get_total_flops()
        print(f"{name}{' (default)' if name == default else ''}, {tokens} tokens: {counted[name, tokens]:,} FLOPs")
assert default == "grouped_mm", "that has changed"
assert torch.ops.aten._grouped_mm not in flop_registry, "that has changed"
for tokens in (1, 64):
    assert counted["eager", tokens] == counted["batched_mm", tokens], "that has changed"
    assert counted["eager", tokens] - counted["grouped_mm", tokens] == tokens * EXPERTS, "that has changed"
PYTHON
echo "as described"
