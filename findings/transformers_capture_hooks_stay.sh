#!/usr/bin/env bash
# One call with output_hidden_states=True leaves forward hooks in a transformers model for good.
#
# Expected: asking one call for hidden states is a matter of that call. What it needs is set up for it and gone afterwards, so a
#   plain call before and one after it run the same code.
# Happens: the first such call registers a forward hook on every layer and, though nobody asked for attentions, on every layer's
#   attention, sets _output_capturing_hooks_installed on the base model, and removes nothing: every later plain call runs through
#   the hooks. A model that asks itself, as LLaVA-OneVision asks its vision tower for a feature layer, does it at the first image.
# Who meets it: whoever compares a module's hooks or attributes before and after a step, calls a hook-free path such as
#   torch.export or a compiled graph from before, or takes the first step of a model for one like all others.
# Versions: transformers 5.24.0 (5.4.0 and 5.17.0 alike), torch 2.13.0, CPU; seen on 2026-11-28.
# Source: transformers/utils/output_capturing.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
venv/bin/python - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


config = LlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32, use_cache=False
)
model, ids = LlamaForCausalLM(config).eval(), torch.zeros(1, 4, dtype=torch.long)
seen = {"new": hooks(model)}
model(input_ids=ids)
seen["after a plain call"] = hooks(model)
model(input_ids=ids, output_hidden_states=True)
seen["after one call that asked for hidden states"] = hooks(model)
calls = []
for module in model.modules():
    for key, hook in module._forward_hooks.items():
        module._forward_hooks[key] = lambda *given, hook=hook: (calls.append(1), hook(*given))[1]
model(input_ids=ids)
seen["hooks that the next plain call ran"] = len(calls)
for what, count in seen.items():
    print(f"{what}: {count}")
assert list(seen.values()) == [0, 0, 4, 4], "that has changed"
PYTHON
echo "as described"
