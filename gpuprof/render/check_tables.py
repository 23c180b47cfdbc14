"""What a check and a comparison have in common: the table of metrics, and those of what moved."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.check import NO_VERDICT, Check
from gpuprof.analysis.comparison import BY_NAME, KEYS
from gpuprof.analysis.judge import Verdict
from gpuprof.analysis.metrics import DECIDES, OF_GENERATIONS
from gpuprof.analysis.regression import DRIFT, FEWEST, IMPROVEMENT, INCONCLUSIVE, PASS, REGRESSION
from gpuprof.late import pd
from gpuprof.render.tables import aligned
from gpuprof.render.view import View
from gpuprof.schema import UNATTRIBUTED

_PEAKS = {"given": ", given peak", "datasheet": ", datasheet", "clock": " at the clock", "measured": ", measured peak"}

NAMES = {
    **DECIDES, **OF_GENERATIONS, "tpot_p99_s": "99 % of tokens within", "forward_s": "forward",
    "backward_s": "backward", "optimizer_s": "optimizer", "tokens_per_s": "tokens/s", "samples_per_s": "samples/s",
    **{f"{name}_{peak}": f"{words}{by}" for name, words in (("mfu", "MFU"), ("mfu_prefill", "prefill MFU"))
       for peak, by in _PEAKS.items()},
    "mbu_datasheet": "decode MBU, datasheet", "mbu_measured": "decode MBU, measured copy",
    "energy_j": "energy per step",
}  # fmt: skip
"""Metrics as people read them."""

COLORS = {REGRESSION: "red", DRIFT: "yellow", INCONCLUSIVE: "yellow", IMPROVEMENT: "green", PASS: "green"}
HEADS = ("metric", "baseline", "head", "change", "limit", "confidence", "verdict")
_COMPARED = ("status", "baseline", "head", "change", "share", "of net", "kernels")
_MOVED = ("status", "baseline", "head", "change", "share", "kernels")
_WORDS = {"metric", "verdict", "status", *itertools.chain(*KEYS.values())}  # columns of text
_GIVE_WAY = ("kernels", "confidence", "limit", "baseline")  # columns that a narrow terminal does without

TOP = 10  # rows of what moved, for people

_BESIDE = (
    "A verdict in brackets does not decide: it is the step time in other units, a part of it, energy, or by a peak "
    "that was measured anew."
)
_UNJUDGED = f"No verdicts: they need a baseline of {FEWEST} launches at least, as 'gpuprof check' takes them."


def _both_ways(table: pd.DataFrame) -> str:
    """What went either way; empty where all went one."""
    changes = table["change_s"]
    gained, lost = float(changes[changes > 0].sum()), float(changes[changes < 0].sum())
    if not gained or not lost:
        return ""
    text = f"{signed_duration(gained)} in what is new or slower, {signed_duration(lost)} in what is gone or faster"
    if table["share"].isna().all():
        return f"{text}: they nearly cancel, so nothing has a share of the difference."
    return f"{text}: shares are of the net {signed_duration(gained + lost)}, and go beyond 100 %."


def signed_duration(seconds: float) -> str:
    """A difference in time, with its sign."""
    return f"{'-' if seconds < 0 else '+'}{units.duration(abs(seconds))}"


def metric_rows(check: Check) -> list[list[str]]:
    """Cells of the metrics, those that decide first."""
    rows = []
    for one in sorted(check.verdicts, key=lambda one: one.metric not in check.decides):
        status = one.status if one.metric in check.decides else f"({one.status})"
        figures = [figure(one.metric, one.m0), figure(one.metric, one.value), signed_percent(one.change)]
        rows.append([NAMES[one.metric], *figures, limit_of(one), _confidence(one), status])
    return rows


def _confidence(one: Verdict) -> str:
    if one.p == one.p:  # not a NaN
        return f"p = {one.p:.4f}"
    if one.z != one.z:
        return "exact" if one.n else units.MISSING
    return f"z = {one.z:.1f}" if one.known >= FEWEST else units.MISSING


def figure(metric: str, value: float) -> str:
    """A metric's figure in its unit."""
    if metric.endswith("_s") and "per_s" not in metric:
        return units.duration(value)
    if metric.startswith(("mfu", "mbu")):
        return units.percent(value)
    if metric == "peak_bytes":
        return units.size(value)
    return units.si(value, {"energy_j": "J", "flops": "FLOPs"}.get(metric, ""))


def signed_percent(share: float) -> str:
    """A change as a share, with its sign; 0 where it has no digit in print."""
    if share != share:
        return units.MISSING
    return units.percent(0.0) if abs(share) < 0.0005 else f"{'+' if share > 0 else '-'}{units.percent(abs(share))}"


def limit_of(one: Verdict) -> str:
    """What a metric may change by, in the unit that its limit is in."""
    if one.metric == "peak_bytes":
        return units.size(one.threshold * one.m0)
    return units.percent(one.threshold) if one.z != one.z or one.known >= FEWEST else units.MISSING


