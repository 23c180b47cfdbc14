#!/usr/bin/env bash
# Expected: torch.compile(DistributedDataParallel(model)) compiles the model, whatever class it has: alone, the same
#           torch.nn.Sequential is compiled to a graph.
# Happens:  if the class of the wrapped model is one of torch's own (Sequential, Linear), nothing is compiled and nothing
#           is said. Dynamo breaks in DDP's forward, and then looks at the forward of the module inside as at any frame,
#           which it skips as it is in a file of torch's. A subclass with a forward of its own, in a file of the user's,
#           is compiled; so is a Sequential that is compiled before it is wrapped.
# Version:  torch 2.13.0 (CPU, gloo), 2026-11-28
# Source:   torch/nn/parallel/distributed.py (_inside_ddp_forward is disabled for Dynamo), torch/_dynamo/trace_rules.py
# Run:      findings/compiled_ddp_runs_torchs_containers_eagerly.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cat > "$folder/run.py" <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Own(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x))


def graphs(make):
    torch._dynamo.reset()
    counters.clear()
    make()(torch.ones(2, 4)).sum().backward()
    return counters["stats"].get("unique_graphs", 0)


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def layers(kind=nn.Sequential):
    return kind(nn.Linear(4, 4), nn.GELU())


wrapped = nn.parallel.DistributedDataParallel
print(f"torch {torch.__version__}, graphs of Dynamo:")
print("compiled Sequential:", graphs(lambda: compiled(layers())))
print("compiled DDP of a Sequential:", graphs(lambda: compiled(wrapped(layers()))))
print("compiled DDP of a Linear:", graphs(lambda: compiled(wrapped(nn.Linear(4, 4)))))
print("compiled DDP of a class of one's own:", graphs(lambda: compiled(wrapped(layers(Own)))))
print("DDP of a compiled Sequential:", graphs(lambda: wrapped(compiled(layers()))))
dist.destroy_process_group()
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/out"
grep -q "^compiled Sequential: 1" "$folder/out"
grep -q "^compiled DDP of a Sequential: 0" "$folder/out"
grep -q "^compiled DDP of a Linear: 0" "$folder/out"
grep -q "^compiled DDP of a class of one's own: 1" "$folder/out"
grep -q "^DDP of a compiled Sequential: 1" "$folder/out"
echo "as described"
