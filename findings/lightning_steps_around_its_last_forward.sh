#!/usr/bin/env bash
# In Lightning an optimizer's step, in a trace and between its hooks, holds a forward and a backward, of the window's last batch only.
#
# Expected: a range Optimizer.step#AdamW.step in a trace is the update, as is what lies between the hooks before and after a step; so is it
#   in a plain loop. Forward and backward of each batch lie before it.
# Happens: Lightning passes training_step and backward to the step as a closure, so they run inside of it. When gradients are accumulated
#   that is so for the last batch of each window only, and the others run outside. In a trace the update seems to be the most of a step,
#   and one batch in four to have no forward; a hook before the step runs before the forward of its last batch; that
#   place is Lightning's on_before_optimizer_step. With automatic_optimization = False all is as expected.
# Who meets it: whoever takes the optimizer's time from a trace or from hooks, or starts there to count a step's work.
# Versions: lightning 2.6.6, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: lightning/pytorch/loops/optimization/automatic.py; lightning/pytorch/plugins/precision/precision.py, optimizer_step
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import lightning
import lightning.pytorch as pl
import torch

print("lightning", lightning.__version__, "torch", torch.__version__)


class Model(pl.LightningModule):
    def __init__(self, automatic):
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)
        self.automatic_optimization = automatic

    def training_step(self, batch, index):
        order.append("forward")
        loss = self.linear(batch).pow(2).mean()
        if not self.automatic_optimization:
            self.manual_backward(loss)
            if index % 4 == 3:
                self.optimizers().step()
                self.optimizers().zero_grad()
        return loss

    def on_after_backward(self):
        order.append("backward done")

    def on_before_optimizer_step(self, optimizer):
        order.append("on_before_optimizer_step")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters())
        optimizer.register_step_pre_hook(lambda *_: order.append("HOOK BEFORE"))
        optimizer.register_step_post_hook(lambda *_: order.append("HOOK AFTER"))
        return optimizer


def inside(event):
    while event is not None:
        if event.name.startswith("Optimizer.step#"):
            return True
        event = event.cpu_parent
    return False


for automatic in (True, False):
    order = []
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", accumulate_grad_batches=4 if automatic else 1, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.fit(Model(automatic), torch.utils.data.DataLoader(torch.ones(4, 64)))
    forwards = [inside(event) for event in profile.events() if event.name == "aten::addmm"]
    print(f"automatic_optimization = {automatic}: " + ", ".join(order))
    print(f"   forwards inside of Optimizer.step in the trace: {forwards}")
    last = ["forward", "backward done"]
    around = ["HOOK BEFORE", *last, "on_before_optimizer_step", "HOOK AFTER"]
    plain = [*last, "HOOK BEFORE", "on_before_optimizer_step", "HOOK AFTER"]
    assert order == last * 3 + (around if automatic else plain), "that has changed"
    assert forwards == [False, False, False, automatic], "that has changed"
PYTHON
echo "as described"
