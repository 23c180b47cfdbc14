#!/usr/bin/env bash
# torch's FlopCounterMode counts, on every rank of a tensor-parallel model, the products of the whole model.
#
# Expected: a counter of the operators that run counts those that run on this rank: with a block split over two ranks half of its
#   products, so that the ranks together do what the model needs.
# Happens: the mode sees the call on DTensors, whose shapes are those of the whole, before DTensor takes it apart into the product on
#   its shard. Each of two ranks is given 16,777,216 FLOPs for a forward of which it multiplies 8,388,608, so FLOP/s and MFU of a
#   rank come out twice as high as they are, of eight ranks eight times.
#   A mode that returns NotImplemented for DTensors, as CommDebugMode does, sees the products on the shards.
# Who meets it: whoever computes MFU of a tensor-parallel or DTensor model by FlopCounterMode.
# Versions: torch 2.13.0, CPU, gloo, two processes; seen on 2026-11-28.
# Source: torch/utils/flop_counter.py, _FlopCounterMode.__torch_dispatch__; torch/distributed/tensor/debug/_comm_mode.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
cat > "$folder/two_ranks.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

ROWS, WIDTH, HIDDEN = 256, 64, 256
WHOLE = 2 * ROWS * 2 * WIDTH * HIDDEN  # two products, a multiply-add being 2


class OnShards(TorchDispatchMode):
    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = torch.ones(ROWS, WIDTH)
    model(x)  # the first of everything
    with FlopCounterMode(display=False) as counter:
        model(x)
    with OnShards() as shards:
        model(x)
    if rank == 0:
        print("torch", torch.__version__)
        print(f"the model {WHOLE:,}; rank 0 by FlopCounterMode {counter.get_total_flops():,}, on its shards {shards.flops:,}")
        assert shards.flops == WHOLE // 2, "that has changed"
        assert counter.get_total_flops() == WHOLE, "that has changed"
        print("as described")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
PYTHON
"$folder/venv/bin/python" "$folder/two_ranks.py" "$folder"
