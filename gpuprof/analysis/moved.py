"""Whose kernel time moved between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan

from gpuprof.analysis.comparison import KEYS, By, kernel_seconds, own_counts
from gpuprof.analysis.directions import directions
from gpuprof.analysis.generation import is_generation
from gpuprof.analysis.regression import FEWEST, MARGIN, hold
from gpuprof.late import np, pd
from gpuprof.record import Record

CANCEL = 0.05
"""Net difference over all that moved, either way, below which shares of it say nothing."""

MOVED_COLUMNS = [
    "status", "base_s", "head_s", "change_s", "change", "threshold", "base_kernels", "head_kernels", "base_flops",
    "head_flops", "share",
]  # fmt: skip
"""Columns of `moved` after those that say which part: the machine-readable contract."""


def moved(base: Sequence[Record], head: Sequence[Record], by: By = "module", margin: float = MARGIN) -> pd.DataFrame:
    """Whose kernel time moved, each part by its own work alone, so that no blame climbs up the tree.

    Args:
        base: runs with a trace, the newest last; all their traced steps together say how noisy a part is.
        head: likewise.
        by: what a part is, of `gpuprof.analysis.comparison.KEYS`.
        margin: share below which a part has not moved.

    Returns:
        The columns that say which part, and `MOVED_COLUMNS`: new, gone, slower, faster or same; medians in seconds of
        kernel time per step, their difference and it as a share; the share that is needed to have moved, by the rule
        of `hold` from `FEWEST` traced steps of the baseline on, the margin below that; kernels and model FLOPs of the
        newest run of either (FLOPs are missing by kernel); and the share of the whole difference, missing where gains
        and losses cancel but for `CANCEL`. The largest difference first, by op-kernel that of an operator and below it
        those of its kernels; none without a trace.
    """
    if len({is_generation(run) for run in (*base, *head) if run.workload["mode"] == "generate"}) > 1:
        base, head = ([_forward_alone(run) for run in runs] for runs in (base, head))
    sides = [[kernel_seconds(run, by) for run in runs if run.done("trace") or run.is_job] for runs in (base, head)]
    if not all(sides):
        return pd.DataFrame(columns=[*KEYS[by], *MOVED_COLUMNS])
    before, after = (pd.concat(steps, axis=1, ignore_index=True) for steps in sides)
    parts = before.index.union(after.index, sort=False)
    before, after = (steps.reindex(parts).fillna(0.0) for steps in (before, after))
    table = pd.DataFrame({"base_s": before.median(axis=1), "head_s": after.median(axis=1)})
    table["change_s"] = table["head_s"] - table["base_s"]
    table["change"] = (table["change_s"] / table["base_s"]).where(table["base_s"] > 0)
    table["threshold"] = margin
    if before.shape[1] >= FEWEST:
        with np.errstate(divide="ignore", invalid="ignore"):  # of parts that are new
            table["threshold"] = hold(before.to_numpy(), after.to_numpy(), margin).as_measured.threshold
    table["status"] = np.select(
        [table["base_s"] == 0, table["head_s"] == 0, table["change"] > table["threshold"],
         table["change"] < -table["threshold"]],
        ["new", "gone", "slower", "faster"],
        "same",
    )  # fmt: skip
    table.loc[table["change_s"] == 0, "status"] = "same"
    for side, runs in (("base", base), ("head", head)):
        counts = own_counts(runs[-1], by).reindex(parts)
        table[f"{side}_kernels"], table[f"{side}_flops"] = counts["kernels"].fillna(0), counts["flops"]
    net = float(table["change_s"].sum())
    all_told = abs(net) >= CANCEL * float(table["change_s"].abs().sum())
    table["share"] = table["change_s"] / net if net and all_told else nan
    order = table["change_s"].abs().sort_values(ascending=False, kind="stable").index
    if by == "op-kernel":
        ops = table["change_s"].groupby("op").sum().abs().sort_values(ascending=False, kind="stable")
        places = {op: place for place, op in enumerate(ops.index)}
        order = order[np.argsort([places[op] for op, _ in order], kind="stable")]
    return table.loc[order, MOVED_COLUMNS].rename_axis(KEYS[by]).reset_index()


def _forward_alone(run: Record) -> Record:
    """A run with the phases of a generation as files of before schema 6 have them, to be held against one."""
    tables = {name: getattr(run, name) for name in ("ops", "kernels", "nodes", "launches", "busy")}
    return replace(run, **{name: rows.assign(phase=directions(rows["phase"])) for name, rows in tables.items()})
