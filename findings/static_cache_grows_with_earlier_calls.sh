#!/usr/bin/env bash
# A short generation on a static cache pays for the longest one that the model did before.
#
# Expected: cache_implementation="static" sizes the cache by the call: 4 tokens and 3 new ones need 6 positions. A cache made for an earlier
#   call may be used again; a new one is of the size asked for.
# Happens: each call makes a new cache, of the larger of its own need and of any earlier call's on that model: after a call of 100 + 6 the
#   short one has 105 positions, and attention reads them all, masked, in each call. With eager attention the same short
#   call has 1.60 x the FLOPs it had before the long one. The size is kept on the model, to spare a recompilation, not in
#   generation_config, and nothing shows it.
# Who meets it: whoever measures lengths in one process, from long to short or after a warm-up: the order of the lengths is in the times
#   and bytes. Mend: a new model per length, or del model._previous_max_cache_length.
# Versions: transformers 5.24.0 (5.17.0 and 5.4.0 the same), torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/generation/utils.py, _prepare_static_cache
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
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
)
model = LlamaForCausalLM(config).eval()


def generate(prompt, new):
    with FlopCounterMode(display=False) as counter:
        out = model.generate(
            torch.ones(1, prompt, dtype=torch.long), max_new_tokens=new, do_sample=False, eos_token_id=None,
            cache_implementation="static", return_dict_in_generate=True,
        )
    positions = out["past_key_values"].layers[0].keys.shape[2]
    print(f"{prompt} + {new} tokens: a cache of {positions} positions, {counter.get_total_flops():,} FLOPs")
    return positions, counter.get_total_flops()


before, alone = generate(4, 3)
longer, _ = generate(100, 6)
after, behind = generate(4, 3)
del model._previous_max_cache_length
mended, _ = generate(4, 3)
print(f"the same short call costs {behind / alone:.2f} x the FLOPs")
assert (before, longer, after, mended) == (6, 105, 105, 6), "that has changed"
assert behind > 1.2 * alone, "that has changed"
PYTHON
echo "as described"
