#!/usr/bin/env bash
# The Trainer and Lightning train in bfloat16, and where their callbacks and the model's hooks look, autocast is off.
#
# Expected: bf16=True or precision="bf16-mixed" is autocast around the step, so a callback at the begin of a step, or at least a forward
#   pre-hook of the model, can ask torch.is_autocast_enabled() for the dtype of what follows.
# Happens: in the Trainer autocast is within model.forward, which accelerate has replaced on the object, so hooks before and after the
#   forward are outside, and a callback's events as well; only layers see it. Lightning has it around training_step alone: it is
#   off in on_train_batch_start, in on_after_backward and in on_before_optimizer_step, though on in hooks of the network. So the same hook on
#   the same network says float32 in the one and bfloat16 in the other, and the products are bfloat16 in both.
# Who meets it: whoever chooses a peak or keeps apart measurements by it: the run passes for float32, at several times its utilization.
#   Mend: ask args.bf16 or trainer.precision, or a hook of a layer.
# Versions: transformers 5.24.0, accelerate 1.15.0, lightning 2.6.6, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: accelerate/accelerator.py, Accelerator.prepare_model; lightning/pytorch/strategies/strategy.py, Strategy.training_step
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 lightning==2.6.6 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import accelerate
import lightning
import lightning.pytorch as pl
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__, "accelerate", accelerate.__version__, end=" ")
print("lightning", lightning.__version__, "torch", torch.__version__)
seen = {}


def look(where):
    seen[where] = torch.is_autocast_enabled("cpu")


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.register_forward_pre_hook(lambda *_: look("network, pre-hook"))
        self.register_forward_hook(lambda *_: look("network, hook"))
        self.linear.register_forward_pre_hook(lambda *_: look("layer, pre-hook"))
        self.linear.register_forward_hook(lambda module, arguments, out: seen.update(product=out.dtype))

    def forward(self, x):
        return {"loss": self.linear(x).pow(2).mean()}


class TrainerEvents(TrainerCallback):
    def on_step_begin(self, *_, **__):
        look("on_step_begin")

    def on_pre_optimizer_step(self, *_, **__):
        look("on_pre_optimizer_step")

    def on_step_end(self, *_, **__):
        look("on_step_end")


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Network()

    def training_step(self, batch, index):
        return self.network(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class LightningEvents(pl.Callback):
    def on_train_batch_start(self, *_):
        look("on_train_batch_start")

    def on_after_backward(self, *_):
        look("on_after_backward")

    def on_before_optimizer_step(self, *_):
        look("on_before_optimizer_step")

    def on_train_batch_end(self, *_):
        look("on_train_batch_end")


def run(name, on):
    print(f"{name}: " + ", ".join(f"{where} {'on' if what is True else what or 'off'}" for where, what in seen.items()))
    assert seen.pop("product") == torch.bfloat16
    assert {where for where, what in seen.items() if what} == on, "that has changed"
    seen.clear()


data = [{"x": torch.ones(8)}] * 8
arguments = TrainingArguments("out", max_steps=2, save_strategy="no", use_cpu=True, disable_tqdm=True, report_to="none", bf16=True)
Trainer(Network(), arguments, train_dataset=data, callbacks=[TrainerEvents()]).train()
run("Trainer, bf16=True", {"layer, pre-hook"})
trainer = pl.Trainer(
    max_steps=2, accelerator="cpu", precision="bf16-mixed", logger=False, callbacks=[LightningEvents()],
    enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
)
trainer.fit(Module(), torch.utils.data.DataLoader(data))
run("Lightning, bf16-mixed", {"layer, pre-hook", "network, pre-hook", "network, hook"})
PYTHON
echo "as described"
