"""What is looked at does what it does alone: the same operators, the same paths, the same compiled regions."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import gpuprof
from gpuprof.errors import GpuprofError

PASSES = ["count", "time", "trace", "memory"]
ROWS, WIDTH, HIDDEN = 3, 8, 16
SQUARE = 2 * ROWS * WIDTH * WIDTH
WIDE = 2 * ROWS * WIDTH * HIDDEN
ADDMM = torch.ops.aten.addmm.default


def profile(model, *args, passes=PASSES, **kwargs):
    run = gpuprof.profile(model, *args, passes=list(passes), **kwargs)
    assert {name: outcome.reason for name, outcome in run.passes.items() if outcome.status != "done"} == {}
    return run


def flops(run):
    """Matmul FLOPs of each module by itself: {(module, phase): FLOPs}."""
    rows = run.ops[run.ops["flops_full"].fillna(0) > 0]
    return {key: int(count) for key, count in rows.groupby(["module", "phase"])["flops_full"].sum().items()}


def traced(run, phase):
    """Calls of matrix products in the trace, of each module: {module: calls}."""
    rows = run.kernels[run.kernels["op"].isin(["aten::addmm", "aten::mm"]) & (run.kernels["phase"] == phase)]
    return rows.groupby("module").size().to_dict()


# -- selective checkpointing replays operators by their number


class Block(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.inner = inner

    def forward(self, x):
        if self.inner is not None:
            x = self.inner(x)
        return torch.tanh(self.down(torch.tanh(self.up(x))))


class Selective(nn.Module):
    def __init__(self, policy, block=None):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.block = block or Block()
        self.contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def forward(self, x):
        return checkpoint(self.block, torch.tanh(self.first(x)), use_reentrant=False, context_fn=self.contexts)


def save_products(_, op, *__, **___):
    return CheckpointPolicy.MUST_SAVE if op is ADDMM else CheckpointPolicy.PREFER_RECOMPUTE


def save_the_wide(_, op, *args, **__):
    """Of the products those with more columns than rows in their weight."""
    wide = op is ADDMM and args[2].shape[1] == HIDDEN
    return CheckpointPolicy.MUST_SAVE if wide else CheckpointPolicy.PREFER_RECOMPUTE


def always(policy):
    return lambda *_, **__: policy


@pytest.mark.parametrize(
    ("policy", "recomputed"),
    [
        (save_products, []),
        ([ADDMM], []),
        (save_the_wide, ["down"]),
        (always(CheckpointPolicy.MUST_RECOMPUTE), ["up", "down"]),
        (always(CheckpointPolicy.PREFER_RECOMPUTE), ["up", "down"]),
        (always(CheckpointPolicy.PREFER_SAVE), []),
    ],
    ids=["save products", "list", "save some", "must recompute", "prefer to recompute", "prefer to save"],
)
def test_selective_checkpointing(policy, recomputed):
    run = profile(Selective(policy), torch.randn(ROWS, WIDTH))
    assert run.warnings == []
    assert traced(run, "recompute") == {f"block.{name}": 1 for name in recomputed}
    assert flops(run) == {
        ("first", "forward"): SQUARE,
        ("first", "backward"): SQUARE,
        ("block.up", "forward"): WIDE,
        ("block.up", "backward"): 2 * WIDE,
        ("block.down", "forward"): WIDE,
        ("block.down", "backward"): 2 * WIDE,
        **{(f"block.{name}", "recompute"): WIDE for name in recomputed},
    }


def test_selective_checkpointing_inside_a_checkpoint():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Selective(save_products)
            self.last = nn.Linear(WIDTH, WIDTH)

        def body(self, x):
            return torch.tanh(self.last(self.inner(x)))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    run = profile(Outer(), torch.randn(ROWS, WIDTH).requires_grad_())
    assert run.warnings == []
    assert traced(run, "recompute") == {
        "inner.first": 1,
        "inner.block.up": 1,
        "inner.block.down": 1,
        "last": 1,
    }
    assert flops(run) == {
        ("inner.first", "forward"): SQUARE,
        ("inner.first", "backward"): 2 * SQUARE,
        ("inner.first", "recompute"): SQUARE,  # by the outer one; what the inner one has saved then is not made again
        **{(f"inner.block.{name}", phase): times * WIDE for name in ("up", "down")
           for phase, times in (("forward", 1), ("backward", 2), ("recompute", 1))},
        ("last", "forward"): SQUARE,
        ("last", "backward"): 2 * SQUARE,
        ("last", "recompute"): SQUARE,
    }  # fmt: skip


# -- modes of the user's own


class Noting(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class NotingFunctions(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)


@pytest.mark.parametrize("name", PASSES)
def test_modes_of_the_users_own_see_the_step_and_nothing_else(name):
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), Attending()), torch.randn(ROWS, WIDTH)
    seen = []

    def step():
        model.zero_grad()
        seen.append([])
        with NotingFunctions(seen[-1]), Noting(seen[-1]):
            model(x).sum().backward()

    step()
    alone = seen.pop()
    assert "aten.addmm.default" in alone
    assert "linear" in alone
    run = profile(model, step=step, passes=[name])
    if name == "trace":
        assert traced(run, "forward") == {"0": 1, "1.qkv": 1}  # once each, though two modes have them in their hands
    if name == "memory":  # autograd itself detaches what it gives to a hook on saved tensors
        *seen, alone = ([op for op in ops if op != "aten.detach.default"] for ops in (*seen, alone))
    assert seen == [alone] * len(seen)


# -- work that is not done


class Tracing(nn.Module):
    """Multiplies once, and makes a graph, or asks for shapes, beside it."""

    def __init__(self, how):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.how = how

    def forward(self, x):
        if self.how == "make_fx":
            make_fx(self.linear, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
        elif self.how == "symbolic_trace":
            torch.fx.symbolic_trace(nn.Sequential(self.linear))
        elif self.how == "fake":
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert self.linear(mode.from_tensor(x)).shape == x.shape
        elif self.how == "meta":
            assert (x.to("meta") @ torch.empty(WIDTH, 5, device="meta")).shape == (ROWS, 5)
        return self.linear(x)


@pytest.mark.parametrize("how", ["", "make_fx", "symbolic_trace", "fake", "meta"])
def test_what_only_asks_for_shapes_does_no_work(how):
    run = profile(Tracing(how), torch.randn(ROWS, WIDTH), mode="forward")
    assert flops(run) == {("linear", "forward"): SQUARE}
    assert run.ops["vector_flops"].sum() == ROWS * WIDTH  # the bias


# -- torch fuses its transformer layers where nothing looks at them


D, HEADS, WIDER, LAYERS = 16, 4, 24, 2


def encoder(**options):
    layer = nn.TransformerEncoderLayer(D, HEADS, WIDER, batch_first=True, **options)
    return nn.TransformerEncoder(layer, LAYERS).eval()


def layer_flops(lengths):
    """Four projections, two products of attention, and two of the feed-forward, of one layer."""
    tokens, pairs = sum(lengths), sum(length * length for length in lengths)
    return 2 * tokens * D * 4 * D + 2 * 2 * pairs * D + 2 * 2 * tokens * D * WIDER


def operators(run):
    """Of both passes: {operator: calls} where it multiplies."""
    rows = run.ops[run.ops["flops_full"].fillna(0) > 0]
    counted = {op.partition(".")[0]: int(calls) for op, calls in rows.groupby("op")["calls"].sum().items()}
    traced = run.kernels[run.kernels["op"].isin(counted)].groupby("op").size().to_dict()
    assert traced == counted
    return counted


@pytest.mark.parametrize("where", ["encoder", "layer", "child"])
def test_a_fused_layer_is_counted_as_it_is_timed(where):
    model = {"encoder": encoder(), "layer": encoder().layers[0], "child": nn.Sequential(encoder())}[where].eval()
    run = profile(model, torch.randn(3, 5, D), mode="forward")
    layers = 1 if where == "layer" else LAYERS
    assert operators(run) == {"aten::_transformer_encoder_layer_fwd": layers}
    assert run.ops["flops_full"].sum() == layers * layer_flops([5, 5, 5])
    assert run.warnings == []


LENGTHS = [[5, 3, 1], [4, 4, 4], [5], [1, 2, 5, 5]]


def padding(lengths):
    return torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_padding_that_is_packed_away_is_not_counted(lengths):
    model, x = encoder(), torch.randn(len(lengths), max(lengths), D)
    run = profile(model, x, kwargs={"src_key_padding_mask": padding(lengths)}, mode="forward")
    assert operators(run) == {"aten::_transformer_encoder_layer_fwd": LAYERS}
    assert run.ops["flops_full"].sum() == run.ops["flops_causal"].sum() == LAYERS * layer_flops(lengths)
    padded = len(lengths) * max(lengths) ** 2 - sum(length**2 for length in lengths)  # scores that a CPU computes too
    assert run.ops["flops_hardware"].sum() == LAYERS * (layer_flops(lengths) + 4 * padded * D)
    assert run.warnings == []


def test_padding_that_is_not_packed_away_is_counted_as_it_is_computed():
    lengths = [5, 3, 1]
    model = nn.TransformerEncoder(encoder().layers[0], LAYERS, enable_nested_tensor=False).eval()
    given = {"src": torch.randn(3, 5, D), "src_key_padding_mask": padding(lengths)}
    run = profile(model, given, mode="forward")
    assert operators(run) == {"aten::_transformer_encoder_layer_fwd": LAYERS}
    assert run.ops["flops_full"].sum() == LAYERS * layer_flops([5, 5, 5])


def test_attention_of_nested_tensors_themselves():
    model, lengths = nn.MultiheadAttention(D, HEADS, batch_first=True).eval(), [4, 2]
    x = torch.nested.nested_tensor([torch.randn(length, D) for length in lengths])
    run = profile(model, (x, x, x), kwargs={"need_weights": False}, mode="forward")
    assert operators(run) == {"aten::_native_multi_head_attention": 1}
    assert run.ops["flops_full"].sum() == 2 * 6 * D * 4 * D + 2 * 2 * (16 + 4) * D
    assert run.warnings == []


def test_a_batch_that_is_mostly_padding():
    lengths = [512, 64, 48, 32, 32, 16, 16, 8]
    layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(8, 512, 256)
    run = profile(model, x, kwargs={"src_key_padding_mask": padding(lengths)}, mode="forward", passes=["count"])
    tokens, pairs = 728, 512**2 + 64**2 + 48**2 + 2 * 32**2 + 2 * 16**2 + 8**2
    assert (
        run.ops["flops_full"].sum() == 2 * tokens * 256 * (4 * 256 + 2 * 1024) + 4 * pairs * 256
    )  # of 8.6 G of the square


def test_padding_is_refused_without_weights(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def net():\n"
        f"    layer = torch.nn.TransformerEncoderLayer({D}, {HEADS}, batch_first=True)\n"
        "    mask = torch.tensor([[False, False], [False, True]])\n"
        f"    given = {{'src': torch.randn(2, 2, {D}), 'src_key_padding_mask': mask}}\n"
        "    return {'model': torch.nn.TransformerEncoder(layer, 1).eval(), 'inputs': given}\n"
    )
    with pytest.raises(GpuprofError, match="leaves out the padding of its batch"):
        gpuprof.count(f"{tmp_path / 'net.py'}:net", mode="forward")


def test_fused_multi_head_attention():
    model, x = nn.MultiheadAttention(D, HEADS, batch_first=True).eval(), torch.randn(3, 5, D)
    run = profile(model, (x, x, x), mode="forward")
    assert operators(run) == {"aten::_native_multi_head_attention": 1}
    assert run.ops["flops_full"].sum() == 2 * 15 * D * 4 * D + 2 * 2 * 3 * 25 * D


def test_a_hook_of_the_users_own_unfuses_it_in_every_pass():
    model = encoder()
    model.layers[0].register_forward_hook(lambda *_: None)
    run = profile(model, torch.randn(3, 5, D), mode="forward")
    assert operators(run)["aten::_transformer_encoder_layer_fwd"] == 1
    assert run.ops["flops_full"].sum() == LAYERS * layer_flops([5, 5, 5])


def test_a_mode_of_the_users_own_unfuses_it_in_every_pass():
    model, x = encoder(), torch.randn(3, 5, D)

    def step():
        with torch.no_grad(), NotingFunctions([]):
            model(x)

    run = profile(model, step=step)
    assert "aten::_transformer_encoder_layer_fwd" not in operators(run)
    assert run.ops["flops_full"].sum() == LAYERS * layer_flops([5, 5, 5])


# -- compiled regions


class Compiled(nn.Module):
    """A region of torch.compile, one that is compiled in place, and a function that calls a module and breaks."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(WIDTH, WIDTH)
        self.region = torch.compile(Block(), backend="eager")
        self.in_place = Block()
        self.in_place.compile(backend="eager")
        self.called = nn.Linear(WIDTH, WIDTH)
        self.function = torch.compile(self.breaking, backend="eager")

    def breaking(self, x):
        x = torch.tanh(self.called(x))
        torch._dynamo.graph_break()
        return torch.tanh(self.called(x))

    def forward(self, x):
        return self.function(self.in_place(self.region(self.plain(x))))


