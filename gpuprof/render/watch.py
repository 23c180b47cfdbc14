"""A training while it runs, as text: a table of its reads, or a line for each, and sentences of what moved."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.changepoints import SETTLED, Change
from gpuprof.analysis.following import FIGURES, Training
from gpuprof.late import pd
from gpuprof.render.console import to_text
from gpuprof.render.tables import aligned, plain
from gpuprof.render.view import View

_WRITE: dict[str, tuple[str, Callable[[float], str]]] = {
    "mfu": ("MFU", units.percent), "hfu": ("HFU", units.percent),
    "tokens_per_s": ("tokens/s", units.si), "non_padding_tokens_per_s": ("without padding", units.si),
    "samples_per_s": ("samples/s", units.si), "flops_per_s": ("FLOP/s", units.si),
    "step_s": ("step time", units.duration), "between_s": ("between", units.duration),
    "sm_clock_mhz": ("SM clock", lambda mhz: f"{mhz:,.0f} MHz"),
}  # fmt: skip
_GIVE_WAY = ("HFU", "FLOP/s", "samples/s", "date", "without padding", "between", "SM clock", "tokens/s")
_LINE = ("mfu", "tokens_per_s", "samples_per_s", "step_s", "between_s")
_NOTHING = "No read yet: the meter writes when it is read.\n"


def render_watch(
    ranks: Mapping[int, Training], reads: pd.DataFrame, moved: Sequence[Sequence[Change]], format: str = "text",
    limit: int = 20, view: View | None = None,
) -> str:  # fmt: skip
    """The newest reads of a training, and what moved in all of them.

    Args:
        ranks: what each has logged.
        reads: as from `gpuprof.analysis.following.together`.
        moved: as from `gpuprof.analysis.following.moved`.
        format: of `FORMATS`.
        limit: reads in it.
        view: of it, width and color count.
    """
    return FORMATS[format](ranks, reads, moved, limit, view or View())


def text(
    ranks: Mapping[int, Training], reads: pd.DataFrame, moved: Sequence[Sequence[Change]], limit: int, view: View
) -> str:
    """A table, the newest read last, and sentences below it."""
    if reads.empty:
        return _NOTHING
    cells = _cells(reads.tail(limit))
    grid, left_out = aligned(cells, view.width, {"date"}, _GIVE_WAY)
    more = [f"The newest {limit} of {units.number(len(reads), 'read')}."] if len(reads) > limit else []
    lines = [*([left_out] if left_out else []), *more, *sentences(reads, moved)]
    return to_text(Group(Text(title(ranks), style="bold"), grid, *map(Text, lines)), view)


def markdown(
    ranks: Mapping[int, Training], reads: pd.DataFrame, moved: Sequence[Sequence[Change]], limit: int, view: View
) -> str:
    """The same as Markdown."""
    if reads.empty:
        return _NOTHING
    cells = _cells(reads.tail(limit))
    rows = [list(cells), ["---:"] * len(cells), *zip(*cells.values(), strict=True)]
    lines = [f"### {title(ranks)}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join([*lines, *(f"- {line}" for line in sentences(reads, moved))]).rstrip() + "\n"


def csv(
    ranks: Mapping[int, Training], reads: pd.DataFrame, moved: Sequence[Sequence[Change]], limit: int, view: View
) -> str:
    """A row per read with raw figures, empty where unknown."""
    return reads[["step", "date", "ranks", *FIGURES]].tail(limit).to_csv(index=False, lineterminator="\n")


def json(
    ranks: Mapping[int, Training], reads: pd.DataFrame, moved: Sequence[Sequence[Change]], limit: int, view: View
) -> str:
    """An object with the reads and the changes: raw figures, null where unknown."""
    rows = reads[["step", "date", "ranks", *FIGURES]].tail(limit).to_dict("records")
    found = [
        {
            "metric": one.metric, "after_step": int(reads["step"].iloc[one.since]), "before": one.point.before,
            "after": one.point.after, "change": one.point.change, "p": one.point.p,
            "infrastructure": one.infrastructure, "provisional": one.provisional,
        }
        for group in moved
        for one in group
    ]  # fmt: skip
    listed = [{str(name): plain(value) for name, value in row.items()} for row in rows]
    return json_module.dumps({"reads": listed, "changes": found}, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[..., str]] = {"text": text, "markdown": markdown, "csv": csv, "json": json}
"""Every format by name."""


def title(ranks: Mapping[int, Training]) -> str:
    """What trains, and on what."""
    header = ranks[min(ranks)].header
    device = header["device"].get("name") or header["device"]["type"]
    several = f", {len(ranks)} ranks" if len(ranks) > 1 else ""
    return f"{header['workload']['name']} on {device}{several}"


def line(read: Mapping[str, Any]) -> str:
    """One read, where there is no terminal that a table could be drawn anew on."""
    known = [(name, read[name]) for name in _LINE if not pd.isna(read[name])]
    told = [f"{_WRITE[name][0]} {_WRITE[name][1](value)}" for name, value in known]
    return "  ".join([f"step {read['step']:,}", *(told or ["no step whose time counts"])])


def sentences(reads: pd.DataFrame, moved: Sequence[Sequence[Change]]) -> list[str]:
    """What moved, a line for each place, and what provisional means where one is."""
    lines = [sentence(reads, group) for group in moved]
    if any(one.provisional for group in moved for one in group):
        lines.append(f"A provisional change is not seen without the newest {SETTLED} reads: later ones may undo it.")
    return lines


def sentence(reads: pd.DataFrame, group: Sequence[Change]) -> str:
    """Where some figures changed at once, by how much, and whether the clock did."""
    levels = [_levels(one) for one in group]
    first = group[0]
    if first.metric == "sm_clock_mhz":
        cause = ": the clock alone"
    elif first.infrastructure is None:
        cause = ""
    elif first.clock is None:
        cause = ", the SM clock did not move"
    elif first.infrastructure:
        cause = ", infrastructure: the SM clock moved with it"
    else:
        cause = f", more than the SM clock explains, which moved by {100 * first.clock.change:+.1f} %"
    provisional = ", provisional" if all(one.provisional for one in group) else ""
    return f"After step {reads['step'].iloc[first.since]:,}: {', '.join(levels)}{cause}{provisional}."


def _levels(change: Change) -> str:
    name, write = _WRITE[change.metric]
    point = change.point
    return f"{name} {write(point.before)} -> {write(point.after)} ({100 * point.change:+.1f} %)"


def _cells(reads: pd.DataFrame) -> dict[str, list[str]]:
    """Columns by name, without those in which nothing is known."""
    cells = {
        "step": [f"{step:,}" for step in reads["step"]],
        "date": [f"{date[:10]} {date[11:19]}" for date in reads["date"]],
    }
    for name, (head, write) in _WRITE.items():
        if reads[name].notna().any():
            cells[head] = [units.MISSING if pd.isna(value) else write(value) for value in reads[name]]
    return cells
