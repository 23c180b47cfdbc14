"""The memory of a step over its time, as a picture. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprof import units
from gpuprof.analysis.memory import no_timeline
from gpuprof.errors import GpuprofError
from gpuprof.pictures import check_drawing, check_picture
from gpuprof.record import Record
from gpuprof.render import palette
from gpuprof.render.charts import new_figure, save_picture, subject
from gpuprof.render.memory import where_of
from gpuprof.render.timeline import LAYERS, layers, measured, spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def memory_chart(run: Record, path: str | os.PathLike[str]) -> Path:
    """Write `memory_figure` to a file.

    Args:
        run: one with a timeline.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.

    Raises:
        GpuprofError: no such kind of picture, the file cannot be written, or as `memory_figure`.
    """
    path = Path(path)
    check_picture(path)
    save_picture(memory_figure(run), path)
    return path


def memory_figure(run: Record) -> Figure:
    """Draw the step over time: what is expected, stacked, against the measured line; phases shaded, the peak named.

    Args:
        run: one with a timeline.

    Raises:
        GpuprofError: matplotlib is missing, or the run has no timeline.
    """
    check_drawing()
    if run.timeline.empty:
        raise GpuprofError(no_timeline(run))
    rows, line = run.timeline, measured(run)
    highest = line.loc[line["bytes"].idxmax()]
    size, unit = units.size_unit(highest["bytes"])
    second, of_time = units.time_unit(float(line["time_s"].iloc[-1]))
    times = rows["time_s"].to_numpy("float64") / second
    stack = layers(run)
    figure = new_figure(8, 4.4)
    axes = figure.add_subplot()
    axes.stackplot(
        times, *(values / size for values in stack.values()), labels=[LAYERS[name] for name in stack],
        colors=[palette.HELD[name] for name in stack], linewidth=0, zorder=1,
    )  # fmt: skip
    what = "allocated" if run.device.get("type") == "cuda" else "resident set"
    axes.plot(
        line["time_s"] / second, line["bytes"] / size, color=palette.MARK, linewidth=1.4, label=f"measured: {what}",
        zorder=3,
    )  # fmt: skip
    if rows["reserved_bytes"].notna().any():
        reserved = rows["reserved_bytes"].astype("Float64").to_numpy("float64") / size
        axes.plot(times, reserved, color=palette.GREY, linewidth=0.8, label="reserved", zorder=3)
    _shade_phases(axes, run, second)
    where = where_of(highest["phase"].replace("recompute", "backward"), highest["module"])
    where = where.partition(", ")[2] or where  # the phase is written above
    place = float(highest["time_s"]) / second
    middle = place < times[-1] / 2
    axes.annotate(
        f"peak {units.size(highest['bytes'])}\n{where}", (place, highest["bytes"] / size),
        xytext=(12 if middle else -12, 14), textcoords="offset points", ha="left" if middle else "right", va="bottom",
        fontsize=8.5, color=palette.MARK, zorder=5,
        arrowprops={"arrowstyle": "-", "color": palette.MARK, "linewidth": 0.8},
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}, parse_math=False,
    )  # fmt: skip
    axes.set_xlim(times[0], times[-1])
    axes.set_ylim(0, 1.25 * highest["bytes"] / size)
    axes.set_xlabel(f"time in the step of the memory pass, {of_time}", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.tick_params(labelsize=8.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.suptitle(subject(run), fontsize=10, x=0.01, ha="left", parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    return figure


def _shade_phases(axes: Any, run: Record, second: float) -> None:
    """Every other phase a little darker, with its name above where there is room for it."""
    last = float(run.timeline["time_s"].iloc[-1])
    for number, (start, end, phase) in enumerate(spans(run)):
        axes.axvspan(
            start / second, end / second, color="#000000", alpha=0.035 if number % 2 else 0.0, linewidth=0, zorder=0
        )
        axes.axvline(start / second, color=palette.PALE, linewidth=0.6, zorder=2)
        if end - start > 0.0085 * len(phase) * last:
            axes.text(
                (start + end) / 2 / second, 0.985, phase, transform=axes.get_xaxis_transform(), ha="center", va="top",
                fontsize=8.5, color="#505050", zorder=4,
            )  # fmt: skip
