"""FLOPs of compiled code beside those that were counted, module by module, and why they differ.

The counting pass runs a model without compilation. What Inductor made of it may do more (what the backward computes
again) or less (what nobody uses), or do a product as elementwise work. Both are counted by the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gpuprof import units
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import PHASES, UNATTRIBUTED, integers
from gpuprof.theory import rule_for
from gpuprof.theory.rules import PRODUCTS

COLUMNS = [
    "module", "phase", "flops_counted", "flops_compiled", "vector_flops_counted", "vector_flops_compiled", "cause",
]  # fmt: skip
"""Columns of `compiled_flops`: the machine-readable contract."""

RECOMPUTED = "computed again in the backward"
NOT_RECOMPUTED = "not computed again"
ELEMENTWISE = "done as elementwise work"
FUSED_ATTENTION = "fused attention"
SQUARE = "the whole square of attention, for a mask that is a tensor"
PADDED = "padded"
MORE = "further products"
UNUSED = "left out"


def compiled_flops(run: Record) -> pd.DataFrame:
    """One row per module and phase of compiled code, what runs outside of it included.

    Returns:
        Columns `COLUMNS`. ``flops_*`` are the matmul FLOPs that the operators do (``flops_hardware``), missing where
        those of a product are not known, or where Python may have called the module inside a region, which then has
        the product. ``cause`` says why they differ, and is empty where they do not. Vector FLOPs
        are an estimate of the operators as they are: a norm's of one operator is not that of its parts. Without rows
        of a run without compiled graphs or a count.
    """
    if run.nodes.empty or run.ops.empty:
        return pd.DataFrame({name: [] for name in COLUMNS})
    counted, compiled = (_by_place(rows) for rows in (run.ops, ran(run)))
    strayed = _strayed(run)
    rows: list[dict[str, Any]] = []
    for place in sorted({*counted, *compiled} & _covered(run), key=lambda place: (place[0], PHASES.index(place[1]))):
        before, after = counted.get(place, []), compiled.get(place, [])
        flops = [_flops(found) for found in (before, after)]
        vector = [_known_sum(row["vector_flops"] for row in found) for found in (before, after)]
        differ = None not in flops and flops[0] != flops[1]
        if differ and strayed & {*ancestors(place[0])[1:]}:
            flops[1], vector[1], differ = None, None, False
        cause = _cause(place[1], before, after) if differ else ""
        rows.append(dict(zip(COLUMNS, (*place, *flops, *vector, cause), strict=True)))
    return pd.DataFrame(
        {name: integers(r[name] for r in rows) if "flops" in name else [r[name] for r in rows] for name in COLUMNS}
    )


def compiled_lines(run: Record) -> list[str]:
    """What `compiled_flops` says, in a line for the whole and one for each cause; none where it has no rows."""
    table = compiled_flops(run) if run.has("nodes") else None
    if table is None or table.empty:
        return []
    unknown = table[table["flops_compiled"].isna() | table["flops_counted"].isna()]
    known = table.drop(unknown.index)
    counted, compiled = (int(known[f"flops_{which}"].sum()) for which in ("counted", "compiled"))
    causes = known[known["cause"] != ""]
    if causes.empty:
        lines = [f"Compiled code does the {units.si(counted, 'FLOPs')} that were counted, each module its own."]
    else:
        lines = [f"Compiled code does {units.si(compiled, 'FLOPs')}, where {units.si(counted, 'FLOPs')} were counted:"]
    for cause, rows in causes.groupby("cause", sort=False):
        more = int((rows["flops_compiled"] - rows["flops_counted"]).sum())
        lines.append(f"  {units.si(abs(more), 'FLOPs')} {'more' if more > 0 else 'less'}, {cause}: {_named(rows)}")
    again = table[(table["phase"] == "recompute") & (table["vector_flops_compiled"] > table["vector_flops_counted"])]
    if len(again):
        vector = int((again["vector_flops_compiled"] - again["vector_flops_counted"]).sum())
        lines.append(f"  {units.si(vector, 'FLOPs')} of elementwise work, {RECOMPUTED}: {_named(again)}")
    if len(unknown):
        lines.append(f"  not known: {_named(unknown)}")
    return lines


def _named(rows: pd.DataFrame) -> str:
    modules = list(dict.fromkeys(path or "(root)" for path in rows["module"]))
    return ", ".join(modules[:_MOST]) + (f" and {len(modules) - _MOST} more" if len(modules) > _MOST else "")


_MOST = 3  # modules that are named


def hardware_of_compiled(run: Record) -> int | None:
    """Matmul FLOPs that the traced step really did, of compiled code and of what ran outside of it.

    Returns:
        None without compiled graphs, where the FLOPs of a product are not known, or where one ran outside compiled
        code that was not counted so.
    """
    if not run.has("nodes") or _strayed(run):
        return None
    return _flops(ran(run).to_dict("records"))


def _strayed(run: Record) -> set[str]:
    """Modules with a product outside compiled code that the count has not there, in this phase and these shapes.

    So has a region what Python calls inside it.
    """
    rows = run.ops[["module", "phase", "op", "shapes"]].itertuples(index=False, name=None)
    known = {(module, phase, plain_op(op), input_shapes(shapes)) for module, phase, op, shapes in rows}
    outside = run.kernels[(run.kernels["compiled"] == "") & run.kernels["call"].notna()]
    found = set()
    for module, phase, op, shapes in outside[["module", "phase", "op", "shapes"]].itertuples(index=False, name=None):
        rule = rule_for(op)
        if rule is not None and rule.kind in PRODUCTS and (module, phase, plain_op(op), shapes) not in known:
            found.add(module)
    return found


_Rows = list[dict[str, Any]]


def _by_place(rows: pd.DataFrame) -> dict[tuple[str, str], _Rows]:
    found: dict[tuple[str, str], _Rows] = {}
    for row in rows.to_dict("records"):
        found.setdefault((row["module"], row["phase"]), []).append(row)
    return found


def _covered(run: Record) -> set[tuple[str, str]]:
    """Modules and phases that compiled code has, as far as its insides are known."""
    facts = run.passes["trace"].facts if "trace" in run.passes else {}
    unmapped = run.graphs.loc[run.graphs["unmapped"] != "", "region"]
    hidden, regions = {*facts.get("hidden", ()), *unmapped}, {*run.graphs["region"]}
    hidden |= {UNATTRIBUTED} if len(unmapped) else set()  # which has what could be given to nobody there
    modules = {*run.nodes["module"]}
    for module in {*run.ops["module"]} - modules:  # of which nothing may be left
        if UNATTRIBUTED in regions or regions & {*ancestors(module)}:
            modules.add(module)
    known = {module for module in modules if not hidden & {*ancestors(module)}}
    return {(module, phase) for module in known for phase in PHASES}


def _flops(rows: _Rows) -> int | None:
    """Matmul FLOPs of operators; None where those of a product are not known."""
    products = [row for row in rows if row["kind"] in PRODUCTS or row["kind"] == ""]
    return _known_sum(row["flops_hardware"] for row in products)


def _known_sum(values: Any) -> int | None:
    values = list(values)
    return None if any(pd.isna(value) for value in values) else sum(map(int, values))


def _cause(phase: str, before: _Rows, after: _Rows) -> str:
    """Why the FLOPs of one module in one phase differ."""
    counted, compiled = _products(before), _products(after)
    missing, come = counted - compiled, compiled - counted
    if phase == "recompute":
        return RECOMPUTED if sum(come.values()) > sum(missing.values()) else NOT_RECOMPUTED
    kinds = [{row["kind"] for row in rows if row["flops_hardware"]} for rows in (before, after)]
    if "attention" in kinds[1] - kinds[0]:
        return FUSED_ATTENTION
    if "attention" in kinds[1] and _full(before) == _full(after):
        return SQUARE
    if any(row["op"].startswith("aten::constant_pad_nd") for row in after) and come:
        return PADDED
    if sum(come.values()) > sum(missing.values()):
        return MORE
    # each multiply-accumulate is then an element of a product, which is summed up where there are several for a result
    elementwise = Counter({2 * flops: calls for flops, calls in (_multiplied(after) - _multiplied(before)).items()})
    causes = ((ELEMENTWISE, missing & elementwise), (UNUSED, missing - elementwise))
    return ", ".join(cause for cause, found in causes if found)


def _full(rows: _Rows) -> int | None:
    """Matmul FLOPs of attention with its whole square."""
    return _known_sum(row["flops_full"] for row in rows if row["kind"] == "attention")


def _products(rows: _Rows) -> Counter[int]:
    """How many products there are of each number of FLOPs."""
    return _calls((row, "flops_hardware") for row in rows if row["flops_hardware"])


def _multiplied(rows: _Rows) -> Counter[int]:
    """How many elementwise products there are of each number of elements."""
    return _calls((row, "vector_flops") for row in rows if plain_op(row["op"]) == "aten::mul" and row["vector_flops"])


def _calls(rows: Iterable[tuple[dict[str, Any], str]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for row, figure in rows:
        found[int(row[figure]) // int(row["calls"])] += int(row["calls"])
    return found
