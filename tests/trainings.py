"""Hand-made logs of trainings with figures that are easy to check."""

from pathlib import Path
from types import SimpleNamespace

from runs import ops_row, tree_row

from gpuprof.log import Log, made
from gpuprof.record import PassOutcome
from gpuprof.schema import table

PEAK = 100e9  # FLOP/s in bfloat16


def about(**other):
    """The facts of a training on a device of 100 GFLOP/s; some of ``workload``, ``device`` and so on may be others."""
    facts = {
        "workload": {"name": "Net", "architecture": "Net", "mode": "train", "dtype": "bfloat16", "inputs": []},
        "device": {"type": "cuda", "name": "Toy GPU", "uuid": "GPU-1", "peaks": {"datasheet": {"bfloat16": PEAK}}},
        "environment": {"torch": "2.13.0", "date": "2026-01-02T03:04:05+00:00"},
        "settings": {"convention": "causal", "peak_tflops": None},
    }
    return {name: facts[name] | other.get(name, {}) for name in facts}


def counted(size, *, lacking=(), params=128):
    """Two linear layers of ``1000 size`` FLOPs each forward, twice that backward."""
    modules = [("", "Net"), ("first", "Linear"), ("second", "Linear")]
    ops = [
        {**ops_row(name, phase, "aten::mm.default", factor * 1000 * size), "shapes": f"{size}x8 8x8 -> {size}x8"}
        for phase, factor in (("forward", 1), ("backward", 2))
        for name in ("first", "second")
    ]
    return SimpleNamespace(
        ops=table("ops", ops),
        tree=table("tree", [tree_row(module, name, params if not module else 64) for module, name in modules]),
        outcome=PassOutcome("done", facts={"calls": 4, "ops_without_rule": list(lacking)}),
    )


def step(number, time_s, signatures=(1,), *, tokens=32, dropped=""):
    return [number, time_s, 1e-6, list(signatures), tokens, tokens - 8, 4, dropped]


def training(folder, steps, sizes=(1,), *, rank=0, reads=1, figures=None, params=128, **facts) -> Path:
    """A log of the steps in a folder, with a signature of each size, numbered from 1 on, read so many times."""
    log = Log(made(folder), rank, steps[0][0] - 1)
    for number, size in enumerate(sizes, start=1):
        log.counted(number, f"x {size}x8", counted(size, params=params))
    each = max(len(steps) // reads, 1)
    for at in range(0, len(steps), each):
        part = steps[at : at + each]
        log.write(about(**facts), part[-1][0], figures or {}, part)
    return log.path


def even(time_s, count=10, first=1):
    """Steps that are all alike, the first three of a process warm-up, which takes a second."""
    return [
        step(number, 1.0 if number < first + 3 else time_s, dropped="warm-up" if number < first + 3 else "")
        for number in range(first, first + count)
    ]
