"""gpuprof.profile inside a script whose processes share a group, and which of its ranks holds up the others."""

import time

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn

import gpuprof
from gpuprof.analysis.ranks import by_rank, straggler

EXTRA_S = 0.15


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))


def _shared(model, before=lambda: None, inside=lambda: None):
    """A step whose ranks add up their gradients, each after the other as a plain loop does; waiting is an operator."""

    def step():
        before()
        loss = model(torch.ones(4, 64)).square().mean()
        loss.backward()
        inside()
        for parameter in model.parameters():
            functional.wait_tensor(functional.all_reduce(parameter.grad, "sum", dist.group.WORLD))
        return loss

    return step


def _multiply(seconds):
    """Compute for about so long."""
    one, end = torch.ones(200, 200), time.perf_counter() + seconds
    while time.perf_counter() < end:
        one @ one


def _told(step, model):
    run = gpuprof.profile(model, step=step, passes=["count", "time", "trace"])
    job = gpuprof.gather(run)
    if job is None:
        return None
    found = straggler(job)
    rows = by_rank(job)
    return {
        "rank": found.rank,
        "text": found.text,
        "ranks": rows["rank"].to_list(),
        "steps": int(job.ranks["step"].max()),
    }


def joined():
    """The group of the script is joined, and is there afterwards."""
    model = nn.parallel.DistributedDataParallel(_net())
    run = gpuprof.profile(model, torch.ones(4, 64), passes=["count", "time"])
    one = torch.ones(1)
    dist.all_reduce(one)
    job = gpuprof.gather(run)
    return {
        "rank": run.workload["rank"],
        "name": run.workload["name"],
        "host": bool(run.environment["host"]),
        "after": one.item(),
        "flops": int(run.ops["flops_full"].sum()),
        "job": None if job is None else int(job.ops["flops_full"].sum()),
        "world": None if job is None else job.workload["world"],
    }


def computes_longer():
    model = _net()
    late = dist.get_rank() == 1
    return _told(_shared(model, inside=lambda: _multiply(EXTRA_S) if late else None), model)


def waits_for_input():
    model = _net()
    late = dist.get_rank() == 1
    return _told(_shared(model, before=lambda: time.sleep(EXTRA_S) if late else None), model)


@pytest.fixture(scope="module")
def both():
    return ranks.launch(__file__, ["joined", "computes_longer", "waits_for_input"])


def test_a_script_gets_the_run_of_its_rank_and_on_rank_0_the_job(both):
    forward = 2 * 2 * 4 * 64 * 256
    flops = 3 * forward - forward // 2  # the input of the first layer needs no gradient
    common = {"name": "Sequential", "host": True, "after": 2.0, "flops": flops}
    assert [one["joined"] for one in both] == [
        {"rank": 0, "job": 2 * flops, "world": 2, **common},
        {"rank": 1, "job": None, "world": None, **common},
    ]


def test_the_rank_that_computes_longer_holds_up_the_others(both):
    found = both[0]["computes_longer"]
    assert (found["rank"], found["ranks"], found["steps"]) == (1, [0, 1], 2)
    assert "rank 1 computes" in found["text"]
    assert both[1]["computes_longer"] is None


def test_a_rank_that_waits_for_its_input_does_not_compute_longer(both):
    found = both[0]["waits_for_input"]
    assert found["rank"] == 1, found["text"]
    assert "idle" in found["text"]
    assert "computes" not in found["text"]
