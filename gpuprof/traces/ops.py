"""The ``ops`` table of a recording: its calls of counted operators, added up, and what of them is not known."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpuprof.late import pd
from gpuprof.schema import table
from gpuprof.theory.kernel_names import tensor_float32
from gpuprof.theory.priced import FIGURES, Described
from gpuprof.theory.rows import read_shapes
from gpuprof.theory.rules import PRODUCTS
from gpuprof.traces.chrome import Recorded
from gpuprof.traces.owners import OpCalls
from gpuprof.traces.pricing import NO_RULE, described

_ROW = ("module", "phase", "op", "kind", "shapes", "dtype")
_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")
_SCORES = ("aten::bmm", "aten::baddbmm", "aten::baddbmm_")


def ops_of(recorded: Recorded, calls: OpCalls, kernels: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The ``ops`` table, and the facts of what was counted.

    Operators without a rule, those that cannot be read with why, causality by module, and how many FLOPs are of masked
    pairs if attention that may be causal is.
    """
    rounded = _on_tensor_cores(kernels)
    device = "cuda" if len(recorded.device.start) else "cpu"
    ran = set(kernels["call"].dropna().astype(int))
    numbers = range(len(calls.rows))
    of_calls = (calls.modules, calls.phases, calls.names, calls.inputs.tolist())
    tally = Counter(zip(*of_calls, map(rounded.__contains__, numbers), map(ran.__contains__, numbers), strict=True))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    unread: dict[str, str] = {}
    missing: set[str] = set()
    causality: dict[str, str] = {}
    known: dict[tuple[str, int], Described] = {}
    not_run: dict[str, int] = {}
    masked = 0
    for (module, phase, op, inputs, on_tensor_cores, has_kernels), times in tally.items():
        given = recorded.inputs[inputs] if inputs >= 0 else None
        found = known.get((op, inputs))
        if found is None:
            found = known[op, inputs] = described(op, given, device)
        if device == "cuda" and not has_kernels and found.kind in PRODUCTS:
            # it was captured into a graph, ran on the CPU, or is the last that a checkpoint began to run again
            not_run[op] = not_run.get(op, 0) + times
            continue
        if found.lacks not in ("", NO_RULE):
            unread.setdefault(op, found.lacks)
        elif not found.kind:
            missing.add(op)
        if found.causality == "unknown" or (found.causality and module not in causality):
            causality[module] = found.causality
        if found.bound:
            least = described(op, given, device, causal=True).priced[0]
            masked += ((found.priced[0] or 0) - (least or 0)) * times
        dtype = "tf32" if on_tensor_cores and found.dtype == "float32" else found.dtype
        place = (module, phase, op, found.kind, found.shapes, dtype)
        row = rows.setdefault(place, dict(zip(_ROW, place, strict=True)) | {"calls": 0} | dict.fromkeys(FIGURES, 0))
        row["calls"] += times
        for figure, value in zip(FIGURES, found.priced, strict=True):
            row[figure] = None if value is None or row[figure] is None else row[figure] + value * times
    ops = table("ops", list(rows.values()))
    causality |= dict.fromkeys(_with_scores(ops), "unknown")
    calls_in_all = int(ops["calls"].sum())
    facts: dict[str, Any] = {"calls": calls_in_all, "ops_without_rule": sorted(missing), "ops_unread": unread}
    facts |= {"ops_not_run": not_run, "causality": causality, "flops_perhaps_masked": masked}
    return ops, facts


def _with_scores(ops: pd.DataFrame) -> set[str]:
    """Modules that write out the scores of an attention: products, and a softmax of what one of them gives.

    Whether their masks are causal, a recording does not say.
    """
    scores: dict[str, set[Any]] = {}
    for module, shapes in ops.loc[ops["op"].isin(_SOFTMAX), ["module", "shapes"]].itertuples(index=False, name=None):
        scores.setdefault(module, set()).update(shape[-2:] for shape in read_shapes(shapes)[0][:1] if len(shape) > 2)
    found = set()
    for module, shapes in ops.loc[ops["op"].isin(_SCORES), ["module", "shapes"]].itertuples(index=False, name=None):
        if any(shape[-2:] in scores.get(module, ()) for shape in read_shapes(shapes)[1][:1]):
            found.add(module)
    return found


def _on_tensor_cores(kernels: pd.DataFrame) -> set[int]:
    """Calls with a kernel whose name says that it rounds float32 to TF32."""
    names = {name for name in kernels["kernel"].unique() if tensor_float32(name)}
    return set(kernels.loc[kernels["kernel"].isin(names), "call"].dropna().astype(int))
