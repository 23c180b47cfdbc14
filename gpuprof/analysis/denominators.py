"""What a FLOP rate is divided by: the peaks of the device, each by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gpuprof.hardware.counters import SCALAR_COLUMNS, TENSOR_COLUMNS
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import values

WORDS = {
    "given": "the peak given with --peak-tflops",
    "datasheet": "datasheet dense peak",
    "clock": "datasheet rate per clock at the SM clock measured in the window",
    "measured": "best matmul measured on this device",
}
"""Denominators, the preferred first, in words."""


STEADY = 0.5
"""Spread of a measured peak, 10th to 90th percentile over its value, from which it is doubted."""


def denominators(run: Record) -> dict[str, dict[str, float]]:
    """Peak FLOP/s per dtype under each denominator that is known for this run, the preferred first.

    Of a job those of all its devices together, as far as each has one.
    """
    if not run.is_job:
        return _of_device(run, run.device, sm_clock_hz(run))
    ranks = list(of_ranks(run).values())
    known = {name: [peaks.get(name, {}) for peaks in ranks] for name in ranks[0]}
    sums = {
        name: {dtype: sum(one[dtype] for one in peaks) for dtype in peaks[0] if all(dtype in one for one in peaks)}
        for name, peaks in known.items()
    }
    return {name: peaks for name, peaks in sums.items() if peaks}


def of_ranks(run: Record) -> dict[int, dict[str, dict[str, float]]]:
    """`denominators` of each rank of a job, of its own device; none of another run."""
    if not run.is_job:
        return {}
    clocks = run.ranks[run.ranks["quantity"] == "sm_clock_hz"].set_index("rank")["amount"]
    return {one["rank"]: _of_device(run, one["device"], clocks.get(one["rank"])) for one in run.device["ranks"]}


def _of_device(run: Record, device: dict[str, Any], clock: float | None) -> dict[str, dict[str, float]]:
    peaks: dict[str, dict[str, float]] = {}
    given = run.settings.get("peak_tflops")
    if given:
        dtypes = {_family(dtype) for dtype in set(run.column("ops", "dtype"))} | _executed_dtypes(run) | {"tf32"}
        peaks["given"] = dict.fromkeys(sorted(dtypes), given * 1e12)
    known = device.get("peaks", {})
    if "datasheet" in known:
        peaks["datasheet"] = known["datasheet"]
        rates, count = device.get("flops_per_clock_per_sm") or {}, device.get("sm_count")
        if clock and rates and count:
            peaks["clock"] = {dtype: rate * count * clock for dtype, rate in rates.items()}
    if "measured" in known:
        peaks["measured"] = known["measured"]
    return peaks


def _executed_dtypes(run: Record) -> set[str]:
    """Dtypes whose FLOPs the GPU's own counters tell."""
    columns = [*TENSOR_COLUMNS.items(), *SCALAR_COLUMNS.items()]
    return {dtype for dtype, column in columns if any(n is not None for n in run.column("counters", column))}


def denominator(run: Record) -> tuple[str, dict[str, float]]:
    """The preferred denominator by name, and its peaks; an empty name where none is known."""
    return next(iter(denominators(run).items()), ("", {}))


def sm_clock_hz(run: Record) -> float | None:
    """Median SM clock in the timing window, or None where it was not read.

    Of a job that of the rank with the lowest: the others wait for it.
    """
    if run.is_job:
        known = run.ranks.loc[run.ranks["quantity"] == "sm_clock_hz", "amount"]
        return float(known.min()) if len(known) == run.workload["world"] else None
    if not run.has("telemetry"):
        return None
    telemetry = run.telemetry
    clocks = telemetry.loc[telemetry["quantity"] == "sm_clock", ["unit", "value"]].dropna()
    if clocks.empty:
        return None
    factor = {"Hz": 1.0, "MHz": 1e6}[clocks["unit"].iloc[0]]
    return float(clocks["value"].median()) * factor


def peak_dtype(dtype: str, kind: str, run: Record) -> str:
    """The dtype whose peak an operator of this dtype and kind runs against.

    float32 on tensor cores is TF32, which cuBLAS and cuDNN are allowed separately; every 8-bit float format runs at
    one rate, every 8-bit integer at another, and complex numbers at that of the real ones they are made of.
    """
    dtype = _family(dtype)
    allowed = "allow_tf32_cudnn" if kind in ("convolution", "recurrent") else "allow_tf32_matmul"
    if dtype == "float32" and run.environment.get(allowed) and run.device.get("type") == "cuda":
        return "tf32"
    return dtype


_FAMILIES = {
    "complex32": "float16", "complex64": "float32", "complex128": "float64",
    "uint8": "int8", "qint8": "int8", "quint8": "int8",
}  # fmt: skip


def _family(dtype: str) -> str:
    return "float8" if dtype.startswith("float8") else _FAMILIES.get(dtype, dtype)


def ideal_seconds(ops: pd.DataFrame, flops: str, peaks: dict[str, float], run: Record) -> pd.Series:
    """Time that the matmul FLOPs of each row would take at the peak of their dtype; missing where there is none.

    What every MFU is made of, so none is made of it where that is `gpuprof.analysis.consistency.withheld`.

    Args:
        ops: rows of the ``ops`` table.
        flops: name of the column of FLOPs.
        peaks: FLOP/s by dtype.
        run: the run that the rows are of.
    """
    works = zip(ops["dtype"], ops["kind"], strict=True)
    return pd.Series(ideal_of(works, values(ops[flops]), peaks, run), index=ops.index, dtype="float64")


def ideal_of(
    works: Iterable[tuple[str, str]], flops: Iterable[int | None], peaks: dict[str, float], run: Record
) -> list[float]:
    """The same of plain values: NaN where there is no peak.

    Args:
        works: dtype and kind of each row.
        flops: FLOPs of each.
        peaks: FLOP/s by dtype.
        run: the run that the rows are of.
    """
    rates: dict[tuple[str, str], float] = {}
    seconds = []
    for work, count in zip(works, flops, strict=True):
        if work not in rates:
            rates[work] = peaks.get(peak_dtype(*work, run), math.nan)
        seconds.append(count / rates[work] if count and count > 0 else 0.0)
    return seconds
