#!/usr/bin/env bash
# A compiled Llama of transformers without padding and without a cache gives attention a mask, the same model uncompiled none.
#
# Expected: compilation keeps what is called. With nothing padded attention is causal by is_causal=True and has no mask, and a mask of
#   ones at most makes a compiled model keep it, as its values are not known then. The cache has no part in it: a training step, which
#   has none, is the simplest case.
# Happens: in a compiled model attention gets a mask of batch x 1 x length x length with is_causal=False, so it does the square
#   where half of it is enough, and on a GPU it is no flash attention, which takes no mask. With use_cache=False, as one sets it to
#   train, that is so even if no attention_mask is passed; with use_cache=True, the default, it is not. The model makes position_ids
#   itself, and without mask and cache it looks in them for packed sequences; that check needs values, so when compiled it answers yes.
#   A mask of ones has it in both cases. Layers compiled one by one get no mask in any: the mask is decided outside of them.
# Who meets it: whoever compares a compiled training step with the uncompiled one, or counts attention as causal in its FLOPs.
# Versions: transformers 5.24.0, torch 2.13.0, CPU; seen on 2026-11-28.
# Source: transformers/masking_utils.py, find_packed_sequence_indices, create_causal_mask and _ignore_causal_mask_sdpa
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
venv/bin/python - <<'PYTHON'
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
called = []


def note(mask, causal):
    called.append(f"{'no mask' if mask is None else 'mask ' + 'x'.join(map(str, mask.shape))}, is_causal={causal}")


class Eager(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            note(kwargs["attn_mask"], kwargs["is_causal"])
        return func(*args, **kwargs)


def compiler(graph, inputs):
    for node in graph.graph.nodes:
        if node.target is scaled_dot_product_attention:
            mask = node.kwargs["attn_mask"]
            note(mask if mask is None else mask.meta["example_value"], node.kwargs["is_causal"])
    return graph


def run(how, **given):
    called.clear()
    torch._dynamo.reset()
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    ids = torch.zeros(2, 32, dtype=torch.long)
    if how == "uncompiled":
        with Eager():
            model(input_ids=ids, labels=ids, **given)
    elif how == "compiled":
        torch.compile(model, backend=compiler)(input_ids=ids, labels=ids, **given)
    else:
        for layer in model.model.layers:
            layer.compile(backend=compiler)
        model(input_ids=ids, labels=ids, **given)
    assert len(called) == 1
    return called[0]


PLAIN, MASKED = "no mask, is_causal=True", "mask 2x1x32x32, is_causal=False"
for ones in (False, True):
    for use_cache in (False, True):
        for how in ("uncompiled", "compiled", "layers compiled"):
            given = {"attention_mask": torch.ones(2, 32, dtype=torch.long)} if ones else {}
            seen = run(how, use_cache=use_cache, **given)
            print(f"attention_mask {'of ones' if ones else 'not given'}, use_cache={use_cache}, {how}: {seen}")
            masked = how == "compiled" and (ones or not use_cache)
            assert seen == (MASKED if masked else PLAIN), "that has changed"
PYTHON
echo "as described"
