#!/usr/bin/env bash
# On a CPU torch's FlopCounterMode counts no attention, no LSTM and nothing of an encoder layer that is evaluated; on meta all of them.
#
# Expected: FLOPs are a property of the model and of its input. The counter gives the same on a CPU, where one tries it, as on meta or
#   a GPU, in training a forward and two, and what it cannot count it says.
# Happens: what one operator of the CPU does as a whole is 0, without a word. scaled_dot_product_attention is, in every dtype, with a mask
#   or gradients. With a dropout above 0, or values narrower than keys, it is taken apart and counted, so a model that trains with dropout
#   has attention, and evaluated it has none. nn.LSTM has none in either, nn.GRU and nn.RNN have all. nn.TransformerEncoderLayer and
#   nn.MultiheadAttention without gradients are one operator each: 0 FLOPs in all, projections and feed-forward included, and in
#   training all of them.
# Who meets it: whoever counts on a CPU to divide by times of a GPU, tests a formula against the counter, or takes the backward from the
#   difference of two counts. Mend: count on meta.
# Versions: torch 2.13.0, CPU and meta; seen on 2026-11-29.
# Source: torch/utils/flop_counter.py, flop_registry, which names the operators of CUDA; torch/nn/modules/transformer.py and activation.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
BATCH, HEADS, LONG, HEAD = 2, 4, 32, 16
WIDTH = HEADS * HEAD


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


attention = 2 * 2 * BATCH * HEADS * LONG**2 * HEAD  # two products, a multiply-add being 2
for title, dtype, options in (
    ("", torch.float32, {}),
    (", causal", torch.float32, {"is_causal": True}),
    (", with a mask", torch.float32, {"attn_mask": True}),
    (" in bfloat16", torch.bfloat16, {}),
    (" in float64", torch.float64, {}),
    (", with dropout", torch.float32, {"dropout_p": 0.1}),
):
    counted = {}
    for device in ("cpu", "meta"):
        q, k, v = torch.ones(3, BATCH, HEADS, LONG, HEAD, device=device, dtype=dtype, requires_grad=True)
        mask = {"attn_mask": torch.ones(LONG, LONG, device=device, dtype=torch.bool)} if "attn_mask" in options else {}
        counted[device] = flops(lambda q=q, k=k, v=v, more=options | mask: scaled_dot_product_attention(q, k, v, **more))
    print(f"attention{title}: {counted['cpu']:,} FLOPs on the CPU, {counted['meta']:,} on meta")
    assert counted == {"cpu": attention if "dropout_p" in options else 0, "meta": attention}, "that has changed"

gate = 2 * 2 * BATCH * LONG * WIDTH**2  # of a recurrent layer, for its input and its state
inner = 2 * 2 * BATCH * LONG * WIDTH * 3 * WIDTH  # of the two layers of a feed-forward
heads = 4 * 2 * BATCH * LONG * WIDTH**2 + attention
for title, layer, forward, on_cpu in (
    ("LSTM", nn.LSTM(WIDTH, WIDTH, batch_first=True), 4 * gate, (0, 0)),
    ("GRU", nn.GRU(WIDTH, WIDTH, batch_first=True), 3 * gate, (3 * gate, 3 * gate)),
    ("RNN", nn.RNN(WIDTH, WIDTH, batch_first=True), gate, (gate, gate)),
    ("MultiheadAttention", nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), heads, (0, heads)),
    ("TransformerEncoderLayer", nn.TransformerEncoderLayer(WIDTH, HEADS, 3 * WIDTH, batch_first=True), heads + inner, (0, heads + inner)),
):
    counted = []
    for device in ("cpu", "meta"):
        layer.to(device)
        inputs = (torch.ones(BATCH, LONG, WIDTH, device=device),) * (3 if isinstance(layer, nn.MultiheadAttention) else 1)
        for training in (False, True):
            layer.train(training)
            with torch.set_grad_enabled(training):
                counted.append(flops(lambda layer=layer, inputs=inputs: layer(*inputs)))
    print(f"{title}, forward evaluated and trained: {counted[0]:,} and {counted[1]:,} on the CPU, {counted[2]:,} and {counted[3]:,} on meta")
    assert counted == [*on_cpu, forward, forward], "that has changed"
PYTHON
echo "as described"
