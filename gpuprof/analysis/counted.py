"""The operator table read in a convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuprof.analysis.consistency import withheld
from gpuprof.analysis.denominators import denominator, ideal_of
from gpuprof.analysis.directions import direction
from gpuprof.analysis.known_flops import none_known
from gpuprof.analysis.once import once
from gpuprof.analysis.ran import ran
from gpuprof.analysis.steps import varied
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import FORWARD, MODEL, columns, integers, values
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


def counted_columns(run: Record, convention: str | None = None) -> Mapping[str, Sequence[Any]]:
    """The same as plain values, column by column, None where one is missing and NaN of a time. Not to be changed."""
    return _counted_columns(run, convention_of(run, convention))


@once
def _counted_columns(run: Record, convention: str) -> dict[str, list[Any]]:
    if run.has("nodes"):
        found = _counted(run, convention)
        times = ("ideal_s", "hardware_ideal_s")
        return columns(found.drop(columns=[*times])) | {name: found[name].tolist() for name in times}
    ops = run.columns("ops")
    figures, again = _figures(run, ops, convention)
    return {
        name: [*given, *([0] * len(again) if name in _OF_ROWS else (given[row] for row in again))]
        for name, given in ops.items()
    } | figures


@once
def _counted(run: Record, convention: str) -> pd.DataFrame:
    if not run.has("nodes"):
        return priced(run, run.ops, convention)
    again = ran(run)
    rows = [run.ops[run.ops["phase"] != "recompute"], again.loc[again["phase"] == "recompute", list(run.ops)]]
    return priced(run, pd.concat(rows, ignore_index=True), convention)


def priced(run: Record, ops: pd.DataFrame, convention: str | None = None) -> pd.DataFrame:
    """The same of other rows of a run than those of ``ops``, in its columns."""
    how = chosen(run, convention)
    read = _READ if how.rule is None else (*_READ, *_READ_BY_RULES)
    figures, again = _figures(run, {name: values(ops[name]) for name in read}, convention)
    if again:
        rows = ops.iloc[again].assign(**{column: integers([0] * len(again)) for column in _OF_ROWS})
        ops = pd.concat([ops, rows], ignore_index=True)
    if how.rule is None:  # as exact as the table has them
        counts = {"flops": ops[f"flops_{how.modules_in}"], "macs": ops[f"flops_{how.modules_in}"] // 2}
    else:
        counts = {name: integers(figures[name]) for name in ("flops", "macs")}
    times = {name: pd.Series(figures[name], ops.index, "float64") for name in ("ideal_s", "hardware_ideal_s")}
    return ops.assign(phase=pd.Series(figures["phase"], ops.index, ops["phase"].dtype), **counts, **times)


_READ = ("phase", "kind", "dtype", "flops_causal", "flops_full", "flops_hardware")
_READ_BY_RULES = ("module", "op", "shapes", "calls")
"""Columns of ``ops`` that figures of a convention follow from, and those of one that has a rule of its own."""

_OF_ROWS = ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes")
"""Columns that are 0 in an assumed backward, which is so many times the forward and nothing else."""


def _figures(
    run: Record, ops: Mapping[str, Sequence[Any]], convention: str | None
) -> tuple[dict[str, list[Any]], list[int]]:
    """Phase, flops, macs, ideal_s and hardware_ideal_s of rows of ``ops``, and then of the backward that is assumed.

    Also the numbers of the rows that this backward is taken from: it has a row for each.
    """
    how = chosen(run, convention)
    flops, macs, phases, again = list[int | None](), list[int | None](), list(ops["phase"]), list[int]()
    if how.rule is None:
        flops = list(ops[f"flops_{how.modules_in}"])
        macs = [None if count is None else count // 2 for count in flops]
    else:
        counts = [how.rule(row) for row in read_rows(run, ops)]
        flops, macs = [count.flops for count in counts], [count.macs for count in counts]
    if how.recompute_in_backward:
        phases = ["backward" if phase == "recompute" else phase for phase in phases]
    done = list(ops["flops_hardware"])
    if how.backward_factor is not None and "backward" in phases:
        again = [row for row, phase in enumerate(phases) if phase in FORWARD and (flops[row] or 0) > 0]
        for known in (flops, macs):
            known += [None if (count := known[row]) is None else count * how.backward_factor for row in again]
        phases += ["backward"] * len(again)
        done += [0] * len(again)
    works = list(zip(ops["dtype"], ops["kind"], strict=True))
    works += [works[row] for row in again]
    peaks = {} if withheld(run) else denominator(run)[1]
    return {
        "phase": phases,
        "flops": flops,
        "macs": macs,
        "ideal_s": ideal_of(works, flops, peaks, run),
        "hardware_ideal_s": ideal_of(works, done, peaks, run),
    }, again


def hardware(run: Record, convention: str | None = None) -> pd.DataFrame:
    """The rows whose ``flops_hardware`` are what was done: as counted, of a compiled run those that ran."""
    return priced(run, ran(run), convention) if run.has("nodes") else counted(run, convention)


def read_rows(run: Record, ops: Mapping[str, Sequence[Any]] | None = None) -> list[Row]:
    """The ``ops`` table, or other rows in its columns, as rules see it, row by row."""
    classes = dict(zip(run.column("tree", "module"), run.column("tree", "class"), strict=True))
    causality = zip(run.column("tree", "module"), run.column("tree", "causality"), strict=True)
    attending = {module for module, known in causality if known}
    device = run.device.get("type", "")
    names = ("module", "phase", "op", "kind", "shapes", "calls", "flops_causal", "flops_full")
    rows, given = [], run.columns("ops") if ops is None else ops
    for module, phase, op, kind, shapes, calls, causal, full in zip(*(given[name] for name in names), strict=True):
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
            causal=causal,
            full=full,
            device=device,
        )
        rows.append(row)
    return rows


def whole_step(run: Record, convention: str | None = None) -> dict[str, Any]:
    """Model FLOPs of the step: ``flops`` in the convention, ``counted_flops`` of the rows that it was read from.

    Of a recording that tells nothing of FLOPs, ``flops`` is None.

    Args:
        run: the run.
        convention: the run's own by default.
    """
    if none_known(run):
        return {"flops": None, "counted_flops": 0}
    ops = counted_columns(run, convention)
    rows = sum(flops for phase, flops in zip(ops["phase"], ops["flops"], strict=True) if flops and phase in MODEL)
    parts = formula_parts(run, convention)
    return {"flops": rows if parts is None else sum(parts.values()), "counted_flops": rows}
