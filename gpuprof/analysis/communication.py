"""Communication between devices and processes: how long, how much, and what of it no computation hides.

Communication that is hidden costs nothing, so what counts is communication minus computation, both as unions of
intervals: kernels of several streams, or of one that overlap, count once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpuprof.analysis.each import each, where
from gpuprof.analysis.kernel_time import busy_seconds, owned, union_ns
from gpuprof.analysis.once import once
from gpuprof.analysis.operators import input_shapes, plain_op
from gpuprof.errors import GpuprofError
from gpuprof.late import np, pd
from gpuprof.record import Record
from gpuprof.schema import integers, table
from gpuprof.theory import rule_for
from gpuprof.theory.names import communicates, function_of, perhaps_communicates

COLLECTIVE_COLUMNS = ["name", "kind", "calls", "bytes", "time_s", "exposed_s"]
"""Columns of `collectives`."""

PERHAPS = "perhaps communication"


class Account(NamedTuple):
    """The traced step in nanoseconds: computation, exposed communication and idle time add up to it.

    Attributes:
        compute_ns: when at least one kernel ran that does not communicate.
        communication_ns: when at least one ran that does.
        exposed_ns: when only such ran: communication that no computation hides.
        idle_ns: when none ran.
        step_ns: from the start of the first kernel to the end of the last.
    """

    compute_ns: int
    communication_ns: int
    exposed_ns: int
    idle_ns: int
    step_ns: int


def communicating(kernels: pd.DataFrame) -> np.ndarray:
    """Which rows of ``kernels`` are communication: by their own name, or that of the operator that launched them."""
    return where(kernels["kernel"], communicates) | where(kernels["op"], communicates)


@once
def messages(run: Record) -> np.ndarray:
    """The same of the kernels of a run."""
    return communicating(run.kernels)


def account(run: Record) -> Account:
    """What the device did in the traced step, to the nanosecond.

    Raises:
        GpuprofError: the run has no kernels.
    """
    kernels = run.kernels
    if kernels.empty:
        raise GpuprofError("this run has no kernels: profile with the trace pass")
    start = kernels["start_ns"].to_numpy("int64")
    end = start + kernels["duration_ns"].to_numpy("int64")
    communicate = messages(run)
    busy, compute = union_ns(start, end), union_ns(start[~communicate], end[~communicate])
    step = int(end.max() - start.min())
    return Account(compute, union_ns(start[communicate], end[communicate]), busy - compute, step - busy, step)


def calls(run: Record) -> pd.DataFrame:
    """The collectives of one rank, call by call: what the ``collectives`` table holds of it, without its rank.

    The message and the group of a call are those of the row of ``ops`` with its owner, operator and shapes; where that
    is of two groups, or not there, those that all calls of the operator agree in, by shapes before all.
    """
    kernels = run.kernels.sort_values("start_ns", kind="stable", ignore_index=True)
    communicate = communicating(kernels)
    start, duration = (kernels[name].to_numpy("int64") for name in ("start_ns", "duration_ns"))
    kernels = kernels.assign(exposed_ns=owned(start, duration, communicate)[0], end_ns=start + duration)[communicate]
    if kernels.empty:
        return table("collectives", []).drop(columns="rank")
    op = each(kernels["op"], plain_op)
    kernels["name"] = op.where(where(op, communicates), each(kernels["kernel"], function_of))
    alone = pd.Series([f"kernel {place}" for place in range(len(kernels))], kernels.index)  # launched by no operator
    grouped = kernels.groupby(kernels["call"].astype("object").where(kernels["call"].notna(), alone), sort=False)
    first = grouped.first()
    known = _told(run)
    rows, numbers = [], dict[str, int]()
    for row, end_ns, exposed_ns in zip(
        first.itertuples(index=False), grouped["end_ns"].max(), grouped["exposed_ns"].sum(), strict=True
    ):
        nbytes, group = known(row.module, row.phase, row.op, row.shapes)
        numbers[group] = numbers.get(group, -1) + 1
        rows.append(
            {
                "group": group, "number": numbers[group], "name": row.name, "phase": row.phase, "bytes": nbytes,
                "start_ns": row.start_ns, "duration_ns": end_ns - row.start_ns, "exposed_ns": exposed_ns,
            }
        )  # fmt: skip
    return table("collectives", rows).drop(columns="rank")


def _told(run: Record) -> Callable[[str, str, str, str], tuple[int | None, str]]:
    """What the counted calls tell of a traced one: bytes of its message, None where unknown, and its group."""
    found: dict[tuple[str, ...], tuple[set[int | None], set[str]]] = {}
    rows = run.ops.loc[
        run.ops["kind"] == "communication", ["module", "phase", "op", "shapes", "group", "calls", "bytes"]
    ]
    for module, phase, op, shapes, group, count, nbytes in rows.itertuples(index=False, name=None):
        of_call = None if pd.isna(nbytes) or not count else int(nbytes) // int(count)
        op, shapes = plain_op(op), input_shapes(shapes)
        for key in ((module, phase, op, shapes), (op, shapes), (op,)):
            sizes, groups = found.setdefault(key, (set(), set()))
            sizes.add(of_call)
            groups.add(group)

    def known(module: str, phase: str, op: str, shapes: str) -> tuple[int | None, str]:
        op = plain_op(op)
        fitting = [found[key] for key in ((module, phase, op, shapes), (op, shapes), (op,)) if key in found]
        nbytes = next((next(iter(sizes)) for sizes, _ in fitting if len(sizes) == 1), None)
        return nbytes, next((next(iter(groups)) for _, groups in fitting if len(groups) == 1), "")

    return known


@once
def collectives(run: Record) -> pd.DataFrame:
    """Communication by operator, or by kernel where no operator of that kind launched it; most exposed time first.

    Returns:
        Columns `COLLECTIVE_COLUMNS`, of a rank of a job with the process group after the name. kind is communication,
        or perhaps communication: what has the name of a collective but is none that is known; everywhere else it is
        counted as what it seems. calls are those of the traced step; bytes those of the messages of all calls in the
        counted step, missing where they are not known; time_s is a union of intervals; exposed_s adds up to that of
        `account`, and is missing of what is perhaps communication.
    """
    kernels = run.kernels.assign(communicates=messages(run))
    kernels = kernels.sort_values("start_ns", kind="stable", ignore_index=True)
    communicate = kernels["communicates"].to_numpy()
    start, duration = (kernels[name].to_numpy("int64") for name in ("start_ns", "duration_ns"))
    kernels["exposed_ns"] = owned(start, duration, communicate)[0]
    by_name = where(kernels["kernel"], _unknown_collective)
    maybe = ~communicate & (by_name | where(kernels["op"], lambda op: _unknown_collective(plain_op(op))))
    kernels = kernels[communicate | maybe].assign(group="")
    communicate, maybe, by_name = (of_all[communicate | maybe] for of_all in (communicate, maybe, by_name))
    ops = each(kernels["op"], plain_op)
    by_op = np.where(communicate, where(ops, communicates), ~by_name)
    kernels["name"] = ops.where(by_op, each(kernels["kernel"], function_of))
    kernels["kind"] = np.where(maybe, PERHAPS, "communication")
    in_job = "rank" in run.workload
    ops = run.ops[["bytes", "group"]].assign(op=run.ops["op"].map(plain_op))
    if in_job:
        known = _told(run)
        columns = ["module", "phase", "op", "shapes"]
        told = (known(*row) for row in kernels[columns].itertuples(index=False, name=None))
        kernels["group"] = [group for _, group in told]
    else:
        ops["group"] = ""
    sizes = ops.groupby(["op", "group"])["bytes"].agg(lambda known: known.sum(skipna=False))
    rows = []
    for (kind, name, group), found in kernels.groupby(["kind", "name", "group"], sort=False):
        count = found["call"].nunique() + int(found["call"].isna().sum())
        exposed_s = float("nan") if kind == PERHAPS else int(found["exposed_ns"].sum()) * 1e-9
        rows.append((name, group, kind, count, sizes.get((name, group)), busy_seconds(found), exposed_s))
    columns = [COLLECTIVE_COLUMNS[0], "group", *COLLECTIVE_COLUMNS[1:]]
    frame = pd.DataFrame(rows, columns=columns).astype({"time_s": "float64", "exposed_s": "float64"})
    frame["bytes"] = integers(frame["bytes"])
    frame = frame.sort_values(["kind", "exposed_s"], ascending=[True, False], kind="stable", ignore_index=True)
    return frame if in_job else frame.drop(columns="group")


def _unknown_collective(name: str) -> bool:
    return perhaps_communicates(name) and rule_for(name) is None
