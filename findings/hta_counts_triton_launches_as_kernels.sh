#!/usr/bin/env bash
# HolisticTraceAnalysis counts the host's launch of a compiled Triton kernel as a kernel of the GPU.
#
# Expected: 100 kernels of 4 us are 400 us of GPU time, whatever the launching operators carry.
# Happens: 3400 us, in 200 kernels, and a GPU that was busy for 10 % of the time is busy for 85 %. What has a stream is taken for
#   work of the GPU, and torch.compile's launches (`cpu_op` events named triton_*) carry one, among the launch's parameters.
#   The longer the host takes to launch, the busier the GPU looks. In a published trace of a compiled model
#   on an MI300X 4 of 16 counted kernels are such operators, in one of vLLM on a B200 1 of 930.
# Who meets it: whoever looks for idle time in a model under torch.compile.
# Versions: HolisticTraceAnalysis 0.5.0 (with pandas 2.3.3: it does not read a trace with 3.1.1); seen on 2026-11-28.
# Source: hta/analyzers/breakdown_analysis.py, the rows whose stream is not -1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check HolisticTraceAnalysis==0.5.0 pandas==2.3.3 2>/dev/null
cat > busy.py <<'PYTHON'
import json
from importlib.metadata import version

from hta.trace_analysis import TraceAnalysis

NAME = "triton_poi_fused_add_0"


def measured(parameters):
    """Kernel time in us, and busy share in %, of a trace whose operators carry these besides."""
    events = []
    for number in range(1, 101):
        at, link = 1000 + 40 * number, {"External id": number, "correlation": number}
        host, device = {"ph": "X", "pid": 1, "tid": 1}, {"ph": "X", "pid": 0, "tid": 7}
        events += [
            host | {"cat": "cpu_op", "name": NAME, "ts": at, "dur": 30, "args": {"External id": number} | parameters},
            host | {"cat": "cuda_driver", "name": "cuLaunchKernel", "ts": at + 20, "dur": 5, "args": link},
            device | {"cat": "kernel", "name": NAME, "ts": at + 35, "dur": 4, "args": link | {"device": 0, "stream": 7}},
        ]
    with open("trace.json", "w") as file:
        json.dump({"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "GPU"}], "traceEvents": events}, file)
    analysis = TraceAnalysis(trace_files={0: "trace.json"}, trace_dir=".")
    time = analysis.get_gpu_kernel_breakdown(visualize=False)[1]["sum (us)"].sum()
    return time, 100 - analysis.get_temporal_breakdown(visualize=False)["idle_time_pctg"].iloc[0]


print("HolisticTraceAnalysis", version("HolisticTraceAnalysis"))
without = measured({})
launch = measured({"kernel_backend": "triton", "num_warps": 4, "num_stages": 1, "stream": 7})
for name, (time, busy) in (("without launch parameters", without), ("with them", launch)):
    print(f"{name}: {time} us of kernels, busy {busy:.1f} %")
assert without[0] == 400 and round(without[1]) == 10
assert launch[0] == 3400 and round(launch[1]) == 85, "this has changed"
PYTHON
venv/bin/python busy.py 2>/dev/null
