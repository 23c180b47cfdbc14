#!/usr/bin/env bash
# Counting the FLOPs of one call of a compiled model turns its compilation off for good: for it, and for every model of its class.
#
# Expected: under a dispatch mode, as FlopCounterMode is, a compiled model either runs compiled or falls back to eager for that call. After
#   the with block all is as before; at worst it is compiled once more.
# Happens: that call runs eagerly, so its count is right. But Dynamo remembers for the function's code that it found nothing to compile,
#   and that outlives mode and call: later calls run eagerly, with other shapes, in eval(), by a new torch.compile, and so do other models
#   of the class, compiled before or after. Results are right and nothing warns of it: only the time shows it.
#   A mode that does nothing does the same. With fullgraph=True the call raises, and so do all later ones.
#   torch._dynamo.reset() heals it. Mend: count inside of torch.compiler.set_stance("force_eager"), which leaves no trace.
# Who meets it: whoever counts one step's FLOPs or memory in a training loop, to log utilization, and goes on training.
# Versions: torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torch/_dynamo/eval_frame.py and convert_frame.py; torch/utils/flop_counter.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
venv/bin/python - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import contextlib
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("error")
print("torch", torch.__version__)
runs = []


def compiler(graph, inputs):
    def run(*arguments):
        runs.append(graph)
        return graph.forward(*arguments)

    return run


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x):
        return torch.nn.functional.gelu(self.linear(x))


class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


def compiled(model, rows=8):
    runs.clear()
    try:
        for _ in range(3):
            model(torch.ones(rows, 64)).sum().backward()
    except RuntimeError as error:
        return "raises " + str(error).split("\n")[0][:60]
    return f"{len(runs)} of 3"


def force_eager():
    stack = contextlib.ExitStack()
    stack.enter_context(torch.compiler.set_stance("force_eager"))
    stack.enter_context(FlopCounterMode(display=False))
    return stack


flops = 2 * 2 * 8 * 64 * 64  # forward and the gradient of the weight
for name, mode, fullgraph, lasts in (
    ("FlopCounterMode", lambda: FlopCounterMode(display=False), False, True),
    ("a mode that does nothing", Nothing, False, True),
    ("FlopCounterMode, fullgraph=True", lambda: FlopCounterMode(display=False), True, True),
    ("set_stance and FlopCounterMode", force_eager, False, False),
    ("set_stance and FlopCounterMode, fullgraph=True", force_eager, True, False),
):
    torch._dynamo.reset()
    inner, other = Model(), torch.compile(Model(), backend=compiler)
    model = torch.compile(inner, backend=compiler, fullgraph=fullgraph)
    seen = {"before": compiled(model), "another model before": compiled(other)}
    assert set(seen.values()) == {"3 of 3"}
    with contextlib.suppress(RuntimeError), warnings.catch_warnings(), mode() as counter:
        warnings.filterwarnings("ignore", ".*global hooks.*")  # FlopCounterMode's own, of nothing else
        model(torch.ones(8, 64)).sum().backward()
        if isinstance(counter, FlopCounterMode):
            assert counter.get_total_flops() == flops
    after = {
        "the same": compiled(model), "other shape": compiled(model, 16), "eval": compiled(model.eval()),
        "compiled anew": compiled(torch.compile(inner, backend=compiler)), "another model": compiled(other),
        "a new model": compiled(torch.compile(Model(), backend=compiler)),
    }
    torch._dynamo.reset()
    after["after reset"] = compiled(model)
    print(f"{name}: compiled before 3 of 3; after one call under it: " + ", ".join(f"{what} {n}" for what, n in after.items()))
    for what, n in after.items():
        if lasts and what != "after reset":
            assert n == "0 of 3" or fullgraph and n.startswith("raises"), "that has changed"
        else:
            assert n == "3 of 3", "that has changed"
PYTHON
[ ! -s errors ]
echo "as described"
