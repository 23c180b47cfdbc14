#!/usr/bin/env bash
# Lightning's peak FLOP/s by which it logs utilization: an L40S has an L4's, an H200 none, and an A40 less than it does.
#
# Expected: ThroughputMonitor logs device/mfu by the dense peak of the card in the run's dtype, and of a card it does not know it says so.
# Happens: cards are told by parts of their names, in an order. Any name with "l4" in it is an L4, unless it is a "Tesla": L40 and L40S get
#   121e12 in bfloat16, where the L40S's data sheet has 362e12, so utilization may be 3. The L40's own entry is not reached by its
#   name. The A40's 37.4e12 is its float32 without tensor cores, a quarter of its 149.7e12. The entries of L4, A100 and H100 SXM are dense. Those
#   of the H100 NVL are twice the H100 SXM's in every dtype, float64 as well: of a pair of cards. The H200's bfloat16 has sparsity, its
#   float32 does not: each gives half the utilization. But an H200 is only found as "H200 SXM1" or "H200 NVL1"; as "NVIDIA H200" it
#   has no peak, with a warning, and no utilization.
# Who meets it: whoever compares utilization between cards, or reads one.
# Versions: lightning 2.6.6, torch 2.13.0, CPU; the names are given in place of the driver's; seen on 2026-11-29.
# Source: lightning/fabric/utilities/throughput.py, get_available_flops and _CUDA_FLOPS; data sheets of the cards
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6 2>/dev/null
venv/bin/python - <<'PYTHON'
import warnings
from unittest import mock

import lightning
import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS, get_available_flops

print("lightning", lightning.__version__, "torch", torch.__version__)
cards = {  # what Lightning says, and dense bfloat16 by the data sheets, in 1e12 FLOP/s
    "NVIDIA A100-SXM4-80GB": (312, 312),
    "NVIDIA H100 80GB HBM3": (989.4, 989.4),
    "NVIDIA L4": (121, 121),
    "NVIDIA L40": (121, 181),
    "NVIDIA L40S": (121, 362),
    "NVIDIA A40": (37.4, 149.7),
    "NVIDIA H100 NVL": (1978.8, 835.5),
    "NVIDIA H200": (None, 989.4),
    "NVIDIA H200 SXM1": (2000, 989.4),
}
for name, (expected, dense) in cards.items():
    with mock.patch("torch.cuda.get_device_name", return_value=name), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        peak = get_available_flops(torch.device("cuda"), torch.bfloat16)
    peak = peak and peak / 1e12
    print(f"{name}: {peak}, by its data sheet {dense}" + "".join(f"; {warning.message}" for warning in warned))
    assert peak == expected and bool(warned) == (peak is None), "that has changed"
for name, times in (("h100 nvl", [2, 2, 2]), ("h200 sxm1", [1, 1, 2])):
    kinds = (torch.float64, torch.float32, torch.bfloat16)
    ratios = [_CUDA_FLOPS[name][kind] / _CUDA_FLOPS["h100 sxm"][kind] for kind in kinds]
    print(f"{name} to h100 sxm in float64, float32 and bfloat16: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))
    assert [round(ratio) for ratio in ratios] == times, "that has changed"
PYTHON
echo "as described"
