"""Two runs beside one another: what changed in a sentence, the metrics, and whose kernels moved."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from math import nan
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.check import Check
from gpuprof.analysis.comparison import compiled
from gpuprof.analysis.regression import FEWEST
from gpuprof.late import pd
from gpuprof.render.check_tables import (
    HEADS,
    TOP,
    escaped,
    markdown_rows,
    metric_rows,
    moved_markdown,
    moved_text,
    notes_of,
    number_of,
    part_names,
    signed_duration,
    signed_percent,
    text_grid,
    wrapped,
)
from gpuprof.render.console import to_text
from gpuprof.render.regression import raw
from gpuprof.render.view import View

_SAID = 4  # parts that a summary names


def summary(check: Check) -> str:
    """How the kernel time changed and what most of it is, in a sentence; empty without a trace of both."""
    if len(check.gained):
        return _compilation(check)
    by, table = next(iter(check.moved.items()), ("", pd.DataFrame()))
    if table.empty:
        return ""
    before, after = (float(table[f"{side}_s"].sum()) for side in ("base", "head"))
    names = [run.device.get("name") or "unknown device" for run in (check.base, check.head)]
    sides = [f"{name} " if names[0] != names[1] else "" for name in names]
    change = (
        f"{signed_duration(after - before)} ({signed_percent(after / before - 1)})"
        if before and after != before
        else "the same"
    )
    text = f"{sides[0]}{units.duration(before)} -> {sides[1]}{units.duration(after)} of kernel time, {change}"
    moved = table[table["status"] != "same"]
    most = moved.reindex(moved["change_s"].abs().sort_values(ascending=False, kind="stable").index).head(_SAID)
    said = []
    for row in most.to_dict(orient="records"):
        words = [row["status"]] if row["status"] in ("new", "gone") else []
        words += [] if pd.isna(row["share"]) else [f"{units.percent(row['share'])} of the difference"]
        names_of = part_names(row, by)
        name = (
            f"{units.shortened(names_of[1])} of {names_of[0]}"
            if by == "op-kernel"
            else units.shortened(" ".join(names_of))
        )
        said.append(f"{name} {signed_duration(row['change_s'])}" + (f" ({', '.join(words)})" if words else ""))
    return f"{text}: {'; '.join(said)}" if said else text


def _compilation(check: Check) -> str:
    """What compilation gained, in a sentence, and of which parts."""
    table = check.gained
    eager, head = (check.head, check.base) if compiled(check.base) else (check.base, check.head)
    steps = {id(run): seconds for run, seconds in ((check.base, "m0"), (check.head, "value"))}
    step = next((one for one in check.verdicts if one.metric == "step_s"), None)
    before, after = (getattr(step, steps[id(run)]) if step else nan for run in (eager, head))
    what = "step" if step else "kernel time"
    if not step:
        before, after = (float(table[f"{side}_s"].sum()) for side in ("eager", "compiled"))
    said = f"compilation: {what} {_times(before / after)}" if before and after else "compilation"
    way, rows = ("gained", table) if after <= before else ("lost", table.iloc[::-1])
    named = []
    for row in rows.head(3).to_dict(orient="records"):
        if row["gained_s"] > 0 if way == "gained" else row["gained_s"] < 0:
            rate = "" if pd.isna(row["speedup"]) else f" ({_times(row['speedup'])})"
            named.append(f"{_part(row)} {signed_duration(-row['gained_s'])}{rate}")
    said += f", {units.duration(before)} -> {units.duration(after)}"
    return f"{said}; most {way} in {', '.join(named)}" if named else said


def _times(speedup: float) -> str:
    """``1.42 x faster``, or ``1.10 x slower``."""
    return f"{speedup:.2f} x faster" if speedup >= 1 else f"{1 / speedup:.2f} x slower"


def _part(row: dict[Any, Any]) -> str:
    name = row[next(iter(row))]
    return str(name) or "(root)"


_GAINED = ("eager", "compiled", "change", "speed-up", "shared kernels", "kernels", "FLOPs")


def _gained_rows(table: pd.DataFrame, top: int) -> list[list[str]]:
    """Cells of the parts whose time compilation changed most."""
    order = table["gained_s"].abs().sort_values(ascending=False, kind="stable").index
    rows = []
    for row in table.loc[order].head(top).to_dict(orient="records"):
        before, after = (units.si(number_of(row[f"{side}_kernels"])) for side in ("eager", "compiled"))
        flops = [number_of(row[f"{side}_flops"]) or 0.0 for side in ("eager", "compiled")]
        rows.append([
            _part(row), units.duration(row["eager_s"]), units.duration(row["compiled_s"]),
            signed_duration(-row["gained_s"]),
            units.MISSING if pd.isna(row["speedup"]) else f"{row['speedup']:.2f} x",
            units.percent(row["fused_share"]) if row["fused_share"] > 0 else "",
            before if before == after else f"{before} to {after}",
            "same" if flops[0] == flops[1] else f"{units.si(flops[0])} to {units.si(flops[1])}",
        ])  # fmt: skip
    return rows


def _gained_title(table: pd.DataFrame, shown: int) -> str:
    which = f": the {shown} largest of {len(table)}" if len(table) > shown else ""
    return f"Own kernel time per step without compilation and with it, by {next(iter(table))}{which}"


_GAINED_NOTE = (
    "In shared kernels is what of the time with compilation is a share of kernels with work of several modules. FLOPs "
    "are those of matrix products, as the operators do them."
)


def comparison_text(check: Check, view: View) -> str:
    """Two runs beside one another: the metrics, without verdicts where there are too few launches, and what moved."""
    judged, heads, rows = _compared(check)
    lines: list[RenderableType] = [wrapped(f"{said}.", view), Text("")] if (said := summary(check)) else []
    lines += [text_grid(heads, rows, view), Text("")] if rows else []
    if rows := _gained_rows(check.gained, view.top or TOP) if len(check.gained) else []:
        by = next(iter(check.gained))
        lines += [Text(_gained_title(check.gained, len(rows)), style="bold"), text_grid((by, *_GAINED), rows, view)]
        lines += [wrapped(_GAINED_NOTE, view), Text("")]
    lines += moved_text(check, view, compared=True)
    lines += [wrapped(line, view) for line in notes_of(check, judged)]
    return to_text(Group(*lines), view)


def comparison_markdown(check: Check, view: View) -> str:
    """The same as Markdown tables."""
    judged, heads, rows = _compared(check)
    notes = "".join(f"- {escaped(line)}\n" for line in notes_of(check, judged))
    said = [f"{escaped(said)}.\n"] if (said := summary(check)) else []
    if gained := _gained_rows(check.gained, view.top or TOP) if len(check.gained) else []:
        title = f"**{_gained_title(check.gained, len(gained))}**\n"
        said += [title, markdown_rows((next(iter(check.gained)), *_GAINED), gained), f"{escaped(_GAINED_NOTE)}\n"]
    return "\n".join(
        [*said, *([markdown_rows(heads, rows)] if rows else []), *moved_markdown(check, view, True), notes]
    )


def comparison_csv(check: Check, view: View) -> str:
    """What moved, with raw figures: exact integers, seconds, shares of 1; empty where unknown."""
    parts = [check.gained] if len(check.gained) else []
    tables = [table if view.top is None else table.head(view.top) for table in (*parts, *check.moved.values())]
    return "".join(table.to_csv(index=False, lineterminator="\n") for table in tables)


def comparison_json(check: Check, view: View) -> str:
    """What `gpuprof.render.regression.json` has, with the summary in a sentence, null without a trace of both."""
    return json_module.dumps({"summary": summary(check) or None} | raw(check, view), indent=1, allow_nan=False) + "\n"


COMPARISONS: dict[str, Callable[[Check, View], str]] = {
    "text": comparison_text, "markdown": comparison_markdown, "csv": comparison_csv, "json": comparison_json
}  # fmt: skip
"""Every format of a comparison by name."""


def _compared(check: Check) -> tuple[bool, tuple[str, ...], list[list[str]]]:
    judged = bool(check.decides) and any(one.n >= FEWEST for one in check.verdicts)
    rows = metric_rows(check)
    return judged, HEADS if judged else HEADS[:4], rows if judged else [row[:4] for row in rows]
