"""Where the time of a step went, as text, tables and a waterfall."""

from __future__ import annotations

import json as json_module
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.budget import LEAST, PARTS, Budget, budget_by, idle_owners
from gpuprof.analysis.budget_words import negative, words
from gpuprof.analysis.denominators import WORDS
from gpuprof.analysis.hints import Hint, hints
from gpuprof.analysis.known_flops import at_least, known_of, priced_share
from gpuprof.analysis.once import unchanged
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.pictures import check_drawing, check_picture
from gpuprof.render import palette
from gpuprof.render.charts import new_figure, save_picture, subject
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.view import View
from gpuprof.schema import UNATTRIBUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROOMY = 100  # columns of text from which the evidence has room too
_TOP = {"class": 8, "module": 15}  # rows for people, unless they say how many
_OWNERS = 5
_NEGATIVE = "▒"


def render_budget(found: Budget, format: str = "text", view: View | None = None) -> str:
    """A budget in one of the `FORMATS`.

    Of the view, ``by`` (part, class or module), ``depth``, ``top`` (the rows that lost most time), ``width`` and
    ``color`` count.

    Raises:
        GpuprofError: no such format, or no budget by that.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    with unchanged(found.run):
        return FORMATS[format](found, view or View(by="part"))


def frame(found: Budget, view: View) -> pd.DataFrame:
    """The rows of a view, with raw figures."""
    if view.by == "part":
        return found.parts
    rows = budget_by(found, view.by, view.depth)  # type: ignore[arg-type]  # it says itself what it knows
    return rows if view.top is None else rows.head(view.top)


def headline(found: Budget) -> str:
    """The step, or its phase, and what of it is ideal."""
    run = found.run
    text = f"{found.span.capitalize()} {units.duration(found.step_s)}"
    if found.number is not None and found.number > 1:
        text += f" in {found.number:,} parts of {units.duration(found.step_s / found.number)}"
    if found.mfu is not None:
        shares = f"MFU {at_least(run)}{units.percent(found.mfu)}, HFU {at_least(run)}{units.percent(found.hfu)}"
        text += f": {shares} of {found.denominator} ({WORDS[found.denominator]}), convention {found.convention}"
        text += f"; {known}" if (known := known_of(run)) else ""
    if found.floor_s is not None and found.moved_bytes and found.bandwidth:
        text += (
            f". At least {units.size(found.moved_bytes)} must move, which takes {units.duration(found.floor_s)} at "
            f"{units.si(found.bandwidth, 'B/s')}: MBU {units.percent(found.floor_s / found.step_s)}"
        )
    return f"{text}."


def text(found: Budget, view: View) -> str:
    """The parts as a waterfall, then rows by class or module, the owners of idle time and the hints."""
    parts: list[RenderableType] = [Text(subject(found.run), style="bold"), *_wrapped(headline(found), view), Text("")]
    parts += [_waterfall(found, view)]
    parts += [] if found.run.is_job and view.by == "part" else [Text(""), _owners_of_time(found, view)]
    if owners := _idle(found, view):
        parts += [Text(""), owners]
    told: list[RenderableType] = []
    for number, hint in enumerate(hints(found), 1):
        told += _wrapped(f"{number}. {_sentence(hint)}", view, indent="   ")
    if told:
        parts += [Text(""), Text("What to change first (gains overlap)", style="bold"), *told]
    notes = _notes(found, view)
    notes += [] if view.width >= _ROOMY else ["Not shown at this width: what the parts are made of."]
    parts += [Text("")] if notes else []
    for note in notes:
        parts += _wrapped(note, view)
    return to_text(Group(*parts), view)


def markdown(found: Budget, view: View) -> str:
    """The same sections as Markdown."""
    rows = [["part", "time", "share", "what"], ["---", "---:", "---:", "---"]]
    for part in _shown(found):
        rows.append([part["title"], units.duration(part["time_s"]), units.percent(part["share"]), part["what"]])
    rows.append([found.span, units.duration(found.step_s), "100.0 %", ""])
    by = _by(view)
    busy = [[by, "time", "share", "of it"], ["---", "---:", "---:", "---"]]
    busy += list(map(list, _busy(found, view)))
    waited = [["waited for", "phase", "gaps", "time", "share", "most before"]]
    waited += [["---", "---", "---:", "---:", "---:", "---"], *map(list, _waited_for(found))]
    sections = [f"{subject(found.run)}\n\n{headline(found)}\n", _piped(rows)]
    sections += [_piped(busy)] if len(busy) > 2 else []
    sections += [_piped(waited)] if len(waited) > 2 else []
    sections += ["".join(f"{n}. {_escaped(_sentence(hint))}\n" for n, hint in enumerate(hints(found), 1))]
    sections += ["".join(f"- {_escaped(note)}\n" for note in _notes(found, view))]
    return "\n".join(section for section in sections if section)


def csv(found: Budget, view: View) -> str:
    """Raw figures: seconds, shares of 1; empty where unknown."""
    return frame(found, view).to_csv(index=False, lineterminator="\n")


def json(found: Budget, view: View) -> str:
    """Raw figures: the step, its parts, rows by class or module, owners of idle time, hints; null where unknown.

    Where ``phase`` is one, all of it is that phase's.
    """
    rows_of = view if view.by != "part" else View(by="class", top=view.top)
    tables = {
        "parts": found.parts,
        "rows": found.rows if found.run.is_job and view.by == "part" else frame(found, rows_of),
        "idle": idle_owners(found),
    }
    result = {
        "phase": found.phase or None, "parts_of_phase": found.number,
        "step_s": found.step_s, "convention": found.convention, "denominator": found.denominator or None,
        "mfu": found.mfu, "hfu": found.hfu, "priced_share": priced_share(found.run),
        "bandwidth_bytes_per_s": found.bandwidth, "moved_bytes": found.moved_bytes, "floor_s": found.floor_s,
        **{name: [{key: plain(value) for key, value in row.items()} for row in table.to_dict(orient="records")]
           for name, table in tables.items()},
        "hints": [hint._asdict() for hint in hints(found)], "notes": found.notes,
    }  # fmt: skip
    return json_module.dumps(result, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Budget, View], str]] = {"text": text, "markdown": markdown, "csv": csv, "json": json}
"""Every format by name."""


def budget_chart(found: Budget, path: str | os.PathLike[str]) -> Path:
    """Write `budget_figure` to a file.

    Args:
        found: what `gpuprof.analysis.budget.budget` gives.
        path: the picture, PNG or SVG by its suffix. It appears whole or not at all.

    Raises:
        GpuprofError: no such kind of picture, matplotlib is missing, or the file cannot be written.
    """
    path = Path(path)
    check_picture(path)
    save_picture(budget_figure(found), path)
    return path


def budget_figure(found: Budget) -> Figure:
    """Draw the parts of the step or phase as a waterfall, from the ideal time to the whole.

    Args:
        found: what `gpuprof.analysis.budget.budget` gives.

    Raises:
        GpuprofError: matplotlib is missing.
    """
    check_drawing()
    parts = _shown(found)
    figure = new_figure(9, 1.5 + 0.4 * (len(parts) + 1))
    axes = figure.add_subplot()
    after = 0.0
    for row, part in enumerate(parts):
        before, after = after, after + part["share"] * 100
        color = palette.GAINED if part["share"] < 0 else palette.PARTS.get(part["part"], palette.LOST)
        axes.barh(row, after - before, 0.62, left=before, color=color, zorder=2)
        axes.plot([after, after], [row, row + 1], color=palette.PALE, linewidth=0.7, zorder=1)
        label = f"{units.percent(part['share'])}   {units.duration(part['time_s'], 3)}"
        _beside(axes, row, min(before, after), max(before, after), label)
    axes.barh(len(parts), 100, 0.62, color=palette.GREY, zorder=2)
    _beside(axes, len(parts), 0, 100, f"100 %   {units.duration(found.step_s, 3)}")
    axes.set_yticks(range(len(parts) + 1), [*(part["title"] for part in parts), found.span], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *_levels(parts)), max(100.0, *_levels(parts)))
    axes.set_xlabel(f"% of the {found.span}", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4", zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    title = "\n".join([subject(found.run), *textwrap.wrap(headline(found), 110)])
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    return figure


def _levels(parts: list[dict[str, Any]]) -> list[float]:
    return [100 * float(level) for level in pd.Series([part["share"] for part in parts]).cumsum()] or [0.0]


def _beside(axes: Any, row: int, low: float, high: float, label: str) -> None:
    """A figure where there is room for it: right of its bar, left of it, or on it."""
    at, side, offset, color = high, "left", 4, "#303030"
    if high > 72:
        at, side, offset = (low, "right", -4) if low > 28 else (high, "right", -4)
        color = "#303030" if low > 28 else "white"
    axes.annotate(
        label, (at, row), xytext=(offset, 0), textcoords="offset points", va="center", ha=side, fontsize=8,
        color=color, zorder=4,
        bbox=None if color == "white" else {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
    )  # fmt: skip


def _shown(found: Budget) -> list[dict[str, Any]]:
    """The parts that are known and not next to nothing, in their order."""
    parts = found.parts[found.parts["share"].abs().fillna(0) >= LEAST]
    return [{str(key): value for key, value in part.items()} for part in parts.to_dict(orient="records")]


def _waterfall(found: Budget, view: View) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    wide = view.width >= _ROOMY
    parts = _shown(found)
    titles, of_what = max(len(part["title"]) for part in parts), f"of the {found.span}"
    bar = view.width // 5 if wide else max(view.width - titles - 24, len(of_what))
    grid.add_column("part", no_wrap=True, overflow="ellipsis", max_width=max(view.width - bar - 23, 8))
    grid.add_column("time", justify="right", no_wrap=True)
    grid.add_column("share", justify="right", no_wrap=True)
    grid.add_column(of_what, no_wrap=True, width=bar)
    if wide:
        grid.add_column("what", overflow="fold")
    levels = _levels(parts)
    low, high = min(0.0, *levels), max(100.0, *levels)
    before = 0.0
    for part, after in zip(parts, levels, strict=True):
        cells = [round((level - low) / (high - low) * bar) for level in (min(before, after), max(before, after))]
        mark = (_NEGATIVE if after < before else "█") * (cells[1] - cells[0]) or "▏"
        style = "green" if part["part"] == "ideal" else "yellow"
        shares = units.duration(part["time_s"]), units.percent(part["share"])
        drawn = Text(" " * min(cells[0], bar - 1) + mark, style=style)
        grid.add_row(part["title"], *shares, drawn, *([Text(part["what"])] if wide else []))
        before = after
    grid.add_row(found.span, units.duration(found.step_s), "100.0 %")
    return grid


def _owners_of_time(found: Budget, view: View) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    rows = list(_busy(found, view))
    names = min(max(len(label) for label, *_ in rows), view.width * 45 // 100)
    grid.add_column(f"{_by(view)}, its own work", no_wrap=True, overflow="ellipsis", width=max(names, 16))
    grid.add_column("time", justify="right", no_wrap=True)
    grid.add_column("share", justify="right", no_wrap=True)
    grid.add_column("of it", overflow="fold")
    for label, *cells in rows:
        grid.add_row(Text(label), *map(Text, cells))
    return grid


def _by(view: View) -> str:
    return "class" if view.by == "part" else view.by


def _busy(found: Budget, view: View) -> Iterator[tuple[str, str, str, str]]:
    """Rows by class or module that lost most time, and what is left as one: label, time, share, largest parts."""
    by = _by(view)
    for row in _rows(found, view):
        label = str(row[by])
        if by == "class":
            many = f" x {row['modules']}" if row["modules"] > 1 else ""
            label = f"{label or UNATTRIBUTED}{many}"
        of_it = ", ".join(f"{words(part)} {units.duration(time_s, 3)}" for part, time_s in _largest(row).items())
        yield label or "(root)", units.duration(row["time_s"]), units.percent(row["share"]), of_it


def _rows(found: Budget, view: View) -> list[dict[str, Any]]:
    """Those rows of `budget_by`; none of a job, which has no kernels."""
    by = _by(view)
    if found.run.is_job and view.by == "part":
        return []
    rows = budget_by(found, by, view.depth)  # type: ignore[arg-type]  # it says itself what it knows
    top = view.top or _TOP.get(by, len(rows))
    rest = rows[top:]
    shown = rows[:top].to_dict(orient="records")
    if len(rest):
        sums = rest.drop(columns=[by, "modules" if by == "class" else "class"]).sum(min_count=1)
        shown.append({by: f"{len(rest)} others", "modules": 1, **sums.to_dict()})
    return [{str(key): value for key, value in row.items()} for row in shown]


def _largest(row: dict[str, Any]) -> dict[str, float]:
    """Seconds of up to three parts of a row that are not next to nothing of it."""
    times = {part: row[f"{part}_s"] for part in PARTS if not pd.isna(row[f"{part}_s"])}
    largest = sorted(times, key=lambda part: -abs(times[part]))[:3]
    return {part: times[part] for part in largest if abs(times[part]) >= 0.02 * abs(row["time_s"])}


def _notes(found: Budget, view: View) -> list[str]:
    """Those of the budget, and of each part that is negative in a row alone."""
    below = {part for row in _rows(found, view) for part, time_s in _largest(row).items() if time_s < 0}
    alone = [part for part in PARTS if part in below and negative(part) not in found.notes]
    where = f" in a {_by(view)}, though not in the {found.span}"
    return [*found.notes, *(negative(part, where) for part in alone)]


def _waited_for(found: Budget) -> list[tuple[str, ...]]:
    """Owners of idle time: owner, phase, gaps, time, share, and the operator waited for longest."""
    owners = idle_owners(found)
    return [
        (
            row.owner or "(root)",
            row.phase,
            f"{row.gaps:,}",
            units.duration(row.idle_s),
            units.percent(row.share),
            row.op,
        )
        for row in owners[owners["share"] >= LEAST].head(_OWNERS).itertuples(index=False)
    ]


def _idle(found: Budget, view: View) -> Table | None:
    rows = _waited_for(found)
    if not rows:
        return None
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    wide = view.width >= _ROOMY
    grid.add_column("waited for", no_wrap=True, overflow="ellipsis", max_width=view.width - (78 if wide else 38))
    for name, width in {"phase": 9, "gaps": 6, "time": 8, "share": 6}.items():
        grid.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True, min_width=width)
    if wide:
        grid.add_column("most before", no_wrap=True, overflow="ellipsis", max_width=40)
    for row in rows:
        grid.add_row(*map(Text, row[: len(grid.columns)]))
    return grid


def _sentence(hint: Hint) -> str:
    if hint.gain_s is None:
        return f"No gain known: {hint.text}. Next: {hint.action}."
    gain = f"{units.duration(hint.gain_s)} ({units.percent(hint.gain_share)})"
    return f"Up to {gain}: {hint.text}. To do: {hint.action}."


def _wrapped(line: str, view: View, indent: str = "") -> list[Text]:
    return [Text(part) for part in textwrap.wrap(line, view.width, subsequent_indent=indent, break_on_hyphens=False)]


def _piped(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(_escaped(cell) for cell in row)} |\n" for row in rows)


def _escaped(value: str) -> str:
    return value.replace("|", "\\|").replace("<", "&lt;")
