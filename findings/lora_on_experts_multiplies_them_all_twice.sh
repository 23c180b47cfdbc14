#!/usr/bin/env bash
# LoRA on the experts of a mixture makes the update of every expert in every forward, and makes it twice.
#
# Expected: LoRA adds 2 r (in + out) FLOPs per token and matrix, a percent or so; of eight experts a token meets two, so that it costs
#   that of two. At worst the updates B A of all experts are added up to weights, once per forward, and kept for its while.
# Happens: experts are parameters and no layers, so peft adapts them by target_parameters, and hangs a parametrization on each for the while
#   of a forward: base + B A of all experts, whichever are used. torch runs a parametrization when it is registered, to check shapes, and
#   peft registers anew in each forward; then it is run for its value. So a forward of one token here has 12.5 times the FLOPs
#   it has without adapters, with 64 tokens 1.16 times; the extra is the same for any number of tokens, and twice 2 r in out for
#   each expert. In training the backward is that of one.
# Who meets it: whoever evaluates or generates with an adapter on experts that is not merged (Mixtral, Qwen3-MoE, gpt-oss): each new token
#   reads and makes the weights of all experts, so it is dearer than the whole model was. And whoever computes LoRA's FLOPs by its
#   parameters. Mend: merge_adapter() while generating.
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: peft/tuners/lora/layer.py, ParamWrapper._activate_lora; torch/nn/utils/parametrize.py, register_parametrization
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
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
HIDDEN, INNER, EXPERTS, RANK = 64, 128, 8, 2
UPDATES = EXPERTS * 2 * RANK * (2 * INNER * HIDDEN + HIDDEN * INNER)  # B A of gate_up_proj and of down_proj
config = MixtralConfig(
    hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=97, num_local_experts=EXPERTS, num_experts_per_tok=2, attn_implementation="eager",
)


def flops(model, tokens):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None] % 97, use_cache=False)
    return counter.get_total_flops()


for implementation in ("eager", "batched_mm"):
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation(implementation)
    plain = {tokens: flops(model, tokens) for tokens in (1, 64)}
    lora = get_peft_model(
        model, LoraConfig(r=RANK, target_modules=[], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    ).eval()
    for tokens in (1, 64):
        more = flops(lora, tokens) - plain[tokens]
        print(
            f"{implementation}, {tokens} tokens: {plain[tokens]:,} FLOPs and {more:,} for LoRA, {more / UPDATES:.2f} times "
            f"the updates of all experts, {more / plain[tokens] + 1:.2f} x in all"
        )
        assert more == 2 * UPDATES, "that has changed"
    lora.merge_adapter()
    assert flops(lora, 1) == plain[1], "that has changed"
    print("merged: as without")
PYTHON
echo "as described"
