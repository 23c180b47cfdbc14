import torch
from torch import nn

import gpuprof
from gpuprof.passes import reference


def test_it_takes_no_more_than_its_share_of_the_time(monkeypatch):
    moments = iter([0.0, 0.0, 1.0, 20.9, 21.0, 23.0, 62.9, 63.0, 64.0])
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(moments))
    measure = reference.reference_product()

    # 1 s, so that the next is due 1 / 0.05 s after; then 2 s
    assert [measure() for _ in range(5)] == [1.0, None, 2.0, None, 1.0]


def test_it_draws_nothing_from_the_random_numbers_of_the_model():
    before = torch.get_rng_state()
    assert reference.reference_product()() > 0

    assert torch.equal(torch.get_rng_state(), before)


def test_a_cpu_run_has_its_products_between_the_steps():
    run = gpuprof.profile(nn.Linear(4, 4), inputs=(torch.zeros(2, 4),), passes=("time",), steps=3, warmup=1)
    products = run.samples[run.samples["phase"] == "reference"]

    assert 1 <= len(products) <= 3
    assert set(products["step"]) <= {0, 1, 2}
    assert (products["time_s"] > 0).all()
