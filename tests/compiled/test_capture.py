"""Kernels of compiled code go to the modules that they came from, whatever was compiled and whoever calls it."""

import os

import pandas as pd
import pytest
import torch
from torch import nn
from torch._inductor import debug
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch.utils.checkpoint import checkpoint

import gpuprof
from gpuprof.analysis.compiled import compiled_flops
from gpuprof.compiled.capture import Frame, Graph
from gpuprof.schema import UNATTRIBUTED

PASSES = ("count", "trace")
WIDTH, BATCH = 16, 4
PRODUCT = 2 * BATCH * WIDTH * WIDTH
X = torch.ones(BATCH, WIDTH)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(WIDTH, WIDTH), nn.GELU()

    def forward(self, x):
        return x + self.act(self.linear(x))


class BrokenBlock(Block):
    def forward(self, x):
        x = self.linear(x)
        torch._dynamo.graph_break()
        return self.act(x)


class Net(nn.Module):
    def __init__(self, kind=Block, checkpointed=False):
        super().__init__()
        self.checkpointed = checkpointed
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([kind(), kind()])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


def in_place(model):
    for block in model.blocks:
        block.compile()
    return model


def owners(run):
    """Modules and phases that compiled kernels and products are booked on."""
    rows = run.kernels[run.kernels["compiled"] != ""]
    return {(row.module, row.phase) for row in rows.itertuples()}


def products(run):
    """FLOPs of products in compiled code."""
    rows = run.nodes[(run.nodes["flops_hardware"] > 0) & (run.nodes["repeat"] == 0)]
    return rows.groupby(["module", "phase"])["flops_hardware"].sum().to_dict()


def of_linear(module):
    return {(module, "forward"): PRODUCT, (module, "backward"): 2 * PRODUCT}


@pytest.fixture(scope="module")
def blocks():
    return gpuprof.profile(in_place(Net()), X, passes=PASSES)


def test_equal_blocks_are_compiled_once_and_each_has_its_own(blocks):
    afresh = blocks.compilations[blocks.compilations["cache"] == "disabled"]
    assert list(afresh["frame"].str.partition(" ")[0]) == ["forward", "forward"]
    assert list(afresh["direction"]) == ["forward", "backward"]
    assert list(zip(blocks.graphs["region"], blocks.graphs["direction"], strict=True)) == [
        ("blocks.0", "forward"), ("blocks.1", "forward"), ("blocks.1", "backward"), ("blocks.0", "backward"),
    ]  # fmt: skip
    assert set(blocks.graphs["calls"]) == {1}
    assert products(blocks) == of_linear("blocks.0.linear") | of_linear("blocks.1.linear")


def test_compiled_code_does_what_was_counted(blocks):
    assert set(blocks.kernels["module"]) <= {*blocks.tree["module"], UNATTRIBUTED}
    modules = blocks.modules().set_index("module")
    assert modules.loc["blocks.1.linear", "flops_forward"] == PRODUCT
    assert (modules.loc[["blocks.0.linear", "blocks.1.linear"], "time_backward_s"] > 0).all()


def test_a_model_that_breaks_inside_each_of_its_blocks():
    model = Net(BrokenBlock)
    model.compile()
    run = gpuprof.profile(model, X, passes=PASSES)
    assert products(run) == of_linear("blocks.0.linear") | of_linear("blocks.1.linear")
    assert {module for module, _ in owners(run)} >= {"blocks.0.act", "blocks.1.act"}
    assert set(run.graphs["region"]) == {"blocks.0", "blocks.1"}
    modules = run.modules().set_index("module")
    assert modules.loc["first", ["time_forward_s", "time_backward_s"]].isna().all()  # Python called it: the model's
    assert (modules.loc["blocks.0.act", ["time_forward_s", "time_backward_s"]] > 0).all()
    assert set(run.graphs.loc[run.graphs["cut"] != "", "cut_at"].str.partition(":")[0]) == {"test_capture.py"}


def test_what_a_checkpoint_runs_again_is_recomputation():
    run = gpuprof.profile(in_place(Net(checkpointed=True)), X, passes=PASSES)
    again = {(f"blocks.{number}.linear", "recompute"): PRODUCT for number in range(2)}
    assert products(run) == of_linear("blocks.0.linear") | of_linear("blocks.1.linear") | again


def test_a_step_of_compiled_functions():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())

    @torch.compile
    def loss_of(x):
        return model(x).square().mean()

    update = torch.compile(optimizer.step)

    def step():
        loss = loss_of(X)
        loss.backward()
        update()
        optimizer.zero_grad()
        return loss

    run = gpuprof.profile(model, step=step, optimizer=optimizer, passes=PASSES)
    every = of_linear("first") | of_linear("blocks.0.linear") | of_linear("blocks.1.linear")
    assert products(run) == every | {("first", "backward"): PRODUCT}  # nobody asks for the gradient of the input
    rows = run.nodes[run.nodes["op"].str.startswith("aten::mean")]
    assert set(zip(rows["module"], rows["phase"], strict=True)) == {(UNATTRIBUTED, "forward")}
    assert (UNATTRIBUTED, "optimizer") in owners(run)


