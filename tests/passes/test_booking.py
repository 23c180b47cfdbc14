"""Time and work that are easily booked on somebody else: the trace and the count agree, product by product."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import record_function

import gpuprof
from gpuprof.analysis.consistency import inconsistencies, withheld, withheld_of_kernels, withheld_of_owners
from gpuprof.errors import GpuprofError
from gpuprof.schema import UNATTRIBUTED

ROWS, WIDTH = 4, 8
SQUARE = 2 * ROWS * WIDTH * WIDTH  # FLOPs of one product with a square weight


def profiled(model, passes=("count", "trace"), **kwargs):
    torch.manual_seed(0)
    run = gpuprof.profile(model, torch.randn(ROWS, WIDTH), passes=passes, **kwargs)
    assert [outcome.status for outcome in run.passes.values()] == ["done"] * len(passes)
    assert inconsistencies(run) == []
    return run


def traced(run):
    """Calls of products in the trace: {module: (forward, backward)}."""
    rows = run.kernels[run.kernels["op"].isin(["aten::mm", "aten::addmm"])]
    calls = rows.groupby(["module", "phase"])["call"].nunique()
    return {
        module: (calls.get((module, "forward"), 0), calls.get((module, "backward"), 0))
        for module in dict.fromkeys(rows["module"])
    }


def counted(run):
    """FLOPs of each module by itself: {module: (forward, backward)}."""
    flops = run.ops.groupby(["module", "phase"])["flops_full"].sum()
    modules = dict.fromkeys(run.ops.loc[run.ops["flops_full"] > 0, "module"])
    return {m: (int(flops.get((m, "forward"), 0)), int(flops.get((m, "backward"), 0))) for m in modules}


class Two(nn.Module):
    """Two linear layers, of which the first has no gradient to pass on, and what is done to their outputs."""

    def __init__(self, between=lambda x: x, layer=lambda: nn.Linear(WIDTH, WIDTH)):
        super().__init__()
        self.a, self.b = layer(), layer()
        self.between = between

    def forward(self, x):
        return self.between(self.b(self.between(self.a(x))))


# of each: one product in the forward; in the backward one for the weight, and where x has a gradient one for that
CALLS = {"a": (1, 1), "b": (1, 2)}
FLOPS = {"a": (SQUARE, SQUARE), "b": (SQUARE, 2 * SQUARE)}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def with_hook(hook):
    def between(x):
        x.register_hook(hook)
        return x

    return between


def labelled_hook(grad):
    with record_function("fsdp::post_backward"):
        return grad * 2


def node_prehook(x):
    x.grad_fn.register_prehook(lambda grads: tuple(grad * 2 for grad in grads))
    return x


def node_posthook(x):
    x.grad_fn.register_hook(lambda inputs, outputs: tuple(g if g is None else g * 2 for g in inputs))
    return x


@pytest.mark.parametrize(
    "between",
    [with_hook(lambda grad: grad * 2), with_hook(labelled_hook), node_prehook, node_posthook, Doubled.apply],
    ids=["tensor hook", "labelled hook", "node prehook", "node posthook", "function"],
)
def test_hooks_in_the_backward_leave_every_node_its_owner(between):
    run = profiled(Two(between))

    assert traced(run) == CALLS
    assert counted(run) == FLOPS
    lost = run.kernels[(run.kernels["module"] == UNATTRIBUTED) & (run.kernels["phase"] == "backward")]
    assert set(lost["op"]) <= {"aten::expand", "aten::div"}  # of the loss, which is outside the model


class Labelled(Two):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        with record_function(self.name):
            return super().forward(x)


@pytest.mark.parametrize("name", ["model::forward", "FSDP::pre_forward (layers.0)", "aten::mm", "gpu-proof"])
def test_a_label_is_no_operator_whatever_it_is_called(name):
    run = profiled(Labelled(name))

    assert traced(run) == CALLS
    assert name not in set(run.kernels["op"]) - {"aten::mm"}
    assert len(run.kernels[run.kernels["op"] == "aten::mm"]) == 3  # the backward's, and nothing of the label


@pytest.mark.parametrize("kind", ["leaf hook", "grad accumulator hook", "wrapped optimizer"])
def test_an_optimizer_that_steps_inside_the_backward(kind):
    model = Two()
    optimizers = {parameter: torch.optim.AdamW([parameter], lr=0.0) for parameter in model.parameters()}
    keep = []

    def update(parameter):
        if kind == "wrapped optimizer":
            with record_function("my::update"):
                optimizers[parameter].step()
        else:
            optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        if kind == "grad accumulator hook":
            node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
            node.register_hook(lambda *_, parameter=parameter: update(parameter))
            keep.append(node)
        else:
            parameter.register_post_accumulate_grad_hook(update)
    x = torch.randn(ROWS, WIDTH)
    run = profiled(model, ("count", "time", "trace"), step=lambda: model(x).mean().backward())

    assert traced(run) == CALLS
    assert counted(run) == FLOPS
    for rows in (run.kernels, run.ops):
        updates = rows[rows["op"].str.startswith(("aten::lerp_", "aten::addcdiv_"))]
        assert set(zip(updates["module"], updates["phase"], strict=True)) == {(UNATTRIBUTED, "optimizer")}
    # the step: a forward, a backward with four updates in it, and what is left when that is over
    phases = run.samples.groupby("phase")["time_s"].sum()
    assert set(phases.index) - {"reference"} == {"step", "forward", "backward", "optimizer", "other"}
    assert phases["other"] < 0.2 * phases["step"]
    assert phases[["forward", "backward", "optimizer", "other"]].sum() == pytest.approx(phases["step"])


class Parallel(nn.Module):
    """What DataParallel does: every part in a thread of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(lambda part: part(x), [self.a, self.b]))


