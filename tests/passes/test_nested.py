"""Nested tensors, jagged and strided, made in a model and given to it: what is counted follows their lengths."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import gpuprof
from gpuprof.analysis.totals import totals
from gpuprof.theory.nested import packed_shape
from gpuprof.workload.nested import part_shapes

LENGTHS = (2, 3, 4)
TOKENS, SQUARES, LONGEST = sum(LENGTHS), sum(n * n for n in LENGTHS), max(LENGTHS)
WIDTH, HEADS = 8, 2
LAYOUTS = pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=["jagged", "strided"])


def sequences():
    return [torch.randn(length, WIDTH) for length in LENGTHS]


def nested(layout):
    return torch.nested.nested_tensor(sequences(), layout=layout)


class Packed(nn.Module):
    """What a model does with a nested tensor, its result as the tokens one after the other."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return torch.cat(list(self.layers(x).unbind()))


class Made(Packed):
    """The same, of sequences that it nests itself."""

    def __init__(self, layout, *layers):
        super().__init__(*layers)
        self.layout = layout

    def forward(self, *sequences):
        return super().forward(torch.nested.as_nested_tensor(list(sequences), layout=self.layout))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        def heads(y):
            if y.layout is torch.jagged:
                return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return y.view(len(LENGTHS), -1, HEADS, WIDTH // HEADS).transpose(1, 2).contiguous()

        y = scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x))).transpose(1, 2)
        return self.o(y.flatten(-2) if y.layout is torch.jagged else y.contiguous().view(len(LENGTHS), -1, WIDTH))


def flops(run):
    found = totals(run)
    return found["flops_forward"], found["flops_backward"], found["flops_hardware"]


@LAYOUTS
@pytest.mark.parametrize("given", [True, False], ids=["given", "made inside"])
def test_a_product_is_of_the_tokens(layout, given):
    """2 x 9 tokens x 8 x 5 weights. The input needs no gradient, so the backward is the weight's alone."""
    model = Packed(nn.Linear(WIDTH, 5)) if given else Made(layout, nn.Linear(WIDTH, 5))
    run = gpuprof.count(model, (nested(layout),) if given else tuple(sequences()))

    assert flops(run) == (720, 720, 1440)
    assert run.passes["count"].facts["ops_without_rule"] == []


@LAYOUTS
def test_the_mean_of_a_nested_output_is_a_loss(layout):
    """Two layers, so that one of the two has the gradient of its input."""
    run = gpuprof.count(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)), nested(layout))

    first = 2 * TOKENS * WIDTH * WIDTH
    assert flops(run) == (first + 720, first + 2 * 720, 2 * first + 3 * 720)


@LAYOUTS
def test_in_inference_mode_operators_arrive_whole(layout):
    model, x = Packed(Attention()), nested(layout)

    def step():
        with torch.inference_mode():
            model(x)

    assert flops(gpuprof.count(model, step=step, mode="forward"))[0] == 5536


@LAYOUTS
def test_attention_is_of_each_sequence_with_itself(layout):
    """Four projections, two products over 4 + 9 + 16 pairs in each head, four in the backward.

    On a CPU torch pads the products over pairs to the longest sequence and multiplies that. The first three
    projections have no gradient of their input.
    """
    projection = 2 * TOKENS * WIDTH * WIDTH
    pairs = 2 * SQUARES * WIDTH
    padded = 2 * len(LENGTHS) * LONGEST**2 * WIDTH

    run = gpuprof.count(Packed(Attention()), nested(layout))

    assert flops(run) == (4 * projection + 2 * pairs, 5 * projection + 4 * pairs, 9 * projection + 6 * padded)
    assert flops(run)[:2] == (5536, 7616)
    assert run.passes["count"].facts["ops_without_rule"] == []


@LAYOUTS
def test_a_feed_forward_block_with_norm_and_activation(layout):
    layers = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)
    run = gpuprof.count(Packed(*layers), nested(layout))

    forward = 2 * TOKENS * WIDTH * 32 * 2
    assert flops(run)[:2] == (forward, 2 * forward)  # the norm has weights, so every product has both gradients


def test_an_embedding_of_jagged_tokens():
    """2 x 9 tokens x 8 x 10 weights; the lookup itself is none, and its gradient is of the 9 rows."""
    tokens = torch.nested.nested_tensor([torch.arange(length) for length in LENGTHS], layout=torch.jagged)
    run = gpuprof.count(Packed(nn.Embedding(10, WIDTH), nn.Linear(WIDTH, 10)), tokens)

    assert flops(run) == (2 * TOKENS * WIDTH * 10, 4 * TOKENS * WIDTH * 10, 6 * TOKENS * WIDTH * 10)


