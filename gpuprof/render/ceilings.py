"""Measured ceilings as text: the best matmul per dtype, a run's own products, the best copy."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.errors import GpuprofError
from gpuprof.render.console import to_text
from gpuprof.render.view import View

Row = dict[str, Any]

_STEADY = 0.5
"""Spread from which a ceiling is doubted."""

_FLAT = [
    "what", "dtype", "batch", "m", "n", "k", "bytes", "calls", "share", "flops_per_s", "bytes_per_s", "samples",
    "spread", "of_ceiling", "of_datasheet", "sm_clock_mhz", "power_w", "limits", "date", "reason",
]  # fmt: skip
"""Columns of the CSV."""


def render_ceilings(found: dict[str, Any], format: str = "text", view: View | None = None) -> str:
    """What `gpuprof.cli.ceilings.measure` found, in one of the `FORMATS`; of the view, width and color count.

    Raises:
        GpuprofError: no such format.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    return FORMATS[format](found, view or View())


def text(found: dict[str, Any], view: View) -> str:
    """Aligned tables, and sentences below them."""
    parts: list[RenderableType] = [Text(_device(found), style="bold"), Text("")]
    for columns in _tables(found):
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name in columns:
            grid.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=name not in _PROSE)
        for row in zip(*columns.values(), strict=True):
            grid.add_row(*map(Text, row))
        parts += [grid, Text("")]
    return to_text(Group(*parts, *map(Text, _sentences(found))), view)


def markdown(found: dict[str, Any], view: View) -> str:
    """The same as Markdown."""
    lines = [_device(found), ""]
    for columns in _tables(found):
        lines += [_piped(columns), _piped("---:" if name in _RIGHT else "---" for name in columns)]
        lines += [_piped(row) for row in zip(*columns.values(), strict=True)] + [""]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in _sentences(found))]) + "\n"


def csv(found: dict[str, Any], view: View) -> str:
    """One row for each thing that was measured or could not be: raw figures, shares of 1, empty where unknown."""
    rows = [{"what": "matmul", **row, **dict(zip("mnk", row["shape"], strict=True))} for row in found["matmul"]]
    rows += [{"what": "shape", **row} for row in found["shapes"]]
    rows += [{"what": "copy", **found["copy"]}] if found["copy"] else []
    rows += [{"what": "not measured", **row} for row in found["not_measured"]]
    lines = io.StringIO()
    writer = csv_module.DictWriter(lines, _FLAT, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"limits": "; ".join(row.get("limits", ()))} for row in rows)
    return lines.getvalue()


def json(found: dict[str, Any], view: View) -> str:
    """Raw figures, null where unknown."""
    return json_module.dumps(found, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any], View], str]] = {
    "text": text,
    "json": json,
    "markdown": markdown,
    "csv": csv,
}
"""Every format by name."""


def _device(found: dict[str, Any]) -> str:
    device = found["device"]
    software = f"driver {device['driver']}" if device["type"] == "cuda" else units.number(found["threads"], "thread")
    return f"{device['name']} · {software} · torch {found['torch']}"


_MATMUL: dict[str, Callable[[Row], str]] = {
    "dtype": lambda row: row["dtype"],
    "TFLOP/s": lambda row: units.significant(row["flops_per_s"] / 1e12),
    "M x N x K": lambda row: "x".join(map(str, row["shape"])),
    "spread": lambda row: units.percent(row["spread"]),
    "of datasheet": lambda row: units.percent(row["of_datasheet"]),
    "date": lambda row: row["date"][:10],
    "state": lambda row: _state(row),
}
_SHAPES: dict[str, Callable[[Row], str]] = {
    "dtype": lambda row: row["dtype"],
    "M x N x K": lambda row: (f"{row['batch']} of " if row["batch"] > 1 else "") + f"{row['m']}x{row['n']}x{row['k']}",
    "calls": lambda row: str(row["calls"]),
    "of FLOPs": lambda row: units.percent(row["share"]),
    "TFLOP/s": lambda row: units.significant(row["flops_per_s"] / 1e12) if "flops_per_s" in row else units.MISSING,
    "of ceiling": lambda row: units.percent(row.get("of_ceiling")),
    "of datasheet": lambda row: units.percent(row.get("of_datasheet")),
    "not measured": lambda row: row.get("reason", units.MISSING),
}
_RIGHT = {"TFLOP/s", "calls", "of FLOPs", "spread", "of ceiling", "of datasheet"}
_PROSE = {"state", "not measured"}


def _tables(found: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
    """Columns of each table by name, without those in which nothing is known."""
    for columns, rows in ((_MATMUL, found["matmul"]), (_SHAPES, found["shapes"])):
        if rows:
            cells = {name: [show(row) for row in rows] for name, show in columns.items()}
            yield {name: values for name, values in cells.items() if any(value != units.MISSING for value in values)}


def _sentences(found: dict[str, Any]) -> Iterator[str]:
    copy = found["copy"]
    if copy:
        how = f"copies of {units.size(copy['bytes'])}, read and written; spread {units.percent(copy['spread'])}"
        known = [f"{units.percent(copy['of_datasheet'])} of datasheet"] if copy["of_datasheet"] else []
        known += [_state(copy)] if _state(copy) != units.MISSING else []
        yield f"Copy: {', '.join([units.si(copy['bytes_per_s'], 'B/s'), *known])} ({how})."
    if found["shapes"]:
        done = sum(row["share"] for row in found["shapes"] if "flops_per_s" in row)
        yield f"The products measured are {units.percent(done)} of the matmul FLOPs of {found['run']}."
    for row in found["matmul"]:
        if row["spread"] > _STEADY:
            yield f"{row['dtype']} varied by {row['spread']:.0%} meanwhile: measure again while nothing else runs."
    yield from (f"Not measured: {row['dtype']}: {row['reason']}." for row in found["not_measured"])
    if found["cache"]:
        yield f"Cached in {found['cache']}: 'gpuprof profile' holds runs on this device against it, as 'measured'."
    else:
        yield f"Not cached: {found['cache_failure']}."


def _state(row: Row) -> str:
    """Clock and power, and what held the device back."""
    known = [(row["sm_clock_mhz"], "MHz"), (row["power_w"], "W")]
    return ", ".join([f"{value:,.0f} {unit}" for value, unit in known if value] + row["limits"]) or units.MISSING


def _piped(cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"
