#!/usr/bin/env bash
# In DeepSeek-V4 what stands under a prompt's padding decides how it goes on: padding is compressed with the tokens, and attended to.
#
# Expected: a prompt that is padded on the left, with its attention_mask and positions, gives the logits that it gives alone, as Llama's
#   does to rounding, and which token fills the padding is of no account, as it is masked.
# Happens: a layer attends to a window of single positions, where the mask holds, and to the past in groups of 4 or 128 positions, each
#   pooled to one entry. The groups are cut by place in the row and pooled without the mask, so padding fills entries of its own, which all
#   tokens attend to, and moves the borders of the others. The logits are off by half of their standard deviation here, and by other padding
#   by as much again. So a prompt in a batch goes on otherwise than alone, and otherwise with a longer neighbour. Nothing warns.
# Who meets it: whoever evaluates or generates in batches of unequal prompts: results depend on the batch size and on the order. Mend:
#   batches of equal lengths. The library's issue 45938 asks about it for padding on the right.
# Versions: transformers 5.24.0, torch 2.13.0, CPU, random weights; seen on 2026-11-29.
# Source: transformers/models/deepseek_v4/modeling_deepseek_v4.py, the compressors, which get no mask, and DeepseekV4Attention.forward
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
shared = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 97,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
models = {
    "Llama": LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, **shared)),
    "DeepSeek-V4": DeepseekV4ForCausalLM(DeepseekV4Config(
        num_key_value_heads=1, q_lora_rank=32, moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2,
        index_n_heads=4, index_head_dim=16, index_topk=512, **shared,
    )),
}
PROMPT = 64
for name, model in models.items():
    torch.manual_seed(0)
    model.eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.15 if parameter.dim() > 1 else 0.1)
    ids = torch.randint(3, 97, (1, PROMPT))

    def last(pad, token):
        row = torch.cat([torch.full((1, pad), token), ids], dim=1)
        mask = (torch.arange(pad + PROMPT) >= pad).long()[None]
        with torch.no_grad():
            return model(input_ids=row, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1]

    with torch.no_grad():
        alone = model(input_ids=ids).logits[:, -1]
    for pad in (4, 128):
        zeros, fives = last(pad, 0), last(pad, 5)
        off, other = ((zeros - alone).abs().max() / alone.std()).item(), ((zeros - fives).abs().max() / alone.std()).item()
        print(f"{name}, {pad} of padding: off by {off:.2g} standard deviations of the logits, by other padding {other:.2g}")
        if name == "Llama":
            assert off < 1e-3 and other < 1e-3, "that has changed"
        else:
            assert off > 0.01 and other > 0.01, "that has changed"
PYTHON
echo "as described"
