"""The meter in Trainers of Hugging Face that really train, on a CPU."""

import functools
import json
import math
import subprocess
import sys
import tempfile

import pytest
import torch
from meter.small_llama import (
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    LENGTH,
    Rows,
    attention_flops,
    forward_flops,
    layer_flops,
    llama,
    train_flops,
)
from parallel.ranks import launch
from transformers import Trainer, TrainerCallback, TrainingArguments

import gpuprof
from gpuprof.analysis.totals import totals
from gpuprof.integrations import GpuprofCallback

ROWS = 2
BATCH = torch.utils.data.default_collate([Rows(ROWS)[place] for place in range(ROWS)])


def trainer(folder, callbacks=(), model=None, rows=None, kind=Trainer, **arguments):
    chosen = {
        "per_device_train_batch_size": ROWS, "max_steps": 6, "logging_steps": 1, "learning_rate": 1e-2,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    given = TrainingArguments(str(folder), **chosen | arguments)
    return kind(
        model or llama(), given, train_dataset=rows or Rows(1000), eval_dataset=Rows(4), callbacks=list(callbacks)
    )


def losses(trained):
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def metered(trained):
    """What was read at each log, by step."""
    return {line["step"]: line for line in trained.state.log_history if "meter/counted_signatures" in line}


def left(trained):
    """What is still attached to a trainer or its model."""
    optimizer = trained.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    hooks = [*optimizer._optimizer_step_post_hooks, *optimizer._optimizer_step_pre_hooks]
    for module in trained.model.modules():
        hooks += [*module._forward_pre_hooks, *module._forward_hooks]
    modes = torch.utils._python_dispatch._len_torch_dispatch_stack()
    return hooks, modes, vars(trained).keys() & {"training_step", "_run_epoch"}


NOTHING = ([], 0, set())


def test_the_flops_of_four_micro_batches_are_counted_once_whatever_is_evaluated_and_saved(tmp_path):
    arguments = {"gradient_accumulation_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    arguments |= {"save_strategy": "steps", "save_steps": 3}
    bare = trainer(tmp_path / "bare", **arguments)
    bare.train()
    callback = GpuprofCallback()
    trained = trainer(tmp_path / "metered", [callback], **arguments)
    trained.train()

    counted = totals(gpuprof.count(llama(), kwargs=BATCH))["flops"]
    found = metered(trained)
    assert counted == train_flops(ROWS)
    assert {step: line.get("meter/flops_per_step") for step, line in found.items()} == {
        1: None, **dict.fromkeys(range(2, 7), 4 * train_flops(ROWS))
    }  # fmt: skip
    assert {line["meter/counted_signatures"] for step, line in found.items() if step > 1} == {1}
    assert [line["meter/dropped_steps"] for line in found.values()] == [1, 2, 3, 3, 3, 3]
    assert found[6]["device/tokens_per_sec"] * found[6]["device/step_s"] == pytest.approx(4 * ROWS * LENGTH)
    assert callback.meter.number == trained.state.global_step == 6
    assert losses(trained) == losses(bare)
    assert [line["eval_loss"] for line in trained.state.log_history if "eval_loss" in line] == [
        line["eval_loss"] for line in bare.state.log_history if "eval_loss" in line
    ]
    for one, other in zip(trained.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert left(trained) == NOTHING


def test_prediction_and_evaluation_afterwards_are_no_steps(tmp_path):
    callback = GpuprofCallback()
    trained = trainer(tmp_path, [callback])
    trained.train()
    before = len(trained.state.log_history)

    trained.predict(Rows(4))
    trained.evaluate()

    assert callback.meter.number == 6
    assert not any(
        name.startswith(("device/", "meter/")) for line in trained.state.log_history[before:] for name in line
    )


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_with_its_numbers(tmp_path):
    whole = trainer(tmp_path / "whole", gradient_accumulation_steps=2)
    whole.train()
    arguments = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path / "first", [GpuprofCallback()], max_steps=4, **arguments, lr_scheduler_type="constant").train()
    callback = GpuprofCallback()
    trained = trainer(tmp_path / "second", [callback], max_steps=9, **arguments, lr_scheduler_type="constant")
    trained.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))

    found = metered(trained)
    assert callback.meter.number == 9
    assert list(found)[-5:] == [5, 6, 7, 8, 9]
    assert "device/mfu" not in found[5] | found[6]  # the first steps after the start are not timed
    assert found[9]["device/mfu"] > 0
    assert found[9]["meter/flops_per_step"] == 2 * train_flops(ROWS)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_costs_what_it_does_without(tmp_path, backend):
    trained = trainer(
        tmp_path, [GpuprofCallback()], gradient_accumulation_steps=2, torch_compile=True, torch_compile_backend=backend
    )
    trained.train()

    assert metered(trained)[6]["meter/flops_per_step"] == 2 * train_flops(ROWS)
    assert left(trained) == NOTHING


