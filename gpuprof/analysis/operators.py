"""Names, kinds and shapes of operators."""

from __future__ import annotations

from gpuprof.record import ALL, Run
from gpuprof.theory import rule_for


def plain_op(op: str) -> str:
    """An operator without its overload, in place or not: ``aten::add`` for ``aten::add_.Tensor``."""
    return op.partition(".")[0].rstrip("_")


def kinds(run: Run) -> dict[str, str]:
    """Kind of each plain operator of a run; of those that only the trace saw by their rule, empty without one."""
    known = {plain_op(op): kind for op, kind in zip(run.ops["op"], run.ops["kind"], strict=True)}
    for op in {*run.kernels["op"].map(plain_op), *run.busy["op"]} - {ALL}:
        if op not in known:
            rule = rule_for(op)
            known[op] = rule.kind if rule else ""
    return known


def input_shapes(shapes: str) -> str:
    """Shapes of a row of ``ops`` as a row of ``kernels`` has them: of the tensor inputs alone."""
    return " ".join(shape for shape in shapes.partition("->")[0].split() if shape != "scalar")
