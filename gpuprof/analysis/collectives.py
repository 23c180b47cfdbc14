"""Collectives of a job: what each rank recorded of one call, held together.

Clocks of two hosts are never compared. What is common to ranks is a call: the same number in the same process group.
The rank that comes last waits for nobody, so its kernel is the shortest, and as long as the message itself takes; what
the others' are longer they waited. And as none leaves before all have come, the ends of common calls are one instant:
what aligns the ranks' traces.
"""

from __future__ import annotations

import re
from statistics import median
from typing import NamedTuple

from gpuprof import units
from gpuprof.errors import GpuprofError
from gpuprof.late import pattern, pd
from gpuprof.record import Record
from gpuprof.schema import integers

JOB_COLUMNS = [
    "name", "group", "ranks", "calls", "bytes", "latency_s", "skew_s", "algbw", "busbw", "exposed_s",
]  # fmt: skip
"""Columns of `by_collective`: the machine-readable contract."""

ON_A_CPU = "On a CPU a collective's time is that of its call, and not of the message: no latency, skew and bandwidth."

LEAST_COMMON = 3
"""Common collectives from which two ranks can be aligned."""

_ALL_REDUCE = pattern("all_?reduce", re.IGNORECASE)
_SHARES = pattern("gather|scatter|all_?to_?all", re.IGNORECASE)
_TOGETHER = pattern("all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|barrier", re.IGNORECASE)
_ONE_WAY = pattern("broadcast|reduce|send|recv", re.IGNORECASE)

_Call = tuple[tuple[int, ...], str, int]
"""Ranks of a group, its name, and the number of a call in it: the same on every rank."""


def bus_factor(name: str, ranks: int) -> float | None:
    """What the algorithm's bandwidth is multiplied by for that of the bus, as nccl-tests does; None where unknown.

    Args:
        name: of the operator or kernel.
        ranks: of its group.
    """
    if _ALL_REDUCE.search(name):
        return 2 * (ranks - 1) / ranks
    if _SHARES.search(name):
        return (ranks - 1) / ranks
    return 1.0 if _ONE_WAY.search(name) else None


def by_collective(run: Record) -> pd.DataFrame:
    """Collectives of a job by operator and process group, those that hold it up longest first.

    Args:
        run: of a job.

    Returns:
        Columns `JOB_COLUMNS`. ranks is the size of the group; calls and bytes (of all their messages) are of one rank,
        the mean where they differ; latency_s is what the fastest rank takes for a call and skew_s what the slowest
        takes longer, means of the calls; algbw, bytes of a message over the latency, and busbw, times `bus_factor`, are
        in bytes/s; exposed_s is the time of a step that no computation hides, the mean of the ranks. What is not known
        is missing: all that needs the same call on every rank where its group is not known, and on a CPU.
    """
    instances: dict[tuple[str, str], list[list[_Recorded]]] = {}
    for (_, group, _), found in _instances(run).items():
        instances.setdefault((found[0].name, group), []).append(found)
    told = run.device.get("type") != "cpu"
    rows = []
    for (name, group), calls in run.collectives.groupby(["name", "group"], sort=False):
        ranks = calls["rank"].nunique()
        sizes = {len(members) for members in run.workload.get("groups", {}).get(group, [])}
        size = sizes.pop() if len(sizes) == 1 else None
        row = {
            "name": name, "group": group, "ranks": size, "calls": len(calls) / ranks,
            "bytes": None if calls["bytes"].isna().any() else round(int(calls["bytes"].sum()) / ranks),
            "exposed_s": int(calls["exposed_ns"].sum()) * 1e-9 / run.workload["world"],
        }  # fmt: skip
        if told and (whole := instances.get((name, group))):
            times = [sorted(one.duration_ns for one in found) for found in whole]
            shortest_ns, longest_ns = (sum(found[place] for found in times) for place in (0, -1))
            row["latency_s"] = shortest_ns * 1e-9 / len(whole)
            row["skew_s"] = (longest_ns - shortest_ns) * 1e-9 / len(whole)
            sent = [one.nbytes for found in whole for one in found[:1]]
            factor = bus_factor(name, size) if size else None
            if shortest_ns and (nbytes := sum(one or 0 for one in sent)) and None not in sent:
                row["algbw"] = nbytes / (shortest_ns * 1e-9)
                row["busbw"] = None if factor is None else row["algbw"] * factor
        rows.append(row)
    table = pd.DataFrame(rows, columns=JOB_COLUMNS)
    table = table.astype(dict.fromkeys(("calls", "latency_s", "skew_s", "algbw", "busbw", "exposed_s"), "float64"))
    for count in ("ranks", "bytes"):
        table[count] = integers(table[count])
    return table.sort_values("exposed_s", ascending=False, kind="stable", ignore_index=True)


