"""A step that gpuprof itself records gives the same rows from the profiler's binding and from the file it exports."""

from collections import Counter

import pandas as pd
import pytest
import torch
from torch import nn

import gpuprof
from gpuprof.passes import counting, trace
from gpuprof.theory.rows import read_shapes
from gpuprof.workload import Options, build, from_module

ROWS = ["op", "phase", "kernel", "call", "shapes", "duration_ns", "start_ns"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        y = self.up(self.stem(x).relu()).flatten(2).transpose(1, 2)
        y = self.layer(y)
        y = nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)
        return self.recurrent(y)[0]


def net():
    torch.manual_seed(0)
    model = Net()
    return from_module(model, (torch.randn(2, 4, 9, 9),), {}, optimizer=torch.optim.AdamW(model.parameters()))


WORKLOADS = {
    "net": net,
    "llama": lambda: build("smollm2-135m", Options(batch_size=1, seq_len=8, optimizer="adamw")),
    "checkpointed": lambda: build("smollm2-135m", Options(batch_size=1, seq_len=8, checkpointing="non-reentrant")),
    "checkpointed, reentrant": lambda: build(
        "smollm2-135m", Options(batch_size=1, seq_len=8, checkpointing="reentrant")
    ),
}


@pytest.fixture(scope="module", params=WORKLOADS)
def recorded(request, tmp_path_factory):
    """The live tables of a step, the operators that were counted, and the run of the file that has the same step."""
    workload = WORKLOADS[request.param]()
    workload.step()
    counted = counting.count(workload)
    profiler, ownership = trace.record(workload, lambda: None)
    live = trace.ingest(profiler, ownership)
    path = tmp_path_factory.mktemp("recorded") / "trace.json"
    profiler.export_chrome_trace(str(path))
    return live, counted.ops, gpuprof.read_trace(path, step="all")


def in_order(kernels):
    return kernels.sort_values(["start_ns", "duration_ns", "op"], ignore_index=True)[[c for c in ROWS if c != "call"]]


def test_the_same_kernels(recorded):
    live, _, run = recorded
    theirs, ours = in_order(run.kernels), in_order(live.kernels)

    # what the step returns is detached after the backward: a recording has no mark that the forward is over
    after = (ours["op"] == "aten::detach") & (ours["phase"] == "other")
    assert after.sum() == 1
    ours.loc[after, "phase"] = "forward"
    pd.testing.assert_frame_equal(theirs, ours)


def flops(ops):
    """FLOPs of products and their calls, by phase, operator and shapes of the inputs.

    A recording does not say of written out attention that it is causal: its products are told over the whole square.
    """
    found = Counter()
    products = ops[ops["flops_full"].fillna(0) > 0]
    columns = ["phase", "op", "shapes", "dtype", "kind", "calls", "flops_causal", "flops_full", "flops_hardware"]
    for phase, op, shapes, dtype, kind, *figures in products[columns].itertuples(index=False, name=None):
        key = (phase, op.partition(".")[0], read_shapes(shapes)[0], dtype, kind)
        for name, figure in zip(columns[5:], figures, strict=True):
            if not (name == "flops_causal" and op.startswith("aten::bmm")):
                found[*key, name] += int(figure)
    return found


def test_the_same_flops(recorded):
    _, counted, run = recorded
    theirs, ours = flops(run.ops), flops(counted)

    # a checkpoint stops inside the last operator that it runs again, which a CPU's trace has all the same
    begun = [key for key in theirs if key not in ours]
    assert all(phase == "recompute" for phase, *_ in begun)
    assert {theirs.pop(key) for key in begun} in (set(), {30, 2 * 8 * 1536 * 576 * 30})
    assert theirs == ours
    assert run.passes["count"].facts["ops_unread"] == {}


def test_the_same_modules_by_their_classes(tmp_path):
    """Ranges of modules, which gpuprof's own trace does not need, and a penalty on a gradient."""
    workload = net()
    model, x = workload.model, torch.randn(2, 4, 9, 9, requires_grad=True)

    def step():
        (gradient,) = torch.autograd.grad(model.up(model.stem(x)).sum(), x, create_graph=True)
        (gradient.square().sum() + model(x).sum()).backward()

    step()
    with torch.profiler.profile(record_shapes=True, with_stack=True) as profiler:
        step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    run = gpuprof.read_trace(tmp_path / "trace.json", step="all")

    classes = dict(zip(run.tree["module"], run.tree["class"], strict=True))
    products = run.ops[run.ops["flops_full"].fillna(0) > 0]
    found = Counter()
    for module, phase, op, full in products[["module", "phase", "op", "flops_full"]].itertuples(index=False, name=None):
        found[classes.get(module, module), phase, op] += int(full)
    # 2 x batch x channels x 4 x 4 places, that the one gives and the other takes, x what each sums over
    stem, up = 2 * 2 * 8 * 16 * 2 * 9, 2 * 2 * 8 * 16 * 8 * 4
    for name, flops in ("Conv2d", stem), ("ConvTranspose2d", up):
        # for the penalty and for the output
        assert found[name, "forward", "aten::convolution"] == 2 * flops
        # of the input for the penalty, of input and weight in the end
        assert found[name, "backward", "aten::convolution_backward"] == 3 * flops
        # the first of these once more differentiated, by the weight and by what came from above
        assert found[name, "backward", "aten::convolution"] == 2 * flops
    assert {name for name, _, _ in found} == {
        "Conv2d", "ConvTranspose2d", "Linear", "LSTM", "MultiheadAttention", "Net",
    }  # fmt: skip
