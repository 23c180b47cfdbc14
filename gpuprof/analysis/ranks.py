"""Several ranks of one job side by side, and whether one of them holds up the others.

A rank that is late makes the others wait in communication, so its own time tells nothing: every rank's step is as long
as the slowest one's. What tells is the time that it computes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpuprof import units
from gpuprof.analysis.communication import account
from gpuprof.analysis.consistency import withheld, withheld_of_step
from gpuprof.analysis.counted import chosen
from gpuprof.analysis.denominators import denominator, of_ranks, peak_dtype
from gpuprof.analysis.steps import step_seconds
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record, load
from gpuprof.schema import MODEL, integers

RANK_COLUMNS = [
    "rank", "step_s", "compute_s", "exposed_s", "idle_s", "communication_s", "kernels", "flops", "flops_per_s", "mfu",
]  # fmt: skip
"""Columns of `by_rank`."""

HELD_COLUMNS = ["timed_s", "peak_bytes", "sm_clock_mhz"]
"""Columns of `by_rank` after those, of a job and its ranks."""

LEAST_EXCESS = 0.01
"""Share of a step up to which ranks that compute for different times are even."""

LEAST_EXPLAINED = 0.8
"""Share of the others' wait that the excess of one rank has to explain."""

LEAST_STEPS = 3
"""Steps from which one rank may be named, if it is the slowest in two of three."""

_TIMES = ("step", "compute", "exposed", "idle", "communication")


class Straggler(NamedTuple):
    """Whether one rank holds up the others.

    Attributes:
        rank: which; None where none does, or it cannot be told.
        text: why, in a sentence; empty without two ranks.
    """

    rank: int | None
    text: str


class _Slowest(NamedTuple):
    """The rank that computes longest in a step, or is idle longest, in nanoseconds."""

    rank: int
    does: str  # computes, or is idle
    excess: int  # over the next
    spread: int  # over the one that does so shortest
    wait: float  # of the others: what more communication they have in the open, in the mean
    step: int  # of the rank that takes longest

    def uneven(self) -> bool:
        return self.spread > LEAST_EXCESS * self.step

    def holds_up(self) -> bool:
        return self.excess > LEAST_EXCESS * self.step and self.excess >= LEAST_EXPLAINED * self.wait > 0

    def words(self) -> str:
        excess = f"rank {self.rank} {self.does} {units.duration(self.excess * 1e-9)} longer than the next"
        if self.wait <= 0:
            return f"{excess}, and no other waits for it"
        return f"{excess}, where the others wait {units.duration(self.wait * 1e-9)}"


def rank_rows(run: Record, rank: int, step: int = 0) -> list[dict[str, Any]]:
    """Rows of the ``ranks`` table from the run of one rank: sums in nanoseconds and FLOPs, no rates.

    Of a rank whose rates are withheld it has no FLOPs: who reads the table could not tell why.

    Computation, exposed communication and idle time add up to the step. It is as long as the timed one, whose idle time
    is what kernels leave of it; as long as the traced one where none was timed, or the traced kernels took longer.

    Args:
        run: of this rank alone, with a traced step.
        rank: its number in the job.
        step: number of the step, the same for all ranks.

    Raises:
        GpuprofError: the run has no kernels.
    """
    found, timed_s = account(run), step_seconds(run)
    busy = found.compute_ns + found.exposed_ns
    timed = 0 if timed_s is None else round(timed_s * 1e9)
    step_ns = timed if timed >= busy else found.step_ns
    amounts = [
        ("step_ns", step_ns),
        ("compute_ns", found.compute_ns),
        ("communication_ns", found.communication_ns),
        ("exposed_ns", found.exposed_ns),
        ("idle_ns", step_ns - busy),
        ("kernels", len(run.kernels)),
    ]
    times = [{"rank": rank, "quantity": quantity, "dtype": "", "amount": amount} for quantity, amount in amounts]
    return [row | {"step": step} for row in (*times, *flops_rows(run, rank))]


def flops_rows(run: Record, rank: int) -> list[dict[str, Any]]:
    """The FLOPs among `rank_rows`, of no step; of a rank whose rates are withheld none."""
    if withheld(run):  # most of it is in graphs, say
        return []
    peaks = {key: peak_dtype(*key, run) for key in set(zip(run.ops["dtype"], run.ops["kind"], strict=True))}
    ops = run.ops.assign(peak=[peaks[key] for key in zip(run.ops["dtype"], run.ops["kind"], strict=True)])
    found = []
    for figure in ("flops_causal", "flops_full", "flops_hardware"):
        rows = ops if figure == "flops_hardware" else ops[ops["phase"].isin(MODEL)]
        sums = rows[rows[figure].fillna(0) > 0].groupby("peak")[figure].sum()
        found += [
            {"rank": rank, "quantity": figure, "dtype": str(dtype), "amount": int(flops)}
            for dtype, flops in sums.items()
        ]
    return found