class Alignment(NamedTuple):
    """How the traces of ranks lie to one another.

    Attributes:
        offset_ns: by rank what to add to its times, for those of the lowest.
        residual_ns: how far the ends of one call lie apart at most, aligned: what the alignment is worth.
        common: calls that two ranks were aligned by, the fewest.
    """

    offset_ns: dict[int, int]
    residual_ns: int
    common: int

    def words(self) -> str:
        """In a sentence."""
        return (
            f"Aligned by the ends of {self.common} or more common collectives, which then lie within "
            f"{units.duration(self.residual_ns * 1e-9)} of one another: a shift below that means nothing."
        )


def alignment(run: Record) -> Alignment:
    """Lay the traces of a job's ranks beside one another, from the lowest on, each by the median of what it shares.

    Raises:
        GpuprofError: a rank shares fewer than `LEAST_COMMON` collectives with any that is aligned.
    """
    ends: dict[tuple[int, ...], list[dict[int, int]]] = {}
    for (members, _, _), found in _instances(run).items():
        if _TOGETHER.search(found[0].name):
            ends.setdefault(members, []).append({one.rank: one.start_ns + one.duration_ns for one in found})
    offsets, common = {0: 0}, []
    groups = sorted(ends.items(), key=lambda item: (-len(item[1]), item[0]))
    while len(offsets) < run.workload["world"]:
        members, calls = next(
            (
                (members, calls)
                for members, calls in groups
                if len(calls) >= LEAST_COMMON and set(members) & set(offsets) and set(members) - set(offsets)
            ),
            ((), []),
        )
        if not members:
            rank = next(rank for rank in range(run.workload["world"]) if rank not in offsets)
            raise GpuprofError(
                f"rank {rank} shares fewer than {LEAST_COMMON} collectives of a known process group with the ranks "
                "before it in its traced step, and clocks of two hosts are not compared: show each rank's own file"
            )
        known = min(set(members) & set(offsets))
        for rank in set(members) - set(offsets):
            offsets[rank] = round(median(call[known] + offsets[known] - call[rank] for call in calls))
        common.append(len(calls))
    apart = [
        max(aligned) - min(aligned)
        for calls in ends.values()
        for call in calls
        for aligned in [[end + offsets[rank] for rank, end in call.items()]]
    ]
    return Alignment(dict(sorted(offsets.items())), max(apart, default=0), min(common, default=0))


class _Recorded(NamedTuple):
    """What one rank recorded of a call, in nanoseconds of its own trace; bytes None where they are not known."""

    rank: int
    name: str
    nbytes: int | None
    start_ns: int
    duration_ns: int


def _instances(run: Record) -> dict[_Call, list[_Recorded]]:
    """Every call that all ranks of its group recorded, under one name."""
    groups = {
        (name, rank): tuple(members)
        for name, lists in run.workload.get("groups", {}).items()
        for members in lists
        for rank in members
    }
    found: dict[_Call, list[_Recorded]] = {}
    columns = ["group", "number", "rank", "name", "bytes", "start_ns", "duration_ns"]
    for group, number, rank, name, nbytes, *times in run.collectives[columns].itertuples(index=False, name=None):
        if members := groups.get((group, int(rank))):
            one = _Recorded(int(rank), name, None if pd.isna(nbytes) else int(nbytes), *map(int, times))
            found.setdefault((members, group, int(number)), []).append(one)
    return {
        call: ranks
        for call, ranks in found.items()
        if len(ranks) == len(call[0]) > 1 and len({one.name for one in ranks}) == 1
    }
