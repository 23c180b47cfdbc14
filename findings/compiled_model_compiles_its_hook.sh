#!/usr/bin/env bash
# A forward pre-hook of a compiled model is itself compiled, some at each call; torch.compiler.disable mends that and breaks no graph.
#
# Expected: the hooks of the model that torch.compile wraps run in Python before its compiled code, so what a hook does, as appending
#   to a list, is nobody's business. And torch.compiler.disable is a graph break, which fullgraph=True forbids.
# Happens: the hook is not in the model's graph, but Dynamo compiles it too, and guards on what it touches: a list that has grown is another
#   list. A hook that appends shapes costs one compilation; with fullgraph=True one per call, and the model's ninth call raises.
#   One that appends the time of a clock costs one per call up to the limit of eight, then a warning; with fullgraph=True the first call
#   raises. With torch.compiler.disable(hook) neither costs any, and fullgraph=True is content: there is no graph to break;
#   there is one, and it raises, where a function that calls the model is what torch.compile wraps.
# Who meets it: whoever watches shapes, tokens or times of a compiled model by a hook: the first steps are slow, and
#   a count of compilations tells of recompilations that the model has not.
# Versions: torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torch/_dynamo/eval_frame.py, OptimizedModule; torch/nn/modules/module.py, Module._call_impl
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
venv/bin/python - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import time

import torch
from torch._dynamo.utils import counters

print("torch", torch.__version__)
CALLS = 12


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x).relu()


def shapes(seen):
    return lambda module, arguments: seen.append(arguments[0].shape)


def clock(seen):
    return lambda module, arguments: seen.append(time.perf_counter())


def trial(hook, fullgraph, function=False):
    torch._dynamo.reset()
    counters.clear()
    seen, graphs, compilations = [], [], []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.callback.on_compile_start(lambda arguments: compilations.append(arguments))
    inner = Model()
    model = torch.compile((lambda x: inner(x)) if function else inner, backend=compiler, fullgraph=fullgraph)
    if hook:
        inner.register_forward_pre_hook(hook(seen))
    for call in range(1, CALLS + 1):
        try:
            model(torch.ones(2, 8))
        except Exception as error:
            return compilations, graphs, f"call {call} raises {type(error).__name__}"
    assert not hook or len(seen) == CALLS
    return compilations, graphs, "all calls run"


def disabled(hook):
    return lambda seen: torch.compiler.disable(hook(seen))


results = {}
hooks = {"none": None, "shapes": shapes, "clock": clock, "shapes, disabled": disabled(shapes), "clock, disabled": disabled(clock)}
for name, hook in hooks.items():
    for fullgraph in (False, True):
        compilations, graphs, end = trial(hook, fullgraph)
        results[name, fullgraph] = len(compilations), len(graphs), end
        print(f"hook: {name}, fullgraph={fullgraph}: {len(compilations)} compilations, {len(graphs)} graphs, {end}")
RUN = "all calls run"
assert results == {
    ("none", False): (1, 1, RUN), ("none", True): (1, 1, RUN),
    ("shapes", False): (2, 1, RUN), ("shapes", True): (9, 1, "call 9 raises FailOnRecompileLimitHit"),
    ("clock", False): (9, 1, RUN), ("clock", True): (1, 0, "call 1 raises Unsupported"),
    ("shapes, disabled", False): (1, 1, RUN), ("shapes, disabled", True): (1, 1, RUN),
    ("clock, disabled", False): (1, 1, RUN), ("clock, disabled", True): (1, 1, RUN),
}, "that has changed"
_, graphs, end = trial(disabled(shapes), True, function=True)
print(f"hook: shapes, disabled, fullgraph=True, a function that calls the model: {len(graphs)} graphs, {end}")
assert (len(graphs), end) == (0, "call 1 raises Unsupported"), "that has changed"
PYTHON
grep -o "torch._dynamo hit config.*" errors
echo "as described"
