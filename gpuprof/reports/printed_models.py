"""Reports that print the model, with figures in every module: calflops, DeepSpeed, ptflops, mmcv, fvcore as text."""

from __future__ import annotations

import re
from collections.abc import Callable

from gpuprof.reports.figures import NUMBER, PREFIX
from gpuprof.reports.source import TOTAL, Source, short
from gpuprof.reports.tree import find_tree, walk

Steps = tuple[tuple[str, str, str], ...]
"""What a module line gives, in order: (quantity, pattern of its unit, words behind its percentage or empty)."""

CALFLOPS: Steps = (("params", "", "Params"), ("macs", "MACs", "MACs"), ("flops", "FLOPS", "FLOPs"))
DEEPSPEED: Steps = (
    ("params", "", "Params"),
    ("macs", "MACs", "MACs"),
    ("latency", "s", "latency|time"),
    ("flops_per_s", "FLOPS", ""),
)
PTFLOPS: Steps = (("params", "", "Params"), ("macs", "Mac", "MACs"))
MMCV: Steps = (("params", "", "Params"), ("macs", "FLOPs", "FLOPs"))

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
    # the summary of 0.3
    ("Number of parameters", "params", ""),
    (r"Number of multiply-accumulate operations \(MACs\)", "macs_forward", "(?:MACs)?"),
    (r"Number of floating point operations \( = 2 \* MACs\)", "flops_forward", ""),
    ("Latency", "latency_forward", "s"),
    (r"Floating point operations per second\(FLOPS\)", "flops_per_s_forward", "FLOPS"),
)
PTFLOPS_TOTALS: Totals = (
    ("Computational complexity", "macs_forward", "Mac"),
    ("Number of parameters", "params", ""),
)
MMCV_TOTALS: Totals = (
    ("Flops", "macs_forward", "(?:FLOPs)?"),
    ("Params", "params", ""),
)

_INDENT = r"(?<!\s)\s*"
_START = r"(?<![\w.,])(?<!Params, )(?<!MACs, )(?<!FLOPs, )"
"""The first figure of a line begins here, not a later one of which those before are damaged."""
_FIGURE = rf"{_START}{NUMBER}\s*{PREFIX}[A-Za-z]*(?: = |, ){NUMBER}%"
CALFLOPS_BEGINS = (
    r"(?<!-)-* ?Calculate Flops Results|(?:Total Training Params|fwd(?:\+bwd)? (?:MACs|FLOPs)):"
    rf"|{_INDENT}{_FIGURE}.*FLOPS(?: =|,) {NUMBER}% FLOPs\b"
)
DEEPSPEED_BEGINS = (
    rf"(?<!-)-* ?DeepSpeed Flops Profiler|fwd (?:MACs|flops) per GPU|{_INDENT}{_FIGURE}.*% (?:latency|time)\b"
)
PTFLOPS_BEGINS = rf"Computational complexity:\s+\d|{_INDENT}(?:{_FIGURE}.*|{_START}){NUMBER} [KMG]?Mac, \d"
MMCV_BEGINS = rf"{_INDENT}{_FIGURE}.*FLOPs, {NUMBER}% FLOPs\b"
MMCV_SUMMARY = r"Input shape:\s"
FVCORE_BEGINS = rf"{_INDENT}#params: \S+, #flops: "

_CUT_ZEROS = "trailing zeros are not printed (7.9 for 7.90): a precision may be coarser than the tool's own rounding"


def read_calflops(source: Source) -> None:
    """Report of calflops 0.2 and 0.3."""
    _totals(source, CALFLOPS_TOTALS, [(r"takes ({}) times as much computation", "backward_factor")])
    if source.find("Calculate Flops Results"):
        _require(source, [quantity for _, quantity, _ in CALFLOPS_TOTALS[:5]])
    _tree(source, CALFLOPS, "Detailed Calculated FLOPs Results")
    source.notes += [
        "FLOPS in this report are counts, not rates",
        "parameters are the trainable ones; backward is the factor times forward, not counted",
        _CUT_ZEROS,
    ]
    if any(row["quantity"] == "memory_bytes" for row in source.rows):
        source.notes.append("memory is taken as decimal (1 GByte = 10^9 bytes); the report does not say which memory")


def read_deepspeed(source: Source) -> None:
    """Report of the DeepSpeed flops profiler, from 0.3 on: '=' or ',' before the percentages, latency or time."""
    _totals(source, DEEPSPEED_TOTALS, [(r"^\s*bwd FLOPS per GPU = ({}) \* fwd flops", "backward_factor")])
    if source.find("DeepSpeed Flops Profiler"):
        _require(source, ["params", "macs_forward", "flops_forward", "latency_forward"])
    _tree(source, DEEPSPEED, r"(?:Aggregated|Detailed) Profile\b")
    source.notes += [
        "modules have a rate (FLOPS) and a forward latency, but no FLOPs of their own",
        "latencies were taken with a synchronisation around every module",
        _CUT_ZEROS,
    ]
    if any(row["quantity"] == "params_of_model" and not row["value"] for row in source.rows):
        source.notes.append("'params of model' is 0: the profiler ran outside the DeepSpeed engine")


