"""Tokens and samples of a step of the user's own: of all its calls of the model, or unknown."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gpuprof
from gpuprof.analysis.totals import totals


class Words(nn.Module):
    """A model that takes text, and a cache if it is given one."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, input_ids, past_key_values=None):
        return self.head(self.table(input_ids))


def per_step(model, step, *inputs, **options):
    run = gpuprof.profile(model, inputs, step=step, passes=("count", "time"), steps=2, **options)
    return run.workload["samples_per_step"], run.workload["tokens_per_step"], totals(run)


@pytest.mark.parametrize(("calls", "batch"), [(1, 4), (2, 4), (4, 2)])
@pytest.mark.parametrize("inputs", [(), (torch.ones(4, 8),)])
def test_samples_are_summed_over_the_calls_of_a_step(calls, batch, inputs):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def step():
        for _ in range(calls):
            model(torch.ones(batch, 8)).sum().backward()

    samples, tokens, sums = per_step(model, step, *inputs)

    assert (samples, tokens) == (calls * batch, None)
    assert sums["samples_per_s"] == pytest.approx(calls * batch / sums["step_s"])


@pytest.mark.parametrize("keyword", [True, False])
def test_tokens_are_summed_likewise_however_they_are_given(keyword):
    model = Words()

    def step():
        for batch in (torch.zeros(2, 5, dtype=torch.long), torch.zeros(1, 7, dtype=torch.long)):
            (model(input_ids=batch) if keyword else model(batch)).sum().backward()

    samples, tokens, sums = per_step(model, step)

    assert (samples, tokens) == (2 + 1, 2 * 5 + 7)
    assert sums["tokens_per_s"] == pytest.approx(17 / sums["step_s"])


def test_what_a_backward_runs_again_is_no_other_sample():
    model = nn.Linear(8, 8)

    def step():
        checkpoint(model, torch.ones(4, 8, requires_grad=True), use_reentrant=False).sum().backward()

    assert per_step(model, step)[0] == 4


def test_a_call_without_gradients_beside_others_brings_no_other_samples():
    model, ids = Words(), torch.zeros(2, 5, dtype=torch.long)

    def step():
        with torch.no_grad():  # a teacher's, or a generation
            wanted = model(ids)
            model(ids[:, :1], past_key_values=object())
        (model(ids) - wanted).square().sum().backward()

    assert per_step(model, step)[:2] == (2, 10)


def test_parts_that_are_called_alone_tell_no_samples():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    samples, _, sums = per_step(model, lambda: model[1](model[0](torch.ones(4, 8))).sum().backward(), torch.ones(4, 8))

    assert (samples, sums["samples_per_s"]) == (None, None)


def test_a_call_that_goes_on_from_a_cache_brings_no_samples():
    model, ids = Words(), torch.zeros(2, 5, dtype=torch.long)

    def step():
        model(ids)
        model(ids[:, :1], past_key_values=object())

    samples, tokens, _ = per_step(model, step, mode="forward")

    assert (samples, tokens) == (None, None)


def test_steps_of_various_lengths_have_no_rate():
    model, lengths = Words(), iter([5, 5, *range(6, 20)])

    def step():
        model(torch.zeros(2, next(lengths), dtype=torch.long)).sum().backward()

    assert per_step(model, step)[2]["tokens_per_s"] is None


def test_without_a_count_nothing_is_known_and_a_plain_step_stays():
    model, batch = nn.Linear(8, 8), torch.ones(4, 8)

    timed = gpuprof.profile(model, batch, step=lambda: model(batch).sum().backward(), passes=("time",), steps=2)
    plain = gpuprof.profile(model, batch, passes=("time",), steps=2)

    assert (timed.workload["samples_per_step"], plain.workload["samples_per_step"]) == (None, 4)
