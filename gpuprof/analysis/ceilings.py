"""Which matrix products a run is made of: what `gpuprof ceilings --shapes` measures one by one."""

from __future__ import annotations

from gpuprof.analysis.denominators import peak_dtype
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import integers
from gpuprof.theory.names import without_overload
from gpuprof.theory.rows import read_shapes

_FIRST_FACTOR = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::baddbmm": 1}
"""Which tensor input the left factor is; the right one follows it."""


def matmul_shapes(run: Record) -> pd.DataFrame:
    """Every distinct product of mm, addmm, bmm and baddbmm in a run, the one with most FLOPs first.

    How an operand lies in memory, transposed or not, is not in the record and makes no difference here.

    Args:
        run: one with the counting pass.

    Returns:
        Columns dtype (the one whose peak holds: tf32 where float32 may run as it), batch, m, n, k for
        (m, k) x (k, n), calls and flops (of all calls and phases), and share: of all matmul FLOPs that the operators of
        the step do, convolution and attention included.

    Raises:
        GpuprofError: the run has no such product.
    """
    columns = ["dtype", "batch", "m", "n", "k"]
    rows = []
    for row in run.ops.itertuples(index=False):
        first = _FIRST_FACTOR.get(without_overload(row.op))
        if first is None or pd.isna(row.flops_hardware) or not row.flops_hardware:
            continue
        left, right = read_shapes(row.shapes)[0][first : first + 2]
        product = (
            peak_dtype(row.dtype, row.kind, run),
            left[0] if len(left) == 3 else 1,
            left[-2],
            right[-1],
            left[-1],
        )
        rows.append((*product, int(row.calls), int(row.flops_hardware)))
    if not rows:
        reason = "its operators were not counted" if run.ops.empty else "it has none"
        raise GpuprofError(f"no matrix products in this run ({reason}): give one saved by 'gpuprof profile' or 'count'")
    frame = pd.DataFrame(rows, columns=[*columns, "calls", "flops"])
    frame["flops"] = integers(flops for *_, flops in rows)
    frame = frame.groupby(columns, as_index=False)[["calls", "flops"]].sum()
    frame["share"] = frame["flops"].astype("float64") / int(run.ops["flops_hardware"].fillna(0).sum())
    return frame.sort_values(["flops", *columns], ascending=[False] + [True] * 5, ignore_index=True)
