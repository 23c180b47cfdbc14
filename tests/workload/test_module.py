from dataclasses import dataclass

import pytest
import torch
from torch import nn

from gpuprof.errors import GpuprofError
from gpuprof.profiler import profile
from gpuprof.workload import from_module
from gpuprof.workload.causality import attention_facts
from gpuprof.workload.configuration import ask
from gpuprof.workload.steps import find_loss
from gpuprof.workload.workload import call_arguments


@dataclass
class Output:
    mask: torch.Tensor
    hidden: list


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return {"out": Output(mask=torch.ones(2, dtype=torch.bool), hidden=[x, self.linear(x)])}


def test_the_mean_of_the_first_output_that_needs_a_gradient():
    model, x = Nested(), torch.ones(2, 4)
    workload = from_module(model, (x,))

    assert workload.step().item() == pytest.approx(model.linear(x).mean().item())
    assert workload.description["loss"] == "mean of the first output"
    assert torch.equal(model.linear.bias.grad, torch.full((3,), 1 / 3))


def test_a_given_loss():
    model = nn.Linear(4, 3)
    workload = from_module(model, [torch.ones(2, 4)], loss=lambda output: output.square().sum())

    assert workload.step().item() == pytest.approx(model(torch.ones(2, 4)).square().sum().item())
    assert workload.description["loss"] == "given"


def test_own_loss_is_found_when_the_step_runs():
    class Losing(nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).sum(), "logits": x}

    workload = from_module(Losing(4, 3), (), {"x": torch.ones(2, 4)})
    workload.step()

    assert workload.description["loss"] == "model's own .loss"


def test_gradients_do_not_pile_up():
    model = nn.Linear(4, 3)
    workload = from_module(model, (torch.ones(2, 4),))
    workload.step()
    once = model.weight.grad.clone()
    workload.step()

    assert torch.equal(model.weight.grad, once)


def test_the_users_optimizer_steps():
    model = nn.Linear(4, 3)
    before = model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    workload = from_module(model, (torch.ones(2, 4),), optimizer=optimizer)
    workload.step()

    torch.testing.assert_close(model.bias, before - 1)
    assert workload.optimizer is optimizer
    assert workload.description["optimizer"] == "sgd"


@pytest.mark.parametrize("mode", ["train", "forward"])
@pytest.mark.parametrize("training", [True, False])
def test_training_flags_stay_as_they_are(mode, training):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    model.train(training)
    model[0].eval()
    from_module(model, (torch.ones(2, 4),), mode=mode).step()

    assert (model.training, model[0].training, model[1].training) == (training, False, training)


def test_train_needs_gradients_even_under_no_grad():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        from_module(model, (torch.ones(2, 4),)).step()

    assert model.weight.grad is not None


def test_forward_has_none():
    output = from_module(nn.Linear(4, 3), (torch.ones(2, 4),), mode="forward").step()

    assert output.shape == (2, 3)
    assert not output.requires_grad


def test_a_step_of_the_users_own():
    step = object.__new__(type("Step", (), {"__call__": lambda self: 7}))
    workload = from_module(nn.Linear(4, 3), mode="generate", step=step, name="mine")

    assert workload.step is step
    assert workload.description["name"] == "mine"
    assert not workload.owned


def test_the_description():
    kwargs = {"batch": {"input_ids": torch.zeros(2, 5, dtype=torch.long)}, "flags": [torch.ones(1)], "n": 3}
    description = from_module(nn.Linear(4, 3), (torch.ones(2, 4),), kwargs, mode="forward").description

    assert description["inputs"] == [
        {"name": "0", "shape": [2, 4], "dtype": "float32"},
        {"name": "batch.input_ids", "shape": [2, 5], "dtype": "int64"},
        {"name": "flags.0", "shape": [1], "dtype": "float32"},
    ]
    assert description["tokens_per_step"] == 10
    assert description["samples_per_step"] == 2
    assert description["source"] == "module"
    assert description["loss"] is None


