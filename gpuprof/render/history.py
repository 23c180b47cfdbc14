"""The runs of a store as text and as a picture: series over time, with what changed in them."""

from __future__ import annotations

import json as json_module
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.changepoints import SETTLED, Change, Series, beside, clock_of, mbu_of, mfu_of
from gpuprof.analysis.comparison import CLOCK_UNITS, CLOCKS
from gpuprof.analysis.known_flops import at_least
from gpuprof.errors import GpuprofError
from gpuprof.late import np, pd
from gpuprof.pictures import check_picture
from gpuprof.render import palette
from gpuprof.render.charts import save_picture
from gpuprof.render.console import to_text
from gpuprof.render.tables import aligned, plain
from gpuprof.render.view import View

_CHANGED = "#303030"
_GAP = "#f0e8d8"
_LIGHT = 0.45  # how much of a line is seen that later runs may do away with
_SHORT = 8  # characters of a commit
_ROOM = np.timedelta64(2, "D")  # on either side of a run that is alone
_MANY = 500  # runs from which dots are small


def render_history(series: list[Series], format: str = "text", limit: int = 20, view: View | None = None) -> str:
    """The runs of some series, and what changed in each, in one of the `FORMATS`.

    Args:
        series: as from `gpuprof.analysis.changepoints.series_of`.
        format: of `FORMATS`.
        limit: runs of each series, the newest; the changes are those of the whole.
        view: of it, width and color count.

    Raises:
        GpuprofError: no such format.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    return FORMATS[format](series, limit, view or View())


def text(series: list[Series], limit: int, view: View) -> str:
    """A table for each series, and sentences below it."""
    view = replace(view, width=max(view.width, _NARROWEST))
    parts: list[RenderableType] = []
    for one in series:
        cells = _cells(one, limit)
        grid, left_out = aligned(cells, view.width, cells.keys() - _RIGHT, _GIVE_WAY)
        lines = [left_out, *_sentences(one, limit)] if left_out else _sentences(one, limit)
        parts += [Text(one.title, style="bold"), grid, *map(Text, lines), Text("")]
    return to_text(Group(*parts[:-1]), view) if parts else "No runs.\n"


def markdown(series: list[Series], limit: int, view: View) -> str:
    """The same as Markdown, for a pull request."""
    lines = []
    for one in series:
        cells = _cells(one, limit)
        lines += [f"### {_escaped(one.title)}", "", _piped(cells)]
        lines += [_piped("---:" if name in _RIGHT else "---" for name in cells)]
        lines += [_piped(row) for row in zip(*cells.values(), strict=True)]
        lines += ["", *(f"- {_escaped(line)}" for line in _sentences(one, limit)), ""]
    return "\n".join(lines) if lines else "No runs.\n"


def csv(series: list[Series], limit: int, view: View) -> str:
    """A row per run with raw figures, and the share by which a metric changed with it and since when.

    Empty where unknown.
    """
    tables = []
    for one in series:
        names = ["changed", "change", "infrastructure", "provisional", "since_date", "since_commit", "gap_s"]
        rows = one.runs.assign(**dict.fromkeys(names, None))
        for change in one.changes:
            since, gap = one.runs.loc[change.since], one.gap_s(change)
            rows.loc[change.point.at, names] = [
                change.metric, change.point.change, change.infrastructure, change.provisional, since["date"],
                since["commit"], None if math.isnan(gap) else gap,
            ]  # fmt: skip
        tables.append(rows.tail(limit))
    return pd.concat(tables).to_csv(index=False, lineterminator="\n") if tables else ""


def json(series: list[Series], limit: int, view: View) -> str:
    """A list of series, each with its runs and its changes: raw figures, null where unknown."""
    listed = [
        {
            **{name: one.runs[name].iloc[-1] for name in ("workload", "device", "fingerprint")},
            "metric": one.metric,
            "continues": _continued(one),
            "runs": [{str(k): plain(v) for k, v in row.items()} for row in one.runs.tail(limit).to_dict("records")],
            "changes": [
                {
                    **{name: one.runs[name].iloc[change.point.at] for name in ("id", "date", "commit")},
                    "metric": change.metric, "before": change.point.before, "after": change.point.after,
                    "change": change.point.change, "p": change.point.p, "infrastructure": change.infrastructure,
                    "provisional": change.provisional, "gap_s": plain(one.gap_s(change)),
                    "since": {name: one.runs[name].iloc[change.since] for name in ("id", "date", "commit")},
                }
                for change in one.changes
            ],
        }
        for one in series
    ]  # fmt: skip
    return json_module.dumps(listed, indent=1, allow_nan=False) + "\n"


def _continued(one: Series) -> dict[str, Any] | None:
    there = one.continues
    return there and {
        **{name: there.until[name] for name in ("id", "date", "commit", "fingerprint")},
        "differences": there.differences, "before": plain(there.before), "after": plain(there.after),
    }  # fmt: skip


FORMATS: dict[str, Callable[[list[Series], int, View], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": csv,
    "json": json,
}
"""Every format by name."""

_TIMES = {"step_s": "step", "ttft_s": "to first token", "tpot_s": "per token"}
_RIGHT = {"launches", *_TIMES.values(), "MFU", "prefill MFU", "decode MBU", *CLOCKS.values()}
_GIVE_WAY = (
    "launches", *CLOCKS.values(), "commit", "verdict", "MFU", "prefill MFU", "decode MBU", "to first token",
    "per token",
)  # fmt: skip
"""Columns that a narrow terminal does without, the first first."""

_NARROWEST = 45  # a run, a date and a step


def _cells(one: Series, limit: int) -> dict[str, list[str]]:
    """Columns by name, the newest run first, without those in which nothing is known."""
    rows = one.runs.tail(limit).iloc[::-1].to_dict("records")
    clock, mfu, mbu = clock_of(one.runs), mfu_of(one.runs), mbu_of(one.runs)
    cells = {
        "run": [row["id"] for row in rows],
        "date": [f"{row['date'][:10]} {row['date'][11:16]}" for row in rows],
        "commit": [row["commit"][:_SHORT] or units.MISSING for row in rows],
        "launches": [str(row["launches"]) for row in rows],
        **{name: [units.duration(row[metric]) for row in rows] for metric, name in _TIMES.items()},
        _name(mfu): [_share(row[mfu], row["priced_share"]) if mfu else units.MISSING for row in rows],
        "decode MBU": [units.percent(row[mbu]) if mbu else units.MISSING for row in rows],
        CLOCKS[clock]: [_figure(clock, row[clock]) for row in rows],
        "verdict": [_verdict(row) for row in rows],
    }
    return {name: values for name, values in cells.items() if any(value not in (units.MISSING, "") for value in values)}


def _share(mfu: float, priced: float) -> str:
    return units.MISSING if mfu != mfu else f"{at_least(priced)}{units.percent(mfu)}"  # not a NaN


def _verdict(row: dict[str, Any]) -> str:
    verdict = "" if row["verdict"] == "none" else row["verdict"]
    if not row["accepted"]:
        return f"{verdict}, not accepted".removeprefix(", ")
    return f"{verdict}, accepted" if verdict in ("regression", "drift") else verdict


def _sentences(one: Series, limit: int) -> list[str]:
    lines = []
    mfu = mfu_of(one.runs)
    if mfu:
        peak = mfu.rpartition("_")[2]
        anew = ", which is measured anew, so that changes are those of the step"
        followed = anew if one.metric == "step_s" else ""
        lines.append(f"MFU is by the {peak} peak{followed}; figures are medians of valid launches.")
    if not mfu or one.runs[mfu].tail(limit).isna().any():
        lines.append("A run without an MFU has none or has it withheld: 'gpuprof history show' of it says why.")
    if len(one.runs) > limit:
        lines.append(f"The newest {limit} of {len(one.runs)} runs.")
    if one.continues is not None:
        there = one.continues
        different = ", ".join(there.differences) or "fingerprint"
        lines.append(
            f"Continues the runs up to {_where(there.until)}, under another {different}: "
            f"{_levels(one.metric, there.before, there.after)}, no verdict on the code."
        )
    for change in one.changes:
        levels = _levels(change.metric, change.point.before, change.point.after)
        cause = _cause(change, CLOCKS[clock_of(one.runs)])
        provisional = ", provisional" if change.provisional else ""
        lines.append(f"{_between(one, change)}: {levels}{cause}{provisional}.")
    if any(change.provisional for change in one.changes):
        lines.append(
            f"A provisional change is not seen without the newest {SETTLED} runs: later ones may do away with it."
        )
    return lines


def _between(one: Series, change: Change) -> str:
    """Where a change is: the run, and the one before it if the code or an unusual time lies between them."""
    since, run = one.runs.iloc[change.since], one.runs.iloc[change.point.at]
    gap = one.gap_s(change)
    if math.isnan(gap) and since["commit"] == run["commit"]:
        return _where(run)
    apart = "" if math.isnan(gap) else f", {units.span(gap)} apart"
    return f"Between {_where(since)} and {_where(run)}{apart}"


def _where(run: pd.Series) -> str:
    return " at ".join(part for part in (run["date"][:10], run["commit"][:_SHORT]) if part)


def _levels(metric: str, before: float, after: float) -> str:
    change = f" ({100 * (after / before - 1):+.1f} %)" if before and not math.isnan(after / before) else ""
    return f"{_name(metric)} {_figure(metric, before)} -> {_figure(metric, after)}{change}"


def _name(metric: str) -> str:
    return {**_TIMES, **CLOCKS}.get(metric, "prefill MFU" if metric.startswith("mfu_prefill") else "MFU")


def _figure(metric: str, value: float | None) -> str:
    if metric in _TIMES:
        return units.duration(value)
    if metric in CLOCKS:
        return units.MISSING if value is None or pd.isna(value) else f"{value:,.0f}{CLOCK_UNITS[metric]}"
    return units.percent(value)


def _percent(change: Change) -> str:
    return f"{100 * change.point.change:+.1f} %"


def _cause(change: Change, clock: str) -> str:
    if change.infrastructure is None:
        return ""
    if change.metric in CLOCKS:
        return ", infrastructure: the clock alone"
    if change.clock is None:
        return f", the {clock} did not move"
    if change.infrastructure:
        return f", infrastructure: the {clock} moved with it"
    return f", more than the {clock} explains, which moved by {100 * change.clock.change:+.1f} %"


def _escaped(line: str) -> str:
    return line.replace("|", "\\|").replace("<", "&lt;")


def _piped(cells: Any) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def history_chart(one: Series, launches: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Draw a series over time, with its levels, changes, commits and verdicts, and the clock below.

    Args:
        one: the series.
        launches: its launches, as from `gpuprof.history.Store.series`.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.

    Raises:
        GpuprofError: no such kind of picture, matplotlib is missing, there is nothing to draw, or the file cannot be
            written.
    """
    path = Path(path)
    check_picture(path)
    if not one.runs[one.metric].notna().any():
        raise GpuprofError(f"there is nothing to draw: no run of {one.title} was timed")
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    clock = clock_of(one.runs)
    metrics = [name for name in (one.metric, *beside(one.runs), clock) if one.runs[name].notna().any()]
    heights = [3 if name == one.metric else 2 if name in _TIMES else 1 for name in metrics]
    figure = Figure(figsize=(10, 1.5 + sum(heights)), dpi=150, layout="constrained")
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        _draw(axes, one, launches, metric)
    ticks = AutoDateLocator(minticks=3, maxticks=10)
    panels[-1].xaxis.set_major_locator(ticks)
    panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(ticks))
    panels[-1].xaxis.get_offset_text().set_fontsize(8.5)  # the year, and what else all ticks share
    moments = launches.loc[launches[metrics].notna().any(axis="columns"), "date"].unique()
    if len(moments) == 1:  # matplotlib would give it years
        panels[-1].set_xlim(_time(moments[0]) - _ROOM, _time(moments[0]) + _ROOM)
    for change in one.changes:
        since, run = one.runs.iloc[change.since], one.runs.iloc[change.point.at]
        color = palette.GREY if change.infrastructure else _CHANGED
        for axes in panels:
            look = {"color": color, "alpha": _LIGHT if change.provisional else 1.0}
            axes.axvline(_time(run["date"]), linewidth=1.2, linestyle="--", zorder=1, **look)
            if not math.isnan(one.gap_s(change)):
                axes.axvspan(_time(since["date"]), _time(run["date"]), color=_GAP, linewidth=0, zorder=0)
        what = "" if change.metric == one.metric else _name(change.metric)
        panels[0].annotate(
            " ".join(part for part in (run["commit"][:_SHORT], what, _percent(change)) if part),
            (_time(run["date"]), 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            rotation=20, rotation_mode="anchor", ha="left", va="bottom", fontsize=7.5, color=color,
        )  # fmt: skip
    kinds = {(bool(change.infrastructure), change.provisional) for change in one.changes}
    for infrastructure, provisional in sorted(kinds):
        look = {"color": palette.GREY if infrastructure else _CHANGED, "alpha": _LIGHT if provisional else 1.0}
        label = f"{'provisional ' * provisional}change{' of the infrastructure' * infrastructure}"
        panels[0].plot([], [], linewidth=1.2, linestyle="--", label=label, **look)
    if any(not math.isnan(one.gap_s(change)) for change in one.changes):
        panels[0].fill_between([], [], color=_GAP, linewidth=0, label="no run between")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=8, fontsize=8, frameon=False)
    figure.suptitle(one.title, fontsize=10, x=0.01, ha="left", parse_math=False)
    save_picture(figure, path)
    return path


