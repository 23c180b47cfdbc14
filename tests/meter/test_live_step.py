"""Steps profiled as they run: against gpuprof.profile of the same step, and what that must not do to a training."""

import gc
import os
import subprocess
import sys
import textwrap
from collections import Counter
from contextlib import nullcontext

import loops
import pytest
import torch
from loops import IN, OUT, WIDE, metered, net, sgd, train
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import gpuprof
from gpuprof.cli import app
from gpuprof.errors import GpuprofError
from gpuprof.meter import counts, drill

OPS = ("module", "phase", "op", "kind", "shapes", "dtype", "group")
SUMS = ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes")


def llama(checkpointing=None):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attention_dropout=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    return model


def tokens(length=16):
    ids = torch.randint(0, 128, (2, length))
    return {"input_ids": ids, "labels": ids}


def step(model, optimizer, batches, around=lambda batch: nullcontext()):
    """A step of so many micro-batches; the losses."""
    losses = []
    for place, batch in enumerate(batches, start=1):
        with around(batch):
            loss = model(**batch).loss / len(batches)
            loss.backward()
            if place == len(batches):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return losses


class InPieces:
    """The meter as a framework that has no place for a ``with`` calls it: it hears later what the model is given."""

    def __init__(self, meter):
        self.meter = meter

    def __call__(self, batch):
        self.batch = batch
        return self

    def __enter__(self):
        self.meter.begin()
        self.meter.given(self.batch)

    def __exit__(self, kind, error, trace):
        self.meter.end(error)


