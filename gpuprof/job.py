"""A job of several processes as one run: what every rank measured, added up, with each rank's own figures beside it.

A rank's run is as large as that of a single process. `gpuprof.job_part` leaves of it what the job needs, with its
kernels summed by module, phase and operator, so that ranks send one another little and a job's file does not grow with
their kernels.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gpuprof import job_facts
from gpuprof.analysis.comparison import identity
from gpuprof.analysis.replication import replication
from gpuprof.errors import GpuprofError
from gpuprof.job_part import KEPT, part, rank_of, read_part
from gpuprof.late import pd
from gpuprof.run import Run
from gpuprof.schema import DOUBTS, TABLES, table
from gpuprof.theory import CONVENTIONS

_VERSIONS = (
    "gpuprof", "torch", "transformers", "cuda", "hip", "cublas", "cudnn", "flop_rules", "float32_matmul_precision",
    "allow_tf32_matmul", "allow_tf32_cudnn",
)  # fmt: skip
"""What of the environment has to be the same on every rank, for their figures to be of one thing."""

_ADDED = {
    "ops": ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes"), "traffic": ("bytes",),
}  # fmt: skip
"""Columns of tables that add up over ranks; the others say what a row is of."""


def read_job(paths: Iterable[str | os.PathLike[str]]) -> Run:
    """Make the run of a job from the saved runs of its ranks, one after the other: one is in memory at a time.

    Args:
        paths: a file of every rank, in any order.

    Raises:
        GpuprofError: a file is none of a rank, or they are not those of one job, each once.
    """
    if not isinstance(paths, Iterable) or isinstance(paths, str):
        raise GpuprofError(f"the ranks' files must be a list of paths, not {paths!r}")
    return assemble(map(read_part, paths))


def gather(run: Run, file: str = "") -> Run | None:
    """Make the run of the job from the runs that `gpuprof.profile` gave its ranks, while their processes are there.

    Every rank has to call it. They send one another their sums only, no kernels.

    Args:
        run: of this rank; of a process that stands alone the job is the run itself.
        file: name of the file that it is saved in, beside that of the job.

    Returns:
        On rank 0 the job, on the others None.

    Raises:
        GpuprofError: a rank is lost, or their runs are not of one job.
    """
    from gpuprof.parallel.join import join  # needs torch, and only here

    control = join()
    if control.alone:
        if "rank" in run.workload:
            raise GpuprofError("the process group that this run is of is no more: gather before destroy_process_group")
        return run
    parts = control.gather("gathering the job", gzip.compress(json.dumps(part(run, file)).encode(), 1))
    return control.together(
        "making the job", lambda: assemble(map(json.loads, map(gzip.decompress, parts))) if control.rank == 0 else None
    )


def assemble(parts: Iterable[dict[str, Any]]) -> Run:
    """The run of a job from the `part` of each of its ranks, in any order; of each only its share is kept.

    Operators, bytes that must move, peaks and bandwidths are added up; a timed step, with the parts of a generation, is
    that of the rank that took longest for it, on the sequences of all; memory that of the rank with the highest peak,
    telemetry that of the rank whose step is longest. It has no kernels.

    Raises:
        GpuprofError: they are not of one job, or not one of each of its ranks.
    """
    about: dict[int, dict[str, Any]] = {}  # by rank all but its tables
    added: dict[str, dict[tuple[Any, ...], list[int | None]]] = {name: {} for name in _ADDED}
    busy: dict[tuple[str, str, str], list[int]] = {}
    trees: dict[int, dict[str, list[Any]]] = {}
    steps: dict[tuple[int, int], _Step] = {}
    sequences: dict[tuple[int, int, int], list[int | None]] = {}  # of each part of a generation, by rank
    most: dict[str, tuple[int, int, dict[str, list[Any]]]] = {}  # by table the figure that it is chosen by, and rank
    gathered: dict[str, dict[str, list[Any]]] = {name: {} for name in ("ranks", "collectives")}
    for one in parts:
        rank = rank_of(one["workload"], one["file"])
        _check_place(one, rank, about)
        about[rank] = {name: value for name, value in one.items() if name not in KEPT}
        for name, sums in added.items():
            add_rows(sums, name, one[name])
        _add_busy(busy, one["busy"])
        trees[rank] = one["tree"]
        _add_samples(steps, one["samples"], one["generation"], rank)
        for launch, step, number, count in _zipped(one["generation"], "launch", "step", "part", "samples"):
            sequences.setdefault((launch, step, number), []).append(count)
        for name, rows in gathered.items():
            for column, values in one[name].items():
                rows.setdefault(column, []).extend(values)
        _choose(most, one, rank)
    _check_whole(about)
    ranks = [about[rank] for rank in sorted(about)]
    passes = job_facts.outcomes(ranks)
    for name in most:
        if name in passes:
            passes[name].facts["rank"] = most[name][1]
    done = {name for name, outcome in passes.items() if outcome.status == "done"}
    if "time" not in done:  # what some of the ranks have is not of the job
        steps.clear()
    if "memory" not in done:
        most.pop("memory")
    if "trace" not in done:
        busy.clear()
        gathered["collectives"].clear()
    job_facts.without_kernels(passes, ranks)
    timed = [step for _, step in sorted(steps.items())]
    job = Run(
        workload=job_facts.workload([one["workload"] for one in ranks]),
        device=job_facts.device(ranks),
        environment=ranks[0]["environment"],
        settings=ranks[0]["settings"],
        passes=passes,
        warnings=job_facts.of_all([one["warnings"] for one in ranks]),
        doubts={name: job_facts.of_all([one["doubts"][name] for one in ranks]) for name in DOUBTS},
        tree=job_facts.tree(
            [trees[rank] for rank in sorted(trees)], [job_facts.stage(one["workload"]) for one in ranks]
        ),
        samples=table("samples", [row for step in timed for row in step.samples]),
        generation=table("generation", list(_parts(timed, sequences, ranks[0]["workload"], most["telemetry"][1]))),
        busy=_busy_of_all(busy, len(ranks)),
        **{name: table(name, found) for name, (_, _, found) in most.items()},
        **{name: _by_rank(name, rows) for name, rows in gathered.items()},
    )
    if job.done("count"):
        job.ops, job.traffic = (rows_of(name, sums) for name, sums in added.items())
        if whole := job.workload.pop("whole_model", None):
            job.workload["unsharded"] = replication(job, whole["flops"], whole["batches"])
    return _in_a_convention(job)


def _choose(most: dict[str, tuple[int, int, dict[str, list[Any]]]], one: dict[str, Any], rank: int) -> None:
    """Put a rank's tables in the place of those of the ranks with a lower peak, or a shorter step."""
    figures = dict(zip(one["ranks"]["quantity"], one["ranks"]["amount"], strict=True))
    for name, quantity in (("memory", "peak_bytes"), ("telemetry", "step_ns")):
        figure = figures.get(quantity, -1)
        if name not in most or (figure, -rank) > (most[name][0], -most[name][1]):
            most[name] = (figure, rank, one[name])


