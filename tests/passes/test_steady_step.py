"""The step that is counted is one of those that are run all the time, and it is one step."""

import itertools
import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gpuprof
from gpuprof.analysis.consistency import mismatches
from gpuprof.passes.steady import changed, held
from gpuprof.profiler import run_passes
from gpuprof.workload import Options, build

BATCH, WIDTH = 64, 256
EACH = 2 * BATCH * WIDTH * WIDTH  # 8,388,608: a batch times the weight


class Folding(nn.Module):
    """Multiplies two matrices at its first call, 67,108,864 FLOPs, and keeps what comes of it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("left", torch.zeros(2 * WIDTH, WIDTH))
        self.register_buffer("right", torch.zeros(WIDTH, WIDTH))
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        self.folded = None

    def forward(self, x):
        if self.folded is None:
            with torch.no_grad():
                self.folded = self.left @ self.right
        return self.linear(x) + self.folded[0]


def phases(run):
    sums = run.ops.groupby("phase")["flops_full"].sum()
    return {phase: int(flops) for phase, flops in sums.items() if flops}


@pytest.mark.parametrize("function", [gpuprof.count, gpuprof.profile])
def test_a_cache_is_filled_before_the_count(function):
    model, x = Folding(), torch.zeros(BATCH, WIDTH, requires_grad=True)
    for _ in range(2):
        run = function(model, x)
        assert phases(run) == {"forward": 8_388_608, "backward": 2 * 8_388_608}
        assert run.warnings == []


def test_memory_alone_is_not_that_of_a_first_step():
    model = Folding()
    memory = gpuprof.profile(model, torch.zeros(BATCH, WIDTH), mode="forward", passes=["memory"]).memory
    assert model.folded is not None
    assert memory.loc[memory["quantity"] == "buffers", "bytes"].tolist() == [3 * WIDTH * WIDTH * 4]


def test_the_stages_of_a_pipeline_are_counted_cold_as_warm(tmp_path):
    script = Path(__file__).with_name("pipeline_stage.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "rendezvous")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    first, last = (json.loads(rank.communicate(timeout=180)[0]) for rank in ranks)
    small = 2 * BATCH * WIDTH * 64  # the second layer of the last stage
    assert first == [{"forward": 8_388_608, "backward": 8_388_608}] * 2  # nothing before it needs a gradient
    assert last == [{"forward": 8_388_608 + small, "backward": 2 * (8_388_608 + small)}] * 2
    assert 8_388_608 + small == 10_485_760


def weightless(tmp_path, body):
    path = tmp_path / "net.py"
    path.write_text(f"import torch\nfrom torch import nn\n{body}\ndef make():\n    return Net(), torch.zeros(4, 8)\n")
    return gpuprof.count(f"{path}:make")


def test_without_weights_the_first_step_is_held_against_a_second(tmp_path):
    run = weightless(
        tmp_path,
        """class Net(nn.Linear):
    def __init__(self):
        super().__init__(8, 16)
        self.kept = {}
    def forward(self, x):
        if "folded" not in self.kept:
            self.kept["folded"] = self.weight.detach() @ self.weight.detach().T
        return super().forward(x)
