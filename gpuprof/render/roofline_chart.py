"""The roofline of a run as a picture. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprof import units
from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.roofline import Roofs, dtypes, roofline, roofs
from gpuprof.errors import GpuprofError
from gpuprof.late import np, pd
from gpuprof.pictures import check_drawing, check_picture
from gpuprof.record import Record
from gpuprof.render import palette
from gpuprof.render.charts import new_figure, save_picture, subject
from gpuprof.render.roofline import flop_per_byte, short_name
from gpuprof.render.view import View
from gpuprof.theory.rules import PRODUCTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = 12  # names in a picture
_DOTS = 60  # dots in a picture, those with most time
_LEAST = 0.01  # FLOP per byte below which work is as good as a copy, and left out of a picture
_LEAST_TIME = 0.002  # share of the time below which a dot is left out, unless --top wants it
_MARKERS = {"encode": "s", "prefill": "o", "decode": "D"}  # of a generation
_STYLES: dict[str, Any] = {"given": "-", "datasheet": "-", "clock": ":", "measured": "--"}


def roofline_chart(
    run: Record, path: str | os.PathLike[str], view: View | None = None, denominator: str | None = None
) -> Path:
    """Write `roofline_figure` to a file.

    Args:
        run: one with the counting and the tracing pass.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.
        view: as in `roofline_figure`.
        denominator: as in `roofline_figure`.

    Raises:
        GpuprofError: no such kind of picture, the file cannot be written, or as `roofline_figure`.
    """
    path = Path(path)
    check_picture(path)
    save_picture(roofline_figure(run, view, denominator), path)
    return path


def roofline_figure(run: Record, view: View | None = None, denominator: str | None = None) -> Figure:
    """Draw rates against intensities, both logarithmic, under the roofs; dots are as large as their share of time.

    Args:
        run: one with the counting and the tracing pass.
        view: ``by`` says what a dot is, ``phase`` of which phase, ``top`` how many there are.
        denominator: whose roof is the filled one; every other is drawn too.

    Raises:
        GpuprofError: matplotlib is missing, nothing has both FLOPs and time, or as
            `gpuprof.analysis.roofline.roofline` says.
    """
    view = view or View(by="op")
    check_drawing()
    rows = roofline(run, view.by, denominator, view.phase)
    drawable = rows[(rows["intensity"].fillna(0) >= _LEAST) & (rows["flops_per_s"].fillna(0) > 0)]
    dots = drawable[drawable["time_share"] >= _LEAST_TIME].head(_DOTS) if view.top is None else drawable.head(view.top)
    if dots.empty:
        raise GpuprofError(f"nothing to draw: no row has time and at least {_LEAST} FLOP per byte")
    figure = new_figure(10, 6.4)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    known = roofs(run)
    _set_limits(axes, dots, known, dtypes(run))
    _draw_roofs(axes, known, dtypes(run))
    _draw_dots(axes, dots)
    per = "byte that DRAM moved" if counters_only(run) else "least byte"
    axes.set_xlabel(f"arithmetic intensity, FLOP per {per}", fontsize=9)
    axes.set_ylabel("achieved", fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: units.si(value, "FLOP/s", 1))
    axes.xaxis.set_major_formatter(lambda value, _: units.significant(value, 1))
    axes.tick_params(labelsize=8.5)
    axes.grid(color="#e4e4e4", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    time = "kernel time" if run.device.get("type") == "cuda" else "operator time"
    said = f"by {view.by}, areas as {time}: {units.percent(dots['time_share'].sum())} of it is drawn"
    figure.suptitle(f"{subject(run)}\n{said}", fontsize=10, x=0.01, ha="left", parse_math=False)
    figure.legend(
        handles=[*_keys_of_roofs(known), *_keys(dots)], loc="outside lower center", ncols=7, fontsize=8, frameon=False
    )
    _label(figure, axes, dots)
    return figure


def _set_limits(axes: Any, dots: pd.DataFrame, known: list[Roofs], used: list[str]) -> None:
    """Room for every dot, every roof and the ridges."""
    peaks = [entry.flops_per_s[dtype] for entry in known for dtype in used if dtype in entry.flops_per_s]
    ridges = [ridge for entry in known for dtype in used if (ridge := entry.ridge(dtype))]
    across = [*dots["intensity"], *dots["dram_intensity"].dropna(), *(ridge * 4 for ridge in ridges)]
    up = [*dots["flops_per_s"], *peaks]
    axes.set_xlim(min(across) / 3, max(across) * 3)
    axes.set_ylim(min(up) / 4, max(up) * 4)


def _draw_roofs(axes: Any, known: list[Roofs], used: list[str]) -> None:
    left, right = axes.get_xlim()
    drawn: set[tuple[str, float]] = set()
    above: dict[str, Any] = {}  # by dtype, the name above which there is room for the next
    for number, entry in enumerate(known):
        below = number == len(known) - 1 > 0  # of its line: the names of two that are close are apart
        style = {"color": palette.GREY, "linestyle": _STYLES[entry.denominator], "linewidth": 1.3, "zorder": 2}
        peaks = {dtype: entry.flops_per_s[dtype] for dtype in used if dtype in entry.flops_per_s}
        for dtype, peak in peaks.items():
            ridge = entry.ridge(dtype)
            axes.plot([ridge or left, right], [peak, peak], **style)
            place: dict[str, Any] = {"xy": (ridge or left, peak), "xytext": (4, -2 if below else 2)}
            if dtype in above and not below:
                place = {"xy": (0, 1), "xycoords": above[dtype], "xytext": (0, 1)}
            above[dtype] = axes.annotate(
                f"{entry.denominator} {dtype} {units.si(peak, 'FLOP/s', 3)}", **place, textcoords="offset points",
                ha="left", va="top" if below else "bottom", fontsize=8, color=palette.GREY, zorder=6,
            )  # fmt: skip
            if ridge and number == 0:
                axes.axvline(ridge, color=palette.GREY, linewidth=0.7, linestyle=(0, (1, 3)), zorder=1)
                axes.annotate(
                    f"ridge {flop_per_byte(ridge)}", (ridge, 0.012), xycoords=axes.get_xaxis_transform(), xytext=(3, 0),
                    textcoords="offset points", fontsize=8, color=palette.GREY, zorder=6,
                )  # fmt: skip
        bandwidth = entry.bytes_per_s
        if bandwidth and peaks and (entry.bandwidth_of, bandwidth) not in drawn:
            drawn.add((entry.bandwidth_of, bandwidth))
            end = max(peaks.values()) / bandwidth
            style["linestyle"] = _STYLES[entry.bandwidth_of]
            axes.plot([left, end], [left * bandwidth, end * bandwidth], **style)
            at = math.sqrt(max(left, axes.get_ylim()[0] / bandwidth) * end)
            axes.text(
                at, at * bandwidth * (0.88 if below else 1.12), f"{entry.bandwidth_of} {units.si(bandwidth, 'B/s', 3)}",
                fontsize=8, color=palette.GREY, rotation=_slope(axes), rotation_mode="anchor", ha="center",
                va="top" if below else "bottom", zorder=6,
            )  # fmt: skip


def _slope(axes: Any) -> float:
    """Angle in degrees at which FLOP/s that grow as the intensity rise in the picture."""
    axes.figure.draw_without_rendering()  # only now it is known where things are
    (x0, y0), (x1, y1) = axes.transData.transform([(1.0, 1e9), (10.0, 1e10)])
    return math.degrees(math.atan2(y1 - y0, x1 - x0))


def _size(row: dict[str, Any]) -> float:
    """Size of a marker in square points, so that circles, squares and diamonds of one share have one area."""
    return (12 + 1600 * float(row["time_share"])) * (1 if _look(row)[0] == "o" else math.pi / 4)


def _radius(row: dict[str, Any]) -> float:
    """How far a marker reaches sideways, in points."""
    return math.sqrt(_size(row)) * (math.sqrt(0.5) if _look(row)[0] == "D" else 0.5)


def _look(row: dict[str, Any]) -> tuple[str, str, bool]:
    """Marker and colour of a dot, and whether it is filled: by its kind, in a generation by its phase."""
    if row["phase"] in _MARKERS:
        return _MARKERS[row["phase"]], palette.PHASES[row["phase"]], row["kind"] in PRODUCTS
    return "o", palette.KINDS[row["kind"]], True


def _draw_dots(axes: Any, dots: pd.DataFrame) -> None:
    from matplotlib.colors import to_rgba

    for row in dots.iloc[::-1].to_dict(orient="records"):  # the largest last, but smaller ones shine through
        marker, color, filled = _look(row)
        place = (float(row["intensity"]), float(row["flops_per_s"]))
        axes.scatter(
            *place, s=_size(row), marker=marker, facecolors=to_rgba(color, 0.55 if filled else 0.12),
            linewidths=0.8, edgecolors=color, zorder=3,
        )  # fmt: skip
        if not pd.isna(row["dram_intensity"]):
            moved = (float(row["dram_intensity"]), place[1])
            axes.annotate(
                "", moved, xytext=place, zorder=4,
                arrowprops={"arrowstyle": "->", "color": color, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 2},
            )  # fmt: skip
            axes.scatter(*moved, s=18, facecolors="white", edgecolors=color, linewidths=1.0, zorder=5)


def _keys_of_roofs(known: list[Roofs]) -> list[Any]:
    """What the lines are, where there is more than one kind."""
    from matplotlib.lines import Line2D

    styles = [(entry.denominator, _STYLES[entry.denominator]) for entry in known]
    return [
        Line2D([], [], color=palette.GREY, linestyle=style, label=name) for name, style in styles * (len(styles) > 1)
    ]


def _keys(dots: pd.DataFrame) -> list[Any]:
    """What the colours mean."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    looks = {(row["phase"], _look(row)) for row in dots.to_dict(orient="records")}
    keys = []
    for phase, marker in _MARKERS.items():
        color = palette.PHASES[phase]
        for filled, what in ((True, "products"), (False, "else")):
            if (phase, (marker, color, filled)) in looks:
                face = color if filled else "none"
                keys.append(
                    Line2D([], [], color=color, marker=marker, markerfacecolor=face, label=f"{phase}: {what}", **dot)
                )
    dot["marker"] = "o"
    others = set(dots.loc[~dots["phase"].isin(list(_MARKERS)), "kind"])
    kinds = {palette.KINDS[kind]: kind for kind in reversed(palette.KINDS) if kind in others}
    keys += [Line2D([], [], color=color, label=kind or "no rule", **dot) for color, kind in kinds.items()]
    if dots["dram_intensity"].notna().any():
        keys.append(Line2D([], [], color="#505050", markerfacecolor="white", label="per byte that DRAM moved", **dot))
    return keys


