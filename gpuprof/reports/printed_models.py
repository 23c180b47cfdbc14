"""Reports that print the model, with figures in every module: calflops, DeepSpeed, ptflops, fvcore as text."""

from __future__ import annotations

import re
from collections.abc import Callable

from gpuprof.reports.figures import NUMBER, PREFIX
from gpuprof.reports.source import TOTAL, Source, short
from gpuprof.reports.tree import find_tree, walk

Steps = tuple[tuple[str, str, str], ...]
"""What a module line gives, in order: (quantity, pattern of its unit, word behind its percentage or empty)."""

CALFLOPS: Steps = (("params", "", "Params"), ("macs", "MACs", "MACs"), ("flops", "FLOPS", "FLOPs"))
DEEPSPEED: Steps = (
    ("params", "", "Params"),
    ("macs", "MACs", "MACs"),
    ("latency", "s", "latency"),
    ("flops_per_s", "FLOPS", ""),
)
PTFLOPS: Steps = (("params", "", "Params"), ("macs", "Mac", "MACs"))

Totals = tuple[tuple[str, str, str], ...]
"""Lines about the whole run: (pattern of the label, quantity, pattern of the unit)."""

CALFLOPS_TOTALS: Totals = (
    ("Total Training Params", "params", ""),
    ("fwd MACs", "macs_forward", "MACs"),
    ("fwd FLOPs", "flops_forward", "FLOPS"),
    (r"fwd\+bwd MACs", "macs_forward_backward", "MACs"),
    (r"fwd\+bwd FLOPs", "flops_forward_backward", "FLOPS"),
    # not calflops's own: people print it below
    ("Memory usage", "memory_bytes", "(?:Bytes|bytes|B)"),
)
DEEPSPEED_TOTALS: Totals = (
    ("params per (?:gpu|GPU)", "params", ""),
    ("params of model", "params_of_model", ""),
    ("non-expert params of model", "params_of_model_without_experts", ""),
    ("expert params of model", "params_of_model_experts", ""),
    ("fwd MACs per GPU", "macs_forward", "(?:MACs)?"),
    ("fwd flops per GPU", "flops_forward", ""),
    ("fwd flops of model", "flops_forward_of_model", ""),
    ("fwd latency", "latency_forward", "s"),
    ("fwd FLOPS per GPU", "flops_per_s_forward", "FLOPS"),
    ("bwd latency", "latency_backward", "s"),
    ("bwd FLOPS per GPU", "flops_per_s_backward", "FLOPS"),
    (r"fwd\+bwd FLOPS per GPU", "flops_per_s_forward_backward", "FLOPS"),
    ("step latency", "latency_optimizer", "s"),
    ("iter latency", "latency_iteration", "s"),
    ("FLOPS per GPU", "flops_per_s_iteration", "FLOPS"),
    ("samples/second", "samples_per_s", ""),
)
PTFLOPS_TOTALS: Totals = (
    ("Computational complexity", "macs_forward", "Mac"),
    ("Number of parameters", "params", ""),
)

_CUT_ZEROS = "trailing zeros are not printed (7.9 for 7.90): a precision may be coarser than the tool's own rounding"


def read_calflops(source: Source) -> None:
    """Report of calflops 0.2 and 0.3."""
    _totals(source, CALFLOPS_TOTALS, [(r"takes ({}) times as much computation", "backward_factor")])
    if source.find("Calculate Flops Results"):
        _require(source, [quantity for _, quantity, _ in CALFLOPS_TOTALS[:5]])
    _tree(source, _stepwise(CALFLOPS), r"% (?:Params|MACs|FLOPs)", "Detailed Calculated FLOPs Results")
    source.notes += [
        "FLOPS in this report are counts, not rates",
        "parameters are the trainable ones; backward is the factor times forward, not counted",
        _CUT_ZEROS,
    ]
    if any(row["quantity"] == "memory_bytes" for row in source.rows):
        source.notes.append("memory is taken as decimal (1 GByte = 10^9 bytes); the report does not say which memory")


def read_deepspeed(source: Source) -> None:
    """Report of the DeepSpeed flops profiler, with '=' before the percentages or, as older ones, without."""
    _totals(source, DEEPSPEED_TOTALS, [(r"^\s*bwd FLOPS per GPU = ({}) \* fwd flops", "backward_factor")])
    if source.find("DeepSpeed Flops Profiler"):
        _require(source, ["params", "macs_forward", "flops_forward", "latency_forward"])
    _tree(source, _stepwise(DEEPSPEED), r"% (?:Params|MACs|latency)", "Detailed Profile per GPU")
    source.notes += [
        "modules have a rate (FLOPS) and a forward latency, but no FLOPs of their own",
        "latencies were taken with a synchronisation around every module",
        _CUT_ZEROS,
    ]
    if any(row["quantity"] == "params_of_model" and not row["value"] for row in source.rows):
        source.notes.append("'params of model' is 0: the profiler ran outside the DeepSpeed engine")


