"""A table of Nsight Compute becomes a record: what each kernel executed and moved, and nothing of any model."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.hardware import counters, ncu
from gpuprof.hardware.facts import recorded_gpu
from gpuprof.record import PassOutcome, Record
from gpuprof.schema import UNATTRIBUTED, table

_NAME, _SMS, _MEMORY, _CLOCK = (
    f"device__attribute_{what}"
    for what in ("display_name", "multiprocessor_count", "total_memory", "max_gpu_frequency_khz")
)
_COLLECT = (
    "collect them with ncu --metrics dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum and, of FLOPs, "
    "sm__ops_path_tensor_src_bf16_dst_fp32.sum or its like"
)
_SKIPPED = {
    "count": "a table of Nsight Compute has kernels, but no operators, shapes and modules",
    "time": "a table of Nsight Compute has no undisturbed step",
    "trace": "a table of Nsight Compute has kernels that ran one by one",
}


def read_table(
    path: str | os.PathLike[str], device_name: str | None = None, peak_tflops: float | None = None
) -> Record:
    """Make a run of a ``--page raw --csv`` table of Nsight Compute, plain or gzip.

    Args:
        path: the table; what was printed before it may be there.
        device_name: as torch names it, where the table does not say.
        peak_tflops: peak of the device in TFLOP/s, for every dtype, instead of the table's.

    Returns:
        A run with the ``counters`` table alone: its kernels are no operator's and no module's. A column of which not
        every metric was collected is missing, never 0. The facts of the pass ``counters`` say which are there.

    Raises:
        GpuprofError: the file is no such table, has no kernel, or none of the metrics that gpuprof reads.
    """
    path = Path(path)
    text = _text(path)
    known = [counter.metric for counter in counters.all_counters()]
    try:
        launches = ncu.read_csv(text, known)
    except GpuprofError as error:
        raise GpuprofError(f"{path}: {error}") from error
    if not launches:
        raise GpuprofError(
            f"{path} has no kernel of Nsight Compute: print it with 'ncu --import REPORT --csv --page raw'"
        )
    said = ncu.read_texts(text, ["CC", _NAME, _SMS, _MEMORY, _CLOCK])
    capability = _only(said, "CC")
    metrics = [metric for metric in launches[0].metrics if metric != ncu.REPLAYS]
    columns = counters.whole_columns_of(metrics, capability or "")
    if not columns:
        raise GpuprofError(f"{path} has no metric that gpuprof reads, of FLOPs, bytes or time: {_COLLECT}")
    nobody = {"module": UNATTRIBUTED, "phase": "other"}
    rows = [
        {"number": number, **nobody, "kernel": launch.kernel, "grid": launch.grid, "block": launch.block}
        | counters.values(launch.metrics, columns)
        for number, launch in enumerate(launches)
    ]
    replays = [count for launch in launches if (count := launch.metrics.get(ncu.REPLAYS)) is not None]
    facts = {
        "launches": len(rows),
        "columns": list(columns),
        "replays": [int(max(replays))] if replays else [],
        "not_collected": [
            column for column in dict.fromkeys(c.column for c in counters.all_counters()) if column not in columns
        ],
    }
    return Record(
        workload={"name": _stem(path), "mode": "kernels", "source": "ncu", "file": path.name},
        device=_device(said, capability, device_name),
        environment={"date": None},
        settings={"convention": "causal", "peak_tflops": peak_tflops},
        passes={
            "counters": PassOutcome("done", facts=facts),
            **{name: PassOutcome("skipped", why, "profile the step with gpuprof") for name, why in _SKIPPED.items()},
        },
        counters=table("counters", rows),
    )


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", errors="replace")
    except (OSError, EOFError, zlib.error) as error:
        raise GpuprofError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".csv") or path.name


def _only(said: dict[str, list[str]], column: str) -> str | None:
    """What a column says of all kernels; None where it is not there, or says several things."""
    cells = said.get(column, [])
    return cells[0] if len(cells) == 1 else None


def _number(said: dict[str, list[str]], column: str) -> int | None:
    try:
        return round(float((_only(said, column) or "").replace(",", "")))
    except ValueError:
        return None


def _device(said: dict[str, list[str]], capability: str | None, given: str | None) -> dict[str, Any]:
    """The facts of the device, as far as the table tells."""
    clock_khz = _number(said, _CLOCK)
    parts = (capability or "").split(".")
    return recorded_gpu(
        [given] if given else said.get(_NAME, []),
        "table",
        compute_capability=[int(part) for part in parts] if all(map(str.isdecimal, parts)) else None,
        sm_count=_number(said, _SMS),
        memory_bytes=_number(said, _MEMORY),
        max_sm_clock_mhz=clock_khz and clock_khz / 1e3,
    )
