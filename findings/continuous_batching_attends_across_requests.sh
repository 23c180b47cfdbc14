#!/usr/bin/env bash
# In transformers' continuous batching every request attends to the cache of every other, and the result is masked away.
#
# Expected: paged attention is there so that requests of any lengths share a batch without padding: a decode step of eight requests of
#   33 positions multiplies eight queries by 33 keys each, as generate() does for eight rows, and the prompts cost 32 x 32 each.
# Happens: with sdpa attention, the requests lie behind each other in one row, and the mask takes what is of another request:
#   8 x 264 pairs instead of 8 x 33, and 256 x 256 instead of eight times 32 x 32. Attention's FLOPs are those of generate() times the
#   number of requests, and the mask has as many elements; the tokens are right. A flash implementation, which the library switches
#   to where it finds one, takes the lengths instead.
# Who meets it: whoever has no flash-attn and batches requests for throughput: the cost of attention per token grows with the load. And
#   whoever counts FLOPs of a batch from requests and lengths, or MFU from a counter that sees the masked products.
# Versions: transformers 5.24.0, torch 2.13.0, CPU, attn_implementation="sdpa"; seen on 2026-11-29.
# Source: transformers/integrations/sdpa_paged.py; generation/continuous_batching, its attention mask
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 psutil 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from torch.nn import functional
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=97,
    pad_token_id=0, eos_token_id=2, attn_implementation="sdpa",
)
model = LlamaForCausalLM(config).eval()
attention, pairs = functional.scaled_dot_product_attention, []


def noted(query, key, *args, **kwargs):
    pairs.append(query.shape[0] * query.shape[2] * key.shape[2])
    return attention(query, key, *args, **kwargs)


functional.scaled_dot_product_attention = noted
NEW, LENGTH = 4, 32
for requests in (1, 8):
    prompts = torch.randint(3, 97, (requests, LENGTH))
    pairs.clear()
    rows = model.generate(prompts, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[:, LENGTH:].tolist()
    plain = list(pairs)
    pairs.clear()
    batch = model.generate_batch(
        prompts.tolist(), warmup=False,
        generation_config=GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, page_size=64, max_batch_tokens=512),
    )
    print(f"{requests} requests, pairs of query and key in each step: generate {plain}, continuous batching {pairs}")
    assert sorted(out.generated_tokens for out in batch.values()) == sorted(rows), "that has changed"
    assert plain == [requests * LENGTH * LENGTH] + [requests * (LENGTH + i) for i in range(1, NEW)], "that has changed"
    assert pairs == [requests * count for count in plain], "that has changed"
PYTHON
echo "as described"
