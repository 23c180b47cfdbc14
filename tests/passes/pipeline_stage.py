"""One stage of a pipeline, counted twice: ``python pipeline_stage.py RANK RENDEZVOUS`` prints what each count found."""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import gpuprof

BATCH, MICROBATCHES, WIDTH, CLASSES = 64, 4, 256, 64


def main(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    first = nn.Linear(WIDTH, WIDTH, bias=False)
    last = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, CLASSES, bias=False))
    model = (first, last)[rank]
    stage = PipelineStage(model, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=nn.functional.mse_loss)
    x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, CLASSES)

    def step() -> None:
        model.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=target)

    found = []
    for _ in range(2):
        ops = gpuprof.count(model, step=step).ops
        sums = ops.groupby("phase")["flops_full"].sum()
        found.append({phase: int(flops) for phase, flops in sums.items() if flops})
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
