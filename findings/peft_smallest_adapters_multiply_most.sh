#!/usr/bin/env bash
# Of peft's adapters some with the fewest parameters multiply most: one with half of LoRA's costs several forwards of the model, per call.
#
# Expected: an adapter's FLOPs go with its parameters, as LoRA's do: 2 x trained parameters per token. A Householder reflection of a
#   vector is 4 FLOPs per element, whatever the width; an update of full rank that is made of few numbers is made once per forward.
# Happens: HRA makes its reflections one square matrix at every forward, multiplies an identity by it, and the weight by that: FLOPs of
#   2 x (out + in) x in^2 a layer, which do not depend on the tokens. A forward of one token here has 240 times the model's own FLOPs, with half
#   of LoRA's parameters. BOFT multiplies dense squares as well, and the weight by them. FourierFT, LoKr and LoHa make their update a
#   matrix of the layer's size and multiply the input by it beside the weight rather than to add both up, so each adapted layer's product is
#   done twice, FourierFT's with 400 trained numbers. All of it is so when only evaluating, until the adapter is merged.
# Who meets it: whoever chooses an adapter by its parameters, generates without merging, or takes FLOPs of tuning as 6 x parameters.
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: peft/tuners/hra/layer.py, boft/layer.py, fourierft/layer.py, lokr/layer.py and loha/layer.py: the forward of each
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import peft
import torch
import transformers
from peft import BOFTConfig, FourierFTConfig, HRAConfig, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
LAYERS = {"target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"]}
SIZES = LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=97,
    attn_implementation="eager",
)
ADAPTED = 2 * (2 * 128 * 128 + 2 * 128 * 256)  # weights of the adapted layers


def flops(model, tokens):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return counter.get_total_flops()


plain = {tokens: flops(LlamaForCausalLM(SIZES), tokens) for tokens in (1, 64)}
more = {}
for name, config in (
    ("LoRA", LoraConfig(r=4, **LAYERS)), ("HRA", HRAConfig(r=4, **LAYERS)), ("BOFT", BOFTConfig(boft_block_size=32, **LAYERS)),
    ("FourierFT", FourierFTConfig(n_frequency=50, **LAYERS)), ("LoKr", LoKrConfig(r=4, **LAYERS)), ("LoHa", LoHaConfig(r=4, **LAYERS)),
):
    model = get_peft_model(LlamaForCausalLM(SIZES), config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    more[name] = {tokens: flops(model, tokens) - plain[tokens] for tokens in plain}
    shares = ", ".join(f"{tokens} tokens + {more[name][tokens] / plain[tokens]:.2%}" for tokens in plain)
    print(f"{name}: {trained:,} trained of {ADAPTED:,} in these layers, FLOPs of a forward: {shares}")
    assert flops(model.merge_and_unload(), 64) == plain[64], "that has changed"
assert more["LoRA"][64] == 64 * 2 * 10_240, "that has changed"
assert more["HRA"][1] == more["HRA"][64] > 100 * plain[1], "that has changed"
assert more["BOFT"][1] > 100 * plain[1], "that has changed"
assert more["FourierFT"][64] == 64 * 2 * ADAPTED, "that has changed"
for name in ("LoKr", "LoHa"):
    assert more[name][64] - more[name][1] == 63 * 2 * ADAPTED, "that has changed"
PYTHON
echo "as described"
