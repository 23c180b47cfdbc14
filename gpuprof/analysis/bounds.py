"""What the time of operators is held against: FLOPs at the clock, bytes at the bandwidth, the ceiling of a shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpuprof.analysis.denominators import ideal_seconds, peak_dtype
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.theory.rows import read_shapes

WITH_CEILING = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")

BOUNDS = {"ideal": "ideal_s", "clock": "clock_s", "memory_bytes": "bytes_s", "matmul_shape": "shape_s"}
"""Parts that a bound explains, by the column of the operators that says how long."""


def read_ceilings(path: Path, run: Record) -> dict[str, Any]:
    """Read what ``gpuprof ceilings -o`` saved, for the device of a run.

    Raises:
        GpuprofError: there is no such file, it is something else, or it is of another device.
    """
    try:
        found = json.loads(path.read_bytes())
        device, shapes = found["device"]["name"], found["shapes"]
        [(row["dtype"], row["batch"], row["m"], row["n"], row["k"]) for row in shapes]
    except OSError as error:
        raise GpuprofError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise GpuprofError(
            f"{path} has no ceilings: give a file saved by 'gpuprof ceilings --shapes RUN -o'"
        ) from error
    if device != run.device.get("name"):
        raise GpuprofError(f"{path} is of {device}, the run of {run.device.get('name')}: measure ceilings there")
    return dict(found)


def bandwidth_of(run: Record, ceilings: dict[str, Any] | None) -> float | None:
    """The measured one where there is one, else the datasheet's."""
    copy = (ceilings or {}).get("copy") or {}
    return copy.get("bytes_per_s") or run.device.get("measured_bandwidth") or run.device.get("memory_bandwidth")


def add_bounds(
    ops: pd.DataFrame,
    run: Record,
    clock: dict[str, float] | None,
    bandwidth: float | None,
    ceilings: dict[str, Any] | None,
) -> None:
    """Columns of `BOUNDS`: what each bound adds to those before it; none for what is not known."""
    below = ops["ideal_s"].fillna(0.0)
    if clock:
        ops["clock_s"] = ideal_seconds(ops, "flops", clock, run).fillna(below) - below
        below = below + ops["clock_s"]
    bound = ops["work"].isin(["matmul", "memory"])
    bound |= (ops["work"] == "attention") & (ops["phase"] == "decode")  # whose few queries read the whole cache
    if bandwidth and ops.loc[bound, "bytes"].fillna(0).any():  # a recording may have none
        needed = ops["bytes"].astype("Float64").fillna(0).astype("float64") / bandwidth
        ops["bytes_s"] = (needed - below).clip(lower=0).where(bound, 0.0)
        below = below + ops["bytes_s"]
    rates = _shape_rates(ceilings)
    if rates:
        ops["ceiling_s"] = [_at_ceiling(row, rates, run) for row in ops.to_dict(orient="records")]
        ops["shape_s"] = (ops["ceiling_s"] - below).fillna(0.0)


def _shape_rates(ceilings: dict[str, Any] | None) -> dict[tuple[Any, ...], float]:
    """Measured FLOP/s by dtype, batch, m, n and k."""
    rows = (ceilings or {}).get("shapes") or []
    return {
        (row["dtype"], row["batch"], row["m"], row["n"], row["k"]): row["flops_per_s"]
        for row in rows
        if row.get("flops_per_s")
    }


def _at_ceiling(row: dict[str, Any], rates: dict[tuple[Any, ...], float], run: Record) -> float:
    """Seconds that a product takes at the measured rate of its shape; NaN where there is none."""
    if row["work"] != "matmul" or row["op"] not in WITH_CEILING or not row["flops_hardware"]:
        return float("nan")
    *rows, n = read_shapes(row["shapes"])[1][0]
    batch, m = (1, *rows)[-2:]
    k = row["flops_hardware"] // (2 * row["calls"] * batch * m * n)
    rate = rates.get((peak_dtype(row["dtype"], row["kind"], run), batch, m, n, k))
    return row["flops_hardware"] / rate if rate else float("nan")
