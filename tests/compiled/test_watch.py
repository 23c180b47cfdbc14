"""What torch.compile does in the steps of a profile: seen, kept out of their time, and nothing of it left behind."""

import inspect
import os

import pytest
import torch
from torch import nn
from torch._dynamo import trace_rules, utils
from torch._dynamo.callback import callback_handler
from torch._inductor import config as inductor_config

import gpuprof
from gpuprof.compiled.watch import guards, in_short
from gpuprof.errors import GpuprofError


class Broken(nn.Module):
    """Three graph breaks, so four graphs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.layers[0](x)
        torch._dynamo.graph_break()
        x = self.layers[1](x)
        print(end="")
        x = self.layers[2](x)
        return x * 2 if x.sum().item() > 1e9 else x * 3


class Growing(nn.Module):
    """Its list is longer at each call, until it is ``most`` long."""

    def __init__(self, most):
        super().__init__()
        self.linear, self.items, self.most = nn.Linear(8, 8), [], most

    def forward(self, x):
        if len(self.items) < self.most:
            self.items = [*self.items, 1]
        return self.linear(x) * len(self.items)


def line_of(function, text):
    """File and line of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return f"test_watch.py:{first + next(number for number, line in enumerate(lines) if text in line)}"


def settings():
    """All that is changed for a while."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    return (
        torch._dynamo.config.get_config_copy(), inductor_config.get_config_copy(),
        [*callback_handler.start_callbacks], [*callback_handler.end_callbacks], {n: os.environ.get(n) for n in names},
        utils.CompileEventLogger.instant, type(utils._compilation_metrics), trace_rules.SKIP_DIRS_RE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def broken():
    """The compiled net, its input, a profile of it in which it was compiled first, and what was told meanwhile."""
    torch._dynamo.reset()
    model, x, told = torch.compile(Broken(), mode="reduce-overhead"), torch.randn(4, 8), []
    before = settings()
    run = gpuprof.profile(model, x, passes=("count", "time"), progress=lambda *what: told.append(what))
    assert settings() == before
    return model, x, run, [done for name, *done in told if name == "compiling"]


def test_breaks_have_their_reason_and_place(broken):
    rows = broken[2].breaks

    at = [line_of(Broken.forward, text) for text in ("graph_break()", "print(", ".item()")]
    assert [*rows["place"]] == at
    assert [*rows["breaks"]] == [1, 1, 1]
    reasons = ["Call to `torch._dynamo.graph_break()`", "Failed to trace builtin", "Unsupported Tensor.item()"]
    assert all(found.startswith(known) for found, known in zip(rows["reason"], reasons, strict=True))
    assert rows["frame"].iloc[0] == f"forward ({line_of(Broken.forward, 'def forward')})"


def test_each_graph_is_compiled_once_for_the_forward_and_once_for_the_backward(broken):
    rows = broken[2].compilations
    cold, warm = rows[rows["pass"] == "time"], rows[rows["pass"] == "warm"]

    assert [*cold["direction"]] == ["forward"] * 4 + ["backward"] * 4
    assert set(cold["cache"]) == {"miss"}
    assert cold["step"].isna().all()
    assert set(cold["reason"]) == set(cold["gave_up"]) == {""}
    assert [*cold["cuda_graph"]] == ["skipped: not on CUDA"] * 4 + [""] * 4
    assert (cold["total_s"] >= cold["inductor_s"]).all()
    # from the caches both directions come at once
    assert [*warm["direction"]] == ["forward"] * 4
    assert set(warm["cache"]) == {"hit"}
    assert set(warm["reason"]) == {""}
    assert [*warm["frame"]] == [*cold["frame"]][:4]
    assert warm["total_s"].sum() < cold["total_s"].sum()


def test_warm_up_goes_on_until_nothing_is_compiled(broken):
    assert broken[2].passes["time"].facts == {"warmup": 2, "steps": 3}
    assert broken[2].workload["compiled"] == {"": "inductor, mode reduce-overhead"}


def test_compilations_are_told(broken):
    told = broken[3]

    assert told[:4] == [[0, 1], [1, 1], [1, 2], [2, 2]]
    assert told[-1] == [12, 12]  # 8, and 4 once more


def test_a_second_profile_finds_it_compiled(broken):
    model, x, first, _ = broken
    before = settings()

    run = gpuprof.profile(model, x, passes=("time",))
    compiled = utils.counters["stats"]["unique_graphs"]
    model(x).sum().backward()

    assert run.compilations.empty
    assert run.passes["time"].status == "done"
    assert utils.counters["stats"]["unique_graphs"] == compiled
    assert settings() == before
    assert len(run.samples) == len(first.samples)


def test_settings_are_put_back_after_an_error():
    class Raising(nn.Module):
        def forward(self, x):
            raise ValueError("no step")

    before = settings()
    with pytest.raises(GpuprofError, match="no step"):
        gpuprof.profile(torch.compile(Raising(), backend="aot_eager"), torch.ones(2), mode="forward", passes=("time",))

    assert settings() == before


def test_what_is_compiled_in_each_step_has_no_time():
    torch._dynamo.reset()
    run = gpuprof.profile(
        torch.compile(Growing(100), backend="aot_eager"), torch.randn(4, 8), passes=("count", "time", "telemetry")
    )

    guard = f"len(self.items) == {{}} ({line_of(Growing.forward, 'if len(')})"
    assert run.samples.empty
    assert run.passes["time"].status == "failed"
    # the count calls it twice, 5 steps warm up: the last code is for 6 items
    assert run.passes["time"].reason == (
        f"torch.compile compiled forward ({line_of(Growing.forward, 'def forward')}) in 3 of the timed steps as it "
        f"failed {guard.format(6)}: what they took is the time of no step; give more warm-up steps, or mark as dynamic "
        "what varies"
    )
    timed = run.compilations[run.compilations["step"].notna()]
    assert [*timed["step"]] == [0, 0, 1, 1, 2, 2]
    assert [*timed["direction"]] == ["forward", "backward"] * 3
    assert [*timed["reason"]] == [text for length in (6, 7, 8) for text in (guard.format(length), "")]


def test_what_comes_to_rest_is_timed():
    torch._dynamo.reset()
    run = gpuprof.profile(torch.compile(Growing(4), backend="aot_eager"), torch.randn(4, 8), passes=("count", "time"))

    # code for 2, 3 and 4 items, and a step that needs no other
    assert run.passes["time"].facts == {"warmup": 4, "steps": 3}
    assert run.compilations["step"].isna().all()
    assert len(run.samples[run.samples["phase"] == "step"]) == 3


def test_who_gives_a_function_up_is_said():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        run = gpuprof.profile(torch.compile(Growing(100), backend="aot_eager"), torch.randn(4, 8), passes=("time",))

    assert run.passes["time"].status == "done"
    frame = f"forward ({line_of(Growing.forward, 'def forward')})"
    assert run.warnings[0].startswith(f"torch.compile gave up {frame}, which now runs as it is: Dynamo recompile limit")
    assert [bool(why) for why in run.compilations["gave_up"]] == [False] * 4 + [True]  # both directions of two


def test_a_compiled_step_is_compiled_without_us():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x).relu()

    torch._dynamo.reset()
    model, x = Net(), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="aot_eager")
    def step():
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = gpuprof.profile(model, step=step)

    assert {name: one.status for name, one in run.passes.items() if name != "telemetry"} == dict.fromkeys(
        ("count", "time", "trace", "memory"), "done"
    )
    assert run.workload["compiled"] == {"(step)": "aot_eager"}
    assert set(run.samples["phase"]) == {"step", "reference"}  # to see phases would be to compile another step
    ours = r"\((?:phases|preserve|attribution|watch|kept|memory|timing)\.py"
    assert not run.compilations["frame"].str.contains(ours).any()
    compiled = utils.counters["stats"]["unique_graphs"]
    step()
    assert utils.counters["stats"]["unique_graphs"] == compiled


def test_a_compiled_optimizer():
    torch._dynamo.reset()
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    update = torch.compile(optimizer.step, backend="aot_eager")

    def step():
        optimizer.zero_grad()
        model(x).sum().backward()
        update()

    run = gpuprof.profile(model, step=step)

    assert {name: one.status for name, one in run.passes.items() if name != "telemetry"} == dict.fromkeys(
        ("count", "time", "trace", "memory"), "done"
    )
    assert "compiled" not in run.workload
    assert run.compilations.loc[run.compilations["pass"] == "time", "frame"].str.startswith("step (adam").any()
    assert "optimizer" in set(run.samples["phase"])


def test_guards_in_short():
    long = "3/0: len(l) == 1          # return x*len(l)  # mp/net.py:27 in forward\nUser stack trace:\n  File"
    assert guards(long) == "len(l) == 1 (net.py:27)"
    assert guards("0/0: tensor 'x' size mismatch at index 0. expected 3, actual 5") == (
        "tensor 'x' size mismatch at index 0. expected 3, actual 5"
    )
    hinted = "0/0: check(x), type=T  # name = f'{a}'  # transformers/utils/deprecation.py:126 in call (HINT: type T)"
    assert guards(hinted) == "check(x), type=T (deprecation.py:126)"
    assert guards("0/0: BACKEND_MATCH failure: Cached backend: A. New backend: gpuprof.compiled.watch.again") == ""
    assert guards("") == ""


def test_reasons_in_short():
    assert in_short("Bad thing\n  Explanation: It is bad. Very.\n  Hint: none") == "Bad thing: It is bad"
    assert in_short("generic_jump TensorVariable()") == "generic_jump TensorVariable()"
