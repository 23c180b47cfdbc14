#!/usr/bin/env bash
# Past 4,096 tokens Phi-3 drops its cache: transformers 5.24 prefills all anew for that token, 5.17 goes on without any past.
#
# Expected: with a cache each call after the first is of one token and the cache grows by one. Phi-3 with a long context has two sets of
#   rope factors, one of them for more than 4,096 positions; which is used is a matter of frequencies, and costs a comparison.
# Happens: at the first call past original_max_position_embeddings the cache is put aside, as its keys were rotated by the short factors.
#   5.24.0 passes all tokens once more: with a border of 16 and a prompt of 12 the calls are of 12, 1, 1, 1, 1, 17, 1, ... tokens, so at
#   4,096 one token costs a prefill of 4,097. 5.4.0 and 5.17.0 pass one token and no cache, and as that leaves a cache of 1, below
#   the border, they do it again in each call: every further token follows from the last one alone. Steps become cheaper, and
#   the tokens are not those of use_cache=False, without a word.
#   In both a static cache ends there: what follows has a DynamicCache, so on a GPU it is no longer what was compiled.
# Who meets it: whoever takes a token's time from a mean or a slope over lengths, or tells prefill from decode by the length of a call or
#   by its being first: this one is a decode step with a prefill's work and peak memory; percentiles of it look like a stall.
# Versions: transformers 5.17.0 (5.4.0 as that) and 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/phi3/modeling_phi3.py, prepare_inputs_for_generation; phimoe and phi4_multimodal have it as well
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > border.py <<'PYTHON'
import json

import torch
import transformers
from transformers import Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
config = Phi3Config(
    hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=97,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, original_max_position_embeddings=16, max_position_embeddings=64,
    rope_parameters=rope | {"original_max_position_embeddings": 16, "factor": 4.0},
)
model = Phi3ForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(6)  # larger than at the start of training, so that all counts
takes = "cache" if "cache" in model.forward.__code__.co_varnames else "past_key_values"
calls = []


def note(module, args, kwargs, out):
    cache = out.get(takes)
    calls.append((kwargs["input_ids"].shape[1], cache and int(cache.get_seq_length()), type(cache).__name__))


model.register_forward_hook(note, with_kwargs=True)


def generate(**how):
    calls.clear()
    ids = torch.arange(3, 15)[None]
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, **how)[0, 12:].tolist()
    passed, cached, caches = zip(*calls)
    return {"tokens": tokens, "passed": passed, "cached": cached, "caches": caches}


print(json.dumps({
    "transformers": transformers.__version__, "plain": generate(use_cache=False), "dynamic": generate(),
    "static": generate(cache_implementation="static"),
}))
PYTHON
for version in 5.17.0 5.24.0; do
    python3 -m venv "$version"
    "$version/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 "transformers==$version" 2>/dev/null
    TRANSFORMERS_VERBOSITY=error "$version/bin/python" -W ignore border.py > "$version.json"
done
python3 - <<'PYTHON'
import json

for version, passed, cached in (
    ("5.17.0", [12] + 11 * [1], [12, 13, 14, 15, 16] + 7 * [1]),
    ("5.24.0", [12, 1, 1, 1, 1, 17, 1, 1, 1, 1, 1, 1], list(range(12, 24))),
):
    with open(f"{version}.json") as file:
        seen = json.load(file)
    assert seen["transformers"] == version
    dynamic, static, plain = seen["dynamic"], seen["static"], seen["plain"]
    same = dynamic["tokens"] == plain["tokens"]
    print(f"transformers {version}: tokens of each call {dynamic['passed']}, positions cached after it {dynamic['cached']}")
    print(f"  with a static cache: {static['caches'][4]}, then {static['caches'][5]}; tokens as without a cache: {same}")
    assert (dynamic["passed"], dynamic["cached"]) == (passed, cached), "that has changed"
    assert static["caches"] == 5 * ["StaticCache"] + 7 * ["DynamicCache"], "that has changed"
    assert dynamic["tokens"][:5] == plain["tokens"][:5], "that has changed"
    assert same == (version == "5.24.0"), "that has changed"
PYTHON
echo "as described"
