from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from gpuprof.theory import TensorSpec, cost_of

T = TensorSpec
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def random_case(seed: int) -> dict:
    pick = random.Random(seed)
    dims = pick.choice([1, 2, 2, 3])
    groups, stride = pick.choice([1, 2, 3]), pick.randint(1, 3)
    return {
        "dims": dims,
        "groups": groups,
        "stride": stride,
        "dilation": pick.randint(1, 2),
        "padding": pick.randint(0, 2),
        "transposed": pick.random() < 0.5,
        "channels": (groups * pick.randint(1, 3), groups * pick.randint(1, 3)),
        "kernel": [pick.randint(1, 3) for _ in range(dims)],
        "batch": pick.randint(1, 3),
        "size": [pick.randint(5, 7) for _ in range(dims)],
    }


def multiplications(case: dict) -> int:
    """Counted by running it on ones: then every product adds one to the sum of the result.

    Padding is of ones too where it is multiplied with, and nothing is cropped off a transposed convolution.
    """
    c_in, c_out = case["channels"]
    weight_channels = (c_in, c_out // case["groups"]) if case["transposed"] else (c_out, c_in // case["groups"])
    weight = torch.ones(*weight_channels, *case["kernel"], dtype=torch.float64)
    pad = 0 if case["transposed"] else 2 * case["padding"]
    x = torch.ones(case["batch"], c_in, *(size + pad for size in case["size"]), dtype=torch.float64)
    run = (TRANSPOSED if case["transposed"] else CONVOLUTIONS)[case["dims"]]
    return int(run(x, weight, stride=case["stride"], dilation=case["dilation"], groups=case["groups"]).sum())


@pytest.mark.parametrize("seed", range(60))
def test_forward_and_both_gradients_cost_what_counting_products_says(seed, record):
    case = random_case(seed)
    c_in, c_out = case["channels"]
    weight_channels = (c_in, c_out // case["groups"]) if case["transposed"] else (c_out, c_in // case["groups"])
    weight = torch.randn(*weight_channels, *case["kernel"], requires_grad=True)
    x = torch.randn(case["batch"], c_in, *case["size"], requires_grad=True)
    bias = torch.randn(c_out, requires_grad=True)
    run = (TRANSPOSED if case["transposed"] else CONVOLUTIONS)[case["dims"]]
    shape = {name: case[name] for name in ("stride", "padding", "dilation", "groups")}
    with record() as calls:
        out = run(x, weight, bias, **shape)
        out.sum().backward()
    forward, backward = (call for call in calls if "convolution" in call.op)
    expected = 2 * multiplications(case)
    assert forward.cost.full == expected
    assert forward.cost.vector == backward.cost.vector == out.numel()
    assert backward.cost.full == 2 * expected
    for mask in ([True, False, False], [False, True, False]):
        alone, kind = cost_of(backward.op, (*backward.args[:-1], mask), {}, backward.out)
        assert (alone.full, alone.vector, kind) == (expected, 0, "convolution")


def test_depthwise_by_hand(record):
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    with record() as calls:
        layer(torch.randn(2, 64, 8, 8, requires_grad=True)).sum().backward()
    figures = [call.cost.full for call in calls if "convolution" in call.op]
    one = 2 * (2 * 64 * 8 * 8) * 9
    assert figures == [one, 2 * one]


@pytest.mark.parametrize(
    ("op", "extra"),
    [
        ("mkldnn_convolution", (None, [0, 0], [1, 1], [1, 1], 2)),
        ("cudnn_convolution", ([0, 0], [1, 1], [1, 1], 2, False, False, True)),
        ("cudnn_convolution_relu", (None, [1, 1], [0, 0], [1, 1], 2)),
        ("cudnn_convolution_add_relu", (T((1, 6, 3, 3)), 1.0, None, [1, 1], [0, 0], [1, 1], 2)),
        ("_slow_conv2d_forward", ([3, 3], None, [1, 1], [0, 0])),
        ("_conv_depthwise2d", ([3, 3], None, [1, 1], [0, 0], [1, 1])),
    ],
)
def test_kernels_agree(op, extra):
    found = cost_of(f"aten::{op}.default", (T((1, 4, 5, 5)), T((6, 2, 3, 3)), *extra), {}, T((1, 6, 3, 3)))
    assert found[0].full == 2 * 6 * 9 * 2 * 9


def test_transposed_kernels_agree():
    extra = [0, 0], [0, 0], [2, 2], [1, 1], 2, False, False, True
    args = T((1, 4, 5, 5)), T((4, 3, 3, 3)), *extra
    assert cost_of("aten::cudnn_convolution_transpose.default", args, {}, T((1, 6, 11, 11)))[0].full == 2 * 100 * 27


def test_deformed_convolution_of_torchvision():
    """Its products are those of a plain one; regions and suppressed boxes have none."""
    x, weight, out = TensorSpec((2, 4, 8, 8)), TensorSpec((6, 2, 3, 3)), TensorSpec((2, 6, 6, 6))
    args = (
        x,
        weight,
        TensorSpec((2, 18, 6, 6)),
        TensorSpec((2, 9, 6, 6)),
        TensorSpec((6,)),
        1,
        1,
        0,
        0,
        1,
        1,
        2,
        1,
        True,
    )
    assert cost_of("torchvision::deform_conv2d.default", args, {}, out)[0].full == 2 * out.numel * 2 * 9
    backward = cost_of("torchvision::_deform_conv2d_backward.default", (out, *args), {}, args[:5])[0]
    assert backward.full == 2 * 2 * out.numel * 2 * 9
    boxes = cost_of("torchvision::nms.default", (TensorSpec((10, 4)), TensorSpec((10,)), 0.5), {}, TensorSpec((3,)))[0]
    assert (boxes.full, boxes.vector) == (0, 9 * 45)
