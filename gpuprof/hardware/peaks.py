"""Datasheet peaks of GPUs, from the table peaks.tsv beside this file. Torch-free.

A device is found by its exact name or not at all: a wrong peak makes a wrong MFU that looks right.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from numbers import Real
from typing import Any

from gpuprof.errors import GpuprofError

DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "tf32": "tf32",
    "float32": "fp32",
    "float64": "fp64",
    "float8": "fp8",
    "int8": "int8",
    "float4": "fp4",
}
"""Our dtype names and their short ones, as the table and the terminal use them."""

_MIG_SUFFIX = re.compile(r" mig \d.*$")


@dataclass(frozen=True)
class DevicePeaks:
    """What the datasheet promises of one torch device: dense, one multiply-accumulate is 2 FLOPs.

    Attributes:
        name: name of the row.
        pattern: regular expression that matches the whole lower-cased torch device name.
        architecture: e.g. ``Hopper``.
        compute_capability: e.g. ``9.0``, or AMD's ``gfx942``.
        sm_count: SMs (compute units on AMD); ``None`` where sources disagree.
        max_sm_clock_mhz: highest SM clock that NVML or the datasheet names, MHz.
        clock_implied_mhz: SM clock at which the datasheet quotes its tensor rates, MHz: on Hopper and B200
            lower than the highest.
        flops_per_s: peak by dtype, FLOP/s. ``float32`` is the vector rate, ``tf32`` the tensor one;
            ``float64`` is what a matmul reaches, so the tensor rate where there is one. 16-bit rates
            accumulate in float32.
        flops_per_clock_per_sm: FLOPs per clock and SM by dtype, for the peak at a measured clock.
        memory_bytes: memory; ``None`` where the name leaves it open. 10^9 bytes per GB.
        memory_bandwidth: bytes/s; ``None`` where the name leaves it open, or for a part of a device.
        confidence: high or medium: of the bf16 and fp16 figures.
        source: where the figures were read.
        remarks: what to know about them.
    """

    name: str
    pattern: str
    architecture: str
    compute_capability: str
    sm_count: int | None
    max_sm_clock_mhz: float | None
    clock_implied_mhz: float | None
    flops_per_s: dict[str, float]
    flops_per_clock_per_sm: dict[str, int]
    memory_bytes: float | None
    memory_bandwidth: float | None
    confidence: str
    source: str
    remarks: str


@cache
def all_peaks() -> list[DevicePeaks]:
    """Every row of the table, in its order."""
    lines = files(__package__).joinpath("peaks.tsv").read_text(encoding="utf-8").splitlines()
    rows = (line for line in lines if not line.startswith("#"))
    return [_peaks(row) for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)]


def find(device_name: str) -> DevicePeaks | None:
    """The row of the device that torch calls by this name, or ``None``: there is no nearest match.

    A MIG slice finds its parent; `for_device` scales it.
    """
    name = _MIG_SUFFIX.sub("", device_name.strip().lower())
    rows = [row for row in all_peaks() if re.fullmatch(row.pattern, name)]
    return rows[0] if len(rows) == 1 else None


def scaled(peaks: DevicePeaks, sm_count: int) -> DevicePeaks | None:
    """The peaks of a part of a device, such as a MIG slice: in proportion to its SMs.

    The memory figures are dropped: a slice's share of memory is not its share of SMs.

    Args:
        peaks: the row of the whole device.
        sm_count: SMs that the device at hand reports.

    Returns:
        The row itself when the counts agree or the table has none; ``None`` when the device has more SMs than
        its row, for then it is another part.
    """
    if peaks.sm_count is None or sm_count == peaks.sm_count:
        return peaks
    if not 0 < sm_count < peaks.sm_count:
        return None
    share = sm_count / peaks.sm_count
    return replace(
        peaks,
        sm_count=sm_count,
        flops_per_s={dtype: rate * share for dtype, rate in peaks.flops_per_s.items()},
        memory_bytes=None,
        memory_bandwidth=None,
        source=f"{peaks.source}; {sm_count} of {peaks.sm_count} SMs",
    )


def for_device(device_name: str, sm_count: int) -> DevicePeaks | None:
    """The peaks of the device with this name and number of SMs, or ``None`` where the table has none."""
    peaks = find(device_name)
    return None if peaks is None else scaled(peaks, sm_count)


def check_peak(tflops: float | None) -> None:
    """Whether a peak that a user gives, if any, may be one.

    Raises:
        GpuprofError: it may not.
    """
    if tflops is not None and not (isinstance(tflops, Real) and 0 < tflops < math.inf):
        raise GpuprofError(f"--peak-tflops must be above 0 and finite, not {tflops}")


def facts(device_name: str, sm_count: int | None) -> dict[str, Any]:
    """What a description of a device says of its datasheet: peaks, their source and bandwidth, or how to get a peak.

    Args:
        device_name: as torch names it.
        sm_count: its SMs; None where that is not known.
    """
    row = find(device_name) if sm_count is None else for_device(device_name, sm_count)
    if row is None:
        said = f"'{device_name}'" + (f" with {sm_count} SMs" if sm_count else "")
        remedy = f"no peak is known for {said}: give one with --peak-tflops, or measure it: 'gpuprof ceilings'"
        return {"peak_remedy": remedy}
    return {
        "peaks": {"datasheet": row.flops_per_s},
        "peak_source": f"{row.name}: {row.source}",
        "flops_per_clock_per_sm": row.flops_per_clock_per_sm,
        "memory_bandwidth": row.memory_bandwidth,
    }


def _peaks(row: dict[str, str]) -> DevicePeaks:
    per_clock = dict(pair.split("=") for pair in row["flops_per_clock_per_sm"].split())
    sm_count, memory, bandwidth = (_number(row[key]) for key in ("sm_count", "memory_gb", "memory_bandwidth_gbps"))
    return DevicePeaks(
        name=row["name"],
        pattern=row["device_name_regex"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        sm_count=None if sm_count is None else int(sm_count),
        max_sm_clock_mhz=_number(row["max_sm_clock_mhz"]),
        clock_implied_mhz=_number(row["clock_implied_mhz"]),
        flops_per_s={
            dtype: float(row[f"{short}_tflops"] + "e12") for dtype, short in DTYPES.items() if row[f"{short}_tflops"]
        },
        flops_per_clock_per_sm={dtype: int(per_clock[short]) for dtype, short in DTYPES.items() if short in per_clock},
        memory_bytes=None if memory is None else memory * 1e9,
        memory_bandwidth=None if bandwidth is None else bandwidth * 1e9,
        confidence=row["confidence"],
        source=row["source"],
        remarks=row["remarks"],
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
