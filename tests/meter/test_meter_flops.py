"""What the meter counts: against figures by hand, and against gpuprof.count."""

import pytest
import torch
from loops import IN, OUT, WIDE, flops, metered, net, sgd, train
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import gpuprof
from gpuprof.meter import signature


def llama(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tokens(length=16, batch=2):
    ids = torch.arange(batch * length).reshape(batch, length) % 128
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def learn(meter, model, optimizer, batches):
    for batch in batches:
        with meter.step(batch):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("convention", ["causal", "full"])
def test_flops_are_those_of_count_to_the_flop(convention):
    model, batch = llama(), tokens()
    run = gpuprof.count(model, batch, convention=convention)
    counted = run.ops.loc[run.ops["phase"].isin(["forward", "backward"]), f"flops_{convention}"].sum()
    optimizer = sgd(model)
    meter = gpuprof.Meter(model, optimizer, convention=convention)
    learn(meter, model, optimizer, [batch] * 5)

    assert meter.read()["meter/flops_per_step"] == counted


def test_accumulation_cannot_be_forgotten(ticks):
    read = {}
    for accumulation in (1, 2, 4):
        model = net()
        optimizer = sgd(model)
        meter = metered(model, optimizer)
        train(meter, model, optimizer, steps=6, accumulation=accumulation)
        read[accumulation] = meter.read()

    for accumulation, figures in read.items():
        assert figures["meter/flops_per_step"] == accumulation * flops(4)
        assert figures["device/step_s"] == accumulation
        assert figures["device/mfu"] == pytest.approx(flops(4) / 1e6, rel=1e-12)  # each micro-batch takes 1 s
        assert figures["device/hfu"] == figures["device/mfu"]
        assert figures["device/flops_per_sec"] == flops(4)
        assert figures["device/samples_per_sec"] == 4
        assert figures["device/mfu_peak_tflops"] == pytest.approx(1e-6, rel=1e-12)
        assert figures["meter/counted_signatures"] == 1
        assert figures["meter/dropped_steps"] == 3
        assert figures["meter/step"] == 6


def test_a_step_that_was_not_counted_has_the_work_of_the_one_that_was(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=1)

    assert meter.signatures[0].works == []  # the first step of all does what none after it does

    train(meter, model, optimizer, steps=5)
    train(meter, model, optimizer, steps=1, samples=5)  # is counted
    train(meter, model, optimizer, steps=1, samples=5)
    train(meter, model, optimizer, steps=1)
    meter._settle()

    assert [(one.number, one.dropped, one.signatures) for one in meter._samples] == [
        (1, "warm-up", (1, 2)), (2, "counted", (1, 2)), (3, "warm-up", (1, 2)), (4, "", (1, 2)), (5, "", (1, 2)),
        (6, "", (1, 2)), (7, "counted", (3, 2)), (8, "", (3, 2)), (9, "", (1, 2)),
    ]  # fmt: skip
    assert [one.work.model["float32"] for one in meter._samples] == [flops(4)] * 6 + [flops(5)] * 2 + [flops(4)]
    assert [one.words for one in meter.signatures] == [f"4x{IN}", "the optimizer's step", f"5x{IN}"]


def several(meter, model, optimizer, sizes):
    for samples in sizes:
        train(meter, model, optimizer, steps=2, samples=samples)


def test_many_shapes_are_all_counted_and_said(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=3)
    with pytest.warns(UserWarning, match=r"8 kinds of micro-batches were counted, the last 11x6: each further one"):
        several(meter, model, optimizer, range(5, 15))
    figures = meter.read()
    rows = sum(range(5, 15))

    assert figures["meter/counted_signatures"] == 11
    assert figures["meter/dropped_steps"] == 3 + 10
    assert figures["device/flops_per_sec"] == pytest.approx(flops(rows) / 10)
    assert figures["device/samples_per_sec"] == rows / 10
    assert sum(one.counted is not None for one in meter.signatures) == 8  # the others' tables are let go


def muon_flops(rows, columns):
    """Newton and Schulz five times: X X^T, of that the square, and that times X, X being no taller than wide."""
    low, high = sorted((rows, columns))
    return 5 * (2 * low * low * high + 2 * low**3 + 2 * low * low * high)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_optimizers_flops_are_the_hardwares_and_counted_once(ticks, accumulation):
    model = nn.Sequential(nn.Linear(IN, WIDE, bias=False), nn.ReLU(), nn.Linear(WIDE, OUT, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=1e-3)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=5, accumulation=accumulation)
    figures, muon = meter.read(), muon_flops(IN, WIDE) + muon_flops(WIDE, OUT)

    assert figures["meter/flops_per_step"] == accumulation * flops(4)
    assert figures["device/mfu"] == pytest.approx(flops(4) / 1e6)
    assert figures["device/hfu"] == pytest.approx((accumulation * flops(4) + muon) / accumulation / 1e6)
    assert [len(one.works) for one in meter.signatures] == [1, 1]


@pytest.mark.parametrize("muon_first", [True, False])
def test_of_several_optimizers_the_flops_of_all_are_counted_whoever_steps_first(ticks, muon_first):
    model = nn.Sequential(nn.Linear(IN, WIDE, bias=False), nn.ReLU(), nn.Linear(WIDE, OUT, bias=False))
    both = [torch.optim.Muon(model[0].parameters(), lr=1e-3), torch.optim.SGD(model[2].parameters(), lr=1e-3)]
    both = both if muon_first else both[::-1]
    meter = metered(model, both)
    for micro in range(10):
        with meter.step(batch := torch.randn(4, IN)):
            model(batch).square().mean().backward()
            if micro % 2:
                for optimizer in both:
                    optimizer.step()
    figures = meter.read()

    assert figures["device/mfu"] == pytest.approx(flops(4) / 1e6)
    assert figures["device/hfu"] == pytest.approx((2 * flops(4) + muon_flops(IN, WIDE)) / 2 / 1e6)


@pytest.mark.parametrize("interpolate", [True, False])
def test_of_batches_without_a_tensor_the_mean_of_those_counted_is_said_and_that_it_is_one(ticks, interpolate):
    def texts():
        for rows in range(1, 8):
            with meter.step(["a text"] * rows):
                model(torch.ones(rows, IN)).mean().backward()
                optimizer.step()

    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, interpolate=interpolate)
    with pytest.warns(UserWarning, match="a batch without tensors: its FLOPs depend on more than shapes"):
        texts()

    assert meter.read()["meter/flops_per_step"] == (flops(2) + flops(3) + flops(5)) // 3  # its 1st, 2nd and 4th again
    assert next(len(one.works) for one in meter.signatures) == 3


