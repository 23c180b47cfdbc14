"""Whatever happens in the meter, and whatever it sees, the training is as it would be without it."""

import gc
import warnings
from contextlib import nullcontext

import pytest
import torch
from loops import IN, OUT, flops, metered, net, sgd, train
from torch import nn
from torch._dynamo.callback import callback_handler
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.utils import _python_dispatch

import gpuprof
from gpuprof.meter import account, counts, machine
from gpuprof.meter import meter as meters


def attached(model, optimizer, hooks=0):
    """All that a count, or the meter between a beginning and an end, could have left somewhere.

    Without so many hooks of the optimizer's step, and without who wants to know of compilations, whom nobody asks
    where there are none.
    """
    return (
        [type(one)._call_impl for one in model.modules()], [sorted(vars(one)) for one in model.modules()],
        torch.autograd._engine_run_backward, len(optimizer._optimizer_step_post_hooks) - hooks,
        len(optimizer._optimizer_step_pre_hooks), len(optimizers._global_optimizer_pre_hooks),
        len(optimizers._global_optimizer_post_hooks), len(modules._global_forward_pre_hooks),
        len(_python_dispatch._get_current_dispatch_mode_stack()),
        len(torch.overrides._get_current_function_mode_stack()), torch.autograd.is_multithreading_enabled(),
        counts._turn.locked(),
    )  # fmt: skip


