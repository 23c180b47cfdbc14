"""A run per module, class, operator, kernel and phase, and its totals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from gpuprof.analysis.communication import communicating
from gpuprof.analysis.compiled import hardware_of_compiled
from gpuprof.analysis.consistency import (
    owned_kernels,
    per_step,
    withheld_of_kernels,
    withheld_of_owners,
    withheld_of_step,
)
from gpuprof.analysis.counted import chosen, convention_of, counted, hardware, priced, whole_step
from gpuprof.analysis.denominators import denominator
from gpuprof.analysis.directions import directions
from gpuprof.analysis.executed import executed_flops
from gpuprof.analysis.fused import graphs, of_compiled
from gpuprof.analysis.generation import (
    bandwidth,
    moved,
    moved_by_module,
    new_tokens_per_s,
    phases_of,
    withheld_of_bytes,
    withheld_of_kernel_bytes,
)
from gpuprof.analysis.kernel_time import kernel_times, of_ranks, own_of_ranks, union_ns
from gpuprof.analysis.known_flops import none_known
from gpuprof.analysis.operators import GENERATED, kinds, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.analysis.ranks import busy_of_ranks, require_kernels
from gpuprof.analysis.shares import split_kernels, untimed
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.unpriced import ratio_withheld
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import ALL, FORWARD, MODEL, PHASES, UNATTRIBUTED, integers
from gpuprof.theory import rule_for

__all__ = [
    "MODULE_COLUMNS", "OP_COLUMNS", "PHASE_COLUMNS", "by_class", "by_kernel", "by_module", "by_op",
    "by_phase", "convention_by_module", "convention_of", "counted", "estimate_coverage", "kernel_times", "plain_op",
    "totals", "union_ns", "without_rule",
]  # fmt: skip

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
        table[f"flops_per_s_{phase}"] = _rate(run, table[f"flops_{phase}"], time)
        table[f"kernel_mfu_{phase}"] = _rate(run, table[f"ideal_{phase}_s"], time)
    for phase in parts:
        if not moved(run).empty:
            found = moved_by_module(run, phase)["bytes"].to_dict()
            table[f"bytes_{phase}"] = integers(found.get(path, 0) for path in paths)
        _add_rates(run, table, phase)
    table["kernel_mfu"] = _rate(
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


def _ratio(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
    """Quotient, missing where the denominator or either side is missing or 0."""
    above, below = (s.astype("Float64") for s in (numerator, denominator))
    return (above / below.where(below > 0)).where(above > 0)


def _rate(run: Record, work: pd.Series, time: pd.Series, reason: str | None = None) -> pd.Series:
    """FLOP/s, or MFU where the work is ideal time; missing where they are withheld, below the whole step by default."""
    found = _ratio(work, time)
    return found.mask(found.notna()) if (withheld_of_kernels(run) if reason is None else reason) else found


def _ideal_s(run: Record, moved_bytes: pd.Series) -> pd.Series:
    """Time that bytes would take at the preferred bandwidth; missing where none is known."""
    name, per_s = bandwidth(run)
    return moved_bytes.astype("Float64") / (per_s if name else pd.NA)


def _add_rates(run: Record, table: pd.DataFrame, phase: str) -> None:
    """Columns of rates of a phase over kernel time, from those of its work and times."""
    time, moved_bytes = table[f"time_{phase}_s"], table[f"bytes_{phase}"]
    table[f"flops_per_s_{phase}"] = _rate(run, table[f"flops_{phase}"], time)
    table[f"kernel_mfu_{phase}"] = _rate(run, table[f"ideal_{phase}_s"], time)
    table[f"bytes_per_s_{phase}"] = _rate(run, moved_bytes, time, withheld_of_kernel_bytes(run))
    table[f"kernel_mbu_{phase}"] = _rate(run, _ideal_s(run, moved_bytes), time, withheld_of_kernel_bytes(run))


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
    table["flops_per_s_forward"] = _rate(run, table["flops_forward"], table["time_forward_s"])
    table["flops_per_s_backward"] = _rate(run, table["flops_backward"], table["time_backward_s"])
    for phase in phases_of(run):
        ideal = (sums[f"kernel_mfu_{phase}"] * sums[f"time_{phase}_s"]).fillna(0)
        table[f"ideal_{phase}_s"] = ideal.groupby(sums["class"], sort=False).sum()
        _add_rates(run, table, phase)
        del table[f"ideal_{phase}_s"]
    # ideal times follow from kernel MFU x time, module by module
    ideal = (sums["kernel_mfu"] * sums[list(times)].sum(axis=1, skipna=False)).fillna(0)
    table["kernel_mfu"] = _ratio(ideal.groupby(sums["class"], sort=False).sum(), times.sum(axis=1, skipna=False))
    table["time_s"] = times.sum(axis=1, skipna=False)
    return table.reset_index().sort_values(["time_s", "flops_forward"], ascending=False, ignore_index=True)


OP_COLUMNS = [
    "op", "kind", "time_s", "time_share", "calls", "flops", "flops_per_s", "kernel_mfu", "flops_profiler", "kernels",
    "vector_flops", "bytes", "flops_full", "flops_hardware", "flops_compiled", "vector_flops_compiled",
]  # fmt: skip
"""Columns of `by_op`, as far as the passes that give them ran."""

PHASE_COLUMNS = [
    "phase", "time_s", "flops_per_s", "mfu", "kernel_time_s", "kernel_flops_per_s", "kernel_mfu", "flops",
    "time_q1_s", "time_q3_s", "communication_time_s", "vector_flops", "bytes", "flops_full", "flops_hardware",
]  # fmt: skip
"""Columns of `by_phase`, likewise."""

GENERATION_COLUMNS = [
    "phase", "time_s", "mfu", "mbu", "kernel_time_s", "kernel_mfu", "kernel_mbu", "flops", "moved_bytes",
    "flops_per_s", "bytes_per_s", "kernel_flops_per_s", "kernel_bytes_per_s", "weights_bytes", "cache_read_bytes",
    "cache_written_bytes", "activations_bytes", "time_q1_s", "time_q3_s", "communication_time_s",
    "vector_flops", "bytes", "flops_full", "flops_hardware",
]  # fmt: skip
"""Those of a generation, likewise."""


def _ordered(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table[[column for column in columns if column in table]]


KERNEL_COLUMNS = [
    "kernel", "owners", "time_s", "flops", "bytes", "flops_per_s", "bytes_per_s", "time_share", "kernels", "kind",
    "vector_flops", "median_s", "ops", "graph",
]  # fmt: skip
"""Columns of `by_kernel` where code was compiled."""


def by_op(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per operator: what it cost, how long it took, and what torch.profiler itself makes of it.

    Kernels that no operator launched come last, under an empty name. ``flops`` is missing where an operator has no
    rule; ``flops_profiler`` where torch makes no estimate. Where code was compiled, calls and FLOPs are those of the
    model without compilation, as everywhere, times and kernels those of what ran: ``flops_compiled`` and
    ``vector_flops_compiled`` are what compiled kernels booked on the operator do, and rates are of what ran of it. Of
    a job calls and FLOPs are those of all ranks, times and kernels the mean of theirs.
    """
    ops = priced(run, run.ops, convention)
    ops["op"] = ops["op"].map(plain_op)
    grouped = ops.groupby("op", sort=False)
    table = pd.DataFrame(
        {
            "kind": grouped["kind"].first(),
            "calls": grouped["calls"].sum(),
            **{name: grouped[name].sum(min_count=1) for name in _COUNTS},
            "ideal_s": grouped["ideal_s"].sum(),
        }
    )
    if run.is_job and len(run.busy):
        kernels = own_of_ranks(run).groupby("op")[["kernels", "time_s"]].sum()
        table = table.reindex(table.index.union(kernels.index, sort=False))
        table["kernels"], table["time_s"] = (kernels[name].astype("Float64") for name in ("kernels", "time_s"))
        table["time_share"] = table["time_s"] / kernels["time_s"].sum()
    elif run.done("trace"):
        kernels = run.kernels.groupby(run.kernels["op"].map(plain_op))["duration_ns"].agg(["sum", "size"])
        table = table.reindex(table.index.union(kernels.index, sort=False))
        table["kernels"] = kernels["size"].reindex(table.index).astype("Int64")
        table["time_s"] = kernels["sum"].reindex(table.index).astype("Float64") * 1e-9
        table["time_share"] = table["time_s"] / (run.kernels["duration_ns"].sum() * 1e-9)
        table["flops_profiler"] = (
            run.estimates.groupby(run.estimates["op"].map(plain_op))["flops_profiler"].sum().reindex(table.index)
        )
    if "time_s" in table:
        work = table
        if len(run.nodes):
            work = _of_compiled(run, convention).reindex(table.index)
            table["flops_compiled"], table["vector_flops_compiled"] = work["compiled"], work["compiled_vector"]
        table["flops_per_s"] = _rate(run, work["flops"], table["time_s"])
        table["kernel_mfu"] = _rate(run, work["ideal_s"], table["time_s"])
        table = table.sort_values("time_s", ascending=False, na_position="last")
    # the backward may run operators in place that the counting pass saw run out of place: known all the same
    table["kind"] = table["kind"].fillna(kinds(run)).fillna("")
    table.index.name = "op"
    return _ordered(table.reset_index(), OP_COLUMNS)


