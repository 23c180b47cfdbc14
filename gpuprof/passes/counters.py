"""The counters pass: FLOPs and bytes that the GPU itself counted, kernel by kernel, through Nsight Compute.

The step runs again in a child process (`gpuprof.passes.counted_step`). Nothing is believed before the counters have
shown on a matrix multiplication of known size what one count is.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuprof.errors import GpuprofError
from gpuprof.hardware import counters, ncu
from gpuprof.passes.counted_step import CALIBRATION, CALIBRATION_SHAPES, OP
from gpuprof.record import PassOutcome
from gpuprof.schema import UNATTRIBUTED, table
from gpuprof.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

_LIMIT_S = 1800.0
_WARMUP = 2
_OWNER = ("module", "phase", "op", "shapes", "dtype")
_FACTORS = (1.0, 2.0, 0.5)
# six digits may be all that is printed of a count; outside tensor cores, scaling by alpha and beta counts too
_EXACT = {"tensor": 1e-5, "scalar": 0.005}
_OPERATION = re.compile(re.escape(OP) + r"(\d+)\|(\d+)")
_CALIBRATED = re.compile(re.escape(CALIBRATION) + r"(\w+)\|(\d+)x(\d+)x(\d+)")


class Step(NamedTuple):
    """What the child says of the step it ran.

    Attributes:
        ops: the operator table.
        row_of: row of it by the number in a range's name; None of calls that failed.
        refused: why a dtype could not be multiplied for the calibration.
    """

    ops: pd.DataFrame
    row_of: list[int | None]
    refused: dict[str, str]


def measure(
    workload: Workload, ops: pd.DataFrame, dtypes: Sequence[str], level: str, seed: int
) -> tuple[pd.DataFrame, PassOutcome]:
    """Count what one step executes.

    Args:
        workload: what to run; it has to be one that can be built again.
        ops: table of the counting pass.
        dtypes: dtypes that tensor cores or scalar units multiply in, as `gpuprof.hardware.counters.plan` takes them.
        level: one of `gpuprof.passes.options.LEVELS`.
        seed: of the step.

    Returns:
        The ``counters`` table, and the outcome: skipped where counters cannot be read here.

    Raises:
        GpuprofError: they could be, and it went wrong.
    """
    if workload.device.type != "cuda":
        return _skipped("hardware counters need an NVIDIA GPU", "see 'gpuprof doctor'")
    if workload.recipe is None:
        reason = "the step runs again in a child process, and a model given as an object cannot be built there"
        return _skipped(reason, "give the model by name, or as file.py:function")
    import torch

    try:
        path = ncu.find()
        if ncu.forbidden():
            raise ncu.UnavailableError("the driver keeps hardware counters for administrators", ncu.PERMISSION)
        major, minor = torch.cuda.get_device_capability(workload.device)
        names = ncu.metrics_of(path, f"{major}.{minor}")
        plan = counters.plan(names, dtypes, level == "full")
        if not set(plan.columns) & set(counters.FLOP_COLUMNS):
            reason = f"no counter of FLOPs in {', '.join(dtypes) or 'any dtype'} is known on this GPU"
            return _skipped(reason, "try --counters full, or a newer Nsight Compute")
        torch.cuda.empty_cache()  # the child needs room for the same model
        frame, facts = collect(path, plan, workload.recipe, str(workload.device), ops, seed)
    except ncu.UnavailableError as error:
        return _skipped(str(error), error.remedy)
    return frame, PassOutcome("done", facts=facts | {"ncu": ncu.version(path), "level": level})


def _skipped(reason: str, remedy: str) -> tuple[pd.DataFrame, PassOutcome]:
    return table("counters", []), PassOutcome("skipped", reason, remedy)


def collect(
    path: str, plan: counters.Plan, recipe: tuple[str, Any], device: str, ops: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Run the child under Nsight Compute, once per list of metrics.

    Args:
        path: of ncu.
        plan: what to collect.
        recipe: model and options that build the workload.
        device: where it runs.
        ops: table of the counting pass.
        seed: of the step.

    Returns:
        The ``counters`` table, and facts: ``calibration``, ``replays`` (of each kernel, by run), ``not_collected``
        (columns without a counter) and ``differences`` (what did not agree between runs, with the counting pass or with
        the calibration).

    Raises:
        GpuprofError: the calibration fails for every dtype, or a run does.
    """
    model, options = recipe
    job = {
        "model": model,
        "options": asdict(options) | {"device": device},
        "dtypes": _calibrated(plan),
        "warmup": _WARMUP,
        "seed": seed,
    }
    runs = []
    with tempfile.TemporaryDirectory(prefix="gpuprof-counted-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        command = [sys.executable, "-m", "gpuprof.passes.counted_step", str(file)]
        for metrics in plan.runs:
            answer = file.with_name("step.json")
            answer.unlink(missing_ok=True)
            launches = ncu.profile(path, metrics, command, _LIMIT_S)
            try:
                said = json.loads(answer.read_text())
            except (OSError, ValueError) as error:
                raise GpuprofError(f"the counted step did not come to its end ({error}): run it alone first") from error
            runs.append((launches, Step(table("ops", said["ops"]), said["row_of"], said["refused"])))
    return combine(plan, runs, ops)


def combine(
    plan: counters.Plan, runs: Sequence[tuple[list[ncu.Launch], Step]], ops: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Join the runs launch by launch, after their calibration; see `collect`."""
    differences = []
    (launches, step), *others = runs
    refused = {column for column in _calibrated_columns(plan.columns) if _dtype_of(column) in step.refused}
    differences += [
        f"{dtype} is not counted, for it cannot be calibrated ({why})" for dtype, why in step.refused.items()
    ]
    columns = {c: parts for c, parts in plan.columns.items() if set(parts) <= set(plan.runs[0]) and c not in refused}
    scale, calibration, missed = calibrate(launches, columns)
    differences += missed.values()
    columns = {column: parts for column, parts in columns.items() if column not in missed}
    rows = _rows(launches, step, columns, scale)
    if _keys(step.ops) != _keys(ops):
        differences.append("the counted step ran other operators than the counting pass")
    for metrics, (more, again) in zip(plan.runs[1:], others, strict=True):
        added = {c: parts for c, parts in plan.columns.items() if set(parts) <= set(metrics) and c not in columns}
        extra = _rows(more, again, added, {})
        if [_identity(row) for row in extra] != [_identity(row) for row in rows]:
            differences.append(f"the run for {', '.join(added)} launched other kernels, and is left out")
            continue
        for row, found in zip(rows, extra, strict=True):
            row.update({name: found[name] for name in added})
    replays = [_replays(found) for found, _ in runs]
    unread = sorted({name for row in rows for name in columns if row[name] is None})
    if unread:
        differences.append(f"not read for every kernel: {', '.join(unread)}")
    facts = {
        "launches": len(rows),
        "calibration": calibration,
        "replays": replays,
        "not_collected": list(plan.missing),
        "differences": differences,
    }
    return table("counters", rows), facts


def calibrate(
    launches: Iterable[ncu.Launch], columns: dict[str, dict[str, int]]
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, str]]:
    """What one count is, from multiplications of known size.

    Args:
        launches: all launches of a run.
        columns: metrics and factors by column.

    Returns:
        The factor of each column of FLOPs that was calibrated, 1, 2 or 0.5; what was read: dtype, shape, column,
        expected and executed FLOPs and kernels of every multiplication; and why a column reads anything else, or
        nothing, by column.

    Raises:
        GpuprofError: there are columns to calibrate, and none of them is right.
    """
    readings: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    for launch in launches:
        found = _CALIBRATED.search(launch.ranges)
        if found is None:
            continue
        dtype, shape = found[1], tuple(map(int, found.groups()[1:]))
        column = _column_of(dtype, columns)
        if column is None:
            continue
        value = counters.values(launch.metrics, {column: columns[column]})[column]
        entry = readings.setdefault(
            (dtype, shape),
            {
                "dtype": dtype,
                "shape": list(shape),
                "column": column,
                "expected": 2 * shape[0] * shape[1] * shape[2],
                "executed": 0,
                "kernels": [],
            },
        )
        entry["executed"] = None if value is None or entry["executed"] is None else entry["executed"] + value
        entry["kernels"].append(launch.kernel)
    scale: dict[str, float] = {}
    missed: dict[str, str] = {}
    for column in _calibrated_columns(columns):
        reading = readings.get((_dtype_of(column), CALIBRATION_SHAPES[0]))
        factor = None if reading is None else _factor(reading)
        if factor is None:
            missed[column] = _miss(column, reading)
        else:
            scale[column] = factor
    if missed and not scale:
        raise GpuprofError("; ".join(missed.values()))
    return scale, list(readings.values()), missed


def _factor(entry: dict[str, Any]) -> float | None:
    kind = entry["column"].partition("_")[0]
    for factor in _FACTORS:
        if entry["executed"] and abs(entry["executed"] * factor / entry["expected"] - 1) <= _EXACT[kind]:
            return factor
    return None


def _miss(column: str, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return f"calibration: no kernel of the {_dtype_of(column)} multiplication was counted, so {column} is left out"
    size = "x".join(map(str, entry["shape"]))
    read = "nothing" if entry["executed"] is None else f"{entry['executed']:,} FLOPs"
    return (
        f"calibration: a {size} matmul in {entry['dtype']} reads {read} where it is {entry['expected']:,}, so "
        f"{column} cannot be believed (kernels: {', '.join(dict.fromkeys(entry['kernels']))})"
    )


def _calibrated(plan: counters.Plan) -> list[str]:
    """Dtypes to multiply in before the step: those whose FLOPs are collected."""
    return [_dtype_of(column) for column in _calibrated_columns(plan.columns)]


def _calibrated_columns(columns: Iterable[str]) -> list[str]:
    """One column for each dtype: half precision and double outside tensor cores cannot be asked for."""
    known = {*counters.TENSOR_COLUMNS.values(), counters.SCALAR_COLUMNS["float32"]}
    return [column for column in columns if column in known]


def _column_of(dtype: str, columns: Iterable[str]) -> str | None:
    return next((column for column in _calibrated_columns(columns) if _dtype_of(column) == dtype), None)


def _dtype_of(column: str) -> str:
    return column.partition("_")[2]


def _rows(
    launches: Iterable[ncu.Launch], step: Step, columns: dict[str, dict[str, int]], scale: dict[str, float]
) -> list[dict[str, Any]]:
    """Rows of the ``counters`` table; the calibration's own launches are left out."""
    owners = step.ops[list(_OWNER)].to_dict("records")
    nobody = dict.fromkeys(_OWNER, "") | {"module": UNATTRIBUTED, "phase": "other"}
    rows: list[dict[str, Any]] = []
    for launch in launches:
        if CALIBRATION in launch.ranges:
            continue
        # operators within operators: the innermost is the one that launched it
        inside = max(_OPERATION.findall(launch.ranges), key=lambda found: int(found[1]), default=None)
        row = None if inside is None else step.row_of[int(inside[0])]
        owner = nobody if row is None else owners[row]
        values = counters.values(launch.metrics, columns)
        for column, factor in scale.items():
            value = values[column]
            values[column] = None if value is None else round(value * factor)
        rows.append(
            {"number": len(rows), **owner, "kernel": launch.kernel, "grid": launch.grid, "block": launch.block} | values
        )
    return rows


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in _OWNER), row["kernel"], row["grid"], row["block"])


def _keys(ops: pd.DataFrame) -> set[tuple[Any, ...]]:
    return set(ops[[*_OWNER, "calls"]].itertuples(index=False, name=None))


def _replays(launches: Iterable[ncu.Launch]) -> int | None:
    """Most replays of a kernel."""
    passes = [launch.metrics.get(ncu.REPLAYS) for launch in launches]
    return max((int(count) for count in passes if count is not None), default=None)
