#!/usr/bin/env bash
# A decode step of RWKV with a batch takes the rows for one sequence: it multiplies rows x rows, and its tokens are others.
#
# Expected: rows of a batch have nothing to do with each other. A step of eight rows does eight times the work of one, and each row goes on
#   as it does alone; here the rows are even the same prompt eight times.
# Happens: for one token the shift of the state has no dimension of positions, so it is spread against the batch: projections of keys, values
#   and receptance get a row for each pair of rows, and the recurrence goes over the rows as if they were positions. So a layer's
#   products cost the square of the batch: 8 rows cost 64 times one. The tokens differ from those of the prompt alone from the second
#   new one on, and nothing warns. The prompt itself, which has more than one position, is right.
# Who meets it: whoever generates in batches, or sweeps the batch for throughput: the step has no knee, it gets dearer per row. Mend:
#   one row at a time, or use_cache=False.
# Versions: transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/rwkv/modeling_rwkv.py, RwkvSelfAttention.extract_key_value and RwkvFeedForward.forward
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
from transformers import RwkvConfig, RwkvForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(hidden_size=64, attention_hidden_size=64, num_hidden_layers=2, vocab_size=97)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
prompt, forward, counted = torch.randint(3, 97, (1, 12)), model.forward, []


def counting(*args, **kwargs):
    with FlopCounterMode(display=False) as counter:
        out = forward(*args, **kwargs)
    counted.append(counter.get_total_flops())
    return out


tokens, prefill, step = {}, {}, {}
for rows in (1, 2, 4, 8):
    for cache in (True, False):
        model.forward = counting if cache else forward
        counted.clear()
        out = model.generate(
            prompt.repeat(rows, 1), attention_mask=torch.ones(rows, 12, dtype=torch.long), max_new_tokens=6, do_sample=False,
            use_cache=cache, eos_token_id=None, pad_token_id=0,
        )
        tokens[rows, cache] = out[:, 12:].tolist()
        if cache:
            prefill[rows], step[rows] = counted[:2]
    print(
        f"{rows} rows: prompt {prefill[rows] / prefill[1]:.2f} x one row, step {step[rows] / step[1]:.2f} x one row; "
        f"first row {tokens[rows, True][0]}, without a cache {tokens[rows, False][0]}"
    )
for rows in (2, 4, 8):
    assert prefill[rows] == rows * prefill[1], "that has changed"
    assert step[rows] > 0.85 * rows * rows * step[1], "that has changed"
    assert tokens[rows, False] == rows * tokens[1, True], "that has changed"
    assert tokens[rows, True][0] != tokens[1, True][0], "that has changed"
PYTHON
echo "as described"
