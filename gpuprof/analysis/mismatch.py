"""Whether a report is of another workload than the run: of another model, batch, sequence, or of a training.

Nothing is judged here. A figure says so only together with nearly all others: products of another batch differ by one
factor everywhere; those of another sequence do so too but in attention, whose products grow with its square.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gpuprof import units
from gpuprof.analysis import readings
from gpuprof.analysis.claimable import Figures
from gpuprof.analysis.readings import TOTAL
from gpuprof.late import pd
from gpuprof.theory.rules import PRODUCTS

_NEARLY_ALL = 0.9  # share of the figures that has to agree
_NEAR = 0.01  # share by which a figure may be off: tools count a little that grows otherwise
_SHOWS = 0.03  # share of a figure that has to be attention's to tell how that grew
_FEW = 3  # figures below which their factor has to be a whole number, or one over it
_FACTORS = {"macs": 0.5, "flops": 1.0, "macs_forward": 0.5, "flops_forward": 1.0}
_OF_MODEL = ("params", "params_of_model")


class _Count(NamedTuple):
    """A claim beside what could be claimed of the run: the figure, and what of it is products of attention."""

    claimed: float
    figure: float
    squared: float


def mismatch(lines: pd.DataFrame, places: Mapping[str, list[str]], figures: Figures) -> str:
    """What a report seems to be of instead of the run, in a sentence; empty where nothing says that it is.

    Args:
        lines: every claim with its verdict, as `gpuprof.analysis.validation.Validation` has them.
        places: paths of the modules that each module of the report stands for.
        figures: of the run.
    """
    if other := _other_model(lines):
        return other
    claims = lines[lines["quantity"].isin(list(_FACTORS)) & (lines["claimed"] > 0)].to_dict(orient="records")
    # a rule that leaves out what the report has is none of it
    possible = [c for c in _possible(claims, places, figures) if c and len(c) >= _NEARLY_ALL * len(claims)]
    if any(_fits(counts, 1.0, 1.0) for counts in possible):
        return ""
    for counts in possible:
        if found := _factors(counts):
            known = lines[lines["quantity"].isin(_OF_MODEL)]["verdict"].isin(["right", "explained"]).any()
            names = {str(claim["quantity"]).partition("_")[0] for claim in claims}
            return _said("Parameters agree, products" if known else "Products", *found, names, figures)
    return ""


def _other_model(lines: pd.DataFrame) -> str:
    """That its parameters or its modules are others."""
    params = lines[lines["quantity"].isin(_OF_MODEL)]
    whole = params[params["module"].isin([TOTAL, ""]) & params["verdict"].isin(["unexplained", "unmatched"])]
    modules = lines[lines["module"] != TOTAL].drop_duplicates("module")
    strange = int((modules["verdict"] == "unmatched").sum())
    if len(whole) and not pd.isna(whole["full"].iloc[0]):
        claimed, counted = (units.si(float(whole[name].iloc[0])) for name in ("claimed", "full"))
        parts = params[~params["module"].isin([TOTAL, ""])]
        alike = len(parts) and (parts["verdict"] == "right").mean() > 0.5
        what = "the same layers, another number of them" if alike else "another model"
        return f"Parameters differ (claimed {claimed}, counted {counted}): {what}?"
    if strange and strange >= len(modules) / 2:
        return f"{strange} of the report's {len(modules)} modules are not in this model: another model?"
    return ""


def _possible(
    claims: list[dict[str, Any]], places: Mapping[str, list[str]], figures: Figures
) -> Iterator[list[_Count]]:
    """The claims beside what each rule makes of the run: the tool's own, all products, all but fused attention."""
    squared = _squared(figures)
    for sums in (*figures.by_rule, None, "without"):
        counts = []
        for claim in claims:
            module, factor = str(claim["module"]), _FACTORS[str(claim["quantity"])]
            paths = [TOTAL] if module == TOTAL else places.get(module, [])
            square = figures.of(paths, squared, "full") * factor
            if isinstance(sums, dict):
                quantity = "macs" if factor == 0.5 else "flops"
                figure: float = figures.of(paths, sums, quantity)
                square += figures.parts(paths, sums, quantity).get(readings.ATTENTION, 0)
            else:
                fused = figures.count(paths, "attention", figures.phases) * factor * (sums is not None)
                figure = figures.count(paths, "full", figures.phases) * factor - fused
                square -= fused
            if figure > 0:
                counts.append(_Count(float(claim["claimed"]), figure, max(square, 0.0)))
        yield counts