def _label(figure: Any, axes: Any, dots: pd.DataFrame) -> None:
    """Name the dots with most time, each where its name covers no other name, no large dot and no edge."""
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken = [text.get_window_extent().padded(1.0) for text in axes.texts if text.get_text()]
    places = axes.transData.transform(dots[["intensity", "flops_per_s"]].to_numpy("float64"))
    radii = [_radius(row) for row in dots.to_dict(orient="records")]
    taken += [_box(place, radius * figure.dpi / 72) for place, radius in zip(places, radii, strict=True)]
    taken += [line.get_window_extent().padded(2.0) for line in axes.lines if len(set(line.get_ydata())) == 1]  # roofs
    slopes = [line.get_xydata() for line in axes.lines if len(set(line.get_ydata())) > 1 and line.get_xdata()[0] > 0]
    for ends in slopes:  # in logarithms they are straight
        (x0, y0), (x1, y1) = axes.transData.transform(ends)
        taken += [_box((x0 + at * (x1 - x0), y0 + at * (y1 - y0)), 2.0) for at in np.linspace(0, 1, 150)]
    moved = axes.transData.transform(dots[["dram_intensity", "flops_per_s"]].to_numpy("float64", na_value=math.nan))
    taken += [_span(place, to) for place, to in zip(places, moved, strict=True) if not math.isnan(to[0])]
    named: list[Any] = []
    leaders: list[Any] = []  # lines from names that are far from their dots
    for row, radius, place in zip(dots.to_dict(orient="records"), radii, places, strict=True):
        if len(named) == _LABELS or any(math.dist(place, other) < 4 * figure.dpi / 72 for other in named):
            continue  # one name for dots that lie on one another: that of the largest
        named.append(place)
        words = f"{short_name(row['name'])[-44:]} {row['phase']}".strip() + f" {units.percent(row['time_share'])}"
        for x, y in _around(radius):
            far = math.hypot(x, y) > radius + 6
            line = {"arrowstyle": "-", "color": "#707070", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            label = axes.annotate(
                words, (float(row["intensity"]), float(row["flops_per_s"])), xytext=(x, y), textcoords="offset points",
                ha="left" if x > 1 else "right" if x < -1 else "center", va="center", fontsize=8, zorder=7,
                arrowprops=line if far else None, parse_math=False,
            )  # fmt: skip
            box = _text_box(label)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            leader = [_between(place, (place[0] + x * figure.dpi / 72, place[1] + y * figure.dpi / 72))] if far else []
            crosses = any(one.overlaps(other) for one in leader for other in leaders)
            if inside and not crosses and not any(box.overlaps(other) for other in [*taken, *leaders]):
                taken.append(box)
                leaders += leader
                break
            label.remove()


def _box(place: Any, radius: float) -> Any:
    from matplotlib.transforms import Bbox

    reach = 0.8 * radius
    return Bbox.from_extents(place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach)


def _between(start: Any, end: Any) -> Any:
    """The box that a line has for its diagonal."""
    from matplotlib.transforms import Bbox

    (x0, x1), (y0, y1) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return Bbox.from_extents(x0, y0, x1, y1)


def _span(start: Any, end: Any) -> Any:
    """Where a level arrow is, with its head."""
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(min(start[0], end[0]), start[1], max(start[0], end[0]), start[1]).padded(8.0)


def _text_box(label: Any) -> Any:
    """Where the words are, without the line that leads to them."""
    from matplotlib.text import Text as Words

    label.get_window_extent()  # puts it where it belongs
    return Words.get_window_extent(label).padded(1.5)


def _around(radius: float) -> Iterator[tuple[float, float]]:
    """Offsets in points to try for a name, the nearest first."""
    for distance in (radius + 3, radius + 12, radius + 24, radius + 40):
        for angle in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90):
            yield distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
