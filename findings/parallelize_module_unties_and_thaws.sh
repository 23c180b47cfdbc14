#!/usr/bin/env bash
# Tensor parallelism of torch undoes what was said of parameters before: tied weights come apart, and frozen norms are trained again.
#
# Expected: parallelize_module shards a model and leaves the rest of it alone: an embedding and a head that are one parameter stay one,
#   and what does not require a gradient does not.
# Happens: each planned module gets new parameters. A head in a plan is no more its embedding's weight, planned or not: both are trained apart from
#   the first optimizer step on, and the model has more parameters than it had, without a word (the first loss is right). And
#   SequenceParallel makes its parameters with nn.Parameter(...), whose default is to require a gradient, so a frozen norm is trained;
#   ColwiseParallel and RowwiseParallel do keep the flag.
# Who meets it: whoever shards a pretrained model with tied embeddings (SmolLM, Qwen2-0.5B, Gemma), or fine-tunes with frozen norms.
#   Mend: plan both with the same placement and assign the one weight to the other afterwards; set requires_grad again.
# Versions: torch 2.13.0, CPU, gloo, one process is enough; seen on 2026-11-28.
# Source: torch/distributed/tensor/parallel/style.py, _partition_linear_fn, _partition_embedding_fn and SequenceParallel._replicate_module_fn
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
cat > "$folder/sharded.py" <<'PYTHON'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.up, self.norm = nn.Embedding(16, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.norm(self.up(self.embedding(ids))))


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net, ids = Net(), torch.arange(16)[None]
net.up.requires_grad_(False)
net.norm.requires_grad_(False)
before = sum(p.numel() for p in net.parameters())
plan = {
    "embedding": RowwiseParallel(input_layouts=Replicate()),
    "up": ColwiseParallel(output_layouts=Replicate()),
    "norm": SequenceParallel(use_local_output=True),
    "head": ColwiseParallel(output_layouts=Replicate()),
}
parallelize_module(net, init_device_mesh("cpu", (1,)), plan)
after = sum(p.numel() for p in net.parameters())
optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
torch.nn.functional.cross_entropy(net(ids)[0], ids[0]).backward()
optimizer.step()
apart = not torch.equal(net.head.weight.full_tensor(), net.embedding.weight.full_tensor())
print("torch", torch.__version__)
print(f"{before} parameters before, {after} after; embedding and head differ after a step: {apart}")
print(f"frozen before; requires a gradient after: Linear {net.up.weight.requires_grad}, LayerNorm {net.norm.weight.requires_grad}")
assert net.head.weight is not net.embedding.weight
assert after == before + 16 * 8
assert apart
assert net.norm.weight.requires_grad
assert not net.up.weight.requires_grad
dist.destroy_process_group()
PYTHON
"$folder/venv/bin/python" "$folder/sharded.py"