def _check_place(one: dict[str, Any], rank: int, about: dict[int, dict[str, Any]]) -> None:
    """Refuse a rank that is there already, or is none of the job that the others are of."""
    if rank in about:
        both = " and ".join(filter(None, (about[rank]["file"], one["file"])))
        raise GpuprofError(f"rank {rank} is there twice{f' ({both})' if both else ''}: give one run of each rank")
    for first, other in list(about.items())[:1]:
        here, there = _of_the_job(other), _of_the_job(one)
        for name, value in here.items():
            if there.get(name) != value:
                raise GpuprofError(
                    f"these ranks are not of one job: {name} is {value} on rank {first} and {there.get(name)} on rank "
                    f"{rank}: give files that one run made"
                )


def _of_the_job(one: dict[str, Any]) -> dict[str, Any]:
    """What all ranks of a job have in common."""
    workload, environment = one["workload"], one["environment"]
    place = {"world": workload.get("world"), "mesh": workload.get("mesh")}
    return place | identity(workload) | {name: environment.get(name) for name in _VERSIONS}


def _check_whole(about: dict[int, dict[str, Any]]) -> None:
    """Refuse a job of which a rank is missing."""
    if not about:
        raise GpuprofError("no rank given: give the file of every rank of a job")
    world = next(iter(about.values()))["workload"]["world"]
    missing = [str(rank) for rank in range(world) if rank not in about]
    if missing:
        many = f"{', '.join(missing[:8])}{' and others' if len(missing) > 8 else ''}"
        raise GpuprofError(
            f"{'ranks' if len(missing) > 1 else 'rank'} {many} of {world} {'are' if len(missing) > 1 else 'is'} "
            "missing: a job is the sum of all its ranks, so give the file of each"
        )