def _squared(figures: Figures) -> readings.Sums:
    """FLOPs of products without a weight: those of attention, which grow with the square of the sequence."""
    tree = figures.run.tree
    params = {path: int(count) for path, count in zip(tree["module"], tree["params"], strict=True)}
    inner = dict.fromkeys(params, 0)
    for path, count in params.items():
        if path:
            inner[path.rpartition(".")[0]] += count
    ops = figures.run.ops
    rows = ops[ops["kind"].isin(PRODUCTS) & ops["phase"].isin(figures.phases) & ops["flops_full"].notna()]
    return readings.add_up(
        (path, {"full": int(flops)})
        for path, flops in zip(rows["module"], rows["flops_full"], strict=True)
        if params.get(path, 0) <= inner.get(path, 0)
    )


def _factors(counts: list[_Count]) -> tuple[float, float | None] | None:
    """By which one factor the products differ, and by which other one attention does too; None where none fits.

    The second is None where no figure tells it: of what the report leaves out of attention rounding alone is left.
    """
    plain = [count for count in counts if count.squared < _NEAR * count.figure]
    mixed = [count for count in counts if count.squared > _SHOWS * count.figure]
    factor = statistics.median(count.claimed / count.figure for count in plain or counts)
    whole = min(abs(share - round(share)) / share for share in (factor, 1 / factor))
    if abs(factor - 1) < 2 * _NEAR or (len(counts) < _FEW and whole > _NEAR):
        return None
    if not plain or not mixed:
        return (factor, None) if _fits(counts, factor, 1.0) or _fits(plain, factor, 1.0) else None
    growths = [(c.claimed / factor - (c.figure - c.squared)) / c.squared for c in mixed]
    growth = statistics.median(growths)
    if growth < _NEAR or not _fits(counts, factor, growth):
        return (factor, None) if _fits(plain, factor, 1.0) else None
    return factor, growth


def _fits(counts: list[_Count], factor: float, growth: float) -> bool:
    """Whether nearly all figures are those that follow."""
    near = 0
    for claimed, figure, squared in counts:
        expected = factor * (figure - squared + growth * squared)
        near += abs(claimed - expected) <= _NEAR * expected
    return near >= _NEARLY_ALL * len(counts) > 0


def _said(products: str, factor: float, growth: float | None, names: set[str], figures: Figures) -> str:
    """The factors in words, what they come of, and what to try."""
    backward = figures.count([TOTAL], "full", ("backward",)) > 0
    said = f"{products} are {units.significant(factor, 3)} x those of this workload"
    if figures.tool == "torch-counter" and abs((factor if not backward else 1 / factor) - 3) < 3 * _NEAR:
        of = "a forward alone (--mode forward)" if backward else "forward and backward (--mode train)"
        return f"{said}: of {of}?"
    workload = figures.run.workload
    batch, length = workload.get("batch_size"), workload.get("seq_len")
    other_batch, other_length = "another batch size", "another sequence length"
    causes = []
    if growth is None:
        causes = [other_batch + _option("--batch-size", batch, factor)]
        attends = length or _squared(figures)
        causes += [other_length + _option("--seq-len", length, factor)] if attends else []
    elif abs(growth - 1) < 2 * _NEAR:
        causes = [other_batch + _option("--batch-size", batch, factor)]
    elif abs(growth / factor - 1) < 2 * _NEAR:
        said += f", those of attention {units.significant(factor * growth, 3)} x"
        causes = [other_length + _option("--seq-len", length, factor)]
    else:
        said += f", those of attention {units.significant(factor * growth, 3)} x"
        both = _option("--batch-size", batch, factor / growth), _option("--seq-len", length, growth)
        causes = [f"{other_batch}{both[0]} and {other_length.removeprefix('another ')}{both[1]}"]
    if growth is None or abs(growth - 1) < 2 * _NEAR:
        if figures.tool == "torch-counter" and not backward and (own := _option("--batch-size", batch, factor / 3)):
            causes.insert(0, f"forward and backward (--mode train) and {other_batch}{own}")
        printed = {"macs": ("FLOPs printed as MACs", 2.0), "flops": ("MACs printed as FLOPs", 0.5)}
        # of a report that has both, both would have to be wrong
        causes += [
            said_as for name, (said_as, times) in printed.items() if names == {name} and abs(factor / times - 1) < _NEAR
        ]
    return f"{said}: {' or '.join(causes)}?"


def _option(name: str, size: int | None, factor: float) -> str:
    """What to try: an option with the size that follows, where that is a whole number."""
    wanted = (size or 0) * factor
    whole = round(wanted)
    return f" ({name} {whole})" if whole and abs(wanted - whole) < _NEAR * whole else ""
