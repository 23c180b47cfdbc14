"""A validation as text, Markdown, CSV, JSON or HTML: the verdict first, then the figures."""

from __future__ import annotations

import html as html_module
import json as json_module
import textwrap
from collections.abc import Callable
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.generation import PARTS
from gpuprof.analysis.validation import Validation
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.render.console import to_text
from gpuprof.render.tables import plain
from gpuprof.render.view import View, depth_of

_STYLES = {"right": "green", "explained": "yellow", "unexplained": "bold red", "unmatched": "bold red"}
_WORST = ("unexplained", "unmatched", "explained", "not checked", "right")
_TREE_QUANTITIES = ("flops", "macs", "flops_per_s")


def render_validation(validation: Validation, format: str = "tree", view: View | None = None) -> str:
    """A validation in one of the `FORMATS`. Of the view, ``width`` and ``color`` count.

    Raises:
        GpuprofError: no such format.
    """
    if format not in FORMATS:
        raise GpuprofError(f"no format {format!r}: known are {', '.join(FORMATS)}")
    return FORMATS[format](validation, view or View())


def folded(lines: pd.DataFrame) -> pd.DataFrame:
    """One row per line of the report and quantity: layers that the report folds are one line there."""
    columns = ["line", "quantity", "verdict", "cause"]
    return lines[~lines[columns].assign(apart=_apart(lines)).duplicated()]


def _apart(lines: pd.DataFrame) -> pd.Series:
    """The module where a line of the report holds several with figures of their own, as all of thop's do."""
    texts = lines.groupby(["line", "quantity"])["text"].transform("nunique")
    return lines["module"].where(texts.groupby(lines["line"]).transform("max") > 1, "")