class Dropping(nn.Module):
    """Draws random numbers, has a buffer that changes, and attends."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.norm(self.layer(x).mean(1)))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_losses_and_parameters_are_bit_for_bit_the_same(accumulation):
    def trained(with_meter):
        torch.manual_seed(0)
        model = Dropping()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        meter = gpuprof.Meter(model, optimizer) if with_meter else None
        losses = []
        for number in range(12):
            batch = torch.randn(4, 5 + number % 3, 8)
            if meter is not None:
                meter.begin()
                meter.given(batch)
            loss = model(batch).square().mean()
            loss.backward()
            if (number + 1) % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if meter is not None:
                meter.end()
                meter.read()
        if meter is not None:
            assert meter.read()["meter/counted_signatures"] == 3
        return losses, [*model.state_dict().values(), torch.get_rng_state()]

    (losses, state), (others, other) = trained(True), trained(False)
    assert losses == others
    assert all(map(torch.equal, state, other))


def test_between_two_blocks_one_hook_of_the_optimizer_is_attached_and_that_goes_with_the_meter():
    model = net()
    optimizer = sgd(model)
    gc.collect()
    before, listening = attached(model, optimizer), list(callback_handler.start_callbacks)
    meter = metered(model, optimizer)
    assert attached(model, optimizer) == before
    for _ in range(4):
        train(meter, model, optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == 1
        assert attached(model, optimizer, hooks=1) == before
    del meter
    gc.collect()
    assert attached(model, optimizer) == before
    assert callback_handler.start_callbacks == listening  # of meters that others keep


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_an_error_of_the_training_goes_on_its_way_and_leaves_nothing(at, where):
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("mine")

    class Unsteady(torch.optim.SGD):
        def step(self, closure=None):
            if fails == "optimizer":
                raise ValueError("mine")
            return super().step(closure)

    def step():
        with meter.step(torch.ones(4, IN)):
            out = model(torch.ones(4, IN + (fails == "forward")))
            (Failing.apply(out) if fails == "backward" else out).mean().backward()
            optimizer.step()

    model = net()
    optimizer = Unsteady(model.parameters(), lr=0.01)
    before = attached(model, optimizer)
    meter = metered(model, optimizer)
    for number in range(8):
        fails = where if number == at else ""
        with (
            pytest.raises((ValueError, RuntimeError), match=r"mine|mat1 and mat2") if fails else nullcontext() as error
        ):
            step()
        if fails:
            notes = getattr(error.value, "__notes__", [])
            assert [note[:38] for note in notes] == ["gpuprof.Meter counted this micro-batch"] * (at == 1)
        assert attached(model, optimizer, hooks=not fails) == before
    meter._settle()

    assert meter.number == 7
    dropped = {one.number: one.dropped for one in meter._samples}
    assert dropped[at + 1].endswith("Error in it")  # the step that went on after it
    assert meter.read()["meter/flops_per_step"] == flops(4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopIteration, SystemExit])
def test_what_is_no_failure_goes_on_its_way_too(error):
    def step():
        with meter.step(torch.ones(4, IN)):
            model(torch.ones(4, IN))
            raise error

    model = net()
    optimizer = sgd(model)
    before = attached(model, optimizer)
    meter = metered(model, optimizer)
    train(meter, model, optimizer)
    with pytest.raises(error) as raised:
        step()
    assert attached(model, optimizer) == before
    assert hasattr(raised.value, "__notes__") == (error is StopIteration)


@pytest.mark.parametrize("broken", ["mark", "given", "form", "end", "read"])
def test_a_failure_of_the_meter_ends_it_and_not_the_training(monkeypatch, broken):
    def fail(*_, **__):
        raise ZeroDivisionError("of the meter")

    model = net()
    optimizer = sgd(model)
    before = attached(model, optimizer)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=4)
    where = {"mark": (meter._clock, "mark"), "given": (meters, "key_of"), "form": (meters, "form_of")}
    where |= {"end": (meter, "_close"), "read": (account, "totals")}
    monkeypatch.setattr(*where[broken], fail)
    with pytest.warns(UserWarning, match="the meter stops, and the training goes on: ZeroDivisionError: of the meter"):
        losses = [*train(meter, model, optimizer, steps=3), meter.read()]
    assert len(losses) == 4
    assert meter.read() == {}
    assert "ZeroDivisionError: of the meter" in meter.about["meter/not_counted"]
    assert attached(model, optimizer) == before


def test_warnings_that_are_errors_end_no_training(monkeypatch):
    monkeypatch.setattr(meters, "key_of", lambda _: 1 / 0)
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(train(meter, model, optimizer, steps=3)) == 3
    assert meter.read() == {}


def test_a_step_that_cannot_be_counted_is_timed(ticks):
    """What another thread of Python does no mode sees."""
    from concurrent.futures import ThreadPoolExecutor

    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(self.inner, x).result()

    model = Threaded()
    optimizer = sgd(model)
    before = attached(model, optimizer)
    meter = metered(model, optimizer)
    train(meter, model, optimizer)
    with pytest.warns(UserWarning, match=f"4x{IN}: it could not be counted: GpuprofError: the step calls modules in"):
        train(meter, model, optimizer)
    train(meter, model, optimizer, steps=4)
    figures = meter.read()

    assert attached(model, optimizer, hooks=1) == before
    assert figures["device/step_s"] == 1
    assert figures["meter/counted_signatures"] == 0
    assert not {"mfu", "device/mfu", "device/flops_per_sec", "meter/flops_per_step"} & figures.keys()
    assert "other threads of Python" in meter.about["meter/not_counted"]


def test_where_nothing_is_multiplied_there_is_no_mfu():
    weight = nn.Parameter(torch.ones(3))
    model = nn.ParameterList([weight])
    meter = metered(model)
    for _ in range(2):
        with meter.step(torch.ones(3)):
            (weight * 2).sum().backward()

    assert "meter/flops_per_step" not in meter.read()
    assert "no matrix was multiplied in it" in meter.about["meter/not_counted"]


def test_without_a_peak_there_is_no_mfu_and_it_is_said_how_to_get_one(ticks, monkeypatch):
    monkeypatch.setattr(machine, "add_ceilings", lambda run: None)  # as on a GPU of which nothing is known
    model = net()
    optimizer = sgd(model)
    meter = gpuprof.Meter(model, optimizer)
    train(meter, model, optimizer, steps=5)
    figures = meter.read()

    assert figures["flops_per_sec"] == flops(4)
    assert not {"mfu", "hfu", "mfu_peak_tflops", "device/mfu"} & figures.keys()
    assert "no datasheet peak" in meter.about["meter/peak_remedy"]
    assert "meter/peak" not in meter.about


def test_more_than_there_is_is_said_once(ticks):
    model = net()
    optimizer = sgd(model)
    meter = gpuprof.Meter(model, optimizer, peak_tflops=1e-9)
    train(meter, model, optimizer, steps=5)
    with pytest.warns(UserWarning, match=r"168% of the peak \(given as peak_tflops\) is more than there is"):
        assert meter.read()["mfu"] == pytest.approx(1.68)
    train(meter, model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert meter.read()["mfu"] == pytest.approx(1.68)


def test_more_than_was_measured_is_no_figure(ticks, monkeypatch):
    monkeypatch.setattr(machine, "denominator", lambda run: ("measured", {"float32": 1000.0}))
    model = net()
    optimizer = sgd(model)
    meter = gpuprof.Meter(model, optimizer)
    train(meter, model, optimizer, steps=5)
    with pytest.warns(UserWarning, match=r"168% of the peak \(best matmul measured on this device\)"):
        figures = meter.read()
    assert not {"mfu", "device/mfu", "hfu", "flops_per_sec"} & figures.keys()
    assert figures["step_s"] == 1


def test_an_operator_without_a_rule_is_said(ticks):
    @torch.library.custom_op("gpuprof_meter_test::product", mutates_args=())
    def product(x: torch.Tensor) -> torch.Tensor:
        return x @ x.T

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(IN, OUT)

        def forward(self, x):
            product(x)
            return self.layer(x)

    model = Model()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer)
    with pytest.warns(UserWarning, match=r"gpuprof_meter_test::product\S*: no FLOPs are known of it"):
        train(meter, model, optimizer)


def test_wrong_arguments_are_said_at_once():
    model = net()
    for given, message in [
        ((lambda x: x, None), "the meter needs the model, a torch.nn.Module, and not function"),
        ((model, "adamw"), "the meter needs a torch.optim.Optimizer, several of them or None, and not str"),
        (
            (model, model.parameters()),
            "the meter needs a torch.optim.Optimizer, several of them or None, and not",
        ),
    ]:
        with pytest.raises(gpuprof.GpuprofError, match=message):
            gpuprof.Meter(*given)
    for options, message in [
        ({"convention": "palm"}, "convention palm does not fit Sequential"),
        ({"convention": "mine"}, "no convention 'mine'"),
        ({"peak_tflops": 0.0}, "must be above 0"),
        ({"peak_tflops": "989"}, "must be above 0 and finite, not 989"),
        ({"profile_at": "200"}, "profile_at=200: give a list of steps"),
        ({"out": 3}, "cannot make the folder 3 for the meter's log"),
    ]:
        with pytest.raises(gpuprof.GpuprofError, match=message):
            gpuprof.Meter(model, **options)
    for state in (None, {}, {"step": "last"}):
        with pytest.raises(gpuprof.GpuprofError, match="that is no state of a gpuprof"):
            gpuprof.Meter(model).load_state_dict(state)


def test_a_device_that_has_no_clock_here_is_said():
    model = nn.Linear(2, 2, device="meta")
    meter = gpuprof.Meter(model)
    with pytest.warns(UserWarning, match="the meter takes the time on a CPU or a CUDA device, and the model is on"):
        meter.begin()
    assert meter.read() == {}


def test_a_model_that_is_moved_before_the_first_step_is_where_it_then_is():
    model = nn.Linear(2, 2, device="meta")
    meter = gpuprof.Meter(model)
    model.to_empty(device="cpu")
    with meter.step():
        model(torch.ones(2, 2))
    assert meter.read()["meter/step"] == 1
