#!/usr/bin/env bash
# The profiler books the wait for a functional collective inside whichever operator is given its result first.
#
# Expected: functional all_reduce returns a tensor that waits when it is used, so a trace has _c10d_functional::wait_tensor beside the
#   operator that uses it, and the time of that operator is its own work.
# Happens: the result is a tensor of a class of its own (AsyncCollectiveTensor). The profiler records aten::mul when it is called with
#   that tensor, and inside it (in an event PythonSubclass) the wait and a second aten::mul on the plain one. So the outer aten::mul
#   lasts as long as the slowest rank makes everybody wait: here over nine tenths of the time of a product of 1,000 elements are the
#   wait for a rank that comes 200 ms later. A table by operator that takes the outermost event (or sums all of that name) shows slow arithmetic.
# Who meets it: whoever reads operator times of tensor parallelism (DTensor) or functional collectives on a CPU, or sums them.
# Versions: torch 2.13.0, CPU, gloo, two processes; seen on 2026-11-28.
# Source: torch/distributed/_functional_collectives.py, AsyncCollectiveTensor.__torch_dispatch__
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
cat > "$folder/two_ranks.py" <<'PYTHON'
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.profiler import ProfilerActivity, profile


def below(event):
    for child in event.cpu_children:
        yield child
        yield from below(child)


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x = torch.ones(1000)
    (functional.all_reduce(x, "sum", dist.group.WORLD) * 2).sum()  # the first of everything
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        if rank == 1:
            time.sleep(0.2)
        y = functional.all_reduce(x, "sum", dist.group.WORLD) * 2
    assert y[0] == 4
    if rank == 0:
        outer = max((e for e in profiler.events() if e.name == "aten::mul"), key=lambda e: e.cpu_time_total)
        inside = list(below(outer))
        waits = sum(event.cpu_time_total for event in inside if event.name.endswith("::wait_tensor"))
        again = [event for event in inside if event.name == "aten::mul"]
        print("torch", torch.__version__)
        print(f"aten::mul {outer.cpu_time_total:,.0f} us, of which the wait {waits:,.0f} us; {len(again)} aten::mul inside")
        assert waits > 0.9 * outer.cpu_time_total > 0.9 * 100_000
        assert len(again) == 1
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
PYTHON
"$folder/venv/bin/python" "$folder/two_ranks.py" "$folder"
