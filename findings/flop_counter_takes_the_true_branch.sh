#!/usr/bin/env bash
# Under torch's FlopCounterMode torch.cond returns what its true branch gives, whatever the predicate, and later calls of it raise.
#
# Expected: counting is looking on: a model gives under the counter what it gives without. Of a torch.cond the branch that ran is counted, or, as
#   a comment of the source has it, the larger of both, however much else was counted before. Afterwards all is as it was.
# Happens: the mode runs both branches to count them, and hands on the true one's result without a look at the predicate. So a model with
#   a cond (an early exit, a router, a skipped layer) computes something else while it is counted, and nothing
#   warns: here 512 instead of 40. Of branches with 3 and 1 products 3 are counted if nothing came before, and 4 if anything did: what is put
#   aside before each branch is a shallow copy, whose inner counts go on growing. And a cond that is called for the first time
#   under the counter is no longer callable without it: torch.cond compiles itself, which a mode forbids for good, so plain calls raise
#   Unsupported until torch._dynamo.reset(). The same if the first call came before and worked.
# Who meets it: whoever counts a step of a running training or evaluation: what it computed is not the model's, and the next step ends the run.
#   Mend: count in another process, or torch._dynamo.reset() afterwards and no use of what was computed under the counter.
# Versions: torch 2.13.0, CPU; seen on 2026-11-29.
# Source: torch/utils/flop_counter.py, _FlopCounterMode._handle_higher_order_ops; torch/_higher_order_ops/utils.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
SIDE = 8
ONE = 2 * SIDE**3  # FLOPs of a product
x = torch.ones(SIDE, SIDE)


def three(x):
    return x @ x @ x @ x


def one(x):
    return 5 * (x @ x)


def branch(predicate):
    return torch.cond(torch.tensor(predicate), three, one, (x,))[0, 0].item()


def counted(predicate, products_before):
    with FlopCounterMode(display=False) as counter:
        for _ in range(products_before):
            x @ x
        result = branch(predicate)
    return result, counter.get_total_flops() / ONE - products_before


plain = {predicate: branch(predicate) for predicate in (True, False)}
print("plain:", plain)
assert plain == {True: 512.0, False: 40.0}, "that has changed"
for predicate in (True, False):
    for before in (0, 1, 2):
        result, products = counted(predicate, before)
        print(f"counted, {predicate}, after {before} products: result {result:g}, {products:g} products of the cond")
        assert (result, products) == (512.0, 4 if before else 3), "that has changed"
for predicate in (True, False):
    try:
        branch(predicate)
    except torch._dynamo.exc.Unsupported as error:
        print(f"plain again, {predicate}: {type(error).__name__}: {str(error).splitlines()[0]}")
    else:
        raise SystemExit("that has changed")
torch._dynamo.reset()
assert {predicate: branch(predicate) for predicate in (True, False)} == plain, "that has changed"
print("plain after torch._dynamo.reset(): as at first")
PYTHON
echo "as described"
