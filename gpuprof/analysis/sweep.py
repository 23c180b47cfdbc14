"""The points of a sweep as one table, and what a chart of it is drawn over."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.generation import bandwidth, generation
from gpuprof.analysis.known_flops import known_of
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.telemetry import invalid_reasons
from gpuprof.analysis.totals import totals
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import integers
from gpuprof.sweep import SIZES, SWEPT, Point

_FIGURES = (
    "steps", "step_s", "step_iqr_s", "tokens_per_s", "samples_per_s", "flops", "flops_per_s", "mfu", "hfu",
    "denominator", "peak_bytes",
)  # fmt: skip
_GENERATION = (
    "ttft_s", "tpot_s", "tpot_p90_s", "tpot_p99_s", "decode_tokens_per_s", "prefill_mfu", "decode_mfu", "decode_mbu",
    "bandwidth",
)  # fmt: skip
"""Further figures where a point is a generation."""
_INTEGERS = {*SIZES, "steps", "flops", "peak_bytes"}
_TEXT = {"model", *SWEPT, "denominator", "bandwidth", "convention", "device", "status", "reason"} - _INTEGERS


def sweep_table(points: Sequence[tuple[Point, Record | None]]) -> pd.DataFrame:
    """One row per point, in their order.

    Args:
        points: each with its run, if it has one.

    Returns:
        Columns model, mode; the other swept options that any point gives; steps, step_s (median) and step_iqr_s,
        tokens_per_s (in a generation: new ones), samples_per_s, flops, flops_per_s, mfu, hfu, denominator,
        peak_bytes; where any point is a generation ttft_s, tpot_s (with tpot_p90_s and tpot_p99_s, of one token of each
        sequence), decode_tokens_per_s, prefill_mfu, decode_mfu, decode_mbu (each over the phase's time in the step) and
        bandwidth (what the last is against); convention, device, status, reason. Missing where a point has no such
        figure; text is empty there.
        The reason of a point that is done says why it has no MFU, has a lower bound of one or is invalid for tracking,
        if that is so.
    """
    given = [name for name in SWEPT if name != "mode" and any(name in point.options for point, _ in points)]
    rows = [_row(point, run) for point, run in points]
    generated = _GENERATION if any(row["mode"] == "generate" for row in rows) else ()
    names = ["model", "mode", *given, *_FIGURES, *generated, "convention", "device", "status", "reason"]
    return pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in names})


def _row(point: Point, run: Record | None) -> dict[str, Any]:
    row: dict[str, Any] = {"model": point.model, "mode": "train", "status": point.status, "reason": point.reason}
    if run is not None:
        figures = totals(run)
        row |= {name: figures[name] for name in _FIGURES}
        row |= _of_generation(run)
        row["convention"] = convention_of(run)
        row["device"] = run.device.get("name") or run.device["type"]
        if not point.reason:
            invalid = (f"invalid for tracking: {why}" for why in invalid_reasons(run.telemetry))
            part = f"are at least that: {known}" if (known := known_of(run)) else ""
            said = figures["withheld"] or part
            unknown = [f"FLOP/s and MFU {said}"] if said else []
            row["reason"] = "; ".join([*unknown, *invalid])
    return row | point.options


def _of_generation(run: Record) -> dict[str, Any]:
    """The figures of `_GENERATION`; none of another run."""
    if (found := generation(run)) is None:
        return {}
    names = ("ttft_s", "tpot_s", "tpot_p90_s", "tpot_p99_s", "decode_tokens_per_s")
    phases = by_phase(run).set_index("phase")
    of_phases = {
        f"{phase}_{share}": phases.at[phase, share]
        for phase, share in (("prefill", "mfu"), ("decode", "mfu"), ("decode", "mbu"))
        if phase in phases.index
    }
    return {name: getattr(found, name) for name in names} | of_phases | {"bandwidth": bandwidth(run)[0]}


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
    return "tokens_per_s", "tokens/s"


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


class Knee(NamedTuple):
    """Where a larger batch of a generation begins to cost more than it gives.

    Attributes:
        batch_size: the smallest from which on every larger one is paid for by more than half: the time per token grows
            by more than the square root of what the batch grows by. None where the largest batches are not.
        sizes: the batches, ascending.
        slower: times by which the time per token is longer at each of them than at the one before.
        bound: what bounds decoding at the largest, by the larger of its MFU and its MBU: ``arithmetic`` or ``memory``;
            empty where one is not known.
    """

    batch_size: int | None
    sizes: list[int]
    slower: list[float]
    bound: str


def knee(rows: pd.DataFrame) -> Knee | None:
    """The knee among points that differ in the batch alone; None where fewer than two of them have a time per token.

    Be the time of a step of decoding w + c x batch: w for what all sequences share (weights, launches), c for what each
    has of its own (arithmetic, cache). At batch w / c half of the time is c's, and a batch larger by a little takes
    half of its growth in time. That is where a roofline max(w, c x batch) has its ridge. Between measured batches the
    growth is that of their ratio.
    """
    if "tpot_s" not in rows or "batch_size" not in rows:
        return None
    known = rows[rows["tpot_s"].notna() & rows["batch_size"].notna()].sort_values("batch_size", kind="stable")
    sizes, times = [int(size) for size in known["batch_size"]], [float(time) for time in known["tpot_s"]]
    if len(set(sizes)) < max(2, len(sizes)):
        return None
    slower = [after / before for before, after in pairwise(times)]
    paid = [times**2 >= after / before for times, (before, after) in zip(slower, pairwise(sizes), strict=True)]
    first = len(paid) - next((index for index, one in enumerate(reversed(paid)) if not one), len(paid))
    mfu, mbu = known["decode_mfu"].iloc[-1], known["decode_mbu"].iloc[-1]
    bound = "" if pd.isna(mfu) or pd.isna(mbu) else "arithmetic" if mfu > mbu else "memory"
    return Knee(sizes[first] if first < len(paid) else None, sizes, slower, bound)