def test_frozen_parameters_are_noticed_and_nothing_wrong_is_said_meanwhile(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=5)
    assert meter.read()["meter/flops_per_step"] == flops(4)

    model[0].requires_grad_(False)
    train(meter, model, optimizer, steps=3)
    figures = meter.read()
    assert "device/mfu" not in figures  # which of the steps were frozen is not known
    assert figures["device/step_s"] == 1

    train(meter, model, optimizer, steps=3)
    figures = meter.read()
    assert figures["meter/flops_per_step"] == flops(4, first_trained=False)
    assert figures["device/mfu"] == pytest.approx(flops(4, first_trained=False) / 1e6)
    assert figures["meter/counted_signatures"] == 1


def test_flops_that_values_decide_are_counted_again_and_the_others_estimated(ticks):
    class Lengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(IN, OUT, bias=False)

        def forward(self, x):
            return self.layer(x).values()

    def batch(*lengths):
        return torch.nested.nested_tensor([torch.ones(n, IN) for n in lengths], layout=torch.jagged)

    model = Lengths()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    for lengths in [(1, 2), (2, 3), (4, 5), (2, 2), (7, 7), (8, 9)]:  # the second, third and fifth are counted
        x = batch(*lengths)
        with meter.step(x):
            model(x).sum().backward()
            optimizer.step()
    figures = meter.read()
    one = 2 * 2 * IN * OUT  # of a position, forward and weight's gradient

    assert [work.model["float32"] for work in meter.signatures[0].works] == [5 * one, 9 * one, 14 * one]
    assert figures["meter/counted_signatures"] == 1
    assert figures["meter/dropped_steps"] == 4
    assert figures["meter/estimated_steps"] == 2
    assert figures["device/flops_per_sec"] == round((5 + 9 + 14) * one / 3)


