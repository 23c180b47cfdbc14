"""The meter on a device that runs behind the host, which it never waits for: a stand-in for CUDA."""

import pytest
import torch
from loops import IN, flops, metered, net, sgd, train

from gpuprof.hardware import nvml
from gpuprof.meter import machine, tokens
from gpuprof.meter import meter as meters
from gpuprof.meter.clock import Clock


class Device:
    """Comes to what it is given when the test says so; each event is a second after the last."""

    def __init__(self):
        self.given = self.done = self.made = 0

    def event(self, enable_timing):
        assert enable_timing
        self.made += 1
        return Event(self)


class Event:
    def __init__(self, device):
        self.device, self.at = device, None

    def record(self, stream):
        assert stream == "the stream of cuda:1"
        self.device.given += 1
        self.at = self.device.given

    def query(self):
        return self.at <= self.device.done

    def elapsed_time(self, other):
        assert self.query()
        assert other.query()
        return 1e3 * (other.at - self.at)

    def synchronize(self):
        raise AssertionError("the meter waits")


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: f"the stream of {of}")
    monkeypatch.setattr(meters, "Clock", lambda _: Clock(torch.device("cuda:1")))
    return device


def test_what_the_device_has_not_done_is_read_the_next_time(device):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=8)

    assert not any(name.startswith("device/") for name in meter.read())
    device.done = 2 * 5  # the end of the fifth step
    figures = meter.read()
    assert figures["device/step_s"] == 1
    assert figures["device/samples_per_sec"] == 4
    assert figures["meter/dropped_steps"] == 3
    assert figures["meter/step"] == 8
    device.done = device.given
    assert meter.read()["device/mfu"] == pytest.approx(flops(4) / 1e6)
    assert not any(name.startswith("device/") for name in meter.read())


def test_events_are_used_again(device):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    for _ in range(300):
        train(meter, model, optimizer)
        device.done = device.given - 20  # ten steps behind
    assert device.made < 2 * 64 + 20
    assert meter._samples[-1].number > 280 - 64
    assert {sample.time_s for sample in meter._samples} == {1.0}
    assert {sample.between_s for sample in meter._samples} == {None, 1.0}


def test_the_mask_is_summed_where_it_is_and_read_when_that_has_been_done(monkeypatch):
    """Its sum goes to page-locked memory behind the step; here such a cell is another tensor."""
    cells = []

    def empty(shape, dtype, pin_memory):
        assert pin_memory
        cells.append(torch.zeros(shape, dtype=dtype))
        return cells[-1]

    class There(torch.Tensor):
        is_cpu = property(lambda self: False)

    monkeypatch.setattr(tokens.torch, "empty", empty)
    mask = torch.tensor([[1, 1, 1, 0], [3, 0, 0, 0]]).as_subclass(There)
    padding = tokens.Padding(torch.device("cpu"))
    unmasked = padding.unmasked({"attention_mask": mask}, ["attention_mask"])

    assert unmasked[1] is cells[0]
    assert padding.real(unmasked) == 4
    assert padding.unmasked({"attention_mask": mask}, ["attention_mask"])[1] is cells[0]
    assert len(cells) == 1


def test_the_clock_of_the_device_is_read_with_the_figures(monkeypatch):
    class Gpu:
        def read(self, quantity):
            return {"sm_clock": 1755.0}[quantity]

    monkeypatch.setattr(machine.Machine, "clock_mhz", lambda self: Gpu().read("sm_clock"))
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer)

    assert meter.read()["device/clock_mhz"] == 1755.0


def test_without_nvml_there_is_no_clock(monkeypatch):
    def closed(uuid):
        raise machine.GpuprofError("no driver")

    monkeypatch.setattr(nvml, "open_device", closed)
    assert machine._gpu("GPU-none") is None


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits():
    model = net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    meter = metered(model, optimizer)

    def steps(number):
        for _ in range(number):
            batch = torch.randn(4, IN, device="cuda")
            mask = torch.ones(4, 3, device="cuda", dtype=torch.long)
            with meter.step({"x": batch, "input_ids": mask, "attention_mask": mask}):
                model(batch).square().mean().backward()
                optimizer.step()

    steps(5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(100)
        first = meter.read()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    figures = first | meter.read()

    assert figures["meter/flops_per_step"] == flops(4)
    assert figures["device/non_padding_tokens_per_sec"] == figures["device/tokens_per_sec"]
    assert figures["device/clock_mhz"] > 0
