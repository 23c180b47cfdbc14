"""Models of one's own: the two files of docs/own-models.md as they stand there, and what a function gets and may do."""

import re
from pathlib import Path

import pytest
import torch

import gpuprof
from gpuprof.analysis.totals import totals
from gpuprof.errors import GpuprofError
from gpuprof.fit import forecast
from gpuprof.sweep import grid
from gpuprof.workload import Options, build

PAGE = Path(__file__).parents[2] / "docs/own-models.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, body in re.findall(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / name).write_text(body)
    return folder


@pytest.fixture
def write(tmp_path):
    def write(body):
        (tmp_path / "work.py").write_text(f"import torch\nfrom torch import nn\n{body}\n")
        return f"{tmp_path / 'work.py'}:make"

    return write


def made(reference, **options):
    return build(reference, Options(**options)).description


# what a function was given is the name of its model's class
TELL = """
def told(*given):
    return type(str(given), (nn.Linear,), {})(4, 3), torch.ones(2, 4)
"""


def test_a_size_of_the_command_line_reaches_the_page_s_model(folder, gpuprof_cli):
    """64 positions: 2 x (32 x 64 + 64 x 10) FLOPs forward; backward head twice, the first layer its weights alone."""
    (point,) = grid([f"{folder / 'net.py'}:net"], {"batch_size": [4]})  # as a sweep would
    said = gpuprof_cli("profile", *point.arguments, "--passes", "count,memory", "-q", "-o", folder / "run.json")
    assert (said.returncode, said.stderr) == (0, "")
    run = gpuprof.load(folder / "run.json")

    assert run.workload["inputs"][0]["shape"] == [4, 16, 32]
    assert (run.workload["batch_size"], run.workload["seq_len"]) == (4, 16)  # the second is the function's own
    assert totals(run)["flops_forward"] == 64 * 2 * (32 * 64 + 64 * 10)
    assert totals(run)["flops_backward"] == 64 * 2 * (32 * 64 + 2 * 64 * 10)

    # input, ReLU's result, the loss's log-softmax, its targets and its total weight, of four times the positions
    kept = 256 * (32 + 64 + 10) * 4 + 256 * 8 + 4
    model = f"{folder / 'net.py'}:net"
    predicted = forecast(run, None, model=model, batch_size=16)
    assert (predicted.sized.activations, predicted.miss) == (kept, 0)
    fit = forecast(run, "batch_size", capacity=2 << 30, model=model).fit
    assert fit.beyond.batch_size == fit.largest.batch_size + 1 > 16


def test_the_page_s_step_of_its_own(folder):
    """16 rows through two layers of 64 x 64: forward twice 2 x 64 x 64, backward three times."""
    run = gpuprof.profile(f"{folder / 'loop.py'}:step", passes="count", batch_size=16, dtype=torch.float32)

    assert totals(run)["flops"] == 16 * 5 * 2 * 64 * 64
    assert (run.workload["batch_size"], run.workload["step"], run.workload["dtype"]) == (16, "given", "float32")


@pytest.mark.parametrize(
    ("parameters", "given", "got"),
    [
        ("batch_size=4, seq_len=8", {}, (4, 8)),
        ("batch_size=4, seq_len=8", {"batch_size": 2}, (2, 8)),
        ("seq_len, *, mode, seed=5", {"seq_len": 3, "mode": "forward"}, (3, "forward", 0)),
        ("width=7, attention='eager', /", {"attention": "sdpa"}, (7, "sdpa")),
        ("device, dtype", {"device": "cpu"}, (torch.device("cpu"), torch.float32)),
        ("device, dtype", {"dtype": "bf16"}, (torch.device("cpu"), torch.bfloat16)),
        ("device='cuda', dtype=None", {}, ("cuda", None)),
        ("checkpointing, optimizer, freeze, compile", {"freeze": ("a",), "optimizer": "sgd", "compile": "default"},
         ("none", "sgd", ("a",), "default")),
    ],
)  # fmt: skip
def test_a_function_gets_what_its_parameters_name(write, parameters, given, got):
    reference = write(f"{TELL}\ndef make({parameters}):\n    return told(*locals().values())")

    assert made(reference, **given)["architecture"] == str(got)


