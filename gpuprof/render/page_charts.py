"""The figures of the report page, drawn by Plotly. Every name is escaped: Plotly reads labels as HTML."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gpuprof import units
from gpuprof.analysis.backward import ASSUMED
from gpuprof.analysis.budget import Budget
from gpuprof.analysis.generation import PARTS, bandwidths, parts, withheld_of_bytes
from gpuprof.analysis.roofline import dtypes, roofs
from gpuprof.analysis.roofline import roofline as points
from gpuprof.record import Record
from gpuprof.render.backward_chart import RATIOS, chart_rows
from gpuprof.render.tables import readable
from gpuprof.render.view import View
from gpuprof.schema import TRAFFIC, UNATTRIBUTED

_MARGIN = {"l": 60, "r": 20, "t": 20, "b": 50}
_MOST_MOMENTS = 3000  # of a timeline: more than a screen has columns
_LEAST_INTENSITY = 1e-3  # dots further left, as of lookups, stand at the edge
_LONGEST = 6.0  # ratios beyond are cut, as a lookup's may be a hundred
_SYMBOLS = {"encode": "square", "prefill": "circle", "decode": "diamond"}  # of the phases of a generation
_BLUE, _ORANGE, _RED, _GREEN, _GREY = "#4493f8", "#e0a030", "#d1495b", "#2e9e6b", "#8b949e"
_PALE = "rgba(68, 147, 248, 0.25)"
_FEW = 64  # steps of decoding, up to which each has a dot


def icicle(modules: pd.DataFrame, share: str = "kernel_mfu") -> go.Figure | None:
    """Modules as bars within bars: as wide as their kernel time, coloured by a share; None without times.

    Args:
        modules: of `gpuprof.analysis.modules.by_module`.
        share: column of it, kernel MFU or the kernel MBU of a phase.
    """
    times = [f"time_{way}_s" for way in ("forward", "recompute", "backward")]
    word = " ".join(("kernel", share.split("_")[1].upper()))
    rows = modules[modules["module"] != UNATTRIBUTED]
    total = dict(zip(rows["module"], rows[times].astype("Float64").fillna(0).sum(axis=1), strict=True))
    if not total or not total.get(""):
        return None
    shown = [path for path in total if total[path] > 0]
    inside = dict.fromkeys(shown, 0.0)
    for path in shown:
        if path and path.rpartition(".")[0] in inside:
            inside[path.rpartition(".")[0]] += total[path]
    figures = rows.set_index("module")
    shares = [figures.at[path, share] for path in shown]
    known = [100 * float(value) for value in shares if not pd.isna(value)]
    names = [path.rpartition(".")[2] or str(figures.at[path, "class"]) for path in shown]
    figure = go.Figure(
        go.Icicle(
            ids=[_safe(path) or "(root)" for path in shown],
            labels=[_safe(name) for name in names],
            parents=["" if not path else _safe(path.rpartition(".")[0]) or "(root)" for path in shown],
            # a parent's own time is what its children leave; intervals that overlap may leave less than nothing
            values=[max(total[path] - inside[path], 0.0) for path in shown],
            branchvalues="remainder",
            marker={
                "colors": [None if pd.isna(value) else 100 * float(value) for value in shares],
                "colorscale": "RdYlGn",
                "cmin": 0,
                "cmax": max([100.0, *known]) if known and max(known) > 60 else max([*known, 1.0]),
                "colorbar": {"title": {"text": f"{word} %"}},
                "showscale": bool(known),
            },
            customdata=[[units.duration(total[path]), units.percent(total[path] / total[""])] for path in shown],
            hovertemplate="%{id}<br>%{customdata[0]}, %{customdata[1]} of the time<br>"
            f"{word} %{{color:.1f}}<extra></extra>",
            maxdepth=6,
            sort=False,
            tiling={"orientation": "v"},
        )
    )
    return _laid_out(figure, height=520, margin={"l": 10, "r": 10, "t": 10, "b": 10})


def waterfall(found: Budget) -> go.Figure:
    """The parts of the step, one after the other, up to the whole."""
    parts = found.parts[found.parts["time_s"].fillna(0) != 0]
    ideal = parts["part"].iloc[0] == "ideal" if len(parts) else False
    figure = go.Figure(
        go.Waterfall(
            x=[_safe(title).replace(": ", ":<br>") for title in [*parts["title"], found.span]],
            y=[*(1e3 * parts["time_s"]), 1e3 * found.step_s],
            # what the FLOPs themselves need stands like the whole, the losses between the two
            measure=["absolute" if ideal else "relative"] + ["relative"] * (len(parts) - 1) + ["total"],
            text=[
                f"{units.duration(t)}<br>{units.percent(t / found.step_s)}" for t in [*parts["time_s"], found.step_s]
            ],
            textposition="outside",
            hovertext=[_safe(str(what)) for what in [*parts["what"], f"the whole {found.span}"]],
            increasing={"marker": {"color": _ORANGE}},
            decreasing={"marker": {"color": _GREEN}},
            totals={"marker": {"color": _GREY}},
            connector={"line": {"color": _GREY, "width": 1}},
            cliponaxis=False,
        )
    )
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(title_text="ms")
    return _laid_out(figure, height=480, margin={**_MARGIN, "t": 50, "b": 70})


def backward(run: Record) -> go.Figure:
    """Backward over forward by class: what was counted, what it took, and the 2 that is assumed."""
    bars = chart_rows(run, View(by="class"))[::-1]
    figure = go.Figure()
    for (column, (name, _)), color in zip(RATIOS.items(), (_BLUE, _GREEN, _ORANGE), strict=True):
        if bars[column].notna().any():
            values = [None if pd.isna(value) else float(value) for value in bars[column]]
            figure.add_bar(
                y=[_safe(label) for label in bars["label"]], x=values, name=name, orientation="h", marker_color=color,
                text=["" if value is None else f"{value:.2f}" for value in values], textposition="auto",
            )  # fmt: skip
    figure.add_vline(x=ASSUMED, line={"color": _RED, "dash": "dash"}, annotation_text="assumed")
    longest = max([value for trace in figure.data for value in trace.x if value is not None], default=ASSUMED)
    figure.update_xaxes(title_text="backward / forward", range=[0, min(1.05 * longest, _LONGEST)])
    figure.update_yaxes(automargin=True)
    return _laid_out(figure, height=160 + 42 * len(bars), barmode="group", legend=_LEGEND)


def roofline(run: Record) -> go.Figure | None:
    """Rate against intensity of every operator, under the ceilings of the device; None without a dot to draw."""
    dots = points(run)
    dots = dots[(dots["intensity"] > 0) & (dots["flops_per_s"] > 0)]
    if dots.empty:
        return None
    figure = go.Figure()
    dots = dots.assign(intensity=dots["intensity"].clip(lower=_LEAST_INTENSITY))
    left, right = float(dots["intensity"].min()) / 3, float(dots["intensity"].max()) * 3
    for number, ceilings in enumerate(roofs(run)):
        dash = "dash" if number else "solid"
        for dtype in dtypes(run):
            peak, ridge = ceilings.flops_per_s.get(dtype), ceilings.ridge(dtype)
            if not peak:
                continue
            x, y = [left, right], [peak, peak]
            name = f"{ceilings.denominator}: {dtype} {units.si(peak, 'FLOP/s')}"
            if ridge and ceilings.bytes_per_s:
                start = min(left, ridge / 3)
                x, y = [start, ridge, max(right, 3 * ridge)], [start * ceilings.bytes_per_s, peak, peak]
                name += f", {units.si(ceilings.bytes_per_s, 'B/s')}"
            figure.add_scatter(x=x, y=y, mode="lines", name=_safe(name), line={"dash": dash}, hoverinfo="name")
    for (phase, kind), rows in dots.groupby(["phase", "kind"], sort=False):
        shares = zip(rows["name"], rows["time_share"], strict=True)
        look = {"symbol": _SYMBOLS[phase], "line": {"width": 1, "color": _GREY}} if phase in _SYMBOLS else {}
        figure.add_scatter(
            x=rows["intensity"].astype(float),
            y=rows["flops_per_s"].astype(float),
            mode="markers",
            name=_safe(f"{phase}: {kind or 'no rule'}" if phase else str(kind)),
            text=[_safe(f"{name} {phase}".strip() + f", {units.percent(share)} of the time") for name, share in shares],
            marker={"size": [8 + 40 * float(share) ** 0.5 for share in rows["time_share"]], "opacity": 0.75} | look,
            hovertemplate="%{text}<br>%{x:.3g} FLOP/B, %{y:.3s}FLOP/s<extra></extra>",
        )
    figure.update_xaxes(type="log", title_text="FLOPs per least byte")
    figure.update_yaxes(type="log", title_text="FLOP/s")
    return _laid_out(figure, height=560, legend=_LEGEND)


def memory(run: Record) -> go.Figure | None:
    """Bytes in use along the step of the memory pass, over those kept for the backward and of gradients by size."""
    line = _thinned(run.timeline)
    if line.empty:
        return None
    figure = go.Figure()
    for column, name, fill in (
        ("kept_bytes", "kept for the backward, by size", "tozeroy"),
        ("gradient_bytes", "gradients, by size", "tonexty"),
    ):
        if line[column].notna().any():
            values = [float(value) / 2**20 for value in line[column].fillna(0)]
            figure.add_scatter(x=line["time_s"], y=values, name=name, stackgroup="expected", mode="none", fill=fill)
    for column, name in (("bytes", "in use"), ("reserved_bytes", "reserved")):
        if line[column].notna().any():
            inside = [None if pd.isna(value) else float(value) / 2**20 for value in line[column]]
            figure.add_scatter(
                x=line["time_s"], y=inside, name=name, mode="lines",
                text=[_safe(f"{phase} {module}") for phase, module in zip(line["phase"], line["module"], strict=True)],
                hovertemplate="%{y:,.0f} MiB<br>%{text}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text="s")
    figure.update_yaxes(title_text="MiB")
    return _laid_out(figure, height=420, legend=_LEGEND)


def _thinned(line: pd.DataFrame) -> pd.DataFrame:
    """At most so many rows along the time: of each stretch the one with most in use, so no peak is lost."""
    if len(line) <= _MOST_MOMENTS:
        return line
    stretch = [place * _MOST_MOMENTS // len(line) for place in range(len(line))]
    return line.loc[line["bytes"].astype("float64").groupby(stretch).idxmax()]


def telemetry(run: Record) -> go.Figure | None:
    """Clock, power and temperature over the timing pass; None where none was read."""
    wanted = {"sm_clock": "SM clock", "power_instant": "power", "power_usage": "power", "temperature": "temperature"}
    read = run.telemetry[run.telemetry["quantity"].isin(list(wanted))]
    if read.empty:
        return None
    figure = go.Figure()
    axes: dict[str, str] = {}
    for quantity, group in read.groupby("quantity", sort=False):
        unit = str(group["unit"].iloc[0])
        axis = axes.setdefault(unit, "y" if not axes else f"y{len(axes) + 1}")
        name = f"{wanted[str(quantity)]}, {unit}"
        figure.add_scatter(x=group["time_s"], y=group["value"], name=_safe(name), mode="lines", yaxis=axis)
    sides: dict[str, dict[str, Any]] = {}
    for number, (unit, axis) in enumerate(axes.items()):
        key = "yaxis" + axis[1:]
        sides[key] = {"title": {"text": _safe(unit)}}
        if number:
            sides[key] |= {"overlaying": "y", "side": "right", "anchor": "free", "position": 1 - 0.06 * (number - 1)}
    figure.update_layout(**sides, xaxis={"title": {"text": "s"}, "domain": [0, 1 - 0.06 * max(len(axes) - 2, 0)]})
    return _laid_out(figure, height=360, legend=_LEGEND)


def ranks(table: pd.DataFrame) -> go.Figure | None:
    """What the device of each rank does in its step, a bar for each; None where nothing was traced.

    Args:
        table: of `gpuprof.analysis.ranks.by_rank`.
    """
    parts = {
        "compute_s": ("computation", _BLUE),
        "exposed_s": ("exposed communication", _ORANGE),
        "idle_s": ("idle", _GREY),
    }
    if table[list(parts)].isna().all(axis=None):
        return None
    figure = go.Figure()
    names = [f"rank {rank}" for rank in table["rank"]]
    for column, (name, color) in parts.items():
        hover = [f"{name} {units.duration(time_s)}" for time_s in table[column]]
        figure.add_bar(
            y=names, x=1e3 * table[column], name=name, orientation="h", marker={"color": color}, hovertext=hover,
            hoverinfo="y+text",
        )  # fmt: skip
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="ms of a step")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _laid_out(
        figure,
        height=max(300, 140 + 26 * len(names)),
        margin={**_MARGIN, "t": 50},
        legend=_LEGEND | {"traceorder": "normal"},
    )


def tokens(run: Record) -> go.Figure | None:
    """Time of each step of decoding against what the cache held before, over the least that its bytes would take.

    None where no step of decoding was timed.
    """
    steps = parts(run)
    steps = steps[(steps["phase"] == "decode") & steps["time_s"].notna()]
    if steps.empty:
        return None
    known = bool(steps["positions_before"].notna().all())
    places = [int(place) for place in steps["positions_before" if known else "part"]]
    low, middle, high = ([1e3 * float(time_s) for time_s in steps[f"time{name}_s"]] for name in ("_q1", "", "_q3"))
    figure = go.Figure()
    figure.add_scatter(x=places, y=low, mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False)
    figure.add_scatter(
        x=places, y=high, mode="lines", line={"width": 0}, fill="tonexty", fillcolor=_PALE, name="quartiles",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=places, y=middle, mode="lines+markers" if len(places) < _FEW else "lines", name="median",
        line={"color": _BLUE}, hovertemplate="%{x} positions: %{y:.3g} ms<extra></extra>",
    )  # fmt: skip
    if not withheld_of_bytes(run) and steps["bytes"].notna().all():
        for (name, rate), dash in zip(bandwidths(run).items(), ("solid", "dash"), strict=False):
            least = [1e3 * int(nbytes) / rate for nbytes in steps["bytes"]]
            figure.add_scatter(
                x=places, y=least, mode="lines", name=f"its bytes at the {name} {units.si(rate, 'B/s')}",
                line={"color": _ORANGE, "dash": dash}, hovertemplate="%{y:.3g} ms for the bytes alone<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text="positions in the cache before" if known else "part of the step")
    figure.update_yaxes(title_text="ms", rangemode="tozero")
    return _laid_out(figure, height=400, legend=_LEGEND | {"traceorder": "normal"})


def phases(found: pd.DataFrame) -> go.Figure | None:
    """What each phase of a generation has of the step's time, FLOPs and bytes, and what its bytes are; None of nothing.

    Args:
        found: of `gpuprof.analysis.modules.by_phase`.
    """
    pieces = _pieces(found[found["phase"].isin(PARTS)].set_index("phase"))
    if pieces.empty:
        return None
    figure = go.Figure()
    for piece, color in _PIECES.items():
        there = pieces[(pieces["piece"] == piece) & (pieces["amount"] > 0)]
        if len(there):
            figure.add_bar(
                y=there["bar"], x=there["share"], name=piece, orientation="h", marker={"color": color},
                text=[f"{piece} {said}" for said in there["said"]], textposition="inside", insidetextanchor="middle",
                textangle=0, hovertemplate="%{y}: %{text}, %{x:.1f} %<extra></extra>",
            )  # fmt: skip
    bars = list(pieces["bar"].unique())
    figure.update_layout(barmode="stack", uniformtext={"minsize": 9, "mode": "hide"})
    figure.update_xaxes(title_text="%", range=[0, 100])
    figure.update_yaxes(automargin=True, categoryorder="array", categoryarray=bars[::-1])
    return _laid_out(figure, height=170 + 44 * len(bars), legend=_LEGEND | {"traceorder": "normal"})


def _pieces(rows: pd.DataFrame) -> pd.DataFrame:
    """Pieces of the bars of `phases`: bar, piece, amount, said (the amount in words), and its share of the bar in %."""
    known = [name for name in ("time_s", "flops", "moved_bytes") if name in rows and rows[name].notna().all()]
    words = {"time_s": "time", "flops": "FLOPs", "moved_bytes": "bytes"}
    pieces = [(words[name], phase, name, amount) for name in known for phase, amount in rows[name].items()]
    if "moved_bytes" in known:
        kinds = [what.replace(" ", "_") + "_bytes" for what in TRAFFIC]
        pieces += [
            (f"bytes of {phase}", what, kind, rows.at[phase, kind])
            for phase in rows.index
            for what, kind in zip(TRAFFIC, kinds, strict=True)
        ]
    table = pd.DataFrame(
        [(bar, piece, float(amount), readable(column, amount)) for bar, piece, column, amount in pieces],
        columns=["bar", "piece", "amount", "said"],
    )
    return table.assign(share=100 * table["amount"] / table.groupby("bar")["amount"].transform("sum"))


_PIECES = {
    "encode": _GREEN, "prefill": _ORANGE, "decode": _BLUE,
    "weights": "#6f7fb0", "cache read": "#b07aa1", "cache written": _RED, "activations": _GREY,
}  # fmt: skip
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def _laid_out(figure: go.Figure, height: int, margin: dict[str, int] | None = None, **layout: Any) -> go.Figure:
    # the page gives figures its own colours, so no template
    figure.update_layout(template="none", height=height, margin=margin or _MARGIN, **layout)
    return figure


def _safe(text: str) -> str:
    return html.escape(text, quote=False)  # quotes are no markup in a label, and Plotly does not read &quot;
