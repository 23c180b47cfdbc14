"""``gpuprof ceilings``: the best matmul and copy that this very device reaches."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuprof.cli import options as o
from gpuprof.errors import GpuprofError
from gpuprof.parallel.launch import require_one_process

if TYPE_CHECKING:
    import torch

    from gpuprof.profiler import Progress
    from gpuprof.record import Record

SCHEMA_VERSION = 1
_USUAL = {"cpu": ("bfloat16", "float16", "float32"), "cuda": ("bfloat16", "float16", "tf32", "float32", "float8")}
"""Dtypes that are measured unless some are named: those that models run in."""


def ceilings(
    device: Annotated[
        str | None,
        typer.Option(help="cuda, cuda:1 or cpu; by default cuda where there is one.", show_default=False),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="bf16, fp16, tf32, fp32, fp8, fp64 or int8, separated by commas; by default what models run in.",
        ),
    ] = "",
    shapes: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Also measure every matrix product of this saved run.",
            show_default=False,
            callback=o.existing,
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="About how long for each dtype, for all products of the run, and for copies.")
    ] = 5.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also save the figures here, as JSON.")
    ] = None,
    format: o.FormatOption = o.Format.text,
) -> None:
    """Measure the best matmul per dtype and the best copy of this very device.

    They are kept, and from then on a run on this device is also held against them: the denominator 'measured'.
    """
    require_one_process("ceilings")
    from gpuprof.cli.output import check_output, in_color, progress, terminal_width
    from gpuprof.workload.options import check_device, resolve_device

    check_output(output)
    check_device(device)
    dtypes = _dtypes(dtype)
    if not 0 < seconds < math.inf:
        raise GpuprofError(f"--seconds must be above 0 and finite, not {seconds}")
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.ceilings import render_ceilings
    from gpuprof.render.view import View

    run = load(shapes) if shapes else None
    with progress(quiet=False) as tell:
        found = measure(resolve_device(device), dtypes, run, seconds, tell)
    if output is not None:
        write_atomically(output, render_ceilings(found, "json"))
    print(render_ceilings(found, format.value, View(width=terminal_width(), color=in_color())), end="")


def measure(
    device: torch.device, dtypes: list[str], run: Record | None, seconds: float, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure the ceilings of a device and cache them.

    Args:
        device: CPU or CUDA.
        dtypes: which; if none are named those of the run's products, or else those that models run in.
        run: whose products to measure too, if any.
        seconds: about how long for each dtype, for all products of the run, and for copies.
        progress: told what is being measured.

    Returns:
        JSON-ready: device, torch, threads, seconds; matmul (a row per dtype, as the cache has it, with the datasheet's
        figure); copy; run and shapes (a row per product, most FLOPs first); not_measured (dtype and reason); cache (the
        file) or cache_failure.

    Raises:
        GpuprofError: nothing could be measured.
    """
    from gpuprof.analysis.ceilings import matmul_shapes
    from gpuprof.hardware import ceiling_cache
    from gpuprof.hardware.ceilings import DTYPES, measure_copy, measure_matmul, measure_shapes
    from gpuprof.hardware.device import describe, environment

    if device.type not in DTYPES:
        raise GpuprofError(f"--device {device} has nothing to measure; use cuda, cuda:0 or cpu")
    tell = progress or (lambda name, done, total: None)
    facts, software = describe(device), environment()
    key, datasheet = ceiling_cache.key(facts, software), facts["peaks"].get("datasheet", {})
    products = [] if run is None else matmul_shapes(run).to_dict(orient="records")
    found: dict[str, Any] = {
        "gpuprof": "ceilings", "schema_version": SCHEMA_VERSION,
        "device": {name: facts[name] for name in ("type", "name", "driver")},
        "torch": software["torch"], "threads": software["threads"], "seconds": seconds,
        "matmul": [], "copy": None, "run": run.workload["name"] if run else None, "shapes": [], "not_measured": [],
        "cache": None, "cache_failure": None,
    }  # fmt: skip
    rates: dict[str, float] = {}
    try:
        rates = {name: e["flops_per_s"] for name, e in ceiling_cache.read(key).items() if name != ceiling_cache.COPY}
    except GpuprofError as error:
        print(f"gpuprof: {error}", file=sys.stderr)

    def entry(name: str, measured: Callable[[], dict[str, Any]], peak: float | None) -> dict[str, Any]:
        tell(name, 0, 1)
        figures = _watched(device, measured)
        try:
            found["cache"] = str(ceiling_cache.store(key, name, figures))
        except GpuprofError as error:
            found["cache_failure"] = str(error)
        tell(name, 1, 1)
        rate = figures.get("flops_per_s") or figures["bytes_per_s"]
        return figures | {"datasheet": peak, "of_datasheet": rate / peak if peak else None}

    for dtype in dtypes or list(dict.fromkeys(row["dtype"] for row in products)) or _USUAL[device.type]:
        try:
            row = entry(dtype, partial(measure_matmul, device, dtype, seconds), datasheet.get(dtype))
        except GpuprofError as error:
            found["not_measured"].append({"dtype": dtype, "reason": str(error)})
            continue
        found["matmul"].append({"dtype": dtype, **row})
        rates[dtype] = row["flops_per_s"]
    if not found["matmul"]:
        raise GpuprofError(found["not_measured"][0]["reason"])
    if products:
        tell("shapes", 0, 1)
        wanted = [(row["dtype"], row["batch"], (row["m"], row["n"], row["k"])) for row in products]
        for product, figures in zip(products, measure_shapes(device, wanted, rates, seconds), strict=True):
            found["shapes"].append(product | figures | _shares(figures.get("flops_per_s"), product, rates, datasheet))
        tell("shapes", 1, 1)
    try:
        found["copy"] = entry(ceiling_cache.COPY, partial(measure_copy, device, seconds), facts["memory_bandwidth"])
    except GpuprofError as error:
        found["not_measured"].append({"dtype": ceiling_cache.COPY, "reason": str(error)})
    return found


def _shares(
    rate: float | None, product: dict[str, Any], rates: dict[str, float], datasheet: dict[str, float]
) -> dict[str, float | None]:
    peaks = {"of_ceiling": rates.get(product["dtype"]), "of_datasheet": datasheet.get(product["dtype"])}
    return {name: rate / peak if rate and peak else None for name, peak in peaks.items()}


def _watched(device: torch.device, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, with the state of the device meanwhile, as far as it is known, and the date."""
    from gpuprof.analysis.telemetry import summary
    from gpuprof.passes import telemetry
    from gpuprof.record import Record

    with telemetry.watch(device) as watched:
        figures = measured()
    figures.pop("times_s", None)
    state = summary(Record({}, {}, {}, telemetry=watched.rows()))
    figures |= {name: state[name] for name in ("sm_clock_mhz", "power_w", "limits")}
    return figures | {"date": datetime.now(UTC).isoformat(timespec="seconds")}


def _dtypes(wanted: str) -> list[str]:
    """Names as torch has them, of the names or short names in a list; none for none."""
    from gpuprof.hardware import peaks

    known = {name: full for full, short in peaks.DTYPES.items() if full != "float4" for name in (short, full)}
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        choice = ", ".join(short for full, short in peaks.DTYPES.items() if full != "float4")
        raise GpuprofError(f"no dtype '{unknown[0]}' to measure: choose from {choice}")
    return list(dict.fromkeys(known[name] for name in names))
