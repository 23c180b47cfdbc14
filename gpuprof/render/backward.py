"""The backward held against twice the forward, as text: a verdict of two sentences, then the rows."""

from __future__ import annotations

import json as json_module
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.backward import backward_ratios, convention_of_modules, whole
from gpuprof.analysis.backward_causes import (
    ASSUMED,
    FROZEN,
    NO_INPUT_GRADIENT,
    NOT_PASSED,
    NOTHING_TRAINED,
    SOME_GRADIENTS,
    TWO,
    UNEXPLAINED,
    UNUSED,
)
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.too_fast import SLOWED
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.tree import build, walk
from gpuprof.render.view import View, depth_of
from gpuprof.schema import UNATTRIBUTED

_COUNTS = {
    "flops_forward": "forward", "flops_recompute": "recompute", "flops_backward": "backward",
}  # fmt: skip
_RATIOS = {
    "ratio_flops": "by FLOPs", "ratio_hardware": "hardware", "ratio_executed": "executed", "ratio_time": "by time",
}  # fmt: skip
_SHARES = {
    FROZEN: "have frozen weights (1 x)",
    NO_INPUT_GRADIENT: "have inputs without gradient (1 x)",
    SOME_GRADIENTS: "have some factors without gradient",
    NOTHING_TRAINED: "are frozen with nothing trained before (0 x)",
    NOT_PASSED: "are not trained and pass no gradient (0 x)",
    UNUSED: "are trainable but ran forward only (0 x)",
    UNEXPLAINED: "are in modules whose ratio is unexplained",
}
"""The causes, as a share of the forward's FLOPs has them."""

_ROOMY = {**dict.fromkeys(_COUNTS, 110), "ratio_hardware": 60}
"""Columns of text from which a figure has room."""


