"""A profile leaves nothing behind, however it ends."""

import random

import pytest
import torch
from as_before import as_before
from torch import nn
from torch.utils._pytree import tree_leaves

import gpuprof
from gpuprof.errors import GpuprofError
from gpuprof.passes import counting, memory, preserve, timing, trace
from gpuprof.profiler import run_passes
from gpuprof.undo import undoing
from gpuprof.workload import from_module

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
    with as_before(model, optimizer, [x]):
        run = gpuprof.profile(model, **given, steps=2)
    assert [run.passes[name].status for name in PASSES] == ["done"] * 4


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
    with as_before(model, optimizer, [x]), pytest.raises(GpuprofError, match="broken"):
        gpuprof.profile(model, x, loss=broken if where == "loss" else None, optimizer=optimizer)
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
    with as_before(model, optimizer, [x]), pytest.raises(KeyboardInterrupt):
        gpuprof.profile(model, x, loss=interrupt if where == "loss" else None, optimizer=optimizer, passes=[name])
    if where != "forward":
        return
    # the next profile works as if nothing had been
    model.error_forward = model.error_backward = None
    run = gpuprof.profile(model, x, optimizer=optimizer, passes=["count", "trace"])
    assert run.done("count")
    assert run.done("trace")


@pytest.mark.parametrize("broken", [counting.count, timing.measure, trace.traces, memory.measure])
def test_after_an_error_of_our_own(training, monkeypatch, broken):
    model, optimizer, x = training
    module = {counting.count: counting, timing.measure: timing, trace.traces: trace, memory.measure: memory}[broken]

    def late(*args, **kwargs):
        broken(*args, **kwargs)
        raise ZeroDivisionError

    monkeypatch.setattr(module, broken.__name__, late)
    with as_before(model, optimizer, [x]):
        run = gpuprof.profile(model, x, optimizer=optimizer, passes=PASSES)
    assert sorted(outcome.status for outcome in run.passes.values()) == ["done"] * 3 + ["failed"]


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


# -- buffers of all kinds


class Changing(nn.Module):
    """Changes its buffer in the forward as it is told."""

    def __init__(self, buffer, change):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("held", buffer)
        self.change = change

    def forward(self, x):
        self.change(self)
        return self.linear(x)


def write_resized(module):
    module.held.resize_(5).fill_(7.0)


def give_other_data(module):
    module.held.data = torch.ones(2, 2, dtype=torch.float64)


def set_to_another_storage(module):
    module.held.set_(torch.ones(7))


def replace(module):
    module.held = torch.ones(9)


def remove(module):
    if hasattr(module, "held"):
        del module.held


def nothing(module):
    module.held = None


def add(module):
    module.register_buffer("more", torch.ones(1))


def shrink_the_storage(module):
    module.held.untyped_storage().resize_(0)


def write(module):
    module.held.copy_(module.held * 0)


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize(
    "change",
    [
        write_resized, give_other_data, set_to_another_storage, replace, remove, nothing, add, shrink_the_storage,
        write,
    ],
)  # fmt: skip
def test_a_buffer_is_put_back_whatever_the_forward_does_to_it(change, fails):
    whole = torch.arange(6.0)
    model, x = Changing(whole[1:4], change), torch.randn(2, 4)

    def loss(out):
        if fails:
            raise ValueError("no")
        return out.sum()

    with as_before(model):
        if fails:
            with pytest.raises(GpuprofError, match="ValueError: no"):
                gpuprof.profile(model, x, loss=loss, passes=["count", "time"])
        else:
            assert gpuprof.profile(model, x, passes=["count", "memory"]).done("memory")
    whole += 1  # it still is a part of that
    assert torch.equal(model.held, torch.tensor([2.0, 3.0, 4.0]))


@pytest.mark.parametrize(
    "buffer",
    [
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.ones(1).expand(4),
        torch.full((2,), torch.nan),
    ],
    ids=["sparse", "jagged", "nested", "float8", "expanded", "nan"],
)
def test_a_buffer_of_any_kind_stays_as_it_is(buffer):
    model, x = Changing(buffer, lambda module: None), torch.randn(2, 4)
    with as_before(model):
        gpuprof.profile(model, x, passes=["time"])


def test_a_buffer_that_nobody_writes_to_can_still_go_backward():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    out = model(torch.randn(2, 4))  # which has saved the running statistics
    gpuprof.profile(model, torch.randn(2, 4), passes=["count"])
    out.sum().backward()


