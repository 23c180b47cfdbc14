"""Pictures of a run. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from gpuprof.analysis.backward import ASSUMED, backward_ratios, whole
from gpuprof.errors import GpuprofError
from gpuprof.pictures import check_picture
from gpuprof.record import UNATTRIBUTED, Record, write_atomically
from gpuprof.render import palette
from gpuprof.render.view import View, depth_of

RATIOS = {
    "ratio_flops": ("by counted FLOPs", palette.BLUE),
    "ratio_executed": ("by executed FLOPs", palette.TEAL),
    "ratio_time": ("by time", palette.ORANGE),
}
"""Ratios that are drawn where they are known, with their names and colours."""

_LONGEST = 6.0  # bars beyond are cut, with their figure beside them
_MOST = 24  # rows of a chart
_LEAST_TIME = 0.002  # share of the time below which a row without FLOPs is left out


def backward_chart(run: Record, path: str | os.PathLike[str], view: View | None = None) -> Path:
    """Draw the ratios backward / forward by counted FLOPs and by time, with a line at what is assumed.

    Args:
        run: a run with a backward.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.
        view: ``by``, ``depth`` and ``top`` say which rows; modules without a depth are those of the first depth that
            has three with FLOPs, or of the deepest.

    Raises:
        GpuprofError: no such kind of picture, matplotlib is missing, the run has no backward, or the file cannot be
            written.
    """
    path, view = Path(path), view or View(by="class")
    check_picture(path)
    return ratio_bars(chart_rows(run, view), _title(run), path)


def ratio_bars(bars: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw ratios backward / forward as groups of bars, with a line at what is assumed.

    Args:
        bars: column label, and of `RATIOS` those that there are, missing where unknown; a row per group of bars.
        title: what stands above.
        path: as in `backward_chart`.

    Raises:
        GpuprofError: as in `backward_chart`, or there is no ratio.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    series = [
        (column, label, color)
        for column, (label, color) in RATIOS.items()
        if column in bars and bars[column].notna().any()
    ]
    if not series:
        raise GpuprofError(
            "there is no ratio to draw: no row of the chart did anything forward; try another --depth or --by"
        )
    longest = max(float(bars[column].max()) for column, _, _ in series if bars[column].notna().any())
    limit = min(max(longest * 1.15, ASSUMED * 1.35), _LONGEST)
    figure = Figure(figsize=(9, 1.9 + 0.46 * len(bars)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for index, (column, label, color) in enumerate(series):
        for row, value in enumerate(bars[column]):
            at = row + (index - (len(series) - 1) / 2) * height
            number = math.nan if pd.isna(value) else float(value)
            shown = min(number, limit)
            first = label if row == 0 else None
            axes.barh(at, 0 if math.isnan(shown) else shown, height * 0.92, color=color, label=first, zorder=2)
            beyond = number > limit
            axes.annotate(
                _figure(column, number) + (" →" if beyond else ""), (0 if math.isnan(shown) else shown, at),
                xytext=(-3 if beyond else 3, 0), textcoords="offset points", va="center",
                ha="right" if beyond else "left", fontsize=7.5, zorder=4,
                color="white" if beyond and color == palette.BLUE else "#303030",
                bbox=None if beyond else {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip
    axes.axvline(ASSUMED, color=palette.MARK, linewidth=1.4, linestyle="--", zorder=3, label=f"assumed: {ASSUMED}.0")
    axes.set_yticks(range(len(bars)), [str(label) for label in bars["label"]], fontsize=8.5)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, limit)
    axes.set_xlabel("backward / forward", fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="x", color="#d8d8d8", linewidth=0.6, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    figure.legend(loc="outside lower right", ncols=3, fontsize=8.5, frameon=False)
    save_picture(figure, path)
    return path


def chart_rows(run: Record, view: View) -> pd.DataFrame:
    """The bars of `backward_chart`: column label and those of `RATIOS`, in the model's order."""
    rows = backward_ratios(run, view.by)  # type: ignore[arg-type]  # it says itself what it knows
    rows = rows[rows["module" if view.by == "module" else "class"].map(lambda name: name not in ("", UNATTRIBUTED))]
    time = rows["time_forward_s"].astype("Float64").fillna(0) + rows["time_backward_s"].astype("Float64").fillna(0)
    total = time.max() if len(time) else 0
    busy = (rows["flops_forward"].astype("Float64").fillna(0) > 0) | (time > _LEAST_TIME * total)
    if view.by == "module":
        depths = rows["module"].map(depth_of)
        depth = view.depth
        if depth is None:
            fits = [d for d in sorted(set(depths)) if ((depths == d) & busy).sum() >= 3]
            depth = fits[0] if fits else int(depths.max() if len(depths) else 0)
        rows, busy = rows[depths == depth], busy[depths == depth]
    rows = rows[busy]
    if view.by == "class" and len(apart := rows[~rows["class"].isin(_containers(run))]):
        rows = apart
    if view.top is not None or len(rows) > _MOST:
        keep = time[rows.index].sort_values(ascending=False, kind="stable").index[: view.top or _MOST]
        rows = rows.loc[sorted(keep)]
    if view.by == "module":
        labels = list(rows["module"])
    else:
        labels = [f"{r['class']} x {r['modules']}" if r["modules"] > 1 else r["class"] for r in rows.to_dict("records")]
    return pd.DataFrame({"label": labels, **{column: rows[column].array for column in RATIOS}})


