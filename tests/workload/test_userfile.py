import sys

import pytest
import torch
import torch.distributed as dist

from gpuprof.compiled.regions import regions
from gpuprof.errors import GpuprofError
from gpuprof.passes.counting import count
from gpuprof.workload import Options, build
from gpuprof.workload.userfile import Given, place
from gpuprof.workload.weightless import Weightless, execute

HEAD = "import torch\nfrom torch import nn\n"


@pytest.fixture
def write(tmp_path):
    def write(body, name="work.py"):
        (tmp_path / name).write_text(HEAD + body)
        return f"{tmp_path / name}:make"

    return write


@pytest.mark.parametrize(
    "inputs", ["{'input': torch.ones(2, 4)}", "(torch.ones(2, 4),)", "[torch.ones(2, 4)]", "torch.ones(2, 4)"]
)
def test_every_shape_of_inputs(write, inputs):
    workload = build(write(f"def make():\n    return nn.Linear(4, 3), {inputs}\n"), Options())
    weights = workload.model.weight, workload.model.bias

    expected = torch.nn.functional.linear(torch.ones(2, 4), *weights).mean()
    assert workload.step().item() == pytest.approx(expected.item())
    assert workload.description["source"] == "file"
    assert workload.description["name"] == "work.py:make"
    assert workload.description["seed"] == 0
    assert workload.owned


def test_a_loss_and_a_dict(write):
    three = write("def make():\n    return nn.Linear(4, 3), torch.ones(2, 4), lambda y: (y * 0).sum() + 5\n")
    assert build(three, Options()).step().item() == 5
    keys = write(
        "def make():\n    m = nn.Linear(4, 3)\n    return {'model': m, 'inputs': torch.ones(2, 4),\n"
        "        'loss': lambda y: y.sum(), 'optimizer': torch.optim.SGD(m.parameters(), lr=1.0)}\n"
    )
    workload = build(keys, Options())
    before = workload.model.bias.detach().clone()
    workload.step()
    torch.testing.assert_close(workload.model.bias, before - 2)


def test_a_step_of_its_own(write):
    reference = write("def make():\n    return {'model': nn.Linear(4, 3), 'step': lambda: 11}\n")

    assert build(reference, Options()).step() == 11
    with pytest.raises(GpuprofError, match="gives a step of its own, which gpuprof cannot count"):
        build(reference, Options(), weightless=True)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_model_that_is_sharded_stays_where_and_as_it_is(write):
    wrapped = write("def make():\n    return nn.parallel.DistributedDataParallel(nn.Linear(4, 3)), torch.ones(2, 4)\n")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert build(wrapped, Options(device="cpu", dtype="float32")).model.module.weight.dtype == torch.float32
        with pytest.raises(GpuprofError, match="--dtype cannot reach a model that is sharded already"):
            build(wrapped, Options(device="cpu", dtype="bfloat16"))
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 3))
        with pytest.raises(GpuprofError, match="sharded on cpu, from where it cannot move to cuda"):
            place(Given(model), torch.device("cuda"), None)
    finally:
        dist.destroy_process_group()


def test_options_reach_a_function_that_takes_them(write):
    reference = write("def make(options):\n    return nn.Linear(4, 3), torch.ones(options.batch_size, 4)\n")

    assert build(reference, Options(batch_size=5)).description["inputs"][0]["shape"] == [5, 4]


def test_a_parameter_with_a_default_is_not_for_the_options(write):
    reference = write("def make(width=4):\n    return nn.Linear(width, 3), torch.ones(2, width)\n")

    assert build(reference, Options()).model.in_features == 4


def test_options_that_cannot_reach_it_are_refused(write):
    reference = write("def make():\n    return nn.Linear(4, 3), torch.ones(2, 4)\n")
    with pytest.raises(GpuprofError, match=r"--seq-len cannot reach work.py:make"):
        build(reference, Options(seq_len=5))


def test_options_that_apply_to_any_module(write):
    reference = write("def make():\n    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), torch.ones(2, 4)\n")
    workload = build(reference, Options(dtype="bf16", optimizer="adamw", freeze=("0",)))
    workload.step()

    assert workload.model[0].weight.grad is None
    assert workload.model[1].weight.grad.dtype == torch.bfloat16
    assert isinstance(workload.optimizer, torch.optim.AdamW)
    forward = build(reference, Options(mode="forward"))
    assert not forward.model.training
    assert forward.step().shape == (2, 3)


def test_an_input_whose_gradient_is_asked_for_has_it_where_the_model_is(write):
    """Two products of 4 x 8 x 3: the input's gradient and the weight's; nothing copies one to where the input was."""
    reference = write("def make():\n    return nn.Linear(8, 3, bias=False), torch.ones(4, 8, requires_grad=True)\n")

    without_weights = count(build(reference, Options(), weightless=True), execute)
    in_another_dtype = count(build(reference, Options(dtype="bfloat16")))

    for counted in (without_weights, in_another_dtype):
        backward = counted.ops[counted.ops["phase"] == "backward"]
        assert backward["flops_full"].sum() == 2 * (2 * 4 * 8 * 3)
        assert not backward["op"].str.contains("copy").any()


