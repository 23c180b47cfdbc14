"""A check of runs against runs: a verdict in a line, every metric, and whose kernels moved."""

from __future__ import annotations

import json as json_module
import re
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.check import Check
from gpuprof.analysis.comparison import fingerprint, workload_key
from gpuprof.analysis.judge import Verdict
from gpuprof.analysis.metrics import TOLERANCES
from gpuprof.analysis.regression import DRIFT, IMPROVEMENT, INCONCLUSIVE, PASS, REGRESSION
from gpuprof.late import pd
from gpuprof.render.check_tables import (
    COLORS,
    HEADS,
    NAMES,
    escaped,
    figure,
    limit_of,
    markdown_rows,
    metric_rows,
    moved_markdown,
    moved_text,
    notes_of,
    part_names,
    signed_percent,
    text_grid,
    wrapped,
)
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.view import View

_PART = 0.1  # of the time that the step gained: what gained less is not to blame for it


def render_check(check: Check, format: str = "text", view: View | None = None) -> str:
    """A check in one of the `FORMATS`. Of the view ``top`` (rows of what moved), ``width`` and ``color`` count."""
    return FORMATS[format](check, view or View())


def verdict(check: Check) -> list[str]:
    """The verdict in words: a line for each metric that decides it, and what gained most time."""
    said = [one for one in check.deciding if one.status == check.status] if check.status != PASS else []
    if not said:
        return [
            f"{_told(one)}: {signed_percent(one.change)}{' by the median of the pairs' if one.p == one.p else ''}, "
            f"{limit_of(one)} allowed"
            for one in check.deciding[:1]
        ]
    sentences = [f"{_told(one)}: {one.why}" for one in said]
    return sentences + (_blame(check) if check.status == REGRESSION else [])


def _sentences(check: Check) -> list[str]:
    return [f"{line[0].upper()}{line[1:]}." for line in verdict(check)]


def _blame(check: Check) -> list[str]:
    """What gained most time, and how much of it was gained outside of kernels."""
    gained = sum(one.value - one.m0 for one in check.verdicts if one.metric == "step_s" and one.status == REGRESSION)
    blamed: list[str] = []
    for by, table in check.moved.items():
        parts = _blamed(table, by, _PART * gained)
        if table.empty or not parts:
            break  # nor is it finer parts, of fewer traced steps and noisier
        blamed += parts
    said = [f"more time in {', '.join(blamed)}"] if blamed else []
    table = next(iter(check.moved.values()), pd.DataFrame())
    if gained and len(table) and (kernels := float(table["change_s"].sum())) < gained / 2:
        moved = f"changed by {'+' if kernels > 0 else '-'}{units.duration(abs(kernels))}" if kernels else "is the same"
        said.append(
            f"kernel time {moved}, the step +{units.duration(gained)}: most of it is between kernels, on the host"
        )
    return said


def _blamed(table: pd.DataFrame, by: str, least: float) -> list[str]:
    """The three parts that gained most time, of those that gained so many seconds."""
    gained = table["status"].isin(["new", "slower"]) & (table["change_s"] >= least)
    rows = table[gained].head(3).to_dict(orient="records")
    names = [textwrap.shorten(" ".join(part_names(row, by)), 80, placeholder="...") for row in rows]
    return [
        f"{name} (+{units.duration(row['change_s'])}, {row['status']})" for name, row in zip(names, rows, strict=True)
    ]


def _told(one: Verdict) -> str:
    said = f"{NAMES[one.metric]} {figure(one.metric, one.value)}"
    return f"{said} against {figure(one.metric, one.m0)}" if one.n else said


def change(check: Check) -> str:
    """Whether the head is slower or faster, or that it cannot be told, by what decides of its time; in a sentence."""
    times = [one for one in check.deciding if one.metric not in TOLERANCES]
    times = times or [one for one in check.verdicts if one.metric == "step_s"]  # where nothing is to be decided
    for status, word in _WAYS.items():
        if said := [one for one in times if one.status == status]:
            figures = "; ".join(f"{_told(one)} ({signed_percent(one.change)}){_because(one)}" for one in said)
            return f"{word}: {figures}."
    return "Whether it is slower or faster cannot be told: no time is known of both."


