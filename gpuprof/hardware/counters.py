"""Which hardware counters tell the FLOPs and bytes that a chip executed, from the table counters.tsv. Torch-free.

Every counter of the table is taken at one level only: a sum over all instructions of a kind, never one of its parts
as well.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

CHIPS = {"8.0": "GA100", "9.0": "GH100", "10.0": "GB100"}
"""Chips of the table by compute capability."""

TENSOR_COLUMNS = {
    "bfloat16": "tensor_bfloat16",
    "float16": "tensor_float16",
    "tf32": "tensor_tf32",
    "float64": "tensor_float64",
    "float8": "tensor_float8",
}
"""Column of the ``counters`` table that holds the tensor-core FLOPs of a dtype."""

SCALAR_COLUMNS = {"float16": "scalar_float16", "float32": "scalar_float32", "float64": "scalar_float64"}
"""Column that holds those outside tensor cores."""

FLOP_COLUMNS = (*TENSOR_COLUMNS.values(), *SCALAR_COLUMNS.values())
"""Columns of FLOPs."""

_ALWAYS = ("dram_read_bytes", "dram_written_bytes", "duration_ns")
_CANARY = "tensor_instructions"
_SCALAR_ONLY = ("float32",)  # dtypes that no tensor core multiplies


class Counter(NamedTuple):
    """One row of the table.

    Attributes:
        column: of the ``counters`` table of a run.
        metric: its name in Nsight Compute.
        factor: what one count is in the column's unit.
        unless: another counter that holds the same work, empty where there is none.
        chips: chips known to have it.
    """

    column: str
    metric: str
    factor: int
    unless: str
    chips: tuple[str, ...]


class Plan(NamedTuple):
    """What to collect.

    Attributes:
        runs: metrics of each run of the profiler over the same step.
        columns: for each column, the metrics that make it up, with their factors.
        missing: columns that were wanted and that the chip has no counter for.
    """

    runs: tuple[tuple[str, ...], ...]
    columns: dict[str, dict[str, int]]
    missing: tuple[str, ...]


@cache
def all_counters() -> tuple[Counter, ...]:
    """Every row of the table, in its order."""
    lines = files(__package__).joinpath("counters.tsv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader((line for line in lines if not line.startswith("#")), delimiter="\t")
    chips = tuple(CHIPS.values())
    return tuple(
        Counter(row["column"], row["metric"], int(row["factor"]), row["unless"], tuple(c for c in chips if row[c]))
        for row in rows
    )


def names_of(compute_capability: str) -> frozenset[str]:
    """Metrics of the table that a chip is known to have; none for a chip that is not in it."""
    chip = CHIPS.get(compute_capability)
    return frozenset(counter.metric for counter in all_counters() if chip in counter.chips)


def columns_of(names: Collection[str]) -> dict[str, dict[str, int]]:
    """The columns that a chip with these metrics can fill, each as metrics and factors.

    Args:
        names: metrics, with or without ``.sum``.
    """
    bare = {name.removesuffix(".sum") for name in names}
    columns: dict[str, dict[str, int]] = {}
    for counter in all_counters():
        redundant = counter.unless.removesuffix(".sum") in bare
        if counter.metric.removesuffix(".sum") in bare and not redundant:
            columns.setdefault(counter.column, {})[counter.metric] = counter.factor
    return columns


def whole_columns_of(names: Collection[str], compute_capability: str) -> dict[str, dict[str, int]]:
    """Those of `columns_of` that somebody's choice of metrics fills whole: a part of a sum would be too little.

    Args:
        names: metrics that were collected, with or without ``.sum``.
        compute_capability: such as ``9.0``; of a chip that is not in the table, what is whole on any chip of it is.
    """
    bare = {name.removesuffix(".sum") for name in names}
    # other names of the same count have no chip of their own
    bare |= {
        c.unless.removesuffix(".sum") for c in all_counters() if c.metric.removesuffix(".sum") in bare and not c.chips
    }
    chips = [CHIPS[compute_capability]] if compute_capability in CHIPS else CHIPS.values()

    def whole(column: str) -> bool:
        parts = [{c.metric for c in all_counters() if c.column == column and chip in c.chips} for chip in chips]
        return any(some and {metric.removesuffix(".sum") for metric in some} <= bare for some in parts)

    return {column: parts for column, parts in columns_of(names).items() if whole(column)}


def plan(names: Collection[str], dtypes: Iterable[str], everything: bool = False) -> Plan:
    """Choose what to collect: few counters, because each list that does not fit is another replay of every kernel.

    Args:
        names: metrics that the chip has.
        dtypes: dtypes that the step multiplies in: bfloat16, float16, tf32, float32, float64, float8.
        everything: all dtypes, and the FLOPs outside tensor cores, in one run of several passes per kernel. Otherwise
            one run for the tensor work of those dtypes, which fits in one pass for a single dtype, and one for the
            canary: instructions of the tensor pipe of any dtype.
    """
    available = columns_of(names)
    if everything:
        wanted = [[*FLOP_COLUMNS, _CANARY, *_ALWAYS]]
    else:
        chosen = dict.fromkeys(dtypes)
        work = [TENSOR_COLUMNS[dtype] for dtype in chosen if dtype in TENSOR_COLUMNS]
        work += [SCALAR_COLUMNS[dtype] for dtype in chosen if dtype in _SCALAR_ONLY]
        wanted = [[*work, *_ALWAYS], [_CANARY, *(["duration_ns"] if _CANARY in available else [])]]
    columns = {column: available[column] for run in wanted for column in run if column in available}
    missing = tuple(dict.fromkeys(column for run in wanted for column in run if column not in available))
    runs = [tuple(metric for column in run for metric in available.get(column, ())) for run in wanted]
    return Plan(tuple(run for run in runs if run), columns, missing)


def values(metrics: Mapping[str, float | None], columns: Mapping[str, Mapping[str, int]]) -> dict[str, int | None]:
    """What the counters of one launch come to, by column; None where one of them was not read.

    Args:
        metrics: readings by metric.
        columns: of a `Plan`.
    """
    found: dict[str, int | None] = {}
    for column, parts in columns.items():
        readings = [metrics.get(metric) for metric in parts]
        if any(reading is None for reading in readings):
            found[column] = None
        else:
            found[column] = round(sum(r * f for r, f in zip(readings, parts.values(), strict=True) if r is not None))
    return found
