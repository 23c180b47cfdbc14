#!/usr/bin/env bash
# What a compiled model's kernels are called depends on what was compiled before it: a model without GELU runs cpp_fused_gelu_0.
#
# Expected: a generated kernel's name lists the operators of the model that it runs, so a profile with fused_gelu is of a model that
#   calls gelu, and a cache that is warm changes how long compilation takes, not what a profile says.
# Happens: the key of Inductor's cache is the graph after decomposition, without the operators that it was made of, by which the
#   kernels are named. GELU or softmax written out of mul, erf, exp and sum has the graph of the operator, so it takes the
#   code of whichever was compiled first, names and all, in another process too. In one graph it is the same without the cache: of
#   kernels with one source the first is kept, with its name, and called for all.
# Who meets it: whoever sums a compiled profile by names, compares two of one model, or looks for a kernel's place in the model.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/_inductor/codecache.py, FxGraphCachePickler; torch/_inductor/codegen/cpp.py, CppScheduling.define_kernel
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
cat > run.py <<'PYTHON'
import re
import sys

import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code


def written_gelu(x):
    return x * 0.5 * (1 + torch.erf(x * 0.7071067811865476))


def written_softmax(x):
    powers = torch.exp(x - x.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def softmax(x):
    return torch.softmax(x, -1)


def model(x):
    for part in parts:
        x = part(x @ weight)
    return x @ weight


functions = {"gelu": torch.nn.functional.gelu, "softmax": softmax, "gelu-written-out": written_gelu, "softmax-written-out": written_softmax}
parts = [functions[name] for name in sys.argv[1:]]
weight = torch.ones(64, 64)
_, (code,) = run_and_get_code(torch.compile(model), torch.ones(64, 64))
hit = " (from the cache)" if counters["inductor"]["fxgraph_cache_hit"] else ""
print(", ".join(sys.argv[1:]) + ": " + ", ".join(re.findall(r"^ +(cpp_fused\w+)\(", code, re.M)) + hit)
PYTHON
venv/bin/python -c 'import torch; print("torch", torch.__version__)'
run() { TORCHINDUCTOR_CACHE_DIR="$folder/cache-$1" venv/bin/python run.py "${@:2}" | tee -a out; }
run 1 gelu
run 1 gelu-written-out
run 2 gelu-written-out
run 2 gelu
run 3 softmax
run 3 softmax-written-out
run 4 softmax-written-out
run 5 gelu gelu-written-out
cat > expected <<'OUT'
gelu: cpp_fused_gelu_0
gelu-written-out: cpp_fused_gelu_0 (from the cache)
gelu-written-out: cpp_fused_add_erf_mul_0
gelu: cpp_fused_add_erf_mul_0 (from the cache)
softmax: cpp_fused__softmax_0
softmax-written-out: cpp_fused__softmax_0 (from the cache)
softmax-written-out: cpp_fused_amax_div_exp_sub_sum_0
gelu, gelu-written-out: cpp_fused_gelu_0, cpp_fused_gelu_0
OUT
diff expected out
echo "as described"
