"""gpuprof.profile inside a script whose processes share a group, and which of its ranks holds up the others."""

import os
import tempfile
import time
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn

import gpuprof
from gpuprof.analysis.ranks import by_rank, straggler
from gpuprof.parallel.join import join

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


def named_without_the_others():
    """A named model is counted by the process that asks."""
    if dist.get_rank() == 1:
        return None
    run = gpuprof.count("gpt2", seq_len=8)
    return sorted({"world", "rank"} & run.workload.keys())


def another_mode():
    """What only one rank asks for ends on all before a step, and the next profile is as if nothing had been."""
    model, batch = nn.parallel.DistributedDataParallel(_net()), torch.ones(4, 64)
    with pytest.raises(gpuprof.GpuprofError) as raised:
        gpuprof.profile(model, batch, mode="forward" if dist.get_rank() else "train", passes=["count"])
    return [str(raised.value), gpuprof.profile(model, batch, passes=["count"]).done("count")]


def large():
    """Above what one message to the store may be; nothing of it stays there."""
    control, mine = join(), bytes([65 + dist.get_rank()]) * (9 << 20)
    keys = _keys(control)
    parts = [[len(part), part[:1].decode(), part[-1:].decode()] for part in control.gather("large", mine)]
    return [parts, _keys(control) - keys]


def _keys(control):
    """How many there are in the store while no rank does anything."""
    control.agree("counting keys", None)
    dist.barrier()
    keys = dist.distributed_c10d._get_default_store().num_keys()
    dist.barrier()
    return keys


def group_is_gone():
    """Last of all: the group is another one afterwards."""
    run = gpuprof.profile(_net(), torch.ones(4, 64), passes=["count"])
    file = Path(tempfile.gettempdir()) / f"gpuprof-{os.environ['MASTER_PORT']}"
    world = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    dist.barrier()
    dist.destroy_process_group()
    with pytest.raises(gpuprof.GpuprofError) as raised:
        gpuprof.gather(run)
    dist.init_process_group("gloo", init_method=f"file://{file}", **world)
    job = gpuprof.gather(gpuprof.profile(_net(), torch.ones(4, 64), passes=["count"]))
    dist.barrier()
    file.unlink(missing_ok=True)
    return [str(raised.value), job is not None]


@pytest.fixture(scope="module")
def both():
    cases = ["joined", "computes_longer", "waits_for_input", "named_without_the_others", "another_mode", "large"]
    return ranks.launch(__file__, [*cases, "group_is_gone"])


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


def test_a_named_model_is_counted_by_one_rank_alone(both):
    assert both[0]["named_without_the_others"] == []


def test_ranks_that_do_not_do_the_same_are_told_before_a_step(both):
    line = "rank 1 has mode forward, rank 0 has mode train: the ranks of a job need the same settings"
    assert [one["another_mode"] for one in both] == [[line, True]] * 2


def test_what_ranks_send_may_be_large_and_does_not_stay_in_the_store(both):
    assert [one["large"] for one in both] == [[[[9 << 20, "A", "A"], [9 << 20, "B", "B"]], 0], [[], 0]]


def test_without_its_group_a_rank_makes_no_job_and_a_new_group_is_joined(both):
    line = "the process group that this run is of is no more: gather before destroy_process_group"
    assert [one["group_is_gone"] for one in both] == [[line, True], [line, False]]