_WAYS = {
    REGRESSION: "Slower", INCONCLUSIVE: "Whether it is slower or faster cannot be told", IMPROVEMENT: "Faster",
    DRIFT: "The same as the level before it, which drifts", PASS: "The same",
}  # fmt: skip
"""What is said of a time by its verdict, what matters most first."""


def _because(one: Verdict) -> str:
    if one.status == PASS:
        return f", within {limit_of(one)}"
    return f": {one.why}" if one.why else ""


def text(check: Check, view: View) -> str:
    """The verdict, a table of the metrics, what moved where something is the matter, and notes."""
    head = Text(f"{check.status.upper()}  {workload_key(check.head)}", style=f"bold {COLORS[check.status]}")
    lines: list[RenderableType] = [
        head,
        *(wrapped(f"{line[0].upper()}{line[1:]}.", view) for line in verdict(check)),
        Text(""),
    ]
    if check.verdicts:
        lines += [text_grid(HEADS, metric_rows(check), view), Text("")]
    if check.status in (REGRESSION, DRIFT, INCONCLUSIVE):
        lines += moved_text(check, view)
    lines += [wrapped(line, view) for line in notes_of(check, judged=True)]
    return to_text(Group(*lines), view)


def markdown(check: Check, view: View) -> str:
    """The same for a pull request."""
    lines = [f"### gpuprof: {check.status}\n", f"`{workload_key(check.head)}`\n"]
    lines += ["".join(f"- {escaped(line)}\n" for line in _sentences(check)), markdown_rows(HEADS, metric_rows(check))]
    if check.status in (REGRESSION, DRIFT, INCONCLUSIVE):
        lines += moved_markdown(check, view)
    lines += ["".join(f"- {escaped(line)}\n" for line in notes_of(check, judged=True))]
    return "\n".join(lines)


def junit(check: Check, view: View) -> str:
    """JUnit XML: a test case per metric that decides, failed by a regression or drift, skipped where inconclusive."""
    deciding = check.deciding
    failed = (REGRESSION, DRIFT)
    count = {
        name: str(sum(one.status in which for one in deciding))
        for name, which in (("failures", failed), ("skipped", (INCONCLUSIVE,)))
    }
    suite = ElementTree.Element(
        "testsuite", name="gpuprof", tests=str(len(deciding)), failures=count["failures"], errors="0",
        skipped=count["skipped"],
    )  # fmt: skip
    for one in deciding:
        case = ElementTree.SubElement(suite, "testcase", classname=workload_key(check.head), name=NAMES[one.metric])
        said = f"{_told(one)}: {one.why}"
        if one.status in failed:
            ElementTree.SubElement(case, "failure", message=said, type=one.status)
        elif one.status == INCONCLUSIVE:
            ElementTree.SubElement(case, "skipped", message=said)
    ElementTree.SubElement(suite, "system-out").text = text(check, View(top=view.top))
    ElementTree.indent(suite)
    whole = ElementTree.tostring(suite, encoding="unicode")
    whole = re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", whole)  # what no XML may hold
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{whole}\n'


def json(check: Check, view: View) -> str:
    """Raw figures: status, verdict, metrics, what moved, notes, fingerprint; null where unknown."""
    return json_module.dumps(raw(check, view), indent=1, allow_nan=False) + "\n"


def raw(check: Check, view: View) -> dict[str, Any]:
    """What `json` has, before it is text."""
    metrics = [
        {name: _plain(value) for name, value in asdict(one).items()} | {"decides": one.metric in check.decides}
        for one in check.verdicts
    ]
    moved = {by: _records(table, view.top) for by, table in check.moved.items()}
    gained = {"gained": _records(check.gained, view.top)} if len(check.gained) else {}
    return {
        "status": check.status, "verdict": verdict(check), "metrics": metrics, "moved": moved, **gained,
        "notes": check.notes, "fingerprint": fingerprint(check.head),
    }  # fmt: skip


FORMATS: dict[str, Callable[[Check, View], str]] = {
    "text": text, "markdown": markdown, "junit": junit, "json": json
}  # fmt: skip
"""Every format of a check by name."""


def _records(table: pd.DataFrame, top: int | None) -> list[dict[str, Any]]:
    rows = table if top is None else table.head(top)
    return [{str(name): plain(value) for name, value in row.items()} for row in rows.to_dict(orient="records")]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else plain(value)
