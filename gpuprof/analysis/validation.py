"""A report of another counter held against a run: right, explained or unexplained, line by line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gpuprof import units
from gpuprof.analysis.counted import convention_of, counted
from gpuprof.analysis.modules import ancestors
from gpuprof.errors import GpuprofError
from gpuprof.record import UNATTRIBUTED, Run
from gpuprof.reports import read_report
from gpuprof.theory.rows import read_shapes

LINE_COLUMNS = [
    "line", "module", "class", "matched", "quantity", "text", "claimed", "causal", "full", "profiler",
    "error_percent", "verdict", "cause",
]  # fmt: skip
"""Columns of `Validation.lines`."""

_RULES_OF_TOOL = {"calflops": ("calflops", "calflops-0.3"), "torch-counter": ("torch-counter",)}
"""Conventions that compute what a tool would print."""

_TWO_DECIMALS = ("calflops", "deepspeed", "ptflops")
"""Tools that round figures of modules to two decimals, and shares to four, and cut zeros off."""

_ATTENTION, _BROADCAST, _VECTOR, _PRODUCTS = (
    "fused attention not counted",
    "elementwise operators broadcast from the left",
    "other elementwise operators",
    "multiplications counted otherwise",
)


@dataclass(frozen=True)
class Validation:
    """What became of every figure of a report.

    Attributes:
        tool: what made the report.
        lines: one row per claimed figure, columns `LINE_COLUMNS`: the claimed and the counted figure, the error of the
            claim against the count in the run's convention in percent, the verdict (right, explained, unexplained,
            unmatched, not checked) and its cause.
        missing: modules of the model that do work and that no line of the report stands for.
        sentences: the verdict in words.
    """

    tool: str
    lines: pd.DataFrame
    missing: list[str]
    sentences: str


def validate(report: pd.DataFrame | str | os.PathLike[str], run: Run) -> Validation:
    """Hold a report against a run of the same workload.

    A cause is given only where the figure that follows from it is the claimed one within its printed precision.

    Args:
        report: what `gpuprof.read_report` returned, or the path of a report.
        run: a run with the counting pass.

    Raises:
        GpuprofError: the report cannot be read, or the run was not counted.
    """
    claims = report if isinstance(report, pd.DataFrame) else read_report(report)
    if not run.done("count"):
        raise GpuprofError("this run was not counted: make one with 'gpuprof count', or with count among --passes")
    tool = str(claims.attrs["tool"])
    places = match(claims, run)
    figures = _Figures(run, tool)
    rows = [_judged(claim, places, figures, run) for claim in claims.to_dict(orient="records")]
    lines = pd.DataFrame(rows, columns=LINE_COLUMNS)
    seen = {path for paths in places.values() for path in paths}
    missing = [path for path in figures.busy() if path not in seen]
    return Validation(tool, lines, missing, _sentences(tool, lines, figures, run))


# matching


def match(claims: pd.DataFrame, run: Run) -> dict[str, list[str]]:
    """Modules of the model that each module of the report stands for; an empty list where there is none.

    Names move between releases of a library: containers such as ``model`` come and go. So paths are compared without
    them, then by how they end; where several fit, the parameters decide. A module of the report that no single one
    equals may still be the sum of what its children stand for.
    """
    tree = run.tree.set_index("module")
    keys: dict[str, list[str]] = {}
    for path in tree.index:
        parts = _key(path).split(".")
        for start in range(len(parts)):
            keys.setdefault(".".join(parts[start:]), []).append(path)
    whole = {path: _key(path) for path in tree.index}
    params = claims[claims["quantity"] == "params"].drop_duplicates("module").set_index("module")
    modules = claims[claims["module"] != "(total)"].drop_duplicates("module")
    classes = dict(zip(modules["module"], modules["class"], strict=True))
    found: dict[str, list[str]] = {}

    def fits(path: str, module: str) -> bool:
        if module not in params.index:
            return _stem(tree.loc[path, "class"]) == _stem(classes[module])
        claim = params.loc[module]
        return abs(int(tree.loc[path, "params"]) - claim["value"]) <= claim["precision"]

    for module in classes:
        parts = _key(module).split(".")
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            options = [path for path in keys.get(end, []) if start or whole[path] == end]
            best = [path for path in options if fits(path, module)]
            if best:
                found[module] = [best[0]]
                break
    for module in reversed(list(classes)):  # children before their parents
        if module in found:
            continue
        children = [child for child in classes if child and child.rpartition(".")[0] == module]
        parts_found = [path for child in children for path in found.get(child, [])]
        whole_fits = module in params.index and parts_found
        if whole_fits:
            total = sum(int(tree.loc[path, "params"]) for path in dict.fromkeys(parts_found))
            if abs(total - params.loc[module]["value"]) <= params.loc[module]["precision"]:
                found[module] = list(dict.fromkeys(parts_found))
                continue
        same = [path for path in tree.index if _stem(tree.loc[path, "class"]) == _stem(classes[module])]
        found[module] = same if len(same) == 1 else []
    return found


_CONTAINERS = {"model", "vision_model", "transformer", "base_model", "module"}


def _key(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _CONTAINERS)


def _stem(name: str) -> str:
    """A class without what releases of a library change of its name."""
    name = re.sub(r"(Flash|Sdpa|Eager)?Attention2?$", "Attention", str(name))
    return re.sub(r"^Pytorch|Activation$", "", name)


# verdicts

_COUNTED = {"macs": 0.5, "flops": 1.0, "macs_forward": 0.5, "flops_forward": 1.0}
_SHARES = {"params_share": "params", "macs_share": "macs", "flops_share": "flops"}
_WITH_BACKWARD = {"macs_forward_backward": 0.5, "flops_forward_backward": 1.0}


def _judged(claim: dict[str, Any], places: dict[str, list[str]], figures: _Figures, run: Run) -> dict[str, Any]:
    """One claimed figure with its verdict."""
    module, quantity = claim["module"], claim["quantity"]
    paths = [""] if module == "(total)" else places.get(module, [])
    row = {
        "line": claim["line"], "module": module, "class": claim["class"], "matched": _named(paths),
        "quantity": quantity, "text": claim["text"], "claimed": claim["value"], "causal": None, "full": None,
        "profiler": None, "error_percent": None, "verdict": "unmatched", "cause": "",
    }  # fmt: skip
    if not paths:
        return row
    claimed, slack = claim["value"], _slack(claim, figures.tool)
    if quantity == "params":
        return row | _compare(claimed, slack, {"": sum(figures.params[path] for path in paths)}, "params")
    if quantity in _COUNTED:
        return row | _judge_count(claimed, slack, paths, _COUNTED[quantity], figures, run)
    if quantity in _SHARES:
        return row | _judge_share(claimed, slack, paths, _SHARES[quantity], figures)
    if quantity in _WITH_BACKWARD:
        return row | _judge_backward(claimed, slack, _WITH_BACKWARD[quantity], figures, run)
    if quantity == "backward_factor":
        return row | _judge_factor(claimed, figures, run)
    return row | {"verdict": "not checked", "cause": "no count: it depends on what was measured, and how"}


def _named(paths: list[str]) -> str:
    return " + ".join(path or "(root)" for path in paths)


def _slack(claim: dict[str, Any], tool: str) -> float:
    """Half a unit of the last digit that the tool rounds to, also where it cut zeros off."""
    digits = re.search(r"\d+\.?(\d*)", claim["text"])
    if tool not in _TWO_DECIMALS or claim["module"] == "(total)" or not digits:
        return float(claim["precision"])
    kept = 4 if claim["quantity"].endswith("share") else 2
    return float(claim["precision"]) * 10.0 ** min(0, len(digits.group(1)) - kept)


def _compare(claimed: float, slack: float, options: dict[str, int], what: str) -> dict[str, Any]:
    """Right if the claim is one of the options, which are named by what is said then."""
    for cause, value in options.items():
        if abs(claimed - value) <= slack:
            verdict = "explained" if cause else "right"
            return {
                "causal": value,
                "full": value,
                "error_percent": _error(claimed, value),
                "verdict": verdict,
                "cause": cause,
            }
    value = next(iter(options.values()))
    return {"causal": value, "full": value, "error_percent": _error(claimed, value), "verdict": "unexplained"}


def _judge_count(
    claimed: float, slack: float, paths: list[str], factor: float, figures: _Figures, run: Run
) -> dict[str, Any]:
    """MACs or FLOPs of a forward."""
    causal, full, fused = (
        figures.of(paths, figures.ours, f"forward {name}") for name in ("causal", "full", "attention")
    )
    reference = (causal if convention_of(run) == "causal" else full) * factor
    row: dict[str, Any] = {
        "causal": int(causal * factor),
        "full": int(full * factor),
        "profiler": figures.of(paths, figures.ours, "profiler") * factor if run.done("trace") else None,
        "error_percent": _error(claimed, reference),
    }
    if abs(claimed - reference) <= slack:
        return row | {"verdict": "right"}
    for cause, value in _causes(paths, factor, causal, full, fused, figures):
        if abs(claimed - value) <= slack:
            return row | {"verdict": "explained", "cause": cause}
    return row | {"verdict": "unexplained"}


def _causes(
    paths: list[str], factor: float, causal: int, full: int, fused: int, figures: _Figures
) -> Iterable[tuple[str, float]]:
    """What a claim could be, the likeliest first: the cause in words, and the figure that follows from it."""
    square = "attention over the whole square" if full != causal else ""
    yield square or "unmasked pairs only", full * factor
    yield "attention over unmasked pairs only", causal * factor
    for sums in figures.by_rule.values():
        quantity = "macs" if factor == 0.5 else "flops"
        parts = {cause: figures.of(paths, sums, cause) for cause in (_ATTENTION, _BROADCAST, _VECTOR, _PRODUCTS)}
        if quantity == "macs":  # of MACs, elementwise operators have none
            parts = {cause: flops for cause, flops in parts.items() if cause in (_ATTENTION, _PRODUCTS)}
        named = sorted((item for item in parts.items() if item[1]), key=lambda item: -abs(item[1]))
        words = ", ".join(f"{cause} ({_signed(flops)})" for cause, flops in named)
        yield words or "rounding", figures.of(paths, sums, quantity)
    yield f"{_ATTENTION} ({_signed(-fused)})", (full - fused) * factor
    for words, times in (("MACs printed as FLOPs", 0.5), ("FLOPs printed as MACs", 2.0)):
        for attention, value in (
            ("", causal),
            ("over the whole square", full),
            ("without fused attention", full - fused),
        ):
            yield f"{words}{', attention ' if attention else ''}{attention}", value * factor * times


def _judge_share(claimed: float, slack: float, paths: list[str], of: str, figures: _Figures) -> dict[str, Any]:
    """A share of the whole, under the count or under the tool's own rules."""
    if of == "params":
        parts = {"": (sum(figures.params[path] for path in paths), figures.params[""])}
    else:
        parts = {
            cause: (figures.of(paths, figures.ours, name), figures.of([""], figures.ours, name))
            for cause, name in (("", "forward causal"), ("share of the full square", "forward full"))
        }
        for sums in figures.by_rule.values():
            parts.setdefault("share of the tool's own total", (figures.of(paths, sums, of), figures.of([""], sums, of)))
    shares = {cause: part / whole for cause, (part, whole) in parts.items() if whole}
    for cause, share in shares.items():
        if abs(claimed - share) <= slack:
            return {
                "error_percent": _error(claimed, shares[""]),
                "verdict": "explained" if cause else "right",
                "cause": cause,
            }
    return {"error_percent": _error(claimed, shares.get("", 0.0)), "verdict": "unexplained"}


