"""A sweep as a table, for people and for machines, and as a chart."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.denominators import WORDS
from gpuprof.analysis.sweep import Knee, axis, knee, rate, series
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.pictures import check_picture
from gpuprof.render import palette
from gpuprof.render.charts import save_picture
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.view import View
from gpuprof.sweep import DONE, NOT_RUN, SIZES, SWEPT

_LEFT_OUT = (
    "flops_per_s", "flops", "step_iqr_s", "tpot_p99_s", "prefill_mfu", "device", "denominator", "tokens_per_s",
    "peak_bytes",
)  # fmt: skip
"""Columns that a narrow terminal does without, the first one first."""
_OF_GENERATIONS = {
    "tokens_per_s": "tokens/s", "ttft_s": "TTFT", "prefill_mfu": "prefill MFU", "tpot_s": "TPOT", "tpot_p99_s": "p99",
    "decode_tokens_per_s": "decode tokens/s", "decode_mbu": "decode MBU",
    "decode_mfu": "decode MFU",
}  # fmt: skip
"""What is shown where every point is a generation, whose prefill and decode have no figure in common."""


_RULE = (
    "The knee is the smallest batch from which on more than half of what a larger one gains is paid for in time per "
    "token: that grows by more than the square root of what the batch does."
)


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
    figures = {
        "step_s": "step", "step_iqr_s": "IQR", column: unit, "flops": "FLOPs", "flops_per_s": "FLOP/s", "mfu": "MFU",
        **({"denominator": "of"} if _varies(table, "denominator") else {}),
    }  # fmt: skip
    headers = {
        **({"model": "model"} if table["model"].nunique() > 1 else {}),
        **{name: name.replace("_", "-") for name in SWEPT if name in table and name != "mode"},
        **({"mode": "mode"} if _varies(table, "mode") else {}),
        **(_OF_GENERATIONS if _generates(table) else figures),
        "peak_bytes": "memory",
        **({"device": "device"} if _varies(table, "device") else {}),
        "status": "status",
    }  # fmt: skip
    return {name: (header, [_cell(name, value) for value in table[name]]) for name, header in headers.items()}


def _cell(name: str, value: Any) -> str:
    if _is_text(name) or (name in SWEPT and not pd.isna(value)):
        return str(value)
    number = None if pd.isna(value) else float(value)
    if name in ("step_s", "step_iqr_s", "ttft_s", "tpot_s", "tpot_p99_s"):
        return units.duration(number)
    if name.endswith(("mfu", "mbu")):
        return units.percent(number)
    return units.size(number) if name == "peak_bytes" else units.si(number)


def _is_text(name: str) -> bool:
    return name in ("model", "denominator", "device", "status") or (name in SWEPT and name not in SIZES)


def _generates(table: pd.DataFrame) -> bool:
    """Whether every point that was measured is a generation, with steps of decoding."""
    measured = table[table["step_s"].notna()]
    return "tpot_s" in table and bool(len(measured)) and bool(measured["tpot_s"].notna().all())


def _varies(table: pd.DataFrame, name: str) -> bool:
    return len(_values(table, name)) > 1


def _values(table: pd.DataFrame, name: str) -> list[str]:
    return [value for value in dict.fromkeys(table[name]) if value]


def _notes(table: pd.DataFrame) -> list[str]:
    """What all figures share, and why a point has none."""
    lines = [f"{_subject(table)}."]
    if table["step_s"].notna().any():
        steps = " or ".join(str(number) for number in sorted(set(table["steps"].dropna())))
        if _generates(table):
            lines.append(
                f"Of {steps} generations: TTFT to the end of the prefill, TPOT of a step of decoding (a token of each "
                f"sequence), medians, p99 over all of them; tokens/s are new tokens over the whole. {_flops_of(table)}"
            )
            lines += _knees(table)
        else:
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


def _knees(table: pd.DataFrame) -> list[str]:
    """From which batch on decoding gets slower as fast as it gets more done, for each series of batches."""
    if "batch_size" not in table or table["batch_size"].nunique() < 2:
        return []
    found = {label: knee(rows) for label, rows in series(table, "batch_size").items()}
    lines = [f"{label}: {_of_knee(one)}" if label else _of_knee(one) for label, one in found.items() if one is not None]
    return [*lines, _RULE] if lines else []


def _of_knee(found: Knee) -> str:
    growth = [
        f"{before} to {after}: {times:.2f} x"
        for times, (before, after) in zip(found.slower, pairwise(found.sizes), strict=True)
    ]
    grows = f"time per token from {', '.join(growth)}"
    last = found.sizes[-1]
    if found.batch_size is None:
        return f"No knee up to batch {last}: larger ones still give more than they cost ({grows})."
    where = "Knee at batch" if found.batch_size != found.sizes[0] else "Knee at or below batch"
    bound = f"; at batch {last} decoding is bound by {found.bound}" if found.bound else ""
    return f"{where} {found.batch_size}{bound} ({grows})."


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
        if _generates(table) and (names := _values(table, "bandwidth")):
            parts.append(f"MBU against the {' or '.join(names)} bandwidth")
    elif parts and not table["reason"].str.contains("MFU withheld").any():
        parts.append("no MFU: no peak of the device is known")
    return "; ".join(parts) + "." if parts else ""


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def sweep_chart(table: pd.DataFrame, path: Path) -> Path:
    """Draw MFU and rate against the first option that varies, a line for each combination of the others.

    What was run and not measured is a cross at the bottom. Of generations alone tokens/s are drawn against the time per
    token, and beside it MBU and MFU of decoding.

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
    panels = _panels(table)
    if not panels:
        raise GpuprofError("no chart: no point of this sweep was measured")
    values = sorted(value for value in table[x].unique() if not _empty(value))
    # names have no distances: they stand at 0, 1, 2 ...
    places = {value: float(value if x in SIZES else index) for index, value in enumerate(values)}
    lines = series(table[table[x].isin(values)].sort_values(x, kind="stable"), x)
    figure = Figure(figsize=(5.4 * len(panels), 4.2 + 0.2 * math.ceil(len(lines) / 3)), dpi=150, layout="constrained")
    for number, (name, label) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        if name == "tpot_s":
            _draw_trade(axes, lines, x)
        else:
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


