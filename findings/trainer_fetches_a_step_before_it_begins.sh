#!/usr/bin/env bash
# With gradient accumulation the Trainer fetches all batches of a step before the step begins, and keeps them until it ends.
#
# Expected: accumulation over 8 batches holds one of them at a time on the device, which it is used for, and a step begins before its first
#   batch is fetched: between on_step_begin and on_step_end is a step, a slow loader's time and all.
# Happens: the batches of a step are fetched and moved to the device as a list, to count its labels, and only then comes on_step_begin.
#   In each forward all of the step's batches are alive, those already used as well, and the next step's first, fetched ahead by
#   accelerate's loader, not moved yet: 9 batches rather than 1 or 2. A slow loader's time is not in on_step_begin to on_step_end at all,
#   with accumulation or without: that is all compute, at full speed, while most of the run is spent waiting.
# Who meets it: whoever times steps by callbacks, so that tokens per second are too many, or accumulates as the inputs are large
#   (images, audio, features, or teacher logits): their memory grows with the accumulation.
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, CPU; seen on 2026-11-29.
# Source: transformers/trainer.py, Trainer.get_batch_samples and the loop that calls it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 2>/dev/null
TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import time
import weakref

import accelerate
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__, "accelerate", accelerate.__version__, "torch", torch.__version__)
batches, alive, order, steps = [], [], [], []


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        order.append("fetch")
        time.sleep(0.1)
        return {"x": torch.ones(8)}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 1)

    def forward(self, x):
        order.append("forward")
        if all(x is not batch() for batch in batches):
            batches.append(weakref.ref(x))
        alive.append(sum(batch() is not None for batch in batches))
        return {"loss": self.linear(x).mean()}


class Times(TrainerCallback):
    def on_step_begin(self, *_, **__):
        order.append("STEP BEGINS")
        steps.append([time.perf_counter()])

    def on_step_end(self, *_, **__):
        order.append("STEP ENDS")
        steps[-1].append(time.perf_counter())


def collate(rows):
    x = torch.stack([row["x"] for row in rows])
    batches.append(weakref.ref(x))
    return {"x": x}


for accumulation in (1, 8):
    for record in (batches, alive, order, steps):
        record.clear()
    arguments = TrainingArguments(
        "out", num_train_epochs=1, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation,
        save_strategy="no", use_cpu=True, disable_tqdm=True, report_to="none",
    )
    started = time.perf_counter()
    Trainer(Model(), arguments, train_dataset=Data(), data_collator=collate, callbacks=[Times()]).train()
    whole = time.perf_counter() - started
    inside = sum(end - begin for begin, end in steps)
    begin = order.index("STEP BEGINS", order.index("STEP ENDS")) + 1
    step = order[begin - 1 : order.index("STEP ENDS", begin) + 1]
    print(f"accumulation {accumulation}: the second step: {', '.join(step)}")
    print(f"   fetched before the first step began: {order[: order.index('STEP BEGINS')].count('fetch')}", end="; ")
    print(f"batches alive in each forward: {alive}; {inside:.2f} s of {whole:.2f} s in steps")
    assert order[: order.index("STEP BEGINS")].count("fetch") == accumulation + 1, "that has changed"
    assert "fetch" not in step, "that has changed"
    assert max(alive) == accumulation + 1 and whole > 2.4, "that has changed"
    assert inside < whole / 2, "that has changed"
PYTHON
echo "as described"