def test_what_a_checkpoint_computes_again_is_the_hardwares(tmp_path):
    trained = trainer(tmp_path, [GpuprofCallback()], gradient_checkpointing=True)
    trained.train()

    line = metered(trained)[6]
    assert line["meter/flops_per_step"] == train_flops(ROWS)
    # each layer's forward once more, but for the product that is its last; attention's backward has its scores again
    again = LAYERS * (layer_flops(ROWS) - 2 * ROWS * LENGTH * INTERMEDIATE * HIDDEN)
    hardware = train_flops(ROWS) + again + LAYERS * attention_flops(ROWS) // 2
    assert line["device/hfu"] / line["device/mfu"] == pytest.approx(hardware / train_flops(ROWS), rel=1e-12)


def test_adapters_cost_what_is_counted_of_them(tmp_path):
    from peft import LoraConfig, get_peft_model

    def model():
        return get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))

    trained = trainer(tmp_path, [GpuprofCallback()], model=model())
    trained.train()

    counted = totals(gpuprof.count(model().train(), kwargs=BATCH))["flops"]
    rank, narrow, tokens = 4, HIDDEN // HEADS * KV_HEADS, ROWS * LENGTH
    first, second = 2 * tokens * 2 * rank * HIDDEN, 2 * tokens * rank * (HIDDEN + narrow)  # of both adapters of a layer
    forward = forward_flops(ROWS) + LAYERS * (first + second)
    # nothing needs a gradient before the adapters of the first layer: not the queries', keys' and values' own inputs
    inputs = forward_flops(ROWS) - 2 * tokens * (HIDDEN * HIDDEN + 2 * HIDDEN * narrow) - first
    backward = inputs + LAYERS * (attention_flops(ROWS) + first + second) + LAYERS * (first + second)
    assert metered(trained)[6]["meter/flops_per_step"] == counted == forward + backward


