#!/usr/bin/env bash
# A Mamba of transformers that is given its cache and more than one token starts its state anew, without a word.
#
# Expected: a cache stands for all that came before: a prompt in two pieces, the second with the cache of the first, gives what it gives in
#   one, as it does for Llama, Mamba-2, Falcon-H1 or Qwen3-Next: a kept system prompt, a second turn, chunked prefill, checking a draft.
# Happens: for a single token the state is taken on. For several the scan has no state to begin with, and the one it ends with replaces
#   the cached: the layer has forgotten all but the few tokens that its convolution keeps: states of 1,000 put into the cache in between
#   change nothing. Jamba, whose layers are the same beside attention, gives other logits by generate(prefill_chunk_size=12) than
#   without it. Nothing warns.
# Who meets it: whoever measures or serves a Mamba or Jamba with reused prefixes or chunked prefill: all runs, fast, and answers
#   as if the beginning had not been. Mend: pieces of one token, or the prompt as a whole.
# Versions: transformers 5.24.0 (5.17.0 the same), PyTorch's implementation, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/models/mamba/modeling_mamba.py, MambaMixer.forward, the full sequence form; modeling_jamba.py the same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from transformers import (
    JambaConfig, JambaForCausalLM, LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM,
)

print("transformers", transformers.__version__, "torch", torch.__version__)
plain = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
heads = plain | {"intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
mamba2 = plain | {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 2, "state_size": 8, "chunk_size": 8}
jamba = heads | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8}
models = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**heads)),
    "Mamba-2": (Mamba2ForCausalLM, Mamba2Config(**mamba2)),
    "Mamba": (MambaForCausalLM, MambaConfig(**plain, state_size=8)),
    "Jamba": (JambaForCausalLM, JambaConfig(**jamba)),
}


def apart(logits, whole):
    return ((logits - whole).abs().max() / whole.abs().max()).item()


for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model, ids = kind(config).eval(), torch.randint(3, 97, (1, 24))
    off = {}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # larger than at the start of training, so that all counts
        whole = model(input_ids=ids).logits[0, -1]
        for pieces in ((12, 12), (12, *[1] * 12)):
            given = {}
            for piece in ids.split(pieces, dim=1):
                out = model(input_ids=piece, use_cache=True, **given)
                given = {"cache": out.cache}
            off[len(pieces)] = apart(out.logits[0, -1], whole)
        if name != "Llama":
            last = []
            for value in (None, 1000.0):
                cache = model(input_ids=ids[:, :12], use_cache=True)["past_key_values"]
                for layer in cache.layers:
                    for state in getattr(layer, "recurrent_states", {}).values():
                        if value and state is not None:
                            state.fill_(value)
                last.append(model(input_ids=ids[:, 12:], cache=cache).logits[0, -1])
            read = not torch.equal(*last)
            print(f"{name}: the second piece reads the state: {read}")
            assert read == (name == "Mamba-2"), "that has changed"
    print(f"{name}: last logits off by {off[2]:.0e} of the largest in pieces of 12 and 12, {off[13]:.0e} in 12 and twelve times 1")
    assert off[13] < 1e-4, "that has changed"
    assert (off[2] > 1e-3) == (name in ("Mamba", "Jamba")), "that has changed"
    if name in ("Llama", "Jamba"):
        given = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        once = apart(model.generate(ids, **given).logits[0][0], whole)
        chunked = apart(model.generate(ids, prefill_chunk_size=12, **given).logits[0][0], whole)
        print(f"{name}: generate's first logits are off by {once:.0e}, in chunks by {chunked:.0e}")
        assert (chunked > 1e-3) == (name == "Jamba"), "that has changed"
PYTHON
echo "as described"
