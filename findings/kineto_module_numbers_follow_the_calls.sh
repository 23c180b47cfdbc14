#!/usr/bin/env bash
# The number of a module in a profiler's trace is not the module's: it counts anew in every recording, in order of the first call.
#
# Expected: "nn.Module: Linear_1" is the same layer in every trace of a model, at least in those that one profiler makes.
# Happens: the n-th module of its class to be called since recording began gets number n. A recording that begins in the middle of
#   a step, or of another branch of the model, names other layers so; the two cycles of one profiler here call the same layer
#   Linear_1 and Linear_0.
# Who meets it: whoever compares two traces by module, or joins several cycles of a schedule.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/csrc/autograd/profiler_python.cpp, where the ids of modules are made when a recording is read
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python - <<'PYTHON' 2>/dev/null
import json

import torch
from torch.profiler import ProfilerActivity, profile, schedule

print("torch", torch.__version__)
small, large = torch.nn.Linear(4, 4), torch.nn.Linear(4, 999)
x, cycles = torch.ones(1, 4), []


def largest_of(profiler):
    """Which range the large layer's matrix product is in."""
    profiler.export_chrome_trace("trace.json")
    with open("trace.json") as file:
        events = json.load(file)["traceEvents"]
    product = next(e for e in events if e.get("name") == "aten::addmm" and 999 in e["args"]["Input Dims"][0])
    cycles.append(
        next(
            e["name"]
            for e in events
            if e.get("name", "").startswith("nn.Module") and e["ts"] <= product["ts"] < e["ts"] + e["dur"]
        )
    )


with profile(
    activities=[ProfilerActivity.CPU],
    record_shapes=True,
    with_stack=True,
    schedule=schedule(wait=0, warmup=1, active=1),
    on_trace_ready=largest_of,
) as profiler:
    for step in range(4):  # two cycles of a step of warm-up and a recorded one
        for layer in (small, large) if step < 2 else (large, small):
            layer(x)
        profiler.step()
print("the layer of 999 features, in each cycle:", *cycles, sep="\n  ")
assert cycles == ["nn.Module: Linear_1", "nn.Module: Linear_0"], "this has changed"
PYTHON
