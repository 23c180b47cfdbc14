"""Backward and recomputed FLOPs per module, held to figures derived by hand, in the counting and the trace pass."""

import pytest
import torch
import torch.nn.functional as F
from releases import rotary_product, without_rotary
from torch import nn
from torch.autograd import grad as grad_by_name
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutput

import gpuprof
from gpuprof.schema import UNATTRIBUTED
from gpuprof.workload import training

ROWS, WIDTH, HIDDEN = 3, 8, 16
SQUARE = 2 * ROWS * WIDTH * WIDTH  # one product of a WIDTH x WIDTH weight
WIDE = 2 * ROWS * WIDTH * HIDDEN  # one product of a WIDTH x HIDDEN weight


def inputs():
    return torch.randn(ROWS, WIDTH)


def profile(model, given=None, passes=("count",), **kwargs):
    torch.manual_seed(0)
    run = gpuprof.profile(model, given, passes=list(passes), **kwargs)
    assert [outcome.status for outcome in run.passes.values()] == ["done"] * len(passes)
    assert_adds_up(run)
    return run


def assert_adds_up(run):
    """The root and what belongs to no module are everything."""
    modules = run.modules().set_index("module")
    ends = modules.loc[["", UNATTRIBUTED]]
    for phase in ("forward", "recompute", "backward"):
        rows = run.ops[run.ops["phase"] == phase]
        assert ends[f"flops_{phase}"].sum() == rows["flops_causal"].sum()
        assert ends[f"vector_flops_{phase}"].sum() == rows["vector_flops"].sum()
    assert ends["flops_hardware"].sum() == run.ops["flops_hardware"].sum()


def products(run):
    """Matmul FLOPs of each module by itself: {(module, phase): FLOPs}."""
    ops = without_rotary(run).ops
    rows = ops[ops["flops_full"].fillna(0) > 0]
    return {key: int(flops) for key, flops in rows.groupby(["module", "phase"])["flops_full"].sum().items()}


def expected(**modules):
    """{(module, phase): FLOPs} from ``name=(forward, backward[, recompute])``, leaving out what is 0."""
    named = {"" if name == "root" else name.replace("__", "."): flops for name, flops in modules.items()}
    phases = ("forward", "backward", "recompute")
    return {
        (name, phase): count
        for name, flops in named.items()
        for phase, count in zip(phases, flops, strict=False)
        if count
    }


def measured(model, given=None, phantoms=(), **kwargs):
    """What both passes say, having checked that they say the same.

    Args:
        phantoms: modules whose last operator a checkpoint that stops early has announced to the profiler, but not run.
    """
    run = profile(model, given, ("count", "trace"), **kwargs)
    rows = run.ops[run.ops["flops_full"].fillna(0) > 0]
    counted = rows.groupby(["module", "phase"])["calls"].sum().to_dict()
    names = {op.partition(".")[0] for op in rows["op"]}
    traced = run.kernels[run.kernels["op"].isin(names)].groupby(["module", "phase"]).size().to_dict()
    for key in [(module, "recompute") for module in phantoms]:
        assert traced.get(key, 0) - counted.get(key, 0) in (0, 1)
        traced.pop(key, None)
        if key in counted:
            traced[key] = counted[key]
    assert traced == counted
    return products(run)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH))


def test_backward_is_twice_forward_but_for_the_first_layer():
    assert measured(mlp(), inputs()) == {
        ("0", "forward"): WIDE,
        ("0", "backward"): WIDE,  # the input needs no gradient
        ("2", "forward"): WIDE,
        ("2", "backward"): 2 * WIDE,
    }


def test_backward_of_the_first_layer_is_twice_forward_where_the_input_needs_a_gradient():
    found = measured(mlp(), inputs().requires_grad_())
    assert found["0", "backward"] == 2 * found["0", "forward"] == 2 * WIDE


