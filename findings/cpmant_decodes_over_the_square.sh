#!/usr/bin/env bash
# A decode step of CPM-Ant makes the position bias of all pairs of positions, for one new token, and wants the whole sequence.
#
# Expected: with a cache a step is given the new token, as for Llama, and works on one position: of what it makes only the row of the
#   new one against its past grows with the cache. A bias of positions, as T5's, is one row then.
# Happens: a step is given all token ids, of which the layers run the last one. Before that, the bias is looked up for each pair of
#   positions and head, the mask is made for each pair, and all rows but one are dropped. So one token writes 3.4 times as much at 96
#   positions as at 48 and 14 times as much at 384 as at 96, while its products are those of one position; at the model's 32 heads and 4,096
#   positions the bias alone is 2 GiB in float32, per token. Given the new token alone, with the cache, the model raises.
#   And each prompt is run with 32 learned positions in front of it, so one of 16 costs 48.
# Who meets it: whoever tells decode from prefill by the length of input_ids (every call looks like a prefill), writes a decode loop for many
#   models, or takes the time of a token from weights and cache: it grows with the square, and FLOPs do not show it.
# Versions: transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/cpmant/modeling_cpmant.py, CpmAntModel.forward and CpmAntSegmentPositionEmbedding
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CpmAntConfig, CpmAntForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
HEADS = 4
torch.manual_seed(0)
config = CpmAntConfig(vocab_size=97, hidden_size=64, num_attention_heads=HEADS, dim_head=16, dim_ff=128, num_hidden_layers=2)
model = CpmAntForCausalLM(config).eval()
LEARNED = config.prompt_length


class Written(TorchDispatchMode):
    """Adds up the elements of new tensors, views and what is written in place aside."""

    def __init__(self):
        super().__init__()
        self.elements, self.largest = 0, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not any(result.alias_info for result in func._schema.returns):
            self.elements += out.numel()
            self.largest = max(self.largest, tuple(out.shape), key=lambda shape: torch.Size(shape).numel())
        return out


given, run = [], []
model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
model.cpmant.encoder.layers[0].ffn.register_forward_pre_hook(lambda module, args: run.append(args[0].shape[1]))
tokens = model.generate(torch.arange(1, 17)[None], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
print(f"generate, a prompt of 16: given {given}, run {run} positions")
assert (given, run) == ([16, 17, 18, 19], [LEARNED + 16, 1, 1, 1]), "that has changed"

steps = {}
for positions in (48, 96, 384):  # of the step, the learned ones among them
    prompt = torch.ones(1, positions - LEARNED - 1, dtype=torch.long)
    whole = torch.ones(1, positions - LEARNED, dtype=torch.long)
    with torch.no_grad():
        caches = [model(input_ids=prompt, use_cache=True).past_key_values for _ in range(3)]
        with Written() as written:
            model(input_ids=whole, cache=caches[0])
        with FlopCounterMode(display=False) as counter:
            model(input_ids=whole, cache=caches[1])
        try:
            model(input_ids=whole[:, -1:], cache=caches[2])
        except RuntimeError as error:
            alone = str(error)
        else:
            raise SystemExit("that has changed")
    steps[positions] = written.elements
    print(f"a step at {positions}: {written.elements:,} elements, the largest {written.largest}; {counter.get_total_flops():,} FLOPs")
    assert HEADS * positions**2 == torch.Size(written.largest).numel(), "that has changed"
print("the new token alone:", alone)
assert steps[96] > 3.3 * steps[48] and steps[384] > 14 * steps[96], "that has changed"
print(f"48 to 96: {steps[96] / steps[48]:.1f} x, 96 to 384: {steps[384] / steps[96]:.1f} x")
PYTHON
echo "as described"
