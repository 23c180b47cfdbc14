from __future__ import annotations

import pytest
import torch
from torch import nn

from gpuprof.theory import TensorSpec, cost_of, rule_for
from gpuprof.theory.rules import bytes_of

T = TensorSpec
X = T((4, 6))


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "out", "flops"),
    [
        ("add.Tensor", (X, T((6,))), {}, X, 24),
        ("add_.Tensor", (X, X), {}, X, 24),
        ("mul.Tensor", (T((4, 1)), T((6,))), {}, X, 24),
        ("silu.default", (X,), {}, X, 2 * 24),
        ("gelu.default", (X,), {}, X, 5 * 24),
        ("gelu.default", (X,), {"approximate": "tanh"}, X, 9 * 24),
        ("sum.dim_IntList", (X, [1]), {}, T((4,)), 24),
        ("max.dim", (X, 1), {}, (T((4,)), T((4,), "int64")), 24),
        ("_softmax.default", (X, -1, False), {}, X, 5 * 24),
        ("_softmax_backward_data.default", (X, X, -1, "float32"), {}, X, 4 * 24),
        ("native_layer_norm.default", (X, [6], None, None, 1e-5), {}, (X, T((4, 1)), T((4, 1))), 7 * 24),
        ("native_batch_norm.default", (X, None, None, None, None, True, 0.1, 1e-5), {}, (X,), 7 * 24),
        ("native_batch_norm.default", (X, None, None, None, None, False, 0.1, 1e-5), {}, (X,), 2 * 24),
        ("max_pool2d_with_indices.default", (T((2, 8, 8)), [2, 2]), {}, (T((2, 4, 4)),), 32 * 4),
        ("avg_pool2d.default", (T((2, 9, 9)), [3]), {}, T((2, 3, 3)), 18 * 9),
        ("avg_pool2d_backward.default", (T((2, 3, 3)), T((2, 9, 9)), [3, 3]), {}, T((2, 9, 9)), 18 * 9),
        ("_adaptive_avg_pool2d.default", (T((2, 8, 8)), [1, 1]), {}, T((2, 1, 1)), 128),
        ("_adaptive_avg_pool2d_backward.default", (T((2, 1, 1)), T((2, 8, 8))), {}, T((2, 8, 8)), 128),
        ("upsample_bilinear2d.default", (T((2, 4, 4)), [8, 8], False), {}, T((2, 8, 8)), 8 * 128),
        ("upsample_bilinear2d_backward.default", (T((2, 8, 8)), [8, 8]), {}, T((2, 4, 4)), 8 * 128),
        ("sort.default", (T((4, 8)),), {}, (T((4, 8)), T((4, 8), "int64")), 32 * 3),
        ("sort.stable", (T((8, 4)),), {"stable": True, "dim": 0}, (T((8, 4)), T((8, 4), "int64")), 32 * 3),
        ("topk.default", (X, 2), {}, (T((4, 2)), T((4, 2))), 24),
        ("embedding_dense_backward.default", (X, T((4,), "int64"), 100, -1, False), {}, T((100, 6)), 24),
        ("index_add_.default", (T((100, 6)), 0, T((4,), "int64"), X), {}, T((100, 6)), 24),
        ("index_put_.default", (T((100, 6)), [T((4,), "int64")], X, True), {}, T((100, 6)), 24),
        ("index_put_.default", (T((100, 6)), [T((4,), "int64")], X), {}, T((100, 6)), 0),
        ("_foreach_addcdiv_.ScalarList", ([X, X], [X, X], [X, X], [1.0, 1.0]), {}, None, 3 * 48),
        ("_foreach_sqrt.default", ([X, X],), {}, [X, X], 48),
        ("_foreach_norm.Scalar", ([X, X], 2), {}, [T(()), T(())], 2 * 48),
        ("clone.default", (X,), {}, X, 0),
        ("bernoulli_.float", (X, 0.5), {}, X, 0),
        ("_fft_r2c.default", (T((3, 8)), [1], 0, True), {}, T((3, 5), "complex64"), 5 * 24 * 3 // 2),
    ],
)  # fmt: skip
def test_stated_estimates(op, args, kwargs, out, flops):
    cost, kind = cost_of(f"aten::{op}", args, kwargs, out)
    assert (cost.full, cost.vector) == (0, flops)
    assert kind in ("vector", "movement")


def step(optimizer, record):
    """The calls of the second step, when all state exists."""
    model = nn.Linear(30, 20, bias=False)
    update = optimizer(model.parameters())
    for _ in range(2):
        model(torch.randn(2, 30)).sum().backward()
        with record() as calls:
            update.step()
        update.zero_grad()
    return calls


def test_fused_optimizers_by_hand(record):
    calls = step(lambda p: torch.optim.AdamW(p, fused=True), record)
    adam = next(call for call in calls if "_fused" in call.op)
    # Parameter, gradient and two moments are read, all but the gradient written; weight decay is on.
    assert (adam.cost.vector, adam.cost.nbytes) == (15 * 600, 7 * 600 * 4)
    calls = step(lambda p: torch.optim.SGD(p, momentum=0.9, fused=True), record)
    sgd = next(call for call in calls if "_fused" in call.op)
    assert (sgd.cost.vector, sgd.cost.nbytes) == (5 * 600, 5 * 600 * 4)


def test_the_ways_to_run_one_optimizer_agree_roughly(record):
    fused, foreach, single = (
        sum(call.cost.vector for call in step(lambda p, how=how: torch.optim.AdamW(p, **how), record))
        for how in ({"fused": True}, {"foreach": True}, {"foreach": False})
    )
    assert foreach == pytest.approx(fused, rel=0.3)
    assert single == pytest.approx(fused, rel=0.3)


def test_views_move_nothing_and_in_place_operators_are_rules_too():
    assert rule_for("aten::view.default").kind == "view"
    for name in ("add_", "mul_", "relu_", "clamp_", "sigmoid_", "addcmul_", "_foreach_mul_", "masked_fill_"):
        assert rule_for(f"aten::{name}.Anything") is not None, name


def test_bytes_of_nests():
    assert bytes_of([X, None, {"a": (X, 3)}]) == 2 * 96
