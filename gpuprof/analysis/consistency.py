"""Whether the passes saw one step, and one that can be; figures that need it are withheld where they did not.

Five circles of figures. What holds a count against a time (MFU, FLOP/s, the backward ratio) needs both to be of the
same step. What does so below the whole step, of modules, operators and phases, needs the trace to have booked its time
rightly too. And so do the times of modules themselves. What does so of the whole step needs one: in a recording there
may be none. And what divides bytes that must move needs these to be all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuprof import units
from gpuprof.analysis import same_step, too_fast
from gpuprof.analysis.once import once
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import step_seconds
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import ALL, UNATTRIBUTED

UNOWNED = 0.01
"""Share of the kernel time from which a backward without an owner is said."""

IN_GRAPHS = 0.05
"""Share of a recording's kernel time that may be in CUDA or HIP graphs, where it shows no operators."""

TOLD = 5
"""Inconsistencies that are told one by one."""


def withheld(run: Record) -> str:
    """Why a run has no MFU, FLOP/s and backward ratio though it was counted and timed; empty where it may have them.

    They hold what one pass counted against what another timed, so they need both to be of the same step.
    """
    return _reason(mismatches(run))


def withheld_of_kernels(run: Record) -> str:
    """The same of modules, operators and phases, whose times are the trace's: also why those may be another's."""
    return withheld(run) or _reason(misbooked(run))


def withheld_of_step(run: Record) -> str:
    """The same of the whole step: also why a recording has no MFU, HFU and FLOP/s of it, though of its operators."""
    if run.recorded and step_seconds(run) is None and not withheld(run):
        return "withheld: no step is found in the recording ('gpuprof import --step all' takes the whole of it as one)"
    return withheld(run)


def per_step(run: Record, unit: str) -> int | None:
    """How many tokens or samples a step takes; None where it is not known, or a step of the user's own varies.

    Args:
        run: the run.
        unit: ``tokens`` or ``samples``. Of a step of the user's own those of all calls of the model in the counted one.
    """
    varies = run.workload.get("step") == "given" and withheld(run)
    return None if varies else run.workload.get(f"{unit}_per_step")


def withheld_of_owners(run: Record) -> str:
    """Why the trace's time is no module's: empty where it may be."""
    return _reason(misowned(run))


def owned_kernels(run: Record) -> pd.DataFrame:
    """`split_kernels`, all of it of no module where the trace's owners are not those that were counted."""
    kernels = split_kernels(run)
    return kernels.assign(module=UNATTRIBUTED) if withheld_of_owners(run) else kernels


def _reason(found: list[str]) -> str:
    if not found:
        return ""
    return f"withheld: {found[0]}" + (f" (and {len(found) - 1} more such)" if len(found) > 1 else "")


def inconsistencies(run: Record) -> list[str]:
    """What is found, one line each; of many the first `TOLD`."""
    found = [*mismatches(run), *misbooked(run), *mismoved(run)]
    return found if len(found) <= TOLD else [*found[:TOLD], f"and {len(found) - TOLD} more such"]


@once
def mismatches(run: Record) -> list[str]:
    """In what the passes saw different steps, one line each; empty if they agree or only one of them ran.

    The first kind that is found is told: each would only say once more what the one before it has said. Of a job what
    its ranks found, here and below.
    """
    if run.is_job:
        return run.doubts["mismatches"]
    of_passes = (same_step.of_inputs, same_step.of_calls, same_step.of_estimates)  # a recording is of one
    of_recording = (_of_devices, _of_graphs, _of_transformations)
    kinds = (*(of_recording if run.recorded else of_passes), too_fast.of_the_step)
    return next(filter(None, (list(find(run)) for find in kinds)), [])


@once
def misbooked(run: Record) -> list[str]:
    """In what the trace's times cannot be those of what has them, one line each; nothing where the steps differ."""
    if run.is_job:
        return run.doubts["misbooked"]
    if not (run.done("count") and run.done("trace")) or mismatches(run):
        return []
    return [
        *misowned(run),
        *_of_transformations(run),
        *too_fast.of_kernel_time(run),
        *too_fast.of_modules(run),
        *too_fast.of_operators(run),
    ]


@once
def misowned(run: Record) -> list[str]:
    """In what the trace gives time to other modules than those that were counted, one line each; likewise.

    A recording has both from the same events: what is no module's there is so in both.
    """
    if run.is_job:
        return run.doubts["misowned"]
    if run.recorded or not (run.done("count") and run.done("trace")) or mismatches(run):
        return []
    return [*same_step.of_owners(run), *_without_owner(run)]


@once
def mismoved(run: Record) -> list[str]:
    """Where a cache that only grows holds other bytes than were read of it and written to it, one line for each part.

    Its call reads all that was there and writes the rest.
    """
    cache = run.passes["count"].facts.get("cache", {}) if run.done("count") else {}
    if not cache.get("appends") or run.traffic.empty:
        return []
    rows = run.traffic[(run.traffic["module"] == ALL) & run.traffic["what"].isin(["cache read", "cache written"])]
    moved = rows.groupby("part")["bytes"].sum()
    return [
        f"{cache['class']} holds {held:,} bytes after part {part} of the generation, of which {moved.get(part, 0):,} "
        "were read and written: not all of its traffic is counted"
        for part, held in enumerate(cache["bytes"])
        if held != moved.get(part, 0)
    ]


def unchecked(run: Record) -> str:
    """Why nothing can tell that the timed steps did the work of the counted one; empty where something can."""
    if not (run.done("count") and run.done("time")) or not same_step.unseen(run) or same_step.comparable(run):
        return ""
    trace = "" if run.done("trace") else "add trace to the passes, or "
    return (
        "the step could not be checked for being one step: not every call in it shows a tensor; "
        f"{trace}call the model with tensors in it"
    )


def _of_devices(run: Record) -> Iterator[str]:
    """A recording with kernels of several devices, which no peak is the peak of."""
    devices = run.passes["trace"].facts.get("devices", [])
    if len(devices) > 1:
        yield f"the recording has kernels of {len(devices)} devices ({', '.join(map(str, devices))}), not of one"


def _of_graphs(run: Record) -> Iterator[str]:
    """A recording that hides most of its operators."""
    if (share := graph_share(run)) > IN_GRAPHS:
        yield f"{units.percent(share)} of the kernel time is in CUDA or HIP graphs, where a recording has no operators"


def graph_share(run: Record) -> float:
    """Share of a recording's kernel time that graphs launched."""
    whole = int(run.kernels["duration_ns"].sum())
    return run.passes["trace"].facts.get("graph_ns", 0) / whole if whole else 0.0


def _without_owner(run: Record) -> Iterator[str]:
    """Work in the backward of which the trace does not tell who made it."""
    whole = int(run.kernels["duration_ns"].sum())
    share = run.passes["trace"].facts.get("unknown_owner_ns", 0) / whole if whole else 0.0
    if share > UNOWNED:
        yield f"of {units.percent(share)} of the kernel time, in the backward, the trace does not tell the owner"


def _of_transformations(run: Record) -> Iterator[str]:
    """Operators that were counted one by one, and have their time in the trace inside another one's."""
    if run.passes["trace"].facts.get("transformed"):
        untold = "times the trace does not tell apart as they were counted"
        whose = "inputs are others than they tell" if run.recorded else untold
        yield f"under torch.func or forward-mode differentiation operators run inside others, whose {whose}"
