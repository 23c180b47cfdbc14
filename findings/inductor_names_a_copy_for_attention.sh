#!/usr/bin/env bash
# In a compiled backward the kernel that is named for attention copies some inputs of attention.
#
# Expected: a generated kernel's name lists the operators that are in it, and so does Inductor's table of the operators of each
#   kernel. Attention is a library's and is called by its own name; a copy that brings an input of it into the layout that it wants
#   is of no operator, or called clone.
# Happens: the copy is booked on the operator that wanted it and on the views that lead to another of its inputs. Here the attention's
#   backward takes the forward's log-sum-exp in another layout; the kernel that copies these 64 floats is called
#   cpp_fused__scaled_dot_product_flash_attention_for_cpu_backward_transpose_view_0, and the table gives it the same list of operators
#   as the call of the library. It has no product. Whoever sums FLOPs or calls by name or by that table has attention twice.
# Who meets it: whoever reads a profile of compiled training, or gives its kernels FLOPs from trace.provenance_tracking_level.
# Versions: torch 2.13.0, CPU, where the table is complete without a cache hit; seen on 2026-11-28.
# Source: torch/_inductor/ir.py, ExternKernel.require_strides and what it makes; torch/_inductor/debug.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
cat > run.py <<'PYTHON'
import re

import torch
from torch._inductor import debug
from torch._inductor.utils import run_and_get_code

print("torch", torch.__version__)
projection = torch.nn.Linear(32, 96)


def attend(x):
    q, k, v = (part.view(2, 16, 2, 16).transpose(1, 2) for part in projection(x).chunk(3, -1))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 16, 32)


x = torch.ones(2, 16, 32, requires_grad=True)
attend = torch.compile(attend, options={"trace.provenance_tracking_level": 1})
_, codes = run_and_get_code(lambda: attend(x).sum().backward())
table = debug._inductor_triton_kernel_to_post_grad_node_info  # of what was compiled last: the backward
named = {call: nodes for call, nodes in table.items() if any("attention" in node for node in nodes)}
for call, nodes in named.items():
    print(f"{call}: {', '.join(sorted(nodes))}")
fused, library = sorted(named, key=lambda call: not call.startswith("cpp_fused"))
kernel = fused.split(":")[0]
assert kernel.startswith("cpp_fused__scaled_dot_product_flash_attention_for_cpu_backward"), "that has changed"
assert library.startswith("torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward"), "that has changed"
assert sorted(named[fused]) == sorted(named[library]), "that has changed"

source = re.search(rf"^{kernel} = .*?^'''\)", codes[-1], re.M | re.S)[0]
given, taken = re.search(rf"^ +{kernel}\((\w+), (\w+)\)", codes[-1], re.M).groups()
shape = re.search(rf"{taken} = empty_strided_cpu\((\(.*?\)), (\(.*?\))", codes[-1])
was = re.search(rf"assert_size_stride\({given}, (\(.*?\)), (\(.*?\))", codes[-1])
print(f"it reads one tensor of {was[1]} with strides {was[2]}, writes one of {shape[1]} with strides {shape[2]};", end=" ")
arithmetic = re.findall(r"tmp\d+ = (?!in_ptr0|.*load).*", source)
print("operations on what it reads:", len(arithmetic))
assert "in_ptr0" in source and "in_ptr1" not in source and not arithmetic, "that has changed"
assert (was[1], shape[1]) == ("(2, 2, 16)", "(2, 2, 16)") and was[2] != shape[2], "that has changed"
PYTHON
TORCHINDUCTOR_CACHE_DIR="$folder/cache" venv/bin/python run.py
echo "as described"
