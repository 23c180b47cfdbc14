#!/usr/bin/env bash
# After a prompt a sliding window's cache shows a window of keys and holds the storage of the whole prompt.
#
# Expected: a layer with a window of 16 needs the last 15 positions, and has them: what is kept of a prompt of 1,000 tokens is 15 of 1,000,
#   which is what such models are chosen for.
# Happens: the kept keys are a view of the prompt's keys, so all of these stay until the first step makes a new tensor: a layer's nbytes
#   are 960, its storage 64,000. A cache that is kept after the prompt, as for a shared prefix, never takes that step: as many prefixes
#   as one holds cost what full attention would, and so does each copy.deepcopy of one, and each file that torch.save writes.
#   Between prompt and first step all layers' are there at once, so the peak of a long prompt is that of a model without windows.
# Who meets it: whoever sizes memory by the window or by nbytes, or keeps prefixes. Mend: keys.clone() of each layer after the prompt.
# Versions: transformers 5.24.0 (5.17.0 and 5.4.0 the same), torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/cache_utils.py, DynamicSlidingWindowLayer.update
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import copy
import io

import torch
import transformers
from transformers import MistralConfig, MistralForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
PROMPT, WINDOW, KEYS = 1000, 16, 64  # KEYS: bytes of a position's, one head of 16 in float32
config = MistralConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    vocab_size=64, sliding_window=WINDOW,
)
model = MistralForCausalLM(config).eval()


def held(cache, when):
    shown = sum(layer.keys.nbytes for layer in cache.layers)
    storage = sum(layer.keys.untyped_storage().nbytes() for layer in cache.layers)
    positions = cache.layers[0].keys.shape[2]
    print(f"{when}: keys of {positions} positions, {shown:,} bytes shown, {storage:,} held in {len(cache.layers)} layers")
    return shown, storage


with torch.no_grad():
    cache = model(input_ids=torch.zeros(1, PROMPT, dtype=torch.long), use_cache=True)["past_key_values"]
    prompt = held(cache, "after the prompt")
    copied = held(copy.deepcopy(cache), "a deep copy of it")
    file = io.BytesIO()
    torch.save([layer.keys for layer in cache.layers], file)
    print(f"a file of its keys: {len(file.getvalue()):,} bytes")
    model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    step = held(cache, "after one step")
assert prompt == (2 * (WINDOW - 1) * KEYS, 2 * PROMPT * KEYS), "that has changed"
assert copied == prompt, "that has changed"
assert len(file.getvalue()) > prompt[1], "that has changed"
assert step == (2 * (WINDOW - 1) * KEYS, 2 * WINDOW * KEYS), "that has changed"
PYTHON
echo "as described"
