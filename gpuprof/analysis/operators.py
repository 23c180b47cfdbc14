"""Names, kinds and shapes of operators."""

from __future__ import annotations

from functools import cache

from gpuprof.analysis.once import once
from gpuprof.record import Record
from gpuprof.schema import ALL
from gpuprof.theory import rule_for
from gpuprof.theory.generated import generated
from gpuprof.theory.names import without_overload
from gpuprof.theory.rules import PRODUCTS

GENERATED = "inductor::"
"""What the operators of kernels begin with that a compiler wrote."""

_STRONGEST = (*PRODUCTS, "communication", "vector", "movement", "view")


@cache
def plain_op(op: str) -> str:
    """An operator without its overload, in place or not: ``aten::add`` for ``aten::add_.Tensor``."""
    return without_overload(op).rstrip("_")


@once
def kinds(run: Record) -> dict[str, str]:
    """Kind of each plain operator of a run; of those that only the trace saw by their rule, empty without one.

    What a compiler wrote is of the strongest kind of the operators in it, a product before all others, or where they
    are not known of the one that its name says.
    """
    known = {plain_op(op): kind for op, kind in zip(run.column("ops", "op"), run.column("ops", "kind"), strict=True)}
    known |= _of_generated(run)
    for op in {*map(plain_op, run.distinct("kernels", "op")), *run.distinct("busy", "op")} - {ALL}:
        if op not in known:
            rule = rule_for(op)
            known[op] = rule.kind if rule else ""
    return known


def _of_generated(run: Record) -> dict[str, str]:
    if not any(op.startswith(GENERATED) for op in run.distinct("kernels", "op")):
        return {}
    kernels = run.kernels[run.kernels["op"].str.startswith(GENERATED)]
    nodes: dict[str, set[str]] = {}
    rows = run.nodes[["graph", "kernel", "kind"]]
    for graph, kernel, kind in rows.itertuples(index=False, name=None):
        nodes.setdefault(f"{graph}/{kernel}", set()).add(kind)
    found: dict[str, set[str]] = {}
    for op, name, compiled in set(kernels[["op", "kernel", "compiled"]].itertuples(index=False, name=None)):
        by_name = generated(name) or generated(op)
        found.setdefault(plain_op(op), set()).update(nodes.get(compiled, {by_name.kind} if by_name else ()))
    return {op: next((kind for kind in _STRONGEST if kind in among), "") for op, among in found.items()}


def input_shapes(shapes: str) -> str:
    """Shapes of a row of ``ops`` as a row of ``kernels`` has them: of the tensor inputs alone."""
    return " ".join(shape for shape in shapes.partition("->")[0].split() if shape != "scalar")
