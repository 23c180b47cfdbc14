"""The tables of a page: cells with the figures that they sort by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpuprof import units
from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.generation import (
    phases_of,
)
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.tables import plain, readable, spread
from gpuprof.render.tree import build, has_rate, walk
from gpuprof.schema import UNATTRIBUTED
from gpuprof.theory import CONVENTIONS

_WIDEST = 60  # characters of a cell


_SHARES_OF_PARTS = {
    "kernel_mfu_prefill": ("kernel MFU", "of the prefill: ideal time over kernel time"),
    "kernel_mbu_decode": ("kernel MBU", "of the decode: bytes that must move over kernel time and bandwidth"),
}
_TREE_COLUMNS = {
    "params": ("params", "parameters, children included"),
    "flops_forward": ("FLOPs", "of the forward, in the convention"),
    "time_forward_s": ("forward", "kernel time"),
    "time_backward_s": ("backward", "kernel time, recompute included"),
    "flops_per_s": ("FLOP/s", "forward and backward over their kernel time"),
    "kernel_mfu": ("kernel MFU", "ideal time over kernel time"),
}


def module_table(run: Record, modules: pd.DataFrame) -> dict[str, Any]:
    """The tree of modules, folded as in the terminal."""
    rows = []
    columns = dict(_TREE_COLUMNS)
    if of_parts := phases_of(run):
        columns = {name: columns[name] for name in ("params", "flops_forward")}
        columns["flops_forward"] = "FLOPs", "of all phases, in the convention"
        for phase in of_parts:
            columns[f"time_{phase}_s"] = phase, "kernel time"
            columns |= {name: head for name, head in _SHARES_OF_PARTS.items() if name.endswith(phase)}
    if modules["params"].isna().all():
        del columns["params"]
    for prefix, node in walk(build(modules)):
        rows.append(_tree_row(columns, len(prefix) // 3, node.label, node.figures, bool(node.children)))
    rest = modules[modules["module"] == UNATTRIBUTED].iloc[0].to_dict()
    rows.append(_tree_row(columns, 0, UNATTRIBUTED, rest, False))
    heads = [{"name": "module", "about": ""}]
    heads += [{"name": name, "about": about} for name, about in columns.values()]
    return {"tree": True, "words": False, "heads": heads, "rows": rows}


def _tree_row(columns: Iterable[str], depth: int, label: str, figures: dict[str, Any], parent: bool) -> dict[str, Any]:
    numbers = {name: plain(value) for name, value in figures.items()}
    back = [numbers[f"time_{phase}_s"] for phase in ("recompute", "backward")]
    numbers["time_backward_s"] = sum(t or 0.0 for t in back) if any(t is not None for t in back) else None
    time = (numbers["time_forward_s"] or 0.0) + (numbers["time_backward_s"] or 0.0)
    flops = (numbers["flops_forward"] or 0) + (numbers["flops_backward"] or 0)
    numbers["flops_per_s"] = flops / time if flops and time and has_rate(figures) else None
    name, _, kind = label.partition(": ")
    path = str(figures["module"]) or "(root)"
    cells = [{"text": name, "value": path}]
    for column in columns:
        value = numbers[column]
        cells.append({"text": readable(column, value), "value": "" if value is None else value})
    return {"depth": depth, "path": path, "class": kind, "parent": parent, "cells": cells}


def flat(frame: pd.DataFrame, summary: bool = False) -> dict[str, Any]:
    """A table whose rows stand alone; of ranks, with ``summary``, the least, the median and the most below them."""
    rows = []
    for row in [*frame.to_dict(orient="records"), *(spread(frame).to_dict(orient="records") if summary else [])]:
        values = {str(name): plain(value) for name, value in row.items()}
        cells = [{"text": readable(n, v), "value": "" if v is None else v} for n, v in values.items()]
        for cell in cells[1:]:  # as of a kernel that many operators launch
            if len(cell["text"]) > _WIDEST:
                cell |= {"whole": cell["text"], "text": units.shortened(cell["text"], _WIDEST)}
        rows.append({"depth": None, "cells": cells})
    heads = [{"name": _heading(str(name)), "about": ""} for name in frame]
    return {"tree": False, "words": False, "heads": heads, "rows": rows}


def _heading(column: str) -> str:
    """A column's name without its unit, which every cell has."""
    name = column.replace("flops_per_s", "FLOP/s").replace("bytes_per_s", "B/s").removesuffix("_s").replace("_", " ")
    return name.replace("flops", "FLOPs").replace("mfu", "MFU").replace("mbu", "MBU")


def provenance(run: Record, convention: str | None, command: str) -> dict[str, Any]:
    """Where every figure comes from."""
    name = convention_of(run, convention)
    facts: dict[str, Any] = {
        "convention": f"{name}: {CONVENTIONS[name].title} Source: {CONVENTIONS[name].source}",
        **{f"workload: {key}": value for key, value in run.workload.items() if _short(value)},
        **{f"device: {key}": value for key, value in run.device.items() if _short(value)},
        **{f"environment: {key}": value for key, value in run.environment.items() if _short(value)},
        **{f"settings: {key}": value for key, value in run.settings.items() if _short(value)},
    }
    for one in run.device["ranks"] if run.is_job else ():
        names = (one["file"], one["device"].get("name"), one["device"].get("uuid"), one["environment"].get("host"))
        facts[f"rank {one['rank']}"] = ", ".join(str(name) for name in names if name)
    for key, outcome in run.passes.items():
        about = "; ".join(part for part in (outcome.reason, outcome.remedy) if part)
        facts[f"pass: {key}"] = f"{outcome.status} in {outcome.seconds:g} s {about}".strip()
    if command:
        facts["this page"] = command
    rows = [
        {"depth": None, "cells": [{"text": str(key), "value": ""}, {"text": str(value), "value": ""}]}
        for key, value in facts.items()
    ]
    heads = [{"name": "what", "about": ""}, {"name": "value", "about": ""}]
    return {"tree": False, "words": True, "heads": heads, "rows": rows}


def _short(value: Any) -> bool:
    return value not in (None, "", [], {}) and len(str(value)) < 400
