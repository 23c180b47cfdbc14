from __future__ import annotations

import pytest
import torch
from torch import nn

from gpuprof.theory import TensorSpec, cost_of

T = TensorSpec
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def layer_flops(gates: int, tokens: int, features: int, hidden: int, layers: int, directions: int, proj: int) -> int:
    state = proj or hidden
    flops = 0
    for layer in range(layers):
        width = features if layer == 0 else directions * state
        weights = gates * hidden * (width + state) + (proj * hidden if proj else 0)
        flops += directions * 2 * tokens * weights
    return flops


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_forward_and_backward_as_torch_runs_them_on_the_cpu(kind, bidirectional, layers, record):
    module = kind(4, 8, layers, bidirectional=bidirectional)
    x = torch.randn(5, 2, 4, requires_grad=True)
    with record() as forward:
        out, _ = module(x)
    with record() as backward:
        out.sum().backward()
    expected = layer_flops(GATES[kind], 10, 4, 8, layers, 1 + bidirectional, 0)
    assert sum(call.cost.full for call in forward) == expected
    # A path that runs step by step leaves out the gradient of the constant first state.
    total = sum(call.cost.full for call in backward)
    assert 1.8 * expected < total <= 2 * expected
    if kind is nn.LSTM:
        assert total == 2 * expected


@pytest.mark.parametrize("proj", [0, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_from_its_schema(proj, bidirectional, spec):
    module = nn.LSTM(4, 8, 2, bidirectional=bidirectional, proj_size=proj)
    weights = spec(list(module._flat_weights))
    tail = (2, 8, proj, 2, False, 0.0, True, bidirectional, [], None)
    args = T((5, 2, 4)), weights, 4, None, T(()), T(()), *tail
    forward, kind = cost_of("aten::_cudnn_rnn.default", args, {}, ())
    expected = layer_flops(4, 10, 4, 8, 2, 1 + bidirectional, proj)
    assert (forward.full, kind) == (expected, "recurrent")
    for needs_weights, times in ((True, 2), (False, 1)):
        args = (T((5, 2, 4)), weights, 4, T(()), T(()), T(()), T(()), T(()), None, None, *tail, T(()))
        args = (*args, [True, False, False, needs_weights])
        assert cost_of("aten::_cudnn_rnn_backward.default", args, {}, ())[0].full == times * expected


def test_a_packed_sequence_has_as_many_tokens_as_rows(spec):
    weights = spec(list(nn.GRU(4, 8)._flat_weights))
    args = T((8, 4)), T((5,), "int64"), T((1, 2, 8)), weights, True, 1, 0.0, True, False
    cost, _ = cost_of("aten::gru.data", args, {}, ())
    assert cost.full == layer_flops(3, 8, 4, 8, 1, 1, 0)
    assert cost.vector == 5 * 8 * 3 * 8


def test_cells(spec):
    cell = nn.LSTMCell(4, 8)
    state = [T((2, 8)), T((2, 8))]
    args = T((2, 4)), state, spec(cell.weight_ih), spec(cell.weight_hh), T((32,)), T((32,))
    assert cost_of("aten::lstm_cell.default", args, {}, ())[0].full == 2 * 2 * 32 * 12
