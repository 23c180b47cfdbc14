"""A run per module and per class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from operator import add
from typing import Any

from gpuprof.analysis.compiled import hardware_of_compiled
from gpuprof.analysis.consistency import owned_kernels, withheld_of_kernels, withheld_of_owners
from gpuprof.analysis.counted import chosen, counted_columns
from gpuprof.analysis.executed import executed_flops
from gpuprof.analysis.generation import bandwidth, moved, moved_by_module, phases_of, withheld_of_kernel_bytes
from gpuprof.analysis.kernel_time import kernel_times, of_ranks
from gpuprof.analysis.known_flops import none_known
from gpuprof.analysis.once import once
from gpuprof.analysis.ran import ran
from gpuprof.analysis.rates import ideal_move_s, quotient, rate, ratio
from gpuprof.analysis.shares import untimed
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import FORWARD, PHASES, UNATTRIBUTED, integers
from gpuprof.schema import values as plain_values

_COUNTS = ("flops", "flops_full", "flops_hardware", "vector_flops", "bytes")
_MODULE_PHASES = ("forward", "recompute", "backward")

MODULE_COLUMNS = [
    "module", "class", "calls", "params", "trainable_params", "macs",
    "flops_forward", "flops_recompute", "flops_backward", "flops_forward_full", "flops_backward_full",
    "flops_hardware", "vector_flops_forward", "vector_flops_recompute", "vector_flops_backward",
    "time_forward_s", "time_recompute_s", "time_backward_s", "flops_per_s_forward", "flops_per_s_backward",
    "kernel_mfu_forward", "kernel_mfu_backward", "kernel_mfu",
    "flops_executed_forward", "flops_executed_recompute", "flops_executed_backward",
]  # fmt: skip
"""Columns of `by_module`: the machine-readable contract."""

PART_COLUMNS = [
    "flops_{}", "time_{}_s", "flops_per_s_{}", "kernel_mfu_{}", "bytes_{}", "bytes_per_s_{}", "kernel_mbu_{}",
]  # fmt: skip
"""Columns that it has beside those of each phase of a generation: encode, prefill, decode, as far as they ran."""


def by_module(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per module, children included in their parent, and one for what belongs to no module.

    Args:
        run: the run.
        convention: how FLOPs are counted; the run's own by default. A formula knows only the whole step: its modules
            are counted as its `gpuprof.theory.Convention.modules_in` says.

    Returns:
        Columns `MODULE_COLUMNS`. Plain ``flops_*`` are matmul FLOPs in the convention, ``flops_executed_*`` what the
        GPU's counters say of them where they were read; counts are exact integers, times are in seconds of kernel time
        (union of the intervals) of one traced step, and what is not known is missing, never 0. Where the trace gave
        time to other modules than those that were counted, all of it is in the row that belongs to no module. Of a job
        counts are those of all ranks and times the mean of theirs, so rates are of all devices together, as peaks are.
        ``kernel_mfu`` and all rates are over those times, not over the step's as the MFU of `totals`. Of a generation
        also `PART_COLUMNS` of each of its phases: bytes are those that must move, ``kernel_mbu`` their rate over the
        preferred of the `gpuprof.analysis.generation.bandwidths`.
    """
    found = _found(run, convention)
    return pd.DataFrame({name: _typed(name, found.get(name), len(found["module"])) for name in _columns(run)})


def module_columns(run: Record, convention: str | None = None) -> dict[str, list[Any]]:
    """The same as plain values, column by column, None where one is missing."""
    found = _found(run, convention)
    return {name: [*(found.get(name) or [None] * len(found["module"]))] for name in _columns(run)}


def _columns(run: Record) -> list[str]:
    return [*MODULE_COLUMNS, *(column.format(phase) for phase in phases_of(run) for column in PART_COLUMNS)]