def add_rows(sums: dict[tuple[Any, ...], list[int | None]], name: str, found: dict[str, list[Any]]) -> None:
    """Add rows of a table to those that are of the same; what one does not know is not known of the sum."""
    key = [found[column] for column in TABLES[name] if column not in _ADDED[name]]
    for owner, row in zip(zip(*key, strict=True), _zipped(found, *_ADDED[name]), strict=True):
        so_far = sums.get(owner)
        if so_far is None:
            sums[owner] = list(row)
        else:
            sums[owner] = [None if a is None or b is None else a + b for a, b in zip(so_far, row, strict=True)]


def rows_of(name: str, sums: dict[tuple[Any, ...], list[int | None]]) -> pd.DataFrame:
    """The table of what `add_rows` has added up."""
    names = [column for column in TABLES[name] if column not in _ADDED[name]]
    keys, amounts = (list(zip(*rows, strict=True)) for rows in (sums.keys(), sums.values()))
    found = dict(zip([*names, *_ADDED[name]], [*map(list, keys), *map(list, amounts)], strict=False))
    return table(name, found or [])


def _zipped(found: dict[str, list[Any]], *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(found[name] for name in names), strict=True)


def _add_busy(sums: dict[tuple[str, str, str], list[int]], found: dict[str, list[Any]]) -> None:
    rows = zip(*(found[column] for column in ("module", "phase", "op", "kernels", "total_ns")), strict=True)
    for module, phase, op, kernels, nanoseconds in rows:
        entry = sums.setdefault((module, phase, op), [0, 0, 0, nanoseconds, nanoseconds])
        entry[0] += 1
        entry[1] += kernels
        entry[2] += nanoseconds
        entry[3] = min(entry[3], nanoseconds)
        entry[4] = max(entry[4], nanoseconds)


def _busy_of_all(sums: dict[tuple[str, str, str], list[int]], world: int) -> pd.DataFrame:
    rows = [
        {
            "module": module, "phase": phase, "op": op, "ranks": ranks, "kernels": kernels, "total_ns": total,
            "least_ns": least if ranks == world else 0, "most_ns": most,
        }
        for (module, phase, op), (ranks, kernels, total, least, most) in sums.items()
    ]  # fmt: skip
    return table("busy", rows)


class _Step(NamedTuple):
    """A timed step of a rank: how long it took, its rows of ``samples`` and of ``generation``."""

    time_s: float
    rank: int
    samples: list[dict[str, Any]]
    parts: list[dict[str, Any]]


def _add_samples(
    longest: dict[tuple[int, int], _Step], samples: dict[str, Any], generation: dict[str, Any], rank: int
) -> None:
    """Put a rank's rows of a timed step in the place of those of the ranks that were faster there."""
    times, parts = _by_step(samples), _by_step(generation)
    for key, rows in times.items():
        step_s = max((row["time_s"] for row in rows if row["phase"] == "step"), default=0.0)
        if key not in longest or step_s > longest[key].time_s:
            longest[key] = _Step(step_s, rank, rows, parts.get(key, []))


def _by_step(found: dict[str, list[Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    steps: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in zip(*found.values(), strict=True):
        named = dict(zip(found, row, strict=True))
        steps.setdefault((named["launch"], named["step"]), []).append(named)
    return steps


def _parts(
    steps: list[_Step], sequences: dict[tuple[int, int, int], list[int | None]], workload: dict[str, Any], watched: int
) -> Iterator[dict[str, Any]]:
    """Rows of the job's ``generation``: on the sequences of all ranks, those that ranks share once.

    When a part began is told by a telemetry's window, and there is that of the ``watched`` rank alone.
    """
    share = job_facts.ranks_per_batch(workload)
    for step in steps:
        for row in step.parts:
            counts = [count for count in sequences[row["launch"], row["step"], row["part"]] if count is not None]
            known = share if len(counts) == workload["world"] else None
            yield row | {
                "samples": None if known is None else sum(counts) // known,
                "start_s": row["start_s"] if step.rank == watched else None,
            }


def _by_rank(name: str, rows: dict[str, list[Any]]) -> pd.DataFrame:
    """The rows by rank, those of each in their order."""
    frame = table(name, rows or [])
    return frame.sort_values("rank", kind="stable", ignore_index=True)


def _in_a_convention(job: Run) -> Run:
    """The job, counted as operators were where its convention is a formula: that is of a whole model on one batch."""
    how = CONVENTIONS.get(job.settings.get("convention", ""))
    if how is not None and how.parts is not None:
        job.settings = job.settings | {"convention": how.modules_in}
        job.warnings.append(f"{how.name} is a formula of one process's model: the job is counted {how.modules_in}")
    return job
