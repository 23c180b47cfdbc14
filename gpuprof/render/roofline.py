"""The roofline of a run: a table of rates against roofs, and the picture."""

from __future__ import annotations

import json as json_module
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.denominators import WORDS
from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.once import unchanged
from gpuprof.analysis.roofline import Roofs, by_bound, chosen_roofs, clouds, dtypes, roofline, roofs
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.charts import subject
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.view import View

_TOP = 20  # rows for people, unless they say how many
_LIMITS = ("memory", "compute")
_WORDS = ("phase", "kind", "bound by", "kernel")
_GIVE_WAY = ("kind", "DRAM FLOP/B", "bound by", "FLOP/s")
"""Columns that are left out where the others, with a name of twelve letters, would not fit."""

Cells = dict[str, Callable[[dict[str, Any]], str]]


def render_roofline(run: Record, format: str = "text", view: View | None = None, denominator: str | None = None) -> str:
    """The roofline in one of the `FORMATS`; of the view, ``by``, ``phase``, ``top``, ``width`` and ``color`` count.

    Raises:
        GpuprofError: no such format, or as `gpuprof.analysis.roofline.roofline` says.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    with unchanged(run):
        return FORMATS[format](run, view or View(by="op"), denominator)


def text(run: Record, view: View, denominator: str | None) -> str:
    """Sentences on the whole, an aligned table, and what its figures mean."""
    rows = roofline(run, view.by, denominator, view.phase)
    shown = rows.head(view.top or _TOP).to_dict(orient="records")
    cells = {head: [cell(row) for row in shown] for head, cell in _columns(run, rows, view.by).items()}
    widths = {head: max(map(len, [head, *column])) for head, column in cells.items()}
    room = view.width - sum(width + 1 for head, width in widths.items() if head not in (view.by, "kernel"))
    widths[view.by] = min(widths[view.by], max(room if room < 60 else room * 2 // 3, 12))
    if room - widths[view.by] < 20:
        cells.pop("kernel", None)
    elif "kernel" in widths:
        widths["kernel"] = min(widths["kernel"], room - widths[view.by] - 1)
    for head in _GIVE_WAY:
        if sum(widths[one] + 1 for one in cells) - 1 > view.width:
            cells.pop(head, None)
    grid = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    for head in cells:
        side: Literal["left", "right"] = "left" if head in (view.by, *_WORDS) else "right"
        grid.add_column(head, justify=side, no_wrap=True, overflow="ellipsis", width=widths[head])
    for values in zip(*cells.values(), strict=True):
        grid.add_row(*map(Text, values))
    lines = [*_sentences(run, rows, denominator)]
    notes = [*_notes(run, rows, len(shown), view.by)]
    if left_out := [head for head in widths if head not in cells]:
        notes.append(f"Not shown at this width: {', '.join(left_out)}.")
    return to_text(Group(*_wrapped(lines, view), Text(""), grid, Text(""), *_wrapped(notes, view)), view)


def markdown(run: Record, view: View, denominator: str | None) -> str:
    """The same as Markdown."""
    rows = roofline(run, view.by, denominator, view.phase)
    columns = _columns(run, rows, view.by)
    shown = rows.head(view.top or _TOP).to_dict(orient="records")
    table = [[*columns], ["---" if head in (view.by, *_WORDS) else "---:" for head in columns]]
    table += [[cell(row) for cell in columns.values()] for row in shown]
    piped = "".join(f"| {' | '.join(map(_escaped, row))} |\n" for row in table)
    return "\n\n".join([*_sentences(run, rows, denominator), piped, *_notes(run, rows, len(shown), view.by)]) + "\n"


def csv(run: Record, view: View, denominator: str | None) -> str:
    """Raw figures: exact integers, seconds, FLOP/s, FLOP per byte, shares of 1; empty where unknown."""
    return _rows(run, view, denominator).to_csv(index=False, lineterminator="\n")


def json(run: Record, view: View, denominator: str | None) -> str:
    """Raw figures: the ceilings and ridges under ``roofs``, a list of objects under ``rows``; null where unknown.

    Under ``phases`` those of a generation, as `gpuprof.analysis.roofline.clouds` has them.
    """
    tables = {"rows": _rows(run, view, denominator), "phases": clouds(run)}
    found = [entry._asdict() | {"ridges": {dtype: entry.ridge(dtype) for dtype in dtypes(run)}} for entry in roofs(run)]
    result = {"roofs": found} | {
        name: [{key: plain(value) for key, value in row.items()} for row in table.to_dict(orient="records")]
        for name, table in tables.items()
    }
    return json_module.dumps(result, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Record, View, str | None], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": csv,
    "json": json,
}
"""Every format by name."""


def _rows(run: Record, view: View, denominator: str | None) -> pd.DataFrame:
    rows = roofline(run, view.by, denominator, view.phase)
    return rows if view.top is None else rows.head(view.top)


def _columns(run: Record, rows: pd.DataFrame, by: str) -> Cells:
    """Heads of the columns, and how a row's figure is shown; those in which nothing is known are left out."""
    columns: Cells = {by: lambda row: short_name(row["name"])}
    if by in ("class", "module") or (rows["phase"] != "").any():
        columns["phase"] = lambda row: row["phase"]
    columns |= {
        "kind": lambda row: row["kind"],
        "time": lambda row: units.percent(row["time_share"]),
        "FLOP/B": lambda row: flop_per_byte(row["intensity"]),
        "FLOP/s": lambda row: _rate(row["flops_per_s"]),
        "of roof": lambda row: units.percent(plain(row["of_roof"])),
        "bound by": lambda row: row["bound"] or units.MISSING,
    }
    if rows["dram_intensity"].notna().any():
        columns["DRAM FLOP/B"] = lambda row: flop_per_byte(row["dram_intensity"])
    if by != "kernel" and run.device.get("type") == "cuda":  # on a CPU an operator is its own kernel
        columns["kernel"] = lambda row: row["kernel"] + (f" + {row['kernels'] - 1}" if row["kernels"] > 1 else "")
    return columns


