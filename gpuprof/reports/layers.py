"""Tables of layers with cells between bars: Lightning's ModelSummary, plain and by rich, and torchtnt's summary."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpuprof.reports.figures import Claim, figure
from gpuprof.reports.source import TOTAL, Source, short
from gpuprof.reports.tables import header

LIGHTNING_HEADER = r"(?:┃\s*|(?<!\s)\s*)[|┃] Name\s*[|┃] Type\s*[|┃] Params\b"
TORCHTNT_HEADER = r"Name\s*\| Type\s*\| # Parameters\b"

_LIGHTNING = {"Params": "params", "FLOPs": "flops"}
_LIGHTNING_TOTALS = {
    "trainable params": "params_trainable",
    "non-trainable params": "params_frozen",
    "total params": "params",
    "total flops": "flops_forward",
}
_TORCHTNT = {
    "# Parameters": "params",
    "# Trainable Parameters": "params_trainable",
    "Size (bytes)": "param_bytes",
    "Forward FLOPs": "macs",
    "Backward FLOPs": "macs_backward",
    "Forward Elapsed Times (ms)": "latency",
}
_UNKNOWN = ("", "?", "n/a", "--")
_BAR = re.compile(r"(?<!\S)[|│┃](?!\S)")

_CUT = "figures from 100 of a unit on are cut off, not rounded: 350 K is anything below 351 K"


def read_lightning(source: Source) -> None:
    """Summary of Lightning, whose FLOPs are those of FlopCounterMode over the forward of its example input."""
    title, rows = _rows(source, LIGHTNING_HEADER)
    counted = "In sizes" in title or "sizes" in title  # rich breaks the title in two
    last = 0
    for number, cells in rows:
        last = number
        if cells["Name"] in _UNKNOWN:
            continue  # rich: what is left of a long cell
        if cells["Name"] == "other params":
            source.notes.append("parameters outside of the layers ('other params') have no module")
            continue
        cls = "" if cells["Type"].endswith("…") else cells["Type"]
        for column, quantity in _LIGHTNING.items():
            if column in cells and (counted or quantity == "params"):
                _add(source, number, cells["Name"], cls, quantity, cells[column])
    _lightning_totals(source, last, counted)
    source.notes.append(_CUT)
    if "FLOPs" in title and not counted:
        source.notes.append("FLOPs are left out: without an example input Lightning prints 0 for all of them")
    elif "FLOPs" in title:
        source.notes.append("FLOPs are of the forward of the example input, counted by torch's FlopCounterMode")


def _lightning_totals(source: Source, last: int, counted: bool) -> None:
    found = set()
    for place, line in enumerate(source.lines[last:], start=last + 1):
        plain = re.fullmatch(r"(?P<value>[\d,.]+(?: [KMBT])?)\s+(?P<label>[A-Z][A-Za-z -]+)", line.strip())
        rich = re.fullmatch(r"(?P<label>[A-Z][A-Za-z -]+): (?P<value>[\d,.]+(?: [KMBT])?)", line.strip())
        match = plain or rich
        quantity = _LIGHTNING_TOTALS.get(match["label"].lower()) if match else None
        if match and quantity and (counted or quantity != "flops_forward"):
            _add(source, place, TOTAL, "", quantity, match["value"])
            found.add(quantity)
    if "params" not in found:
        raise source.error("no line 'N Total params' follows the table: the report is cut off", last)


def read_torchtnt(source: Source) -> None:
    """What torchtnt's `get_summary_table` returns."""
    title, rows = _rows(source, TORCHTNT_HEADER)
    for number, cells in rows:
        for column, quantity in _TORCHTNT.items():
            if column in cells:
                _add(source, number, cells["Name"], cells["Type"], quantity, cells[column])
    source.notes.append(_CUT)
    if "Forward FLOPs" in title:
        source.notes.append("what torchtnt calls FLOPs are MACs of matrix products and convolutions; no attention")
    if "Forward Elapsed Times (ms)" in title:
        source.notes.append("its ms are seconds divided by 1000 (0.2.4): its latencies are a million times too short")


def _rows(source: Source, pattern: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Titles of the columns, and for each row its line and cells by title."""
    first, line = header(source, pattern)
    titles = _split(line)
    rows = list(_cells(source, first, titles))
    if not rows:
        raise source.error("no row of modules follows: the report is cut off", first)
    return titles, rows


def _cells(source: Source, first: int, titles: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for place, line in enumerate(source.lines[first:], start=first + 1):
        if not _BAR.search(line):
            if re.fullmatch(r"\W{4,}", line.strip()) and place == first + 1:
                continue  # the line under the titles
            return
        cells = _split(line)
        if len(cells) != len(titles):
            raise source.error(f"expected {len(titles)} columns between bars, found {short(line)}", place)
        yield place, dict(zip(titles, cells, strict=True))


def _split(line: str) -> list[str]:
    """Cells of a row, without the bars at its two ends that rich draws."""
    text = line.strip()
    if text[:1] in tuple("│┃"):
        text = text[1:-1]
    return [cell.strip() for cell in _BAR.split(text)]


def _add(source: Source, place: int, module: str, cls: str, quantity: str, text: str) -> None:
    if text in _UNKNOWN:
        return
    found = figure(text.replace(" k", " K"))
    if found is None:
        raise source.error(f"expected a number for {quantity}, found {short(text)}", place)
    if quantity == "latency":
        found = Claim(found.value / 1000, found.precision / 1000)
    elif "." not in text and re.search("[A-Za-z]", text):
        found = Claim(found.value, 2 * found.precision)
    source.add(place, module, cls, quantity, found, text)