def test_frozen_modules_have_no_weight_gradient_and_frozen_first_layers_none_at_all():
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    found = measured(model, inputs())
    assert {path: found.get((path, "backward"), 0) // SQUARE for path in "0123"} == {"0": 0, "1": 1, "2": 1, "3": 2}


def test_adapters_on_a_frozen_base():
    rank = 2

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            self.a = nn.Linear(WIDTH, rank, bias=False)
            self.b = nn.Linear(rank, WIDTH, bias=False)

        def forward(self, x):
            return self.base(x) + self.b(self.a(x))

    small = 2 * ROWS * WIDTH * rank
    found = measured(nn.Sequential(Adapted(), Adapted()), inputs())
    assert found == expected(
        **{"0__base": (SQUARE, 0), "0__a": (small, small), "0__b": (small, 2 * small)},
        **{"1__base": (SQUARE, SQUARE), "1__a": (small, 2 * small), "1__b": (small, 2 * small)},
    )


def tiny_llama(**changes):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=40, num_key_value_heads=2, max_position_embeddings=64, **sizes | changes)
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def text(batch=2, length=6):
    ids = torch.randint(0, 40, (batch, length))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


T = 2 * 6
LLAMA_FORWARD = {
    "self_attn.q_proj": 2 * T * 32 * 32,
    "self_attn.k_proj": 2 * T * 32 * 16,
    "self_attn.v_proj": 2 * T * 32 * 16,
    "self_attn.o_proj": 2 * T * 32 * 32,
    "self_attn": 2 * (2 * T * 6 * 32),  # scores and weighted values, of 4 heads of 8, over the whole square
    "mlp.gate_proj": 2 * T * 32 * 48,
    "mlp.up_proj": 2 * T * 32 * 48,
    "mlp.down_proj": 2 * T * 48 * 32,
}


def llama(layers, recomputed=()):
    found = {("lm_head", "forward"): 2 * T * 32 * 40, ("lm_head", "backward"): 2 * 2 * T * 32 * 40}
    for layer in range(layers):
        for path, forward in LLAMA_FORWARD.items():
            module = f"model.layers.{layer}.{path}"
            found[module, "forward"], found[module, "backward"] = forward, 2 * forward
            if path in recomputed:
                found[module, "recompute"] = forward
    return found


