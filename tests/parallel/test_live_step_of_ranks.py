"""A step of a training under torchrun, profiled as it runs: a file of every rank, and the job that they are."""

import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import nn

import gpuprof

COLUMNS = ("module", "phase", "op", "kind", "group", "calls", "flops_full", "vector_flops", "bytes")


def _rows(run):
    return sorted(run.ops[list(COLUMNS)].fillna(-1).itertuples(index=False, name=None))


def accumulates():
    """Two micro-batches a step, of which the last alone reduces the gradients."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    batch = torch.full((4, 6), 1.0 + dist.get_rank())

    def step(around=lambda batch: nullcontext()):
        for last in (False, True):
            with around(batch), nullcontext() if last else model.no_sync():
                model(batch).square().mean().backward()
                if last:
                    optimizer.step()
                    optimizer.zero_grad()

    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    meter = gpuprof.Meter(model, optimizer, peak_tflops=1.0, profile_at=[6], out=folder[0])
    for _ in range(9):
        step(meter.step)
    dist.barrier()
    live = gpuprof.load(Path(folder[0]) / f"step-6.rank{dist.get_rank()}.json.gz")
    run = gpuprof.profile(model, step=step, passes=["count"])
    job = gpuprof.gather(live)
    files = sorted(path.name for path in Path(folder[0]).glob("step*"))
    read = gpuprof.read_job(Path(folder[0]) / name for name in files) if dist.get_rank() == 0 else None
    return {
        "equal": _rows(live) == _rows(run),
        "reduced": int(live.ops.loc[live.ops["kind"] == "communication", "calls"].sum()),
        "warnings": live.warnings,
        "rank": live.workload["rank"],
        "files": files,
        "job": None if job is None else [int(one.ops["flops_full"].sum()) for one in (job, read)],
        "traced": int(live.ranks["step"].nunique()),
    }


@pytest.fixture(scope="module")
def found():
    return [of_rank["accumulates"] for of_rank in ranks.launch(__file__, ["accumulates"])]


def test_every_rank_has_what_gpuprof_profile_counts_of_it(found):
    assert [one["equal"] for one in found] == [True, True]
    assert [one["reduced"] for one in found] == [1, 1]
    assert [one["warnings"] for one in found] == [[], []]
    assert [one["traced"] for one in found] == [1, 1]


def test_a_file_of_every_rank_and_the_job_they_are(found):
    assert found[0]["files"] == ["step-6.rank0.json.gz", "step-6.rank1.json.gz"]
    forward, weights, inputs = 2 * 4 * (6 * 10 + 10 * 3), 2 * 4 * (6 * 10 + 10 * 3), 2 * 4 * 10 * 3
    assert found[0]["job"] == [2 * 2 * (forward + weights + inputs)] * 2
