#!/usr/bin/env bash
# torch.inference_mode(False) inside torch.no_grad() turns gradients on.
#
# Expected: inference_mode(mode=False) "disables inference mode"; where none is on there is nothing to disable, so code that enters
#   inference_mode(tensor.is_inference()), to write to whatever kind of tensor it was given, leaves a no_grad around it in force.
# Happens: the mode sets gradients too, to the opposite of its argument: inside it, torch.is_grad_enabled() is True, a product of a
#   parameter records a graph, and writing to a parameter is an error ("a leaf Variable that requires grad is being used in an
#   in-place operation"). When it ends, the no_grad is in force again.
# Who meets it: whoever passes the argument as a condition, or leaves inference mode for a while inside a no_grad: an evaluation
#   that keeps graphs, and memory, without a word. Enter the no_grad last.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/autograd/grad_mode.py; c10/core/InferenceMode.h, which sets GradMode to !enabled
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python - <<'PYTHON'
import torch

print("torch", torch.__version__)
weight = torch.ones(2, requires_grad=True)
with torch.no_grad():
    outside = torch.is_grad_enabled()
    with torch.inference_mode(False):
        inside = torch.is_grad_enabled()
        graph = (weight * 2).grad_fn
        try:
            weight.add_(1)
            said = ""
        except RuntimeError as error:
            said = str(error)
    again = torch.is_grad_enabled()
with torch.inference_mode(False), torch.no_grad():  # the other way round
    weight.add_(1)
print(f"in no_grad: {outside}, in inference_mode(False) inside it: {inside}, after that: {again}; {graph}; {said!r}")
assert (outside, inside, again) == (False, True, False), "that has changed"
assert graph is not None, "that has changed"
assert "leaf Variable" in said, "that has changed"
PYTHON
echo "as described"
