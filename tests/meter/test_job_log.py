"""The logs of two ranks: one training, which watch shows as one."""

import json
import os
from pathlib import Path

import gpuprof


def logged():
    """In each rank of a job: a data-parallel loop with a meter that writes to one folder."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = gpuprof.Meter(model, optimizer, out=os.environ["METER_OUT"], peak_tflops=1.0)
    said = []
    for number in range(1, 13):
        batch = torch.randn(4, 8)
        with meter.step(batch):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if number % 4 == 0:
            said.append(meter.read(reduce=True))
    return said


def test_two_ranks_have_a_log_each_and_are_watched_as_one(tmp_path, monkeypatch):
    from parallel.ranks import launch
    from typer.testing import CliRunner

    from gpuprof.cli import app

    monkeypatch.setenv("METER_OUT", str(tmp_path))
    ranks = launch(Path(__file__), ["logged"])

    assert sorted(path.name for path in tmp_path.iterdir()) == ["meter-rank-1.jsonl", "meter.jsonl"]
    assert gpuprof.load(tmp_path).of_job == "rank 0 of 2"
    assert gpuprof.load(tmp_path / "meter-rank-1.jsonl").of_job == "rank 1 of 2"
    for rank, path in enumerate([tmp_path, tmp_path / "meter-rank-1.jsonl"]):
        run = gpuprof.load(path)
        # 2 x 4 x 8 x 8 of the forward, as many of the weight's gradient, and the input needs none
        assert run.ops["flops_causal"].sum() == 2 * 512
        assert ranks[rank]["logged"][-1]["meter/flops_per_step"] == 2 * 512
    reads = json.loads(CliRunner().invoke(app, ["watch", str(tmp_path), "--once", "-f", "json"]).stdout)["reads"]
    assert [(one["step"], one["ranks"]) for one in reads] == [(4, 2), (8, 2), (12, 2)]
    whole = ranks[0]["logged"][-1]
    assert (reads[-1]["mfu"], reads[-1]["step_s"]) == (whole["mfu"], whole["step_s"])
