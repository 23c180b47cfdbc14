#!/usr/bin/env bash
# A step that GradScaler skips runs no hook of the optimizer, unless it is a fused one: then all hooks run and accelerate says not skipped.
#
# Expected: a gradient scaler that finds an infinity does not step, which optimizer hooks, that run around each step, show by not running;
#   fused=True is another kernel for the same update. accelerate's optimizer.step_was_skipped is there to be asked.
# Happens: a fused AdamW, Adam, SGD or Adagrad is called with the infinity found, and its kernel leaves the weights alone. So the hooks
#   before and after run for an update that did not happen, and step_was_skipped is False, for which accelerate's
#   scheduler, made to wait for skipped steps, goes on. foreach and plain ones run no hook and are reported. The weights are
#   unchanged in all; the scale is halved in all, which is the one sign common to them.
# Who meets it: whoever counts steps by hooks: with fp16 the same run has other steps with fused=True; without it the skipped
#   one's tokens and time go to the next.
# Versions: torch 2.13.0, accelerate 1.15.0, CPU; seen on 2026-11-29.
# Source: torch/amp/grad_scaler.py, GradScaler.step and _maybe_opt_step; accelerate/optimizer.py, AcceleratedOptimizer.step
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import accelerate
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler

print("torch", torch.__version__, "accelerate", accelerate.__version__)
accelerate.Accelerator(cpu=True)
for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad):
    for how in ("plain", "foreach", "fused"):
        for fine in (True, False):
            model = torch.nn.Linear(2, 1)
            optimizer = kind(model.parameters(), lr=0.1, **({} if how == "plain" else {how: True}))
            hooks = []
            optimizer.register_step_pre_hook(lambda *_, hooks=hooks: hooks.append("before"))
            optimizer.register_step_post_hook(lambda *_, hooks=hooks: hooks.append("after"))
            scaler = torch.amp.GradScaler("cpu")
            prepared = AcceleratedOptimizer(optimizer, scaler=scaler)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
            scheduler = AcceleratedScheduler(schedule, prepared, split_batches=True)
            weight = model.weight.detach().clone()
            scaler.scale(model(torch.ones(1, 2)).sum() * (1 if fine else float("inf"))).backward()
            prepared.step()
            scheduler.step()
            changed = not torch.equal(weight, model.weight)
            rate = optimizer.param_groups[0]["lr"]
            halved = scaler.get_scale() < 65536
            said = f"step_was_skipped {prepared.step_was_skipped}, learning rate {rate}, scale {scaler.get_scale():.0f}"
            print(f"{kind.__name__} {how}, gradients {'finite' if fine else 'infinite'}: hooks {hooks}, weights changed {changed}, {said}")
            assert changed == fine and halved == (not fine)
            went_on = fine or how == "fused"
            assert (len(hooks) == 2) == went_on, "that has changed"
            assert prepared.step_was_skipped == (not went_on) and (rate == 0.05) == went_on, "that has changed"
PYTHON
echo "as described"