def test_parameters_that_a_forward_gives_other_data():
    """As a momentum encoder does, and an average of a codebook."""

    class Momentum(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.average, self.code = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            for mine, other in zip(self.average.parameters(), self.online.parameters(), strict=True):
                mine.data = mine.data * 0.5 + other.data * 0.5
            self.code.weight = nn.Parameter(self.code.weight * 0.5)
            return self.online(x) + self.average(x).detach() + self.code(x)

    model, x = Momentum(), torch.randn(2, 4)
    with as_before(model):
        assert gpuprof.profile(model, x, passes=["count", "time"]).done("time")


def test_observers_of_quantisation():
    class Observed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.whole = torch.ao.quantization.MinMaxObserver()
            self.channels = torch.ao.quantization.PerChannelMinMaxObserver()  # of no channel until it is called
            self.histogram = torch.ao.quantization.HistogramObserver(bins=16)

        def forward(self, x):
            x = self.linear(x)
            return self.histogram(self.channels(self.whole(x)))

    model, x = Observed(), torch.randn(2, 4)
    with as_before(model):
        run = gpuprof.profile(model, x, passes=PASSES)
    assert [run.passes[name].status for name in PASSES] == ["done"] * 4


# -- scripted modules


def scripted_child():
    return nn.Sequential(nn.Linear(4, 8), torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))))


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))))


def traced_child():
    return nn.Sequential(nn.Linear(4, 8), torch.jit.trace(nn.Linear(8, 8), torch.randn(2, 8)))


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("make", [scripted_child, scripted, traced_child])
def test_scripted_modules(make):
    first, second = 2 * 2 * 4 * 8, 2 * 2 * 8 * 8
    model, x = make(), torch.randn(2, 4)
    with as_before(model):
        run = gpuprof.profile(model, x, passes=PASSES)
        assert [run.passes[name].status for name in PASSES] == ["done"] * 4
        assert gpuprof.count(model, x).ops["flops_full"].sum() == 3 * second + 2 * first
    modules = run.modules().set_index("module")
    assert modules.loc["", "flops_forward"] == first + second
    assert modules.loc["", "flops_backward"] == first + 2 * second  # the input needs no gradient
    if make is not scripted:  # the whole of a scripted module is called by no Python, so nothing in it is its own
        assert list(modules.loc[["0", "1"], "flops_forward"]) == [first, second]
        assert list(modules.loc[["0", "1"], "flops_backward"]) == [first, 2 * second]


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("make", [scripted_child, scripted, traced_child])
@pytest.mark.parametrize("name", PASSES)
def test_scripted_modules_that_fail(make, name):
    model, x = make(), torch.randn(2, 5)
    with as_before(model), pytest.raises(GpuprofError, match="RuntimeError: mat1 and mat2"):
        gpuprof.profile(model, x, passes=[name])


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_a_frozen_module_of_torchscript_has_no_flag():
    model, x = (
        torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))).eval()),
        torch.ones(2, 4),
    )
    run = gpuprof.profile(model, x, mode="forward", passes=PASSES)
    assert [run.passes[name].status for name in PASSES] == ["done"] * 4
    assert run.ops["flops_full"].sum() == 2 * 2 * 4 * 8 + 2 * 2 * 8 * 8


def test_a_module_that_lets_nothing_be_set():
    class Sealed(nn.Linear):
        def __setattr__(self, name, value):
            if "sealed" in vars(self):
                raise TypeError(f"{name}: sealed")
            super().__setattr__(name, value)

    model, x = Sealed(4, 8), torch.ones(2, 4)
    vars(model)["sealed"] = True
    with as_before(model):
        run = gpuprof.profile(model, x, passes=PASSES)
    assert [run.passes[name].status for name in PASSES] == ["done"] * 4
    assert run.ops["flops_full"].sum() == 2 * 2 * (2 * 4 * 8)  # and the gradient of the weight


# -- what fails while it is put back


def test_the_first_error_is_named_and_not_that_of_putting_back(training, monkeypatch):
    model, optimizer, x = training
    model.error_forward = RuntimeError("the cause")

    def lost(*_):
        raise RuntimeError("nothing can be copied any more")

    with as_before(), monkeypatch.context() as patch:
        patch.setattr(preserve, "_fill", lost)
        workload = from_module(model, (x,), optimizer=optimizer)
        with pytest.raises(GpuprofError) as caught:
            run_passes(workload, passes=["count"])
    assert str(caught.value) == (
        "the model raised in the forward of Net: RuntimeError: the cause; what the step changes could not be kept and "
        "put back: RuntimeError: nothing can be copied any more"
    )
    assert caught.value.__cause__ is model.error_forward


def test_all_is_undone_whatever_fails_and_the_first_error_is_raised():
    done = []

    def fail(text):
        done.append(text)
        raise ValueError(text)

    def block(*errors):
        with undoing() as undo:
            undo(done.append, "first")
            undo(fail, "second")
            undo(fail, "third")
            for error in errors:
                raise error

    with pytest.raises(ValueError, match="block"):
        block(ValueError("block"))
    assert done == ["third", "second", "first"]
    with pytest.raises(ValueError, match="third"):
        block()


@pytest.mark.parametrize("depth", range(0, 900, 60))
def test_modes_end_also_at_the_limit_of_recursion(depth):
    class Endless(nn.Module):
        def forward(self, x):
            return self(torch.nn.functional.linear(x, x))

    def deep(left):
        return deep(left - 1) if left else gpuprof.profile(Endless(), x, mode="forward", passes=["count"])

    x = torch.randn(4, 4)
    with as_before(), pytest.raises(GpuprofError, match="RecursionError"):
        deep(depth)
