"""The backward held against twice the forward, as a picture of bars. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprof import units
from gpuprof.analysis.backward import whole
from gpuprof.analysis.backward_causes import ASSUMED
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.pictures import check_drawing, check_picture
from gpuprof.record import Record
from gpuprof.render import palette
from gpuprof.render.backward import Line, lines
from gpuprof.render.charts import new_figure, save_picture, subject
from gpuprof.render.view import View
from gpuprof.schema import UNATTRIBUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIOS = {
    "ratio_flops": ("by counted FLOPs", palette.BLUE),
    "ratio_executed": ("by executed FLOPs", palette.TEAL),
    "ratio_time": ("by time", palette.ORANGE),
}
"""Ratios that are drawn where they are known, with their names and colours."""

_LONGEST = 6.0  # bars beyond are cut, with their figure beside them
_MOST = 30  # lines of a chart where neither --depth nor --top asks for more
_MOST_ASKED = 500  # a picture has no more pixels than for some 900
_TIMES = ("time_forward_s", "time_backward_s")
_LEAST_TIME = 0.002  # share of the longest line's time below which one without FLOPs is left out


def backward_chart(run: Record, path: str | os.PathLike[str], view: View | None = None) -> Path:
    """Write `backward_figure` to a file.

    Args:
        run: a run with a backward.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.
        view: as in `backward_figure`.

    Raises:
        GpuprofError: no such kind of picture, the file cannot be written, or as `backward_figure`.
    """
    path = Path(path)
    check_picture(path)
    save_picture(backward_figure(run, view), path)
    return path


def backward_figure(run: Record, view: View | None = None) -> Figure:
    """Draw the ratios backward / forward by counted FLOPs and by time, with a line at what is assumed.

    Args:
        run: a run with a backward.
        view: ``by``, ``depth`` and ``top`` say which lines, as in the text; what of them is left out is said above.

    Raises:
        GpuprofError: matplotlib is missing, or the run has no backward.
    """
    view = view or View(by="class")
    rows, left_out = _drawn(run, view)
    return ratio_bars(_bars(rows), _title(run, left_out))


def ratio_bars(bars: pd.DataFrame, title: str) -> Figure:
    """Draw ratios backward / forward as groups of bars, with a line at what is assumed.

    Args:
        bars: column label, and of `RATIOS` those that there are, missing where unknown; a row per group of bars.
            ``depth``, if there, moves a label to the right; ``spread`` is that of a time that is a mean, as a share.
        title: what stands above.

    Raises:
        GpuprofError: matplotlib is missing, or there is no ratio.
    """
    check_drawing()
    series = [
        (column, label, color)
        for column, (label, color) in RATIOS.items()
        if column in bars and bars[column].notna().any()
    ]
    if not series:
        raise GpuprofError(
            "there is no ratio to draw: no row of the chart did anything forward; try another --depth or --by"
        )
    spreads = bars.get("spread", pd.Series(math.nan, bars.index))
    longest = max(float(bars[column].max()) for column, _, _ in series if bars[column].notna().any())
    limit = min(max(longest * 1.15, ASSUMED * 1.35), _LONGEST)
    figure = new_figure(9, 1.9 + 0.46 * len(bars))
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for index, (column, label, color) in enumerate(series):
        for row, value in enumerate(bars[column]):
            at = row + (index - (len(series) - 1) / 2) * height
            number = math.nan if pd.isna(value) else float(value)
            shown = min(number, limit)
            of_folded = column == "ratio_time" and spreads.notna().any()
            first = None if row else f"{label}, ± of folded layers" if of_folded else label
            axes.barh(at, 0 if math.isnan(shown) else shown, height * 0.92, color=color, label=first, zorder=2)
            said = _figure(column, number)
            if column == "ratio_time" and not math.isnan(spreads.iloc[row]):
                said += f" ±{units.percent(spreads.iloc[row])}"
            inside = number > 0.92 * limit
            axes.annotate(
                said + (" →" if number > limit else ""), (0 if math.isnan(shown) else shown, at),
                xytext=(-3 if inside else 3, 0), textcoords="offset points", va="center",
                ha="right" if inside else "left", fontsize=7.5, zorder=4,
                color="white" if inside and color == palette.BLUE else "#303030",
                bbox=None if inside else {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip
    axes.axvline(ASSUMED, color=palette.MARK, linewidth=1.4, linestyle="--", zorder=3, label=f"assumed: {ASSUMED}.0")
    depths = bars["depth"] if "depth" in bars else [0] * len(bars)
    labels = ["   " * depth + str(label) for depth, label in zip(depths, bars["label"], strict=True)]
    axes.set_yticks(range(len(bars)), labels, fontsize=8.5, ha="left")
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, limit)
    axes.set_xlabel("backward / forward", fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="x", color="#d8d8d8", linewidth=0.6, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.draw_without_rendering()  # labels begin in one column: they are as far from the bars as the longest is wide
    widest = max(label.get_window_extent().width for label in axes.get_yticklabels())
    axes.tick_params(axis="y", length=0, pad=5 + widest * 72 / figure.dpi)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    figure.legend(loc="outside lower right", ncols=3, fontsize=8.5, frameon=False)
    return figure


def chart_rows(run: Record, view: View) -> pd.DataFrame:
    """The bars of `backward_chart`: columns label, depth, those of `RATIOS` and spread, in the model's order."""
    return _bars(_drawn(run, view)[0])


