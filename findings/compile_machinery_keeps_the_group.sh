#!/usr/bin/env bash
# Expected: after torch.distributed.destroy_process_group() the default process group is gone, and with it gloo's
#           connections to the other ranks, whatever else the program has imported meanwhile.
# Happens:  torch.distributed.nn.functional has the default group of the moment it is imported as the default argument of
#           its functions. torch._dynamo imports it. So in a program that makes its group first and compiles, or imports
#           torch._dynamo, afterwards, destroy_process_group() leaves the group alive until the interpreter ends, and a
#           second one stands beside it; imported before the group is made, nothing keeps it.
# Version:  torch 2.13.0 (CPU), 2026-11-28
# Source:   torch/distributed/nn/functional.py, signatures with group=group.WORLD
# Run:      findings/compile_machinery_keeps_the_group.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cat > "$folder/run.py" <<'PY'
import sys
import weakref

import torch
import torch.distributed as dist

if sys.argv[1] == "before":
    import torch._dynamo
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
group = weakref.ref(dist.group.WORLD)
if sys.argv[1] == "after":
    import torch._dynamo
dist.destroy_process_group()
print(f"torch {torch.__version__}: torch._dynamo imported {sys.argv[1]} the group was made,", end=" ")
print("the destroyed group is", "gone" if group() is None else "still there")
PY
for when in never before after; do
    "$folder/venv/bin/python" "$folder/run.py" "$when" | tee -a "$folder/out"
done
grep -q "imported never .* gone" "$folder/out"
grep -q "imported before .* gone" "$folder/out"
grep -q "imported after .* still there" "$folder/out"
echo "as described"
