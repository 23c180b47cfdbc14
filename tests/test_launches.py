"""The timing pass in fresh processes, and what of it the record keeps."""

import pytest
from runs import generation_run, gpu_run, kernel_row

import gpuprof
from gpuprof.analysis import steps
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.totals import totals
from gpuprof.errors import GpuprofError
from gpuprof.launches import merge
from gpuprof.schema import table

MODEL = """
import torch


def net():
    return torch.nn.Linear(64, 64), (torch.randn(8, 64),)
"""


def timed(*seconds):
    run = gpu_run()
    run.samples = table("samples", [{"step": n, "phase": "step", "time_s": s} for n, s in enumerate(seconds)])
    run.kernels = table("kernels", [kernel_row("head", "forward", "aten::mm", at, 10) for at in (0, 20)])
    return run


def test_launches_are_numbered_and_the_step_is_the_median_of_their_medians():
    """Medians 2, 5 and 3 of 9 samples whose own median is 4."""
    run = gpu_run()

    merge(run, [timed(1, 2, 4), timed(4, 5, 6), timed(1, 3, 9)])

    assert steps.of_launches(run).to_dict() == {1: 2.0, 2: 5.0, 3: 3.0}
    assert totals(run)["step_s"] == 3.0
    assert totals(run)["steps"] == 9
    assert by_phase(run)["phase"].tolist()  # phases that no launch timed are missing, not an error


def test_each_launch_keeps_the_kernel_time_of_modules_and_its_peak():
    run = gpu_run()

    merge(run, [timed(1.0), timed(2.0)])

    kernel_s = run.launches[run.launches["quantity"] == "kernel_s"]
    assert kernel_s[["launch", "module", "phase"]].values.tolist() == [[1, "head", "forward"], [2, "head", "forward"]]
    assert kernel_s["value"].tolist() == pytest.approx([20e-9, 20e-9])
    assert run.launches.loc[run.launches["quantity"] == "peak_bytes", "value"].tolist() == [1200.0, 1200.0]


def test_the_parts_of_a_generation_keep_their_launch(tmp_path):
    run, one, other = generation_run(), generation_run(), generation_run()
    other.generation["time_s"] *= 2

    merge(run, [one, other])

    parts = gpuprof.load(run.save(tmp_path / "run.json")).generation
    assert parts["launch"].tolist() == [1] * 12 + [2] * 12
    assert parts["time_s"].tolist() == [*one.generation["time_s"], *other.generation["time_s"]]
    assert run.traffic.equals(one.traffic)


def test_a_run_without_launches_is_one(tmp_path):
    run = gpu_run()

    assert steps.of_launches(run).to_dict() == {0: pytest.approx(480e-9)}
    assert gpuprof.load(run.save(tmp_path / "run.json")).samples["launch"].tolist() == [0] * len(run.samples)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "net.py"
    file.write_text(MODEL)
    return f"{file}:net"


def test_fresh_processes_take_the_time(model, tmp_path):
    done = []

    run = gpuprof.profile(
        model, device="cpu", passes=["count", "time", "memory"], launches=2, steps=2, warmup=0,
        progress=lambda name, at, total: done.append((name, at, total)),
    )  # fmt: skip

    assert run.samples[run.samples["phase"] == "step"]["launch"].tolist() == [1, 1, 2, 2]
    assert run.passes["time"].status == "done"
    assert totals(run)["mfu"] > 0
    assert (run.launches["quantity"] == "peak_bytes").sum() == 2
    assert [entry for entry in done if entry[0] == "launches"] == [("launches", n, 2) for n in (0, 1, 2)]
    assert gpuprof.load(run.save(tmp_path / "run.json")).to_dict() == run.to_dict()


def test_a_launch_that_fails_says_why(model, tmp_path):
    (tmp_path / "bad.py").write_text("def net():\n    raise ValueError('no weights')\n")

    with pytest.raises(GpuprofError, match=r"launch 1 of 2 failed: bad\.py:net raised ValueError: no weights"):
        gpuprof.profile(f"{tmp_path / 'bad.py'}:net", device="cpu", launches=2)


def test_what_cannot_be_launched_is_refused(model):
    import torch

    with pytest.raises(GpuprofError, match="at least 1"):
        gpuprof.profile(model, launches=0)
    with pytest.raises(GpuprofError, match="given by name"):
        gpuprof.profile(torch.nn.Linear(2, 2), torch.randn(1, 2), launches=2)
    with pytest.raises(GpuprofError, match="add time to --passes"):
        gpuprof.profile(model, passes=["count"], launches=2)