def _of_compiled(run: Record, convention: str | None) -> pd.DataFrame:
    """What ran, by the plain operator that its kernels are booked on: FLOPs, ideal_s and those of compiled kernels."""
    work = priced(run, ran(run), convention)
    sums = work.groupby("within")[["flops", "ideal_s"]].sum()
    launched = dict(zip(run.kernels["compiled"], run.kernels["op"].map(plain_op), strict=True))
    nodes = run.nodes[(run.nodes["repeat"] == 0) & (run.nodes["kernel"] != "")]
    ops = [launched.get(f"{one}/{kernel}", "") for one, kernel in zip(nodes["graph"], nodes["kernel"], strict=True)]
    compiled = nodes.groupby(ops)[["flops_hardware", "vector_flops"]].sum(min_count=1)
    sums = sums.reindex(sums.index.union(compiled.index))
    return sums.assign(compiled=compiled["flops_hardware"], compiled_vector=compiled["vector_flops"])


def by_kernel(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per kernel name: times, the operators that launch it, and their kinds, communication by its own name too.

    No FLOPs: an operator may launch several. Where code was compiled, a row is a kernel of one graph, with the columns
    of `gpuprof.analysis.fused.of_compiled`.

    Raises:
        GpuprofError: the run is of a job.
    """
    require_kernels(run, "a table by kernel")
    kind = run.kernels["op"].map(plain_op).map(kinds(run)).mask(communicating(run.kernels), "communication")
    compiled = len(run.nodes) > 0
    key = ["kernel", "graph"] if compiled else ["kernel"]
    kernels = run.kernels.assign(kind=kind, graph=pd.array(graphs(run), dtype="Int64"))
    grouped = kernels.groupby(key, sort=False, dropna=False)
    table = pd.DataFrame(
        {
            "time_s": (time_s := grouped["duration_ns"].sum().astype("float64") * 1e-9),
            "time_share": time_s / time_s.sum() if time_s.sum() else math.nan,
            "kernels": grouped.size(),
            "median_s": grouped["duration_ns"].median().astype("float64") * 1e-9,
            "kind": grouped["kind"].agg(_words),
            "ops": grouped["op"].agg(_words),
        }
    )
    table = table.sort_values("time_s", ascending=False).reset_index()
    if not compiled:
        return table
    graph = [None if pd.isna(number) else int(number) for number in table.pop("graph")]
    names = list(zip(table["kernel"], graph, strict=True))
    return pd.concat([table, of_compiled(run, names, convention)], axis=1)[KERNEL_COLUMNS]


def _words(names: pd.Series) -> str:
    return " ".join(sorted(set(names) - {""}))


def by_phase(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per phase: its time in the step by events, kernel time, FLOPs, rates.

    ``time_s`` of all phases is the time of the step, as `gpuprof.analysis.steps.step_seconds` has it; quartiles are of
    each phase by itself.
    ``time_s`` of the backward includes recomputation, which cannot be told apart without a trace. ``kernel_time_s``
    includes that of communication, hidden or not, which has a column where there is any. Rates are over ``time_s``,
    those that begin with ``kernel_`` over ``kernel_time_s``.

    Of a generation the columns are `GENERATION_COLUMNS`: moved_bytes are those that must move, and what they are made
    of; mbu and kernel_mbu are their rates by the preferred bandwidth.
    """
    ops = counted(run, convention).groupby("phase")
    table = pd.DataFrame(index=pd.Index(list(PHASES), name="phase"))
    for name in (*_COUNTS, "ideal_s"):
        table[name] = ops[name].sum(min_count=1).reindex(table.index)
    if len(run.nodes):
        table["flops_hardware"] = ran(run).groupby("phase")["flops_hardware"].sum(min_count=1).reindex(table.index)
        if hardware_of_compiled(run) is None:
            table["flops_hardware"] = integers([None] * len(table))
    table["time_s"] = pd.Series({phase: step_seconds(run, phase) for phase in table.index}, dtype="float64")
    parts = phases_of(run)
    if parts:
        sizes = moved(run).add_suffix("_bytes").rename(columns={"bytes_bytes": "moved_bytes"})
        table = table.join(sizes)
    if run.done("count") and table["time_s"].notna().any():
        table["flops_per_s"] = _rate(run, table["flops"], table["time_s"], withheld_of_step(run))
        table["mfu"] = _rate(run, table["ideal_s"], table["time_s"], withheld_of_step(run))
        if parts:
            table["bytes_per_s"] = _rate(run, table["moved_bytes"], table["time_s"], withheld_of_bytes(run))
            table["mbu"] = _rate(run, _ideal_s(run, table["moved_bytes"]), table["time_s"], withheld_of_bytes(run))
    times = run.samples.groupby("phase")["time_s"]
    for name, quantile in (("time_q1_s", 0.25), ("time_q3_s", 0.75)):
        table[name] = times.quantile(quantile).reindex(table.index)
    if run.done("trace") or len(run.busy):
        kernels = split_kernels(run)
        seconds = of_ranks(run).get(ALL, {}) if run.is_job else kernel_times(kernels.assign(module=""), [""])[""]
        table["kernel_time_s"] = pd.array([seconds.get(phase) for phase in table.index], dtype="Float64")
        messages = run.kernels[communicating(run.kernels)]
        if len(messages):
            seconds = kernel_times(messages.assign(module=""), [""])[""]
            table["communication_time_s"] = pd.array([seconds.get(phase) for phase in table.index], dtype="Float64")
        table["kernel_flops_per_s"] = _rate(run, table["flops"], table["kernel_time_s"])
        table["kernel_mfu"] = _rate(run, table["ideal_s"], table["kernel_time_s"])
        if parts:
            time, reason = table["kernel_time_s"], withheld_of_kernel_bytes(run)
            table["kernel_bytes_per_s"] = _rate(run, table["moved_bytes"], time, reason)
            table["kernel_mbu"] = _rate(run, _ideal_s(run, table["moved_bytes"]), time, reason)
    columns = GENERATION_COLUMNS if parts else PHASE_COLUMNS
    return _ordered(table[table.notna().any(axis=1)].reset_index(), columns)


def without_rule(run: Record) -> pd.DataFrame:
    """Operators that no rule prices: their calls and their share of kernel time (missing without a trace)."""
    table = by_op(run)
    missing = table[(table["kind"] == "") & (table["op"] != "") & ~table["op"].str.startswith(GENERATED)]
    if run.recorded:  # what cannot be read has a rule, and what launches kernels without an operator needs none
        unread = set(map(plain_op, run.passes["count"].facts.get("ops_unread", ())))
        missing = missing[missing["calls"].notna() & ~missing["op"].isin(unread)]
    columns = [c for c in ("op", "calls", "time_s", "time_share") if c in missing]
    return missing[columns].reset_index(drop=True)


def estimate_coverage(run: Record) -> float | None:
    """Share of the counted matmul FLOPs (full square) that torch.profiler's own estimates reach; None if unknown.

    Its estimates for elementwise operators are left out.
    """
    counted_flops = run.ops["flops_full"].sum()
    if not (run.done("trace") and run.done("count")) or not counted_flops or run.recorded:  # no file has them
        return None
    rules = run.estimates["op"].map(rule_for)
    elementwise = rules.map(lambda rule: rule is not None and rule.kind == "vector")
    return float(run.estimates.loc[~elementwise, "flops_profiler"].sum() / counted_flops)


def totals(run: Record, convention: str | None = None) -> dict[str, Any]:
    """The figures of the header; None where a figure is not known.

    Keys: params, trainable_params, macs, flops_forward, flops_recompute, flops_backward, flops (model FLOPs of the
    step, by the formula where the convention is one), counted_flops (those of the rows: the same, but for a formula),
    flops_hardware, vector_flops, backward_ratio (counted backward / forward), step_s, step_iqr_s, steps,
    flops_per_s, mfu, hfu, denominator, kernel_s, owned_share (kernel time of the traced step with a known owner),
    peak_bytes, peak_reserved_bytes, tokens_per_s (of a generation new ones), samples_per_s; withheld (why there is no
    mfu, hfu and flops_per_s though the step was counted and timed, empty where that is not so); ratio_withheld (the
    same of backward_ratio). Of mfu, hfu and flops_per_s `gpuprof.analysis.known_flops.known_of` says where they are
    lower bounds.
    """
    figures: dict[str, Any] = dict.fromkeys(
        (
            "params", "trainable_params", "macs", "flops_forward", "flops_recompute", "flops_backward", "flops",
            "counted_flops", "flops_hardware", "vector_flops", "backward_ratio", "step_s", "step_iqr_s", "steps",
            "flops_per_s", "mfu", "hfu", "kernel_s", "owned_share", "peak_bytes", "peak_reserved_bytes",
            "tokens_per_s", "samples_per_s",
        )
    )  # fmt: skip
    figures |= {"denominator": denominator(run)[0], "withheld": (reason := withheld_of_step(run))}
    figures["ratio_withheld"] = ratio_withheld(run)
    if len(run.tree):
        root = run.tree.iloc[0]
        figures |= {name: None if pd.isna(root[name]) else int(root[name]) for name in ("params", "trainable_params")}
    if run.done("count"):
        ops = counted(run, convention)
        done = hardware(run, convention)
        phases = ops.groupby(directions(ops["phase"]))["flops"].sum()
        forward, backward = (int(phases.get(phase, 0)) for phase in ("forward", "backward"))
        figures |= {
            "macs": int(ops.loc[ops["phase"].isin(FORWARD), "macs"].sum()),
            "flops_forward": forward,
            "flops_recompute": int(phases.get("recompute", 0)),
            "flops_backward": backward,
            **whole_step(run, ops, convention),
            "flops_hardware": hardware_of_compiled(run) if len(run.nodes) else int(done["flops_hardware"].sum()),
            "vector_flops": int(ops["vector_flops"].sum()),
            "backward_ratio": backward / forward if forward and backward and not figures["ratio_withheld"] else None,
        }
        if figures["flops"] is None:
            figures |= dict.fromkeys(("macs", "flops_forward", "flops_recompute", "flops_backward", "flops_hardware"))
    steps = run.samples.loc[run.samples["phase"] == "step", "time_s"]
    step_s = step_seconds(run)
    if step_s is not None:
        figures |= {
            "step_s": step_s,
            "step_iqr_s": float(steps.quantile(0.75) - steps.quantile(0.25)),
            "steps": len(steps),
        }
        for unit in ("tokens", "samples"):
            amount = per_step(run, unit)
            figures[f"{unit}_per_s"] = amount / step_s if amount else None
        if run.workload.get("mode") == "generate":  # most positions are the prompt's, and a rate of them none of tokens
            figures["tokens_per_s"] = new_tokens_per_s(run)
        if run.done("count"):
            known = run.nodes.empty or figures["flops_hardware"] is not None
            model = ops[ops["phase"].isin(MODEL)]
            # a formula's FLOPs run in the mix of dtypes that was counted
            scale = figures["flops"] / figures["counted_flops"] if figures["counted_flops"] else 1.0
            figures |= {
                "flops_per_s": None if reason or figures["flops"] is None else figures["flops"] / step_s,
                "mfu": _known_share(model["ideal_s"].sum(skipna=False) * scale, step_s),
                "hfu": _known_share(done["hardware_ideal_s"].sum(skipna=False), step_s) if known else None,
            }
    if run.is_job and len(run.busy):
        figures["kernel_s"] = busy_of_ranks(run)
        own = own_of_ranks(run)
        owned = (own["module"] != UNATTRIBUTED) | (own["phase"] == "optimizer")
        if total := own["time_s"].sum():
            figures["owned_share"] = float(own.loc[owned, "time_s"].sum() / total)
    elif run.done("trace") and len(run.kernels):
        kernels = split_kernels(run)
        figures["kernel_s"] = kernel_times(kernels.assign(module="", phase=""), [""])[""].get("", 0.0)
        owned = (kernels["module"] != UNATTRIBUTED) | (kernels["phase"] == "optimizer")
        if total := kernels["duration_ns"].sum():  # of a recording in whole microseconds, all may have taken none
            figures["owned_share"] = float(kernels.loc[owned, "duration_ns"].sum() / total)
    for key, names in (
        ("peak_bytes", ("allocated_peak", "rss_peak")),
        ("peak_reserved_bytes", ("reserved_peak",)),
    ):
        peaks = run.memory.loc[run.memory["quantity"].isin(names), "bytes"]
        figures[key] = int(peaks.max()) if len(peaks) else None
    return figures


def _known_share(ideal_s: float, time_s: float) -> float | None:
    return ideal_s / time_s if ideal_s > 0 and not math.isnan(ideal_s) else None