def train_llama(folder=None, micro_batches=1, pieces=False, checkpointing=None, steps=9, at=(6,)):
    """A training, with steps profiled where there is a folder: losses, model, optimizer."""
    model = llama(checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    meter = metered(model, optimizer, profile_at=at, out=folder) if folder is not None else None
    around = (lambda batch: nullcontext()) if meter is None else InPieces(meter) if pieces else meter.step
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        losses += step(model, optimizer, [tokens() for _ in range(micro_batches)], around)
    return losses, model, optimizer


def counted(run):
    """Figures of the operators, by module, phase and operator."""
    rows = run.ops[[*OPS, *SUMS]].itertuples(index=False, name=None)
    return {row[: len(OPS)]: tuple(map(int, row[len(OPS) :])) for row in rows}


def calls(run):
    """How many operators the trace has, by module, phase and operator."""
    return Counter(run.kernels[["module", "phase", "op"]].itertuples(index=False, name=None))


def said(warned):
    """The meter's own warnings."""
    return [str(one.message) for one in warned if str(one.message).startswith("gpuprof: ")]


def saved(folder):
    return sorted(path.name for path in folder.glob("*.json.gz"))


CASES = {
    "plain": {},
    "accumulation": {"micro_batches": 4},
    "reentrant": {"checkpointing": "reentrant", "micro_batches": 2},
    "non-reentrant": {"checkpointing": "non-reentrant"},
    "framework": {"micro_batches": 2, "pieces": True},
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_gpuprof_profile_measures_of_that_step(tmp_path, case):
    options = CASES[case]
    _, model, optimizer = train_llama(tmp_path, **options)
    batches = [tokens() for _ in range(options.get("micro_batches", 1))]

    live = gpuprof.load(tmp_path / "step-6.json.gz")
    run = gpuprof.profile(model, step=lambda: step(model, optimizer, batches), passes=["count", "trace"])

    assert live.warnings == []
    assert counted(live) == counted(run)
    assert calls(live) == calls(run)
    assert live.tree.equals(run.tree)


def test_figures_are_those_by_hand(tmp_path, ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[7], out=tmp_path)
    train(meter, model, optimizer, steps=9, samples=5, accumulation=3)

    run = gpuprof.load(tmp_path / "step-7.json.gz")
    of_modules = run.ops.groupby(["module", "phase"])["flops_full"].sum()

    assert of_modules["0", "forward"] == of_modules["0", "backward"] == 3 * 2 * 5 * IN * WIDE
    assert of_modules["2", "forward"] == 3 * 2 * 5 * WIDE * OUT
    assert of_modules["2", "backward"] == 2 * of_modules["2", "forward"]
    assert dict(zip(run.tree["module"], run.tree["calls"], strict=True)) == {"": 3, "0": 3, "1": 3, "2": 3}
    assert run.samples["step"].tolist() == [4, 5]  # warm at 3, and the profiler in 6
    assert run.samples["time_s"].tolist() == [3.0, 3.0]
    assert run.workload["samples_per_step"] == 15
    assert [given["name"] for given in run.workload["inputs"]] == ["0.0", "1.0", "2.0"]
    assert run.settings["step"] == 7
    assert {name: outcome.status for name, outcome in run.passes.items()} == {
        "count": "done", "time": "done", "trace": "done", "memory": "skipped", "telemetry": "skipped",
    }  # fmt: skip


@pytest.fixture(scope="module")
def live_runs(tmp_path_factory):
    """The folder of two steps of two micro-batches."""
    folder = tmp_path_factory.mktemp("live")
    train_llama(folder, micro_batches=2, steps=12, at=(6, 9))
    first = gpuprof.load(folder / "step-6.json.gz")  # which may have been saved in the same second
    first.environment["date"] = "2026-01-01T00:00:00+00:00"
    first.save(folder / "step-6.json.gz")
    return folder


@pytest.mark.parametrize("verb", ["show", "budget", "backward", "roofline", "report", "compare", "check"])
def test_every_verb_that_reads_a_run_reads_it(live_runs, verb, tmp_path):
    second, first = (str(live_runs / f"step-{number}.json.gz") for number in (6, 9))
    rest = {
        "check": ["--against", second],
        "compare": [second],
        "report": ["-o", str(tmp_path / "report.html")],
    }

    done = CliRunner().invoke(app, [verb, first, *rest.get(verb, ())])

    assert done.exit_code == (3 if verb == "check" else 0), done.output  # no noise is known of one run
    assert verb == "report" or "LlamaForCausalLM" in done.output or "self_attn" in done.output


@pytest.mark.parametrize("case", ["accumulation", "reentrant"])
def test_losses_are_those_without_it_bit_for_bit(tmp_path, case):
    plain, *_ = train_llama(**CASES[case])

    profiled, *_ = train_llama(tmp_path, **CASES[case])

    assert profiled == plain
    assert (tmp_path / "step-6.json.gz").exists()


def test_nothing_of_it_is_left(tmp_path):
    model = net()
    optimizer = sgd(model)
    kinds = {type(module): dict(vars(type(module))) for module in model.modules()}
    before = [set(vars(module)) for module in model.modules()], dict(vars(torch.autograd)), dict(vars(torch._dynamo))
    meter = metered(model, optimizer, profile_at=[4, 6], out=tmp_path)
    train(meter, model, optimizer, steps=9, accumulation=2)

    assert [set(vars(module)) for module in model.modules()] == before[0]
    assert (dict(vars(torch.autograd)), dict(vars(torch._dynamo))) == before[1:]
    assert {kind: dict(vars(kind)) for kind in kinds} == kinds
    assert not torch.autograd._profiler_enabled()
    assert saved(tmp_path) == ["step-4.json.gz", "step-6.json.gz"]


def test_what_runs_between_micro_batches_is_none_of_the_step(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[5], out=tmp_path)
    for _ in range(7):
        train(meter, model, optimizer, steps=1, accumulation=2)
        model(torch.ones(100, IN)).sum().backward()  # after a step
    batch = torch.ones(4, IN)
    optimizer.zero_grad()

    run = gpuprof.load(tmp_path / "step-5.json.gz")
    alone = gpuprof.profile(
        model, step=lambda: [model(batch).square().mean().backward() for _ in range(2)], passes=["count", "trace"]
    )

    def products(run):
        return {key: times for key, times in calls(run).items() if key[2] in ("aten::mm", "aten::addmm")}

    assert run.warnings == []
    assert products(run) == products(alone)


def test_evaluation_in_the_middle_of_a_recorded_step_is_none_of_it(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4], out=tmp_path)
    for _ in range(6):
        for last in (False, True):
            with meter.step(torch.ones(4, IN)):
                model(torch.ones(4, IN)).sum().backward()
                if last:
                    optimizer.step()
            with torch.no_grad():
                model(torch.ones(4, IN))

    run = gpuprof.load(tmp_path / "step-4.json.gz")

    assert run.warnings == []
    assert sum(times for (_, _, op), times in calls(run).items() if op == "aten::addmm") == 4


def test_several_steps_one_after_the_other(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[5, 4, 5], out=tmp_path)
    train(meter, model, optimizer, steps=8)

    runs = [gpuprof.load(tmp_path / f"step-{number}.json.gz") for number in (4, 5)]

    assert [run.warnings for run in runs] == [[], []]
    assert counted(runs[0]) == counted(runs[1])


def test_steps_are_given_in_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPUPROF_AT", "4, 6")
    monkeypatch.chdir(tmp_path)
    model = net()
    optimizer = sgd(model)

    train(metered(model, optimizer), model, optimizer, steps=8)

    assert saved(tmp_path) == ["gpuprof-step-4.json.gz", "gpuprof-step-6.json.gz"]
    assert capsys.readouterr().err.splitlines()[0] == (
        "gpuprof: step 4 of the training is in gpuprof-step-4.json.gz: gpuprof show gpuprof-step-4.json.gz"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            [1],
            "step 1 cannot be recorded: steps are numbered from 1, the profiler warms up in the one before",
        ),
        ("200", "profile_at=200: give a list of steps, such as [200]"),
        ([200.0], "step 200.0 cannot be recorded"),
        ([True], "step True cannot be recorded"),
        (200, "profile_at=200: give a list of steps, such as [200]"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_told_at_once(given, text):
    with pytest.raises(GpuprofError) as raised:
        gpuprof.Meter(net(), profile_at=given)

    assert str(raised.value).startswith(text)


def test_an_environment_that_names_no_steps_is_told_at_once(monkeypatch):
    monkeypatch.setenv("GPUPROF_AT", "200;400")

    with pytest.raises(GpuprofError, match="GPUPROF_AT=200;400: give numbers of steps, such as 200 or 200,400"):
        gpuprof.Meter(net())


def test_another_profiler_keeps_what_it_has(tmp_path, recwarn):
    def events(**options):
        model = net()
        optimizer = sgd(model)
        meter = metered(model, optimizer, **options)
        with profile(activities=[ProfilerActivity.CPU]) as own:
            train(meter, model, optimizer, steps=6)
        return Counter(event.name for event in own.events() if event.name.startswith("aten::"))

    assert events(profile_at=[4], out=tmp_path) == events()
    assert said(recwarn) == [
        "gpuprof: step 4 is not recorded: a torch.profiler of your own is at work, and there can be but one; end it "
        "before that step"
    ]
    assert saved(tmp_path) == []


def test_another_profiler_that_is_about_to_begin_keeps_what_it_has(tmp_path, recwarn):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4], out=tmp_path)
    with profile(activities=[ProfilerActivity.CPU], schedule=schedule(wait=4, warmup=1, active=1)) as own:
        for _ in range(6):
            train(meter, model, optimizer, steps=1)
            own.step()

    assert [line[:60] for line in said(recwarn)] == ["gpuprof: step 4 is not recorded: a torch.profiler of your ow"]
    assert sum(event.name == "aten::addmm" for event in own.events()) == 2


