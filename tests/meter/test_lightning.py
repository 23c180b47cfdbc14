"""The meter in Trainers of Lightning that really train, on a CPU."""

import importlib
import json
import logging
import subprocess
import sys
import tempfile
import warnings

import lightning.pytorch
import pytest
import torch
from meter.small_llama import LENGTH, Rows, llama, train_flops
from parallel.ranks import launch

import gpuprof
from gpuprof.analysis.totals import totals
from gpuprof.integrations import LightningMeter

ROWS = 2
PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same code twice, no class of one is one of the other


def module(package="lightning.pytorch", manual=0, optimizers=1, logs=True):
    """A LightningModule around a small Llama; ``manual``: micro-batches to a step of manual optimization."""

    class Module(importlib.import_module(package).LightningModule):
        def __init__(self):
            super().__init__()
            self.llama = llama()
            self.automatic_optimization = not manual
            self.losses = []

        def training_step(self, batch, place):
            # not a call of the whole, but of what is deep in it, which is no forward to torch
            hidden = self.llama.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
            logits = self.llama.lm_head(hidden)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
            if logs:
                self.losses.append(loss.item())
                self.log("loss", loss)
            if manual:
                self.manual_backward(loss)
                for optimizer in self.optimizers(use_pl_optimizer=True) if optimizers > 1 else [self.optimizers()]:
                    if place % manual == manual - 1:
                        optimizer.step()
                        optimizer.zero_grad()
            return loss

        def validation_step(self, batch, place):
            self.log("validation", self.llama(**batch).loss)

        test_step = validation_step

        def predict_step(self, batch, place):
            return self.llama(**batch).logits

        def configure_optimizers(self):
            parameters = list(self.parameters())
            return [torch.optim.AdamW(parameters[place::optimizers], 1e-3) for place in range(optimizers)]

    return Module()


def logger_of(package):
    class Logger(importlib.import_module(f"{package}.loggers").Logger):
        name, version = "kept", 0

        def __init__(self):
            super().__init__()
            self.lines = {}

        def log_metrics(self, metrics, step=None):
            self.lines.setdefault(step, {}).update(metrics)

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    return Logger()


