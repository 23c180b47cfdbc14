"""A sweep as a table, for people and for machines, and as a chart."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.denominators import WORDS
from gpuprof.analysis.sweep import axis, rate, series
from gpuprof.errors import GpuprofError
from gpuprof.pictures import check_picture
from gpuprof.render.charts import save_picture
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.view import View
from gpuprof.sweep import DONE, NOT_RUN, SIZES, SWEPT

_LEFT_OUT = ("flops_per_s", "flops", "step_iqr_s", "device", "denominator", "peak_bytes")
"""Columns that a narrow terminal does without, the first one first."""


def text(table: pd.DataFrame, view: View) -> str:
    """An aligned table of what `gpuprof.analysis.sweep.sweep_table` gives, and what its figures are of."""
    columns = _readable(table)
    width = {name: max(len(header), *map(len, cells)) + 2 for name, (header, cells) in columns.items()}
    missing = []
    for name in _LEFT_OUT:
        if sum(width[name] for name in columns) > view.width and name in columns:
            missing.append(columns.pop(name)[0])
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name, (header, _) in columns.items():
        grid.add_column(header, justify="left" if _is_text(name) else "right", overflow="fold")
    for cells in zip(*(cells for _, cells in columns.values()), strict=True):
        grid.add_row(*map(Text, cells))
    note = f"Not shown at this width: {', '.join(missing)}\n" if missing else ""
    return to_text(grid, view) + note + "\n" + "".join(to_text(Text(line), view) for line in _notes(table))


def markdown(table: pd.DataFrame, view: View) -> str:
    """The same as a Markdown table with the notes below."""
    columns = _readable(table)
    lines = [[header for header, _ in columns.values()], ["---" if _is_text(name) else "---:" for name in columns]]
    lines += [list(cells) for cells in zip(*(cells for _, cells in columns.values()), strict=True)]
    rows = "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)
    return rows + "\n" + "".join(f"- {_escaped(line)}\n" for line in _notes(table))


def csv(table: pd.DataFrame, view: View) -> str:
    """Raw figures: exact integers, seconds, FLOP/s, shares of 1; empty where unknown."""
    return table.to_csv(index=False, lineterminator="\n")


def json(table: pd.DataFrame, view: View) -> str:
    """Raw figures as a list of objects; null where unknown."""
    rows = [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict(orient="records")]
    return json_module.dumps(rows, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[pd.DataFrame, View], str]] = {
    "text": text, "markdown": markdown, "csv": csv, "json": json
}  # fmt: skip
"""Every format by name."""


def _readable(table: pd.DataFrame) -> dict[str, tuple[str, list[str]]]:
    """Header and cells of each column that people read; what is the same everywhere stands in the notes."""
    column, unit = rate(table)
    headers = {
        **({"model": "model"} if table["model"].nunique() > 1 else {}),
        **{name: name.replace("_", "-") for name in SWEPT if name in table and name != "mode"},
        **({"mode": "mode"} if _varies(table, "mode") else {}),
        "step_s": "step", "step_iqr_s": "IQR", column: unit, "flops": "FLOPs", "flops_per_s": "FLOP/s", "mfu": "MFU",
        **({"denominator": "of"} if _varies(table, "denominator") else {}),
        "peak_bytes": "memory",
        **({"device": "device"} if _varies(table, "device") else {}),
        "status": "status",
    }  # fmt: skip
    return {name: (header, [_cell(name, value) for value in table[name]]) for name, header in headers.items()}


def _cell(name: str, value: Any) -> str:
    if _is_text(name) or (name in SWEPT and not pd.isna(value)):
        return str(value)
    number = None if pd.isna(value) else float(value)
    if name in ("step_s", "step_iqr_s"):
        return units.duration(number)
    if name == "mfu":
        return units.percent(number)
    return units.size(number) if name == "peak_bytes" else units.si(number)


def _is_text(name: str) -> bool:
    return name in ("model", "denominator", "device", "status") or (name in SWEPT and name not in SIZES)


def _varies(table: pd.DataFrame, name: str) -> bool:
    return len(_values(table, name)) > 1


def _values(table: pd.DataFrame, name: str) -> list[str]:
    return [value for value in dict.fromkeys(table[name]) if value]


def _notes(table: pd.DataFrame) -> list[str]:
    """What all figures share, and why a point has none."""
    lines = [f"{_subject(table)}."]
    if table["step_s"].notna().any():
        steps = " or ".join(str(number) for number in sorted(set(table["steps"].dropna())))
        lines.append(f"Step: median and interquartile range of {steps} timed. {_flops_of(table)}")
    shown = [name for name in _readable(table) if name in SWEPT]
    why: dict[str, list[str]] = {}
    for row in table[table["reason"] != ""].to_dict(orient="records"):
        options = [f"{name.replace('_', '-')} {row[name]}" for name in shown if not _empty(row[name])]
        told = row["status"] == DONE or row["reason"].startswith(row["status"])
        reason = row["reason"] if told else f"{row['status']}: {row['reason']}"
        why.setdefault(reason, []).append(", ".join([row["model"], *options]))
    for reason, points in why.items():
        more = f" and {len(points) - 1} more" if len(points) > 1 else ""
        lines.append(f"{points[0]}{more}: {reason}")
    return lines


def _empty(value: Any) -> bool:
    return bool(pd.isna(value)) or value == ""


def _subject(table: pd.DataFrame) -> str:
    names = [" and ".join(_values(table, name)) for name in ("model", "mode", "device")]
    return " · ".join(name for name in names if name)


def _flops_of(table: pd.DataFrame) -> str:
    """How FLOPs were counted, and what MFU is of."""
    parts = [f"FLOPs in convention {', '.join(_values(table, 'convention'))}"] if table["flops"].notna().any() else []
    if table["mfu"].notna().any():
        parts.append(f"MFU against {' or '.join(f'{n} ({WORDS[n]})' for n in _values(table, 'denominator'))}")
    elif parts and not table["reason"].str.contains("MFU withheld").any():
        parts.append("no MFU: no peak of the device is known")
    return "; ".join(parts) + "." if parts else ""


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def sweep_chart(table: pd.DataFrame, path: Path) -> Path:
    """Draw MFU and rate against the first option that varies, a line for each combination of the others.

    What was run and not measured is a cross at the bottom.

    Args:
        table: of `gpuprof.analysis.sweep.sweep_table`.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.

    Raises:
        GpuprofError: no such kind of picture, matplotlib is missing, or there is nothing to draw.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    table = table[table["status"] != NOT_RUN]
    x = axis(table)
    if x is None:
        raise GpuprofError("no chart: nothing varies in this sweep")
    column, unit = rate(table)
    panels = [(name, label) for name, label in (("mfu", "MFU, %"), (column, unit)) if table[name].notna().any()]
    if not panels:
        raise GpuprofError("no chart: no point of this sweep was measured")
    values = sorted(value for value in table[x].unique() if not _empty(value))
    # names have no distances: they stand at 0, 1, 2 ...
    places = {value: float(value if x in SIZES else index) for index, value in enumerate(values)}
    lines = series(table[table[x].isin(values)].sort_values(x, kind="stable"), x)
    figure = Figure(figsize=(5.4 * len(panels), 4.2 + 0.2 * math.ceil(len(lines) / 3)), dpi=150, layout="constrained")
    for number, (name, label) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _draw_lines(axes, lines, x, places, name)
        _draw_crosses(axes, lines, x, places, name)
        axes.set_xlabel(x.replace("_", "-"), fontsize=9)
        axes.set_title(label, fontsize=9.5, loc="left")
        axes.grid(color="#d8d8d8", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(f"{_subject(table)}\n{_flops_of(table)}", fontsize=9.5, x=0.01, ha="left", parse_math=False)
    if len(lines) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(3, len(lines)), fontsize=8, frameon=False
        )  # fmt: skip
    save_picture(figure, path)
    return path


