"""The operator table read in a convention."""

from __future__ import annotations

from typing import Any

from gpuprof.analysis.consistency import withheld
from gpuprof.analysis.denominators import denominator, ideal_seconds
from gpuprof.analysis.directions import direction
from gpuprof.analysis.known_flops import none_known
from gpuprof.analysis.once import once
from gpuprof.analysis.ran import ran
from gpuprof.analysis.steps import varied
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import FORWARD, MODEL, integers
from gpuprof.theory.architecture import Architecture
from gpuprof.theory.conventions import CONVENTIONS, DEFAULT_CONVENTION, Convention
from gpuprof.theory.conventions import convention as fitting_convention
from gpuprof.theory.names import without_overload
from gpuprof.theory.rows import Row, read_shapes


def convention_of(run: Record, convention: str | None = None) -> str:
    """The convention a run is read in."""
    return convention or run.settings.get("convention", DEFAULT_CONVENTION)


def chosen(run: Record, convention: str | None = None) -> Convention:
    """The same as an entry of `gpuprof.theory.CONVENTIONS`.

    Raises:
        GpuprofError: there is no such convention, or it is a formula that does not fit the model.
    """
    workload = run.workload
    how = CONVENTIONS.get(convention_of(run, convention))
    if how is not None and (reason := of_no_part(run, how)):
        raise GpuprofError(f"convention {how.name} does not fit {workload.get('name') or 'this model'}: {reason}")
    return fitting_convention(
        convention_of(run, convention), workload.get("facts"), workload.get("name") or "this model"
    )


def of_no_part(run: Record, how: Convention) -> str:
    """Why a formula, of a whole model on one batch, is not of this run; empty where it may be, or there is none.

    Nor is a rule, which goes by calls, of the mean of steps that made different ones.
    """
    if how.rule is not None and varied(run):
        return "it goes by single calls, and of steps of various shapes a meter's log tells their mean"
    if how.parts is None:
        return ""
    if run.is_job:
        return "it is a formula of one process's model, and a job counts all its ranks"
    shared = {"tp", "pp"} & set(run.workload.get("parallel") or ())
    return "it is a formula of the whole model, of which this rank has a part" if shared else ""


def formula_parts(run: Record, convention: str | None = None) -> dict[str, int] | None:
    """FLOPs of the step by part, as `gpuprof.theory.formulas` names them; None in a convention that is no formula."""
    parts = chosen(run, convention).parts
    return None if parts is None else parts(Architecture.from_facts(run.workload["facts"]))


def counted(run: Record, convention: str | None = None) -> pd.DataFrame:
    """The ``ops`` table with the figures of the convention.

    In a formula, which knows only the whole step, the rows are counted as its `Convention.modules_in` says. What
    compiled code computes again its compiler chose: of that the rows are those that `ran`.

    Returns:
        The table with columns ``flops``, ``macs``, ``ideal_s`` and ``hardware_ideal_s``. Where the convention takes
        the backward for a multiple of the forward, the rows end with that backward, and the one that ran is 0.
    """
    return _counted(run, convention_of(run, convention)).copy()


@once
def _counted(run: Record, convention: str) -> pd.DataFrame:
    if run.nodes.empty:
        return priced(run, run.ops, convention)
    again = ran(run)
    rows = [run.ops[run.ops["phase"] != "recompute"], again.loc[again["phase"] == "recompute", list(run.ops)]]
    return priced(run, pd.concat(rows, ignore_index=True), convention)


def priced(run: Record, ops: pd.DataFrame, convention: str | None = None) -> pd.DataFrame:
    """The same of other rows of a run than those of ``ops``, in its columns."""
    ops = ops.copy()
    how = chosen(run, convention)
    if how.rule is None:
        ops["flops"] = ops[f"flops_{how.modules_in}"]
        ops["macs"] = ops["flops"] // 2
    else:
        counts = [how.rule(row) for row in read_rows(run, ops)]
        ops["flops"] = integers(count.flops for count in counts)
        ops["macs"] = integers(count.macs for count in counts)
    if how.recompute_in_backward:
        ops["phase"] = ops["phase"].replace("recompute", "backward")
    if how.backward_factor is not None and (ops["phase"] == "backward").any():
        ops = pd.concat([ops, _assumed_backward(ops, how.backward_factor)], ignore_index=True)
    peaks = {} if withheld(run) else denominator(run)[1]
    ops["ideal_s"] = ideal_seconds(ops, "flops", peaks, run)
    ops["hardware_ideal_s"] = ideal_seconds(ops, "flops_hardware", peaks, run)
    return ops


def hardware(run: Record, convention: str | None = None) -> pd.DataFrame:
    """The rows whose ``flops_hardware`` are what was done: as counted, of a compiled run those that ran."""
    return priced(run, ran(run), convention) if len(run.nodes) else counted(run, convention)


def read_rows(run: Record, ops: pd.DataFrame | None = None) -> list[Row]:
    """The ``ops`` table, or other rows in its columns, as rules see it, row by row."""
    classes = dict(zip(run.tree["module"], run.tree["class"], strict=True))
    attending = set(run.tree.loc[run.tree["causality"] != "", "module"])
    device = run.device.get("type", "")
    columns = ["module", "phase", "op", "kind", "shapes", "calls", "flops_causal", "flops_full"]
    rows, rows_of = [], run.ops if ops is None else ops
    for module, phase, op, kind, shapes, calls, causal, full in rows_of[columns].itertuples(index=False, name=None):
        inputs, results = read_shapes(shapes)
        row = Row(
            op=without_overload(op),
            kind=kind,
            phase=direction(phase),
            module_class=classes.get(module, ""),
            attends=module in attending,
            inputs=inputs,
            results=results,
            calls=int(calls),
            causal=None if causal is pd.NA else int(causal),
            full=None if full is pd.NA else int(full),
            device=device,
        )
        rows.append(row)
    return rows


def _assumed_backward(ops: pd.DataFrame, factor: int) -> pd.DataFrame:
    """Rows of a backward that is so many times the forward, and nothing else."""
    rows = ops[ops["phase"].isin(FORWARD) & (ops["flops"].fillna(0) > 0)].copy()
    rows["phase"] = "backward"
    for column in ("flops", "macs"):
        rows[column] *= factor
    for column in ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes"):
        rows[column] = integers([0] * len(rows))
    return rows


def whole_step(run: Record, ops: pd.DataFrame, convention: str | None = None) -> dict[str, Any]:
    """Model FLOPs of the step: ``flops`` in the convention, ``counted_flops`` of the rows that it was read from.

    Of a recording that tells nothing of FLOPs, ``flops`` is None.

    Args:
        run: the run.
        ops: what `counted` gives in this convention.
        convention: the run's own by default.
    """
    if none_known(run):
        return {"flops": None, "counted_flops": 0}
    rows = int(ops.loc[ops["phase"].isin(MODEL), "flops"].sum())
    parts = formula_parts(run, convention)
    return {"flops": rows if parts is None else sum(parts.values()), "counted_flops": rows}
