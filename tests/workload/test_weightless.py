"""What has a value without weights, and what says so when it has none."""

import pytest
import torch
from torch import nn

from gpuprof import count
from gpuprof.errors import GpuprofError
from gpuprof.workload.weightless import Answers, Weightless

HINT = "count a real step with 'gpuprof profile MODEL --passes count'"
X = torch.empty(4, 8, device="meta")


@pytest.fixture
def linear():
    with Answers(), Weightless():
        yield nn.Linear(8, 8, device="meta")


@pytest.mark.parametrize(
    "ask",
    [
        lambda y: y.argmax(-1).tolist(),
        lambda y: y.argmax().item(),
        lambda y: int(y.argmax()),
        lambda y: y.split(y.argmax(-1).tolist()),
        lambda y: (y > 0).nonzero(),
        lambda y: (y > 0).nonzero(as_tuple=True),
        lambda y: torch.where(y > 0),
        lambda y: y.detach().cpu().numpy(),
        lambda y: y[y > 0],
        lambda y: bool((y > 0).any()),
        lambda y: torch.unique(y.argmax(-1)),
    ],
)
def test_whoever_asks_for_a_computed_value_is_told_the_same(linear, ask):
    with pytest.raises(GpuprofError) as told:
        ask(linear(X))
    assert str(told.value).endswith(HINT)


def overwritten(y):
    """Whole numbers of the model's own, some of them computed: at first they are 0."""
    numbers = torch.zeros(4, dtype=torch.long, device=y.device)
    numbers[1:] = y.argmax(-1)[1:]
    return numbers


@pytest.mark.parametrize(
    "ask", [lambda n: n.tolist(), lambda n: (n + 1).max().item(), lambda n: X[n > 0], lambda n: n.nonzero()]
)
def test_what_was_overwritten_has_no_value_any_more(linear, ask):
    with pytest.raises(GpuprofError) as told:
        ask(overwritten(linear(X)))
    assert str(told.value).endswith(HINT)


def test_what_a_model_writes_down_itself_has_values(linear):
    y = linear(X)
    shapes = torch.tensor([[2, 3], [4, 5]], device=y.device)
    assert shapes.prod(-1).tolist() == [6, 20]
    assert torch.tensor([y.sum(), y.mean()], device=y.device).device.type == "meta"
    assert torch.ones_like(y, dtype=torch.long).sum().item() == 32
    assert y.new_full((2, 2), 3, dtype=torch.int32).tolist() == [[3, 3], [3, 3]]
    assert torch.eye(3, dtype=torch.long, device=y.device).sum().item() == 3
    assert X[torch.arange(4, device=y.device) > 1].shape == (2, 8)


def test_a_step_is_sane(linear):
    y = linear(X)
    assert torch.isfinite(y).all().item()
    assert not y.isnan().any().item()
    assert torch.distributions.Categorical(logits=y).entropy().shape == (4,)


def test_slices_of_a_constant_that_are_written_have_gradients(linear):
    y = linear(X)
    mixed = torch.zeros(4, 8, device=y.device)
    mixed[:, :4] = y[:, :4]
    mixed[0] = y[1]
    torch.bmm(mixed[None], y.T[None]).sum().backward()

    assert linear.weight.grad.shape == (8, 8)


def test_a_recurrent_layer_takes_a_state_of_zeros(linear):
    state = torch.zeros(1, 4, 8, device="meta")
    for layer in (nn.LSTM(8, 8, device="meta"), nn.GRU(8, 8, device="meta")):
        assert layer(X[None], (state, state) if isinstance(layer, nn.LSTM) else state)[0].shape == (1, 4, 8)


def test_more_places_than_features_raise_as_they_do_in_a_real_step(linear):
    features = linear(X)
    places = torch.zeros(1, 6, 1, dtype=torch.bool)
    places[:, :4] = True
    text = torch.empty(1, 6, 8, device="meta")
    assert text.masked_scatter(places.expand(1, 6, 8), features).shape == (1, 6, 8)
    places[:, 4] = True
    with pytest.raises(RuntimeError, match="40 places for 32 elements"):
        text.masked_scatter(places.expand(1, 6, 8), features)


MADE_ON_THE_CPU = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8, bias=False)
        self.scale = nn.Parameter(torch.Tensor(8).uniform_())

    def forward(self, x):
        hidden = self.linear(x)
        hidden[:, 2:4] = self.scale[2:4]
        return hidden

def net():
    return Net(), torch.ones(4, 8)
"""


def test_in_place_slices_of_a_parameter(tmp_path):
    """As wav2vec2's masked spans: 4 rows of 8 times 8 forward, and as much again for the weight's gradient."""
    (tmp_path / "net.py").write_text(MADE_ON_THE_CPU)
    run = count(f"{tmp_path / 'net.py'}:net")

    assert run.ops[run.ops["kind"] == "matmul"].groupby("phase")["flops_full"].sum().to_dict() == {
        "forward": 2 * 4 * 8 * 8,
        "backward": 2 * 4 * 8 * 8,
    }


def test_what_has_no_weights_is_not_compiled():
    with pytest.raises(GpuprofError) as caught:
        count("gpt2", compile="default")

    assert str(caught.value) == (
        "--compile default is for a model that runs: a count without weights counts what is not compiled"
    )
