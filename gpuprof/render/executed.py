"""The report of a table of Nsight Compute: what its kernels executed and moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis.executed import flops_by_dtype, not_collected
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render import tables
from gpuprof.render.console import to_text
from gpuprof.render.view import View

_TOP = 20  # kernels, unless they say how many


def render(run: Record, view: View) -> str:
    """Totals, the kernels with most time, and what was not collected."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, line in _lines(run):
        grid.add_row(label, Text(line))
    rows = tables.text(run, replace(view, by="kernel", top=view.top or _TOP))
    return f"{to_text(grid, view)}\n{rows}" + "".join(f"{line}\n" for line in _notes(run, view.top or _TOP))


def _lines(run: Record) -> Iterator[tuple[str, str]]:
    launches, device = run.counters, run.device
    yield "Workload", f"{run.workload['name']} · a table of Nsight Compute"
    capability = ".".join(map(str, device.get("compute_capability") or ()))
    of_chip = f"compute capability {capability}" if capability else None
    yield "Device", " · ".join(part for part in (device.get("name") or "unknown GPU", of_chip) if part)
    took = _sum(launches["duration_ns"])
    time = "" if took is None else f", {units.duration(took * 1e-9)} one by one"
    kernels = units.number(launches["kernel"].nunique(), "kernel")
    yield "Kernels", f"{units.number(len(launches), 'launch', 'launches')} of {kernels}{time}"
    for on_tensor_cores, label in ((True, "Tensor cores"), (False, "Outside them")):
        sums = [(dtype, flops) for dtype, tensor, flops in flops_by_dtype(launches) if tensor is on_tensor_cores]
        yield label, ", ".join(f"{units.si(flops, 'FLOPs')} in {dtype}" for dtype, flops in sums) or "not collected"
    moved = {word: _sum(launches[f"dram_{word}_bytes"]) for word in ("read", "written")}
    parts = [f"{units.size(nbytes)} {word}" for word, nbytes in moved.items() if nbytes is not None]
    yield "Device memory", ", ".join(parts) or "not collected"


def _sum(values: pd.Series) -> int | None:
    known = values.dropna()
    return sum(map(int, known)) if len(known) else None


def _notes(run: Record, shown: int) -> Iterator[str]:
    if (kernels := run.counters["kernel"].nunique()) > shown:
        yield f"Not shown: {units.number(kernels - shown, 'kernel')} with less time ('gpuprof show RUN --by kernel')."
    facts = run.passes["counters"].facts
    if missing := facts.get("not_collected"):
        yield f"Not collected, so in no sum: {', '.join(missing)}."
    for column in facts.get("columns", ()):
        if unread := int(run.counters[column].isna().sum()):
            yield f"{column} was not read for {unread} of {len(run.counters)} launches, which its sums are without."
    for row in not_collected(run).to_dict(orient="records"):
        launches = units.number(row["launches"], "launch", "launches")
        yield f"Ran on tensor cores in a dtype whose FLOPs were not collected: {row['kernel']}, {launches}."
    yield from (f"Warning: {text}" for text in run.warnings)