def read_ptflops(source: Source) -> None:
    """Report of ptflops with its `pytorch` backend; before 0.6 without parameters."""
    _totals(source, PTFLOPS_TOTALS, [])
    _tree(source, PTFLOPS if source.find("% Params") else PTFLOPS[1:])
    source.notes += [
        "MACs, though the tool's functions say flops",
        "parameters and MACs only of the module types ptflops knows (an Embedding has 0), and sums of those",
        "functional operations are in the total and in no module: the shares of the modules need not reach 100 %",
        _CUT_ZEROS,
    ]


def read_mmcv(source: Source) -> None:
    """Report of `mmcv.cnn.get_model_complexity_info`, and the summary that scripts of OpenMMLab print below it."""
    _totals(source, MMCV_TOTALS, [])
    _tree(source, MMCV)
    source.notes += [
        "what mmcv calls FLOPs are MACs",
        "parameters and MACs only of the module types mmcv knows, and sums of those; attention is in none",
        _CUT_ZEROS,
    ]


def read_fvcore_model(source: Source) -> None:
    """What fvcore's `flop_count_str` returns, and the `out_arch` of mmengine, which took it over."""
    missing: list[str] = []

    def figures(source: Source, line: int, text: str, path: str, cls: str) -> None:
        for item in text.split(", "):
            label, _, value = item.partition(": ")
            quantity = {"#params": "params", "#flops": "macs", "#acts": "activations"}.get(label)
            if quantity and value == "N/A":
                missing.append(path)
            elif quantity:
                source.add_figure(line, path, cls, quantity, value)

    _modules(source, figures, FVCORE_BEGINS)
    source.notes.append(FVCORE_NOTE)
    if missing:
        source.notes.append(f"{len(missing)} modules without a figure (N/A), the first is '{missing[0]}'")


FVCORE_NOTE = "what fvcore and mmengine call flops are MACs, and a few operations per element of norm layers"

Figures = Callable[[Source, int, str, str, str], None]


def _tree(source: Source, steps: Steps, title: str = "") -> None:
    words = "|".join(word for _, _, word in steps if word)
    _modules(source, _stepwise(steps), rf"{NUMBER}% (?:{words})\b", title)


def _modules(source: Source, figures: Figures, pattern: str, title: str = "") -> None:
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
            percentage = rf"(?: = |, )(?P<share>{NUMBER}%) (?:{word})" if word else ""
            match = re.match(rf"(?P<figure>{NUMBER}\s*{PREFIX}{unit}){percentage}(?:,\s*|$)", rest)
            if not match:
                example = f"'N {unit} = N% {word.partition('|')[0]}'" if word else f"'N {unit}'"
                raise source.error(f"expected {example.replace('  ', ' ')}, found {short(rest)}", line)
            source.add_figure(line, path, cls, quantity, match["figure"], unit)
            if word:
                source.add_figure(line, path, cls, f"{quantity}_share", match["share"])
            rest = rest[match.end() :]

    return figures


_LABEL = re.compile(r":\s*[|│┃]?|[|│┃]")
"""What is between a label and its value: a colon, or the bar of a table that people made of it."""


def _totals(source: Source, totals: Totals, factors: list[tuple[str, str]]) -> None:
    found: dict[str, int] = {}
    for number, line in source.numbered():
        for pattern, quantity in factors:
            if match := re.search(pattern.format(NUMBER), line):
                _once(source, found, quantity, number)
                source.add_figure(number, TOTAL, "", quantity, match[1])
        label, *value = _LABEL.split(line, maxsplit=1)
        for pattern, quantity, unit in totals:
            if value and re.fullmatch(rf"{pattern}(?: = .*)?", label.strip()):
                _once(source, found, quantity, number)
                source.add_figure(number, TOTAL, "", quantity, value[0], unit)


def _once(source: Source, found: dict[str, int], quantity: str, number: int) -> None:
    if quantity in found:
        first = f"the first has its {quantity} in line {source.number(found[quantity])}"
        raise source.error(f"a second report ({first}): put every report into a file of its own", number)
    found[quantity] = number


def _require(source: Source, quantities: list[str]) -> None:
    read = {row["quantity"] for row in source.rows if row["module"] == TOTAL}
    for quantity in quantities:
        if quantity not in read:
            raise source.error(f"the summary has no line with {quantity}: the report is cut off")
