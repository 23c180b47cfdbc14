"""A profile leaves nothing behind, however it ends."""

import os
import random

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

import gpuprof
from gpuprof.errors import GpuprofError
from gpuprof.passes import counting, memory, timing, trace

PASSES = ["count", "time", "trace", "memory"]


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, given):
        raise ctx.error


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.last = nn.Linear(8, 2)
        self.register_buffer("steps", torch.zeros(3))
        self.register_buffer("wide", torch.ones(1).expand(4))
        self.error_forward = self.error_backward = None

    def forward(self, x):
        self.steps = self.steps + 1  # a buffer that is replaced, not written to
        x = self.drop(self.norm(self.first(x)))
        if self.error_forward is not None:
            raise self.error_forward
        if self.error_backward is not None:
            x = Failing.apply(x, self.error_backward)
        return self.last(self.frozen(x)) * random.random() * self.wide[0]


def hooks_of(model):
    return [len(getattr(module, name)) for module in model.modules() for name in vars(module) if "_hooks" in name]


def state_of(model, optimizer, x):
    """All that a step may change: values by value, objects by identity."""
    values = {f"parameter {name}": p.detach().clone() for name, p in model.named_parameters()}
    values |= {f"buffer {name}": b.clone() for name, b in model.named_buffers()}
    values |= {f"gradient {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    values |= {
        f"state {index} {key}": value.clone()
        for index, entry in enumerate(optimizer.state.values())
        for key, value in entry.items()
    }
    values["input"] = x.detach().clone()
    values["random state"] = torch.get_rng_state()
    objects = {
        "parameters": [id(p) for p in model.parameters()],
        "buffers": [(name, id(b)) for name, b in model.named_buffers()],
        "gradients": [None if p.grad is None else id(p.grad) for p in model.parameters()],
        "input gradient": x.grad,
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": hooks_of(model),
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "group objects": [id(group) for group in optimizer.param_groups],
        "state objects": [id(v) for entry in optimizer.state.values() for v in entry.values()],
        "optimizer hooks": (len(optimizers._global_optimizer_pre_hooks), len(optimizers._global_optimizer_post_hooks)),
        "module hooks": [len(hooks) for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_")
                         and hasattr(hooks, "__len__")],
        "python random": random.getstate(),
        "numpy random": str(np.random.get_state()),
        "environment": dict(os.environ),
        "torch": (
            torch.autograd.backward, torch.autograd.grad, torch.autograd._engine_run_backward, torch.Tensor.backward,
            torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator,
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            torch.get_num_threads(), torch._C._is_multithreading_enabled(), torch._C._len_torch_function_stack(),
            torch.are_deterministic_algorithms_enabled(), torch._dynamo.eval_frame._stance.stance,
            torch._C._autograd._top_saved_tensors_default_hooks(False),
        ),
        "modes": _get_current_dispatch_mode_stack(),
    }  # fmt: skip
    return values, objects


def assert_same(before, after):
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]), key
    assert before[0].keys() == after[0].keys()
    for key, value in before[1].items():
        assert after[1][key] == value, key


@pytest.fixture
def training():
    """A user's model in the midst of a training: gradients there, optimizer with state, flags mixed."""
    torch.manual_seed(7)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
    model.norm.eval()
    return model, optimizer, torch.randn(5, 4).requires_grad_()