def test_grouped_query_attention_where_torchs_own_tree_is_wrong():
    model, given = tiny_llama(), text()
    assert measured(model, given) == llama(2)

    with FlopCounterMode(display=False) as torchs:
        model(**given).loss.backward()
    tree = {path: sum(ops.values()) for path, ops in torchs.get_flop_counts().items()}
    k_proj = tree["LlamaForCausalLM.model.layers.0.self_attn.k_proj"]
    assert k_proj / (3 * LLAMA_FORWARD["self_attn.k_proj"]) == pytest.approx(7 / 3)
    # its total is right
    assert tree["Global"] - tree.get("LlamaForCausalLM.model.rotary_emb", 0) == sum(llama(2).values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_a_llama(reentrant):
    model = tiny_llama().train()
    training.checkpoint(model, "reentrant" if reentrant else "non-reentrant")
    down = "mlp.down_proj"  # non-reentrant stops as soon as all it needs is there
    recomputed = [path for path in LLAMA_FORWARD if reentrant or path != down]
    phantoms = () if reentrant else [f"model.layers.{layer}.{down}" for layer in range(2)]
    assert measured(model, text(), phantoms) == llama(2, recomputed)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.block = Block()
        self.head = nn.Linear(WIDTH, WIDTH)
        self.reentrant = reentrant

    def forward(self, x):
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_module(reentrant):
    found = measured(Checkpointed(reentrant), inputs(), phantoms=() if reentrant else ["block.down"])
    assert found == expected(
        first=(SQUARE, SQUARE),
        block__up=(WIDE, 2 * WIDE, WIDE),
        block__down=(WIDE, 2 * WIDE, WIDE if reentrant else 0),
        head=(SQUARE, 2 * SQUARE),
    )


class Functional(nn.Module):
    """Checkpoints a function with products of its own before, between and after calls of modules."""

    def __init__(self, reentrant, order):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.reentrant = reentrant
        self.order = order

    def body(self, x):
        for step in self.order:
            x = torch.tanh(F.linear(x, self.weight) if step == "f" else self.inner(x))
        return x

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("order", ["f", "ff", "fi", "if", "fif", "ifi"])
@pytest.mark.parametrize("path", ["inside", "root"])
def test_a_checkpointed_function_belongs_to_the_module_that_calls_it(reentrant, order, path):
    part = Functional(reentrant, order)
    model = nn.Sequential()
    model.add_module("inside", part)
    prefix = "inside." if path == "inside" else ""
    found = measured(model if path == "inside" else part, inputs().requires_grad_())
    own, inner = order.count("f") * SQUARE, order.count("i") * SQUARE
    # the last operator is a tanh, whose result is saved: nothing is left out by stopping early
    named = {path if path == "inside" else "": own, f"{prefix}inner": inner}
    assert found == {
        (module, phase): times * flops
        for module, flops in named.items()
        for phase, times in (("forward", 1), ("backward", 2), ("recompute", 1))
        if flops
    }


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_within_checkpoint(reentrant):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.one = Block()
            self.two = Block()

        def outer(self, x):
            return torch.tanh(self.two(checkpoint(self.one, x, use_reentrant=reentrant)))

        def forward(self, x):
            return checkpoint(self.outer, self.first(x), use_reentrant=reentrant)

    found = measured(Nested(), inputs(), phantoms=() if reentrant else ["one.down"])
    assert found == expected(
        first=(SQUARE, SQUARE),
        # once by the outer and once by the inner checkpoint, which stops early where it can
        one__up=(WIDE, 2 * WIDE, 2 * WIDE),
        one__down=(WIDE, 2 * WIDE, 2 * WIDE if reentrant else WIDE),
        two__up=(WIDE, 2 * WIDE, WIDE),
        two__down=(WIDE, 2 * WIDE, WIDE),
    )


def test_a_function_that_runs_its_forward_again_by_itself():
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, given):
            x, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
            with torch.enable_grad():
                out = x @ weight
            return torch.autograd.grad(out, (x, weight), given)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x):
            return Again.apply(x, self.weight)

    found = products(profile(nn.Sequential(Own(), Own()), inputs().requires_grad_()))
    for path in "01":
        assert [found[path, phase] for phase in ("forward", "recompute", "backward")] == [SQUARE, SQUARE, 2 * SQUARE]


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(WIDTH, WIDTH, bias=False)
            self.two = nn.Linear(WIDTH, WIDTH, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.tanh(self.one(x)))

    model = Tied()
    assert measured(model, inputs()) == expected(one=(SQUARE, SQUARE), two=(SQUARE, 2 * SQUARE))
    tree = profile(model, inputs()).tree.set_index("module")
    assert list(tree.loc[["", "one", "two"], "params"]) == [WIDTH * WIDTH] * 3


def test_a_model_that_says_which_its_parameters_are():
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
            self.head = nn.Linear(WIDTH, 1, bias=False)
            self.outside = [nn.Parameter(torch.ones(5))]  # in no module

        def parameters(self, recurse=True):
            return iter([*self.head.parameters(), *self.outside])

        def forward(self, x):
            return self.head(self.body(x))

    tree = profile(Probe(), inputs()).tree.set_index("module")
    assert tree["params"].to_dict() == {"": WIDTH + 5, "body": 0, "head": WIDTH}


def test_a_module_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.inner(torch.tanh(self.inner(x)))

    model = Twice()
    # the input needs no gradient in the first of the two calls
    assert measured(model, inputs()) == expected(inner=(2 * SQUARE, 3 * SQUARE))
    tree = profile(model, inputs()).tree.set_index("module")
    assert (tree.loc["", "calls"], tree.loc["inner", "calls"]) == (1, 2)


class KeywordOnly(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner = nn.ModuleDict({"one": nn.Linear(WIDTH, WIDTH), "two": Returning(wrap)})

    def forward(self, *, hidden):
        return self.inner["two"](hidden=self.inner["one"](hidden))


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.wrap = wrap

    def forward(self, *, hidden):
        return self.wrap(self.linear(hidden))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: BaseModelOutput(last_hidden_state=x),
        lambda x: {"mask": torch.ones(2), "nested": [{"x": x}]},
        lambda x: (None, x),
        lambda x: x.relu_(),
    ],
    ids=["tensor", "ModelOutput", "dict", "tuple", "in-place"],
)
def test_keyword_inputs_and_any_kind_of_output(wrap):
    found = measured(KeywordOnly(wrap), {"hidden": inputs()})
    assert found == expected(inner__one=(SQUARE, SQUARE), inner__two__linear=(SQUARE, 2 * SQUARE))