def test_another_profiler_that_is_over_is_in_nobodys_way(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[8], out=tmp_path)
    with profile(activities=[ProfilerActivity.CPU], schedule=schedule(wait=1, warmup=1, active=1, repeat=1)) as own:
        for _ in range(10):
            train(meter, model, optimizer, steps=1)
            own.step()

    assert (tmp_path / "step-8.json.gz").exists()


def test_a_step_that_is_never_reached_is_said(tmp_path, recwarn):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4, 400], out=tmp_path)
    train(meter, model, optimizer, steps=6)

    del meter
    gc.collect()

    assert said(recwarn) == ["gpuprof: step 400 was never recorded: the training ended in step 6"]


def test_a_step_before_the_resumed_one_is_said(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[100, 154], out=tmp_path)
    meter.load_state_dict({"step": 150})

    with pytest.warns(UserWarning, match="step 100 is not recorded: it was over before this loop began, whose first "):
        train(meter, model, optimizer, steps=6)

    assert saved(tmp_path) == ["step-154.json.gz"]


def test_a_training_that_ends_before_the_count_keeps_the_trace(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[6], out=tmp_path)
    train(meter, model, optimizer, steps=5)
    train(meter, model, optimizer, steps=1, samples=7)  # of a shape that was never counted
    del meter
    gc.collect()

    run = gpuprof.load(tmp_path / "step-6.json.gz")

    assert run.passes["count"].status == "skipped"
    assert run.passes["count"].reason == "no other step was counted that is as step 6 was"
    assert run.passes["time"].reason == "no undisturbed step before step 6 had its shapes"
    assert run.ops.empty
    assert calls(run)["0", "forward", "aten::addmm"] == 1


def test_what_is_counted_in_vain_is_given_up(tmp_path, monkeypatch):
    """Steps of two micro-batches, and after the recorded one of four: none ends with the second."""
    begun = []
    monkeypatch.setattr(
        counts, "begin", lambda *args, begin=counts.begin, **where: begun.append(1) or begin(*args, **where)
    )
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[6], out=tmp_path)
    train(meter, model, optimizer, steps=6, accumulation=2)
    before = len(begun)
    train(meter, model, optimizer, steps=9, accumulation=4)

    run = gpuprof.load(tmp_path / "step-6.json.gz")

    assert len(begun) - before == 4
    assert run.passes["count"].status == "skipped"
    assert run.passes["time"].facts == {"steps": 1}