def _judge_backward(claimed: float, slack: float, factor: float, figures: _Figures, run: Run) -> dict[str, Any]:
    """Forward and backward together, which tools assume to be three times the forward."""
    causal, full = (
        figures.of([""], figures.ours, f"forward {name}") + figures.of([""], figures.ours, f"backward {name}")
        for name in ("causal", "full")
    )
    reference = (causal if convention_of(run) == "causal" else full) * factor
    row: dict[str, Any] = {
        "causal": int(causal * factor), "full": int(full * factor), "error_percent": _error(claimed, reference),
    }  # fmt: skip
    if abs(claimed - reference) <= slack:
        return row | {"verdict": "right"}
    forward_causal, forward_full, fused = (
        figures.of([""], figures.ours, f"forward {name}") for name in ("causal", "full", "attention")
    )
    ran = "none ran" if not figures.of([""], figures.ours, "backward full") else "another ran"
    for cause, value in _causes([""], factor, forward_causal, forward_full, fused, figures):
        if abs(claimed - 3 * value) <= slack:
            return row | {
                "verdict": "explained",
                "cause": f"backward assumed 2x the forward, where {ran}; forward: {cause}",
            }
    return row | {"verdict": "unexplained"}


def _judge_factor(claimed: float, figures: _Figures, run: Run) -> dict[str, Any]:
    forward, backward = (figures.of([""], figures.ours, f"{phase} causal") for phase in ("forward", "backward"))
    if not backward:
        return {"verdict": "explained", "cause": "an assumption: no backward ran in this workload"}
    ratio = backward / forward
    right = abs(claimed - ratio) <= 0.005
    return {
        "causal": ratio, "error_percent": _error(claimed, ratio), "verdict": "right" if right else "explained",
        "cause": "" if right else f"an assumption: {ratio:.3f} was counted",
    }  # fmt: skip


