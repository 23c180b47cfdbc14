"""What thop leaves in a log: the rules that it registers, what `profile` returned, or figures that people label."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpuprof.reports.figures import NUMBER, Claim, claim
from gpuprof.reports.source import TOTAL, Source, short

BEGINS = r"\[INFO\] (?:Register|Customize rule) \w+\(\)|Register FLOP counter for module"
RESULT = r"\(\d+\.\d+, \d+\.\d+(?:, \{.*\})?\)\s*$"

_CLEVER = rf"{NUMBER}[KMGTB]"
_RETURNED = re.compile(rf"\((?P<macs>{NUMBER}), (?P<params>{NUMBER})(?:, (?P<modules>\{{.*\}}))?\)$")
_PRINTED = re.compile(rf"\(?'?(?P<macs>{_CLEVER})'?(?:, | )'?(?P<params>{_CLEVER})'?\)?$")
_NAMES = "macs|flops|params|parameters"
_LABELLED = re.compile(
    rf"\b(?P<scale>[KMGT]?)(?P<label>{_NAMES})(?: ?\((?P<scale_behind>[KMGT])\))?\s*[:=]?\s*"
    rf"(?P<number>{NUMBER}) ?(?P<prefix>[KMGTB]?)(?:{_NAMES})?(?=\s*(?:$|[,;|)\]/]|\b[KMGT]?(?:{_NAMES})\b))",
    re.IGNORECASE,
)
_QUANTITIES = {"macs": "macs_forward", "flops": "flops_forward", "params": "params", "parameters": "params"}
_EXPONENTS = {"": 0, "B": 0, "K": 3, "M": 6, "G": 9, "T": 12}  # clever_format writes numbers below 1000 with a B


class _Total(NamedTuple):
    """One figure of the whole model."""

    place: int
    quantity: str
    claim: Claim
    text: str


def read_thop(source: Source) -> None:
    """What `thop.profile` returned, alone or with `ret_layer_info`, printed as it is or by `clever_format`.

    Figures with a label are read where what it returned was not printed.
    """
    totals = list(_returned(source)) or list(_labelled(source))
    first: dict[str, _Total] = {}
    for total in totals:
        before = first.setdefault(total.quantity, total)
        if abs(before.claim.value - total.claim.value) > before.claim.precision + total.claim.precision:
            where = f"the first has its {total.quantity} in line {source.number(before.place)}"
            problem = f"a second report ({where}): put every report into a file of its own"
            raise source.error(problem, total.place)
        source.add(total.place, TOTAL, "", total.quantity, total.claim, total.text)
    for place, line in source.numbered():
        returned = _RETURNED.search(line.strip())
        if returned and returned["modules"]:
            _modules(source, place, returned["modules"])
    source.notes += [
        "thop returns MACs, and a few operations per element of norms and pooling; attention is not in them",
        "parameters only of the module types thop knows, and sums of those",
    ]


def _returned(source: Source) -> Iterator[_Total]:
    for place, line in source.numbered():
        found = _RETURNED.search(line.strip()) or _PRINTED.fullmatch(line.strip())
        if found:
            for quantity, text in (("macs_forward", found["macs"]), ("params", found["params"])):
                number = text.rstrip("KMGTB")
                yield _Total(place, quantity, claim(number, _EXPONENTS[text[len(number) :]]), text)


def _labelled(source: Source) -> Iterator[_Total]:
    for place, line in source.numbered():
        for match in _LABELLED.finditer(line):
            scales = [match[name].upper() for name in ("scale", "scale_behind", "prefix") if match[name]]
            if len(scales) > 1:
                raise source.error(f"expected one of {', '.join(scales)}, found {short(match[0])}", place)
            figure = claim(match["number"], _EXPONENTS[scales[0] if scales else ""])
            yield _Total(place, _QUANTITIES[match["label"].lower()], figure, match[0].strip())


def _modules(source: Source, place: int, text: str) -> None:
    try:
        modules = list(_walk("", ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
        problem = f"expected {{'module': (MACs, parameters, {{...}}), ...}}, found {short(text)}"
        raise source.error(problem, place) from None
    for path, macs, params in modules:
        source.add(place, path, "", "macs", Claim(macs, 0.5), str(macs))
        source.add(place, path, "", "params", Claim(params, 0.5), str(params))


def _walk(above: str, below: Any) -> Iterator[tuple[str, float, float]]:
    for name, (macs, params, children) in below.items():
        path = f"{above}.{name}" if above else str(name)
        yield path, float(macs), float(params)
        yield from _walk(path, children)