def _tree(validation: Validation, view: View) -> str:
    """Per line of the report its FLOPs (or MACs, where the tool prints no others), and the worst of its verdicts."""
    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("line", justify="right")
    grid.add_column("module", no_wrap=True, overflow="ellipsis", max_width=max(view.width // 3, 20))
    phases = [*validation.phases]
    for name in ("claimed", "counted", *phases, "error"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("verdict", overflow="fold")
    lines = validation.lines
    modules = lines[lines["module"] != "(total)"]
    for _, group in modules.groupby([modules["line"], _apart(modules)], sort=False):
        one = group.drop_duplicates("quantity").set_index("quantity")
        main = next((one.loc[name] for name in _TREE_QUANTITIES if name in one.index), one.iloc[0])
        worst = next(name for name in _WORST if (group["verdict"] == name).any())
        # a figure can be right where its share of a wrong total is not
        verdict = worst if worst in ("unexplained", "unmatched") else main["verdict"]
        times = group["module"].nunique()
        label = f"{'  ' * depth_of(main['module'])}{main['module'].rpartition('.')[2] or '(root)'}: {main['class']}"
        grid.add_row(
            str(main["line"]),
            Text(label + (f" ({times} x)" if times > 1 else "")),
            Text(str(main["text"])),
            Text(_counted(main)),
            *(Text(_si(main[phase], units.MISSING)) for phase in phases),
            Text(_percent(main["error_percent"])),
            Text(verdict + (f": {main['cause']}" if main["cause"] else ""), style=_STYLES.get(verdict, "")),
        )
    totals = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for row in lines[lines["module"] == "(total)"].to_dict(orient="records"):
        words = f"{row['verdict']}{': ' + row['cause'] if row['cause'] else ''}"
        totals.add_row(Text(row["quantity"]), Text(row["text"]), Text(words, style=_STYLES.get(row["verdict"], "")))
    parts: list[Any] = [_verdict(validation, view), Text(""), *([totals, Text("")] if totals.rows else []), grid]
    if validation.missing:
        parts += [Text(""), Text(f"No line of the report stands for: {', '.join(validation.missing)}")]
    return to_text(Group(*parts), view)


def _table(validation: Validation, view: View) -> str:
    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    headings = _headings(validation)
    for name in headings:
        grid.add_column(name, overflow="fold", justify="right" if name in ("line", *_NUMBERS) else "left")
    for row in folded(validation.lines).to_dict(orient="records"):
        grid.add_row(*(Text(cell) for cell in _cells(row, headings)))
    return to_text(Group(_verdict(validation, view), Text(""), grid), view)


def _said(validation: Validation) -> list[str]:
    """What the report seems to be of instead, if anything, and the verdict."""
    return [text for text in (validation.mismatch, validation.sentences) if text]


def _verdict(validation: Validation, view: View) -> Text:
    return Text("\n".join(textwrap.fill(text, view.width, break_on_hyphens=False) for text in _said(validation)))


_NUMBERS = ("counted", "full", *PARTS, "profiler", "executed", "error")


def _headings(validation: Validation) -> list[str]:
    """What to show of a line: torch.profiler's estimate and the executed FLOPs only where there are any.

    And of a generation its phases.
    """
    asked = [name for name in ("profiler", "executed") if validation.lines[name].notna().any()]
    numbers = ["claimed", "counted", "full", *validation.phases, *asked, "error"]
    return ["line", "module", "quantity", *numbers, "verdict", "cause"]


def _cells(row: dict[str, Any], headings: list[str]) -> list[str]:
    words = {
        "line": str(row["line"]), "module": str(row["module"]) or "(root)", "quantity": str(row["quantity"]),
        "claimed": str(row["text"]), "counted": _counted(row), "error": _percent(row["error_percent"]),
        "verdict": str(row["verdict"]), "cause": str(row["cause"]),
    } | {name: _si(row[name], "") for name in ("full", *PARTS, "profiler", "executed")}  # fmt: skip
    return [words[name] for name in headings]


def _counted(row: Any) -> str:
    return _si(row["causal"], units.MISSING)


def _si(value: Any, missing: str) -> str:
    return missing if value is None or pd.isna(value) else units.si(float(value))


def _percent(error: Any) -> str:
    return units.MISSING if error is None or pd.isna(error) else f"{error:+.1f} %"


def _markdown(validation: Validation, view: View) -> str:
    headings = _headings(validation)
    cells = (_cells(row, headings) for row in _rows(validation))
    rows = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in cells]
    table = [headings, ["---"] * len(headings), *rows]
    return "\n\n".join(_said(validation)) + "\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table)


def _rows(validation: Validation) -> list[dict[str, Any]]:
    return folded(validation.lines).to_dict(orient="records")


def _csv(validation: Validation, view: View) -> str:
    return validation.lines.to_csv(index=False, lineterminator="\n")


def _json(validation: Validation, view: View) -> str:
    rows = [{name: plain(value) for name, value in row.items()} for row in validation.lines.to_dict(orient="records")]
    document = {
        "tool": validation.tool, "mismatch": validation.mismatch, "verdict": validation.sentences,
        "missing": validation.missing, "phases": validation.phases, "figures": rows,
    }  # fmt: skip
    return json_module.dumps(document, indent=1, allow_nan=False) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
td:nth-child(n+3):nth-child(-n+8) {{ white-space: nowrap; }}
th, td {{ text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; }}
.right {{ color: #1a7f37; }} .explained {{ color: #9a6700; }}
.unexplained, .unmatched {{ color: #cf222e; font-weight: 600; }}
@media (prefers-color-scheme: dark) {{ .right {{ color: #3fb950; }} .explained {{ color: #d29922; }} }}
</style></head><body>
<h1>{title}</h1>{said}{missing}
<table><thead><tr>{headings}</tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""


def _html(validation: Validation, view: View) -> str:
    escape, names = html_module.escape, _headings(validation)
    rows = "\n".join(
        f'<tr class="{escape(row["verdict"]).replace(" ", "-")}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row, names))
        + "</tr>"
        for row in _rows(validation)
    )
    missing = f"<p>No line of the report stands for: {escape(', '.join(validation.missing))}</p>"
    return _PAGE.format(
        title=escape(f"A {validation.tool} report held against a count"),
        said="".join(f"<p>{escape(text)}</p>" for text in _said(validation)),
        missing=missing if validation.missing else "",
        headings="".join(f"<th>{name}</th>" for name in names),
        rows=rows,
    )


FORMATS: dict[str, Callable[[Validation, View], str]] = {
    "tree": _tree,
    "table": _table,
    "markdown": _markdown,
    "csv": _csv,
    "json": _json,
    "html": _html,
}
"""Every format by name."""