def test_in_place_on_the_input_and_the_output_of_a_module():
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)
    )
    assert measured(model, inputs()) == {
        ("0", "forward"): SQUARE,
        ("0", "backward"): SQUARE,
        ("2", "forward"): SQUARE,
        ("2", "backward"): 2 * SQUARE,
    }


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, given):
        x, weight = ctx.saved_tensors
        return given @ weight.t(), x.t() @ given


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return Product.apply(self.inner(x), self.weight)


@pytest.mark.parametrize("where", ["root", "inside"])
def test_a_custom_function(where):
    model = Custom() if where == "root" else nn.Sequential(Custom())
    path, inner = ("", "inner") if where == "root" else ("0", "0.inner")
    assert measured(model, inputs()) == {
        (path, "forward"): SQUARE,
        (path, "backward"): 2 * SQUARE,
        (inner, "forward"): SQUARE,
        (inner, "backward"): SQUARE,
    }


def test_the_loss_belongs_to_no_module():
    target = torch.randn(ROWS, WIDTH)
    weight = torch.randn(WIDTH, WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    found = measured(model, inputs(), loss=lambda out: F.mse_loss(out @ weight, target))
    assert found == {
        ("0", "forward"): SQUARE,
        ("0", "backward"): SQUARE,
        (UNATTRIBUTED, "forward"): SQUARE,
        (UNATTRIBUTED, "backward"): SQUARE,
    }


# -- steps of the user's own


def test_two_backwards_of_one_forward():
    model, x = mlp(), inputs()

    def step():
        out = model(x)
        out.sum().backward(retain_graph=True)
        out.pow(2).sum().backward()

    assert measured(model, step=step) == {
        ("0", "forward"): WIDE,
        ("0", "backward"): 2 * WIDE,
        ("2", "forward"): WIDE,
        ("2", "backward"): 4 * WIDE,
    }


def accumulating(model, x):
    def step():
        for _ in range(3):
            model(x).sum().backward()

    return step


def piecewise(model, x):
    def step():
        for _ in range(3):
            h = x
            for part in model:
                h = part(h)
            h.sum().backward()

    return step


@pytest.mark.parametrize("kind", [accumulating, piecewise], ids=["whole", "part by part"])
def test_gradient_accumulation(kind):
    model = mlp()
    assert measured(model, step=kind(model, inputs())) == {
        ("0", "forward"): 3 * WIDE,
        ("0", "backward"): 3 * WIDE,
        ("2", "forward"): 3 * WIDE,
        ("2", "backward"): 6 * WIDE,
    }


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("how", ["backward", "autograd.backward", "autograd.grad", "grad by name"])
def test_a_backward_that_keeps_its_graph_is_no_recomputation(how):
    model, x = mlp(), inputs()
    params = list(model.parameters())

    def step():
        loss = model(x).sum()
        if how == "backward":
            loss.backward(create_graph=True)
        elif how == "autograd.backward":
            torch.autograd.backward(loss, None, True, True)
        elif how == "autograd.grad":
            torch.autograd.grad(loss, params, create_graph=True)
        else:
            grad_by_name(loss, params, None, True, True)

    found = measured(model, step=step)
    assert found == {
        ("0", "forward"): WIDE,
        ("0", "backward"): WIDE,
        ("2", "forward"): WIDE,
        ("2", "backward"): 2 * WIDE,
    }


def gradient_penalty():
    model, x = mlp(), inputs().requires_grad_()

    def step():
        (slope,) = grad_by_name(model(x).sum(), x, create_graph=True)
        slope.pow(2).sum().backward()

    return model, step


def test_the_backward_of_a_backward_belongs_to_the_modules_too():
    model, step = gradient_penalty()
    assert products(profile(model, step=step)) == {
        ("0", "forward"): WIDE,
        # the slope: one product; its own backward: two; and on through the tanh to weight and input: two
        ("0", "backward"): 5 * WIDE,
        ("2", "forward"): WIDE,
        # the slope: one; its own backward: one, as the gradient that comes in is a constant
        ("2", "backward"): 2 * WIDE,
    }


def test_the_phase_of_a_gradient_by_name():
    model, x = mlp(), inputs()
    run = profile(model, step=lambda: grad_by_name(model(x).sum(), list(model.parameters())), passes=("count", "time"))
    assert set(run.samples["phase"]) == {"step", "forward", "backward", "other", "reference"}
    assert set(run.ops.loc[run.ops["phase"] != "forward", "phase"]) == {"backward"}


def test_optimizer_work_is_the_optimizers():
    model = mlp()
    run = profile(model, inputs(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1, foreach=False))
    rows = run.ops[run.ops["phase"] == "optimizer"]
    assert set(rows["module"]) == {UNATTRIBUTED}
    assert rows["vector_flops"].sum() == sum(p.numel() for p in model.parameters())  # one addition each


def test_an_optimizer_that_calls_for_a_backward_itself():
    model, x = mlp(), inputs()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    run = profile(model, step=lambda: optimizer.step(closure))
    tree, found = run.tree.set_index("module"), products(run)
    calls = tree.loc["", "calls"]
    assert calls > 1
    assert {key: count for key, count in found.items() if key[1] != "optimizer"} == {
        ("0", "forward"): calls * WIDE,
        ("0", "backward"): calls * WIDE,
        ("2", "forward"): calls * WIDE,
        ("2", "backward"): calls * 2 * WIDE,
    }
    assert set(run.ops.loc[run.ops["vector_flops"] > 0, "phase"]) == {"forward", "backward", "optimizer"}
    assert "aten::dot.default" in set(run.ops.loc[run.ops["phase"] == "optimizer", "op"])


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_that_calls_what_is_deep_in_the_model_and_uses_parameters_itself(by_name):
    model, x = nn.Sequential(mlp()), inputs()
    model.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model[0][2](model[0][0](x @ model.weight)).square().sum()
        loss.backward()
        return loss

    run = profile(model, step=lambda: optimizer.step(closure=closure) if by_name else optimizer.step(closure))
    square = 2 * ROWS * WIDTH * WIDTH
    assert products(run) == {
        (UNATTRIBUTED, "forward"): square,
        ("0.0", "forward"): WIDE,
        ("0.2", "forward"): WIDE,
        (UNATTRIBUTED, "backward"): square,  # of the weight alone: x needs no gradient
        ("0.0", "backward"): 2 * WIDE,
        ("0.2", "backward"): 2 * WIDE,
    }


def test_a_module_that_raises_and_is_caught_ends_with_its_exception():
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            self.inner(x)
            raise ValueError("no")

    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.raising = Raising()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x):
            try:
                self.raising(x)
            except ValueError:
                return x @ self.weight

    found = measured(nn.Sequential(Catching()), inputs())
    assert found == {
        ("0", "forward"): SQUARE,
        ("0", "backward"): SQUARE,
        ("0.raising.inner", "forward"): SQUARE,
    }