def test_a_compiled_function_is_of_the_module_that_calls_it():
    @torch.compile
    def twice(x):
        return torch.sin(x) * 2

    class Calls(nn.Module):
        def forward(self, x):
            return twice(x)

    run = gpuprof.profile(nn.Sequential(Calls(), Calls()), X, mode="forward", passes=PASSES)
    assert owners(run) == {("0", "forward"), ("1", "forward")}


def test_a_module_that_the_model_does_not_list_is_of_who_calls_it():
    node = torch.fx.Graph().placeholder("x")
    node.meta["nn_module_stack"] = {"1": ("L['self'].up", nn.Linear), "2": ("L['self'].plain[0]", nn.Linear)}
    graph = {paths: Graph(Frame("", "net", {"L['self'].up": paths} if paths else {}), "forward", node.graph, {})
             for paths in ("net.up", "")}  # fmt: skip
    assert graph["net.up"].owner(node) == "net.up"
    assert graph[""].owner(node) == "net"


def test_modules_are_seen_while_another_thread_compiles(monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    run = gpuprof.count(Net(), X)
    rows = run.ops[run.ops["op"] == "aten::addmm.default"]
    assert list(rows["module"]) == ["first", "blocks.0.linear", "blocks.1.linear"]


def test_a_branch_is_a_graph_of_its_own():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x):
            return self.last(torch.cond(x.sum() > 0, lambda y: self.one(y).relu(), lambda y: self.other(y).sin(), (x,)))

    model = Chooses()
    model.compile()
    run = gpuprof.profile(model, X, passes=PASSES)
    made = products(run)
    in_branch = {("one", "forward"): PRODUCT, ("", "recompute"): PRODUCT, (UNATTRIBUTED, "backward"): PRODUCT}
    assert made == of_linear("last") | in_branch  # nobody asks for the gradient of the input
    assert list(run.graphs["direction"]) == ["forward", "forward", "backward", "backward"]
    assert list(run.graphs["unmapped"]) == ["", "", "", "torch notes no modules in the backward of a branch"]
    reads = run.kernels[run.kernels["op"] == "aten::_local_scalar_dense"]  # to choose: no part of the kernel before
    assert reads["compiled"].iloc[0] == ""
    assert not (compiled_flops(run)["cause"] != "").any()  # whose the products of the backward are is not known


def test_what_a_graph_for_several_sizes_does_is_known_of_one_alone():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
    compiled = torch.compile(model, dynamic=True)
    asked = torch.ones(BATCH, WIDTH, requires_grad=True)

    def step(*batches):
        sum(compiled(batch).sum() for batch in batches).backward()

    one = gpuprof.profile(compiled, step=lambda: step(asked, asked), passes=PASSES)
    of_two = {(module, phase): 2 * flops for (module, phase), flops in of_linear("_orig_mod.0").items()}
    assert products(one) == of_two
    several = gpuprof.profile(compiled, step=lambda: step(asked, asked[:2]), passes=PASSES)
    works = several.nodes[several.nodes["kind"] != "view"]
    assert set(works["module"]) == {"_orig_mod.0", "_orig_mod.1"}
    assert works[["flops_hardware", "vector_flops", "bytes", "moved"]].isna().all(axis=None)
    assert {module for module, _ in owners(several)} >= {"_orig_mod.0", "_orig_mod.1"}


def test_of_another_backend_only_the_region_is_known():
    model = Net()
    model.blocks[0].compile(backend="aot_eager")
    run = gpuprof.profile(model, X, passes=PASSES)
    assert run.passes["trace"].facts["hidden"] == ["blocks.0"]
    modules = run.modules().set_index("module")
    assert modules.loc[["blocks.0.linear", "blocks.0.act"], "time_forward_s"].isna().all()
    assert modules.loc["blocks.0", "time_forward_s"] > 0
    assert modules.loc["blocks.1.act", "time_forward_s"] > 0


def test_nothing_is_left_and_a_second_profile_gives_the_same(blocks, monkeypatch):
    folders = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
    for name in folders:
        monkeypatch.delenv(name, raising=False)
    write = PythonWrapperCodegen.write_provenance_debug_handle
    model = in_place(Net())
    model(X).mean().backward()  # compiled before the profile, which so has to compile for the trace alone
    before = torch._inductor.config.get_config_copy(), torch._dynamo.config.get_config_copy()
    kernels = debug._inductor_triton_kernel_to_post_grad_node_info.copy()
    run = gpuprof.profile(model, X, passes=PASSES)
    after = torch._inductor.config.get_config_copy(), torch._dynamo.config.get_config_copy()
    assert after == before
    assert all("gpuprof-" not in os.environ.get(name, "") for name in folders)  # torch sets its own default
    assert PythonWrapperCodegen.write_provenance_debug_handle is write
    assert debug._inductor_triton_kernel_to_post_grad_node_info == kernels
    for name in ("graphs", "nodes"):
        pd.testing.assert_frame_equal(getattr(run, name), getattr(blocks, name))
    told = ["module", "phase", "op", "kernel", "call", "shapes", "compiled"]
    pd.testing.assert_frame_equal(run.kernels[told], blocks.kernels[told])
