"""Which work operators and kernels do: matrix products, attention, memory-bound work, communication or other.

From it follows the part of a budget that their time falls under. What a compiler fused does the first of
the works that are in it.
"""

from __future__ import annotations

from gpuprof.analysis.communication import communicating
from gpuprof.analysis.consistency import withheld_of_owners
from gpuprof.analysis.counted import chosen, convention_of, counted, priced, whole_step
from gpuprof.analysis.denominators import ideal_seconds
from gpuprof.analysis.each import each, each_row, numbered
from gpuprof.analysis.once import once
from gpuprof.analysis.operators import kinds, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.analysis.shares import split_kernels
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import MODEL, UNATTRIBUTED
from gpuprof.theory.rows import Shape, read_shapes
from gpuprof.theory.rules import PRODUCTS

_WORK = {"matmul": "matmul", "convolution": "matmul", "recurrent": "matmul", "attention": "attention",
         "vector": "memory", "movement": "memory", "view": "memory", "communication": "communication"}  # fmt: skip
"""Kinds of operators as a budget has them; anything else is other."""

_FIRST = ("matmul", "attention", "communication", "memory", "other")
"""Which work a kernel of several is."""

_ATTENTION_PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::matmul")


def operators(run: Record, convention: str | None, peaks: dict[str, float]) -> pd.DataFrame:
    """The ``ops`` table in the convention, with ideal_s and hardware_s at these peaks, and the work."""
    ops = _operators(run, convention_of(run, convention))
    sums = whole_step(run, convention)
    # a formula's FLOPs run in the mix of dtypes that was counted
    scale = sums["flops"] / sums["counted_flops"] if sums["counted_flops"] else 1.0
    ideal_s = ideal_seconds(ops, "flops", peaks, run) * scale
    return ops.assign(ideal_s=ideal_s, hardware_s=ideal_seconds(ops, "flops_hardware", peaks, run))


@once
def _operators(run: Record, convention: str) -> pd.DataFrame:
    """The same but for the times at peaks."""
    ops = counted(run, convention)
    if len(run.nodes):
        ops = _with_compiled(run, ops, convention)
    ops["op"] = ops["op"].map(plain_op)
    ops["work"] = _work(ops, _score_shapes(run))
    if "compiled" in ops:
        of_kernel = _of_kernels(ops[ops["compiled"] != ""])
        owners = zip(*(ops[name] for name in ("compiled", "module", "phase", "work")), strict=True)
        ops["work"] = [of_kernel.get((kernel, *owner), work) for kernel, *owner, work in owners]
        ops["op"] = ops["op"].where(ops["compiled"] == "", ops["within"])
    ops["part"] = ops["work"]
    return ops


def _with_compiled(run: Record, ops: pd.DataFrame, convention: str | None) -> pd.DataFrame:
    """What was counted, with the FLOPs of the model, and what ran, with what else it did.

    Bytes of products stay those that were counted; a compiler moves those of all else.
    """
    did = priced(run, ran(run), convention)
    products = [rows["kind"].isin(PRODUCTS) for rows in (ops, did)]
    model = ops.assign(compiled="", within="", bytes=ops["bytes"].where(products[0], 0), flops_hardware=0)
    did = did.assign(flops=0, macs=0, vector_flops=0, bytes=did["bytes"].where(~products[1], 0))
    return pd.concat([model, did], ignore_index=True)


def _of_kernels(ops: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """The work that a kernel of compiled code does for each of its owners: the first of `_FIRST` in it."""
    found: dict[tuple[str, str, str], str] = {}
    for kernel, module, phase, work in ops[["compiled", "module", "phase", "work"]].itertuples(index=False, name=None):
        for key in ((kernel, module, phase), (kernel, "", "")):
            found[key] = min(found.get(key, work), work, key=_FIRST.index)
    return found


@once
def _score_shapes(run: Record) -> dict[str, set[Shape]]:
    """Queries and keys of the score matrices that attention modules write out: what their softmax is of."""
    scores: dict[str, set[Shape]] = {module: set() for module in run.tree.loc[run.tree["causality"] != "", "module"]}
    softmax = run.ops[run.ops["op"].str.contains("softmax") & run.ops["module"].isin(scores.keys())]
    for module, shapes in zip(softmax["module"], softmax["shapes"], strict=True):
        scores[module].update(shape[-2:] for shape in read_shapes(shapes)[0][:1])
    return scores


def _work(rows: pd.DataFrame, scores: dict[str, set[Shape]]) -> pd.Series:
    """The work of operators or kernels: products of attention, and what is done to its scores, are attention."""

    def one(module: str, op: str, kind: str, shapes: str) -> str:
        if module in scores:
            if op in _ATTENTION_PRODUCTS:
                return "attention"
            of_scores = any(shape[-2:] in scores[module] for shape in read_shapes(shapes)[0])
            if kind in ("vector", "movement") and of_scores:
                return "attention"
        return _WORK.get(kind, "other")

    return each_row(rows[["module", "op", "kind", "shapes"]], one)


def classified(run: Record, convention: str | None) -> pd.DataFrame:
    """The kernels by start, with what is known of their operators, and the part that their time falls under."""
    return _classified(run, convention_of(run, convention))


@once
def _classified(run: Record, convention: str) -> pd.DataFrame:
    ops = _operators(run, convention)
    kernels = split_kernels(run).sort_values("start_ns", kind="stable", ignore_index=True)
    places, alike = numbered(kernels[["module", "phase", "op", "shapes", "kernel", "compiled"]])
    found = alike.assign(op=each(alike["op"], plain_op))  # of those that are alike: there are far fewer
    found["kind"] = each(found["op"], kinds(run))
    heaviest = ops.sort_values("bytes", na_position="first", kind="stable")
    dtypes = {tuple(key): dtype for *key, dtype in heaviest[["module", "phase", "op", "dtype"]].itertuples(index=False)}
    found["dtype"] = each_row(found[["module", "phase", "op"]], lambda *key: dtypes.get(key, ""))
    found["work"] = _work(found, _score_shapes(run))
    if "compiled" in ops:
        of_kernel = _of_kernels(ops[ops["compiled"] != ""])
        owners = zip(*(found[name] for name in ("compiled", "module", "phase", "work")), strict=True)
        found["work"] = [
            of_kernel.get((kernel, *owner), of_kernel.get((kernel, "", ""), work)) for kernel, *owner, work in owners
        ]
    if withheld_of_owners(run):
        found["module"] = UNATTRIBUTED
    phase = found["phase"]
    if chosen(run, convention).recompute_in_backward:
        phase = phase.replace("recompute", "backward")
    found["part"] = found["work"].where(phase.isin(MODEL), phase)
    found.loc[communicating(found), ["kind", "work", "part"]] = "communication"
    of_rows = found[["op", "module", "kind", "dtype", "work", "part"]].take(places).set_axis(kernels.index)
    return kernels.assign(**of_rows)
