"""Whether the passes saw the same step."""

from __future__ import annotations

from gpuprof.analysis.modules import plain_op
from gpuprof.record import Run

_MULTIPLIES = ("matmul", "convolution", "attention", "recurrent")


def mismatches(run: Run) -> list[str]:
    """Operators that multiply matrices and were called another number of times when counted than when traced.

    One line each; empty if the passes agree or one of them did not run. Elementwise operators are left out: with a
    dispatch mode on, autograd sums gradients out of place, and takes some apart.
    """
    if not (run.done("count") and run.done("trace")):
        return []
    # an empty product launches no kernel
    ops = run.ops[run.ops["kind"].isin(_MULTIPLIES) & (run.ops["flops_full"].fillna(0) > 0)]
    counted = ops.groupby([ops["phase"], ops["op"].map(plain_op)])["calls"].sum()
    kernels = run.kernels.dropna(subset=["call"])
    traced = kernels.groupby([kernels["phase"], kernels["op"].map(plain_op)])["call"].nunique()
    lines = []
    for (phase, op), calls in counted.items():
        seen = int(traced.get((phase, op), 0))
        # a checkpoint stops its recomputation inside an operator: a CPU's trace shows that it began
        begun = phase == "recompute" and run.device.get("type") == "cpu" and seen > calls
        if seen != calls and not begun:
            lines.append(f"{op} in the {phase}: counted {calls} calls, traced {seen}: the passes ran different steps")
    return lines
