"""What has a value without weights, and what says so when it has none."""

import pytest
import torch
from torch import nn

from gpuprof import count
from gpuprof.errors import GpuprofError
from gpuprof.workload.weightless import Answers, Weightless, execute, repeated

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


ATEN = torch.ops.aten
HALF = torch.empty(4, 8, device="meta", dtype=torch.bfloat16)
WHOLE = torch.empty(4, 8, device="meta", dtype=torch.long)


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        (ATEN.mm.default, (HALF, HALF.t())),
        (ATEN.mul.Tensor, (HALF, 2.0)),
        (ATEN.add.Tensor, (X.t(), X.t())),
        (ATEN.clone.default, (X.expand(3, 4, 8),)),
        (ATEN.native_layer_norm.default, (X, [8], None, None, 1e-5)),
        (ATEN.max.dim, (X, 1)),
        (ATEN.embedding.default, (X, torch.tensor([[1, 2]]))),
        (ATEN.eq.Scalar, (WHOLE, 1)),
    ],
)
def test_an_empty_result_is_made_again_as_the_operator_makes_it(operator, given):
    first = execute(operator, given, {})
    again = repeated(operator, given, {}, first)(*given)
    assert type(again) is type(first)
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (again, first)), strict=True):
        assert (one.shape, one.stride(), one.dtype, one.device) == (other.shape, other.stride(), other.dtype, X.device)
        assert one.untyped_storage()._cdata != other.untyped_storage()._cdata
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()


def test_views_and_changes_in_place_are_of_what_is_given():
    for operator, given in ((ATEN.view.default, (X, [32])), (ATEN.add_.Tensor, (X.clone(), 1))):
        again = repeated(operator, given, {}, execute(operator, given, {}))(*given)
        assert again.untyped_storage()._cdata == given[0].untyped_storage()._cdata


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        (ATEN.mul.Tensor, (torch.ones(2), 2)),  # for real
        (ATEN.index.Tensor, (X, [torch.tensor([True, False, True, False])])),  # as many as are true
        (ATEN.div.Tensor, (WHOLE, WHOLE)),  # in torch's default dtype, of the moment
        (ATEN.native_dropout.default, (X, 0.0, False)),  # may hand back what it was given
        (ATEN.sum.default, (X,)),  # a number
    ],
)
def test_what_metadata_do_not_tell_is_carried_out_each_time(operator, given):
    assert repeated(operator, given, {}, execute(operator, given, {})) is None


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
