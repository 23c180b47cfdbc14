"""The points of a sweep as one table, and what a chart of it is drawn over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.known_flops import known_of
from gpuprof.analysis.modules import totals
from gpuprof.analysis.telemetry import invalid_reasons
from gpuprof.record import Run, integers
from gpuprof.sweep import SIZES, SWEPT, Point

_FIGURES = (
    "steps", "step_s", "step_iqr_s", "tokens_per_s", "samples_per_s", "flops", "flops_per_s", "mfu", "hfu",
    "denominator", "peak_bytes",
)  # fmt: skip
_INTEGERS = {*SIZES, "steps", "flops", "peak_bytes"}
_TEXT = {"model", *SWEPT, "denominator", "convention", "device", "status", "reason"} - _INTEGERS


def sweep_table(points: Sequence[tuple[Point, Run | None]]) -> pd.DataFrame:
    """One row per point, in their order.

    Args:
        points: each with its run, if it has one.

    Returns:
        Columns model, mode; the other swept options that any point gives; steps, step_s (median) and step_iqr_s,
        tokens_per_s (in a generation: positions), samples_per_s, flops, flops_per_s, mfu, hfu, denominator,
        peak_bytes, convention, device, status, reason. Missing where a point has no such figure; text is empty there.
        The reason of a point that is done says why it has no MFU, has a lower bound of one or is invalid for tracking,
        if that is so.
    """
    given = [name for name in SWEPT if name != "mode" and any(name in point.options for point, _ in points)]
    rows = [_row(point, run) for point, run in points]
    names = ["model", "mode", *given, *_FIGURES, "convention", "device", "status", "reason"]
    return pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in names})


def _row(point: Point, run: Run | None) -> dict[str, Any]:
    row: dict[str, Any] = {"model": point.model, "mode": "train", "status": point.status, "reason": point.reason}
    if run is not None:
        figures = totals(run)
        row |= {name: figures[name] for name in _FIGURES}
        row["convention"] = convention_of(run)
        row["device"] = run.device.get("name") or run.device["type"]
        if not point.reason:
            invalid = (f"invalid for tracking: {why}" for why in invalid_reasons(run.telemetry))
            part = f"are at least that: {known}" if (known := known_of(run)) else ""
            said = figures["withheld"] or part
            unknown = [f"FLOP/s and MFU {said}"] if said else []
            row["reason"] = "; ".join([*unknown, *invalid])
    return row | point.options


def _typed(name: str, values: list[Any]) -> Any:
    if name in _INTEGERS:
        return integers(values)
    if name in _TEXT:
        return pd.Series(["" if value is None else str(value) for value in values], dtype="object")
    return pd.Series(values, dtype="Float64")


def rate(table: pd.DataFrame) -> tuple[str, str]:
    """The column that says how fast every measured point is, and its unit: tokens where all have some, else samples."""
    measured = table[table["step_s"].notna()]
    if not len(measured) or measured["tokens_per_s"].isna().any():
        return "samples_per_s", "samples/s"
    # in a generation most positions are the prompt's, and a rate of them is none of tokens
    return "tokens_per_s", "positions/s" if (measured["mode"] == "generate").any() else "tokens/s"


def axis(table: pd.DataFrame) -> str | None:
    """The first option that varies, one with numbers if there is any; None where nothing does."""
    varied = [name for name in ("model", *SWEPT) if name in table and table[name].nunique() > 1]
    return next((name for name in varied if name in SIZES), varied[0] if varied else None)


def series(table: pd.DataFrame, x: str) -> dict[str, pd.DataFrame]:
    """The points that differ in ``x`` alone, by what tells them from others: ``batch-size 2, attention sdpa``."""
    others = [
        name for name in ("model", *SWEPT) if name in table and name != x and table[name].nunique(dropna=False) > 1
    ]
    if not others:
        return {"": table}
    return {
        ", ".join(_label(name, value) for name, value in zip(others, values, strict=True)): rows
        for values, rows in table.groupby(others, sort=False, dropna=False)
    }


def _label(name: str, value: Any) -> str:
    words = name.replace("_", "-")
    if pd.isna(value) or value == "":
        return f"{words} by default"
    return str(value) if name == "model" else f"{words} {value}"