def _error(claimed: float, reference: float) -> float | None:
    return None if not reference else 100 * (claimed - reference) / reference


def _signed(flops: float) -> str:
    return ("+" if flops > 0 else "-") + units.si(abs(flops), "FLOPs")


def _sentences(tool: str, lines: pd.DataFrame, figures: _Figures, run: Run) -> str:
    """The verdict in two sentences: what is wrong with the total, and how the lines came out."""
    verdicts = lines["verdict"].value_counts()
    counts = ", ".join(f"{verdicts.get(name, 0)} {name}" for name in ("right", "explained", "unexplained", "unmatched"))
    second = f"Of {len(lines)} figures {counts}, {verdicts.get('not checked', 0)} not checked."
    total = lines[lines["quantity"].isin(["flops_forward", "macs_forward"]) & (lines["module"] == "(total)")]
    if total.empty:
        total = lines[lines["quantity"].isin(["flops", "macs"]) & (lines["matched"] == "(root)")]
    if total.empty:
        return second
    row = total.iloc[-1]
    unit = "MACs" if row["quantity"].startswith("macs") else "FLOPs"
    claimed, causal, full = (units.si(float(row[name]), unit) for name in ("claimed", "causal", "full"))
    first = f"{tool} claims {claimed} for the forward, where {causal} are counted (full square: {full})"
    if row["verdict"] != "explained":
        return f"{first}: {row['verdict']}. {second}"
    made = _made_of(row, figures) if unit == "FLOPs" else ""
    return f"{first}: {made or row['cause']}. {second}"


