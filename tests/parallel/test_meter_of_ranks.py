"""Two ranks with a meter each, and their figures together."""

import pytest
import ranks
import torch
import torch.distributed as dist
from loops import IN, PEAK_TFLOPS, flops, metered, net, sgd
from torch import nn

from gpuprof.meter import clock


class _Ticking:
    """As the fixture has it, of another length on each rank."""

    def __init__(self, second):
        self.now, self.second = 0.0, second

    def perf_counter(self):
        self.now += self.second
        return self.now


def _train(meter, model, optimizer, samples, steps=5):
    for _ in range(steps):
        batch = torch.randn(samples, IN)
        with meter.step(batch):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def together():
    """A rank with four samples in 1 s, one with six in 2 s; each counts its own, in the same steps."""
    rank = dist.get_rank()
    clock.time = _Ticking(1.0 + rank)
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    _train(meter, model, optimizer, samples=4 + 2 * rank)
    alone = meter.read()
    _train(meter, model, optimizer, samples=4 + 2 * rank)
    return [alone, meter.read(reduce=True), meter.read(reduce=True)]


def without_one():
    """A rank that has nothing to say: the others still come through, without figures of all."""
    rank = dist.get_rank()
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    _train(meter, model, optimizer, samples=4)
    if rank:
        meter.read()
    return meter.read(reduce=True)


def losses():
    """Bit for bit the same with and without, on both ranks."""
    found = []
    for with_meter in (True, False):
        torch.manual_seed(dist.get_rank())
        model = nn.parallel.DistributedDataParallel(net())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        meter = metered(model, optimizer) if with_meter else None
        for number in range(12):
            batch = torch.randn(3 + number % 2, IN)
            if meter is not None:
                meter.begin()
                meter.given(batch)
            with model.no_sync() if number % 2 == 0 else torch.enable_grad():
                loss = model(batch).square().mean()
                loss.backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
            found.append(loss.item())
            if meter is not None:
                meter.end()
    return found[:12] == found[12:]


@pytest.fixture(scope="module")
def both():
    return ranks.launch(__file__, ["together", "without_one", "losses"])


def test_each_rank_has_its_own_and_all_have_those_of_both(both):
    for rank, (alone, reduced, empty) in enumerate(one["together"] for one in both):
        assert alone["device/mfu"] == pytest.approx(flops(4 + 2 * rank) / (1 + rank) / (PEAK_TFLOPS * 1e12))
        assert "mfu" not in alone
        assert reduced["device/step_s"] == 1 + rank
        assert reduced["step_s"] == 2
        assert reduced["samples_per_sec"] == 4 / 1 + 6 / 2
        assert reduced["flops_per_sec"] == flops(4) / 1 + flops(6) / 2
        assert reduced["mfu"] == pytest.approx(5 * (flops(4) + flops(6)) / (5 * 1 + 5 * 2) / 1e6)
        assert reduced["meter/flops_per_step"] == flops(4 + 2 * rank)
        assert "mfu" not in empty


def test_where_a_rank_has_no_steps_there_are_no_figures_of_all(both):
    assert "device/mfu" in both[0]["without_one"]
    assert "device/mfu" not in both[1]["without_one"]
    assert not any("mfu" in one["without_one"] for one in both)


def test_losses_of_two_ranks_are_the_same_with_and_without(both):
    assert all(one["losses"] for one in both)
