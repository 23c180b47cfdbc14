"""Which counter a report comes from, and its rows as a table."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import NamedTuple

import pandas as pd

from gpuprof.reports import printed_models, tables
from gpuprof.reports.source import COLUMNS, TOTAL, Source


class Kind(NamedTuple):
    """One layout: the tool, a pattern of a line that only it prints, that line in words, and what reads it."""

    tool: str
    pattern: str
    example: str
    read: Callable[[Source], None]


KINDS = (
    Kind("calflops", r"Calculate Flops Results|% FLOPs\b", "Calculate Flops Results", printed_models.read_calflops),
    Kind(
        "deepspeed", r"DeepSpeed Flops Profiler|% latency\b", "DeepSpeed Flops Profiler", printed_models.read_deepspeed
    ),
    Kind(
        "ptflops",
        r"\d [KMG]?Mac, \d|^Computational complexity: +\d",
        "4.12 GMac, 100.000% MACs",
        printed_models.read_ptflops,
    ),
    Kind("fvcore", tables.FVCORE_HEADER, "| module | #parameters | #flops |", tables.read_fvcore_table),
    Kind("fvcore", r"#params: \S+, #flops: ", "#params: 25.56M, #flops: 4.11G", printed_models.read_fvcore_model),
    Kind("torch-counter", tables.TORCH_HEADER, "Module  FLOP  % Total", tables.read_torch_counter),
    Kind("torchinfo", tables.TORCHINFO_HEADER, "Layer (type:depth-idx)  Output Shape  Param #", tables.read_torchinfo),
)
"""The layouts that can be read; another one is a line here."""


def read_report(path: str | PathLike[str]) -> pd.DataFrame:
    """What a counter's text report claims: calflops, DeepSpeed, ptflops, fvcore, torch's FlopCounterMode, torchinfo.

    Args:
        path: text as the tool printed it, with anything before and after it; one report a file.

    Returns:
        One row per claimed figure: those of the whole run first, then the modules in the order of the report.

        line: number of its line, from 1.
        module: path in the report's own tree, the root is the empty path. A folded layer (``(0-25): 26 x``) is a row
            for each, all with the same line. ``(total)`` for figures about the whole run.
        class: class name, empty where the report has none.
        quantity: params, macs, flops, latency, flops_per_s and their ``_share``; of a total also its extent, e.g.
            flops_forward_backward. One multiply-accumulate is one MAC and two FLOPs, whatever the tool calls it.
            params_own (torchinfo) leaves out what the children have.
        value: in plain units: parameters, MACs, FLOPs, FLOP/s, seconds, bytes; a share is of 1.
        precision: half a unit of the last printed digit, in the unit of value.
        text: as printed.

        ``attrs`` has the tool, the path, and notes: what to know before these figures are compared, one line each.

    Raises:
        GpuprofError: no such file, not text, empty, from no known counter, from more than one, cut off or damaged; the
            message names the line and what was expected in it.
    """
    source = Source(path)
    kinds = [kind for kind in KINDS if source.find(kind.pattern)]
    if not kinds:
        tools = "calflops, DeepSpeed, ptflops, fvcore, FlopCounterMode or torchinfo"
        raise source.error(f"not a report of {tools}: no line like {KINDS[0].example!r} or {KINDS[2].example!r}")
    if len(kinds) > 1:
        names = " and ".join(f"{kind.tool} (line {source.find(kind.pattern)[0]})" for kind in kinds)
        raise source.error(f"holds reports of {names}: put every report into a file of its own")
    kinds[0].read(source)
    if not source.rows:
        raise source.error(f"looks like a report of {kinds[0].tool} but holds no figure")
    rows = sorted(source.rows, key=lambda row: row["module"] != TOTAL)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame.attrs = {"tool": kinds[0].tool, "path": str(path), "notes": source.notes}
    return frame