def _sentences(run: Record, rows: pd.DataFrame, denominator: str | None) -> Iterator[str]:
    yield subject(run)
    ceilings = chosen_roofs(run, denominator)
    if not ceilings.flops_per_s:
        remedy = run.device.get("peak_remedy") or "give one with 'gpuprof profile --peak-tflops'"
        yield f"No peak is known of this device, so no roof: {remedy}."
        return
    if not ceilings.bytes_per_s:
        yield (
            "No memory bandwidth is known of this device, so no ridge: 'gpuprof ceilings' measures one, which the next "
            "profile takes in."
        )
        return
    for dtype in dtypes(run):
        ridge = ceilings.ridge(dtype)
        if ridge is not None:
            yield (
                f"Ridge at {flop_per_byte(ridge)} FLOP/B: {dtype} {units.si(ceilings.flops_per_s[dtype], 'FLOP/s')} "
                f"({WORDS[ceilings.denominator]}) over {units.si(ceilings.bytes_per_s, 'B/s')} "
                f"({ceilings.bandwidth_of})."
            )
    shares = by_bound(rows)
    time = "kernel time" if run.device.get("type") == "cuda" else "operator time"
    parts = [f"{bound} limits {units.percent(shares[bound])}" for bound in _LIMITS if bound in shares]
    if "communication" in shares:
        parts.append(f"communication takes {units.percent(shares['communication'])}")
    if shares.get("", 0) >= 0.0005:
        parts.append(f"nothing that is known {units.percent(shares[''])} (no rule, no peak, or no work)")
    yield f"Of the {time}, at these ceilings: {', '.join(parts)}."
    yield from _clouds(run, rows, ceilings)


def _clouds(run: Record, rows: pd.DataFrame, ceilings: Roofs) -> Iterator[str]:
    """What limits each phase of a generation, and its intensity as a whole."""
    for cloud in clouds(run).to_dict(orient="records"):
        mine = rows[rows["phase"] == cloud["phase"]]
        if mine.empty:
            continue
        whole = mine["time_share"].sum()
        shares = {bound: share / whole for bound, share in by_bound(mine).items()}
        limits = [
            f"{bound} limits {units.percent(shares[bound])}" for bound in ("memory", "compute") if bound in shares
        ]
        text = f"{cloud['phase'].capitalize()}: {', '.join(limits) or 'no limit is known'}"
        if cloud["flops"]:
            text += f"; {units.si(cloud['flops'], 'FLOPs')} of products"
            for nbytes, what in ((cloud["moved_bytes"], "that must move"), (cloud["bytes"], "of its operators")):
                if nbytes:
                    text += f", {flop_per_byte(cloud['flops'] / nbytes)} FLOP/B over {units.size(nbytes)} {what}"
        yield f"{text}."


def _notes(run: Record, rows: pd.DataFrame, shown: int, by: str) -> Iterator[str]:
    if counters_only(run):
        yield (
            "FLOP/B are executed FLOPs of the dtypes that were collected over bytes that device memory moved. Times "
            "are of kernels that ran one by one under the counters, at their clock."
        )
    else:
        yield (
            "FLOP/B are FLOPs over the least bytes: FLOPs of products as the hardware does them, of vector work an "
            "estimate. Of roof is the time at the ceiling that limits it over the time taken."
        )
    if by in ("class", "module"):
        yield "A row is what the modules own themselves, without their children."
    above = rows[rows["of_roof"].fillna(0) > 1]
    if len(above):
        yield (
            f"{len(above)} of {len(rows)} rows, with {units.percent(above['time_share'].sum())} of the time, are above "
            "their roof: bytes that stayed in a cache, or a ceiling lower than what the device can do."
        )
    if shown < len(rows):
        left = units.percent(rows["time_share"].iloc[shown:].sum())
        yield f"Not shown: {len(rows) - shown} rows with {left} of the time."


def short_name(name: str) -> str:
    """An operator's name as people say it."""
    return name.removeprefix("aten::").replace("_scaled_dot_product_", "sdpa_") or "(root)"


def flop_per_byte(value: Any) -> str:
    """An arithmetic intensity in three digits."""
    known = plain(value)
    if known is None:
        return units.MISSING
    return "<0.001" if 0 < known < 0.001 else units.significant(float(known), 3)


def _rate(value: Any) -> str:
    known = plain(value)
    return units.MISSING if not known else units.si(float(known), digits=3)


def _wrapped(sentences: list[str], view: View) -> list[Text]:
    return [
        Text(line) for sentence in sentences for line in textwrap.wrap(sentence, view.width, break_on_hyphens=False)
    ]


def _escaped(value: str) -> str:
    return value.replace("|", "\\|").replace("<", "&lt;")
