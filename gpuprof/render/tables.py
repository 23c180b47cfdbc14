"""Rows and columns: for people (text, Markdown) and for machines (CSV, JSON)."""

from __future__ import annotations

import json as json_module
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.collectives import JOB_COLUMNS, ON_A_CPU
from gpuprof.analysis.consistency import withheld_of_kernels, withheld_of_step
from gpuprof.analysis.executed import ALONE, KERNEL_COLUMNS
from gpuprof.analysis.generation import BANDWIDTHS, PARTS, bandwidth, bandwidths, moved, withheld_of_bytes
from gpuprof.analysis.known_flops import known_of
from gpuprof.analysis.ranks import straggler
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.console import to_text
from gpuprof.render.view import View, frame

_READABLE = [
    "module", "class", "time_s", "time_forward_s", "time_backward_s", "kernel_mfu", "modules", "params", "macs",
    "flops_forward", "flops_backward", "flops_per_s_forward", "flops_per_s_backward", "kernel_mfu_forward",
    "kernel_mfu_backward",
]  # fmt: skip
"""What people read of modules and classes; machines get every column."""

_READABLE_PARTS = [
    "module", "class", "modules", "time_prefill_s", "kernel_mfu_prefill", "time_decode_s", "kernel_mbu_decode",
    "params", "flops_prefill", "bytes_decode", "flops_decode", "time_encode_s", "kernel_mfu_encode", "flops_encode",
    "macs",
]  # fmt: skip
"""The same of a generation."""

_MOST_PARTS = 16
"""Parts of a generation that people get to see, the first and the last among them; machines get all."""

_OF_MODULES = "FLOPs are those of all ranks together, times the mean of one traced step of each."
OF_A_JOB = {
    "module": _OF_MODULES,
    "class": _OF_MODULES,
    "op": "Calls, FLOPs and bytes are those of all ranks together, kernels and times the mean of one traced step.",
    "phase": (
        "FLOPs and bytes are those of all ranks together, times of kernels the mean of one traced step of each; time_s "
        "is that of the rank that took longest."
    ),
    "communication": (
        "Calls and bytes are of one rank; latency is what the fastest rank takes for a call, skew what the slowest "
        "takes longer; algbw is bytes over latency, busbw that of the bus as nccl-tests has it; exposed is what no "
        "computation hides, the mean of the ranks."
    ),
    "rank": (
        "A rank's times are of one traced step, of several the one of median length, and idle what they leave of the "
        "step; FLOPs are its own, MFU is over its own step and peak."
    ),
}
"""What the figures of a job's tables are of, by what a row is."""

OF_COMPILED = {
    "op": (
        "Calls, FLOPs and bytes are those of the model without compilation, times and kernels those of what ran; "
        "flops_compiled and vector_flops_compiled are what compiled kernels do, and rates are of what ran."
    ),
    "kernel": (
        "Owners are the modules that a kernel has work of, each with its share of the time by the bytes that it moves; "
        "FLOPs and bytes are of the operators that the compiler left in it."
    ),
}
"""What the figures of a compiled run's tables are of, by what a row is."""

_WIDEST, _WIDEST_OF_TWO = 56, 30  # characters of a cell, and where kernels and their owners share the width
_CUT = 22  # characters that names are cut to before a column is left out
_SENTENCES = ("because", "causes", "owners")  # with figures in them
_KEPT = 2  # figures that are left out after all words
_IN_FULL = ("params", "trainable_params", "calls", "kernels", "base_kernels", "head_kernels", "modules", "launches")
"""Exact counts that people read to the last digit."""


def text(run: Record, view: View) -> str:
    """An aligned table: names are cut before columns are left out, the rightmost first and the first figures last."""
    raw = frame(run, view)
    rows = _rows(run, view, raw)
    widest = _WIDEST_OF_TWO if "owners" in rows else _WIDEST
    columns = {str(column): [_named(value, str(column), widest) for value in rows[column]] for column in rows}
    words = set(filter(_is_text, columns))
    kept = [head for head in columns if head not in words][:_KEPT]
    grid, note = aligned(columns, view.width, words, [head for head in [*columns][:0:-1] if head not in kept], words)
    return to_text(grid, view) + "".join(f"{line}\n" for line in (note, *_notes(run, view, raw)) if line)


