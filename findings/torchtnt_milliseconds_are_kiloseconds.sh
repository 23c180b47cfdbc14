#!/usr/bin/env bash
# The milliseconds of torchtnt's module summary are thousands of seconds.
#
# Expected: "Forward Elapsed Times (ms)" of a module that sleeps for 0.2 s is 200 and a little more.
# Happens: 0.0032, of a first call that took 3.2 s with all the hooks. The seconds between the hooks are divided by 1000 rather
#   than multiplied, in the field `forward_elapsed_time_ms` too: a million times too short, and small enough to look like
#   seconds of a fast layer.
# Who meets it: whoever adds up or compares these times with a profiler's, or computes FLOP/s from the same table.
# Versions: torchtnt 0.2.4 (with setuptools 80.9.0, whose pkg_resources it needs), torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torchtnt/utils/module_summary.py, where forward_elapsed_times_sec becomes forward_time_elapsed_ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchtnt==0.2.4 setuptools==80.9.0 2>/dev/null
cat > sleep.py <<'PYTHON'
import time
import warnings

import torch

warnings.filterwarnings("ignore")
from torchtnt.utils.module_summary import get_module_summary, get_summary_table
from torchtnt.utils.version import get_torch_version


class Sleeps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        time.sleep(0.2)
        return self.linear(x)


summary = get_module_summary(Sleeps(), module_args=(torch.randn(2, 4),))
print("torch", get_torch_version())
print(get_summary_table(summary).splitlines()[2])
milliseconds = summary.forward_elapsed_time_ms
print("slept 200 ms, printed as ms:", milliseconds)
assert 0.0002 <= milliseconds < 0.01, "this has changed"
PYTHON
env/bin/python sleep.py