def test_what_the_function_decides_itself_is_told_as_its_size(write):
    reference = write("def make(batch_size=3, seq_len=None, width=4, attention='eager'):\n"
                      "    return nn.Linear(width, 3), torch.ones(batch_size, width)")  # fmt: skip

    about = made(reference)
    assert (about["batch_size"], about["seq_len"], about["attention"]) == (3, None, "eager")
    assert build(reference, Options(batch_size=2)).description["samples_per_step"] == 2
    generates = write("def make(seq_len=3):\n    return {'model': nn.Linear(4, 3), 'step': lambda: 1}")
    assert made(generates, mode="generate")["seq_len"] is None  # a generation has none


def test_without_weights_the_function_works_on_the_cpu(write):
    reference = write(f"{TELL}\ndef make(device, dtype):\n    return told(device, dtype)")

    workload = build(reference, Options(), weightless=True)
    assert workload.description["architecture"] == "(device(type='cpu'), torch.bfloat16)"
    assert workload.model.weight.is_meta


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("def make(batch_size): ...", {},
         "work.py:make takes 'batch_size': give --batch-size, or the parameter a default"),
        ("def make(batchsize): ...", {},
         "work.py:make takes 'batchsize', which gpuprof does not know: give it a default; known are mode, batch_size"),
        ("def make(batch_size=1): ...", {"seq_len": 2},
         "--seq-len cannot reach work.py:make: let the function take a parameter seq_len"),
        ("def make(**sizes): ...", {"seq_len": 2}, "--seq-len cannot reach work.py:make"),
        ("def make(dtype=None):\n    return {'model': nn.ReLU(), 'step': print}", {"freeze": ("0",)},
         "PATH gives a step of its own, which --freeze cannot reach: let the function take a parameter freeze"),
        ("def make():\n    raise OSError('gone')", {}, "work.py:make raised OSError: gone (work.py:4)"),
        ("def make(:", {}, "work.py raised SyntaxError: invalid syntax (work.py, line 3)"),
        ("def make():\n    return None", {}, "work.py:make returned NoneType; it must return a model and"),
        ("def make():\n    return {'inputs': 1}", {}, "work.py:make returned dict of inputs; it must return"),
        ("def make():\n    return 1, 2, 3, 4", {}, "work.py:make returned tuple of 4; it must return"),
        ("def make():\n    return torch.ones(2, 4), nn.Linear(4, 3)", {},
         "work.py:make: the model is a Tensor, no torch.nn.Module"),
        ("def make():\n    return {'model': nn.ReLU(), 'inputs': torch.ones(2), 'optimizer': torch.optim.SGD}", {},
         "work.py:make: the optimizer is the class SGD, no optimizer: make one of the model's parameters"),
        ("def make():\n    return nn.Linear(4, 3), torch.ones(2, 4), 'mse'", {},
         "work.py:make: the loss is the text 'mse', no function: give one that takes the model's output"),
        ("def make():\n    return {'model': nn.Bilinear(4, 4, 3), 'inputs': torch.ones(2, 4)}", {},
         "work.py:make: Bilinear cannot be called with a tensor of [2, 4]: missing a required argument: 'input2'; its "
         "forward takes (input1, input2)"),
        ("def make():\n    return {'model': nn.ReLU()}", {}, "work.py:make: ReLU cannot be called with no inputs: "),
    ],
)  # fmt: skip
def test_what_a_function_cannot_be_given_or_return_is_one_line(write, body, options, message):
    reference = write(body)
    with pytest.raises(GpuprofError) as caught:
        build(reference, Options(**options))

    assert str(caught.value).startswith(message.replace("PATH", reference))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return nn.Linear(4, 3), torch.ones(2, 4), lambda out: out.nothing",
         "the loss raised AttributeError: 'Tensor' object has no attribute 'nothing' (work.py:4)"),
        ("return nn.Linear(4, 3), torch.ones(2, 4), lambda out: out",
         "the loss (given) is no scalar tensor that needs a gradient, but a tensor of shape [2, 3]"),
        ("return {'model': nn.Linear(4, 3), 'step': lambda: 1 / 0}",
         "the step raised ZeroDivisionError: division by zero (work.py:4)"),
        ("return nn.Linear(4, 3), torch.ones(2, 5)", "the model raised in the forward of Linear: RuntimeError: mat1"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_the_step_is_whose_it_is_on_the_command_line(write, body, message, gpuprof_cli):
    said = gpuprof_cli("profile", write(f"def make():\n    {body}"), "--passes", "count")

    assert said.returncode == 2
    assert said.stderr.startswith(f"gpuprof: {message}")
    assert said.stderr.count("\n") == 1
