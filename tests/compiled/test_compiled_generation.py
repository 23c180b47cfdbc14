"""Compiled steps of decoding: each graph has the phase of its call; sizes of a cache decide how many there are."""

import pytest
import torch
from torch import nn

import gpuprof
from gpuprof.analysis.budget import budget
from gpuprof.analysis.fused import lines

SAMPLES, PROMPT, NEW, ROOM, WIDTH = 2, 8, 4, 16, 16


class Decoder(nn.Module):
    """A layer, and a head over the mean of all that its cache holds, which grows or has room for all of it."""

    def __init__(self, grows):
        super().__init__()
        self.grows, self.up, self.head = grows, nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, inputs_embeds, past_key_values=None):
        new = torch.relu(self.up(inputs_embeds))
        if past_key_values is None:
            held = new if self.grows else torch.zeros(SAMPLES, ROOM, 2 * WIDTH)
        else:
            held = torch.cat([past_key_values[0], new], 1) if self.grows else past_key_values[0]
        return self.head(new + held.mean(1, keepdim=True))[:, -1:], (held,)


@pytest.fixture(scope="module", params=[False, True], ids=["room", "grows"])
def run(request):
    model = Decoder(request.param)
    model.compile()
    prompt = torch.randn(SAMPLES, PROMPT, WIDTH)

    def generate():
        with torch.no_grad():
            token, cache = model(prompt)
            for _ in range(NEW - 1):
                token, cache = model(token, cache)

    return gpuprof.profile(model, mode="generate", step=generate, passes=["count", "time", "trace"], steps=2)


def test_kernels_have_the_phase_of_the_call(run):
    compiled = run.kernels[run.kernels["compiled"] != ""]
    graphs = compiled["compiled"].str.partition("/")[0].astype(int)

    assert set(run.kernels["phase"]) == {"prefill", "decode"}
    phases = compiled.groupby(graphs)["phase"].unique().map(list)
    assert phases.tolist() == [["prefill"], *[["decode"]] * (len(phases) - 1)]
    assert run.graphs["calls"].tolist() == ([1, 3] if len(phases) == 2 else [1, 1, 2])
    assert set(run.nodes.loc[run.nodes["graph"] > 0, "phase"]) == {"decode"}


def test_parts_of_a_compiled_generation_are_timed(run):
    of_step = run.generation[run.generation["step"] == 0]

    assert of_step["phase"].tolist() == ["prefill", "decode", "decode", "decode"]
    assert of_step["positions"].tolist() == [PROMPT, 1, 1, 1]
    found = budget(run, phase="decode")
    assert found.parts["time_s"].sum() == pytest.approx(found.step_s)
    assert found.number == NEW - 1


def test_flops_are_known_where_a_graph_has_one_size(run):
    product = 2 * SAMPLES * WIDTH * 2 * WIDTH  # of one position, in each of both layers
    of_graph = run.nodes.groupby("graph")
    flops = of_graph["flops_hardware"].agg(lambda known: known.sum(skipna=False))
    several = [line for line in lines(run) if "called with other sizes than compiled for" in line]

    if run.nodes["op"].str.startswith("aten::cat").any():  # it grows
        assert flops.iloc[:2].tolist() == [2 * PROMPT * product, 2 * product]
        assert flops.isna().tolist() == [False, False, True]
        assert len(several) == 1
    else:
        assert (flops.iloc[0], flops.iloc[1:].sum()) == (2 * PROMPT * product, 2 * (NEW - 1) * product)
        assert several == []
