#!/usr/bin/env bash
# What a Trainer callback adds to the logs in on_log is on the console, but not in TensorBoard; by add_callback() it is nowhere.
#
# Expected: on_log gets the dictionary that is about to be logged, so a callback that adds keys to it has them wherever the run is reported,
#   whether it was given to the Trainer or added later. They are printed with the loss, which seems to prove it.
# Happens: one dictionary goes from callback to callback in a fixed order: those of report_to, those of callbacks=[...], the one that prints,
#   and then those of add_callback(). TensorBoard has written by then (W&B and MLflow stand in the same place). A callback of
#   callbacks=[...] is before the console, and one of add_callback() is behind all. state.log_history and so trainer_state.json lack
#   the keys too: the copy is made before on_log. In the second place of trainer.callback_handler.callbacks the same callback
#   reaches all but the history.
# Who meets it: whoever adds throughput, memory or MFU to a run by a callback, tries it on a console, and looks at the dashboard later.
# Versions: transformers 5.24.0, accelerate 1.15.0, tensorboard 2.21.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/trainer.py, Trainer.__init__, where the callbacks are put in order, and Trainer.log
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 tensorboard==2.21.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import contextlib
import io
import os

import accelerate
import tensorboard
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__, "accelerate", accelerate.__version__, end=" ")
print("tensorboard", tensorboard.__version__, "torch", torch.__version__)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 1)

    def forward(self, x):
        return {"loss": self.linear(x).pow(2).mean()}


class Speed(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        logs["speed"] = 0.5


for how in ("callbacks=[...]", "add_callback", "second in the list"):
    os.environ["TENSORBOARD_LOGGING_DIR"] = "board of " + how
    trainer = Trainer(
        Model(),
        TrainingArguments("out", max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True, report_to="tensorboard"),
        train_dataset=[{"x": torch.ones(8)}] * 16,
        callbacks=[Speed()] if how == "callbacks=[...]" else None,
    )
    if how == "add_callback":
        trainer.add_callback(Speed())
    if how == "second in the list":
        trainer.callback_handler.callbacks.insert(1, Speed())
    with contextlib.redirect_stdout(io.StringIO()) as console:
        trainer.train()
    board = EventAccumulator(os.environ["TENSORBOARD_LOGGING_DIR"])
    board.Reload()
    seen = {
        "console": "'speed'" in console.getvalue(),
        "TensorBoard": "train/speed" in board.Tags()["scalars"],
        "log_history": any("speed" in entry for entry in trainer.state.log_history),
    }
    print(f"{how}: " + ", ".join(type(callback).__name__ for callback in trainer.callback_handler.callbacks))
    print("   speed is in: " + ", ".join(f"{place} {'yes' if there else 'NO'}" for place, there in seen.items()))
    assert "train/loss" in board.Tags()["scalars"]
    expected = {"console": how != "add_callback", "TensorBoard": how == "second in the list", "log_history": False}
    assert seen == expected, "that has changed"
PYTHON
echo "as described"