def aligned(
    columns: Mapping[str, Sequence[str]],
    width: int,
    words: Collection[str],
    give_way: Iterable[str],
    cut: Collection[str] = (),
    styles: Mapping[str, str] | None = None,
) -> tuple[Table, str]:
    """An aligned table in which no figure is cut: names are, and columns that do not fit the width left out whole.

    Args:
        columns: cells by head.
        width: in characters.
        words: heads of text, on the left; figures are on the right.
        give_way: heads that are left out first, in that order; the others follow, but the first column stays.
        cut: heads of names that are rather cut, to 22 characters, than that anything is left out.
        styles: of cells, by what they say.

    Returns:
        The table, and a line that names what was left out, empty if nothing was.
    """
    widths = {head: max(map(len, [head, *cells])) + 2 for head, cells in columns.items()}
    least = widths | {head: min(widths[head], _CUT + 2) for head in cut}
    shown = list(columns)
    for head in (*give_way, *shown[:0:-1]):
        if head in shown and sum(least[one] for one in shown) - 2 > width:  # none follows the last
            shown.remove(head)
    over = sum(widths[one] for one in shown) - 2 - width
    for _ in range(over):
        if widest := max((head for head in shown if widths[head] > least[head]), key=widths.__getitem__, default=""):
            widths[widest] -= 1
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in shown:
        side: Literal["left", "right"] = "left" if head in words else "right"
        grid.add_column(head, justify=side, no_wrap=True, overflow="ellipsis")
    for cells in zip(*(columns[head] for head in shown), strict=True):
        texts = [
            _named(cell, head, widths[head] - 2) if head in cut else cell
            for head, cell in zip(shown, cells, strict=True)
        ]
        grid.add_row(*(Text(text, style=(styles or {}).get(cell, "")) for text, cell in zip(texts, cells, strict=True)))
    left_out = [head for head in columns if head not in shown]
    return grid, f"Not shown at this width: {', '.join(left_out)}" if left_out else ""


def _named(name: str, head: str, most: int) -> str:
    """A name that may be cut: at its end, of a module at the front of its path, of a sentence after a word."""
    if len(name) > most and head in _SENTENCES:
        return f"{name[: most - 1].rpartition(' ')[0].rstrip(' 0123456789.,+-%')}\N{HORIZONTAL ELLIPSIS}"
    return units.shortened(name[::-1], most)[::-1] if head == "module" else units.shortened(name, most)