def test_batched_products_of_two_ragged_sizes():
    """Of strided ones without heads torch multiplies one by one, and pads nothing."""

    class Scores(nn.Module):
        def forward(self, x):
            return torch.cat([part.flatten() for part in torch.bmm(x, x.transpose(1, 2)).unbind()])

    run = gpuprof.count(Scores(), nested(torch.strided), mode="forward")

    assert flops(run) == (2 * SQUARES * WIDTH, 0, 2 * SQUARES * WIDTH)


@pytest.mark.parametrize("known", [True, False], ids=["longest known", "longest not known"])
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_batch_of_weights_for_jagged_sequences(mode, known):
    """A layer, then each sequence by a matrix of its own: 720 FLOPs, done on sequences of 4, or of 9 tokens.

    Backward as much for the sequences, padded likewise, and for the matrices one by one; of the layer its weight.
    """

    class Batched(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Linear(WIDTH, WIDTH)
            self.weight = nn.Parameter(torch.randn(len(LENGTHS), WIDTH, 5))

        def forward(self, x):
            return torch.cat(list(torch.matmul(self.before(x), self.weight).unbind()))

    x = nested(torch.jagged)
    if not known:
        x = torch.nested.nested_tensor_from_jagged(x.values(), x.offsets())
    layer, done = 2 * TOKENS * WIDTH * WIDTH, 2 * len(LENGTHS) * (LONGEST if known else TOKENS) * WIDTH * 5
    run = gpuprof.count(Batched(), x, mode=mode)

    backward, hardware = (layer + 1440, 2 * layer + 2 * done + 720) if mode == "train" else (0, layer + done)
    assert flops(run) == (layer + 720, backward, hardware)
    assert gpuprof.profile(Batched(), x, mode=mode, steps=1, passes=["count", "trace"]).warnings == []


def test_jagged_sequences_summed_up_by_others():
    """Of each sequence 8 x 8 products over its tokens, to a dense result: 2 x 9 x 64, one by one."""

    class Gram(nn.Module):
        def forward(self, x):
            return torch.matmul(x.transpose(1, 2), x)

    assert flops(gpuprof.count(Gram(), nested(torch.jagged), mode="forward")) == (1152, 0, 1152)


@LAYOUTS
def test_every_pass_takes_them(layout):
    """Counted and traced calls agree, so nothing is withheld."""
    run = gpuprof.profile(Packed(Attention()), nested(layout), steps=1, peak_tflops=1)

    assert {name: outcome.status for name, outcome in run.passes.items() if name != "telemetry"} == dict.fromkeys(
        ("count", "time", "trace", "memory"), "done"
    )
    assert run.warnings == []
    assert totals(run)["mfu"] > 0
    activations = run.memory[run.memory["quantity"] == "activations"].set_index("module")["bytes"]
    assert activations["layers.0.q"] == 4 * TOKENS * WIDTH  # its input, kept for the gradient of the weight


@LAYOUTS
def test_a_step_of_the_users_own(layout):
    model, x = Packed(nn.Linear(WIDTH, 5)), nested(layout)
    run = gpuprof.count(model, step=lambda: model(x).sum().backward())

    assert flops(run)[0] == 720
    assert run.passes["count"].facts["inputs"] == "72 nested"


@LAYOUTS
def test_they_are_described_by_their_sequences(layout):
    run = gpuprof.count(Packed(nn.Linear(WIDTH, 5)), nested(layout), mode="forward")

    assert run.workload["inputs"] == [
        {"name": "0", "shape": [9, 8], "parts": [[2, 8], [3, 8], [4, 8]], "dtype": "float32"}
    ]
    assert run.workload["samples_per_step"] == 3


@pytest.mark.parametrize(
    ("parts", "packed"),
    [
        ([(2, 8), (3, 8)], (5, 8)), ([(2, 4, 3), (2, 5, 3)], (2, 9, 3)), ([(2, 2), (3, 3)], (13,)),
        ([(2, 8), (2, 8)], (4, 8)), ([(7,), (1,)], (8,)), ([], (0,)),
    ],
)  # fmt: skip
def test_packed_shapes(parts, packed):
    assert packed_shape(parts) == packed


def test_jagged_lengths_of_a_view_with_holes():
    values, offsets, lengths = torch.randn(10, 3), torch.tensor([0, 4, 10]), torch.tensor([2, 5])
    holes = torch.nested.nested_tensor_from_jagged(values, offsets, lengths)

    assert part_shapes(holes) == [(2, 3), (5, 3)]
    assert part_shapes(holes.transpose(1, 2)) == [(3, 2), (3, 5)]
