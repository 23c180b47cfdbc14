"""What compilation gained: a run of a model without it beside one with it, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from gpuprof.analysis.comparison import kernel_seconds, own_counts, parts_of
from gpuprof.analysis.consistency import owned_kernels
from gpuprof.analysis.ran import ran
from gpuprof.analysis.shares import regions
from gpuprof.late import pd
from gpuprof.paths import unwrapped
from gpuprof.record import Record
from gpuprof.schema import integers

GAINED_COLUMNS = [
    "eager_s", "compiled_s", "gained_s", "speedup", "fused_share", "eager_kernels", "compiled_kernels", "eager_flops",
    "compiled_flops",
]  # fmt: skip
"""Columns of `gained` after the one that says which part: the machine-readable contract."""

OfModules = Literal["module", "layer", "class"]

OF_MODULES: tuple[OfModules, ...] = ("module", "layer", "class")
"""Of what kernel time is told by, those that a model has with compilation and without."""


def gained(eager: Record, head: Record, by: OfModules = "layer") -> pd.DataFrame:
    """Kernel time of each part's own work without compilation and with it, all phases together.

    Args:
        eager: the run without.
        head: that of the same model with it.
        by: what a part is.

    Returns:
        The part, and `GAINED_COLUMNS`, the most gained first: seconds of kernel time of one step, the median of the
        launches that have one; speedup, the one over the other; fused_share, how much of the time with compilation is
        a share of kernels that others have a part in; kernels, of which each counts once; and the FLOPs that the
        operators really do. What the trace of the compiled run could not look into is one part with its region. A part
        without time on one side has no speedup. No rows without a trace of both.
    """
    if not (eager.done("trace") and head.done("trace")):
        return pd.DataFrame(columns=[by, *GAINED_COLUMNS])
    places = _told(head)
    runs = {"eager": _placed(eager, places), "compiled": _placed(head, places)}
    columns = {}
    for side, run in runs.items():
        columns[f"{side}_s"] = kernel_seconds(run, by).median(axis=1).groupby(level=0).sum()
        columns[f"{side}_kernels"] = own_counts(run, by)["kernels"].groupby(level=0).sum()
        columns[f"{side}_flops"] = _flops(run, by)
    table = pd.DataFrame(columns)
    for side in runs:
        table[f"{side}_s"] = table[f"{side}_s"].fillna(0.0)
        table[f"{side}_kernels"] = integers(table[f"{side}_kernels"].fillna(0))
        table[f"{side}_flops"] = integers(table[f"{side}_flops"])
    table["gained_s"] = table["eager_s"] - table["compiled_s"]
    both = (table["eager_s"] > 0) & (table["compiled_s"] > 0)
    table["speedup"] = (table["eager_s"] / table["compiled_s"]).where(both)
    table["fused_share"] = _fused(runs["compiled"], by).reindex(table.index)
    table = table[(table["eager_s"] > 0) | (table["compiled_s"] > 0)]
    order = table["gained_s"].sort_values(ascending=False, kind="stable").index
    return table.loc[order, GAINED_COLUMNS].rename_axis(by).reset_index()


def _told(run: Record) -> dict[str, str]:
    """Modules that the trace could not tell apart by the region that has their time, both without their wrappers."""
    bare = unwrapped(run.tree["module"], run.tree["class"])
    return {bare[path]: bare[region] for path, region in regions(run).items()}


def _placed(run: Record, places: Mapping[str, str]) -> Record:
    """A run with the work of some modules booked on others."""
    bare = unwrapped(run.tree["module"], run.tree["class"])
    moved = {path: places[name] for path, name in bare.items() if name in places}
    if not moved:
        return run
    tables = {
        name: getattr(run, name).assign(module=getattr(run, name)["module"].replace(moved))
        for name in ("ops", "nodes", "kernels", "launches")
    }
    return replace(run, **tables)


def _flops(run: Record, by: OfModules) -> pd.Series:
    ops = ran(run)
    return ops.groupby(parts_of(ops, run, by)[0], sort=False)["flops_hardware"].sum(min_count=1)


def _fused(run: Record, by: OfModules) -> pd.Series:
    kernels = owned_kernels(run)
    times = kernels["duration_ns"].astype("float64")
    part = parts_of(kernels, run, by)[0]
    whole = times.groupby(part, sort=False).sum()
    return times.where(kernels["parts"] > 1, 0.0).groupby(part, sort=False).sum() / whole.where(whole > 0)
