"""Parts of a generation: which call is an encoding, a prefill or a step of decoding, and how long each took."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gpuprof
from gpuprof.passes import timing
from gpuprof.passes.phases import observed_phases
from gpuprof.workload import from_module


class Decoder(nn.Module):
    """Keeps its cache in an object that it hands back, or makes a new tuple each time."""

    def __init__(self, legacy=False):
        super().__init__()
        self.embed, self.head, self.legacy = nn.Embedding(8, 4), nn.Linear(4, 8), legacy

    def forward(self, input_ids, past_key_values=None):
        cache = () if self.legacy else past_key_values or SimpleNamespace()
        return self.head(self.embed(input_ids)), cache


class Plain(nn.Module):
    """Takes no cache at all, as models that keep it in buffers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)

    def forward(self, ids):
        return self.embed(ids)


class Translator(nn.Module):
    """Calls its encoder itself where nobody has done so before."""

    config = SimpleNamespace(is_encoder_decoder=True)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(8, 4), Decoder()

    def get_encoder(self):
        return self.encoder

    def forward(self, input_ids=None, encoder_outputs=None, decoder_input_ids=None, past_key_values=None):
        if encoder_outputs is None and input_ids is not None:
            self.encoder(input_ids)
        return self.decoder(decoder_input_ids, past_key_values)


def ids(samples, positions):
    return torch.zeros(samples, positions, dtype=torch.long)


def parts_of(model, step):
    """Phase, samples and positions of each part of a second step, and the phases that were told as it ran."""
    told = []
    with observed_phases(from_module(model, mode="generate", step=step), told.append) as phase:
        for _ in range(2):
            phase.start()
            told.clear()
            step()
        return [tuple(part) for part in phase.parts], told


@pytest.mark.parametrize("legacy", [False, True])
def test_a_prefill_and_steps_of_decoding(legacy):
    model = Decoder(legacy)

    def step():
        _, cache = model(ids(3, 5))
        for _ in range(2):
            _, cache = model(ids(3, 1), past_key_values=cache)

    parts, told = parts_of(model, step)
    assert parts == [("prefill", 3, 5), ("decode", 3, 1), ("decode", 3, 1)]
    assert told == ["prefill", "decode", "decode"]


def test_an_empty_cache_that_is_given_is_filled_first():
    model = Decoder()

    def step():
        cache = SimpleNamespace()
        for positions in (1, 1, 1):
            model(ids(2, positions), past_key_values=cache)

    assert [part[0] for part in parts_of(model, step)[0]] == ["prefill", "decode", "decode"]


def test_a_prefill_in_pieces_and_tokens_that_are_verified_together():
    model = Decoder()

    def step():
        cache = SimpleNamespace()
        for positions in (4, 4, 2, 1, 3):
            model(ids(1, positions), past_key_values=cache)

    assert [part[0] for part in parts_of(model, step)[0]] == ["prefill", "prefill", "prefill", "decode", "decode"]


@pytest.mark.parametrize("given", [True, False])
def test_each_generation_of_a_step_begins_with_a_prefill(given):
    model = Decoder()

    def step():
        for _ in range(2):
            cache = SimpleNamespace() if given else None
            _, cache = model(ids(1, 4), past_key_values=cache)
            model(ids(1, 1), past_key_values=cache)

    assert [part[0] for part in parts_of(model, step)[0]] == ["prefill", "decode"] * 2


def test_without_a_cache_every_call_is_a_prefill():
    model = Decoder()
    parts, _ = parts_of(model, lambda: [model(ids(1, 4 + more)) for more in range(3)])
    assert parts == [("prefill", 1, 4), ("prefill", 1, 5), ("prefill", 1, 6)]


def test_a_model_that_takes_no_cache_tells_by_its_positions():
    model = Plain()
    parts, _ = parts_of(model, lambda: [model(ids(2, positions)) for positions in (1, 1, 1)])
    assert [part[0] for part in parts] == ["prefill", "decode", "decode"]
    assert parts[0][1:] == (2, 1)
    parts, _ = parts_of(model, lambda: [model(ids(2, positions)) for positions in (4, 1, 6, 1)])
    assert [part[0] for part in parts] == ["prefill", "decode"] * 2


