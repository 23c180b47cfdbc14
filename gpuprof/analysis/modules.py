"""A run per module and per class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpuprof.analysis.compiled import hardware_of_compiled
from gpuprof.analysis.consistency import (
    owned_kernels,
    withheld_of_owners,
)
from gpuprof.analysis.counted import chosen, counted
from gpuprof.analysis.executed import executed_flops
from gpuprof.analysis.generation import (
    moved,
    moved_by_module,
    phases_of,
    withheld_of_kernel_bytes,
)
from gpuprof.analysis.kernel_time import kernel_times, of_ranks
from gpuprof.analysis.known_flops import none_known
from gpuprof.analysis.ran import ran
from gpuprof.analysis.rates import ideal_move_s, rate, ratio
from gpuprof.analysis.shares import untimed
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import FORWARD, PHASES, UNATTRIBUTED, integers

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
    paths, parts = [*run.tree["module"], UNATTRIBUTED], phases_of(run)
    table = pd.concat(
        [
            run.tree[["module", "class", "calls", "params", "trainable_params"]],
            pd.DataFrame({"module": [UNATTRIBUTED], "class": [""]}),
        ],
        ignore_index=True,
    ).set_index("module")
    if run.done("count") and not none_known(run):
        _add_counts(table, counted(run, convention), paths, run.kernels if run.recorded else None, parts)
        if len(run.nodes):
            sums = dict.fromkeys(paths, 0)
            for module, flops in ran(run).groupby("module")["flops_hardware"].sum().items():
                for path in ancestors(module):
                    sums[path] += int(flops)
            unknown = untimed(run, paths) if hardware_of_compiled(run) is not None else {*paths}
            table["flops_hardware"] = integers(None if path in unknown else sums[path] for path in paths)
    if run.done("trace") or len(run.busy):
        kernels = owned_kernels(run)
        times = of_ranks(run) if run.is_job else kernel_times(kernels, paths)
        if parts:
            for of_phases in times.values():
                of_phases["forward"] = sum(of_phases.get(phase, 0.0) for phase in parts)
        unknown = untimed(run, {path for path, of_phases in times.items() if any(of_phases.values())})
        if withheld_of_owners(run):
            unknown = {*paths} - {UNATTRIBUTED}
        for phase in (*_MODULE_PHASES, *parts):
            found = pd.array([times.get(path, {}).get(phase, 0.0) for path in paths], dtype="Float64")
            found[table.index.isin(unknown)] = pd.NA
            table[f"time_{phase}_s"] = found
    if run.done("counters"):
        executed = executed_flops(run).to_dict()
        for phase in _MODULE_PHASES:
            found = [executed.get((path, phase), 0) for path in paths]
            table[f"flops_executed_{phase}"] = integers(found)
    of_parts = [column.format(phase) for phase in parts for column in PART_COLUMNS]
    ideal = [f"ideal_{phase}_s" for phase in ("forward", "backward", *parts)]
    for column in (*MODULE_COLUMNS, *of_parts, *ideal):
        if column not in table and column != "module":
            table[column] = pd.array([None] * len(table), dtype="Float64")
    if run.done("count") and chosen(run, convention).rule is None:
        table["macs"] = table["flops_forward"] // 2
    for phase in ("forward", "backward"):
        time = table[f"time_{phase}_s"]
        table[f"flops_per_s_{phase}"] = rate(run, table[f"flops_{phase}"], time)
        table[f"kernel_mfu_{phase}"] = rate(run, table[f"ideal_{phase}_s"], time)
    for phase in parts:
        if not moved(run).empty:
            found = moved_by_module(run, phase)["bytes"].to_dict()
            table[f"bytes_{phase}"] = integers(found.get(path, 0) for path in paths)
        _add_rates(run, table, phase)
    table["kernel_mfu"] = rate(
        run,
        table["ideal_forward_s"] + table["ideal_backward_s"],
        table["time_forward_s"] + table["time_recompute_s"] + table["time_backward_s"],
    )
    return table.reset_index()[[*MODULE_COLUMNS, *of_parts]]


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


def _add_counts(
    table: pd.DataFrame, ops: pd.DataFrame, paths: list[str], recorded: pd.DataFrame | None, parts: list[str]
) -> None:
    """Columns of FLOPs, rolled up; a part without a rule adds nothing and is named by `without_rule`.

    Of a recording, whose kernels are given, what is not known may be all that a part did: then its FLOPs are missing.
    """
    columns = [*_COUNTS, "macs", "ideal_s"]
    sums: dict[tuple[str, str], list[Any]] = {}

    def lacking(name: str) -> set[tuple[str, str]]:
        """Modules and phases with work of which a recording does not tell the figure."""
        if recorded is None:
            return set()
        untold = [ops.loc[ops[name].isna()], recorded.loc[recorded["call"].isna()]]
        owners = pd.concat([rows[["module", "phase"]] for rows in untold]).drop_duplicates()
        return {(path, phase) for module, phase in owners.to_numpy() for path in ancestors(module)}

    without = {name: lacking(name) for name in ("flops_hardware", "vector_flops")}
    for row in ops[["module", "phase", *columns]].itertuples(index=False):
        for path in ancestors(row.module):
            entry = sums.setdefault((path, row.phase), [0] * len(columns))
            for index, value in enumerate(row[2:]):
                if value is not pd.NA:
                    entry[index] += value
    known = set(paths)
    if stray := {path for path, _ in sums} - known:
        raise AssertionError(f"work booked on modules that are not in the tree: {sorted(stray)}")

    def column(name: str, phases: Iterable[str]) -> list[Any]:
        index = columns.index(name)
        found = [sum(sums[path, p][index] for p in phases if (path, p) in sums) for path in paths]
        untold = without.get(name, without["flops_hardware"])
        unknown = [any((path, p) in untold for p in phases) for path in paths]
        return [None if not value and lacks else value for value, lacks in zip(found, unknown, strict=True)]

    phases = {phase: (phase,) for phase in ("recompute", "backward", *parts)} | {"forward": FORWARD}
    for phase in _MODULE_PHASES:
        table[f"flops_{phase}"] = integers(column("flops", phases[phase]))
        table[f"vector_flops_{phase}"] = integers(column("vector_flops", phases[phase]))
    for phase in ("forward", "backward"):
        table[f"flops_{phase}_full"] = integers(column("flops_full", phases[phase]))
        table[f"ideal_{phase}_s"] = column("ideal_s", phases[phase])
    for phase in parts:
        table[f"flops_{phase}"] = integers(column("flops", phases[phase]))
        table[f"ideal_{phase}_s"] = column("ideal_s", phases[phase])
    table["flops_hardware"] = integers(column("flops_hardware", PHASES))
    table["macs"] = integers(column("macs", FORWARD))


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
