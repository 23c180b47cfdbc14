"""`--like`: a saved run's workload again, and what is given beside it."""

from pathlib import Path

import pytest

import gpuprof
from gpuprof.cli.like import workload_of
from gpuprof.errors import GpuprofError

NET = """
import torch

def net(options):
    model = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.ReLU(), torch.nn.Linear(50, 8))
    return model, torch.ones(options.batch_size or 4, 50)

def stepped():
    model = torch.nn.Linear(50, 8)
    return {"model": model, "inputs": torch.ones(4, 50), "optimizer": torch.optim.SGD(model.parameters(), 1e-9)}
"""
QUICK = ["-q", "--passes", "count,time", "--steps", 1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["net.py:net", "--batch-size", 7, "--freeze", "0.*", "--convention", "full", "--seed", 3],
        ["net.py:net", "--mode", "forward", "--dtype", "bf16"],
        ["net.py:stepped"],
        ["net.py:net", "--optimizer", "sgd"],
    ],
)
def test_the_same_workload_again(gpuprof_cli, folder, arguments):
    gpuprof_cli("profile", *arguments, *QUICK, "-o", "base.json", cwd=folder)

    again = gpuprof_cli("profile", "--like", "base.json", *QUICK, "-o", "again.json", cwd=folder)
    compared = gpuprof_cli("compare", "base.json", "again.json", "--format", "json", cwd=folder)

    assert (again.returncode, again.stderr) == (0, "")
    assert compared.returncode == 0
    base, other = (gpuprof.load(folder / name).workload for name in ("base.json", "again.json"))
    assert other == base
    assert "different" not in gpuprof_cli("compare", "base.json", "again.json", cwd=folder).stdout


def test_what_is_given_beside_it_wins(gpuprof_cli, folder):
    gpuprof_cli("profile", "net.py:net", "--batch-size", 7, "--mode", "forward", *QUICK, "-o", "base.json", cwd=folder)

    made = ["--like", "base.json", "--batch-size", 2, "--mode", "train", "-q", "-o", "other.json"]
    assert gpuprof_cli("count", *made, cwd=folder).returncode == 0

    other = gpuprof.load(folder / "other.json")
    assert (other.workload["name"], other.workload["mode"]) == ("net.py:net", "train")
    assert other.workload["inputs"][0]["shape"] == [2, 50]


def test_what_was_counted_is_measured_on_the_machine(gpuprof_cli, folder):
    gpuprof_cli("count", "net.py:net", "--batch-size", 7, "-q", "-o", "counted.json", cwd=folder)

    ended = gpuprof_cli("profile", "--like", "counted.json", *QUICK, "-o", "measured.json", cwd=folder)

    assert (ended.returncode, ended.stderr) == (0, "")
    counted, measured = (gpuprof.load(folder / f"{name}.json").workload for name in ("counted", "measured"))
    assert (counted["device"], measured["device"]) == ("meta", "cpu")
    assert measured["batch_size"] == 7


def test_a_model_by_name():
    path = Path(__file__).parents[2] / "examples" / "smollm2-generate.json.gz"

    repeated = workload_of(gpuprof.load(path), path)

    assert repeated.pop("model")() == "smollm2-135m"
    assert repeated == {
        "mode": "generate", "batch_size": 1, "prompt_len": 512, "new_tokens": 9, "dtype": "float32",
        "attention": "sdpa", "cache": "dynamic", "device": "cpu", "checkpointing": "none", "optimizer": "none",
        "seed": 0, "convention": "causal",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"source": "trace", "name": "Net"}, "no options repeat it, Net is of a recording and no MODEL"),
        ({"source": "module", "name": "Net"}, "no options repeat it, Net is of Python and no MODEL"),
        ({"source": "file", "name": "other.py:net"}, "is of other.py:net, and does not say in which folder that is"),
        ({"source": "directory", "name": "mine"}, "is of mine, and does not say in which folder that is: give MODEL"),
    ],
)
def test_what_cannot_be_repeated_is_one_line(gpuprof_cli, folder, workload, words):
    gpuprof.Run(workload | {"mode": "train"}, {"type": "cpu", "name": "c"}, {}).save(folder / "run.json")

    ended = gpuprof_cli("profile", "--like", "run.json", cwd=folder)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("gpuprof: --like run.json")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_job_is_not_repeated():
    job = gpuprof.Run({"source": "preset", "name": "gpt2", "mode": "train", "world": 2}, {"type": "cpu"}, {})

    with pytest.raises(GpuprofError, match="it is of a job of 2 processes"):
        workload_of(job, "job.json")


def test_a_compiled_model_is_compiled_again():
    about = {"source": "preset", "name": "gpt2", "mode": "train", "seq_len": 8, "trust_remote_code": True}
    run = gpuprof.Run(about | {"compiled": {"": "inductor, mode reduce-overhead"}}, {"type": "cpu"}, {})

    repeated = workload_of(run, "run.json")

    assert repeated.pop("model")() == "gpt2"
    assert repeated == {"mode": "train", "seq_len": 8, "compile": "reduce-overhead", "convention": "causal"}
