"""Whose a kernel of compiled code is: its time in parts, one for each module and phase that has work in it.

An owner pays for the bytes of its operators that the kernel reads or leaves behind, the column ``moved`` of the table
``nodes``: the kernel's time is split in that proportion.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from gpuprof.analysis.once import once
from gpuprof.late import np, pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import WHOLE_STEP


def split_ns(duration: int, weights: Sequence[int]) -> list[int]:
    """A duration in whole parts that add up to it, each within one of its exact share.

    Args:
        duration: in whole nanoseconds.
        weights: of the parts; not all of them 0.
    """
    whole, ends = sum(weights), itertools.accumulate(weights, initial=0)
    return [duration * end // whole - duration * begin // whole for begin, end in itertools.pairwise(ends)]


def owners(run: Record) -> dict[str, dict[tuple[str, str], int | None]]:
    """Bytes that each owner, a module and a phase, pays for in one call of a kernel of compiled code.

    Returns:
        By the kernel as ``kernels`` has it under ``compiled``, and by its owners in the order of their operators; None
        of all its owners where the bytes of one operator are not known.
    """
    found: dict[str, dict[tuple[str, str], int | None]] = {}
    unknown = set()
    nodes = run.nodes.loc[run.nodes["kernel"] != "", ["graph", "kernel", "module", "phase", "moved"]]
    for graph, kernel, module, phase, moved in nodes.itertuples(index=False, name=None):
        of_kernel = found.setdefault(f"{graph}/{kernel}", {})
        if pd.isna(moved):
            unknown.add(f"{graph}/{kernel}")
        of_kernel[module, phase] = (of_kernel.get((module, phase)) or 0) + (0 if pd.isna(moved) else int(moved))
    for kernel in unknown:
        found[kernel] = dict.fromkeys(found[kernel])
    return found


@once
def split_kernels(run: Record) -> pd.DataFrame:
    """The ``kernels`` table with every kernel that has several owners in parts, one after the other.

    Returns:
        Its columns, and ``part`` (number of the part in its kernel), ``parts`` (how many there are, 1 of all others)
        and ``kernels``: 1 of the part with most of its kernel, 0 of the others, so that a kernel counts once. Parts
        have the module and the phase of their owner and add up to their kernel in nanoseconds. An owner that moves
        nothing has no part; a kernel whose bytes are not known has one, of all its owners.
    """
    shares = {}
    for kernel, of_owners in owners(run).items():
        known = {owner: moved for owner, moved in of_owners.items() if moved}
        if known and len(of_owners) > 1:
            shares[kernel] = known
    if not shares:
        return run.kernels.reset_index(drop=True).assign(part=0, parts=1, kernels=1)
    split = [shares.get(kernel, {}) for kernel in run.kernels["compiled"]]
    many = [max(len(part), 1) for part in split]
    rows = run.kernels.iloc[np.repeat(np.arange(len(many)), many)].reset_index(drop=True)
    rows = rows.assign(part=[part for parts in many for part in range(parts)], parts=np.repeat(many, many), kernels=1)
    columns = {name: list(rows[name]) for name in ("module", "phase", "start_ns", "duration_ns", "kernels")}
    at = 0
    for part, number in zip(split, many, strict=True):
        if part:
            start, weights = columns["start_ns"][at], list(part.values())
            for index, time in enumerate(split_ns(int(columns["duration_ns"][at]), weights), at):
                columns["start_ns"][index], columns["duration_ns"][index] = start, time
                start += time
            most = weights.index(max(weights))
            columns["kernels"][at : at + number] = [int(index == most) for index in range(number)]
            for name, values in zip(("module", "phase"), zip(*part, strict=True), strict=True):
                columns[name][at : at + number] = values
        at += number
    for name in ("start_ns", "duration_ns"):
        columns[name] = pd.array(columns[name], dtype="Int64")
    return rows.assign(**columns)


def untimed(run: Record, timed: Collection[str]) -> set[str]:
    """Modules whose kernel time a trace of compiled code does not tell: nobody may take it for none.

    What is inside a region that the trace pass could not look into, and in a trace that looked into none every module
    without any time, which the region that it is in may have. So has a region what Python calls inside it: a module
    that does work, of which there is none in compiled code, and that has no time.

    Args:
        run: the run.
        timed: modules that have kernel time, themselves or in their children.
    """
    facts = run.passes["trace"].facts if "trace" in run.passes else {}
    regions = {*facts.get("hidden", ())}
    if facts.get("compiled") and run.nodes.empty:
        return {*run.tree["module"]} - {*timed}
    unknown = {module for module in run.tree["module"] if regions & {*ancestors(module)[1:]}}
    if roots := {"" if path == WHOLE_STEP else path for path in run.workload.get("compiled", ())}:
        works = run.ops.loc[run.ops["kind"] != "view", "module"]
        counted, lowered = (
            {above for module in set(modules) for above in ancestors(module)}
            for modules in (works, run.nodes["module"])
        )
        inside = {module for module in counted if roots & {*ancestors(module)[1:]}}
        unknown |= inside - lowered - {*timed}
    return unknown


def regions(run: Record) -> dict[str, str]:
    """Modules whose kernel time a trace of compiled code does not tell, by the region that has it."""
    timed = {path for module in set(split_kernels(run)["module"]) for path in ancestors(module)}
    unknown = untimed(run, timed)
    return {path: next((above for above in ancestors(path) if above not in unknown), "") for path in unknown}