def _bars(rows: list[Line]) -> pd.DataFrame:
    table = pd.DataFrame(
        {"label": [row.label for row in rows], "depth": [max(row.depth - 1, 0) for row in rows]}
        | {column: [row.figures[column] for row in rows] for column in RATIOS}
    )
    return table.assign(spread=[math.nan if row.spread is None else row.spread for row in rows])


def _drawn(run: Record, view: View) -> tuple[list[Line], list[str]]:
    """The lines of the text that are drawn, and what is left out of them, in words.

    The root's figures stand in the title. A tree without a depth is drawn as deep as there is room for whole.
    """
    of_tree = view.by == "module" and view.top is None
    rows = [row for row in lines(run, view) if row.branches or not of_tree or row.label == UNATTRIBUTED]
    time = {id(row): row.modules * sum(_number(row.figures[name]) for name in _TIMES) for row in rows}
    least = _LEAST_TIME * max(time.values(), default=0.0)
    drawn = [row for row in rows if _number(row.figures["flops_forward"]) > 0 or time[id(row)] > least]
    left_out, deepest = [], max((row.depth for row in drawn), default=0)
    depth = next((d for d in range(deepest, 1, -1) if sum(row.depth <= d for row in drawn) <= _MOST), 1)
    if of_tree and view.depth is None and depth < deepest:
        left_out.append(f"what lies deeper than {depth} (--depth)")
        rows, drawn = ([row for row in some if row.depth <= depth] for some in (rows, drawn))
    if idle := sum(time[id(row)] > 0 for row in rows) - sum(time[id(row)] > 0 for row in drawn):
        share = units.percent(_LEAST_TIME)
        left_out.append(f"{units.number(idle, 'line')} without FLOPs and below {share} of the time")
    most = _MOST if view.depth is None and view.top is None else _MOST_ASKED
    if len(drawn) > most:
        left_out.append(f"{units.number(len(drawn) - most, 'line')} of less time")
        kept = {id(row) for row in sorted(drawn, key=lambda row: -time[id(row)])[:most]}
        drawn = [row for row in drawn if id(row) in kept]
    return drawn, left_out


def _number(value: Any) -> float:
    return 0.0 if value is None or pd.isna(value) else float(value)


def _figure(column: str, value: float) -> str:
    if math.isnan(value):
        return "no FLOPs" if column == "ratio_flops" else "no time"
    return f"{value:.3f}" if column == "ratio_flops" else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _title(run: Record, left_out: list[str]) -> str:
    figures, parts = whole(run), []
    if figures["ratio_flops"] is not None:
        parts.append(f"{figures['ratio_flops']:.3f} by FLOPs (convention {figures['convention']})")
    elif figures["withheld"]:
        parts.append("by FLOPs withheld")
    if figures["ratio_time"] is not None:
        parts.append(f"{figures['ratio_time']:.2f} by time")
    said = [subject(run), f"whole step, recompute apart: {', '.join(parts)}"]
    return "\n".join(said + [f"left out: {', '.join(left_out)}"] * bool(left_out))