def _made_of(row: pd.Series, figures: _Figures) -> str:
    """What a claimed total of FLOPs consists of by the tool's own rules, and what it lacks; empty without rules."""
    for sums in figures.by_rule.values():
        if abs(row["claimed"] - figures.of([""], sums, "flops")) > 0.001 * row["claimed"]:
            continue
        parts = {cause: figures.of([""], sums, cause) for cause in (_PRODUCTS, _BROADCAST, _VECTOR, _ATTENTION)}
        lacking = -parts.pop(_ATTENTION)
        products = int(row["full"]) - lacking + parts.pop(_PRODUCTS)
        words = [f"{units.si(products)} of multiplications"] + [
            f"{units.si(flops)} of {cause}" for cause, flops in parts.items() if flops
        ]
        masked = int(row["full"]) - int(row["causal"])
        lack = f"{units.si(lacking - masked)} (full square: {units.si(lacking)})" if masked else units.si(lacking)
        return f"they are {' and '.join(words)}, without {lack} of fused attention"
    return ""


# figures


class _Figures:
    """Counted figures of modules, and what the tool would make of them, cause by cause."""

    def __init__(self, run: Run, tool: str) -> None:
        self.run = run
        self.tool = tool
        self.params = dict(zip(run.tree["module"], run.tree["params"], strict=True))
        self.ours = self._sums(self._own(run))
        self.by_rule = {
            name: self._sums(self._theirs(counted(run, name))) for name in _RULES_OF_TOOL.get(tool, ()) if len(run.ops)
        }
        self._children: dict[str, list[str]] = {}
        for path in run.tree["module"]:
            if path:
                self._children.setdefault(path.rpartition(".")[0], []).append(path)

    def _own(self, run: Run) -> Iterable[tuple[str, dict[str, int]]]:
        for row in run.ops.itertuples(index=False):
            if row.phase in ("forward", "backward"):
                full = 0 if row.flops_full is pd.NA else int(row.flops_full)
                causal = 0 if row.flops_causal is pd.NA else int(row.flops_causal)
                attention = full if row.kind == "attention" else 0
                yield row.module, {
                    f"{row.phase} full": full, f"{row.phase} causal": causal, f"{row.phase} attention": attention,
                }  # fmt: skip
        for row in run.estimates.itertuples(index=False):
            yield row.module, {"profiler": int(row.flops_profiler)}

    def _theirs(self, ops: pd.DataFrame) -> Iterable[tuple[str, dict[str, int]]]:
        for row in ops.itertuples(index=False):
            if row.phase != "forward":
                continue
            flops, macs = (0 if value is pd.NA else int(value) for value in (row.flops, row.macs))
            full = 0 if row.flops_full is pd.NA else int(row.flops_full)
            cause = _PRODUCTS
            if row.kind == "attention":
                cause = _ATTENTION
            elif not full and flops:
                results = read_shapes(row.shapes)[1]
                widest = max((_elements(shape) for shape in results), default=0)
                elementwise = row.op.startswith(("aten::mul", "aten::add"))
                cause = _BROADCAST if elementwise and flops > widest * int(row.calls) else _VECTOR
            yield row.module, {"flops": flops, "macs": macs, cause: flops - full}

    def _sums(self, rows: Iterable[tuple[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
        sums: dict[str, dict[str, int]] = {}
        for module, values in rows:
            for path in ancestors(module):
                entry = sums.setdefault(path, {})
                for name, value in values.items():
                    entry[name] = entry.get(name, 0) + value
        return sums

    def of(self, paths: list[str], table: dict[str, dict[str, int]], name: str) -> int:
        """Sum over modules, which do not contain each other."""
        total = sum(table.get(path, {}).get(name, 0) for path in paths)
        if paths == [""]:  # a loss outside the model is still part of the step
            total += table.get(UNATTRIBUTED, {}).get(name, 0)
        return total

    def busy(self) -> list[str]:
        """Modules without children that multiply or have parameters."""
        return [
            path for path in self.run.tree["module"]
            if path not in self._children
            and (self.params[path] or self.ours.get(path, {}).get("forward full"))
        ]  # fmt: skip


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