def _containers(run: Record) -> set[str]:
    """Classes that are no more than the modules in them, which have bars of their own: the model's and torch's."""
    classes = run.tree["class"]
    whole = {name for name in classes[run.tree["module"] == ""] if (classes == name).sum() == 1}
    return whole | {"ModuleList", "ModuleDict", "Sequential"}


def _figure(column: str, value: float) -> str:
    if math.isnan(value):
        return "no FLOPs" if column == "ratio_flops" else "no time"
    return f"{value:.3f}" if column == "ratio_flops" else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def subject(run: Record) -> str:
    """What was measured and on what, in a line."""
    about = run.workload
    device = run.device.get("name") or run.device.get("type")
    if run.device.get("type") == "cpu":
        threads = run.environment.get("threads")
        device = f"CPU ({device}, {threads} thread{'' if threads == 1 else 's'})"
    parts = (about.get("name"), *sizes(run), about.get("dtype"), run.of_job, device)
    return " · ".join(str(part) for part in parts if part)


def sizes(run: Record) -> list[str]:
    """Sizes of the inputs in words, those that are known: ``batch 1``, ``sequence 512``."""
    about = run.workload
    size = [f"batch {about['batch_size']}"] if about.get("batch_size") else []
    size += [f"sequence {about['seq_len']}"] if about.get("seq_len") else []
    size += [f"prompt {about['prompt_len']}"] if about.get("prompt_len") else []
    return size + ([f"{about['new_tokens']} new tokens"] if about.get("new_tokens") else [])


def _title(run: Record) -> str:
    figures, parts = whole(run), []
    if figures["ratio_flops"] is not None:
        parts.append(f"{figures['ratio_flops']:.3f} by FLOPs (convention {figures['convention']})")
    elif figures["withheld"]:
        parts.append("by FLOPs withheld")
    if figures["ratio_time"] is not None:
        parts.append(f"{figures['ratio_time']:.2f} by time")
    return f"{subject(run)}\nwhole step, recompute apart: {', '.join(parts)}"


def save_picture(figure: Any, path: Path) -> None:
    """Write the picture whole, in the format of the suffix."""
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    picture = io.BytesIO()
    # no date and no random names in an SVG: the same run draws the same file
    with rc_context({"svg.hashsalt": "gpuprof", "svg.fonttype": "none"}):
        figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, picture.getvalue())