def test_an_encoder_that_is_called_first_or_by_the_model():
    model = Translator()

    def encoder_first():
        encoded = model.get_encoder()(ids(2, 7))
        _, cache = model(encoder_outputs=encoded, decoder_input_ids=ids(2, 1))
        model(encoder_outputs=encoded, decoder_input_ids=ids(2, 1), past_key_values=cache)

    parts, told = parts_of(model, encoder_first)
    assert parts == [("encode", 2, 7), ("prefill", 2, 1), ("decode", 2, 1)]
    assert told == ["encode", "prefill", "decode"]

    def by_the_model():
        _, cache = model(ids(2, 7), decoder_input_ids=ids(2, 3))
        model(decoder_input_ids=ids(2, 1), past_key_values=cache)

    assert parts_of(model, by_the_model)[0] == [("prefill", 2, 3), ("decode", 2, 1)]


def test_parts_take_the_whole_step_between_them(monkeypatch):
    """By a clock that goes on by one at each look: step, prefill, decode, decode, end."""
    model = Decoder()

    def step():
        _, cache = model(ids(3, 5))
        for _ in range(2):
            model(ids(3, 1), past_key_values=cache)

    workload = from_module(model, mode="generate", step=step)
    clock = iter(range(100, 200))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(timing, "reference_product", lambda: None)
    samples, parts, _ = timing.measure(workload, 2, lambda _: None, lambda: None, opened=90.0)
    # looks: 100 before all; of the first step 101, prefill 102, decode 103 and 104, end 105; then 106 to 110
    assert parts.to_numpy().tolist() == [
        [0, 0, 0, "prefill", 3, 5, 10.0, 2.0],
        [0, 0, 1, "decode", 3, 1, 12.0, 1.0],
        [0, 0, 2, "decode", 3, 1, 13.0, 1.0],
        [0, 1, 0, "prefill", 3, 5, 15.0, 2.0],
        [0, 1, 1, "decode", 3, 1, 17.0, 1.0],
        [0, 1, 2, "decode", 3, 1, 18.0, 1.0],
    ]
    assert samples[["step", "phase", "time_s"]].to_numpy().tolist() == [
        [0, "step", 4.0], [0, "prefill", 2.0], [0, "decode", 2.0],
        [1, "step", 4.0], [1, "prefill", 2.0], [1, "decode", 2.0],
    ]  # fmt: skip


def test_every_pass_tells_the_same_parts_apart():
    model = Decoder()

    def step():
        with torch.no_grad():
            _, cache = model(ids(3, 5))
            for _ in range(2):
                model(ids(3, 1), past_key_values=cache)

    run = gpuprof.profile(model, mode="generate", step=step, steps=2)
    head = run.ops[run.ops["module"] == "head"].groupby("phase")["flops_full"].sum()
    assert head.to_dict() == {"prefill": 2 * 3 * 5 * 4 * 8, "decode": 2 * 2 * 3 * 4 * 8}
    assert set(run.kernels["phase"]) == {"prefill", "decode"} == set(run.samples["phase"]) - {"step", "reference"}
    begun = run.timeline[run.timeline["event"] == "begin"]["phase"].tolist()
    assert begun == ["prefill", "prefill", "decode", "decode"]
    assert run.modules().set_index("module").loc["", "flops_forward"] == 2 * 3 * 7 * 4 * 8


def test_a_cache_by_its_place_is_one():
    model = Decoder()

    def step():
        _, cache = model(ids(2, 5))
        for _ in range(2):
            _, cache = model(ids(2, 1), cache)

    assert parts_of(model, step)[0] == [("prefill", 2, 5), ("decode", 2, 1), ("decode", 2, 1)]


class Renamed(Decoder):
    """Takes its cache under a new name, and still answers to the old one."""

    def forward(self, input_ids, cache=None, **kwargs):
        return super().forward(input_ids, cache or kwargs.get("past_key_values"))


def test_a_cache_under_an_older_name_is_one():
    model = Renamed()

    def step():
        _, cache = model(ids(2, 5))
        model(ids(2, 1), past_key_values=cache)

    assert parts_of(model, step)[0] == [("prefill", 2, 5), ("decode", 2, 1)]
