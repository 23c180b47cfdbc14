#!/usr/bin/env bash
# A sparse tensor moved to the meta device forgets how much it stores.
#
# Expected: `meta` drops values and keeps what describes a tensor: shape, dtype, strides; of a sparse one also the number of
#   elements that it stores, without which its memory and the FLOPs of its products cannot be told.
# Happens: `.to("meta")` keeps shape and layout and gives 0 stored elements, for coo, csr, csc and bsr; so does a fake tensor made of
#   a coo one. Nothing is said; a product with it on `meta` then raises.
# Who meets it: whoever sizes or counts graph networks, or embeddings with sparse gradients, on meta tensors.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: aten/src/ATen/native/TensorConversions.cpp, _to_copy of sparse layouts
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from torch._subclasses import FakeTensorMode

warnings.filterwarnings("ignore")
print("torch", torch.__version__)
dense = torch.eye(6)
for layout, block in ((torch.sparse_coo, None), (torch.sparse_csr, None), (torch.sparse_csc, None), (torch.sparse_bsr, (2, 2))):
    real = dense.to_sparse(layout=layout, blocksize=block) if block else dense.to_sparse(layout=layout)
    moved = real.to("meta")
    print(layout, "stores", real._nnz(), "on meta", moved._nnz())
    assert moved.shape == real.shape and moved.layout == real.layout
    assert (real._nnz() > 0, moved._nnz()) == (True, 0)
fake = FakeTensorMode().from_tensor(dense.to_sparse())
print("a fake tensor of it stores", fake._nnz())
assert fake._nnz() == 0
PYTHON