""",
    )
    assert phases(run) == {"forward": 1024, "backward": 1024}  # 2 x 4 x 8 x 16; the input needs no gradient
    assert run.warnings == [
        "the first step does 5,120 FLOPs in its forward and each further one 1,024 (full square): a further one is "
        "counted"
    ]


def test_without_weights_a_lazy_module_is_made_in_the_first_step(tmp_path):
    run = weightless(tmp_path, "Net = lambda: nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.Linear(16, 2))")
    assert phases(run) == {"forward": 1024 + 256, "backward": 1024 + 2 * 256}
    assert dict(zip(run.tree["module"], run.tree["params"], strict=True)) == {"": 210, "0": 144, "1": 32, "2": 34}
    assert run.warnings == []


@pytest.mark.parametrize("name", ["resnet-50", "gpt2"])
def test_a_preset_keeps_nothing_so_one_step_is_enough(name):
    workload = build(name, Options(batch_size=1), weightless=True)
    steps, step = [], workload.step
    workload.step = lambda: steps.append(name) or step()
    run_passes(workload, passes=["count"])
    assert steps == [name]


def a_flag(model):
    model.made.fill_(True)


def a_cache_in_an_object(model):
    model.cache.keys.append(1)


def an_item_in_a_queue(model):
    model.queue.append(1)


def a_number_in_a_slot(model):
    model.slotted.unset = 1


def a_replaced_tensor(model):
    model.scale = model.scale + 1


def a_lazy_parameter(model):
    model.lazy(torch.zeros(1, 3))


WAYS = [a_flag, a_cache_in_an_object, an_item_in_a_queue, a_number_in_a_slot, a_replaced_tensor, a_lazy_parameter]


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("made", torch.zeros((), dtype=torch.bool))
        self.register_buffer("scale", torch.ones(2))
        self.norm = nn.BatchNorm1d(4)
        self.lazy = nn.LazyLinear(2)
        self.cache = SimpleNamespace(keys=[])
        self.queue = deque([0], maxlen=2)
        self.slotted = Slotted(None)
        self.config = SimpleNamespace(problem=None)
        self.cache.itself = self.cache


@pytest.mark.parametrize("what", WAYS)
def test_what_a_step_leaves_in_a_model(what):
    model = Keeping()
    before = held(model)
    assert not changed(before, held(model))
    what(model)
    assert changed(before, held(model))


def test_what_no_step_goes_by():
    model = Keeping()
    before = held(model)
    model.norm(torch.zeros(2, 4)).sum().backward()  # counts its batches; gradients
    model.config.problem = "classification"
    assert not changed(before, held(model))


LAZY = {"": 82, "0": 48, "1": 16, "2": 18}  # (5 + 1) x 8, 2 x 8, (8 + 1) x 2


@pytest.mark.parametrize("passes", [["count"], ["time"], ["trace"], ["memory"], ["count", "time", "trace", "memory"]])
@pytest.mark.parametrize("trained", [False, True])
def test_lazy_modules(passes, trained):
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1) if trained else None
    torch.manual_seed(3)
    state, last = torch.get_rng_state(), model[2].weight.detach().clone()

    run = gpuprof.profile(model, torch.randn(4, 5), optimizer=optimizer, passes=passes)

    assert all(run.done(name) for name in passes)
    assert run.warnings == []
    assert dict(zip(run.tree["module"], run.tree["params"], strict=True)) == LAZY
    if "count" in passes:
        assert phases(run) == {"forward": 320 + 128, "backward": 320 + 2 * 128}  # 2 x 4 x 5 x 8, 2 x 4 x 8 x 2
    # what was made stays as it was made, everything else as it was
    assert (type(model[0]), type(model[1])) == (nn.Linear, nn.BatchNorm1d)
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert torch.equal(model[1].weight, torch.ones(8))
    assert int(model[1].num_batches_tracked) == 0
    assert torch.equal(model[2].weight, last)
    assert [parameter.grad for parameter in model.parameters()] == [None] * 6
    assert not [module for module in model.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert optimizer is None or not optimizer.state
    assert state.shape == torch.get_rng_state().shape


def test_a_lazy_module_that_is_never_called_is_said():
    model = nn.ModuleDict({"unused": nn.LazyLinear(3), "used": nn.Linear(5, 2)})
    x = torch.zeros(4, 5)
    run = gpuprof.profile(model, step=lambda: model["used"](x).sum().backward())
    assert [name for name, outcome in run.passes.items() if outcome.status == "failed"] == []
    assert run.tree["params"].tolist() == [12, 0, 12]
    assert run.warnings == [
        "unused.weight and 1 more: made at the first call of a lazy module, which never came, so in no count or sum"
    ]


def training(model, lengths, call=None):
    """A step that draws batches of these lengths, in turn."""
    batches = itertools.cycle([torch.zeros(length, WIDTH) for length in lengths])

    def step():
        model.zero_grad()
        loss = (call or model)(next(batches)).sum()
        loss.backward()
        return loss

    return step


def profile(model, step, **how):
    return gpuprof.profile(model, step=step, passes=["count", "time", "trace"], warmup=1, steps=4, **how)


def test_a_step_of_other_lengths_is_refused_its_mfu():
    model = nn.Linear(WIDTH, WIDTH)
    run = profile(model, training(model, [1, 128]))  # one before, one counted, one warm-up, four timed, two traced
    assert phases(run)["forward"] == 2 * 128 * WIDTH * WIDTH
    (line,) = run.warnings
    assert line == (
        "the inputs of the step vary: counted at 128x256, 2 of 4 timed steps at 1x256; let the step take batches of "
        "one shape"
    )
    assert mismatches(run) == [line]


def test_a_step_of_one_length_has_its_mfu():
    model = nn.Linear(WIDTH, WIDTH)
    run = profile(model, training(model, [BATCH]))
    assert run.warnings == []
    assert run.passes["count"].facts["inputs"] == "64x256"
    assert run.passes["time"].facts["inputs"] == {"64x256": 4}


def test_a_step_that_calls_children_one_by_one():
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
    run = profile(model, training(model, [1, 2], call=lambda x: model[1](model[0](x))))
    assert run.warnings[0].startswith(
        "the inputs of the step vary: counted at 0: 2x256, 1: 2x256, 2 of 4 timed steps at 0: 1x256, 1: 1x256;"
    )


def test_a_step_whose_inputs_nobody_sees_is_held_against_the_trace():
    model = nn.Linear(WIDTH, WIDTH)

    def call(x):
        return nn.functional.linear(x, model.weight, model.bias)

    run = profile(model, training(model, [1, 1, 1, 1, 1, 1, 1, 1, 2], call=call))  # the ninth is traced
    assert run.warnings == [
        "aten::addmm in the forward: counted on 256 1x256 256x256, traced on 256 2x256 256x256: the passes ran "
        "different steps",
        "aten::mm in the backward: counted on 256x1 1x256, traced on 256x2 2x256: the passes ran different steps",
    ]
    assert profile(model, training(model, [3], call=call)).warnings == []
    alone = gpuprof.profile(model, step=training(model, [1, 2], call=call), passes=["count", "time"])
    assert alone.warnings == [
        "the step could not be checked for being one step: not every call in it shows a tensor; add trace to the "
        "passes, or call the model with tensors in it"
    ]


class Slotted:
    __slots__ = ("__x", "unset")

    def __init__(self, x):
        self.__x = x

    def taken(self):
        return self.__x


class Unpacking(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch, scale=None, times=1):
        x = batch if isinstance(batch, torch.Tensor) else batch.taken() if isinstance(batch, Slotted) else batch.x
        for _ in range(times):
            x = self.linear(x)
        return x


CALLS = {  # of a model with a batch of 8, 1024 and 16, and what is said of the first of them
    "object": (lambda model, x: model(SimpleNamespace(x=x, it=model)), "8x256"),
    "slots": (lambda model, x: model(Slotted(x)), "8x256"),
    "constant beside": (lambda model, x: model(SimpleNamespace(x=x), torch.ones(1)), "8x256 1"),
    "twice": (lambda model, x: model(SimpleNamespace(x=x)) + model(SimpleNamespace(x=x)), "8x256 (2 calls)"),
    "deeper": (lambda model, x: model.linear(x), "linear: 8x256"),
    "number": (lambda model, x: model(torch.zeros(2, WIDTH), times=len(x) // 8), "2x256 times=1"),
}


@pytest.mark.parametrize(("call", "first"), CALLS.values(), ids=CALLS)
def test_a_cycle_that_fits_the_number_of_steps(call, first):
    model = Unpacking()
    step = training(model, [8, 1024, 16], call=lambda x: call(model, x))
    run = gpuprof.profile(model, step=step, passes=["count", "time"], warmup=1, steps=3)  # timed: 8, 1024, 16
    (line,) = run.warnings
    counted = first.replace("8x", "1024x").replace("=1", "=128")
    assert line == (
        f"the inputs of the step vary: counted at {counted}, 2 of 3 timed steps at {first} and others; let the step "
        "take batches of one shape"
    )
    steady = gpuprof.profile(model, step=training(model, [8], call=lambda x: call(model, x)), passes=["count", "time"])
    assert steady.warnings == []
    assert steady.passes["time"].facts["inputs"] == {first: 3}


def test_modules_that_take_turns_on_the_same_input():
    model = nn.ModuleDict({"made": nn.Linear(WIDTH, WIDTH), "judged": nn.Linear(WIDTH, 4)})
    turns = itertools.cycle(model.values())
    run = gpuprof.profile(model, step=training(model, [8], call=lambda x: next(turns)(x)), passes=["count", "time"])
    assert run.warnings == [
        "the inputs of the step vary: counted at judged: 8x256, 1 of 3 timed steps at made: 8x256; let the step take "
        "batches of one shape"
    ]


def test_the_order_of_calls_is_no_other_work():
    model = nn.Linear(WIDTH, WIDTH)
    turns = itertools.cycle([(8, 16), (16, 8)])
    run = profile(model, lambda: sum(model(torch.zeros(length, WIDTH)).sum() for length in next(turns)).backward())
    assert run.warnings == []
    assert run.passes["time"].facts["inputs"] == {"16x256, 8x256": 4}


def test_a_part_that_is_called_alone_and_in_the_model():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    run = profile(model, training(model, [8], call=lambda x: model(model[0](x))))
    assert run.warnings == []
    assert run.passes["time"].facts["inputs"] == {"8x256": 4}


def test_a_part_that_two_others_share():
    shared = nn.Linear(WIDTH, WIDTH)
    model = nn.ModuleDict({"shared": shared, "first": nn.Sequential(shared), "second": nn.Sequential(shared)})
    run = profile(model, training(model, [8], call=lambda x: model["second"](model["first"](x))))
    assert run.warnings == []
    assert run.passes["time"].facts["inputs"] == {"first: 8x256, second: 8x256": 4}


class TakingTurns(nn.Linear):
    turn = 0

    def forward(self, x):
        self.turn += 1
        for _ in range(self.cycle[self.turn % len(self.cycle)]):
            x = super().forward(x)
        return x


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
def test_a_model_whose_steps_take_turns_is_traced_at_another_than_counted(length):
    model = TakingTurns(4, 4)
    model.cycle = [*range(1, length + 1)]  # the second step is counted
    run = gpuprof.profile(model, torch.zeros(2, 4), mode="forward", passes=["count", "time", "trace"])
    at = [model.cycle[step % length] for step in (2, 2 + 1 + 3 + 1 + 2)]  # a warm-up, three, one more, two of the trace
    assert run.warnings == [
        f"aten::addmm in the forward: counted {at[0]} {'call' if at[0] == 1 else 'calls'}, traced {at[1]}: "
        "the passes ran different steps"
    ]


def test_a_model_compiled_in_place_is_seen_from_outside():
    model = nn.Linear(WIDTH, WIDTH)
    model.compile(backend="eager")
    impl = model._compiled_call_impl
    run = profile(model, training(model, [1, 2]))
    assert run.warnings[0].startswith("the inputs of the step vary: counted at 2x256, 2 of 4 timed steps at 1x256;")
    assert model._compiled_call_impl is impl


def test_a_step_compiled_as_a_whole_is_seen_before_it_is_counted():
    model = nn.Linear(WIDTH, WIDTH)
    compiled = torch.compile(lambda x: model(x), backend="eager", dynamic=True)
    run = profile(model, training(model, [1, 2], call=compiled))
    assert run.passes["trace"].facts["compiled"]
    assert run.warnings == [
        "the inputs of the step vary: counted at 2x256, the step before at 1x256; let the step take batches of one "
        "shape"
    ]


def test_our_own_steps_are_not_looked_at():
    run = gpuprof.profile(nn.Linear(4, 4), torch.zeros(2, 4))
    assert "inputs" not in run.passes["count"].facts
    assert "inputs" not in run.passes["time"].facts