@pytest.mark.parametrize("keeps", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("mode", ["train", "optimizer", "forward", "step"])
def test_after_all_passes(request, training, mode, keeps):
    if mode == "train":  # once is enough
        request.getfixturevalue("ceilings_measured")
    model, optimizer, x = training
    if not keeps:
        optimizer.zero_grad()

    def step():
        random.random()
        model.train(not model.training)
        model.first.requires_grad_(False)
        with torch.no_grad():
            model.last.weight.add_(1)
        model(x).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5

    given = {
        "train": {"inputs": x},
        "optimizer": {"inputs": x, "optimizer": optimizer},
        "forward": {"inputs": x, "mode": "forward"},
        "step": {"step": step},
    }[mode]
    before = state_of(model, optimizer, x)
    run = gpuprof.profile(model, **given, steps=2)
    assert [run.passes[name].status for name in PASSES] == ["done"] * 4
    assert_same(before, state_of(model, optimizer, x))


def test_an_optimizer_without_state_has_none_afterwards():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.LBFGS(model.parameters())
    x = torch.randn(2, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    gpuprof.profile(model, step=lambda: optimizer.step(closure), passes=["count"])
    assert not optimizer.state

    optimizer.step(closure)
    state = {key: list(value) if isinstance(value, list) else value
             for key, value in next(iter(optimizer.state.values())).items()}  # fmt: skip
    copies = [value.clone() for value in tree_leaves(state) if isinstance(value, torch.Tensor)]
    gpuprof.profile(model, step=lambda: optimizer.step(closure), passes=["count", "time"])
    after = next(iter(optimizer.state.values()))
    assert after["n_iter"] == state["n_iter"]
    found = [value for value in tree_leaves(after) if isinstance(value, torch.Tensor)]
    assert len(found) == len(copies) > 2
    assert all(torch.equal(a, b) for a, b in zip(found, copies, strict=True))


def test_parameters_that_only_the_optimizer_knows(training):
    model, _, x = training
    extra = nn.Parameter(torch.ones(()))
    extra.grad = torch.tensor(5.0)
    optimizer = torch.optim.SGD([*model.parameters(), extra], lr=0.1, momentum=0.9)
    gpuprof.profile(model, x, loss=lambda out: (out * extra).sum(), optimizer=optimizer, passes=["count", "time"])
    assert (float(extra), float(extra.grad)) == (1.0, 5.0)


@pytest.mark.parametrize("where", ["forward", "backward", "loss", "optimizer"])
def test_after_a_failure(training, where):
    model, optimizer, x = training
    error = RuntimeError("broken")

    def broken(*_):
        raise error

    handle = optimizer.register_step_pre_hook(broken) if where == "optimizer" else None
    if where in ("forward", "backward"):
        setattr(model, f"error_{where}", error)
    before = state_of(model, optimizer, x)
    with pytest.raises(GpuprofError, match="broken"):
        gpuprof.profile(model, x, loss=broken if where == "loss" else None, optimizer=optimizer)
    assert_same(before, state_of(model, optimizer, x))
    if handle is not None:
        handle.remove()


@pytest.mark.parametrize("where", ["forward", "backward", "loss"])
@pytest.mark.parametrize("name", PASSES)
def test_after_an_interrupt_in_the_middle_of_a_pass(training, name, where):
    model, optimizer, x = training

    def interrupt(*_):
        raise KeyboardInterrupt

    if where != "loss":
        setattr(model, f"error_{where}", KeyboardInterrupt())
    before = state_of(model, optimizer, x)
    with pytest.raises(KeyboardInterrupt):
        gpuprof.profile(model, x, loss=interrupt if where == "loss" else None, optimizer=optimizer, passes=[name])
    assert_same(before, state_of(model, optimizer, x))
    if where != "forward":
        return
    # the next profile works as if nothing had been
    model.error_forward = model.error_backward = None
    run = gpuprof.profile(model, x, optimizer=optimizer, passes=["count", "trace"])
    assert run.done("count")
    assert run.done("trace")


@pytest.mark.parametrize("broken", [counting.count, timing.measure, trace.trace, memory.measure])
def test_after_an_error_of_our_own(training, monkeypatch, broken):
    model, optimizer, x = training
    module = {counting.count: counting, timing.measure: timing, trace.trace: trace, memory.measure: memory}[broken]

    def late(*args, **kwargs):
        broken(*args, **kwargs)
        raise ZeroDivisionError

    monkeypatch.setattr(module, broken.__name__, late)
    before = state_of(model, optimizer, x)
    run = gpuprof.profile(model, x, optimizer=optimizer, passes=PASSES)
    assert sorted(outcome.status for outcome in run.passes.values()) == ["done"] * 3 + ["failed"]
    assert_same(before, state_of(model, optimizer, x))


def test_hooks_of_the_users_own_stay_and_fire(training):
    model, _, x = training
    fired = []
    model.register_forward_hook(lambda *_: fired.append("forward"))
    model.last.register_full_backward_hook(lambda *_: fired.append("backward"))
    gpuprof.profile(model, x, passes=["count"])
    assert fired == ["forward", "backward", "forward", "backward"]  # the step before the counted one, and that
    fired.clear()
    model(x).sum().backward()
    assert fired == ["forward", "backward"]


def test_gradient_mode_of_the_caller(training):
    model, _, x = training
    with torch.no_grad():
        run = gpuprof.profile(model, x, passes=["count"])
        assert not torch.is_grad_enabled()
    assert run.modules().set_index("module").loc["", "flops_backward"] > 0
