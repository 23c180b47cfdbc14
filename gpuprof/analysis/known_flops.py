"""Of how much of the matmul kernel time the FLOPs are known: below all of it a rate of the step is a lower bound."""

from __future__ import annotations

from typing import Any

from gpuprof import units
from gpuprof.analysis.each import numbered
from gpuprof.analysis.once import once
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.late import np, pd
from gpuprof.record import Record
from gpuprof.theory import rule_for
from gpuprof.theory.kernel_names import multiplies
from gpuprof.theory.rules import PRODUCTS

NEARLY_ALL = 0.99
"""Share of the matmul kernel time whose FLOPs are known from which a rate is said without "at least"."""


@once
def matmul_kernels(run: Record) -> pd.DataFrame:
    """The kernels that multiply matrices: by their names, or in an operator call that has matmul FLOPs or would.

    Returns:
        Rows of ``kernels`` with a column ``priced``: whether the FLOPs of their call are known. None without a count or
        a trace, and of a run measured on a CPU, whose kernels are operators.
    """
    measured_on_cpu = run.device.get("type") == "cpu" and not run.recorded
    if not (run.done("count") and run.done("trace")) or measured_on_cpu:
        return run.kernels.head(0).assign(priced=False)
    columns = ["op", "shapes", "kernel", "compiled"]
    of_call = _flops_of_calls(run)
    places, calls = numbered(run.kernels[columns])
    found = [_of(key, of_call, run) for key in calls.itertuples(index=False, name=None)]
    multiply, priced = (np.array([is_so[at] for is_so in found], dtype=bool)[places] for at in (0, 1))
    return run.kernels.assign(priced=priced)[multiply]


def priced_share(run: Record) -> float | None:
    """Share of the matmul kernel time whose calls have FLOPs; None where no kernel of a GPU multiplies."""
    if run.is_job:
        sums = run.ranks.groupby("quantity")["amount"].sum()
        return int(sums["priced_ns"]) / int(sums["matmul_ns"]) if "matmul_ns" in sums else None
    if not run.has("kernels"):
        return None
    kernels = matmul_kernels(run)
    whole = int(kernels["duration_ns"].sum())
    return int(kernels.loc[kernels["priced"], "duration_ns"].sum()) / whole if whole else None


def at_least(run: Record | float) -> str:
    """What to say before a rate of the step, ``"at least "``: empty where `NEARLY_ALL` of the FLOPs are in it.

    Args:
        run: the run, or its `priced_share`; a NaN is not known.
    """
    share = priced_share(run) if isinstance(run, Record) else run
    return "at least " if share is not None and share < NEARLY_ALL else ""


def known_of(run: Record) -> str:
    """The words that go with `at_least`: of how much of the matmul kernel time FLOPs are known; empty likewise."""
    share = priced_share(run)
    if share is None or share >= NEARLY_ALL or none_known(run):
        return ""
    return f"FLOPs are known of {units.percent(share)} of the matmul kernel time"


def none_known(run: Record) -> bool:
    """Whether the FLOPs of a recording are unknown altogether, and not none."""
    if not run.recorded:
        return False
    known = [flops for flops in run.column("ops", "flops_hardware") if flops is not None]
    return not any(known) and (not known or priced_share(run) == 0)


_ANY, _COMPILED = "*", "compiled"

_OfCalls = dict[tuple[str, str], tuple[bool, bool]]
"""Whether the calls of an operator on such inputs have matmul FLOPs or would, and whether all of these are known."""


def _flops_of_calls(run: Record) -> _OfCalls:
    """By operator and shapes, by operator alone, on `_ANY`, and by the kernel of compiled code, on `_COMPILED`."""
    found: _OfCalls = {}

    def add(key: tuple[str, str], kind: str, flops: Any) -> None:
        known = not pd.isna(flops)
        some, all_known = found.get(key, (False, True))
        found[key] = (some or (flops > 0 if known else kind in PRODUCTS), all_known and known)

    rows = run.ops[["op", "kind", "shapes", "flops_hardware"]]
    for op, kind, shapes, flops in rows.itertuples(index=False, name=None):
        for key in ((plain_op(op), input_shapes(shapes)), (plain_op(op), _ANY)):
            add(key, kind, flops)
    products = run.nodes.loc[run.nodes["kind"].isin(PRODUCTS), ["graph", "kernel", "kind", "flops_hardware"]]
    for graph, kernel, kind, flops in products.itertuples(index=False, name=None):
        add((f"{graph}/{kernel}", _COMPILED), kind, flops)
    return found


def _of(key: tuple[str, str, str, str], of_call: _OfCalls, run: Record) -> tuple[bool, bool]:
    """Whether a kernel multiplies, and whether the FLOPs of its call are known."""
    op, shapes, kernel, compiled = key
    op = plain_op(op)
    seen = of_call.get((compiled, _COMPILED)) or of_call.get((op, shapes)) or of_call.get((op, _ANY))
    if seen is not None:
        return seen[0] or multiplies(kernel), seen[1]
    rule = rule_for(op)  # in place where it was counted out of place, say
    counted_otherwise = {"compiled", "transformed"} & run.passes["trace"].facts.keys() and not run.recorded
    return multiplies(kernel), bool(counted_otherwise or (rule and rule.kind not in PRODUCTS))