def by_rank(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per rank: of several recorded steps the one of median length, of an even number the shorter.

    Of those that are as long, as all are where the step was timed apart, the one in which the device is busy that long.

    Args:
        run: one with several ranks, or of one rank of a job.
        convention: how FLOPs are counted, ``causal`` or ``full``. By default the one of the two that the run's own
            convention counts modules in.

    Returns:
        Columns `RANK_COLUMNS`, and those of `HELD_COLUMNS` that are known of any rank. exposed_s is communication that
        no computation hides: compute_s, exposed_s and idle_s add up to step_s. flops are the model's that this rank
        does itself, flops_per_s and mfu over its own step and, for mfu, the preferred peak of its own device.
        timed_s is that step, where on any rank it is another than step_s: the kernels of the traced one took longer.
        sm_clock_mhz is the median in the timing window. What is not known is missing, as are rates where no step was
        found.

    Raises:
        GpuprofError: the run has no ranks, or they have no FLOPs in this convention.
    """
    if run.ranks.empty:
        raise GpuprofError("this run has one rank only: import the traces of several ranks of a job together")
    how = chosen(run, convention)
    if convention not in (None, "causal", "full"):
        raise GpuprofError(f"ranks have no FLOPs in convention {convention}: give causal or full")
    name, peaks = denominator(run)
    own_peaks = {rank: of_rank.get(name, {}) for rank, of_rank in of_ranks(run).items()}
    traced, held = _steps(run), _held(run)
    rows = []
    for rank in sorted({*traced, *held}):
        known = held.get(rank, {})
        figures = dict(known)
        if steps := traced.get(rank):
            figures |= sorted(steps.values(), key=_length)[(len(steps) - 1) // 2]
        flops = {dtype: amount for (name, dtype), amount in figures.items() if name == f"flops_{how.modules_in}"}
        times = {part: figures.get((f"{part}_ns", "")) for part in _TIMES}
        row: dict[str, Any] = {f"{part}_s": None if ns is None else ns * 1e-9 for part, ns in times.items()}
        timed_ns, total = known.get(("step_ns", "")), sum(flops.values())
        step_s = row["step_s"] if timed_ns is None else timed_ns * 1e-9
        row["timed_s"] = None if timed_ns is None else step_s
        row |= {"rank": rank, "kernels": figures.get(("kernels", "")), "flops": total or None}
        clock = known.get(("sm_clock_hz", ""))
        row |= {"peak_bytes": known.get(("peak_bytes", "")), "sm_clock_mhz": clock and clock / 1e6}
        if total and step_s and not withheld_of_step(run):
            own = own_peaks.get(rank, peaks)
            ideal_s = sum(amount / own.get(dtype, math.nan) for dtype, amount in flops.items())
            row |= {"flops_per_s": total / step_s, "mfu": ideal_s / step_s}
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*RANK_COLUMNS, *HELD_COLUMNS])
    floats = (*(f"{part}_s" for part in _TIMES), "flops_per_s", "mfu", "timed_s", "sm_clock_mhz")
    table = table.astype(dict.fromkeys(floats, "float64"))
    if table["timed_s"].equals(table["step_s"]):
        table["timed_s"] = math.nan
    for count in ("kernels", "flops", "peak_bytes"):
        table[count] = integers(table[count])
    return table.drop(columns=[name for name in HELD_COLUMNS if table[name].isna().all()])


def busy_of_ranks(run: Record) -> float | None:
    """Seconds in which a device of a job is busy in a step, the mean of its ranks; None where none was traced."""
    table = by_rank(run)
    busy = (table["compute_s"] + table["exposed_s"]).dropna()
    return float(busy.mean()) if len(busy) == len(table) > 0 else None


def require_kernels(run: Record, what: str) -> None:
    """Refuse a job where the kernels of a rank are asked for.

    Args:
        run: any.
        what: is asked for.

    Raises:
        GpuprofError: it is a job, which has none; the file of a rank that has is named.
    """
    refuse_job(run, f"{what} needs kernels, and the file of a job has none")


def refuse_job(run: Record, why: str) -> None:
    """Refuse a job where that of a rank is wanted.

    Raises:
        GpuprofError: it is one; with the reason, and a file that is of a rank.
    """
    if run.is_job:
        file = run.device["ranks"][0]["file"]
        raise GpuprofError(f"{why}: give the file of one of its ranks{f', such as {file}' if file else ''}")


def straggler(run: Record) -> Straggler:
    """Whether one rank holds up the others: told by the time that each computes, never by the length of its step.

    In a step the slowest is the rank that computes longest. Its excess is what it computes longer than the next; the
    others' wait is what their exposed communication is longer than its own, in the mean. It holds them up where the
    excess is over `LEAST_EXCESS` of the step and at least `LEAST_EXPLAINED` of the wait, and it is named if it does so
    in two of three steps, of at least `LEAST_STEPS` that were recorded of every rank. Where all compute equally long,
    the same is asked of the time that their devices are idle: a rank that waits for its host or its input.
    """
    ranks = _steps(run)
    if len(ranks) < 2:
        return Straggler(None, "")
    common = sorted(set.intersection(*map(set, ranks.values())))
    found = [_slowest(step, ranks, "compute_ns", "computes") for step in common]
    if not found:
        return Straggler(None, "No step was recorded of every rank, so none can be named.")
    if 2 * sum(one.uneven() for one in found) < len(found):
        idle = [_slowest(step, ranks, "idle_ns", "is idle") for step in common]
        rank, times = _holding_up(idle)
        if len(idle) >= LEAST_STEPS and 3 * times >= 2 * len(idle):
            words = _largest(one for one in idle if one.rank == rank).words()
            why = "its host or its input holds them up, not its computation"
            return Straggler(rank, f"Straggler: in {times} of {len(idle)} steps {words}: {why}.")
        return Straggler(None, f"Even: all ranks compute equally long, to {units.percent(LEAST_EXCESS)} of the step.")
    rank, times = _holding_up(found)
    largest = _largest(found)
    if len(found) < LEAST_STEPS:
        few = f"{units.number(len(found), 'step')} of every rank, and {LEAST_STEPS} are needed to name one"
        return Straggler(None, f"Uneven, no single rank: {largest.words()}; known of {few}.")
    if 3 * times < 2 * len(found):
        return Straggler(None, f"Uneven, no single rank: in the worst of {len(found)} steps {largest.words()}.")
    largest = _largest(one for one in found if one.rank == rank)
    return Straggler(rank, f"Straggler: in {times} of {len(found)} steps {largest.words()}.")


def _slowest(step: int, ranks: dict[int, dict[int, _Figures]], quantity: str, does: str) -> _Slowest:
    took = {rank: steps[step][quantity, ""] for rank, steps in ranks.items()}
    exposed = {rank: steps[step]["exposed_ns", ""] for rank, steps in ranks.items()}
    last, *others = sorted(took, key=lambda rank: -took[rank])
    wait = sum(exposed[rank] - exposed[last] for rank in others) / len(others)
    longest = max(steps[step]["step_ns", ""] for steps in ranks.values())
    return _Slowest(last, does, took[last] - took[others[0]], took[last] - took[others[-1]], wait, longest)


def _holding_up(found: list[_Slowest]) -> tuple[int | None, int]:
    """The rank that holds up the others in most steps, and in how many."""
    held_up = Counter(one.rank for one in found if one.holds_up())
    return next(iter(held_up.most_common(1)), (None, 0))


def _largest(found: Iterable[_Slowest]) -> _Slowest:
    return max(found, key=lambda one: one.excess)


_Figures = dict[tuple[str, str], int]  # amounts by quantity and dtype


def _length(step: _Figures) -> tuple[int, int]:
    """Of a step and, where that is as long as others, of what the device does in it."""
    return step["step_ns", ""], -step["idle_ns", ""]


def _steps(run: Record) -> dict[int, dict[int, _Figures]]:
    """The ``ranks`` table by rank and step; a rank without a step is not there."""
    found: dict[int, dict[int, _Figures]] = {}
    rows = run.ranks.loc[run.ranks["step"].notna(), ["rank", "step", "quantity", "dtype", "amount"]]
    for rank, step, quantity, dtype, amount in rows.itertuples(index=False, name=None):
        found.setdefault(int(rank), {}).setdefault(int(step), {})[quantity, dtype] = int(amount)
    return {rank: found[rank] for rank in sorted(found)}


def _held(run: Record) -> dict[int, _Figures]:
    """What the ``ranks`` table has of each rank and of no traced step."""
    found: dict[int, _Figures] = {}
    rows = run.ranks.loc[run.ranks["step"].isna(), ["rank", "quantity", "dtype", "amount"]]
    for rank, quantity, dtype, amount in rows.itertuples(index=False, name=None):
        found.setdefault(int(rank), {})[quantity, dtype] = int(amount)
    return {rank: found[rank] for rank in sorted(found)}


def rank_files(job: Record, folder: Path) -> Iterator[Record]:
    """The runs of a job's ranks, one after the other, from the files beside that of the job.

    Args:
        job: of them all.
        folder: where its file is.

    Raises:
        GpuprofError: a file is not there, or is of something else; it is named.
    """
    for one in job.device["ranks"]:
        rank, path = one["rank"], folder / one["file"]
        if not one["file"]:
            raise GpuprofError(f"this job does not say where the run of rank {rank} was saved: show each by itself")
        if not path.is_file():
            raise GpuprofError(f"{path} is not there, the file of rank {rank}: put it beside that of the job")
        run = load(path)
        if run.workload.get("rank") != rank or run.environment.get("date") != one["environment"].get("date"):
            raise GpuprofError(f"{path} is not of rank {rank} of this job: put the file there that it was made of")
        yield run
