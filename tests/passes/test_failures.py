"""Steps that fail, in words; one pass that fails leaves the others; odd steps are measured all the same."""

import math
import weakref

import pytest
import torch
from torch import nn

import gpuprof
from gpuprof.errors import GpuprofError
from gpuprof.passes.failure import explain
from gpuprof.schema import UNATTRIBUTED
from gpuprof.workload import Options, build

PASSES = ["count", "time", "trace", "memory"]


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, given):
        raise ctx.error


class Broken(nn.Module):
    def __init__(self, where, error):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.where = where
        self.error = error

    def forward(self, x):
        x = self.linear(x)
        if self.where == "forward":
            raise self.error
        return FailingBackward.apply(x, self.error)


def broken(where, error):
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(Broken(where, error)))


def inputs():
    return torch.randn(2, 4)


def message(*args, **kwargs):
    with pytest.raises(GpuprofError) as caught:
        gpuprof.profile(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text, caught.value.__cause__


@pytest.mark.parametrize("passes", [[name] for name in PASSES] + [PASSES], ids=lambda names: names[-1])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_models_own_error(where, passes):
    error = ValueError("no\n  such   thing")
    text, cause = message(broken(where, error), inputs(), passes=passes)
    place = "the forward of 1.0" if where == "forward" else "the backward"
    assert text == f"the model raised in {place}: ValueError: no such thing"
    assert cause is error


def test_an_error_of_torchs_own_names_the_module_and_stays_short():
    text, _ = message(nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4)), inputs())
    assert text.startswith("the model raised in the forward of 1: RuntimeError: mat1 and mat2 shapes")
    text, _ = message(broken("forward", ValueError("long " * 1000)), inputs())
    assert text.endswith("...")


def test_an_error_in_the_loss_and_the_optimizer():
    model = nn.Linear(4, 4)
    text, _ = message(model, inputs(), loss=lambda out: out.nothing)
    assert text.startswith(
        "the loss raised AttributeError: 'Tensor' object has no attribute 'nothing' (test_failures.py:"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1)

    def fail(*_):
        raise ValueError("no step")

    optimizer.register_step_pre_hook(fail)
    text, _ = message(model, inputs(), optimizer=optimizer)
    assert text == "the model raised in the optimizer step: ValueError: no step"


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["cuda", "cpu", "python", "accelerator", "cublas", "cudnn", "cudnn 9", "driver", "system"],
)
def test_out_of_memory_says_what_to_lower(where, error):
    text, _ = message(broken(where, error), inputs(), passes=["count"])
    place = "the forward of 1.0" if where == "forward" else "the backward"
    assert text.startswith(f"out of memory in {place}: give smaller or fewer inputs")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of resource: shared memory, Required: 270336, Hardware limit: 232448"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
    ids=["triton", "access", "cublas"],
)
def test_another_failure_is_not_taken_for_it(error):
    text, _ = message(broken("forward", error), inputs(), passes=["count"])
    assert text.startswith("the model raised in the forward of 1.0: RuntimeError: ")


def test_out_of_memory_of_a_named_model_names_its_options(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_head": 2, "n_layer": 1,'
        '"n_positions": 16, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 1}'
    )
    workload = build(str(tmp_path), Options(device="cpu", dtype="float32", seq_len=8))
    failure = explain(torch.OutOfMemoryError("CUDA out of memory"), workload)
    assert failure.remedy == (
        "lower --batch-size or --seq-len, or give --dtype bfloat16 or --checkpointing non-reentrant"
    )


class FailsAt(nn.Module):
    """Fails in one of its calls."""

    def __init__(self, call):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.left = call

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise ValueError("this once")
        return self.linear(x)


# with no warm-up and one timed step: a call before the count and one for it, one to time, four in between,
# two to trace, one for memory
@pytest.mark.parametrize(
    ("call", "name"), [(1, "count"), (2, "count"), (3, "time"), (4, "trace"), (9, "trace"), (10, "memory")]
)
def test_one_pass_that_fails_leaves_the_others(call, name):
    run = gpuprof.profile(FailsAt(call), inputs(), passes=PASSES, warmup=0, steps=1)
    assert {n for n in PASSES if not run.done(n)} == {name}
    assert run.passes[name].status == "failed"
    assert run.passes[name].reason == "the model raised in the forward of FailsAt: ValueError: this once"
    assert run.warnings == [f"the {name} pass failed: {run.passes[name].reason}"]
    empty = {"count": run.ops, "time": run.samples, "trace": run.kernels, "memory": run.memory}
    assert {n for n, table in empty.items() if table.empty} == {name}
    assert len(run.tree) == 2  # also without the counting pass
    assert len(run.modules()) == 3
    assert run.to_dict()["passes"][name]["status"] == "failed"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_warned_of_and_measured(value):
    run = gpuprof.profile(nn.Linear(4, 4), torch.full((2, 4), value), passes=PASSES)
    assert [run.done(name) for name in PASSES] == [True] * 4
    (warning,) = run.warnings
    assert warning.startswith("the loss is ")
    assert run.modules().set_index("module").loc["", "flops_backward"] == 2 * 2 * 4 * 4


