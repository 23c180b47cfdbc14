#!/usr/bin/env bash
# Assisted generation drafts one token a round instead of twenty where the assistant is unsure, however often it is right.
#
# Expected: num_assistant_tokens is 20 and its schedule "constant", so a round drafts 20 tokens and one call of the model checks them. A model
#   that is its own assistant is right each time: 21 tokens are one call of the model. To time drafting and checking, random weights do.
# Happens: a draft ends early with the first token whose probability is below assistant_confidence_threshold, 0.4 by default. Random weights
#   give every token about 1 / vocabulary, so each round drafts one: here 21 tokens are 11 calls of the model and 10 of the assistant rather
#   than 1 and 20, and all drafts were right. With the threshold at 0 it is as expected; a real model is in between, by how sure
#   it is of the text, not by how often it is accepted. The first call of the model waits for the first draft, and has prompt and draft.
# Who meets it: whoever times speculative decoding with random weights, or compares num_assistant_tokens: 4 and 20 are the same run. And whoever
#   compares texts or temperatures: rounds are as long as the assistant is sure. Mend: assistant.generation_config.assistant_confidence_threshold = 0.
# Versions: transformers 5.24.0, torch 2.13.0, CPU, random weights; seen on 2026-11-29.
# Source: transformers/generation/candidate_generator.py, AssistedCandidateGenerator; generation/stopping_criteria.py, ConfidenceCriteria
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import copy

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
PROMPT, NEW = 12, 21
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=97
)
model = LlamaForCausalLM(config).eval()
prompt = torch.arange(PROMPT)[None]
alone = model.generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)


def calls(**settings):
    """Positions of each call of the model, and of the assistant."""
    assistant = copy.deepcopy(model)
    for name, value in settings.items():
        setattr(assistant.generation_config, name, value)
    positions = {model: [], assistant: []}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: positions[module].append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        for module in positions
    ]
    tokens = model.generate(
        prompt, assistant_model=assistant, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    for hook in hooks:
        hook.remove()
    assert torch.equal(tokens, alone), "that has changed"
    print(f"{settings or 'defaults'}: model {positions[model]}, assistant {positions[assistant]}")
    return positions[model], positions[assistant]


unsure = calls()
assert unsure == ([PROMPT + 1] + [2] * 9 + [1], [PROMPT] + [2] * 9), "that has changed"
for number in (4, 20):
    assert calls(num_assistant_tokens=number) == unsure, "that has changed"
assert calls(assistant_confidence_threshold=0.0) == ([PROMPT + NEW - 1], [PROMPT] + [1] * (NEW - 2)), "that has changed"
PYTHON
echo "as described"
