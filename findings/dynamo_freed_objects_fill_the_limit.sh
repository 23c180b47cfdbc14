#!/usr/bin/env bash
# The step of a ninth optimizer is not compiled, though the eight before it and their code are gone.
#
# Expected: torch.compile of a new object's method is a compilation of its own, and an optimizer that is deleted takes the code that
#   was made for it along: Dynamo's limit of eight recompilations is for eight that are there at a time.
# Happens: code is kept by function, not by torch.compile call or object. When the optimizer is freed, its code is invalid ("Cache line
#   invalidated because L['self'] got deallocated" in the log of recompilations), but its entry stays and counts. So of twelve
#   trials, each with an optimizer of its own, the last four step without compilation, told by a warning once: as many as if
#   all had been kept. Functions made anew and passed as an argument are alike. torch._dynamo.reset() between the trials, or
#   torch.compile(..., isolate_recompiles=True), has all twelve compiled.
# Who meets it: whoever tries learning rates, folds or seeds in one process, or compares the times of their first and last trials.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/_dynamo/cache_size.py, exceeds_recompile_limit
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
venv/bin/python - <<'PYTHON'
import gc
import weakref

import torch

print("torch", torch.__version__)
TRIALS, LIMIT = 12, 8


def sweep(what, keep=False, reset=False, **options):
    torch._dynamo.reset()
    graphs, kept, freed, compiled = [], [], [], []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def apply(function, x):
        return function(x)

    applied = torch.compile(apply, backend=compiler, **options)
    for _ in range(TRIALS):
        before = len(graphs)
        if what == "optimizer":
            weight = torch.nn.Parameter(torch.ones(3))
            weight.grad = torch.ones(3)
            thing = torch.optim.SGD([weight], lr=0.1)
            torch.compile(thing.step, backend=compiler, **options)()
        else:
            thing = eval("lambda x: 2 * x")
            applied(thing, torch.ones(3))
        compiled.append(len(graphs) > before)
        if keep:
            kept.append(thing)
        else:
            freed.append(weakref.ref(thing))
        del thing
        gc.collect()
        if reset:
            torch._dynamo.reset()
    assert all(thing() is None for thing in freed)
    how = f"each {what} is {'kept' if keep else 'freed'}" + (", reset between" if reset else "")
    print(how, *(f"{key}={value}" for key, value in options.items()), "- compiled:", *("yes" if one else "NO" for one in compiled))
    return compiled


some = [True] * LIMIT + [False] * (TRIALS - LIMIT)
for what in ("optimizer", "function"):
    assert sweep(what) == some, "that has changed"
    assert sweep(what, keep=True) == some, "that has changed"
    assert sweep(what, reset=True) == [True] * TRIALS, "that has changed"
assert sweep("optimizer", isolate_recompiles=True) == [True] * TRIALS, "that has changed"
PYTHON
echo "as described"