def _color(index: int) -> str:
    return palette.SERIES[index % len(palette.SERIES)]


def _marker(index: int) -> str:
    return "os^Dv*"[index // len(palette.SERIES) % 6]


def _panels(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The column that each panel is of, and its title; those of which nothing is known are left out."""
    panels = [("mfu", "MFU, %"), rate(table)]
    if _generates(table):
        panels = [
            ("tpot_s", "decode tokens/s against TPOT"), ("decode_mbu", "MBU of decode, %"),
            ("decode_mfu", "MFU of decode, %"),
        ]  # fmt: skip
    return [(name, label) for name, label in panels if table[name].notna().any()]


def _draw_trade(axes: Any, lines: dict[str, pd.DataFrame], x: str) -> None:
    """Tokens/s of decoding against the time per token, each point with its size, the knee ringed."""
    for index, (label, rows) in enumerate(lines.items()):
        color, known = _color(index), rows[rows["tpot_s"].notna()]
        points = {
            value: (float(time) * 1e3, float(rate))
            for value, time, rate in zip(known[x], known["tpot_s"], known["decode_tokens_per_s"], strict=True)
        }
        axes.plot(
            *zip(*points.values(), strict=True), color=color, marker=_marker(index), markersize=5,
            linewidth=1.5, label=label,
        )  # fmt: skip
        for value, at in points.items():
            axes.annotate(str(value), at, xytext=(5, -10), textcoords="offset points", fontsize=7.5, color=color)
        found = knee(rows) if x == "batch_size" else None
        if found is not None and found.batch_size is not None:
            at = points[found.batch_size]
            axes.plot(*at, color=color, marker="o", markersize=13, fillstyle="none", linestyle="none")
            axes.annotate(
                "knee", at, xytext=(-10, 8), textcoords="offset points", ha="right", fontsize=8.5, color=color
            )
    axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.tick_params(labelsize=8.5)
    axes.yaxis.set_major_formatter(lambda value, _: units.si(value, digits=3))
    axes.set_xlabel(f"TPOT, ms; numbers: {x.replace('_', '-')}", fontsize=9)


def _draw_lines(axes: Any, lines: dict[str, pd.DataFrame], x: str, places: dict[Any, float], name: str) -> None:
    """A line per series of what was measured; unconnected points over names."""
    from matplotlib.ticker import NullLocator

    scale = 100.0 if name.endswith(("mfu", "mbu")) else 1.0
    for index, (label, rows) in enumerate(lines.items()):
        known = rows[rows[name].notna()]
        axes.plot(
            [places[value] for value in known[x]], [float(value) * scale for value in known[name]],
            color=_color(index), marker=_marker(index), markersize=5, linewidth=1.5,
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
    if scale == 1.0:
        axes.yaxis.set_major_formatter(lambda value, _: units.si(value, digits=3))


def _draw_crosses(axes: Any, lines: dict[str, pd.DataFrame], x: str, places: dict[Any, float], name: str) -> None:
    """A cross with the status for each point without a figure, above one another at the bottom."""
    bottom = axes.get_xaxis_transform()
    heights = dict.fromkeys(places, 0.035)
    for index, rows in enumerate(lines.values()):
        color = _color(index)
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