class Attention(nn.Module):
    is_causal, head_dim = True, 4

    def __init__(self, fused):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.fused = fused

    def forward(self, x):
        x = self.linear(x)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(4, 4), (0, 4)),
        (nn.Conv2d(4, 4, 3), (0, 4, 8, 8)),
        (Attention(True), (0, 2, 3, 4)),
        (Attention(True), (1, 2, 0, 4)),
        (Attention(False), (1, 2, 0, 4)),
    ],
    ids=["linear", "convolution", "no batch", "no sequence", "no sequence, eager"],
)
def test_inputs_of_no_size_do_no_work(model, shape):
    run = gpuprof.profile(model, torch.randn(shape), passes=PASSES)
    assert [run.done(name) for name in PASSES] == [True] * 4
    assert run.ops["flops_full"].sum() == run.ops["flops_causal"].sum() == 0


def test_a_model_without_parameters():
    run = gpuprof.profile(nn.ReLU(), inputs(), mode="forward", passes=PASSES)
    assert [run.done(name) for name in PASSES] == [True] * 4
    assert run.tree["params"].sum() == 0
    run = gpuprof.profile(nn.ReLU(), inputs().requires_grad_(), passes=PASSES)
    assert run.modules().set_index("module").loc["", "vector_flops_backward"] > 0
    text, _ = message(nn.ReLU(), inputs())
    assert text.startswith("Tensor, the model's output, holds no floating tensor that needs a gradient: ")


def test_a_step_that_never_calls_the_model():
    x = inputs()
    run = gpuprof.profile(nn.Linear(4, 4), step=lambda: x @ x.t(), passes=PASSES)
    assert [run.done(name) for name in PASSES] == [True] * 4
    modules = run.modules().set_index("module")
    assert modules.loc["", "flops_forward"] == 0
    assert modules.loc["", "calls"] == 0
    assert modules.loc[UNATTRIBUTED, "flops_forward"] == 2 * 2 * 4 * 2
    assert gpuprof.profile(nn.Linear(4, 4), step=lambda: None, passes=PASSES).done("trace")


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda out: out.detach().sum(), "a tensor that needs no gradient"),
        (lambda out: out, "a tensor of shape [2, 4]"),
        (lambda out: None, "a NoneType"),
    ],
)
def test_a_loss_that_cannot_go_backward(loss, what):
    text, _ = message(nn.Linear(4, 4), inputs(), loss=loss)
    assert text == (
        f"the loss (given) is no scalar tensor that needs a gradient, but {what}; give a loss function that returns "
        "one, or use --mode forward"
    )


def test_what_the_loss_raises_is_the_losss():
    def wrong(out):
        raise KeyError("labels")

    text, cause = message(nn.Linear(4, 4), inputs(), loss=wrong)
    assert text == f"the loss raised KeyError: 'labels' (test_failures.py:{wrong.__code__.co_firstlineno + 1})"
    assert isinstance(cause, KeyError)
    text, _ = message(nn.Linear(4, 4), inputs(), loss=nn.MSELoss())
    assert text.startswith("the loss raised TypeError: ")
    assert text.endswith(
        "missing 1 required positional argument: 'target': a loss is called with the model's output alone"
    )


def test_what_a_step_raises_is_the_steps_or_the_models():
    model = nn.Linear(4, 4)

    def wrong():
        model(inputs())
        raise OSError("the data is gone")

    text, _ = message(model, step=wrong)
    assert text == f"the step raised OSError: the data is gone (test_failures.py:{wrong.__code__.co_firstlineno + 2})"
    text, _ = message(model, step=lambda batch: model(batch))
    assert text.endswith("missing 1 required positional argument: 'batch': a step is called without arguments")
    text, _ = message(model, step=lambda: model(torch.ones(2, 5)))
    assert text.startswith("the model raised in the forward of Linear: RuntimeError: mat1 and mat2")


def test_a_frozen_model():
    text, _ = message(nn.Linear(4, 4).requires_grad_(False), inputs())
    assert "needs a gradient" in text


def test_tensors_of_a_failed_step_are_let_go():
    references = []

    class Holding(nn.Module):
        def forward(self, x):
            mine = x + 1
            references.append(weakref.ref(mine))
            raise ValueError("no")

    model = nn.Sequential(nn.Linear(4, 4), Holding())
    with pytest.raises(GpuprofError):
        gpuprof.profile(model, inputs(), passes=["count", "time"])
    assert [reference() for reference in references] == [None, None]


def test_tensors_of_a_failed_backward_are_let_go():
    references = []

    class Waiting(nn.Module):
        """A product whose backward still waits, with what it has saved, when another one fails."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            saved = x + 1
            references.append(weakref.ref(saved))
            waits = self.weight * saved  # made first, so run last
            return waits.sum() + FailingBackward.apply(self.weight * 2, ValueError("no")).sum()

    with pytest.raises(GpuprofError, match="the model raised in the backward: ValueError: no"):
        gpuprof.profile(Waiting(), inputs(), passes=["count", "time"])
    assert [reference() for reference in references] == [None, None]