def notes_of(check: Check, judged: bool) -> Iterator[str]:
    """What is to be known of a check: how its verdicts are to be read, then its own notes."""
    if not judged:
        yield _UNJUDGED if check.decides else f"Two runs beside one another: {NO_VERDICT}."
    elif len(check.deciding) < len(check.verdicts):
        yield _BESIDE
    yield from check.notes


def moved_text(check: Check, view: View, compared: bool = False) -> Iterator[RenderableType]:
    """A table of what moved for each way to tell it; ``compared`` as `_moved` has it."""
    for by, table in check.moved.items():
        rows = _moved(table, by, view.top or TOP, compared)
        if by == "op-kernel":  # room for the kernel
            rows = [[units.shortened(op, 30), *cells] for op, *cells in rows]
        if rows:
            yield Text(_title(check, by, table, len(rows)), style="bold")
            if compared and (ways := _both_ways(table)):
                yield wrapped(ways, view)
            yield text_grid((*KEYS[by], *(_COMPARED if compared else _MOVED)), rows, view)
        else:
            yield Text(_unmoved(by, table))
        yield Text("")


def moved_markdown(check: Check, view: View, compared: bool = False) -> Iterator[str]:
    """The same as Markdown tables."""
    for by, table in check.moved.items():
        rows = _moved(table, by, view.top or TOP, compared)
        yield f"**{_title(check, by, table, len(rows))}**\n" if rows else f"{_unmoved(by, table)}\n"
        if rows and compared and (ways := _both_ways(table)):
            yield f"{escaped(ways)}\n"
        if rows:
            yield markdown_rows((*KEYS[by], *(_COMPARED if compared else _MOVED)), rows)


def _title(check: Check, by: str, table: pd.DataFrame, shown: int) -> str:
    number = int((table["status"] != "same").sum())
    which = f": the {shown} largest of {number}" if number > shown else ""
    if check.base.recorded or check.head.recorded:
        return f"Own kernel time that moved, by {by}{which}"
    steps = ", of one traced step per run" if by in BY_NAME else ""
    if check.head.is_job:
        return f"Own kernel time per step, the mean of the ranks, that moved, by {by}{which}"
    return f"Own kernel time per step that moved, by {by}{steps}{which}"


def _unmoved(by: str, table: pd.DataFrame) -> str:
    return f"No kernel time moved, by {by}." if len(table) else f"Whose kernels moved, by {by}: needs a trace of both."


def _moved(table: pd.DataFrame, by: str, top: int, compared: bool = False) -> list[list[str]]:
    """Cells of the rows that moved most; ``compared`` with their share of the whole difference."""
    rows = []
    for row in table[table["status"] != "same"].head(top).to_dict(orient="records"):
        before, after = (units.si(number_of(row[f"{side}_kernels"])) for side in ("base", "head"))
        share = "" if row["status"] in ("new", "gone") else signed_percent(float(row["change"]))
        kernels = before if before == after else f"{before} to {after}"
        times = [units.duration(row["base_s"]), units.duration(row["head_s"])]
        of_net = [units.percent(row["share"])] if compared else []
        rows.append(
            [*part_names(row, by), row["status"], *times, signed_duration(row["change_s"]), share, *of_net, kernels]
        )
    return rows


def _function(kernel: str) -> str:
    """What tells a kernel from others, first: without its return type and CUTLASS's mere frame."""
    return re.sub(r"^(void )?(cutlass::(device_)?[Kk]ernel2?<)?", "", kernel)


def part_names(row: dict[Any, Any], by: str) -> list[str]:
    """What a row of `gpuprof.analysis.moved.moved` is of, in words."""
    empty = {"op": "(no operator)", "class": UNATTRIBUTED}
    names = {name: row[name] or empty.get(name, "(root)") for name in KEYS[by]}
    return [_function(value) if by == "op-kernel" and name == "kernel" else value for name, value in names.items()]


def number_of(value: Any) -> float | None:
    """A figure, or None where it is not known."""
    return None if pd.isna(value) else float(value)


def text_grid(heads: tuple[str, ...], rows: list[list[str]], view: View) -> Table:
    """On a narrow terminal some figures are left out, and the first names are cut."""
    columns = {head: [row[index] for row in rows] for index, head in enumerate(heads)}
    cut = "kernel" if "kernel" in heads else heads[0]
    return aligned(columns, view.width, _WORDS, _GIVE_WAY, (cut,), COLORS)[0]


def markdown_rows(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [list(heads), ["---" if head in _WORDS else "---:" for head in heads], *rows]
    return "".join(f"| {' | '.join(escaped(cell) for cell in line)} |\n" for line in lines)


def escaped(value: str) -> str:
    """A text that Markdown shows as it is."""
    return value.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def wrapped(line: str, view: View) -> Text:
    """A sentence over as many lines as the view asks for."""
    return Text("\n".join(textwrap.wrap(line, view.width, break_on_hyphens=False, break_long_words=False)))
