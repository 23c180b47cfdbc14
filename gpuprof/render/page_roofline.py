"""The roofline of the page, drawn by Plotly, with names that leave each other alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

from gpuprof import units
from gpuprof.analysis.roofline import dtypes, roofs
from gpuprof.analysis.roofline import roofline as points
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render import palette
from gpuprof.render.page_charts import LEGEND, MARGIN, compact, laid_out, safe
from gpuprof.render.roofline import short_name
from gpuprof.theory.rules import PRODUCTS

_SYMBOLS = {"encode": "square", "prefill": "circle", "decode": "diamond"}  # of the phases of a generation
_LEAST_INTENSITY = 1e-3  # dots further left, as of lookups, stand at the edge
_DASHES = {"given": "solid", "datasheet": "solid", "clock": "dot", "measured": "dash"}
_MOST_LABELS = 7  # of a logarithmic axis
_NARROWEST = 330, 300  # pixels of the roofline's frame on a page of 500
_MOST_NAMES = 10  # of dots
_FONT = 11  # pixels
_ONE = 9  # pixels between dots that have one name
_AROUND = {
    (1, 0): ("left", "middle"), (-1, 0): ("right", "middle"), (0, 1): ("center", "bottom"), (0, -1): ("center", "top"),
    (0.7, 0.7): ("left", "bottom"), (0.7, -0.7): ("left", "top"), (-0.7, 0.7): ("right", "bottom"),
    (-0.7, -0.7): ("right", "top"),
}  # fmt: skip
"""Where a name may stand, in radii from its dot, and which side of it is there."""


def roofline(run: Record) -> go.Figure | None:
    """Rate against intensity of every operator, under the ceilings of the device; None without a dot to draw."""
    dots = points(run)
    dots = dots[(dots["intensity"] > 0) & (dots["flops_per_s"] > 0)]
    if dots.empty:
        return None
    figure = go.Figure()
    dots = dots.assign(intensity=dots["intensity"].clip(lower=_LEAST_INTENSITY))
    peaks = [entry.flops_per_s[dtype] for entry in roofs(run) for dtype in dtypes(run) if dtype in entry.flops_per_s]
    ridges = [3 * ridge for entry in roofs(run) for dtype in dtypes(run) if (ridge := entry.ridge(dtype))]
    across = float(dots["intensity"].min()) / 3, max(float(dots["intensity"].max()) * 3, *ridges, 0.0)
    up = float(dots["flops_per_s"].min()) / 3, max(float(dots["flops_per_s"].max()), *peaks, 0.0) * 3
    _draw_roofs(figure, run, *across)
    for (phase, kind), rows in dots.groupby(["phase", "kind"], sort=False):
        shares = zip(rows["name"], rows["time_share"], strict=True)
        color = palette.PHASES.get(phase, palette.KINDS[kind])
        look = {"symbol": _SYMBOLS[phase]} if phase in _SYMBOLS else {}
        figure.add_scatter(
            x=compact(rows["intensity"]),
            y=compact(rows["flops_per_s"]),
            mode="markers",
            name=safe(f"{phase}: {kind or 'no rule'}" if phase else kind or "no rule"),
            text=[safe(f"{name} {phase}".strip() + f", {units.percent(share)} of the time") for name, share in shares],
            marker={
                "size": [2 * _radius(share) for share in rows["time_share"]], "color": color,
                "opacity": 0.75 if kind in PRODUCTS or phase not in _SYMBOLS else 0.4,
            } | look,
            hovertemplate="%{text}<br>%{x:.3g} FLOP/B, %{customdata}<extra></extra>",
            customdata=[units.si(float(rate), "FLOP/s") for rate in rows["flops_per_s"]],
        )  # fmt: skip
    for label in _labels(dots, across, up):
        figure.add_annotation(showarrow=False, font={"size": _FONT}, **label)
    figure.update_xaxes(title_text="FLOP per least byte", **_log_axis(*across))
    figure.update_yaxes(**_log_axis(*up, "FLOP/s"))
    return laid_out(figure, height=560, margin={**MARGIN, "l": 90}, legend=LEGEND)


def _draw_roofs(figure: go.Figure, run: Record, left: float, right: float) -> None:
    """The ceilings: a style for each denominator, figures where a pointer is; the text above the picture has them."""
    for entry in roofs(run):
        named = False
        for dtype in dtypes(run):
            peak, ridge = entry.flops_per_s.get(dtype), entry.ridge(dtype)
            if not peak:
                continue
            x, y = [left, right], [peak, peak]
            if ridge and entry.bytes_per_s:
                start = min(left, ridge / 3)
                x, y = [start, ridge, max(right, 3 * ridge)], [start * entry.bytes_per_s, peak, peak]
            figure.add_scatter(
                x=x, y=y, mode="lines", name=f"roof: {entry.denominator}", legendgroup=entry.denominator,
                showlegend=not named, line={"color": palette.GREY, "width": 1.5, "dash": _DASHES[entry.denominator]},
                hovertemplate=f"{entry.denominator} {safe(dtype)} {units.si(peak, 'FLOP/s')}<extra></extra>",
            )  # fmt: skip
            named = True


def roofs_in_words(run: Record) -> str:
    """The ceilings that a roofline is drawn under; empty where none is known."""
    said = []
    for entry in roofs(run):
        rates = [f"{name} {units.si(entry.flops_per_s[name], 'FLOP/s')}" for name in dtypes(run)
                 if name in entry.flops_per_s]  # fmt: skip
        rates += [units.si(entry.bytes_per_s, "B/s")] if entry.bytes_per_s else []
        said += [f"{entry.denominator} {', '.join(rates)}"] if rates else []
    return f"Roofs: {'; '.join(said)}." if said else ""


def _log_axis(low: float, high: float, unit: str = "") -> dict[str, Any]:
    """A logarithmic axis with a label at powers of ten, at most at so many as a narrow page has room for."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    powers = range(first, last + 1, (last - first) // _MOST_LABELS + 1)
    names = [units.si(10.0**power, unit, 1) if power >= 0 else f"{10.0**power:.{-power}f} {unit}" for power in powers]
    return {
        "type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": [10.0**power for power in powers],
        "ticktext": [name.strip() for name in names],
    }  # fmt: skip