def test_a_model_whose_input_nobody_tells_is_traced(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4], out=tmp_path)
    for _ in range(6):
        meter.begin()
        model(torch.ones(4, IN)).sum().backward()
        optimizer.step()
        meter.end()
    del meter
    gc.collect()

    run = gpuprof.load(tmp_path / "step-4.json.gz")

    assert run.workload["samples_per_step"] is None
    assert run.workload["inputs"] == []
    assert calls(run)["2", "forward", "aten::addmm"] == 1


def test_a_process_that_ends_saves_what_waits(tmp_path):
    script = """
        import torch, gpuprof
        from loops import net, sgd, train, metered
        model = net()
        optimizer = sgd(model)
        meter = metered(model, optimizer, profile_at=[6, 9], out="runs")
        train(meter, model, optimizer, steps=5)
        train(meter, model, optimizer, steps=1, samples=7)
    """
    paths = os.pathsep.join([os.path.dirname(loops.__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "gpuprof: step 6 of the training is in runs/step-6.json.gz: gpuprof show runs/step-6.json.gz" in done.stderr
    assert "gpuprof: step 9 was never recorded: the training ended in step 6" in done.stderr
    assert gpuprof.load(tmp_path / "runs" / "step-6.json.gz").done("trace")


def test_a_file_that_cannot_be_written_costs_the_training_nothing(tmp_path):
    (tmp_path / "step-4.json.gz").mkdir()
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4], out=tmp_path)

    with pytest.warns(UserWarning, match="step 4 was recorded and is lost: cannot write .*: Is a directory"):
        losses = train(meter, model, optimizer, steps=6)

    assert len(losses) == 6
    assert meter.read()["meter/step"] == 6


def test_a_failure_of_its_own_costs_the_training_nothing(tmp_path, monkeypatch, recwarn):
    def fails(*_):
        raise RuntimeError("no such event\nand more")

    monkeypatch.setattr(drill, "ingest", fails)
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4, 6], out=tmp_path)

    losses = train(meter, model, optimizer, steps=8)

    assert said(recwarn) == ["gpuprof: step 4 is not recorded: RuntimeError: no such event: the training goes on"]
    assert len(losses) == 8
    assert meter.read()["device/mfu"] > 0
    assert not torch.autograd._profiler_enabled()


def test_an_error_in_the_recorded_step_passes_and_a_later_step_is_recorded(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[4], out=tmp_path)
    train(meter, model, optimizer, steps=3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), meter.step(torch.ones(4, IN)):
        model(torch.ones(4, WIDE))

    train(meter, model, optimizer, steps=5)

    run = gpuprof.load(tmp_path / "step-4.json.gz")
    assert run.settings["step"] == 6  # the failed one is part of step 4, and 5 warms up
    assert run.warnings == ["step 6 was recorded: step 4 compiled something, or failed"]


def test_frozen_meanwhile_is_not_counted_for_it(tmp_path):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer, profile_at=[6], out=tmp_path)
    train(meter, model, optimizer, steps=5)
    train(meter, model, optimizer, steps=1, samples=7)
    model[0].requires_grad_(False)
    train(meter, model, optimizer, steps=3, samples=7)
    model[0].requires_grad_(True)
    train(meter, model, optimizer, steps=1, samples=7)

    run = gpuprof.load(tmp_path / "step-6.json.gz")

    assert run.ops.loc[run.ops["module"] == "0", "flops_full"].sum() == 2 * 2 * 7 * IN * WIDE
    assert run.warnings == []


def test_a_compiled_model_is_told_apart_and_computes_the_same(tmp_path, monkeypatch):
    """But for the counted steps, which run eagerly: here none does."""
    monkeypatch.setattr(gpuprof.Meter, "_count", lambda *_, **__: None)
    inputs = torch.randn(8, 4, IN)

    def losses(folder):
        torch._dynamo.reset()
        model = net()
        fast = torch.compile(nn.Sequential(model, nn.Dropout(0.3)))
        optimizer = sgd(fast)
        meter = None if folder is None else metered(fast, optimizer, profile_at=[5], out=folder)
        torch.manual_seed(1)
        found = []
        for batch in inputs:
            with meter.step(batch) if meter is not None else nullcontext():
                loss = fast(batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(loss.item())
        if meter is not None:
            meter._settle()
            assert {sample.number: sample.dropped for sample in meter._samples} == {
                1: "compiled", 2: "warm-up", 3: "warm-up", 4: "compiled", 5: "recorded", 6: "", 7: "", 8: "",
            }  # fmt: skip
        return found

    assert losses(tmp_path) == losses(None)
    gc.collect()
    run = gpuprof.load(tmp_path / "step-5.json.gz")
    assert set(run.graphs["direction"]) == {"forward", "backward"}
    assert set(run.graphs["calls"]) == {1}
    assert {"_orig_mod.0.0", "_orig_mod.0.2"} <= set(run.nodes["module"])