def test_other_threads_are_traced_and_their_count_is_refused():
    run = gpuprof.profile(Parallel(), torch.randn(ROWS, WIDTH), passes=["count", "trace"])

    assert traced(run) == {"a": (1, 1), "b": (1, 1)}
    assert run.passes["count"].status == "failed"
    assert "calls modules in other threads of Python (" in run.passes["count"].reason
    assert run.ops.empty
    with pytest.raises(GpuprofError, match="in other threads of Python"):
        gpuprof.count(Parallel(), torch.randn(ROWS, WIDTH))


def test_a_product_in_another_thread_without_a_module_is_an_inconsistency():
    class Hidden(Two):
        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                return super().forward(x) + pool.submit(torch.mm, x, x.T).result().sum()

    run = gpuprof.profile(Hidden(), torch.randn(ROWS, WIDTH), mode="forward", passes=["count", "trace"])

    assert inconsistencies(run) == [
        "aten::mm in the forward: counted 0 calls, traced 1: the passes ran different steps"
    ]


class Wrap(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_shared_module_is_booked_where_it_is_called():
    shared = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    run = profiled(nn.Sequential(Wrap(shared), Wrap(shared)))

    assert counted(run) == {"0.inner.0": (SQUARE, SQUARE), "1.inner.0": (SQUARE, 2 * SQUARE)}
    assert traced(run) == {"0.inner.0": (1, 1), "1.inner.0": (1, 2)}
    modules = run.modules().set_index("module")
    assert modules.loc[["0", "1"], "flops_forward"].tolist() == [SQUARE, SQUARE]
    assert modules.loc[["", "0", "1"], "params"].tolist() == [WIDTH * WIDTH + WIDTH] * 3  # the root's once
    assert list(modules.index) == [
        "",
        *(f"{n}{path}" for n in "01" for path in ("", ".inner", ".inner.0")),
        UNATTRIBUTED,
    ]


class Listed(nn.Module):
    """Layers that are also known under a second name, under which nobody calls them."""

    def __init__(self):
        super().__init__()
        self.backbone = Two()
        self.layers = nn.ModuleList([self.backbone.a, self.backbone.b])

    def forward(self, x):
        return self.backbone(x)


@pytest.mark.parametrize(("passes", "calls"), [(("count", "trace"), 1), (("trace",), 0)])
def test_a_second_name_is_listed_only_where_it_is_called_by_it(passes, calls):
    run = profiled(Listed(), passes)

    assert traced(run) == {f"backbone.{name}": found for name, found in CALLS.items()}
    assert run.tree["module"].tolist() == ["", "backbone", "backbone.a", "backbone.b", "layers"]
    assert run.tree.set_index("module").loc["backbone.a", "calls"] == calls


def test_a_call_under_the_second_name_has_its_row_also_without_a_count():
    class Direct(Listed):
        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    run = profiled(Direct(), ("trace",))

    assert traced(run) == {"layers.0": (1, 1), "layers.1": (1, 2)}
    assert {"layers.0", "layers.1"} < set(run.tree["module"])


@pytest.mark.parametrize("earlier", ["pre-hook", "hook"])
def test_hooks_of_the_user_are_the_work_of_their_module(earlier):
    model = Two()
    factor = []  # as K-FAC keeps of inputs and outputs
    if earlier == "pre-hook":
        model.a.register_forward_pre_hook(lambda module, args: factor.append(args[0].detach().T @ args[0].detach()))
    else:
        model.a.register_forward_hook(lambda module, args, out: factor.append(out.detach().T @ out.detach()))
    run = profiled(model)

    # two more products of WIDTH x ROWS x WIDTH are as dear as that of the layer
    assert counted(run) == {**FLOPS, "a": (2 * SQUARE, SQUARE)}
    assert traced(run) == {**CALLS, "a": (2, 1)}


@pytest.mark.parametrize("mode", ["train", "forward"])
def test_a_block_that_is_compiled_in_place_has_its_row(mode):
    model = nn.Sequential(Two(), Two(), nn.Linear(WIDTH, WIDTH))
    for block in model[:2]:
        block.compile(backend="aot_eager")
    calls = [block._compiled_call_impl for block in model[:2]]
    run = gpuprof.profile(model, torch.randn(ROWS, WIDTH), mode=mode, passes=["count", "trace"])

    backward = {"0": (2, 3), "1": (2, 4), "2": (1, 2)}
    assert traced(run) == (backward if mode == "train" else {name: (n, 0) for name, (n, _) in backward.items()})
    assert [block._compiled_call_impl for block in model[:2]] == calls
    times = run.modules().set_index("module")["time_forward_s"]
    assert (times[["0", "1", "2"]] > 0).all()


class Derived(nn.Module):
    """Two linear layers and derivatives of their output by the input, each of the one before."""

    def __init__(self, order):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.order = order

    def forward(self, x):
        x = x.clone().requires_grad_()
        y = self.b(torch.tanh(self.a(x)))
        for _ in range(self.order):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.pow(2).mean()


@pytest.mark.parametrize(
    ("order", "a", "b"),
    [
        # h = x A^T, y = tanh(h) B^T; u = 1 B, v = u tanh'(h), the gradient v A: one product of each. Of the loss, from
        # the last: of v A both gradients, of u its B, of h both
        (1, 1 + 2 + 2, 1 + 1),
        # the second derivative takes 1 A^T for v and z A for h; of the loss z A both, 1 A^T its A, u its B, h both
        (2, 1 + 2 + 2 + 1 + 2, 1 + 1),
    ],
    ids=["gradient penalty", "second derivative"],
)
def test_a_backward_of_a_backward_belongs_to_the_module_of_the_first(order, a, b):
    run = profiled(Derived(order))

    assert traced(run) == {"a": (1, a), "b": (1, b)}
    assert counted(run) == {"a": (SQUARE, a * SQUARE), "b": (SQUARE, b * SQUARE)}


class Forces(nn.Module):
    """A gradient in the middle of the forward, as of an energy by positions, and a layer after it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        x = x.clone().requires_grad_()
        (force,) = torch.autograd.grad(self.a(x).pow(2).sum(), x, create_graph=True)
        return self.b(force)


@pytest.mark.parametrize("given", [False, True])
def test_what_comes_after_a_gradient_in_the_forward_is_forward(given):
    model, x = Forces(), torch.randn(ROWS, WIDTH)
    how = {"step": lambda: model(x).sum().backward()} if given else {}
    run = gpuprof.profile(model, None if given else x, passes=("count", "time", "trace"), steps=1, **how)

    # y = x A^T, the gradient 2 y A: of the loss both gradients of either, and both of b's
    assert counted(run) == {"a": (SQUARE, 5 * SQUARE), "b": (SQUARE, 2 * SQUARE)}
    assert traced(run) == {"a": (1, 5), "b": (1, 2)}
    assert inconsistencies(run) == []
    assert set(run.samples["phase"]) >= {"forward", "backward"}


def per_sample_gradients(model, x):
    params = {name: param.detach() for name, param in model.named_parameters()}

    def loss(params, x):
        return torch.func.functional_call(model, params, (x[None],)).pow(2).sum()

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)


def gradient(model, x):
    params = {name: param.detach() for name, param in model.named_parameters()}
    return torch.func.grad(lambda params: torch.func.functional_call(model, params, (x,)).pow(2).sum())(params)


def forward_mode(model, x):
    with torch.autograd.forward_ad.dual_level():
        return model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize(
    ("transform", "flops"),
    [
        (gradient, {"a": (SQUARE, SQUARE), "b": (SQUARE, 2 * SQUARE)}),
        (per_sample_gradients, {"a": (SQUARE, SQUARE), "b": (SQUARE, 2 * SQUARE)}),
        # the product and those of either factor's tangent: torch multiplies the zeros of the weight's too
        (forward_mode, {"a": (3 * SQUARE, 0), "b": (3 * SQUARE, 0)}),
    ],
)
def test_a_transformed_step_has_its_mfu_and_its_parts_none(transform, flops):
    model, x = Two(layer=lambda: nn.Linear(WIDTH, WIDTH, bias=False)), torch.randn(ROWS, WIDTH)
    run = gpuprof.profile(model, step=lambda: transform(model, x), passes=("count", "time", "trace"), steps=1)

    assert counted(run) == flops
    assert withheld(run) == ""
    [line] = inconsistencies(run)
    assert line.startswith("under torch.func or forward-mode differentiation")
    assert withheld_of_kernels(run) == f"withheld: {line}"
    assert withheld_of_owners(run) == ""


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("multiply", [torch.sparse.mm, torch.matmul])
def test_a_sparse_product_is_an_operator_inside_another_and_no_transformation(layout, multiply):
    class Graph(Two):
        def forward(self, x):
            return multiply(self.adjacency, self.b(self.a(x)))

    model = Graph(layer=lambda: nn.Linear(WIDTH, WIDTH, bias=False))
    model.adjacency = torch.eye(ROWS).to_sparse(layout=layout)
    run = gpuprof.profile(model, torch.randn(ROWS, WIDTH), passes=("count", "time", "trace"), steps=1)
    assert counted(run)[""] == (2 * ROWS * WIDTH, 2 * ROWS * WIDTH)  # as many stored as there are rows
    assert inconsistencies(run) == []


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_whoever_draws_draws_the_same_in_every_step(draw):
    class Depth(Two):
        """Stochastic depth: every block is left out by chance."""

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(20))

        def forward(self, x):
            for block in self.blocks:
                if draw() < 0.5:
                    x = block(x)
            return super().forward(x)

    run = profiled(Depth())

    assert 3 <= sum(forward for forward, _ in traced(run).values()) < 22
