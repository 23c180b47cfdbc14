"""The figures of the report page, drawn by Plotly. Every name is escaped: Plotly reads labels as HTML."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gpuprof import units
from gpuprof.analysis.backward_causes import ASSUMED
from gpuprof.analysis.budget import Budget
from gpuprof.analysis.generation import PARTS, bandwidths, parts, withheld_of_bytes
from gpuprof.late import np, pd
from gpuprof.record import Record
from gpuprof.render import palette
from gpuprof.render.backward_chart import RATIOS, chart_rows
from gpuprof.render.tables import plain, readable
from gpuprof.render.timeline import LAYERS, layers, measured
from gpuprof.render.view import View
from gpuprof.schema import TRAFFIC, UNATTRIBUTED

MARGIN = {"l": 60, "r": 20, "t": 20, "b": 50}
_MOST_MOMENTS = 3000  # of a timeline: more than a screen has columns
_LONGEST = 6.0  # ratios beyond are cut, as a lookup's may be a hundred
_QUARTILES = "rgba(0, 119, 187, 0.25)"  # the blue of the median between them
_UNKNOWN = -6  # where the scale of shares has the grey of those that are not known
_TOLD = (5, 20, 40, 70, 100)  # of the shares that the scale has colours of, in percent
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
    known = shares and not pd.isna(shares).all()
    names = [path.rpartition(".")[2] or str(figures.at[path, "class"]) for path in shown]
    figure = go.Figure(
        go.Icicle(
            ids=[safe(path) or "(root)" for path in shown],
            labels=[safe(name) for name in names],
            parents=["" if not path else safe(path.rpartition(".")[0]) or "(root)" for path in shown],
            # a parent's own time is what its children leave; intervals that overlap may leave less than nothing
            values=compact(pd.Series([max(total[path] - inside[path], 0.0) for path in shown])),
            branchvalues="remainder",
            marker={
                "colors": compact(pd.Series([_UNKNOWN if pd.isna(value) else 100 * float(value) for value in shares])),
                "colorscale": _scale(),
                "cmin": _UNKNOWN,
                "cmax": max(palette.SHARES),
                "colorbar": {
                    "title": {"text": f"{word} %"},
                    "thickness": 12,
                    "tickvals": [_UNKNOWN / 2, *_TOLD],
                    "ticktext": ["none", *map(str, _TOLD)],
                },
                "showscale": bool(known),
                "line": {"width": 0.5},
            },
            customdata=[
                [units.duration(total[path]), units.percent(total[path] / total[""]), units.percent(plain(value))]
                for path, value in zip(shown, shares, strict=True)
            ],
            hovertemplate="%{id}<br>%{customdata[0]}, %{customdata[1]} of the time<br>"
            f"{word} %{{customdata[2]}}<extra></extra>",
            maxdepth=6,
            sort=False,
            tiling={"orientation": "v"},
        )
    )
    deepest = max(path.count(".") + 2 if path else 1 for path in shown)
    return laid_out(figure, height=60 + 77 * min(deepest, 6), margin={"l": 10, "r": 10, "t": 10, "b": 10})


def _scale() -> list[list[Any]]:
    """The colours of shares as Plotly takes them, with grey for what is not known below."""
    length = max(palette.SHARES) - _UNKNOWN
    stops: list[list[Any]] = [[(share - _UNKNOWN) / length, color] for share, color in palette.SHARES.items()]
    return [[0, palette.PALE], [stops[0][0], palette.PALE], *stops]


def waterfall(*budgets: Budget, names: tuple[str, ...] = ()) -> go.Figure:
    """The parts of the step, one below the other, from the ideal time to the whole; of several runs on one scale.

    Args:
        budgets: of `gpuprof.analysis.budget.budget`, one for each run.
        names: of the runs, where there are several.
    """
    longest = max(found.step_s for found in budgets)
    second, unit = units.time_unit(longest)
    lines = [1 + int((found.parts["time_s"].fillna(0) != 0).sum()) for found in budgets]
    figure = make_subplots(
        rows=len(budgets), shared_xaxes=True, row_heights=lines, subplot_titles=[safe(name) for name in names] or None,
        vertical_spacing=0.1,
    )  # fmt: skip
    low = 0.0
    for row, found in enumerate(budgets, 1):
        bars = _parts_as_bars(found, second)
        low = min(low, *bars.base)
        longest = max(longest, *(second * (begin + length) for begin, length in zip(bars.base, bars.x, strict=True)))
        figure.add_trace(bars, row=row, col=1)
    figure.update_xaxes(range=[low, longest / second])
    figure.update_xaxes(title_text=unit, row=len(budgets), col=1)
    figure.update_yaxes(autorange="reversed", automargin=True)
    top = 40 if names else MARGIN["t"]
    margin = {**MARGIN, "t": top, "r": 125}
    return laid_out(figure, height=90 + 42 * sum(lines) + 45 * (len(budgets) - 1), margin=margin, showlegend=False)


def _parts_as_bars(found: Budget, second: float) -> go.Bar:
    """A bar for each part, which begins where the one before ends, and one for the whole; in units of ``second``."""
    parts = found.parts[found.parts["time_s"].fillna(0) != 0]
    times = [float(time_s) for time_s in parts["time_s"]]
    begin = [sum(times[:number]) for number in range(len(times))]
    return go.Bar(
        y=[*(safe(title).replace(": ", ":<br>") for title in parts["title"]), found.span],
        x=[abs(time_s) / second for time_s in [*times, found.step_s]],
        # a negative part goes back; its figure stands on the right all the same
        base=[min(start, start + time_s) / second for start, time_s in zip(begin, times, strict=True)] + [0.0],
        orientation="h",
        marker_color=[*map(_part_color, parts["part"], times), palette.GREY],
        text=[f"{units.duration(time_s)}  {units.percent(time_s / found.step_s)}" for time_s in [*times, found.step_s]],
        textposition="outside",
        hovertext=[safe(str(what)) for what in [*parts["what"], f"the whole {found.span}"]],
        hovertemplate="%{hovertext}<br>%{text}<extra></extra>",
        cliponaxis=False,
    )


def _part_color(part: str, time_s: float) -> str:
    return palette.GAINED if time_s < 0 else palette.PARTS.get(part, palette.LOST)


def backward(run: Record) -> go.Figure:
    """Backward over forward by class: what was counted, what it took, and the 2 that is assumed.

    A bar beyond the scale is cut, and its figure has an arrow.
    """
    bars = chart_rows(run, View(by="class"))[::-1]
    bars = bars[bars[list(RATIOS)].notna().any(axis=1)]
    apart = bars[~bars["label"].map(lambda label: label.partition(" x ")[0]).isin(_containers(run))]
    bars = apart if len(apart) else bars
    longest = [float(bars[column].max()) for column in RATIOS if bars[column].notna().any()]
    limit = min(1.05 * max([*longest, ASSUMED]), _LONGEST)
    figure = go.Figure()
    for column, (name, color) in RATIOS.items():
        if bars[column].notna().any():
            values = [None if pd.isna(value) else float(value) for value in bars[column]]
            figure.add_bar(
                y=[safe(label) for label in bars["label"]], x=[value and min(value, limit) for value in values],
                name=name, orientation="h", marker_color=color, textposition="auto", textangle=0,
                text=["" if value is None else _ratio(value, limit) for value in values],
                hovertemplate="%{y}: %{text}<extra></extra>",
            )  # fmt: skip
    figure.add_vline(
        x=ASSUMED, line={"color": palette.MARK, "dash": "dash"}, layer="below", name=f"assumed: {ASSUMED:.1f}",
        showlegend=True,
    )  # fmt: skip
    figure.update_xaxes(title_text="backward / forward", range=[0, limit])
    figure.update_yaxes(automargin=True)
    return laid_out(figure, height=160 + 42 * len(bars), barmode="group", legend=LEGEND)


def _ratio(value: float, limit: float) -> str:
    return f"{value:.{2 if value < 100 else 0}f}{' →' if value > limit else ''}"


def _containers(run: Record) -> set[str]:
    """Classes that are no more than the modules in them, which have bars of their own: the model's and torch's."""
    classes = run.tree["class"]
    whole = {name for name in classes[run.tree["module"] == ""] if (classes == name).sum() == 1}
    return whole | {"ModuleList", "ModuleDict", "Sequential"}


def memory(run: Record) -> go.Figure | None:
    """What is expected along the step of the memory pass, stacked, under the measured line with its peak."""
    if run.timeline.empty:
        return None
    line = measured(run)
    highest = line.loc[line["bytes"].idxmax()]
    size, unit = units.size_unit(highest["bytes"])
    second, of_time = units.time_unit(line["time_s"].iloc[-1])
    figure = go.Figure()
    kept = _thinned(run.timeline)
    for name, values in layers(run).items():
        figure.add_scatter(
            x=compact(kept["time_s"] / second), y=compact(pd.Series(values)[kept.index] / size), name=LAYERS[name],
            stackgroup="expected", mode="none", fillcolor=palette.HELD[name], hoverinfo="skip",
        )  # fmt: skip
    kept = _thinned(line)
    figure.add_scatter(
        x=compact(kept["time_s"] / second), y=kept["bytes"].to_numpy() / size, name="in use", mode="lines",
        line={"color": palette.MARK, "width": 1.5},
        text=[safe(f"{phase} {module}") for phase, module in zip(kept["phase"], kept["module"], strict=True)],
        hovertemplate=f"%{{y:.4r}} {unit}<br>%{{text}}<extra></extra>",
    )  # fmt: skip
    if (reserved := run.timeline["reserved_bytes"]).notna().any():
        rows = run.timeline.loc[_thinned(run.timeline).index]
        figure.add_scatter(
            x=compact(rows["time_s"] / second), y=compact(reserved[rows.index] / size), name="reserved",
            mode="lines", line={"color": palette.GREY, "width": 1}, hovertemplate=f"%{{y}} {unit}<extra></extra>",
        )  # fmt: skip
    late = highest["time_s"] > line["time_s"].iloc[-1] / 2
    figure.add_annotation(
        x=highest["time_s"] / second, y=highest["bytes"] / size,
        text=f"peak {units.size(highest['bytes'])}, {safe(highest['phase'])}",
        ax=-30 if late else 30, ay=-24, arrowhead=0, arrowcolor=palette.MARK, font={"color": palette.MARK},
        xanchor="right" if late else "left",
    )  # fmt: skip
    figure.update_xaxes(title_text=of_time)
    figure.update_yaxes(title_text=unit, range=[0, 1.2 * highest["bytes"] / size])
    return laid_out(figure, height=420, legend=LEGEND | {"traceorder": "normal"})


def compact(values: pd.Series) -> np.ndarray:
    """In as few bytes as a picture needs, which Plotly packs."""
    return values.to_numpy("float32", na_value=np.nan)


def _thinned(line: pd.DataFrame) -> pd.DataFrame:
    """At most so many rows along the time: of each stretch the one with most in use, so no peak is lost."""
    if len(line) <= _MOST_MOMENTS:
        return line
    stretch = [place * _MOST_MOMENTS // len(line) for place in range(len(line))]
    return line.loc[line["bytes"].astype("float64").groupby(stretch).idxmax()]


def moments_left_out(run: Record) -> str:
    """That the memory's figure does not draw every moment, in a sentence; empty where it does."""
    if 2 * len(run.timeline) <= _MOST_MOMENTS or (moments := len(measured(run))) <= _MOST_MOMENTS:
        return ""  # between two readings there is a peak at most
    return f"Of {moments:,} moments {_MOST_MOMENTS:,} are drawn: of each stretch of time the one with most in use."


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
        figure.add_scatter(x=group["time_s"], y=group["value"], name=safe(name), mode="lines", yaxis=axis)
    sides: dict[str, dict[str, Any]] = {}
    for number, (unit, axis) in enumerate(axes.items()):
        key = "yaxis" + axis[1:]
        sides[key] = {"title": {"text": safe(unit)}}
        if number:
            sides[key] |= {"overlaying": "y", "side": "right", "anchor": "free", "position": 1 - 0.06 * (number - 1)}
    figure.update_layout(**sides, xaxis={"title": {"text": "s"}, "domain": [0, 1 - 0.06 * max(len(axes) - 2, 0)]})
    return laid_out(figure, height=360, legend=LEGEND)


