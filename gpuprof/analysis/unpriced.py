"""Operators without a rule that may multiply matrices: a ratio of FLOPs that should hold theirs is withheld."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpuprof.analysis.consistency import withheld
from gpuprof.record import Run
from gpuprof.theory.names import communicates

_MULTIPLIES = frozenset(
    """
    mm bmm addmm baddbmm gemm gemv mv matmul linear conv convolution attention attn lstm gru rnn dot bilinear trilinear
    einsum linalg solve inverse pinverse svd eig eigh qr geqrf ormqr orgqr cholesky ldl lobpcg matrix
    """.split()
)
"""Words in the names of torch's own operators that multiply matrices."""

_KNOWN = re.compile("aten|prims|profiler|fsdp").fullmatch  # namespaces whose names mean what they say


def may_multiply(op: str) -> bool:
    """Whether an operator without a rule may be a product: torch's own by its name, of anybody else's every one."""
    if communicates(op):
        return False
    namespace, _, name = op.partition("::")
    return not _KNOWN(namespace) or not _MULTIPLIES.isdisjoint(re.findall("[a-z]+", name.partition(".")[0]))


def unpriced(run: Run) -> dict[str, list[str]]:
    """Such operators in the forward and backward, by the module that owns them."""
    rows = run.ops[(run.ops["kind"] == "") & run.ops["phase"].isin(["forward", "recompute", "backward"])]
    found: dict[str, list[str]] = {}
    for module, op in rows[["module", "op"]].drop_duplicates().itertuples(index=False, name=None):
        if may_multiply(op):
            found.setdefault(module, []).append(op)
    return found


def ratio_withheld(run: Run) -> str:
    """Why the backward of a step has no counted ratio to its forward; empty where it may have one."""
    return withheld(run) or reason(op for ops in unpriced(run).values() for op in ops)


def reason(unpriced_ops: Iterable[str]) -> str:
    """What to say in place of a ratio that should hold these operators; empty without any."""
    ops = sorted(set(unpriced_ops))
    if not ops:
        return ""
    more = f" and {len(ops) - 1} more such" if len(ops) > 1 else ""
    return f"withheld: {ops[0]}{more} may multiply and has no FLOP rule; give it one with @gpuprof.flop_rule"