def test_a_module_without_parameters_is_on_the_cpu():
    assert from_module(nn.ReLU(), (torch.ones(2),), mode="forward").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "evaluate"}, "mode 'evaluate' is not one of"),
        ({"mode": "generate"}, "needs a step function"),
        ({"mode": "forward", "loss": torch.sum}, "for mode 'train'"),
        ({"args": torch.ones(2, 4)}, "args must be a tuple"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(GpuprofError, match=message):
        from_module(nn.Linear(4, 3), **arguments)


def test_losses_that_cannot_be():
    with pytest.raises(GpuprofError, match="no scalar tensor that needs a gradient"):
        from_module(nn.Linear(4, 3), (torch.ones(2, 4),), loss=lambda output: output).step()
    with pytest.raises(GpuprofError, match="holds no floating tensor that needs a gradient"):
        find_loss({"ids": torch.ones(2, dtype=torch.long), "constant": torch.ones(2)})


def test_samples_of_a_step_without_inputs_are_not_known():
    model = nn.Linear(4, 3)
    assert from_module(model, step=lambda: model(torch.ones(8, 4)).sum()).description["samples_per_step"] is None
    assert from_module(model, (torch.tensor(1.0),), mode="forward").description["samples_per_step"] == 1


class OneMapping(nn.Linear):
    def forward(self, batch):
        return super().forward(batch["x"])


class Keywords(nn.Linear):
    def forward(self, x, *, scale=1.0):
        return super().forward(x) * scale


class Anything(nn.Linear):
    def forward(self, *args, **kwargs):
        return super().forward(kwargs["x"])


class MappingAndFlags(nn.Linear):
    def forward(self, batch, **flags):
        return super().forward(batch["x"])


@pytest.mark.parametrize(
    ("kind", "inputs", "positional"),
    [
        (OneMapping, {"x": torch.ones(2, 4)}, True),
        (MappingAndFlags, {"x": torch.ones(2, 4)}, True),
        (Keywords, {"x": torch.ones(2, 4), "scale": 2.0}, False),
        (Anything, {"x": torch.ones(2, 4)}, False),
        (nn.Linear, {"input": torch.ones(2, 4)}, False),
    ],
)
def test_a_mapping_is_what_the_signature_says(kind, inputs, positional):
    model = kind(4, 3)
    args, kwargs = call_arguments(model, inputs)

    assert (args, kwargs) == (((inputs,), {}) if positional else ((), inputs))
    # 2 rows of 4 times 3 columns, a multiplication and an addition each; its backward the same, for the weight alone
    for given in (profile(model, inputs, mode="forward", passes=("count",)), profile(model, inputs, passes=("count",))):
        multiplied = given.ops[given.ops["op"].isin(["aten::addmm", "aten::mm"])]
        assert multiplied["flops_full"].sum() == 48 * multiplied["phase"].nunique()


def test_a_mapping_that_fits_neither_way():
    with pytest.raises(
        GpuprofError, match=r"^Bilinear takes the inputs \(x, y, 3\) neither as keywords nor as one mapping: "
    ):
        call_arguments(nn.Bilinear(1, 1, 1), {"x": 1, "y": 2, 3: 4})


def test_a_mapping_with_a_key_too_many_is_not_the_first_argument():
    # as a tokenizer gives types to a model that has none
    with pytest.raises(GpuprofError, match=r"^Keywords takes the inputs \(x, token_type_ids\) neither as keywords"):
        call_arguments(Keywords(4, 3), {"x": torch.ones(2, 4), "token_type_ids": torch.ones(2, 4)})


class Hook:
    """As accelerate's are: what brings the weights to the device of the work."""

    def __init__(self, device):
        self.execution_device = device


class Hooks:
    def __init__(self, *hooks):
        self.hooks = hooks


@pytest.mark.parametrize(
    ("root", "inner", "device"),
    [
        (Hook("cpu"), None, "cpu"),
        (Hook(None), Hook("cpu"), "cpu"),
        (Hooks(Hook(None), Hook(torch.device("cpu"))), None, "cpu"),
        (Hook("cpu"), Hook("cuda:1"), "cuda:1"),
        (None, None, "meta"),
    ],
)
def test_the_device_is_where_the_work_runs(root, inner, device):
    model = nn.Sequential(nn.Linear(4, 3)).to("meta")
    for module, hook in ((model, root), (model[0], inner)):
        if hook is not None:
            module._hf_hook = hook

    workload = from_module(model, (torch.ones(2, 4),), mode="forward")

    assert workload.device == torch.device(device)
    assert workload.description["device"] == device


class Untold:
    """A configuration as of models whose layers differ: it raises an error of its own for what they differ in."""

    model_type = "untold"

    @property
    def sliding_window(self):
        raise RuntimeError("'sliding_window' is a per-layer attribute")


def test_a_window_that_a_configuration_does_not_tell_is_no_window_of_none():
    attention = nn.Module()
    attention.is_causal, attention.head_dim, attention.config = True, 8, Untold()
    assert attention_facts(attention, "attention").causal is None

    attention.sliding_window = 4  # what a layer says of itself is enough
    facts = attention_facts(attention, "attention")
    assert (facts.causal, facts.window) == (True, 4)


def test_a_configuration_that_raises_is_asked_on():
    assert ask(Untold(), "sliding_window", 7) == 7
    assert ask(Untold(), "model_type") == "untold"
