#!/usr/bin/env bash
# In a trace of torch.profiler a product with a sparse factor looks like the dense one: layout and elements are nowhere.
#
# Expected: "Input type" tells a sparse tensor from a strided one, as it tells float from bfloat16, or the operator has a name of its
#   own, as aten::_sparse_mm has; and there is how many elements it stores.
# Happens: torch.mm of a COO or CSR matrix is aten::mm with type "float" and the sizes of the dense matrix. The only trace of it is
#   that "Input Strides", which came years after "Input Dims", is [] there, as of a scalar; of older files nothing tells. So 2mnk
#   of such a trace is the FLOPs of a product that never ran: here 16,384 for 16 stored elements, whose product is 1,024.
# Who meets it: whoever counts FLOPs from traces of graph networks, pruned models or embeddings with sparse gradients.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/csrc/profiler/collection.cpp
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - "$folder/trace.json" <<'PYTHON' 2>/dev/null
import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile

factors = {
    "dense": torch.eye(16),
    "coo": torch.eye(16).to_sparse(),
    "csr": torch.eye(16).to_sparse_csr(),
}
print("torch", torch.__version__)
seen = {}
for name, factor in factors.items():
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch.mm(factor, torch.ones(16, 32))
    profiler.export_chrome_trace(sys.argv[1])
    with open(sys.argv[1]) as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "aten::mm"]
    args = events[0]["args"]
    seen[name] = args["Input type"][:2], args["Input Dims"][:2], args["Input Strides"][:2]
    print(name, *seen[name])
plain = (["float", "float"], [[16, 16], [16, 32]])
assert seen["dense"] == (*plain, [[16, 1], [32, 1]])
assert seen["coo"] == seen["csr"] == (*plain, [[], [32, 1]])
PYTHON
