import json

import pytest
from analysis.test_memory_analysis import training
from runs import gpu_run
from typer.testing import CliRunner

import gpuprof
from gpuprof.cli import app

MODEL = """
import torch

def net(options):
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    return net, torch.ones(options.batch_size, 8)
"""


def call(*arguments):
    """What a verb prints; the error that `gpuprof.cli.main` makes one line of is raised."""
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(found.exception, gpuprof.GpuprofError):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def saved(tmp_path):
    run = gpu_run()
    run.device["memory_bandwidth"] = 1e9
    return run.save(tmp_path / "run.json")


def test_a_roofline_is_printed_and_drawn(saved, tmp_path):
    text = call("roofline", saved, "-o", tmp_path / "roofline.svg")

    assert "Ridge at 100 FLOP/B" in text
    assert "ridge 100" in (tmp_path / "roofline.svg").read_text()


def test_the_table_of_a_roofline_goes_to_any_other_file(saved, tmp_path):
    assert call("roofline", saved, "--by", "class", "--top", 2, "--format", "csv", "-o", tmp_path / "rows.csv") == ""
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


def test_a_roofline_under_ceilings_that_a_run_has_not(saved):
    with pytest.raises(gpuprof.GpuprofError, match="no denominator 'measured'"):
        call("roofline", saved, "--denominator", "measured")


def test_memory_is_printed_and_drawn(tmp_path):
    run = training().save(tmp_path / "run.json")

    assert "Peak 900 B allocated" in call("memory", run, "--chart", tmp_path / "memory.svg")
    assert "peak 900 B" in (tmp_path / "memory.svg").read_text()
    assert json.loads(call("memory", run, "-f", "json", "--depth", 0))["forecast"] is None
    assert call("memory", run, "-f", "csv", "-o", tmp_path / "memory.csv") == ""
    assert (tmp_path / "memory.csv").read_text().startswith("module,class,parameters")


def test_what_fits(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(MODEL)
    model = f"{file}:net"
    run = gpuprof.profile(model, passes=("count", "memory"), batch_size=3, device="cpu").save(tmp_path / "run.json")

    found = json.loads(call("memory", run, "--fit", "batch", "--memory", 64, "--model", model, "-f", "json"))

    fit = found["forecast"]["fit"]
    assert fit["capacity"] == 64 << 30
    # every sample keeps its input and its hidden layer
    assert fit["largest"]["activations"] == 4 * fit["largest"]["batch_size"] * (8 + 32)
    assert fit["beyond"]["batch_size"] == fit["largest"]["batch_size"] + 1
    text = call("memory", run, "--batch-size", 7, "--model", model)
    assert "Batch 7 is predicted to take" in text
    assert "activations kept: 1.094 KiB" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fit", "batch"], "does not say where its model is: give it with --model"),
        (["--memory", "8"], "--memory is the room for --fit: say of what the largest is wanted"),
        (["--fit", "batch", "--memory", "nan"], "--memory must be above 0 and finite, in GiB, not nan"),
        (["--fit", "seq", "--seq-len", "8"], "--fit seq looks for --seq-len: leave that out"),
        (["--fit", "new-tokens", "--new-tokens", "8"], "--fit new-tokens looks for --new-tokens: leave that out"),
        (["--prompt-len", "0"], "--prompt-len must be at least 1, not 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--chart", "x.pdf"], "give a name that ends in .png or .svg"),
    ],
)
def test_memory_refuses_in_one_line(tmp_path, arguments, message):
    run = training().save(tmp_path / "run.json")

    with pytest.raises(gpuprof.GpuprofError, match=message) as caught:
        call("memory", run, *arguments)

    assert "\n" not in str(caught.value)