def _radius(share: float) -> float:
    """Of a dot, in pixels."""
    return 4 + 20 * float(share) ** 0.5


def _labels(dots: pd.DataFrame, across: tuple[float, float], up: tuple[float, float]) -> Iterator[dict[str, Any]]:
    """Names of the dots with most time, as annotations that lie on no dot and no other name.

    Places are tried on the narrowest picture: what is apart there is apart on any wider one.
    """
    sides = [
        [(math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low)) * length for value in values]
        for values, (low, high), length in zip(
            (dots["intensity"], dots["flops_per_s"]), (across, up), _NARROWEST, strict=True
        )
    ]
    radii = [_radius(share) for share in dots["time_share"]]
    places = list(zip(*sides, radii, strict=True))
    taken = [(x - r, y - r, x + r, y + r) for x, y, r in places]
    named: list[tuple[float, float]] = []
    for (x, y, r), row in zip(places, dots.to_dict(orient="records"), strict=True):
        if len(named) == _MOST_NAMES or any(math.dist((x, y), other) < _ONE for other in named):
            continue  # one name for dots that lie on one another
        words = units.shortened(f"{short_name(row['name'])} {row['phase']}".strip(), 26)
        wide, high = 0.62 * _FONT * len(words), 1.4 * _FONT
        for (dx, dy), (anchor_x, anchor_y) in _AROUND.items():
            left = x + dx * (r + 3) - {"left": 0, "center": wide / 2, "right": wide}[anchor_x]
            low = y + dy * (r + 3) - {"bottom": 0, "middle": high / 2, "top": high}[anchor_y]
            box = left, low, left + wide, low + high
            inside = box[0] > 0 and box[1] > 0 and box[2] < _NARROWEST[0] and box[3] < _NARROWEST[1]
            own = (x - r, y - r, x + r, y + r)
            if inside and not any(_overlap(box, other) for other in taken if other != own):
                taken.append(box)
                named.append((x, y))
                yield {
                    "x": math.log10(row["intensity"]), "y": math.log10(row["flops_per_s"]), "text": safe(words),
                    "xshift": dx * (r + 3), "yshift": dy * (r + 3), "xanchor": anchor_x, "yanchor": anchor_y,
                }  # fmt: skip
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
