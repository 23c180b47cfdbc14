#!/usr/bin/env bash
# In a trace of torch.profiler a list of more than 30 tensors or numbers is not cut short: nothing of it is there.
#
# Expected: record_shapes=True records the inputs of every call, and of a long list the first ones, or a mark that it is longer.
# Happens: of 31 tensors "Input Dims" has [], as of no tensors at all; of 31 numbers "Input type" and "Concrete Inputs" have "", as
#   of None. With 30 both are whole. So a trace cannot tell torch.cat of 31 tensors from one of none, nor a split into 31 sizes
#   from an argument that was left out; an optimizer's fused step over more than 30 parameters, which is any model's, has no shapes.
# Who meets it: whoever counts bytes or FLOPs from traces: fused and foreach optimizers, stacks of layers, splits of a batch.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/csrc/profiler/collection.cpp, torch/csrc/autograd/profiler_kineto.cpp
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - "$folder/trace.json" <<'PYTHON' 2>/dev/null
import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile


def recorded(count):
    parts, whole = [torch.ones(2)] * count, torch.ones(count)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch.cat(parts)
        whole.split([1] * count)
    profiler.export_chrome_trace(sys.argv[1])
    with open(sys.argv[1]) as file:
        events = {event["name"]: event["args"] for event in json.load(file)["traceEvents"] if event.get("cat") == "cpu_op"}
    split = events["aten::split_with_sizes"]
    return events["aten::cat"]["Input Dims"][0], split["Input type"][1], split["Concrete Inputs"][1]


print("torch", torch.__version__)
for count in (30, 31):
    dims, kind, value = recorded(count)
    print(count, "tensors:", len(dims), "shapes;", count, "sizes:", repr(kind), repr(value[:12]))
assert recorded(30) == ([[2]] * 30, "ScalarList", str([1] * 30))
assert recorded(31) == ([], "", "")
PYTHON
