"""Rows and columns: for people (text, Markdown) and for machines (CSV, JSON)."""

from __future__ import annotations

import json as json_module
from typing import Any, Literal

import pandas as pd
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.record import Run
from gpuprof.render.console import to_text
from gpuprof.render.view import View, frame

_READABLE = [
    "module", "class", "modules", "params", "macs", "flops_forward", "flops_backward", "time_s", "time_forward_s",
    "time_backward_s", "flops_per_s_forward", "flops_per_s_backward", "mfu_forward", "mfu_backward", "mfu",
]  # fmt: skip
"""What people read of modules and classes; machines get every column."""


def text(run: Run, view: View) -> str:
    """An aligned table; columns that do not fit the width are left out, the rightmost first."""
    rows = _readable(frame(run, view))
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    room = view.width
    for column in rows:
        wide = min(max([len(str(column)), *(len(value) for value in rows[column])]), 56) + 2
        if room < wide:
            break
        room -= wide
        side: Literal["left", "right"] = "left" if _is_text(column) else "right"
        grid.add_column(str(column), justify=side, max_width=56, no_wrap=True, overflow="ellipsis")
    shown = list(rows)[: len(grid.columns)]
    for row in rows[shown].itertuples(index=False):
        grid.add_row(*(Text(value) for value in row))
    left_out = [str(column) for column in list(rows)[len(shown) :]]
    note = f"Not shown at this width: {', '.join(left_out)}\n" if left_out else ""
    return to_text(grid, view) + note


def markdown(run: Run, view: View) -> str:
    """A Markdown table with readable figures."""
    rows = _readable(frame(run, view))
    lines = [list(map(str, rows.columns)), [("---" if _is_text(c) else "---:") for c in rows]]
    lines += [[_cell(value) for value in row] for row in rows.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv(run: Run, view: View) -> str:
    """Raw figures: exact integers, seconds, FLOP/s, shares of 1; empty where unknown."""
    return frame(run, view).to_csv(index=False, lineterminator="\n")


def json(run: Run, view: View) -> str:
    """Raw figures as a list of objects; null where unknown."""
    rows = [
        {column: plain(value) for column, value in row.items()} for row in frame(run, view).to_dict(orient="records")
    ]
    return json_module.dumps(rows, indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A figure as JSON has it; None where it is not known."""
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("<", "&lt;")


def _is_text(column: Any) -> bool:
    return column in (
        "module", "class", "op", "ops", "kernel", "phase", "kind", "convention", "because", "causes",
    )  # fmt: skip


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    if "flops_forward" in rows:
        rows = rows[[column for column in _READABLE if column in rows]]
    columns = {column: [readable(column, value) for value in rows[column]] for column in rows}
    return pd.DataFrame(columns, dtype="object")


def readable(column: Any, value: Any) -> str:
    """A figure as its column's name says: seconds, FLOP/s, a share, bytes or a count."""
    name = str(column)
    if _is_text(name):
        return "(root)" if name == "module" and value == "" else str(value)
    number = None if value is None or pd.isna(value) else float(value)
    if name.endswith("_s") and "per_s" not in name:
        return units.duration(number)
    if name.startswith("flops_per_s"):
        return units.si(number, "FLOP/s")
    if name.startswith("mfu") or name.endswith("share") or name == "residual":
        return units.percent(number)
    if name == "factor":
        return units.MISSING if number is None else f"{number:.3f}"
    if name.endswith("_percent"):
        return units.percent(None if number is None else number / 100)
    if name.endswith("bytes"):
        return units.size(number)
    return units.si(number)
