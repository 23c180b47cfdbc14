"""Models whose step goes wrong, on rank 1 unless said, after as many steps as the environment says."""

import os
import signal
import time

import torch
import torch.distributed as dist
from torch import nn

import gpuprof.job
import gpuprof.profiler


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    return nn.parallel.DistributedDataParallel(model)


def step_with(fault):
    """A model and a step that has the fault on rank 1 from the given number of steps on."""
    model, steps, after = net(), [], int(os.environ.get("AFTER", "0"))

    def step():
        steps.append(None)
        if dist.get_rank() == 1 and len(steps) == after + 1:
            fault()
        loss = model(torch.ones(4, 64)).square().mean()
        loss.backward()
        return loss

    return {"model": model, "step": step}


def fine():
    return step_with(lambda: None)


def killed():
    return step_with(lambda: os.kill(os.getpid(), signal.SIGKILL))


def killed_at_the_end():
    """Not rank 1 but the one that keeps the store of the job, as it makes the job of what all have sent."""
    if dist.get_rank() == 0:
        gpuprof.job.assemble = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    return fine()


def interrupted():
    return step_with(lambda: os.kill(os.getpid(), signal.SIGINT))


def late():
    made = fine()
    if dist.get_rank() == 1:
        time.sleep(float(os.environ["LATE"]))
    return made


def other_version():
    if dist.get_rank() == 1:
        gpuprof.profiler.__version__ = "0.0.1"
    return fine()


def raising():
    def fault():
        raise OSError("the data is gone")

    return step_with(fault)


def missing_data():
    if dist.get_rank() == 1:
        raise FileNotFoundError("no data on this host")
    return fine()


def other_model():
    """Ranks that share a group of DDP, made of models that differ where DDP does not look."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    wrapped = nn.parallel.DistributedDataParallel(nn.ModuleDict({"odd" if dist.get_rank() else "even": layer}))
    return {"model": wrapped, "step": lambda: layer(torch.ones(4, 8)).sum().backward()}


def second_group():
    dist.init_process_group("gloo")
    return fine()
