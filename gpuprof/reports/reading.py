"""Which counter a report comes from, and its rows as a table."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import NamedTuple

from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.reports import layers, printed_models, tables, thop
from gpuprof.reports.figures import MEASURED
from gpuprof.reports.prefixes import Part, ways
from gpuprof.reports.source import COLUMNS, TOTAL, Source, read_lines


class Kind(NamedTuple):
    """One layout.

    Attributes:
        tool: what prints it.
        pattern: how its own text begins, in the first line that is surely of this tool.
        example: that line in words.
        read: what reads it.
    """

    tool: str
    pattern: str
    example: str
    read: Callable[[Source], None]


KINDS = (
    Kind("calflops", printed_models.CALFLOPS_BEGINS, "Calculate Flops Results", printed_models.read_calflops),
    Kind("deepspeed", printed_models.DEEPSPEED_BEGINS, "DeepSpeed Flops Profiler", printed_models.read_deepspeed),
    Kind("ptflops", printed_models.PTFLOPS_BEGINS, "4.12 GMac, 100.000% MACs", printed_models.read_ptflops),
    Kind("mmcv", printed_models.MMCV_BEGINS, "4.12 GFLOPs, 100.000% FLOPs", printed_models.read_mmcv),
    Kind("fvcore", tables.FVCORE_HEADER, "| module | #parameters | #flops |", tables.read_fvcore_table),
    Kind("fvcore", printed_models.FVCORE_BEGINS, "#params: 25.56M, #flops: 4.11G", printed_models.read_fvcore_model),
    Kind("torch-counter", tables.TORCH_HEADER, "Module  FLOP  % Total", tables.read_torch_counter),
    Kind("torchinfo", tables.TORCHINFO_HEADER, "Layer (type:depth-idx)  Output Shape  Param #", tables.read_torchinfo),
    Kind("lightning", layers.LIGHTNING_HEADER, "| Name | Type | Params | Mode | FLOPs", layers.read_lightning),
    Kind("torchtnt", layers.TORCHTNT_HEADER, "Name | Type | # Parameters | Forward FLOPs", layers.read_torchtnt),
    Kind("thop", thop.BEGINS, "[INFO] Register count_linear() for <class ...", thop.read_thop),
)
"""The layouts that can be read; another one is a line here."""

PLAIN = (
    Kind("mmcv", printed_models.MMCV_SUMMARY, "Input shape: (3, 224, 224)", printed_models.read_mmcv),
    Kind("thop", thop.RESULT, "(4111514624.0, 25557032.0)", thop.read_thop),
)
"""Layouts that say little of where they come from, taken for one only where nothing else is found."""

TOOLS = (
    "calflops, DeepSpeed, ptflops, mmcv, fvcore or mmengine, FlopCounterMode, torchinfo or torch-summary, Lightning, "
    "torchtnt or thop"
)
"""What can be read, in words."""


def read_report(path: str | PathLike[str]) -> pd.DataFrame:
    """What a counter's text report claims.

    Read are calflops, DeepSpeed's flops profiler, ptflops, mmcv's counter, fvcore and mmengine, torch's
    FlopCounterMode, torchinfo and torch-summary, Lightning's ModelSummary, torchtnt's module summary, and thop.

    Args:
        path: text as the tool printed it, with anything before and after it; one report a file. Prefixes in front of
            its lines, as of a logger, a rank or a quote, are taken off. Where several ranks printed one each, the
            lowest is read.

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
        precision: how far printing may have moved it, in the unit of value: half a unit of the last printed digit, a
            whole one of tools that cut digits off.
        text: as printed.

        ``attrs`` has the tool, the path, and notes: what to know before these figures are compared, one line each. Of a
        file with the reports of several ranks also ranks: which one this is, and whether the others say the same.

    Raises:
        GpuprofError: no such file, not text, empty, from no known counter, from more than one, cut off or damaged; the
            message names the line and what was expected in it.
    """
    if not isinstance(path, (str, PathLike)):
        raise GpuprofError(f"read_report takes the path of a report, not a {type(path).__name__}")
    lines = read_lines(path)
    kinds = _kinds(Source(path, lines))
    errors: list[GpuprofError] = []
    damaged: list[pd.DataFrame] = []  # where the lowest rank is whole and another one is not
    for ranks in ways(lines, [kind.pattern for kind in kinds]):
        try:
            frame, whole = _read_ranks(path, ranks, kinds)
        except GpuprofError as error:
            errors.append(error)
            continue
        if whole:
            return frame
        damaged.append(frame)
    if damaged:
        return damaged[0]
    raise errors[0]


def _kinds(source: Source) -> list[Kind]:
    """Layouts that the file has, all of one tool, in the order in which they begin."""
    found = {kind: places[0] for kind in KINDS if (places := source.find(kind.pattern))}
    found = found or {kind: places[0] for kind in PLAIN if (places := source.find(kind.pattern))}
    if not found:
        raise source.error(f"not a report of {TOOLS}: no line like {KINDS[0].example!r} or {KINDS[2].example!r}")
    if len({kind.tool for kind in found}) > 1:
        names = " and ".join(f"{kind.tool} (line {place})" for kind, place in found.items())
        raise source.error(f"holds reports of {names}: put every report into a file of its own")
    return sorted(found, key=lambda kind: found[kind])


def _read(path: str | PathLike[str], part: Part, kinds: list[Kind]) -> pd.DataFrame:
    source = Source(path, part.lines)
    for kind in kinds:
        if source.find(kind.pattern):
            kind.read(source)
    if not source.rows:
        raise source.error(f"looks like a report of {kinds[0].tool} but holds no figure")
    rows = sorted(source.rows, key=lambda row: row["module"] != TOTAL)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    if len(kinds) > 1:
        _agree(source, frame)
    frame.attrs = {"tool": kinds[0].tool, "path": str(path), "notes": list(dict.fromkeys(source.notes))}
    return frame


def _agree(source: Source, frame: pd.DataFrame) -> None:
    """Two layouts of one tool in a file are of the same model, and then their figures are the same."""
    for (module, quantity), claims in frame.groupby(["module", "quantity"], sort=False):
        first, *others = claims.itertuples(index=False)
        for other in others:
            if abs(first.value - other.value) > first.precision + other.precision:
                told = f"{first.text} in line {first.line} and {other.text} in line {other.line}"
                problem = f"two reports ('{module}' has {quantity} {told}): put every report into a file of its own"
                raise source.error(problem)


def _read_ranks(path: str | PathLike[str], ranks: list[Part], kinds: list[Kind]) -> tuple[pd.DataFrame, bool]:
    """The report of the first rank, in words whether the others claim the same, and whether all of them can be read."""
    first, *others = ranks
    frame = _read(path, first, kinds)
    if not others:
        return frame, True
    read = f"{len(ranks)} ranks printed a report: this is of '{first.rank}'"
    claimed = _counted(frame)
    for other in others:
        try:
            differs = _counted(_read(path, other, kinds)) != claimed
        except GpuprofError as error:
            frame.attrs["ranks"] = f"{read}; of '{other.rank}': {error}"
            return frame, False
        if differs:
            frame.attrs["ranks"] = f"{read}, and that of '{other.rank}' differs from it"
            return frame, True
    frame.attrs["ranks"] = f"{len(ranks)} ranks printed the same report: this is of '{first.rank}'"
    return frame, True


def _counted(frame: pd.DataFrame) -> list[tuple[str, str, float]]:
    kept = frame[~frame["quantity"].str.startswith(MEASURED)]
    return list(zip(kept["module"], kept["quantity"], kept["value"], strict=True))
