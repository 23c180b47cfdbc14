#!/usr/bin/env bash
# Weights that torchao has made int8 weigh in bfloat16 wherever one asks: in nbytes, and in transformers' memory footprint.
#
# Expected: int8 weights take half the bytes of bfloat16, which is what they were made for, and get_memory_footprint(), which adds up the
#   parameters' bytes, says so.
# Happens: a quantized weight is a tensor of a class of its own, which keeps shape and dtype of the weight it stands for, so numel,
#   element_size and nbytes are those of bfloat16, and so is the footprint, to the byte. What is stored lies in the tensors inside
#   (qdata and scale), which torch.save writes: half. float8 is the same. torch's FlopCounterMode has no formula for the product of int8 by int8
#   and counts attention's products alone; with int8 weights and bfloat16 activations it counts all.
# Who meets it: whoever looks up whether quantization has worked, sizes a batch by the rest of memory, or computes how many bytes a
#   token of decoding must read. Mend: add up the tensors that __tensor_flatten__ names.
# Versions: torchao 0.18.0, transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torchao/utils.py, TorchAOBaseTensor; transformers/modeling_utils.py, get_memory_footprint
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 torchao==0.18.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - 2>quiet <<'PYTHON' || { cat quiet; exit 1; }
import io

import torch
import torchao
import transformers
from torch.utils.flop_counter import FlopCounterMode
from torchao.quantization import Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM

print("torchao", torchao.__version__, "transformers", transformers.__version__, "torch", torch.__version__)


def inner(tensor):
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(inner(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def look(config):
    torch.manual_seed(0)
    sizes = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=97,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(sizes).to(torch.bfloat16).eval()
    if config is not None:
        quantize_(model, config)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(16)[None], use_cache=False)
    weight = model.model.layers[0].mlp.up_proj.weight
    seen = weight.nbytes, inner(weight), model.get_memory_footprint(), file.tell(), counter.get_total_flops()
    print("{}: one weight nbytes {:,}, stored {:,}; footprint {:,}, saved {:,}; {:,} FLOPs counted".format(
        "bfloat16" if config is None else type(config).__name__.removesuffix("Config"), *seen))
    return seen


plain = look(None)
for config in (Int8WeightOnlyConfig(), Float8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
    nbytes, stored, footprint, saved, flops = look(config)
    assert (nbytes, footprint) == (plain[0], plain[2]), "that has changed"
    assert stored < 0.51 * plain[1] and saved < 0.55 * plain[3], "that has changed"
    assert flops == (2 * 2 * 2 * 4 * 16 * 16 * 64 if "Dynamic" in type(config).__name__ else plain[4]), "that has changed"
PYTHON
echo "as described"