# -- every total adds up, whatever the model

HF = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "mistral": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "sliding_window": 3},
    "gemma2": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 8},
    "mixtral": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "num_local_experts": 4},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "phi3": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "pad_token_id": 0},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "deepseek_v3": {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 8, "n_group": 2,
                    "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 8,
                    "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4},
}  # fmt: skip


@pytest.mark.parametrize("kind", HF)
def test_every_total_adds_up(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=40, bos_token_id=1, eos_token_id=2, **HF[kind])
    model = AutoModelForCausalLM.from_config(config).train()
    run = profile(model, text(2, 5))
    found = products(run)
    assert sum(found.values()) + rotary_product(run) == run.ops["flops_full"].sum()
    assert {phase for _, phase in found} == {"forward", "backward"}
    # nothing of the model is lost: what belongs to no module is the loss, which multiplies no matrices
    assert not [module for module, _ in found if module == UNATTRIBUTED]
    # every linear layer: backward twice forward
    tree = run.tree.set_index("module")
    for module, phase in found:
        if phase == "backward" and tree.loc[module, "class"] == "Linear":
            assert found[module, "backward"] == 2 * found[module, "forward"], module


def test_sums_agree_with_torchs_counter():
    model = mlp()
    x = inputs()
    with FlopCounterMode(display=False) as torchs:
        model(x).sum().backward()
    assert torchs.get_total_flops() == sum(products(profile(model, x)).values())