def test_what_is_not_the_same_each_time_is_found_out(ticks, monkeypatch):
    monkeypatch.setattr(signature, "_AGAIN", 4)

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.skip = nn.Linear(IN, IN), nn.Linear(IN, OUT), False

        def forward(self, x):
            return self.other(x if self.skip else self.one(x))

    model = Skipping()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=4)
    assert meter.read()["meter/flops_per_step"] == 2 * 2 * 4 * IN * (IN + OUT) + 2 * 4 * IN * OUT
    model.skip = True
    with pytest.warns(UserWarning, match=f"4x{IN}: its FLOPs depend on more than shapes, 1008 and 288"):
        train(meter, model, optimizer, steps=2)
    figures = meter.read()

    assert figures["meter/flops_per_step"] == (1008 + 288) / 2
    assert figures["meter/estimated_steps"] == 1


def test_what_only_the_hardware_does_otherwise_is_said_so(ticks, monkeypatch):
    """With a mask that leaves something out, attention takes another way, on which all pairs are computed."""
    monkeypatch.setattr(signature, "_AGAIN", 4)
    model = llama()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    whole, padded = tokens(), tokens()
    padded["attention_mask"][0, :5] = 0
    learn(meter, model, optimizer, [whole] * 4)
    hardware = [
        ops.loc[ops["phase"] != "optimizer", "flops_hardware"].sum()
        for ops in (gpuprof.count(model, batch).ops for batch in (whole, padded))
    ]

    assert hardware[0] < hardware[1]
    said = f"its FLOPs on the hardware depend on more than shapes, {hardware[0]} and {hardware[1]}: the mean"
    with pytest.warns(UserWarning, match=said):
        learn(meter, model, optimizer, [padded])


def test_a_signature_is_counted_twice_in_all(ticks, monkeypatch):
    monkeypatch.setattr(signature, "_AGAIN", 4)
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=30)

    assert [len(one.works) for one in meter.signatures] == [2, 2]
    assert meter.read()["meter/dropped_steps"] == 3 + 1


def test_between_shapes_flops_are_a_polynomial(ticks):
    model = llama()
    optimizer = sgd(model)
    meter = gpuprof.Meter(model, optimizer, peak_tflops=1.0, interpolate=True)
    learn(meter, model, optimizer, [tokens(4)] + [tokens(length) for length in (4, 6, 9, 12, 16)])
    meter.read()
    learn(meter, model, optimizer, [tokens(10), tokens(11), tokens(17)])
    figures = meter.read()
    between = {length: gpuprof.count(model, tokens(length)).ops for length in (10, 11, 17)}
    by_count = [
        ops.loc[ops["phase"].isin(["forward", "backward"]), "flops_causal"].sum() for ops in between.values()
    ]  # fmt: skip

    assert figures["meter/counted_signatures"] == 6  # beyond the longest nothing is taken for granted
    assert figures["meter/dropped_steps"] == 6 + 1
    assert [sum(one.work.model.values()) for one in meter.signatures if one.key][-3:] == by_count
    assert figures["device/flops_per_sec"] == sum(by_count[:2]) / 2


def test_between_shapes_that_are_multiples_nothing_is_known_of_others(ticks):
    class Padding(nn.Module):
        def __init__(self):
            super().__init__()
            self.product = nn.Linear(IN, OUT, bias=False)

        def forward(self, x):
            return self.product(nn.functional.pad(x, (0, 0, 0, -len(x) % 16)))

    model = Padding()
    optimizer = sgd(model)
    meter = gpuprof.Meter(model, optimizer, peak_tflops=1.0, interpolate=True)
    said = []
    for rows in (16, 16, 32, 48, 80, 112, 64, 17, 96, 33):
        with meter.step(torch.randn(rows, IN)):
            model(torch.randn(rows, IN)).sum().backward()
            optimizer.step()
        said.append(meter.read().get("meter/flops_per_step"))

    # nothing needs the gradient of the input
    assert said[1:] == [2 * 2 * rows * IN * OUT for rows in (16, 32, 48, 80, 112, 64, 32, 96, 48)]
    assert [len(one.works) for one in meter.signatures if one.key] == [1, 1, 1, 1, 1, 0, 1, 1, 1]