def ranks(table: pd.DataFrame) -> go.Figure | None:
    """What the device of each rank does in its step, a bar for each; None where nothing was traced.

    Args:
        table: of `gpuprof.analysis.ranks.by_rank`.
    """
    parts = {
        "compute_s": ("computation", palette.BLUE),
        "exposed_s": ("exposed communication", palette.ORANGE),
        "idle_s": ("idle", palette.GREY),
    }
    if table[list(parts)].isna().all(axis=None):
        return None
    figure = go.Figure()
    names = [f"rank {rank}" for rank in table["rank"]]
    second, unit = units.time_unit(float(table[list(parts)].sum(axis=1).max()))
    for column, (name, color) in parts.items():
        hover = [f"{name} {units.duration(time_s)}" for time_s in table[column]]
        figure.add_bar(
            y=names, x=table[column] / second, name=name, orientation="h", marker={"color": color}, hovertext=hover,
            hoverinfo="y+text",
        )  # fmt: skip
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text=f"{unit} of a step")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return laid_out(
        figure,
        height=max(300, 140 + 26 * len(names)),
        margin={**MARGIN, "t": 50},
        legend=LEGEND | {"traceorder": "normal"},
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
        x=places, y=high, mode="lines", line={"width": 0}, fill="tonexty", fillcolor=_QUARTILES, name="quartiles",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=places, y=middle, mode="lines+markers" if len(places) < _FEW else "lines", name="median",
        line={"color": palette.BLUE}, hovertemplate="%{x} positions: %{y:.3g} ms<extra></extra>",
    )  # fmt: skip
    if not withheld_of_bytes(run) and steps["bytes"].notna().all():
        for (name, rate), dash in zip(bandwidths(run).items(), ("solid", "dash"), strict=False):
            least = [1e3 * int(nbytes) / rate for nbytes in steps["bytes"]]
            figure.add_scatter(
                x=places, y=least, mode="lines", name=f"its bytes at the {name} {units.si(rate, 'B/s')}",
                line={"color": palette.ORANGE, "dash": dash},
                hovertemplate="%{y:.3g} ms for the bytes alone<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text="positions in the cache before" if known else "part of the step")
    figure.update_yaxes(title_text="ms", rangemode="tozero")
    return laid_out(figure, height=400, legend=LEGEND | {"traceorder": "normal"})


def phases(found: pd.DataFrame) -> go.Figure | None:
    """What each phase of a generation has of the step's time, FLOPs and bytes, and what its bytes are; None of nothing.

    Args:
        found: of `gpuprof.analysis.phase_table.by_phase`.
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
    return laid_out(figure, height=170 + 44 * len(bars), legend=LEGEND | {"traceorder": "normal"})


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


_PIECES = palette.PHASES | palette.TRAFFIC
_COLORWAY = [palette.BLUE, palette.ORANGE, palette.TEAL, palette.MAGENTA, palette.CYAN]
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def laid_out(figure: go.Figure, height: int, margin: dict[str, int] | None = None, **layout: Any) -> go.Figure:
    """A figure with what all of them share."""
    # the page gives figures its own colours, so no template
    figure.update_layout(template="none", colorway=_COLORWAY, height=height, margin=margin or MARGIN, **layout)
    return figure


def safe(text: str) -> str:
    """A name as text, which Plotly does not take for markup."""
    return html.escape(text, quote=False)  # quotes are no markup in a label, and Plotly does not read &quot;
