#!/usr/bin/env bash
# Attention on torch's nested tensors multiplies padding: every sequence is as long as the longest of its batch.
#
# Expected: nested tensors exist so that no work is done on padding, and torch's own bmm on them multiplies sequence by sequence.
#   So scores of sequences of 10, 10 and 1000 cost the sum of the squares: 2 x 64 x 1,000,200 FLOPs per head.
# Happens: with a dimension of heads, matmul (and so scaled_dot_product_attention outside of a GPU's fused kernels, of strided and of
#   jagged tensors, and its backward) pads both factors to the longest, multiplies that, and selects what is not padding
#   again: here three times the FLOPs. Without heads, bmm calls mm once per sequence.
# Who meets it: whoever takes the time or memory of attention on nested tensors for that of their lengths.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: aten/src/ATen/native/nested/NestedTensorMatmul.cpp; docs.pytorch.org/docs/stable/nested.html
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
venv/bin/python - <<'PYTHON'
import math
import warnings

import torch
from torch.profiler import profile

warnings.filterwarnings("ignore")
lengths, heads, head = (10, 10, 1000), 2, 64


def products(run):
    """FLOPs of the plain products in it."""
    with profile(record_shapes=True) as traced:
        run()
    shapes = [event.input_shapes[:2] for event in traced.events() if event.name in ("aten::bmm", "aten::mm")]
    return sum(2 * math.prod(a) * b[-1] for a, b in shapes if a and b)


def nested(*shape):
    return torch.nested.nested_tensor([torch.randn(*(length if size is None else size for size in shape)) for length in lengths])


print("torch", torch.__version__)
needed = 2 * head * sum(length**2 for length in lengths)
padded = 2 * head * len(lengths) * max(lengths) ** 2
with_heads, keys = nested(heads, None, head), nested(heads, head, None)
alone, keys_alone = nested(None, head), nested(head, None)
found = products(lambda: torch.matmul(with_heads, keys)), products(lambda: torch.bmm(alone, keys_alone))
print(f"matmul with {heads} heads: {found[0]:,} FLOPs, needed {heads * needed:,}: {found[0] / heads / needed:.2f} x")
print(f"bmm without heads: {found[1]:,} FLOPs, needed {needed:,}")
assert found == (heads * padded, needed), "that has changed"
PYTHON
echo "as described"