def _typed(name: str, values: list[Any] | None, length: int) -> Any:
    if name in ("module", "class"):  # paths as an index of pandas has them, classes as the table does
        return pd.Series(values, dtype="object" if name == "class" else None)
    if values is None or name.startswith(("time_", "flops_per_s_", "bytes_per_s_", "kernel_")):
        return pd.array(values or [None] * length, dtype="Float64")
    return pd.array(values, dtype="Int64") if name in ("calls", "params", "trainable_params") else integers(values)


def _found(run: Record, convention: str | None) -> dict[str, list[Any]]:
    """The columns of which the tree or a pass told anything, and the ideal times."""
    nobody = {"module": UNATTRIBUTED, "class": ""}
    tree = {name: [*run.column("tree", name), nobody.get(name)] for name in MODULE_COLUMNS[:5]}
    return _of_passes(run, convention) | tree


@once
def _of_passes(run: Record, convention: str | None) -> dict[str, list[Any]]:
    """Those that are not as the tree has them, and the modules they are of."""
    paths, parts = [*run.column("tree", "module"), UNATTRIBUTED], phases_of(run)
    found = {"module": paths}
    if run.done("count") and not none_known(run):
        found |= _counts(run, convention, paths, parts)
        if run.has("nodes"):
            found["flops_hardware"] = _hardware_of_compiled(run, paths)
    if run.done("trace") or run.has("busy"):
        found |= _times(run, paths, parts)
    if run.done("counters"):
        of_places = executed_flops(run)
        executed = dict(zip(of_places.index, plain_values(of_places), strict=True))
        found |= {f"flops_executed_{phase}": [executed.get((p, phase), 0) for p in paths] for phase in _MODULE_PHASES}
    if run.done("count") and chosen(run, convention).rule is None and "flops_forward" in found:
        found["macs"] = [None if flops is None else flops // 2 for flops in found["flops_forward"]]
    for phase in parts:
        if not moved(run).empty:
            nbytes = moved_by_module(run, phase)["bytes"].to_dict()
            found[f"bytes_{phase}"] = [nbytes.get(path, 0) for path in paths]
    return found | _rates(run, found, parts)


def convention_by_module(run: Record, name: str) -> pd.DataFrame:
    """What a convention makes of each module's forward, children included: what calflops prints of it, for one.

    Returns:
        Columns module, class, params, macs, flops; ``params`` are the trainable ones for calflops, which counts no
        others. Nothing is rounded.
    """
    table = by_module(run, name)
    params = "trainable_params" if name.startswith("calflops") else "params"
    columns = {"module": "module", "class": "class", params: "params", "macs": "macs", "flops_forward": "flops"}
    return table[list(columns)].rename(columns=columns)


def _counts(run: Record, convention: str | None, paths: list[str], parts: list[str]) -> dict[str, list[Any]]:
    """Columns of FLOPs, rolled up; a part without a rule adds nothing and is named by `without_rule`.

    Of a recording what is not known may be all that a part did: then its FLOPs are missing.
    """
    ops, up = counted_columns(run, convention), cache(ancestors)
    names = [*_COUNTS, "macs"]
    own: dict[tuple[str, str], list[int]] = {}
    ideal_s: dict[tuple[str, str], float] = {}
    rows = zip(ops["module"], ops["phase"], ops["ideal_s"], *(ops[name] for name in names), strict=True)
    for module, phase, seconds, *counts in rows:
        entry = own.setdefault((module, phase), [0] * len(names))
        for index, value in enumerate(counts):
            if value:
                entry[index] += value
        if seconds:
            for path in up(module):
                ideal_s[path, phase] = ideal_s.get((path, phase), 0) + seconds
    sums: dict[tuple[str, str], list[int]] = {}
    for (module, phase), counts in own.items():
        for path in up(module):
            entry = sums.setdefault((path, phase), [0] * len(names))
            for index, value in enumerate(counts):
                entry[index] += value
    if stray := {path for path, _ in sums} - set(paths):
        raise AssertionError(f"work booked on modules that are not in the tree: {sorted(stray)}")
    without = {name: _lacking(run, ops, name) for name in ("flops_hardware", "vector_flops")}

    def told(found: list[Any], phases: Iterable[str], untold: set[tuple[str, str]]) -> list[Any]:
        if not untold:
            return found
        unknown = [any((path, p) in untold for p in phases) for path in paths]
        return [None if not value and lacks else value for value, lacks in zip(found, unknown, strict=True)]

    def column(name: str, phases: Iterable[str]) -> list[Any]:
        index = names.index(name)
        found = [sum(sums[path, p][index] for p in phases if (path, p) in sums) for path in paths]
        return told(found, phases, without.get(name, without["flops_hardware"]))

    def ideal(phases: Iterable[str]) -> list[Any]:
        found = [sum(ideal_s[path, p] for p in phases if (path, p) in ideal_s) for path in paths]
        return told(found, phases, without["flops_hardware"])

    phases = {phase: (phase,) for phase in ("recompute", "backward", *parts)} | {"forward": FORWARD}
    found = {f"flops_{phase}": column("flops", phases[phase]) for phase in (*_MODULE_PHASES, *parts)}
    found |= {f"vector_flops_{phase}": column("vector_flops", phases[phase]) for phase in _MODULE_PHASES}
    found |= {f"flops_{phase}_full": column("flops_full", phases[phase]) for phase in ("forward", "backward")}
    found |= {f"ideal_{phase}_s": ideal(phases[phase]) for phase in ("forward", "backward", *parts)}
    return found | {"flops_hardware": column("flops_hardware", PHASES), "macs": column("macs", FORWARD)}


def _lacking(run: Record, ops: Mapping[str, Sequence[Any]], name: str) -> set[tuple[str, str]]:
    """Modules and phases with work of which a recording does not tell the figure."""
    if not run.recorded:
        return set()
    owners = {place[:2] for place in zip(ops["module"], ops["phase"], ops[name], strict=True) if place[2] is None}
    kernels = run.kernels.loc[run.kernels["call"].isna(), ["module", "phase"]].drop_duplicates()
    owners |= set(kernels.itertuples(index=False, name=None))
    return {(path, phase) for module, phase in owners for path in ancestors(module)}


def _hardware_of_compiled(run: Record, paths: list[str]) -> list[int | None]:
    """Matmul FLOPs that ran of each module, missing where they are not known."""
    sums = dict.fromkeys(paths, 0)
    for module, flops in ran(run).groupby("module")["flops_hardware"].sum().items():
        for path in ancestors(module):
            sums[path] += int(flops)
    unknown = untimed(run, paths) if hardware_of_compiled(run) is not None else {*paths}
    return [None if path in unknown else sums[path] for path in paths]


def _times(run: Record, paths: list[str], parts: list[str]) -> dict[str, list[float | None]]:
    """Columns of kernel time."""
    kernels = owned_kernels(run)
    times = of_ranks(run) if run.is_job else kernel_times(kernels, paths)
    if parts:
        for of_phases in times.values():
            of_phases["forward"] = sum(of_phases.get(phase, 0.0) for phase in parts)
    unknown = untimed(run, {path for path, of_phases in times.items() if any(of_phases.values())})
    if withheld_of_owners(run):
        unknown = {*paths} - {UNATTRIBUTED}
    return {
        f"time_{phase}_s": [None if path in unknown else times.get(path, {}).get(phase, 0.0) for path in paths]
        for phase in (*_MODULE_PHASES, *parts)
    }


def _rates(run: Record, found: dict[str, list[Any]], parts: list[str]) -> dict[str, list[float | None]]:
    """Columns of rates over kernel time, from those of work and times; missing where they are withheld."""
    nothing: list[Any] = [None] * len(found["module"])

    def over(work: list[Any], time: list[Any], reason: str) -> list[float | None]:
        return nothing if reason else [quotient(*both) for both in zip(work, time, strict=True)]

    def added(*names: str) -> list[float | None]:
        rows = zip(*(found.get(name, nothing) for name in names), strict=True)
        return [None if None in row else reduce(add, row) for row in rows]

    kernels, rates = withheld_of_kernels(run), dict[str, list[float | None]]()
    for phase in ("forward", "backward", *parts):
        time = found.get(f"time_{phase}_s", nothing)
        rates[f"flops_per_s_{phase}"] = over(found.get(f"flops_{phase}", nothing), time, kernels)
        rates[f"kernel_mfu_{phase}"] = over(found.get(f"ideal_{phase}_s", nothing), time, kernels)
        if phase in parts:
            reason, (name, per_s) = withheld_of_kernel_bytes(run), bandwidth(run)
            nbytes = found.get(f"bytes_{phase}", nothing)
            ideal_s = [None if size is None or not name else size / per_s for size in nbytes]
            rates[f"bytes_per_s_{phase}"] = over(nbytes, time, reason)
            rates[f"kernel_mbu_{phase}"] = over(ideal_s, time, reason)
    ideal, times = added("ideal_forward_s", "ideal_backward_s"), added(*(f"time_{p}_s" for p in _MODULE_PHASES))
    return rates | {"kernel_mfu": over(ideal, times, kernels)}


def _add_rates(run: Record, table: pd.DataFrame, phase: str) -> None:
    """Columns of rates of a phase over kernel time, from those of its work and times."""
    time, moved_bytes = table[f"time_{phase}_s"], table[f"bytes_{phase}"]
    table[f"flops_per_s_{phase}"] = rate(run, table[f"flops_{phase}"], time)
    table[f"kernel_mfu_{phase}"] = rate(run, table[f"ideal_{phase}_s"], time)
    table[f"bytes_per_s_{phase}"] = rate(run, moved_bytes, time, withheld_of_kernel_bytes(run))
    table[f"kernel_mbu_{phase}"] = rate(run, ideal_move_s(run, moved_bytes), time, withheld_of_kernel_bytes(run))


def by_class(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per class: the sum over its modules, a module inside another of the same class counted once."""
    modules = by_module(run, convention)
    classes = dict(zip(modules["module"], modules["class"], strict=True))
    outermost = [
        not any(classes.get(path) == row_class for path in ancestors(module)[1:])
        for module, row_class in zip(modules["module"], modules["class"], strict=True)
    ]
    sums = modules[outermost]
    columns = [c for c in modules.columns[2:] if not c.startswith(("kernel_", "flops_per_s", "bytes_per_s"))]
    table = sums.groupby("class", sort=False)[columns].sum(min_count=1)
    for column in table.columns[
        table.columns.str.startswith(("flops_executed", "time_", "bytes_"))
    ]:  # in part is not known
        unknown = sums[column].isna().groupby(sums["class"], sort=False).any()
        table[column] = table[column].mask(unknown)
    table.insert(0, "modules", modules.groupby("class", sort=False).size())
    times = table[["time_forward_s", "time_recompute_s", "time_backward_s"]]
    table["flops_per_s_forward"] = rate(run, table["flops_forward"], table["time_forward_s"])
    table["flops_per_s_backward"] = rate(run, table["flops_backward"], table["time_backward_s"])
    for phase in phases_of(run):
        ideal = (sums[f"kernel_mfu_{phase}"] * sums[f"time_{phase}_s"]).fillna(0)
        table[f"ideal_{phase}_s"] = ideal.groupby(sums["class"], sort=False).sum()
        _add_rates(run, table, phase)
        del table[f"ideal_{phase}_s"]
    # ideal times follow from kernel MFU x time, module by module
    ideal = (sums["kernel_mfu"] * sums[list(times)].sum(axis=1, skipna=False)).fillna(0)
    table["kernel_mfu"] = ratio(ideal.groupby(sums["class"], sort=False).sum(), times.sum(axis=1, skipna=False))
    table["time_s"] = times.sum(axis=1, skipna=False)
    return table.reset_index().sort_values(["time_s", "flops_forward"], ascending=False, ignore_index=True)
