import torch
from torch import nn

from gpuprof.compiled.regions import regions
from gpuprof.workload import from_module
from gpuprof.workload.workload import call_arguments

X = torch.ones(2, 3)


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_nothing_is_compiled():
    assert regions(from_module(net(), (X,))) == {}


def test_a_model_and_how_it_was_asked_for():
    model = torch.compile(net(), dynamic=True, fullgraph=True)

    assert regions(from_module(model, (X,))) == {"": "inductor, mode default, dynamic shapes, fullgraph"}


def test_modules_in_a_model():
    model = net()
    model[0].compile(mode="max-autotune", dynamic=False)
    model[1] = torch.compile(model[1], options={"triton.cudagraphs": True, "shape_padding": True})
    model[1]._orig_mod[0].compile(backend="eager")  # inside another region: it has no say

    assert regions(from_module(model, (X,))) == {
        "0": "inductor, mode max-autotune, static shapes",
        "1": "inductor, mode reduce-overhead, shape_padding=True",
    }


def test_a_step():
    model = net()

    @torch.compile(backend="aot_eager")
    def step():
        return model(X).sum()

    assert regions(from_module(model, (X,), step=step)) == {"(step)": "aot_eager"}


def test_a_compiled_model_is_called_as_its_own_class():
    class Takes(nn.Module):
        def forward(self, batch):
            return batch["x"]

    batch = {"x": X}

    assert from_module(torch.compile(net()), (X,)).description["name"] == "Sequential"
    assert call_arguments(torch.compile(Takes()), batch) == ((batch,), {})
