"""``gpuprof devices``: the peak table, with its sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuprof.cli import options as o
from gpuprof.errors import GpuprofError
from gpuprof.hardware import peaks

if TYPE_CHECKING:
    from gpuprof.hardware.peaks import DevicePeaks


def devices(
    name: Annotated[str, typer.Argument(help="Part of a name, as torch or the table gives it.")] = "",
    format: Annotated[o.Format, typer.Option("--format", help="How to print the table.")] = o.Format.text,
    dtype: Annotated[str, typer.Option("--dtype", help="Only this dtype, e.g. bfloat16 or bf16.")] = "",
) -> None:
    """List the peaks gpuprof knows: dense TFLOP/s per torch device, with their sources.

    The GPUs of this machine are marked.
    """
    from gpuprof.hardware import nvml

    dtypes = _dtypes(dtype)
    here = {row.name for gpu in nvml.devices() if (row := peaks.find(gpu))}
    rows = [row for row in peaks.all_peaks() if _matches(row, name) and any(d in row.flops_per_s for d in dtypes)]
    if not rows:
        what = f"{dtype or 'peak'} of '{name}'" if name else f"{dtype} peak"
        raise GpuprofError(f"no {what} is in the table: give --peak-tflops")
    printers = {o.Format.text: _text, o.Format.csv: _csv, o.Format.json: _json, o.Format.markdown: _markdown}
    printers[format]([_figures(row, dtypes, row.name in here) for row in rows], dtypes, bool(name))


def _dtypes(wanted: str) -> list[str]:
    if not wanted:
        return list(peaks.DTYPES)
    found = [dtype for dtype, short in peaks.DTYPES.items() if wanted in (dtype, short)]
    if not found:
        raise GpuprofError(f"no dtype '{wanted}': choose from {', '.join(peaks.DTYPES)}")
    return found


def _matches(row: DevicePeaks, name: str) -> bool:
    return name.lower() in row.name.lower() or name.lower() in row.architecture.lower() or peaks.find(name) is row


def _figures(row: DevicePeaks, dtypes: list[str], here: bool) -> dict[str, Any]:
    """One row as plain values; rates in TFLOP/s."""
    rates = {dtype: row.flops_per_s.get(dtype) for dtype in dtypes}
    return {
        "name": row.name,
        "this_machine": here,
        "architecture": row.architecture,
        "compute_capability": row.compute_capability,
        "sm_count": row.sm_count,
        **{f"{dtype}_tflops": None if rate is None else round(rate / 1e12, 4) for dtype, rate in rates.items()},
        "memory_bandwidth_gbps": None if row.memory_bandwidth is None else row.memory_bandwidth / 1e9,
        "confidence": row.confidence,
        "source": row.source,
        "remarks": row.remarks,
    }


def _text(rows: list[dict[str, Any]], dtypes: list[str], detailed: bool) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    table.add_column("device", no_wrap=True)
    for dtype in dtypes:
        table.add_column(peaks.DTYPES[dtype], justify="right", no_wrap=True)
    table.add_column("GB/s", justify="right", no_wrap=True)
    for row in rows:
        figures = [row[f"{dtype}_tflops"] for dtype in dtypes] + [row["memory_bandwidth_gbps"]]
        table.add_row(f"{'* ' if row['this_machine'] else '  '}{row['name']}", *map(_figure, figures))
    console.print(table)
    console.print(Text("Dense TFLOP/s per torch device. A multiply-accumulate is 2. * is in this machine."))
    if not detailed:
        console.print(Text("Sources and remarks: 'gpuprof devices NAME', or --format csv, json, markdown."))
        return
    for row in rows:
        console.print(Text(f"\n{row['name']}: {row['architecture']}, confidence {row['confidence']}", style="bold"))
        console.print(Padding(Text(f"source: {row['source']}\nremarks: {row['remarks']}"), (0, 0, 0, 2)))


def _csv(rows: list[dict[str, Any]], dtypes: list[str], detailed: bool) -> None:
    import csv
    import sys

    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _json(rows: list[dict[str, Any]], dtypes: list[str], detailed: bool) -> None:
    import json

    typer.echo(json.dumps(rows, indent=2))


def _markdown(rows: list[dict[str, Any]], dtypes: list[str], detailed: bool) -> None:
    columns = list(rows[0])
    typer.echo(f"| {' | '.join(columns)} |")
    typer.echo(f"|{'---|' * len(columns)}")
    for row in rows:
        typer.echo(f"| {' | '.join(_figure(value).replace('|', chr(92) + '|') for value in row.values())} |")


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:g}"
    return str(value)
