"""What the traced step really did, where code was compiled: the counting pass runs every model without compilation."""

from __future__ import annotations

from typing import Any

from gpuprof.analysis.once import once
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.analysis.shares import owners
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import integers

_COUNTS = ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes")


@once
def ran(run: Record) -> pd.DataFrame:
    """The ``ops`` table as the traced step had it: of compiled code the operators that the compiler made of it.

    The others are as they were counted, so far as the trace has calls of them outside compiled code.

    Returns:
        The columns of ``ops``; ``compiled``, the kernel that does the work as ``kernels`` has it, empty outside
        compiled code; and ``within``, the plain operator that this kernel is booked on, empty where none was traced.
        Of a compiled operator ``bytes`` are those that its kernel moves for it, missing where its time is not split.
        Of a run without compiled graphs the table itself.
    """
    counted = run.ops.assign(compiled="", within=[plain_op(op) for op in run.ops["op"]])
    if run.nodes.empty:
        return counted
    launched = dict(zip(run.kernels["compiled"], run.kernels["op"], strict=True))
    unmapped = set(run.graphs.loc[run.graphs["unmapped"] != "", "graph"])
    nodes = run.nodes[run.nodes["repeat"] == 0].copy()
    kernels = [f"{graph}/{kernel}" for graph, kernel in zip(nodes["graph"], nodes["kernel"], strict=True)]
    nodes["compiled"], nodes["within"] = kernels, [plain_op(launched.get(kernel, "")) for kernel in kernels]
    untold = {kernel for kernel, of_owners in owners(run).items() if None in of_owners.values()}
    figures = nodes[["compiled", "kernel", "graph", "moved", "calls"]].itertuples(index=False, name=None)
    nodes["bytes"] = [
        None if compiled in untold or (not kernel and graph in unmapped) else int(moved) * int(calls) if kernel else 0
        for compiled, kernel, graph, moved, calls in figures
    ]
    nodes["group"] = ""
    rows = [*_outside(run, counted), *nodes[list(counted)].to_dict("records")]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in counted}
    return pd.DataFrame({name: integers(values) if name in _COUNTS else values for name, values in columns.items()})


def _outside(run: Record, counted: pd.DataFrame) -> list[dict[str, Any]]:
    """The counted rows that the trace has outside compiled code, each with the share of its calls that it has."""
    place = ["module", "phase", "op", "shapes"]
    calls = run.kernels[(run.kernels["compiled"] == "") & run.kernels["call"].notna()].drop_duplicates("call")
    calls = calls.assign(op=[plain_op(op) for op in calls["op"]])
    of_shapes, of_op = calls.groupby(place).size().to_dict(), calls.groupby(place[:3]).size().to_dict()
    counted = counted.assign(inputs=[input_shapes(shapes) for shapes in counted["shapes"]])
    wanted = counted.groupby([*place[:2], "within", "inputs"])["calls"].sum().to_dict()
    of_all = counted.groupby([*place[:2], "within"])["calls"].sum().to_dict()
    found = []
    for row in counted.to_dict("records"):
        key = row["module"], row["phase"], row["within"]
        if of_op.get(key, 0) >= of_all[key]:  # of other shapes than were counted: padded, say
            found.append(row)
        elif seen := of_shapes.get((*key, row["inputs"]), 0):
            whole = wanted[*key, row["inputs"]]
            known = [name for name in _COUNTS if not pd.isna(row[name])]
            found.append(row | {name: int(row[name]) * min(seen, whole) // whole for name in known})
    return found
