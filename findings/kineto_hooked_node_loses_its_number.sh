#!/usr/bin/env bash
# An autograd node with a tensor hook that runs an operator has no sequence number in the profiler's trace.
#
# Expected: the event "autograd::engine::evaluate_function: X" carries the number of node X and the thread of its forward, by which
#   every reader of traces joins a backward to its forward, whatever hooks the node has.
# Happens: it does so only while nothing is recorded before the node's own function. A hook that multiplies the gradient, or only
#   opens a record_function, comes first, and the event then has number -1 and forward thread 0. The function's own event inside,
#   of the same name without the prefix, still has both. So the work of exactly those nodes loses its forward.
# Who meets it: whoever reads Kineto events of models with gradient hooks (clipping, compression), of FSDP2, whose backward begins
#   in hooks on every module, or with labels in hooks.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/csrc/autograd/engine.cpp, torch/csrc/profiler/collection.cpp
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python - <<'PYTHON' 2>/dev/null
import torch
from torch.profiler import ProfilerActivity, profile, record_function

print("torch", torch.__version__)
NODE = "autograd::engine::evaluate_function: AddmmBackward0"


def label(grad):
    with record_function("hook"):
        pass


def numbers(hook):
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        out = layer(x)
        if hook is not None:
            out.register_hook(hook)
        out.sum().backward()
    events = profiler.profiler.kineto_results.events()
    return {name: next(e for e in events if e.name() == name).sequence_nr() for name in (NODE, "AddmmBackward0")}


found = {
    "no hook": numbers(None),
    "a hook that does nothing": numbers(lambda grad: None),
    "a hook that multiplies": numbers(lambda grad: grad * 2),
    "a hook that opens a label": numbers(label),
}
for name, of in found.items():
    print(f"{name}: node's event {of[NODE]}, its function's event {of['AddmmBackward0']}")
assert all(of["AddmmBackward0"] >= 0 for of in found.values())
assert [of[NODE] >= 0 for of in found.values()] == [True, True, False, False]
PYTHON