def markdown(run: Record, view: View) -> str:
    """A Markdown table with readable figures."""
    raw = frame(run, view)
    rows, notes = _rows(run, view, raw), [_cell(note) for note in _notes(run, view, raw) if note]
    lines = [list(map(str, rows.columns)), [("---" if _is_text(c) else "---:") for c in rows]]
    lines += [[_cell(value) for value in row] for row in rows.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "".join(f"\n{note}\n" for note in notes)


def csv(run: Record, view: View) -> str:
    """Raw figures: exact integers, seconds, FLOP/s, shares of 1; empty where unknown."""
    return _raw(run, view).to_csv(index=False, lineterminator="\n")


def json(run: Record, view: View) -> str:
    """Raw figures as a list of objects; null where unknown."""
    rows = [{column: plain(value) for column, value in row.items()} for row in _raw(run, view).to_dict("records")]
    return json_module.dumps(rows, indent=1, allow_nan=False) + "\n"


def _raw(run: Record, view: View) -> pd.DataFrame:
    """The rows for machines; where rates are withheld with a column that says why."""
    rows = frame(run, view)
    reason = _withheld(run, rows) or _withheld_bytes(run, rows)
    return rows.assign(withheld=reason) if reason else rows


def _notes(run: Record, view: View, rows: pd.DataFrame) -> list[str]:
    """What a reader of the rows has to know of them; empty where there is nothing."""
    alone = ALONE if list(rows) == KERNEL_COLUMNS else _why_withheld(run, rows)
    known = known_of(run) if view.by == "convention" or ({"mfu", "kernel_mfu"} & {*rows} and not alone) else ""
    figures = "FLOPs" if view.by == "convention" else "FLOP/s and MFU"
    least = f"{figures} are at least that: {known}." if known else ""
    of_calls = ON_A_CPU if list(rows) == JOB_COLUMNS and run.device.get("type") == "cpu" else ""
    held_up = straggler(run).text if view.by == "rank" else ""
    of_rows = OF_A_JOB if run.is_job else OF_COMPILED if len(run.nodes) else {}
    no_flops = "flops" not in rows and "executed" not in rows and view.by == "kernel"
    of_kernels = "No FLOPs by kernel, as an operator may launch several: --by op has them." if no_flops else ""
    return [alone, least, of_kernels, held_up, of_rows.get(view.by, ""), of_calls, *_of_bytes(run, view, rows)]


def _why_withheld(run: Record, rows: pd.DataFrame) -> str:
    """The reason why rows have no rates, as a line; empty where they have, or never do."""
    reason = _withheld(run, rows)
    what = "FLOP/s, MFU and MBU" if reason == _withheld_bytes(run, rows) else "FLOP/s and MFU"
    if {"mfu", "kernel_mfu"} <= {*rows} and not withheld_of_step(run):
        what = "Kernel FLOP/s and kernel MFU"
    return f"{what} {reason}." if reason else ""


def _withheld(run: Record, rows: pd.DataFrame) -> str:
    return withheld_of_kernels(run) if "kernel_mfu" in rows else withheld_of_step(run) if "mfu" in rows else ""


def _withheld_bytes(run: Record, rows: pd.DataFrame) -> str:
    """The same of bytes that must move."""
    return (withheld_of_bytes(run) or _withheld(run, rows)) if _utilisations(rows) else ""


def _utilisations(rows: pd.DataFrame) -> list[str]:
    return [str(column) for column in rows if str(column).removeprefix("kernel_").startswith("mbu")]


def _of_bytes(run: Record, view: View, rows: pd.DataFrame) -> Iterator[str]:
    """What a reader has to know of MBU, if the rows have it."""
    if not (columns := _utilisations(rows)):
        return
    if reason := _withheld_bytes(run, rows):
        if reason != _withheld(run, rows):
            yield f"MBU {reason}."
    elif moved(run).empty or not (run.done("time") or run.done("trace")):
        return
    elif not bandwidths(run):
        yield "No MBU: no bandwidth of this device is known ('gpuprof ceilings' measures it)."
    else:
        name, per_s = bandwidth(run)
        yield f"MBU is bytes that must move over time and {BANDWIDTHS[name]}, {units.si(per_s, 'B/s')}."
    if (rows[columns].astype("Float64") > 1).any(axis=None):
        yield "Above 100 % the bytes fit the device's own caches: not all of them come from its memory."
    if view.by == "part" and (left_out := len(rows) - len(_thinned(view, rows))):
        yield f"{units.number(left_out, 'part')} between these are left out: --format csv has all."


def _thinned(view: View, parts: pd.DataFrame) -> pd.DataFrame:
    """Of many parts of a generation the first two, the last, and some at even distances between."""
    last = len(parts) - 1
    if last < _MOST_PARTS or view.top is not None:
        return parts
    steps = _MOST_PARTS - 2
    return parts.iloc[[0, *(1 + number * (last - 1) // steps for number in range(steps + 1))]]


def plain(value: Any) -> Any:
    """A figure as JSON has it; None where it is not known."""
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("<", "&lt;")


def _is_text(column: Any) -> bool:
    return column in (
        "module", "class", "op", "ops", "kernel", "phase", "kind", "convention", "because", "causes", "name", "group",
        "owners",
    )  # fmt: skip


def _rows(run: Record, view: View, raw: pd.DataFrame) -> pd.DataFrame:
    """The rows for people; below those of ranks the least, the median and the most of all of them."""
    rows = _readable(_thinned(view, raw).dropna(axis=1, how="all") if view.by == "part" else raw)
    if view.by != "rank" or len(whole := frame(run, View("rank", convention=view.convention))) < 2:
        return rows
    return pd.concat([rows, _readable(spread(whole))], ignore_index=True)


def spread(ranks: pd.DataFrame) -> pd.DataFrame:
    """The least, the median and the most of each figure of a table by rank, in its columns."""
    figures = ranks.drop(columns="rank").astype("float64")
    found = pd.DataFrame([figures.min(), figures.median(), figures.max()])
    return found.assign(rank=["min", "median", "max"])[list(ranks)]


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    if "flops_forward" in rows:
        columns = _READABLE_PARTS if any(f"flops_{phase}" in rows for phase in PARTS) else _READABLE
        rows = rows[[column for column in columns if column in rows]]
    cells = {column: [readable(column, value) for value in rows[column]] for column in rows}
    return pd.DataFrame(cells, dtype="object")


def readable(column: Any, value: Any) -> str:
    """A figure as its column's name says: seconds, FLOP/s, a share, bytes or a count."""
    name = str(column).removeprefix("kernel_")
    if _is_text(name) or isinstance(value, str):
        return "(root)" if name == "module" and value == "" else str(value)
    number = None if value is None or pd.isna(value) else float(value)
    if name.endswith("_s") and "per_s" not in name:
        return units.duration(number)
    if name.startswith("flops_per_s"):
        return units.si(number, "FLOP/s")
    if name in ("algbw", "busbw") or name.startswith("bytes_per_s"):
        return units.si(number, "B/s")
    if name.startswith(("mfu", "mbu")) or name.endswith("share") or name == "residual":
        return units.percent(number)
    if name == "factor":
        return units.MISSING if number is None else f"{number:.3f}"
    if name.endswith("_percent"):
        return units.percent(None if number is None else number / 100)
    if name.endswith("bytes") or name.startswith("bytes_"):
        return units.size(number)
    if name in _IN_FULL and number is not None and number.is_integer():
        return f"{int(number):,}"
    if name in ("part", "positions_before"):
        return units.MISSING if number is None else f"{int(number):,}"
    return units.si(number)
