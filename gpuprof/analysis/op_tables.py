"""A run per operator and per kernel, and what is not priced of it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from gpuprof.analysis.communication import messages
from gpuprof.analysis.counted import priced
from gpuprof.analysis.each import each, numbered
from gpuprof.analysis.fused import graphs, of_compiled
from gpuprof.analysis.kernel_time import own_of_ranks
from gpuprof.analysis.operators import GENERATED, kinds, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.analysis.ranks import require_kernels
from gpuprof.analysis.rates import rate
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import columns as plain_columns
from gpuprof.theory import rule_for

_COUNTS = ("flops", "flops_full", "flops_hardware", "vector_flops", "bytes")

OP_COLUMNS = [
    "op", "kind", "time_s", "time_share", "calls", "flops", "flops_per_s", "kernel_mfu", "flops_profiler", "kernels",
    "vector_flops", "bytes", "flops_full", "flops_hardware", "flops_compiled", "vector_flops_compiled",
]  # fmt: skip
"""Columns of `by_op`, as far as the passes that give them ran."""

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
        kernels = run.kernels["duration_ns"].groupby(each(run.kernels["op"], plain_op)).agg(["sum", "size"])
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
        table["flops_per_s"] = rate(run, work["flops"], table["time_s"])
        table["kernel_mfu"] = rate(run, work["ideal_s"], table["time_s"])
        table = table.sort_values("time_s", ascending=False, na_position="last")
    # the backward may run operators in place that the counting pass saw run out of place: known all the same
    table["kind"] = table["kind"].fillna(kinds(run)).fillna("")
    table.index.name = "op"
    table = table.reset_index()
    return table[[column for column in OP_COLUMNS if column in table]]


def _of_compiled(run: Record, convention: str | None) -> pd.DataFrame:
    """What ran, by the plain operator that its kernels are booked on: FLOPs, ideal_s and those of compiled kernels."""
    work = priced(run, ran(run), convention)
    sums = work.groupby("within")[["flops", "ideal_s"]].sum()
    launched = dict(zip(run.kernels["compiled"], each(run.kernels["op"], plain_op), strict=True))
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
    known = kinds(run)
    kind = each(run.kernels["op"], lambda op: known[plain_op(op)]).mask(messages(run), "communication")
    compiled = len(run.nodes) > 0
    key = ["kernel", "graph"] if compiled else ["kernel"]
    kernels = run.kernels.assign(kind=kind, graph=pd.array(graphs(run), dtype="Int64"))
    places, first = numbered(kernels[key])  # by numbers: pandas would read each of the long names in full
    grouped = kernels.groupby(places, sort=False)
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
    rows = first.reset_index(drop=True).assign(kernel=pd.Series(first["kernel"].tolist()))
    table = pd.concat([rows, table], axis=1)
    table = table.sort_values("time_s", ascending=False, ignore_index=True)
    if not compiled:
        return table
    graph = [None if pd.isna(number) else int(number) for number in table.pop("graph")]
    names = list(zip(table["kernel"], graph, strict=True))
    return pd.concat([table, of_compiled(run, names, convention)], axis=1)[KERNEL_COLUMNS]


def _words(names: pd.Series) -> str:
    return " ".join(sorted(set(names) - {""}))


def without_rule(run: Record) -> pd.DataFrame:
    """Operators that no rule prices: their calls and their share of kernel time (missing without a trace)."""
    table = by_op(run)
    missing = table[(table["kind"] == "") & (table["op"] != "") & ~table["op"].str.startswith(GENERATED)]
    if run.recorded:  # what cannot be read has a rule, and what launches kernels without an operator needs none
        unread = set(map(plain_op, run.passes["count"].facts.get("ops_unread", ())))
        missing = missing[missing["calls"].notna() & ~missing["op"].isin(unread)]
    columns = [c for c in ("op", "calls", "time_s", "time_share") if c in missing]
    return missing[columns].reset_index(drop=True)


def ruleless(run: Record) -> list[dict[str, Any]]:
    """The same in rows; of a run that has no kernels each has op and calls, as its operators tell alone."""
    if run.done("trace") or run.has("busy"):
        found = plain_columns(without_rule(run))
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    kinds_of, calls_of = dict[str, str](), Counter[str]()
    columns = (run.column("ops", name) for name in ("op", "kind", "calls"))
    for op, kind, calls in zip(*columns, strict=True):
        kinds_of.setdefault(plain_op(op), kind)
        calls_of[plain_op(op)] += calls or 0
    unknown = (op for op, kind in kinds_of.items() if kind == "" and op and not op.startswith(GENERATED))
    return [{"op": op, "calls": calls_of[op]} for op in unknown]


def estimate_coverage(run: Record) -> float | None:
    """Share of the counted matmul FLOPs (full square) that torch.profiler's own estimates reach; None if unknown.

    Its estimates for elementwise operators are left out.
    """
    if not (run.done("trace") and run.done("count")) or run.recorded:  # no file has them
        return None
    counted_flops = run.ops["flops_full"].sum()
    if not counted_flops:
        return None
    rules = run.estimates["op"].map(rule_for)
    elementwise = rules.map(lambda rule: rule is not None and rule.kind == "vector")
    return float(run.estimates.loc[~elementwise, "flops_profiler"].sum() / counted_flops)
