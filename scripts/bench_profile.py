"""What `gpuprof profile smollm2-135m` takes on a CPU beside the steps that its passes run. No GPU needed.

In one process, on one thread, the model's step is run alone, seeded and with nothing attached, and then all passes as
the command line runs them by default, in which the steps are counted. Held against each other are seconds of processor
time: of the passes, with the ceilings that they measure, and of as many steps alone, by their median. Short steps show
what does not grow with them: the older build is held against this one there, also with whole processes, imports and
report included.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from typing import Any

from side_by_side import ROOT, Ratio, finish, parser, unpacked, used

MODEL = "smollm2-135m"
SHORT = {"batch_size": 1, "seq_len": 32}
LIMIT = 1.5

CHILD = """
import json, sys, time
begin = time.process_time()
import torch
torch.set_num_threads(1)
from gpuprof import profiler
from gpuprof.workload import build

model, options = json.loads(sys.argv[1])
chosen = profiler._options(mode="train", **options)
parts, since = {}, time.process_time()
parts["imports"] = since - begin

def part(name):
    global since
    now = time.process_time()
    parts[name] = parts.get(name, 0.0) + now - since
    since = now

workload = build(model, chosen)
part("build")
alone = []
for _ in range(4):
    torch.manual_seed(0)
    begin = time.process_time()
    workload.step()
    alone.append(time.process_time() - begin)
steps, step = 0, workload.step

def counted():
    global steps
    steps += 1
    return step()

workload.step = counted
def told(name, done, total):
    part("between" if done == 0 else name)

begin = since = time.process_time()
profiler.run_passes(workload, progress=told)
part("rest")
passes = time.process_time() - begin
print(json.dumps({"alone": alone[1:], "steps": steps, "passes": passes, "parts": parts}))
"""


def measured(options: dict[str, int], source: Any) -> dict[str, Any]:
    """What a process says of its steps alone and of its passes, in seconds of processor time."""
    said: dict[str, Any] = json.loads(used(["-c", CHILD, json.dumps([MODEL, options])], source).output.splitlines()[-1])
    return said


def least(options: dict[str, int], source: Any, rounds: int) -> dict[str, Any]:
    """The round whose passes took least, with the median of its own steps alone: no other round's neighbours in it."""
    best: dict[str, Any] = min((measured(options, source) for _ in range(rounds)), key=lambda one: one["passes"])
    best["step"] = statistics.median(best["alone"])
    print("  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best["parts"].items()), file=sys.stderr)
    return best


def main() -> int:
    asked = parser(__doc__).parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    flags = [text for name, value in SHORT.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = ["-m", "gpuprof", "profile", MODEL, *flags]
    rounds, rows = max(1, asked.rounds // 2), []
    with unpacked(asked.base) as base:
        long = least({}, ROOT, 1)
        short, older = (least(SHORT, source, rounds) for source in (ROOT, base))
        turns = [[used(command, source).processor_s for source in (ROOT, base)] for _ in range(rounds)]
    for what, found in (("", long), (", short steps", short)):
        alone = found["steps"] * found["step"]
        rows.append(Ratio(f"the passes of profile {MODEL}{what}", f"its {found['steps']} steps alone",
                          found["passes"], alone, target=LIMIT))  # fmt: skip
    rows.append(Ratio(rows[-1].work, f"the build of {asked.base}", short["passes"], older["passes"]))
    whole_here, whole_there = map(min, zip(*turns, strict=True))
    work = f"gpuprof profile {MODEL}, short steps"
    rows.append(Ratio(work, f"the build of {asked.base}", whole_here, whole_there))
    rows.append(Ratio(work, f"its {short['steps']} steps alone", whole_here, alone))
    return finish(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
