"""A run where Python shows it by itself: two lines of text, and HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from gpuprof import units
from gpuprof.analysis.counted import counted
from gpuprof.analysis.denominators import denominator
from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.generation import bandwidths, generation, mbu
from gpuprof.analysis.known_flops import at_least
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.steps import traced
from gpuprof.analysis.totals import totals
from gpuprof.analysis.untold import untold
from gpuprof.analysis.verdict import verdict
from gpuprof.record import Record
from gpuprof.render import render
from gpuprof.render.charts import subject
from gpuprof.render.footer import of_modules, warnings
from gpuprof.render.header import header_lines, of_steps, peaks_used
from gpuprof.render.page_tables import module_table
from gpuprof.render.view import View
from gpuprof.schema import MODEL, UNATTRIBUTED

_OPEN = 2
"""Levels of the tree that are open at first."""

# No colour but the notebook's own: what is soft or a line is a part of it, in light and dark. Important is what
# notebooks say of every table's cells.
_STYLE = """
.gpuprof { font-size: 13px; line-height: 1.45; }
.gpuprof p { font-weight: 600; margin: 0 0 .6em; max-width: 90em; overflow-wrap: anywhere; }
.gpuprof table { border-collapse: collapse; margin: 0 0 .6em; font-size: inherit; }
.gpuprof tr, .gpuprof th, .gpuprof td { background: none !important; border: 0; vertical-align: top; }
.gpuprof th, .gpuprof td { text-align: left !important; }
.gpuprof th { padding: 1px 1em 1px 0; white-space: nowrap; }
.gpuprof td { padding: 1px 0; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 80em; }
.gpuprof .tree { overflow-x: auto; font-variant-numeric: tabular-nums; }
.gpuprof .line { display: flex; padding: 1px 0; border-bottom: 1px solid rgba(128, 128, 128, .25); }
.gpuprof .line span { flex: none; width: 8em; text-align: right; white-space: nowrap; }
.gpuprof .line .name { flex: 1; text-align: left; overflow: hidden; text-overflow: ellipsis; }
.gpuprof summary { cursor: pointer; list-style: none; }
.gpuprof summary .name::before { content: "\\25B8"; display: inline-block; width: 1.1em; opacity: .7; }
.gpuprof details[open] > summary .name::before { content: "\\25BE"; }
.gpuprof div.line .name::before { content: ""; display: inline-block; width: 1.1em; }
.gpuprof .heads, .gpuprof .class, .gpuprof .notes { opacity: .7; }
"""


def two_lines(run: Record) -> str:
    """What was measured and on what; then the step with its MFU and the peak of that, or what there is instead."""
    about = run.workload
    return f"{about['mode']} of {subject(run)}\n{'; '.join(_found(run))}"


def _found(run: Record) -> Iterator[str]:
    if counters_only(run):
        yield f"{units.number(len(run.counters), 'launch', 'launches')} of a table of Nsight Compute"
        return
    sums, least = totals(run), at_least(run)
    if sums["step_s"] is not None:
        steps = "one recorded step" if run.recorded and sums["steps"] == 1 else of_steps(run, sums)
        yield f"step {units.duration(sums['step_s'])} ({steps})"
    elif sums["kernel_s"] is not None:
        yield f"not timed, {units.duration(sums['kernel_s'])} of kernels in the {traced(run)}"
    elif run.done("count"):
        yield "counted, not timed"
    else:
        yield "nothing was measured"
    if (found := generation(run)) and found.tpot_s:
        yield f"{units.duration(found.tpot_s)} per token"
        for name, share in list(mbu(run).items())[:1]:
            yield f"MBU of the decode {units.percent(share)} of {name} ({units.si(bandwidths(run)[name], 'B/s')})"
    elif sums["mfu"] is not None:
        name, peaks = denominator(run)
        ops = counted(run)
        used = peaks_used(ops[ops["phase"].isin(MODEL)], peaks)
        yield f"MFU {least}{units.percent(sums['mfu'])} of {name} ({used})"
    elif sums["withheld"]:
        yield f"MFU {sums['withheld']}"
    elif sums["flops"] is not None:
        yield f"{least}{units.si(sums['flops'], 'FLOPs')} a step"


def html(run: Record) -> str:
    """Verdict, header and folded tree, for a light or a dark notebook; nothing in it is loaded from elsewhere."""
    if counters_only(run):
        return f"<pre>{escape(render(run))}</pre>"
    said = header_lines(run, View(), totals(run))
    lines = "".join(f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in said)
    table = module_table(run, by_module(run))
    heads = [head["name"] for head in table["heads"]]
    width = 15 + 8 * (len(heads) - 1)
    first = {"path": "", "class": "", "depth": 0, "parent": False, "cells": [{"text": name} for name in heads]}
    rows = [row for row in table["rows"] if row["path"] != UNATTRIBUTED or any(c["value"] for c in row["cells"][1:])]
    below = "".join(f"<div>{escape(note)}</div>" for note in (of_modules(run), *untold(run), *warnings(run)))
    return (
        f'<div class="gpuprof"><style>{_STYLE}</style><p>{escape(" ".join(verdict(run)))}</p><table>{lines}</table>'
        f'<div class="tree"><div style="min-width: {width}em"><div class="heads">{_line(first)}</div>{_tree(rows)}'
        f'</div></div><div class="notes">{below}</div></div>'
    )


def _tree(rows: list[dict[str, Any]]) -> str:
    """Rows that know their depth, those with children as details around them."""
    said, depth = [], 0
    for row in rows:
        said.append("</details>" * (depth - row["depth"]))
        depth = row["depth"] + row["parent"]
        if row["parent"]:
            said.append("<details open>" if row["depth"] < _OPEN else "<details>")
        said.append(_line(row))
    return "".join([*said, "</details>" * depth])


def _line(row: dict[str, Any]) -> str:
    """A row of the tree; the spaces between its cells are for where styles are not."""
    name, *figures = (escape(cell["text"]) for cell in row["cells"])
    name += f' <i class="class">{escape(row["class"])}</i>' if row["class"] else ""
    place = f'style="padding-left: {row["depth"] * 1.1:.1f}em" title="{escape(row["path"])}"'
    cells = " ".join([f'<span class="name" {place}>{name}</span>', *(f"<span>{figure}</span>" for figure in figures)])
    tag = "summary" if row["parent"] else "div"
    return f'<{tag} class="line">{cells}</{tag}>'