def _draw(axes: Any, one: Series, launches: pd.DataFrame, metric: str) -> None:
    """One metric: a dot per launch, the median of each run in the colour of its verdict, the levels between changes."""
    clocks = {name: f"{words},{CLOCK_UNITS[name]}" for name, words in CLOCKS.items()}
    seconds = {name: f"{words}, ms" for name, words in _TIMES.items()}
    unit = (seconds | clocks).get(metric, "MFU, %")
    factor = (dict.fromkeys(seconds, 1e3) | dict.fromkeys(CLOCKS, 1.0)).get(metric, 100.0)
    runs = one.runs[one.runs[metric].notna()]
    times = np.array([_time(date) for date in runs["date"]])
    size = 4 if len(runs) < _MANY else 1.5
    for valid, marker, label in ((True, ".", "launch"), (False, "x", "invalid launch")):
        some = launches[((launches["invalid"] == "") == valid) & launches[metric].notna()]
        if len(some):
            dates = np.array([_time(date) for date in some["date"]])
            look = {"linestyle": "", "markersize": size, "color": palette.PALE, "zorder": 2, "rasterized": True}
            axes.plot(dates, some[metric] * factor, marker=marker, label=label, **look)
    for verdict, color in palette.VERDICTS.items():
        there = runs["verdict"] == verdict
        label = "run, not judged" if verdict == "none" else f"run, {verdict}"
        if there.any():
            figures = runs.loc[there, metric] * factor
            axes.plot(
                times[there], figures, linestyle="", marker="o", markersize=size, color=color, label=label, zorder=4
            )
    points = [change.point for change in one.changes if change.metric == metric]
    edges = [times[0], *(_time(one.runs["date"].iloc[point.at]) for point in points), times[-1]]
    levels = [point.before for point in points[:1]] + [point.after for point in points]
    for level, start, end in zip(levels, edges, edges[1:], strict=False):
        axes.hlines(level * factor, start, end, color=_CHANGED, linewidth=1.4, zorder=5)
    axes.set_ylabel(textwrap.fill(unit, 20), fontsize=9)  # the clock's panel is low
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#d8d8d8", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _time(date: str) -> np.datetime64:
    return np.datetime64(date[:19])  # all are in UTC