def test_each_length_is_counted_once(tmp_path):
    class Lengths(Rows):
        def __getitem__(self, place):
            return Rows(self.rows, LENGTH if place // ROWS % 2 else 2 * LENGTH)[place]

    trained = trainer(
        tmp_path, [GpuprofCallback()], rows=Lengths(1000), train_sampling_strategy="sequential", max_steps=8
    )
    trained.train()

    found = metered(trained)
    assert found[7]["meter/flops_per_step"] == train_flops(ROWS, 2 * LENGTH)
    assert found[8]["meter/flops_per_step"] == train_flops(ROWS)
    assert found[8]["meter/counted_signatures"] == 2


def test_a_step_of_ones_own_that_trains_in_evaluation_still_does(tmp_path):
    """It does not call ``model.train``, as the Trainer's own does: after an evaluation there is no dropout any more."""

    class Own(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, self._prepare_inputs(inputs)) / 2
            loss = loss + self.compute_loss(model, inputs) / 2
            self.accelerator.backward(loss)
            return loss.detach()

    def trained(callbacks):
        model = llama()
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        made = trainer(tmp_path, callbacks, model=model, kind=Own, eval_strategy="steps", eval_steps=2)
        made.train()
        return made

    metered_one = trained([GpuprofCallback()])

    assert losses(metered_one) == losses(trained([]))
    assert [line.get("meter/flops_per_step") for line in metered(metered_one).values()] == (
        [None] + [2 * train_flops(ROWS)] * 5
    )


def test_two_meters_in_a_trainer_measure_both(tmp_path):
    callbacks = [GpuprofCallback(), GpuprofCallback(convention="full")]
    trained = trainer(tmp_path, callbacks)
    trained.train()

    assert [callback.meter.number for callback in callbacks] == [6, 6]
    assert left(trained) == NOTHING


class Failing(TrainerCallback):
    def __init__(self, event, step):
        self.event, self.step = event, step

    def on_pre_optimizer_step(self, args, state, control, **_):
        if self.event == "optimizer" and state.global_step + 1 == self.step:
            raise RuntimeError("out of memory, perhaps")


@pytest.mark.parametrize("step", [2, 4])  # one that is counted, and one that is timed
@pytest.mark.parametrize("where", ["model", "optimizer", "interrupt"])
def test_an_error_ends_the_step_and_leaves_nothing(tmp_path, where, step):
    class Llama(type(llama())):
        calls = 0

        def forward(self, *args, **kwargs):
            Llama.calls += 1
            if where != "optimizer" and Llama.calls == step:
                raise (KeyboardInterrupt if where == "interrupt" else RuntimeError)("out of memory, perhaps")
            return super().forward(*args, **kwargs)

    callback = GpuprofCallback()
    trained = trainer(
        tmp_path, [callback, Failing(where, step)], model=Llama(llama().config), remove_unused_columns=False
    )

    with pytest.raises(KeyboardInterrupt if where == "interrupt" else RuntimeError, match="out of memory, perhaps"):
        trained.train()

    assert left(trained) == NOTHING
    trained.pop_callback(Failing)
    Llama.calls = 100
    trained.train()
    assert metered(trained)[6]["meter/flops_per_step"] == train_flops(ROWS)
    assert left(trained) == NOTHING


def test_a_step_that_the_scaler_skips_ends_all_the_same(tmp_path):
    """As that of fp16 does after an overflow."""

    class Skipping(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
            if state.global_step == 3:
                optimizer.step = lambda closure=None: None

        def on_optimizer_step(self, args, state, control, optimizer, **_):
            vars(optimizer).pop("step", None)

    callback = GpuprofCallback()
    trained = trainer(tmp_path, [callback, Skipping()])
    trained.train()

    assert callback.meter.number == 6
    assert {step: line.get("meter/flops_per_step") for step, line in metered(trained).items() if step > 1} == (
        dict.fromkeys(range(2, 7), train_flops(ROWS))
    )


def test_a_step_is_profiled_as_it_runs_and_all_of_them_are_in_the_meters_own_log(tmp_path):
    callback = GpuprofCallback(profile_at=[5], out=tmp_path / "run")
    arguments = {"gradient_accumulation_steps": 2, "logging_steps": 4, "max_steps": 7}
    trained = trainer(tmp_path, [callback], **arguments)
    trained.train()
    bare = trainer(tmp_path, **arguments)
    bare.train()

    profiled = gpuprof.load(tmp_path / "run" / "step-5.json.gz")
    assert totals(profiled)["flops"] == 2 * train_flops(ROWS)
    assert profiled.done("trace")
    lines = [json.loads(line) for line in (tmp_path / "run" / "meter.jsonl").read_text().splitlines()]
    assert [step[0] for line in lines for step in line.get("steps", [])] == [1, 2, 3, 4, 5, 6, 7]
    assert losses(trained) == losses(bare)


def test_without_accelerate_it_says_what_to_install():
    code = (
        "import sys\nclass Absent:\n    def find_spec(name, path=None, target=None):\n"
        "        if name == 'accelerate': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent)\nfrom gpuprof import integrations, GpuprofError\n"
        "try:\n    integrations.GpuprofCallback\nexcept GpuprofError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "a Trainer needs accelerate, which is not installed: pip install 'gpuprof[trainer]'\n"


def test_outside_of_a_trainer_it_says_so():
    with pytest.raises(gpuprof.GpuprofError, match=r"is a callback for a transformers[.]Trainer: in another loop use"):
        GpuprofCallback().on_train_begin(None, None, None)


def test_it_comes_before_what_reports_and_can_be_added_later(tmp_path):
    seen = {}

    class Reporting(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            seen[state.global_step] = dict(logs)

    trained = trainer(tmp_path, [Reporting()])
    trained.add_callback(GpuprofCallback())
    trained.train()

    assert seen[5]["device/mfu"] > 0
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in seen[5].values())


def ddp():
    """Of a rank of two that train by DDP: what it was given, and what it read."""
    with tempfile.TemporaryDirectory() as folder:
        callback = GpuprofCallback()
        arguments = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        trained = trainer(folder, [callback], **arguments)
        trained.train()
        bare = trainer(folder, **arguments)
        bare.train()
    line = metered(trained)[6]
    return {
        "wrapped": type(trained.model_wrapped).__name__,
        "line": {name: value for name, value in line.items() if "/" in name or name in ("mfu", "tokens_per_sec")},
        "same": losses(trained) == losses(bare),
        "left": left(trained) == NOTHING,
    }


@functools.cache
def both():
    return [rank["ddp"] for rank in launch(__file__, ["ddp"])]


def test_two_ranks_count_each_its_own_and_log_all_of_both():
    for rank in both():
        assert rank["wrapped"] == "DistributedDataParallel"
        assert rank["same"]
        assert rank["left"]
        assert rank["line"]["meter/flops_per_step"] == 2 * train_flops(ROWS)
        assert rank["line"]["meter/counted_signatures"] == 1
    one, other = (rank["line"] for rank in both())
    assert one["mfu"] == other["mfu"]
    assert one["tokens_per_sec"] == other["tokens_per_sec"]