def render_backward(run: Record, format: str = "text", view: View | None = None) -> str:
    """The backward of a run against twice its forward, in one of the `FORMATS`.

    Of the view, ``by`` (module or class), ``depth``, ``top`` (the rows furthest from twice their forward), ``width``
    and ``color`` count.

    Raises:
        GpuprofError: no such format, the run has no backward, or the view does not go with it.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    return FORMATS[format](run, view or View())


def frame(run: Record, view: View) -> pd.DataFrame:
    """The rows of a view, with raw figures; with ``top`` those furthest from twice their forward, in FLOPs or time."""
    rows = run_rows = backward_ratios(run, view.by)  # type: ignore[arg-type]  # it says itself what it knows
    if view.depth is not None and view.by == "module":
        rows = rows[rows["module"].map(depth_of) <= view.depth]
    if view.top is None:
        return rows
    names = ("flops_forward", "flops_backward") if run.done("count") else ("time_forward_s", "time_backward_s")
    forward, backward = (run_rows[name].astype("Float64").fillna(0) for name in names)
    distance = (backward - ASSUMED * forward).abs().sort_values(ascending=False, kind="stable")
    return rows.loc[[index for index in distance.index if index in rows.index][: view.top]]


def verdict(run: Record) -> str:
    """What the assumption is worth for this run: one sentence on FLOPs, one on time."""
    return _verdict(run, whole(run))


def _verdict(run: Record, figures: dict[str, Any]) -> str:
    return f"{_counted(figures)} {_measured(run, figures)}"


def _counted(figures: dict[str, Any]) -> str:
    if figures["flops_forward"] is None:
        return "FLOPs were not counted: profile again with the count pass."
    if figures["withheld"]:
        return f"The backward's FLOPs over the forward's are {figures['withheld']}."
    if not figures["flops_forward"]:
        return "No matmul FLOPs were counted in the forward, so there is nothing to double."
    text = f"Counted, the backward has {_ratio(figures['ratio_flops'])} x the FLOPs of the forward"
    text += f" (convention {figures['convention']}; {_ratio(figures['ratio_hardware'])} x in hardware"
    if figures["ratio_executed"]:
        text += f", {_ratio(figures['ratio_executed'])} x as the GPU's counters say it executed"
    if figures["flops_recompute"]:
        again = figures["flops_recompute"] / figures["flops_forward"]
        text += f"; recompute, another {_ratio(again)} x, apart"
    text += f"): assuming {ASSUMED} x {_error(figures['error_flops'], 'counts the step')}"
    parts = [
        f"{units.percent(entry['flops_forward'] / figures['flops_forward'])} {_SHARES[entry['cause']]}"
        for entry in figures["causes"]
        if entry["cause"] != TWO and entry["flops_forward"]
    ]
    return f"{text}: of the forward's FLOPs, {', '.join(parts)}." if parts else f"{text}."


def _measured(run: Record, figures: dict[str, Any]) -> str:
    if figures["ratio_time"] is None:
        if figures["ratio_step"] is None:
            return "Its time was not measured."
        return f"In undisturbed steps it took {_ratio(figures['ratio_step'])} x the forward's time, recompute included."
    what = "kernel time" if run.device.get("type") == "cuda" else "operator time"
    again = ", recompute included" if figures["flops_recompute"] or figures["time_recompute_s"] else ""
    if figures["ratio_step"] is not None and (figures["slowed"] or 0) > SLOWED:
        return (
            f"Measured, it took {_ratio(figures['ratio_step'])} x the forward's time in undisturbed steps{again}: "
            f"assuming {ASSUMED} x {_error(figures['error_step'], 'puts its time')}. By {what} it took "
            f"{_ratio(figures['ratio_time'])} x, of a traced step that tracing slowed {figures['slowed']:.2g} x: read "
            "times of modules as shares."
        )
    text = f"Measured, it took {_ratio(figures['ratio_time'])} x the forward's {what}"
    if figures["ratio_step"] is not None:
        text += f" ({_ratio(figures['ratio_step'])} x in undisturbed steps{again})"
    return f"{text}: assuming {ASSUMED} x {_error(figures['error_time'], 'puts its time')}."


def _error(share: float | None, verb: str) -> str:
    if share is None:
        return "has nothing to be held against"
    if abs(share) < 5e-7:
        return "is exact"
    return f"{verb} {units.percent(abs(share))} too {'high' if share > 0 else 'low'}"


@dataclass
class Line:
    """A line of the text, and a group of bars of the chart.

    Attributes:
        label: name and class of a module, or of several that agree, folded; a class.
        figures: its row of `backward_ratios`; ``ratio_time`` of folded modules is that of their mean times.
        branches: what leads to it in the tree; empty in a flat table.
        depth: how deep it lies in the tree; the root is 0.
        modules: how many modules are folded in it.
        spread: of their ``ratio_time``, standard deviation over mean; None of one module.
    """

    label: str
    figures: dict[str, Any]
    branches: str = ""
    depth: int = 0
    modules: int = 1
    spread: float | None = None


def lines(run: Record, view: View) -> list[Line]:
    """The lines of a view: the tree of modules with equal layers folded; flat by class, or with ``top``."""
    if view.by == "module" and view.top is None:
        return list(_tree(run, view))
    return [Line(_label(row, view), row) for row in frame(run, view).to_dict(orient="records")]


def text(run: Record, view: View) -> str:
    """The verdict, then a tree of modules with equal layers folded; a flat table by class or with ``top``."""
    verdict = Text("\n".join(textwrap.wrap(_verdict(run, whole(run)), view.width)))
    rows = lines(run, view)
    heads = {name: head for name, head in _COUNTS.items() if name != "flops_recompute" or _any_known(rows, name)}
    heads |= _ratios(run)
    left_out = [name for name, least in _ROOMY.items() if name in heads and view.width < least]
    shown = {name: head for name, head in heads.items() if name not in left_out}
    grid = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    taken = sum(10 if name in _COUNTS else 9 for name in shown)
    names = min(max((len(row.branches + row.label) for row in rows), default=0), (view.width - taken) * 55 // 100)
    grid.add_column(view.by, no_wrap=True, overflow="ellipsis", width=max(names, 16))
    for name, head in shown.items():
        grid.add_column(head, justify="right", no_wrap=True, min_width=9 if name in _COUNTS else 8)
    grid.add_column("why", overflow="fold", ratio=1)
    for row in rows:
        cells = [_figure(name, row.figures[name]) for name in shown]
        grid.add_row(Text(row.branches + row.label), *cells, Text(row.figures["reason"]))
    note = [
        f"Ratios are backward / forward, {ASSUMED} is what is assumed; recompute is in none of them. "
        "Hardware counts what a fused attention backward computes again."
    ]
    if not run.done("trace") and run.busy.empty:
        note.append("No times: the run was not traced.")
    if left_out:
        note.append(f"Left out at this width: {', '.join(heads[name] for name in left_out)}; --format csv has them.")
    notes = [Text(line) for part in note for line in textwrap.wrap(part, view.width)]
    return to_text(Group(verdict, Text(""), grid, Text(""), *notes), view)


def markdown(run: Record, view: View) -> str:
    """The verdict and a Markdown table with readable figures."""
    ratios = _ratios(run)
    heads = {view.by: view.by, **_COUNTS, **ratios, "reason": "why"}
    lines = [list(heads.values()), ["---" if name in (view.by, "reason") else "---:" for name in heads]]
    for row in frame(run, view).to_dict(orient="records"):
        label = _label(row, view)
        lines.append(
            [_escaped(label), *(str(_figure(n, row[n])) for n in (*_COUNTS, *ratios)), _escaped(row["reason"])]
        )
    return f"{verdict(run)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv(run: Record, view: View) -> str:
    """Raw figures: exact integers, seconds, ratios; empty where unknown."""
    return frame(run, view).to_csv(index=False, lineterminator="\n")


def json(run: Record, view: View) -> str:
    """Raw figures: the whole step under ``whole``, a list of objects under ``rows``; null where unknown."""
    rows = [{name: plain(value) for name, value in row.items()} for row in frame(run, view).to_dict(orient="records")]
    figures = whole(run)
    result = {"verdict": _verdict(run, figures), "whole": figures, "rows": rows}
    return json_module.dumps(result, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Record, View], str]] = {"text": text, "markdown": markdown, "csv": csv, "json": json}
"""Every format by name."""


def _ratios(run: Record) -> dict[str, str]:
    """The ratios to show: that of executed FLOPs only where counters were read."""
    return {name: head for name, head in _RATIOS.items() if name != "ratio_executed" or run.done("counters")}


def _tree(run: Record, view: View) -> Iterator[Line]:
    """Lines of the module tree, layers that agree in all but their times as one, with their mean times."""
    ratios = backward_ratios(run)
    times = ratios.set_index("module")["ratio_time"]  # of every layer its own, and made again from the means
    own = ratios.drop(columns="ratio_time")
    modules = by_module(run, convention_of_modules(run))
    joined = pd.concat([modules, own[[name for name in own if name not in modules]]], axis=1)
    above: list[str] = []  # reasons on the way down to a line
    for prefix, node in walk(build(joined, view.depth)):
        reason, depth = str(node.figures["reason"]), len(prefix) // 3
        said = reason and depth and above[depth - 1] == reason
        above = [*above[:depth], reason]
        figures = _timed(node.figures | ({"reason": "as above"} if said else {}))
        yield Line(node.label, figures, prefix, depth, len(node.modules), _spread(times[node.modules]))
    rest = ratios[ratios["module"] == UNATTRIBUTED].iloc[0].to_dict()
    if _known(rest["flops_forward"]) or _known(rest["flops_backward"]) or _known(rest["time_backward_s"]):
        yield Line(UNATTRIBUTED, rest)


def _spread(ratios: pd.Series) -> float | None:
    """Standard deviation over mean of several ratios that are all known."""
    if len(ratios) < 2 or ratios.isna().any():
        return None
    return float(ratios.std(ddof=0) / ratios.mean()) if ratios.mean() else None


def _label(row: dict[str, Any], view: View) -> str:
    if view.by == "class":
        many = f" x {row['modules']}" if row["modules"] > 1 else ""
        return f"{row['class'] or UNATTRIBUTED}{many}"
    return row["module"] or "(root)"


def _timed(figures: dict[str, Any]) -> dict[str, Any]:
    forward, backward = figures["time_forward_s"], figures["time_backward_s"]
    return figures | {"ratio_time": backward / forward if _known(forward) and not pd.isna(backward) else None}


def _any_known(rows: list[Line], name: str) -> bool:
    return any(_known(row.figures[name]) for row in rows)


def _known(value: Any) -> bool:
    return not pd.isna(value) and bool(value)


def _figure(name: str, value: Any) -> Text:
    number = None if value is None or pd.isna(value) else float(value)
    return Text(units.si(number) if name in _COUNTS else _ratio(number))


def _ratio(value: float | None) -> str:
    return units.MISSING if value is None else f"{value:.3f}" if value < 100 else f"{value:.0f}"


def _escaped(value: str) -> str:
    return value.replace("|", "\\|").replace("<", "&lt;")
