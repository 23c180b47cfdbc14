"""Operators whose FLOPs are not known and may be matmul FLOPs: a ratio that should hold theirs is withheld."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpuprof.analysis.consistency import withheld
from gpuprof.analysis.known_flops import known_of
from gpuprof.record import Record
from gpuprof.schema import MODEL
from gpuprof.theory import rule_for
from gpuprof.theory.generated import generated
from gpuprof.theory.names import communicates, without_overload
from gpuprof.theory.rules import PRODUCTS

_MULTIPLIES = frozenset(
    """
    mm bmm addmm baddbmm gemm gemv mv matmul linear conv convolution attention attn lstm gru rnn dot bilinear trilinear
    einsum linalg solve inverse pinverse svd eig eigh qr geqrf ormqr orgqr cholesky ldl lobpcg matrix
    """.split()
)
"""Words in the names of torch's own operators that multiply matrices."""

_KNOWN = {"aten", "prims", "profiler", "fsdp"}  # namespaces whose names mean what they say


def may_multiply(op: str) -> bool:
    """Whether an operator without a rule may be a product: torch's own by its name, of anybody else's every one."""
    if communicates(op):
        return False
    namespace, _, name = without_overload(op).partition("::")
    return namespace not in _KNOWN or not _MULTIPLIES.isdisjoint(re.findall("[a-z]+", name))


def unpriced(run: Record) -> dict[str, list[str]]:
    """Such operators in the forward and backward, by the module that owns them: without a rule, or without shapes."""
    columns = (run.column("ops", name) for name in ("module", "op", "phase", "kind", "flops_full"))
    unknown = (
        (module, op)
        for module, op, phase, kind, flops in zip(*columns, strict=True)
        if (kind == "" or (kind in PRODUCTS and flops is None)) and phase in (*MODEL, "recompute")
    )
    found: dict[str, list[str]] = {}
    for module, op in dict.fromkeys(unknown):
        if rule_for(op) or may_multiply(op):
            found.setdefault(module, []).append(op)
    return found


def ratio_withheld(run: Record) -> str:
    """Why the backward of a step has no counted ratio to its forward; empty where it may have one."""
    known = known_of(run)
    unpriced_ops = (op for ops in unpriced(run).values() for op in ops)
    return withheld(run) or reason(unpriced_ops) or (f"withheld: {known}" if known else "")


def reason(unpriced_ops: Iterable[str]) -> str:
    """What to say in place of a ratio that should hold these operators; empty without any."""
    ops = sorted(set(unpriced_ops))
    if not ops:
        return ""
    more = f" and {len(ops) - 1} more such" if len(ops) > 1 else ""
    if rule_for(ops[0]) or generated(ops[0]):
        return f"withheld: of {ops[0]}{more} FLOPs are not known of all calls"
    return f"withheld: {ops[0]}{more} may multiply and has no FLOP rule; give it one with @gpuprof.flop_rule"
