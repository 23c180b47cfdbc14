"""What a job is made of, of one of its ranks: the rank's run, with its kernels summed by module, phase and operator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gpuprof.analysis.communication import calls
from gpuprof.analysis.consistency import misbooked, mismatches, misowned, owned_kernels
from gpuprof.analysis.denominators import sm_clock_hz
from gpuprof.analysis.kernel_time import kernel_times
from gpuprof.analysis.known_flops import matmul_kernels
from gpuprof.analysis.memory import peak
from gpuprof.analysis.operators import plain_op
from gpuprof.analysis.ranks import flops_rows, rank_rows
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.telemetry import energy_per_step_j, invalid_reasons
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record, load, read, whole_file
from gpuprof.schema import ALL, FACTS, UNATTRIBUTED, columns, table

Kind = TypeVar("Kind", bound=Record)

KEPT = (
    "tree", "ops", "traffic", "samples", "generation", "memory", "telemetry", "ranks", "busy", "collectives",
)  # fmt: skip
"""Tables of a rank that its job is made of."""


def read_part(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`part` of a saved run: of one with its sums without making tables of all that it holds."""
    file = Path(path).name
    data = {name: columns(table(name, [])) for name in KEPT} | read(path, KEPT)  # of older files some are empty
    rank_of(data["workload"], file)
    if not data["doubts"]:
        return part(load(path), file)
    with whole_file(path):
        needed = {
            f"{name}.{column}": data[name][column]
            for name, column in (
                ("samples", "time_s"), ("ranks", "amount"), ("generation", "part"), ("generation", "time_s"),
                ("traffic", "bytes"),
            )
        }  # fmt: skip
        for name, figures in (needed | {f"busy.{column}": figures for column, figures in data["busy"].items()}).items():
            if None in figures:
                raise ValueError(f"{name} has a figure missing")
    return data | {"file": file}


def part(run: Record, file: str = "") -> dict[str, Any]:
    """What a job is made of, of one of its ranks: the run as `Run.to_dict` has it, with the tables `KEPT` alone.

    Args:
        run: of a rank, `summed` or not.
        file: name of the file that it is saved in, beside that of the job.

    Raises:
        GpuprofError: the run is of no rank of a job.
    """
    run = summed(run, file)
    facts = {name: getattr(run, name) for name in FACTS}
    passes = {name: vars(outcome) for name, outcome in run.passes.items()}
    return facts | {"file": file, "passes": passes} | {name: columns(getattr(run, name)) for name in KEPT}


def summed(run: Kind, file: str = "") -> Kind:
    """The run of a rank with its own sums: all that its job needs of its kernels, and what is doubted of it.

    Raises:
        GpuprofError: the run is of no rank of a job.
    """
    rank = rank_of(run.workload, file)
    if run.doubts:
        return run
    kernels = owned_kernels(run)
    whole = [{"rank": rank, "quantity": name, "amount": amount} for name, amount in _of_the_rank(run)]
    steps = run.ranks.to_dict("records") if len(run.ranks) else rank_rows(run, rank) if len(kernels) else []
    doubts = {find.__name__: find(run) for find in (mismatches, misbooked, misowned)}
    return replace(
        run,
        ranks=table("ranks", [*steps, *whole, *flops_rows(run, rank)]),
        busy=table("busy", list(_busy(kernels, [*run.tree["module"], UNATTRIBUTED]))),
        collectives=table("collectives", columns(calls(run).assign(rank=rank))),
        doubts=doubts | {"invalid": invalid_reasons(run.telemetry)},
    )


def rank_of(workload: dict[str, Any], file: str) -> int:
    """Number of the rank that a run is of.

    Raises:
        GpuprofError: it is of none.
    """
    rank = workload.get("rank")
    if rank is None:
        what = "is of a whole job" if workload.get("world", 1) > 1 else "is of a single process"
        raise GpuprofError(f"{file or 'this run'} {what}, and not of one of its ranks: give the files of the ranks")
    return int(rank)


def _of_the_rank(run: Record) -> Iterator[tuple[str, int]]:
    """What is known of a rank besides its traced steps."""
    step_s, energy_j = step_seconds(run), energy_per_step_j(run)
    products = matmul_kernels(run)
    whole_ns = int(products["duration_ns"].sum())
    found = {
        "step_ns": None if step_s is None else step_s * 1e9,
        "peak_bytes": peak(run)["bytes"],
        "sm_clock_hz": sm_clock_hz(run),
        "energy_uj": None if energy_j is None else energy_j * 1e6,
        "matmul_ns": whole_ns or None,
        "priced_ns": int(products.loc[products["priced"], "duration_ns"].sum()) if whole_ns else None,
    }
    return ((name, round(amount)) for name, amount in found.items() if amount is not None)


def _busy(kernels: pd.DataFrame, paths: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of ``busy``: by module, phase and operator; by module with its children and phase; and by phase alone."""
    if kernels.empty:
        return
    op = kernels["op"].map({name: plain_op(name) for name in kernels["op"].unique()})
    owners = kernels.groupby([kernels["module"], kernels["phase"], op], sort=False)
    own = owners.agg({"kernels": "sum", "duration_ns": "sum"})
    counts: dict[tuple[str, str], int] = {}
    for (module, phase, name), number, nanoseconds in own.itertuples(name=None):
        yield _busy_row(module, phase, name, int(number), int(nanoseconds))
        for path in ancestors(module):
            counts[path, phase] = counts.get((path, phase), 0) + int(number)
    for path, phases in kernel_times(kernels, paths).items():
        for phase, seconds in phases.items():
            yield _busy_row(path, phase, ALL, counts[path, phase], round(seconds * 1e9))
    in_phase = kernels.groupby("phase")["kernels"].sum()
    for phase, seconds in kernel_times(kernels.assign(module=""), [""])[""].items():
        yield _busy_row(ALL, phase, ALL, int(in_phase[phase]), round(seconds * 1e9))


def _busy_row(module: str, phase: str, op: str, kernels: int, nanoseconds: int) -> dict[str, Any]:
    times = dict.fromkeys(("total_ns", "least_ns", "most_ns"), nanoseconds)
    return {"module": module, "phase": phase, "op": op, "ranks": 1, "kernels": kernels, **times}
