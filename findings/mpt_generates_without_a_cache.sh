#!/usr/bin/env bash
# MPT generates without a cache unless it is told to use one: each new token is a prefill of all before it.
#
# Expected: generate() keeps keys and values, so after the prompt each call of the model has one token; use_cache is True for whatever model has
#   a cache, and a model that has none says so.
# Happens: MptConfig has use_cache=False, for itself, though the model has a cache, and
#   the generation's configuration takes it over. So a prompt of 32 and 4 new tokens are calls of 32, 33, 34 and 35 tokens, without a word. With
#   use_cache=True they are of 32, 1, 1 and 1, the tokens are the same, and a quarter of the work is done.
# Who meets it: whoever compares throughput or time per token of models by generate() with its defaults: MPT's grows with the length
#   and is bound by arithmetic, not by memory. The forward of a model that is called by hand has no cache either.
# Versions: transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/mpt/configuration_mpt.py; generation/configuration_utils.py
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
from transformers import FalconConfig, FalconForCausalLM, MptConfig, MptForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
prompt, tokens, work = torch.randint(3, 97, (1, 32)), {}, {}
for name, model in (
    ("MPT", MptForCausalLM(MptConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=97))),
    ("Falcon", FalconForCausalLM(FalconConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=97))),
):
    model.eval()
    forward, lengths = model.forward, []

    def noting(*args, forward=forward, lengths=lengths, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    model.forward = noting
    for options in ({}, {"use_cache": True}):
        lengths.clear()
        with FlopCounterMode(display=False) as counter:
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0,
                **options,
            )
        print(f"{name}, {options or 'as it is'}: calls of {lengths} tokens, {counter.get_total_flops():,} FLOPs")
        tokens[name, bool(options)], work[name, bool(options)] = out.tolist(), counter.get_total_flops()
        assert lengths == ([32, 33, 34, 35] if name == "MPT" and not options else [32, 1, 1, 1]), "that has changed"
assert tokens["MPT", False] == tokens["MPT", True], "that has changed"
assert work["MPT", False] > 3.5 * work["MPT", True], "that has changed"
PYTHON
echo "as described"