def trainer(folder, callbacks, package="lightning.pytorch", **arguments):
    logging.getLogger(package).setLevel(logging.ERROR)
    chosen = {
        "max_steps": 6, "log_every_n_steps": 1, "accelerator": "cpu", "devices": 1, "logger": logger_of(package),
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
        "limit_val_batches": 0,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(package).Trainer(
            default_root_dir=folder, callbacks=list(callbacks), **chosen | arguments
        )


def loader(rows=1000):
    return torch.utils.data.DataLoader(Rows(rows), batch_size=ROWS)


def fit(trained, model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained.fit(model, loader(), loader(4), **arguments)


def metered(trained):
    return [line for line in trained.logger.lines.values() if "meter/counted_signatures" in line]


def flops_of(trained):
    return [line.get("meter/flops_per_step") for line in metered(trained)]


def left(trained, model):
    hooks = []
    for optimizer in trained.optimizers:
        hooks += [*optimizer._optimizer_step_post_hooks, *optimizer._optimizer_step_pre_hooks]
    for part in model.modules():
        hooks += [*part._forward_pre_hooks, *part._forward_hooks]
    return hooks, torch.utils._python_dispatch._len_torch_dispatch_stack()


NOTHING = ([], 0)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_flops_of_four_micro_batches_are_counted_once_whatever_is_validated_and_saved(tmp_path, package):
    arguments = {
        "accumulate_grad_batches": 4,
        "limit_val_batches": 2,
        "val_check_interval": 6,
    }  # in the middle of a step
    bare = module(package)
    fit(trainer(tmp_path / "bare", [], package, **arguments), bare)
    meter, model = LightningMeter(), module(package)
    trained = trainer(tmp_path / "metered", [meter], package, enable_checkpointing=True, **arguments)
    fit(trained, model)

    batch = torch.utils.data.default_collate([Rows(ROWS)[place] for place in range(ROWS)])
    assert totals(gpuprof.count(llama(), kwargs=batch))["flops"] == train_flops(ROWS)
    assert flops_of(trained) == [None, *[4 * train_flops(ROWS)] * 5]
    assert [line["meter/counted_signatures"] for line in metered(trained)][1:] == [1] * 5
    assert [line["meter/dropped_steps"] for line in metered(trained)] == [1, 2, 3, 3, 3, 3]
    assert list(trained.logger.lines) == list(range(6))  # beside the loss of the same step
    last = trained.logger.lines[5]
    assert {"loss", "device/mfu", "epoch"} <= last.keys()
    assert last["device/tokens_per_sec"] * last["device/step_s"] == pytest.approx(4 * ROWS * LENGTH)
    assert trained.logged_metrics["device/mfu"] == last["device/mfu"]
    assert meter.meter.number == trained.global_step == 6
    assert model.losses == bare.losses
    for one, other in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(one, other)
    assert left(trained, model) == NOTHING


def test_a_callback_of_the_one_is_taken_by_the_trainer_of_the_other(tmp_path):
    for package in PACKAGES:
        trained = trainer(tmp_path, [LightningMeter()], package)
        fit(trained, module(package))
        assert flops_of(trained)[-1] == train_flops(ROWS)


@pytest.mark.parametrize("every", [1, 3])
def test_manual_optimization(tmp_path, every):
    meter, model = LightningMeter(), module(manual=every)
    trained = trainer(tmp_path, [meter], max_steps=6)
    fit(trained, model)

    assert flops_of(trained)[-1] == every * train_flops(ROWS)
    assert meter.meter.number == 6
    assert left(trained, model) == NOTHING


def test_of_two_optimizers_the_first_ends_the_step(tmp_path):
    meter, model = LightningMeter(), module(manual=2, optimizers=2)
    trained = trainer(tmp_path, [meter], max_steps=12)  # which Lightning counts for each of them
    fit(trained, model)

    assert trained.global_step == 12
    assert meter.meter.number == 6
    assert flops_of(trained)[-1] == 2 * train_flops(ROWS)


def test_sanity_check_validation_testing_and_prediction_are_no_steps(tmp_path):
    meter, model = LightningMeter(), module()
    trained = trainer(tmp_path, [meter], num_sanity_val_steps=2, limit_val_batches=2, val_check_interval=2)
    fit(trained, model)
    lines = {step: dict(line) for step, line in trained.logger.lines.items()}

    trained.test(model, loader(4), verbose=False)
    trained.predict(model, loader(4))
    trained.validate(model, loader(4), verbose=False)

    assert meter.meter.number == 6
    assert [line["meter/counted_signatures"] for line in metered(trained)] == [0, 1, 1, 1, 1, 1]
    assert [line.get("device/mfu") for line in trained.logger.lines.values()][:6] == [
        line.get("device/mfu") for line in lines.values()
    ]


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_with_its_numbers(tmp_path):
    first = trainer(tmp_path, [LightningMeter()], max_steps=4)
    fit(first, module())
    first.save_checkpoint(tmp_path / "four.ckpt")
    meter = LightningMeter()
    trained = trainer(tmp_path, [meter], max_steps=9)
    fit(trained, module(), ckpt_path=tmp_path / "four.ckpt", weights_only=False)

    lines = trained.logger.lines
    assert meter.meter.number == 9
    assert list(lines) == [4, 5, 6, 7, 8]
    assert "device/mfu" not in lines[4] | lines[5] | lines[6]  # the first steps after the start are not timed
    assert lines[8]["device/mfu"] > 0


def test_of_optimizers_that_step_unequally_often_a_checkpoint_tells_the_step(tmp_path):
    """The first in every batch and the second in every third, whose steps are in the ``global_step`` as well."""

    class Module(type(module(manual=1, optimizers=2))):
        def training_step(self, batch, place):
            for optimizer in self.optimizers()[: 2 if place % 3 == 2 else 1]:
                self.manual_backward(self.llama(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()

    first = trainer(tmp_path, [LightningMeter()], max_steps=8)
    fit(first, Module())
    first.save_checkpoint(tmp_path / "six.ckpt")
    meter = LightningMeter()
    fit(trainer(tmp_path, [meter], max_steps=12), Module(), ckpt_path=tmp_path / "six.ckpt", weights_only=False)

    assert first.callbacks[0].meter.number == 6
    assert meter.meter.number == 9


@pytest.mark.parametrize("step", [2, 4])  # one that is counted, and one that is timed
@pytest.mark.parametrize("event", ["training_step", "on_before_optimizer_step", "on_train_batch_end"])
def test_an_error_ends_the_step_and_leaves_nothing(tmp_path, event, step):
    model, calls = module(), []
    whole = getattr(model, event)

    def failing(*args, **kwargs):
        calls.append(event)
        if len(calls) == step:
            raise RuntimeError("out of memory, perhaps")
        return whole(*args, **kwargs)

    setattr(model, event, failing)
    meter = LightningMeter()
    trained = trainer(tmp_path, [meter])

    with pytest.raises(RuntimeError, match="out of memory, perhaps"):
        fit(trained, model)

    assert left(trained, model) == NOTHING
    again = trainer(tmp_path, [meter])
    fit(again, model)
    assert flops_of(again)[-1] == train_flops(ROWS)
    assert left(again, model) == NOTHING


def test_an_epoch_that_the_model_ends_at_the_start_of_a_batch(tmp_path):
    model = module()
    model.on_train_batch_start = lambda batch, place: -1 if place == 4 else None
    trained = trainer(tmp_path, [LightningMeter()], max_steps=10)
    fit(trained, model)

    assert flops_of(trained)[-1] == train_flops(ROWS)
    assert left(trained, model) == NOTHING


def test_a_compiled_module_costs_what_it_does_without_and_stays_compiled(tmp_path):
    def compiled():
        runs = []

        def backend(graph, inputs):
            return lambda *args: runs.append(graph) or graph(*args)

        return torch.compile(module(logs=False), backend=backend), runs

    bare, bare_runs = compiled()
    fit(trainer(tmp_path, []), bare)
    model, runs = compiled()
    trained = trainer(tmp_path, [LightningMeter()])
    fit(trained, model)

    assert flops_of(trained)[-1] == train_flops(ROWS)
    assert len(bare_runs) % 6 == 0
    assert len(runs) == len(bare_runs) // 6 * 5  # all steps but the one that was counted


def test_a_step_that_the_scaler_skips_ends_all_the_same(tmp_path):
    """As that of fp16 does after an overflow, when it has run the closure."""

    class Skipping(lightning.pytorch.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                trainer.optimizers[0].step = lambda closure: closure()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            vars(trainer.optimizers[0]).pop("step", None)

    meter = LightningMeter()
    trained = trainer(tmp_path, [meter, Skipping()], accumulate_grad_batches=2)
    fit(trained, module())

    assert meter.meter.number == 6
    assert flops_of(trained)[1:] == [2 * train_flops(ROWS)] * 5


def test_a_step_is_profiled_as_it_runs_and_all_of_them_are_in_the_meters_own_log(tmp_path):
    meter, model, bare = LightningMeter(profile_at=[5], out=tmp_path / "run"), module(), module()
    arguments = {"accumulate_grad_batches": 2, "log_every_n_steps": 4, "max_steps": 7}
    fit(trainer(tmp_path, [meter], **arguments), model)
    fit(trainer(tmp_path, [], **arguments), bare)

    profiled = gpuprof.load(tmp_path / "run" / "step-5.json.gz")
    assert totals(profiled)["flops"] == 2 * train_flops(ROWS)
    assert profiled.done("trace")
    lines = [json.loads(line) for line in (tmp_path / "run" / "meter.jsonl").read_text().splitlines()]
    assert [step[0] for line in lines for step in line.get("steps", [])] == [1, 2, 3, 4, 5, 6, 7]
    assert model.losses == bare.losses


def test_a_training_without_loggers_is_metered_too(tmp_path):
    meter = LightningMeter()
    fit(trainer(tmp_path, [meter], logger=False), module())

    assert meter.meter.number == 6


@pytest.mark.parametrize("there", [*PACKAGES, None])
def test_one_of_the_packages_is_enough_and_none_is_said_in_a_line(there):
    absent = [name for name in ("lightning", "pytorch_lightning") if there is None or not there.startswith(name)]
    code = (
        "import sys\nclass Absent:\n    def find_spec(name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {absent}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent)\nfrom gpuprof import integrations, GpuprofError\n"
        "try:\n    print(integrations.LightningMeter.__mro__[1].__module__)\n"
        "except GpuprofError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    said = (
        f"{there}.callbacks.callback"
        if there
        else ("LightningMeter needs lightning, which is not installed: pip install 'gpuprof[lightning]'")
    )
    assert done.stdout.splitlines()[-1] == said


def ddp():
    """Of a rank of two that train by DDP: what it read."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2}
        model = module()
        trained = trainer(folder, [LightningMeter()], **arguments)
        fit(trained, model)
        bare = module()
        fit(trainer(folder, [], **arguments), bare)
    return {
        "line": {name: float(value) for name, value in trained.logged_metrics.items()},
        "same": model.losses == bare.losses,
        "left": left(trained, model) == NOTHING,
    }


def test_two_ranks_count_each_its_own_and_log_all_of_both():
    ranks = [rank["ddp"] for rank in launch(__file__, ["ddp"])]
    for rank in ranks:
        assert rank["same"]
        assert rank["left"]
        assert rank["line"]["meter/flops_per_step"] == 2 * train_flops(ROWS)
        assert rank["line"]["meter/counted_signatures"] == 1
    one, other = (rank["line"] for rank in ranks)
    assert one["mfu"] == other["mfu"]
    assert one["tokens_per_sec"] == other["tokens_per_sec"]
