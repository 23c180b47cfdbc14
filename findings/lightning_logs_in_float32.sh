#!/usr/bin/env bash
# Lightning rounds numbers that are logged to float32, int64 tensors too: a counter of samples stops at 16,777,216.
#
# Expected: log and log_dict pass a number on to the logger as it is, or as the 64 bits that a Python float or int has; a tensor of int64 asks
#   for all its digits anyway.
# Happens: all but tensors of float64 become a tensor of float32, in training_step as in a callback. FLOPs of a step are off by
#   thousands, so two counts that are equal elsewhere differ; a counter that grows by one stands still from 16,777,216 on; time.time() is in
#   steps of 128 s. trainer.callback_metrics, which a checkpoint's monitor reads, has the same. A tensor of float64 is passed on
#   as it is, and so is what is given to trainer.logger.log_metrics directly.
# Who meets it: whoever logs tokens or samples seen, FLOPs, bytes or times with Lightning and takes differences of them later.
# Versions: lightning 2.6.6, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: lightning/pytorch/core/module.py, LightningModule.log; trainer/connectors/logger_connector/result.py, _ResultMetric
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
NUMBERS = {
    "FLOPs, a float": 440401543168.0,
    "samples, an int": 16777217,
    "samples, int64": torch.tensor(16777217),
    "seconds, a float": 1795929100.0,
    "seconds, float64": torch.tensor(1795929100.0, dtype=torch.float64),
}


class Logger(pl.loggers.logger.Logger):
    name, version, got = "logger", 0, {}

    def log_metrics(self, metrics, step=None):
        self.got.update(metrics)

    def log_hyperparams(self, *arguments, **keywords):
        pass


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        self.log_dict({f"{name} in the step": number for name, number in NUMBERS.items()})
        return self.linear(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Callback(pl.Callback):
    def on_train_batch_end(self, trainer, module, *arguments):
        module.log_dict({f"{name} in a callback": number for name, number in NUMBERS.items()})
        trainer.logger.log_metrics({f"{name} to the logger": float(number) for name, number in NUMBERS.items()})


trainer = pl.Trainer(
    max_steps=1, log_every_n_steps=1, accelerator="cpu", logger=Logger(), callbacks=[Callback()],
    enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(4, 8)))
for name, number in NUMBERS.items():
    got = {where: Logger.got[f"{name} {where}"] for where in ("in the step", "in a callback", "to the logger")}
    print(f"{name}, {float(number):.0f}: " + ", ".join(f"{where} {value:.0f}" for where, value in got.items()))
    kept = "float64" in name
    logged = float(number) if kept else torch.tensor(float(number), dtype=torch.float32).item()
    assert (logged == float(number)) == kept and got["to the logger"] == float(number)
    assert got["in the step"] == got["in a callback"] == logged, "that has changed"
    assert trainer.callback_metrics[f"{name} in the step"].item() == logged, "that has changed"
PYTHON
echo "as described"
