#!/usr/bin/env bash
# Expected: a script under torchrun may make and destroy its default process group as often as it likes: each
#           init_process_group() that follows a destroy_process_group() on every rank works as the first did.
# Happens:  with gloo and torchrun's own store some later one fails: as it seems it connects to an address that one of the groups
#           before has left in the store. The first always works.
# Who meets it: scripts that take turns at jobs in one launch, and tests. A store of its own for each group
#           (store=PrefixStore(...), or another init_method) works every time.
# Version:  torch 2.13.0 (CPU), two processes, 2026-11-28
# Source:   torch/distributed/distributed_c10d.py, where destroy_process_group sets the number of groups back to 0
# Run:      findings/third_group_over_one_store.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5 2>/dev/null
cat > "$folder/again.py" <<'PY'
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

own = sys.argv[1] == "own"
where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
shared = dist.TCPStore(*where, is_master=False, timeout=timedelta(seconds=20)) if own else None
rank, made = int(os.environ["RANK"]), 0
for number in range(6):
    how = {"store": dist.PrefixStore(f"group {number}", shared), "rank": rank, "world_size": 2} if own else {}
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=20), **how)
        dist.barrier()
    except RuntimeError as error:
        print(f"rank {rank}: {type(error).__name__} {str(error).splitlines()[0][:70]}", file=sys.stderr)
        break
    dist.destroy_process_group()
    made += 1
if rank == 0:
    print(f"torch {torch.__version__}, {sys.argv[1]} store: {made} of 6 groups made, one after the other", flush=True)
os._exit(0)
PY
for store in launcher own; do
    OMP_NUM_THREADS=1 timeout 120 "$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 \
        "$folder/again.py" "$store" 2> "$folder/err" | tee -a "$folder/out"
    grep "^rank" "$folder/err" || true
done
grep -q "launcher store: [1-5] of 6" "$folder/out"
grep -q "own store: 6 of 6" "$folder/out"
echo "as described"
