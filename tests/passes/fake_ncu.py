"""A stand-in for Nsight Compute's command line: runs the program it is given on the CPU, and makes up the counters.

Every NVTX range that closes with no other inside it is a kernel launch. For the calibration's it counts 2MNK, for an
operator with "mm" in its name the hardware FLOPs of its row.
"""

import csv
import json
import re
import runpy
import sys
from pathlib import Path

KERNEL = "void gemm<64, 64>(int, float*)"
UNASKED = {
    "launch__thread_count": "thread",
    "profiler__replayer_passes": "pass",
    "profiler__replayer_passes_type_warmup": "pass",
    "sm__maximum_warps_avg_per_active_cycle": "warp",
}
"""Columns that are in every table, with their units."""


def argument(name):
    return sys.argv[sys.argv.index(name) + 1]


def run_program():
    """Ranges in which something ran, in order, and what the program wrote."""
    import torch

    import gpuprof.hardware.ceilings as ceilings

    opened, launches, inside = [], [], [False]

    def push(name):
        opened.append(name)
        inside.append(False)

    def pop():
        if not inside.pop():
            launches.append(list(opened))
        opened.pop()
        inside[-1] = True

    window = []
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.profiler.start = lambda: window.append("start")
    torch.cuda.profiler.stop = lambda: window.append("stop")
    torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop = push, pop
    ceilings.matmul = lambda device, dtype, shape: lambda: None  # a CPU takes too long
    place = next(i for i, word in enumerate(sys.argv) if word.endswith("counted_step"))
    sys.argv = sys.argv[place:]
    try:
        runpy.run_module("gpuprof.passes.counted_step", run_name="__main__")
    except SystemExit as done:
        if done.code:
            raise
    assert window == ["start", "stop"]
    assert not opened
    return launches, json.loads(Path(sys.argv[1]).with_name("step.json").read_text())


def unit(column):
    """Unit of a metric that was asked for; nothing for what is none."""
    return {"dram": "byte", "gpu_": "ns", "smsp": "inst"}.get(column[:4], "inst" if "__inst" in column else "")


def flops(name, step):
    """FLOPs that one launch in this range executes."""
    found = re.search(r"calibration\|\w+\|(\d+)x(\d+)x(\d+)", name)
    if found:
        m, n, k = map(int, found.groups())
        return 2 * m * n * k
    row = step["row_of"][int(re.search(r"op\|(\d+)", name).group(1))]
    if row is None:  # the call failed
        return 0
    ops = step["ops"]
    return ops["flops_hardware"][row] // ops["calls"][row] if "mm" in ops["op"][row] else 0


def profile():
    metrics, report = argument("--metrics").split(","), argument("--export")
    launches, step = run_program()
    rows = []
    for number, ranges in enumerate(launches):
        name = ranges[-1]
        work = flops(name, step)
        cell = " ".join(f'"<default domain>:{each}:none:none:none:none:none:none"' for each in ranges)
        row = {"ID": number, "Kernel Name": KERNEL,
               "Block Size": "(128, 1, 1)", "Grid Size": "(7, 1, 1)",
               "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg": cell}  # fmt: skip
        for metric in metrics:
            if "ops_path_tensor" in metric:
                row[metric] = f"{work:,.1f}"
            elif "pipe_tensor" in metric:
                row[metric] = "0" if "hfma2" in metric else f"{work // 4096:,.1f}"
            else:
                row[metric] = "64"
        rows.append(row | dict.fromkeys(UNASKED, "1"))
    Path(report).write_text(json.dumps(rows))


def show():
    rows = json.loads(Path(argument("--import")).read_text())
    writer = csv.DictWriter(sys.stdout, list(rows[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerow({name: unit(name) for name in rows[0]} | UNASKED)
    writer.writerows(rows)


if "--version" in sys.argv:
    print("Version 2025.3.1.0 (build 1)")
elif "--help" in sys.argv:
    print("options")
elif "--query-metrics" in sys.argv:
    print("dram__bytes_read")
elif "--import" in sys.argv:
    show()
else:
    profile()