@pytest.mark.parametrize("given", ["inputs", "step"])
def test_nothing_is_compiled_again(given):
    torch._dynamo.reset()
    model, x = Compiled(), torch.randn(ROWS, WIDTH)

    def step():
        model(x).sum().backward()

    step()
    step()
    before = copy.deepcopy((counters["frames"], counters["stats"]["unique_graphs"]))
    run = profile(model, x) if given == "inputs" else profile(model, step=step)
    step()
    assert (counters["frames"], counters["stats"]["unique_graphs"]) == before
    modules = run.modules().set_index("module")
    assert modules.loc["in_place", "time_forward_s"] > 0  # it has a row of its own in the trace


def test_a_step_that_is_compiled_as_a_whole_is_compiled_once():
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)), torch.randn(ROWS, WIDTH)
    step = torch.compile(lambda: model(x).sum(), backend="eager", fullgraph=True)
    run = profile(model, step=step, steps=12, mode="forward")
    compiled = counters["stats"]["unique_graphs"]
    step()
    assert counters["stats"]["unique_graphs"] == compiled
    assert [*run.compilations["pass"]] == ["time", "memory"]  # that of the memory pass, which looks at it, is gone


# -- copies


@pytest.mark.parametrize("how", ["replica", "copy", "deepcopy"])
def test_a_copy_that_is_made_in_the_step_computes_by_itself(how):
    class Copying(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x):
            if how == "replica":
                other = self.inner._replicate_for_data_parallel()
            else:
                other = copy.copy(self.inner) if how == "copy" else copy.deepcopy(self.inner)
            other.__dict__["_parameters"] = {"weight": torch.full((WIDTH, WIDTH), 2.0), "bias": None}
            out = other(x)
            assert torch.equal(out, 2 * x.sum(-1, keepdim=True).expand(-1, WIDTH))
            return out

    run = profile(Copying(), torch.ones(ROWS, WIDTH), mode="forward", passes=["count", "trace"])
    assert flops(run) == {("inner", "forward"): SQUARE}  # booked on the module that it is a copy of
    assert run.tree.set_index("module").loc["inner", "calls"] == 1


# -- hooks of the user's own are part of the module's call


def test_hooks_work_for_the_module_that_has_them():
    weight = torch.randn(WIDTH, WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    model[1].register_forward_pre_hook(lambda module, args: args[0] @ weight)
    model[1].register_forward_hook(lambda module, args, out: out @ weight)
    assert flops(profile(model, torch.randn(ROWS, WIDTH), mode="forward")) == {
        ("0", "forward"): SQUARE,
        ("1", "forward"): 3 * SQUARE,
    }


# -- what else runs in the process


def test_a_profiler_of_the_users_own_keeps_what_it_has():
    model, x = nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, WIDTH)
    with torch.profiler.profile() as own:
        model(x)
        run = gpuprof.profile(model, x, mode="forward", passes=PASSES)

    assert [run.passes[name].status for name in PASSES] == ["done", "done", "skipped", "done"]
    assert "torch.profiler of your own" in run.passes["trace"].reason
    assert any("torch.profiler of your own" in line for line in run.warnings)
    assert "aten::linear" in {event.name for event in own.events()}