def _draw_lines(axes: Any, lines: dict[str, pd.DataFrame], x: str, places: dict[Any, float], name: str) -> None:
    """A line per series of what was measured; unconnected points over names."""
    from matplotlib.ticker import NullLocator

    scale = 100.0 if name == "mfu" else 1.0
    for index, (label, rows) in enumerate(lines.items()):
        known = rows[rows[name].notna()]
        axes.plot(
            [places[value] for value in known[x]], [float(value) * scale for value in known[name]],
            color=f"C{index % 10}", marker="os^Dv*"[index // 10 % 6], markersize=5, linewidth=1.5,
            linestyle="-" if x in SIZES else "none", label=label,
        )  # fmt: skip
    if x not in SIZES:
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif all(after >= 2 * before for before, after in pairwise(places.values())):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(places.values()), [str(value) for value in places], fontsize=8.5)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.tick_params(axis="y", labelsize=8.5)
    if name != "mfu":
        axes.yaxis.set_major_formatter(lambda value, _: units.si(value, digits=3))


def _draw_crosses(axes: Any, lines: dict[str, pd.DataFrame], x: str, places: dict[Any, float], name: str) -> None:
    """A cross with the status for each point without a figure, above one another at the bottom."""
    bottom = axes.get_xaxis_transform()
    heights = dict.fromkeys(places, 0.035)
    for index, rows in enumerate(lines.values()):
        color = f"C{index % 10}"
        for row in rows[rows[name].isna() & (rows["status"] != DONE)].to_dict(orient="records"):
            value = row[x]
            at = (places[value], heights[value])
            heights[value] += 0.055
            side = -1 if list(places).index(value) >= len(places) / 2 else 1
            axes.plot(*at, transform=bottom, color=color, marker="x", clip_on=False, zorder=5)
            axes.annotate(
                row["status"], at, xycoords=bottom, xytext=(6 * side, 0), textcoords="offset points",
                ha="left" if side > 0 else "right", va="center", fontsize=7, color=color,
            )  # fmt: skip