def read_ptflops(source: Source) -> None:
    """Report of ptflops with its `pytorch` backend."""
    _totals(source, PTFLOPS_TOTALS, [])
    _tree(source, _stepwise(PTFLOPS), r"% (?:Params|MACs)", "")
    source.notes += [
        "MACs, though the tool's functions say flops",
        "parameters and MACs only of the module types ptflops knows (an Embedding has 0), and sums of those",
        "functional operations are in the total and in no module: the shares of the modules need not reach 100 %",
        _CUT_ZEROS,
    ]


def read_fvcore_model(source: Source) -> None:
    """What fvcore's `flop_count_str` returns."""
    missing: list[str] = []

    def figures(source: Source, line: int, text: str, path: str, cls: str) -> None:
        for item in text.split(", "):
            label, _, value = item.partition(": ")
            quantity = {"#params": "params", "#flops": "macs", "#acts": "activations"}.get(label)
            if quantity and value == "N/A":
                missing.append(path)
            elif quantity:
                source.add_figure(line, path, cls, quantity, value)

    _tree(source, figures, r"#params: \S+, #flops: ", "")
    source.notes.append(FVCORE_NOTE)
    if missing:
        source.notes.append(f"{len(missing)} modules without a figure (N/A), the first is '{missing[0]}'")


FVCORE_NOTE = "what fvcore calls flops are MACs, and a few operations per element of norm layers"

Figures = Callable[[Source, int, str, str, str], None]


def _tree(source: Source, figures: Figures, pattern: str, title: str) -> None:
    compiled = re.compile(pattern)
    found = find_tree(source, compiled)
    titles = source.find(title) if title else []
    if found is None:
        if titles:
            raise source.error("the modules announced here do not follow: the report is cut off", titles[0])
        if orphans := source.find(pattern):
            raise source.error("figures, but the line with the name of the model is not above", orphans[0])
        return
    for path, node in walk(source, found[0]):
        for line, text in node.texts:
            if compiled.search(text):
                figures(source, line, text, path, node.cls)
                break


def _stepwise(steps: Steps) -> Figures:
    def figures(source: Source, line: int, text: str, path: str, cls: str) -> None:
        rest = text
        for quantity, unit, word in steps:
            percentage = rf"(?: = |, )(?P<share>{NUMBER}%) {word}" if word else ""
            match = re.match(rf"(?P<figure>{NUMBER}\s*{PREFIX}{unit}){percentage}(?:,\s*|$)", rest)
            if not match:
                example = f"'N {unit} = N% {word}'" if word else f"'N {unit}'"
                raise source.error(f"expected {example.replace('  ', ' ')}, found {short(rest)}", line)
            source.add_figure(line, path, cls, quantity, match["figure"], unit)
            if word:
                source.add_figure(line, path, cls, f"{quantity}_share", match["share"])
            rest = rest[match.end() :]

    return figures


def _totals(source: Source, totals: Totals, factors: list[tuple[str, str]]) -> None:
    found: dict[str, int] = {}
    for number, line in source.numbered():
        for pattern, quantity in factors:
            if match := re.search(pattern.format(NUMBER), line):
                _once(source, found, quantity, number)
                source.add_figure(number, TOTAL, "", quantity, match[1])
        label, colon, value = line.partition(":")
        for pattern, quantity, unit in totals:
            if colon and re.fullmatch(rf"{pattern}(?: = .*)?", label.strip()):
                _once(source, found, quantity, number)
                source.add_figure(number, TOTAL, "", quantity, value, unit)


def _once(source: Source, found: dict[str, int], quantity: str, number: int) -> None:
    if quantity in found:
        first = f"the first has its {quantity} in line {found[quantity]}"
        raise source.error(f"a second report ({first}): put every report into a file of its own", number)
    found[quantity] = number


def _require(source: Source, quantities: list[str]) -> None:
    read = {row["quantity"] for row in source.rows if row["module"] == TOTAL}
    for quantity in quantities:
        if quantity not in read:
            raise source.error(f"the summary has no line with {quantity}: the report is cut off")