def test_weightless_keeps_integers_ties_and_the_optimizer(write):
    reference = write(
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)\n"
        "        self.head.weight = self.embed.weight\n"
        "        self.register_buffer('scale', torch.ones(4))\n"
        "    def forward(self, ids, noise):\n"
        "        return self.head(self.embed(ids) + noise)\n"
        "def make():\n"
        "    m = Tied()\n"
        "    return {'model': m, 'inputs': {'ids': torch.tensor([[1, 2]]), 'noise': torch.ones(4)},\n"
        "            'optimizer': torch.optim.SGD(m.parameters(), lr=1.0)}\n"
    )
    workload = build(reference, Options(), weightless=True)

    (weight,) = workload.model.parameters()
    assert weight.is_meta
    assert workload.model.scale.is_meta
    assert workload.model.head.weight is workload.model.embed.weight
    assert workload.optimizer.param_groups[0]["params"] == [weight]
    assert workload.device == torch.device("meta")
    assert workload.description["weights"] == "none"
    assert workload.description["tokens_per_step"] is None


def test_a_neighbour_can_be_imported_and_the_path_is_restored(tmp_path, write):
    (tmp_path / "neighbour_of_work.py").write_text("WIDTH = 4\n")
    before = list(sys.path)
    reference = write(
        "from neighbour_of_work import WIDTH\ndef make():\n    return nn.Linear(WIDTH, 3), torch.ones(2, 4)\n"
    )

    assert build(reference, Options()).model.in_features == 4
    assert sys.path == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make():\n    raise ValueError('no\\nluck')\n", "work.py:make raised ValueError: no"),
        ("1 / 0\n", "work.py raised ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)\n", "work.py raised SystemExit: 0 (work.py:"),
        ("def make():\n    raise SystemExit\n", "work.py:make raised SystemExit: (no message) (work.py:"),
        ("def make(:\n", "work.py raised SyntaxError: "),
        ("def other():\n    pass\n", "no function 'make' in "),
        (
            "def make():\n    return nn.Linear(4, 3)\n",
            "work.py:make returned Linear; it must return a model and",
        ),
        ("def make():\n    return 1, 2\n", "work.py:make: the model is a int, no torch.nn.Module"),
        (
            "def make():\n    return {'model': nn.ReLU(), 'lost': 1}\n",
            "work.py:make returned unknown keys ['lost']",
        ),
        (
            "def make():\n    return nn.ReLU(), torch.ones(2), 3\n",
            "work.py:make: the loss is a int, no function",
        ),
    ],
)
def test_mistakes_in_the_file(write, body, message):
    with pytest.raises(GpuprofError) as caught:
        build(write(body), Options())

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_generates_with_a_step_of_its_own(write):
    reference = write("def make():\n    return {'model': nn.Linear(4, 3), 'step': lambda: 11}\n")
    workload = build(reference, Options(mode="generate"))

    assert workload.step() == 11
    assert (workload.description["mode"], workload.description["step"]) == ("generate", "given")
    assert workload.description["cache"] is None  # which one the step takes is its own affair
    with pytest.raises(
        GpuprofError, match=r"--cache cannot reach work\.py:make: let the function take a parameter cache"
    ):
        build(reference, Options(mode="generate", cache="static"))
    with pytest.raises(GpuprofError, match=r"work\.py:make gives no step: --mode generate needs one that generates"):
        build(write("def make():\n    return nn.ReLU(), torch.ones(2)\n"), Options(mode="generate"))


CONTAINERS = """
from collections import UserDict, namedtuple
from dataclasses import dataclass
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

class Own(dict):
    def __getattr__(self, name):
        return self[name]

Pair = namedtuple("Pair", ["x", "mask"])

@dataclass(frozen=True)
class Sample:
    x: torch.Tensor

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, batch):
        return self.linear(batch.last_hidden_state if isinstance(batch, BaseModelOutput) else batch.x)

X = torch.ones(2, 4)
"""


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ("Own(x=X)", "0.x"),
        ("BatchEncoding({'x': X})", "0.x"),
        ("BaseModelOutput(last_hidden_state=X)", "0.last_hidden_state"),
        ("(Pair(X, None),)", "0.0"),
        ("Sample(X)", "0.x"),
    ],
)
def test_a_container_stays_of_its_class_wherever_its_tensors_go(inputs, name, write):
    reference = write(f"{CONTAINERS}def make():\n    return Net(), {inputs}\n")

    for weightless in (False, True):
        workload = build(reference, Options(mode="forward"), weightless=weightless)
        assert workload.description["inputs"] == [{"name": name, "shape": [2, 4], "dtype": "float32"}]
        assert workload.description["samples_per_step"] == 2
    with Weightless():
        assert workload.step().device.type == "meta"  # as its input is


def test_a_step_of_its_own_is_compiled_by_the_file(write):
    reference = write(
        "def make():\n    m = nn.Linear(4, 3)\n    return {'model': m, 'step': lambda: m(torch.ones(2, 4)).sum()}\n"
    )

    with pytest.raises(GpuprofError, match="gives a step of its own: let it compile that, and leave --compile out"):
        build(reference, Options(compile="default"))


def test_a_model_of_a_file_is_compiled_in_place(write):
    reference = write("def make():\n    return nn.Linear(4, 3), torch.ones(2, 4)\n")
    workload = build(reference, Options(compile="max-autotune"))

    assert [path for path, _ in workload.model.named_modules()] == [""]
    assert regions(workload) == {"": "inductor, mode max-autotune"}
    assert "compile" not in workload.description
