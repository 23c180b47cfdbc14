"""Work that would have been faster than the device can be: somebody's mistake, one line each."""

from __future__ import annotations

from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis.denominators import WORDS, denominator, ideal_seconds
from gpuprof.analysis.each import each, where
from gpuprof.analysis.kernel_time import busy_seconds, busy_seconds_by
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import step_seconds
from gpuprof.record import Record
from gpuprof.theory.kernel_names import multiplies

MOST = {"datasheet": 1.05, "measured": 1.30}
"""Share of a peak above which a rate is somebody's mistake. Of 10,242 operators in published traces of GPUs none came
above the datasheet's; a peak that was measured may have been measured under other load."""

SLOWED = 1.2
"""Ratio of the kernel time of the traced step to the undisturbed one from which they are not one step. Of a GPU: on a
CPU the time of an operator holds what the profiler takes for it."""


def of_the_step(run: Record) -> Iterator[str]:
    """A step that did more than the device can."""
    name, peaks = denominator(run)
    step_s = step_seconds(run)
    if not _judged(run, name) or not step_s or not run.done("count"):
        return
    share = float(ideal_seconds(run.ops, "flops_hardware", peaks, run).sum(skipna=False)) / step_s
    if share > _most(name):
        yield (
            f"the counted FLOPs in the time of the step are {units.percent(share)} of {_peak(name)}: "
            f"{_doubt(run, name, 'the timed step did less than the counted one')}"
        )


def _judged(run: Record, name: str) -> bool:
    """Whether a rate above this peak is a mistake: above a given one it may be the peak that is wrong."""
    return name in MOST or (run.recorded and bool(name))


def _most(name: str) -> float:
    return MOST.get(name, MOST["datasheet"])


def _peak(name: str) -> str:
    return WORDS[name] if name == "given" else f"the {WORDS[name]}"


def _doubt(run: Record, name: str, else_: str) -> str:
    if run.recorded:  # nothing was measured that could be of another step
        else_ = "a mistake of reading, please report it"
    if name == "given":
        return f"{else_}, or that peak is too low"
    if name == "datasheet":
        return else_
    return f"{else_}, or the peak was measured under other load: 'gpuprof ceilings' measures it anew"


def of_kernel_time(run: Record) -> Iterator[str]:
    """Kernels of one traced step that would not fit into the undisturbed one."""
    step_s = step_seconds(run)
    if not step_s or run.device.get("type") != "cuda":
        return
    busy_s = busy_seconds(run.kernels)
    if busy_s > SLOWED * step_s:
        yield (
            f"kernels of the traced step took {units.duration(busy_s)}, the undisturbed step "
            f"{units.duration(step_s)}: they are not of one step, or the clock was not the same"
        )


def of_modules(run: Record) -> Iterator[str]:
    """Modules whose own products would have run faster than the device can, the fastest first."""
    name, peaks = denominator(run)
    if not _judged(run, name):
        return
    ops = ran(run)
    work = ops[["module", "phase"]].assign(ideal_s=ideal_seconds(ops, "flops_hardware", peaks, run))
    ideal = work.groupby(["module", "phase"])["ideal_s"].sum(min_count=1)
    busy_s = busy_seconds_by(split_kernels(run), ["module", "phase"])
    shares = {key: ideal.get(key, 0.0) / seconds if seconds else 0.0 for key, seconds in busy_s.items()}
    for (module, phase), share in sorted(shares.items(), key=lambda item: -item[1]):
        if share > _most(name):
            yield (
                f"{module or '(root)'} in the {phase} would have run at {units.percent(share)} of {_peak(name)}: "
                f"{_doubt(run, name, 'some of its time is booked elsewhere')}"
            )


def of_operators(run: Record) -> Iterator[str]:
    """Operators of a recording whose products would have: one size of their inputs is enough.

    Over the union of the kernels that multiply: cuBLAS on Hopper fills some memory before most products.
    """
    name, peaks = denominator(run)
    if not run.recorded or not name:
        return
    work = run.ops.assign(ideal_s=ideal_seconds(run.ops, "flops_hardware", peaks, run))
    ideal = work.groupby([work["op"].map(plain_op), work["shapes"].map(input_shapes)])["ideal_s"].sum(min_count=1)
    shares = {}
    for key, group in run.kernels.groupby([each(run.kernels["op"], plain_op), "shapes"], sort=False):
        if ideal.get(key, 0.0) > 0:
            products = group[where(group["kernel"], multiplies)]
            seconds = busy_seconds(group if products.empty else products)
            shares[key] = ideal[key] / seconds if seconds else 0.0
    for (op, shapes), share in sorted(shares.items(), key=lambda item: -item[1]):
        if share > _most(name):
            of = f" of {shapes}" if shapes else ""
            yield f"{op}{of} would have run at {units.percent(share)} of {_peak(name)}: {_doubt(run, name, '')}"
