"""Recurrent layers: every gate weight meets every token once.

So the forward costs exactly 2 x tokens x weights, for any number of layers, both directions and projections,
because the weights come as matrices whose shapes already say so. Each of the two backward products (data and
weights) costs the same again.

Elementwise work is an estimate of 5 FLOPs per gate pre-activation (adding the two products and their biases,
the activation, and its share of the state update), and twice that backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .rules import Cost, TensorSpec, flop_rule

GATE_FLOPS = 5


def _cost(tokens: int, weights: Sequence[TensorSpec], products: int = 1, gate_flops: int = GATE_FLOPS) -> Cost:
    """Cost of a stack of recurrent layers.

    Args:
        tokens: batch times time steps, or the rows of a packed sequence.
        weights: all parameters of the stack; only the matrices count: input (gates x hidden, features),
            hidden (gates x hidden, hidden) and projection (projected, hidden).
        products: 1 for the forward; backward 1 for the data and 1 for the weights.
        gate_flops: vector FLOPs per gate pre-activation.
    """
    matrices = [weight for weight in weights if len(weight.shape) == 2]
    gates = matrices[0].shape[0] if matrices else 0
    # The input and the hidden matrix of a layer both have a row per gate; the projection has not.
    rows = sum(matrix.shape[0] for matrix in matrices if matrix.shape[0] == gates) // 2
    return Cost(
        full=products * 2 * tokens * sum(matrix.numel for matrix in matrices),
        vector=gate_flops * tokens * rows,
    )


def _tokens(x: TensorSpec) -> int:
    return math.prod(x.shape[:-1])


@flop_rule("aten::lstm.input", "aten::gru.input", "aten::rnn_tanh.input", "aten::rnn_relu.input", kind="recurrent")
def _stack(x: TensorSpec, hidden: Any, weights: Sequence[TensorSpec], *_: Any, out: Any, **__: Any) -> Cost:
    return _cost(_tokens(x), weights)


@flop_rule("aten::lstm.data", "aten::gru.data", "aten::rnn_tanh.data", "aten::rnn_relu.data", kind="recurrent")
def _packed_stack(
    x: TensorSpec, batch_sizes: Any, hidden: Any, weights: Sequence[TensorSpec], *_: Any, out: Any, **__: Any
) -> Cost:
    return _cost(_tokens(x), weights)


@flop_rule("aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell", "aten::rnn_relu_cell", kind="recurrent")
def _cell(x: TensorSpec, hidden: Any, w_ih: TensorSpec, w_hh: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return _cost(_tokens(x), (w_ih, w_hh))


@flop_rule("aten::_cudnn_rnn", "aten::miopen_rnn", kind="recurrent")
def _fused_stack(x: TensorSpec, weights: Sequence[TensorSpec], *_: Any, out: Any, **__: Any) -> Cost:
    return _cost(_tokens(x), weights)


@flop_rule("aten::_cudnn_rnn_backward", "aten::miopen_rnn_backward", kind="recurrent")
def _fused_stack_backward(x: TensorSpec, weights: Sequence[TensorSpec], *rest: Any, out: Any, **_: Any) -> Cost:
    # The mask comes last: (input, hx, cx, weight). The data gradients are always computed, the others need
    # them.
    return _cost(_tokens(x), weights, products=1 + bool(rest[-1][3]), gate_flops=2 * GATE_FLOPS)


@flop_rule("aten::mkldnn_rnn_layer", kind="recurrent")
def _mkldnn_layer(x: TensorSpec, w_ih: TensorSpec, w_hh: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return _cost(_tokens(x), (w_ih, w_hh))


@flop_rule("aten::mkldnn_rnn_layer_backward", kind="recurrent")
def _mkldnn_layer_backward(x: TensorSpec, w_ih: TensorSpec, w_hh: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return _cost(_tokens(x), (w_ih, w_hh), products=2, gate_flops=2 * GATE_FLOPS)


@flop_rule("aten::_thnn_fused_lstm_cell", "aten::_thnn_fused_gru_cell", kind="vector")
def _fused_gates(input_gates: TensorSpec, *_: Any, out: Any, **__: Any) -> Cost:
    return Cost(vector=GATE_FLOPS * input_gates.numel)


@flop_rule("aten::_thnn_fused_lstm_cell_backward_impl", "aten::_thnn_fused_gru_cell_backward", kind="vector")
def _fused_gates_backward(*_: Any, out: Sequence[TensorSpec], **__: Any) -> Cost:
    return Cost(vector=2 * GATE_FLOPS * out[0].numel)
