"""A job of several processes as one run: what every rank measured, added up, with each rank's own figures beside it.

A rank's run is as large as that of a single process. `part` leaves of it what the job needs, with its kernels summed
by module, phase and operator, so that ranks send one another little and a job's file does not grow with their kernels.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from gpuprof.analysis.communication import calls
from gpuprof.analysis.comparison import identity
from gpuprof.analysis.consistency import misbooked, mismatches, misowned, owned_kernels
from gpuprof.analysis.denominators import sm_clock_hz
from gpuprof.analysis.kernel_time import kernel_times
from gpuprof.analysis.known_flops import matmul_kernels
from gpuprof.analysis.memory import peak
from gpuprof.analysis.operators import plain_op
from gpuprof.analysis.ranks import flops_rows, rank_rows
from gpuprof.analysis.replication import replication
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.telemetry import energy_per_step_j, invalid_reasons
from gpuprof.errors import GpuprofError
from gpuprof.paths import ancestors
from gpuprof.record import (
    ALL,
    DOUBTS,
    FACTS,
    TABLES,
    UNATTRIBUTED,
    PassOutcome,
    Record,
    columns,
    load,
    read,
    table,
    whole_file,
)
from gpuprof.run import Run
from gpuprof.theory import CONVENTIONS

Kind = TypeVar("Kind", bound=Record)

_VERSIONS = (
    "gpuprof", "torch", "transformers", "cuda", "hip", "cublas", "cudnn", "flop_rules", "float32_matmul_precision",
    "allow_tf32_matmul", "allow_tf32_cudnn",
)  # fmt: skip
"""What of the environment has to be the same on every rank, for their figures to be of one thing."""

_ADDED = {
    "ops": ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes"), "traffic": ("bytes",),
}  # fmt: skip
"""Columns of tables that add up over ranks; the others say what a row is of."""

_REPEATED = {"tp", "cp", "sp", "pp", "ep"}
"""Dimensions of a mesh, and ways of sharding, whose ranks share a batch."""

_KEPT = (
    "tree", "ops", "traffic", "samples", "generation", "memory", "telemetry", "ranks", "busy", "collectives",
)  # fmt: skip
"""Tables of a rank that its job is made of."""


def read_job(paths: Iterable[str | os.PathLike[str]]) -> Run:
    """Make the run of a job from the saved runs of its ranks, one after the other: one is in memory at a time.

    Args:
        paths: a file of every rank, in any order.

    Raises:
        GpuprofError: a file is none of a rank, or they are not those of one job, each once.
    """
    if not isinstance(paths, Iterable) or isinstance(paths, str):
        raise GpuprofError(f"the ranks' files must be a list of paths, not {paths!r}")
    return assemble(map(_read, paths))


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


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`part` of a saved run: of one with its sums without making tables of all that it holds."""
    file = Path(path).name
    data = {name: columns(table(name, [])) for name in _KEPT} | read(path, _KEPT)  # of older files some are empty
    _rank(data["workload"], file)
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
    """What a job is made of, of one of its ranks: the run as `Run.to_dict` has it, with the tables `_KEPT` alone.

    Args:
        run: of a rank, `summed` or not.
        file: name of the file that it is saved in, beside that of the job.

    Raises:
        GpuprofError: the run is of no rank of a job.
    """
    run = summed(run, file)
    facts = {name: getattr(run, name) for name in FACTS}
    passes = {name: vars(outcome) for name, outcome in run.passes.items()}
    return facts | {"file": file, "passes": passes} | {name: columns(getattr(run, name)) for name in _KEPT}


def summed(run: Kind, file: str = "") -> Kind:
    """The run of a rank with its own sums: all that its job needs of its kernels, and what is doubted of it.

    Raises:
        GpuprofError: the run is of no rank of a job.
    """
    rank = _rank(run.workload, file)
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


def _rank(workload: dict[str, Any], file: str) -> int:
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


def assemble(parts: Iterable[dict[str, Any]]) -> Run:
    """The run of a job from what `part` gives of each of its ranks, in any order; of each only its share is kept.

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
        rank = _rank(one["workload"], one["file"])
        _check_place(one, rank, about)
        about[rank] = {name: value for name, value in one.items() if name not in _KEPT}
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
        figures = dict(zip(one["ranks"]["quantity"], one["ranks"]["amount"], strict=True))
        for name, quantity in (("memory", "peak_bytes"), ("telemetry", "step_ns")):
            figure = figures.get(quantity, -1)
            if name not in most or (figure, -rank) > (most[name][0], -most[name][1]):
                most[name] = (figure, rank, one[name])
    _check_whole(about)
    ranks = [about[rank] for rank in sorted(about)]
    passes = _passes(ranks)
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
    remedy = f"that of a rank has its own: {ranks[0]['file']}" if ranks[0]["file"] else "save those of the ranks"
    for name in {"trace", "counters"} & passes.keys():
        if passes[name].status == "done":
            passes[name] = PassOutcome("skipped", "the file of a job has no kernels", remedy)
    hidden = {path for one in ranks for path in one["passes"].get("trace", {}).get("facts", {}).get("hidden", ())}
    if hidden and "trace" in passes:
        passes["trace"].facts["hidden"] = sorted(hidden)
    if "count" in passes:
        passes["count"].facts |= _of_traffic([one["passes"].get("count", {}).get("facts", {}) for one in ranks])
    timed = [step for _, step in sorted(steps.items())]
    job = Run(
        workload=_workload([one["workload"] for one in ranks]),
        device=_device(ranks),
        environment=ranks[0]["environment"],
        settings=ranks[0]["settings"],
        passes=passes,
        warnings=_of_all([one["warnings"] for one in ranks]),
        doubts={name: _of_all([one["doubts"][name] for one in ranks]) for name in DOUBTS},
        tree=_tree([trees[rank] for rank in sorted(trees)], [_stage(one["workload"]) for one in ranks]),
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
    share = ranks_per_batch(workload)
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


def _stage(workload: dict[str, Any]) -> int:
    """Which stage of a pipeline a rank has; 0 where it has all of the model, or none is known."""
    stages = workload.get("groups", {}).get("pp", [])
    return stages.index(workload["rank"]) if workload["rank"] in stages else 0


def _tree(trees: list[dict[str, list[Any]]], stages: list[int]) -> pd.DataFrame:
    """The union of the ranks' trees. Where a module is on several, it is as large as on the one where it is largest.

    Stages of a pipeline share names, at least that of the root, and no parameters: what their modules of one name have
    by themselves, without their children, adds up.

    Args:
        trees: of each rank.
        stages: of each rank which stage of a pipeline it has.
    """
    held = ("params", "trainable_params", "param_bytes", "trainable_bytes")
    rows: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, dict[int, list[int | None]]]] = {}  # by module, column and stage
    for tree, stage in zip(trees, stages, strict=True):
        modules = tree["module"]
        for place, module in enumerate(modules):
            row = {column: tree[column][place] for column in TABLES["tree"]}
            known = rows.setdefault(module, row)
            known["calls"] = max(filter(lambda count: count is not None, (known["calls"], row["calls"])), default=None)
        for column in held:
            sizes = dict(zip(modules, tree[column], strict=True))
            inside = dict.fromkeys(modules, 0)
            for module in modules:
                above = module.rpartition(".")[0]
                if module and sizes[module] is not None and above in inside:
                    inside[above] += sizes[module]
            for module, size in sizes.items():
                alone = None if size is None else size - inside[module]
                own.setdefault(module, {}).setdefault(column, {}).setdefault(stage, []).append(alone)
    for column in held:
        sizes = {}
        for module in rows:
            sizes[module] = _added_up(map(_largest, own[module][column].values()))
        for module in sorted(rows, key=lambda path: (path != "", path.count(".")), reverse=True):
            above = module.rpartition(".")[0]
            if module and above in sizes:
                sizes[above] = _added_up((sizes[above], sizes[module]))
        for module, row in rows.items():
            row[column] = sizes[module]
    return table("tree", list(rows.values()))


def _largest(sizes: list[int | None]) -> int | None:
    return None if None in sizes else max(size for size in sizes if size is not None)


def _added_up(sizes: Iterable[int | None]) -> int | None:
    found = list(sizes)
    return None if None in found else sum(size for size in found if size is not None)


def _passes(ranks: list[dict[str, Any]]) -> dict[str, PassOutcome]:
    """Outcomes of the job: done where all ranks have done it, else that of the first rank that fared worst."""
    found: dict[str, PassOutcome] = {}
    for name in dict.fromkeys(name for one in ranks for name in one["passes"]):
        outcomes = [one["passes"].get(name) or vars(PassOutcome("skipped")) for one in ranks]
        order = [("done", "skipped", "failed").index(outcome["status"]) for outcome in outcomes]
        rank = order.index(max(order))
        worst = PassOutcome(**outcomes[rank] | {"facts": dict(outcomes[0]["facts"])})
        if min(order) < max(order):
            worst.reason = f"rank {rank}: {worst.reason or 'it did not run there'}"
        worst.seconds = max(outcome["seconds"] for outcome in outcomes)
        found[name] = worst
    return found


def _of_traffic(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the counting passes say of a generation's bytes: all that a rank does not know, and what their caches hold.

    Each rank has a cache of its own, of its sequences or of its heads.
    """
    found: dict[str, Any] = {}
    for name in ("traffic_unknown", "weights_at_most"):
        if said := list(dict.fromkeys(text for facts in ranks for text in facts.get(name, ()))):
            found[name] = said
    caches = [facts["cache"]["bytes"] for facts in ranks if facts.get("cache")]
    if caches:
        alike = len(caches) == len(ranks) and len({*map(len, caches)}) == 1
        sums = [sum(held) for held in zip(*caches, strict=True)] if alike else []
        found["cache"] = ranks[0].get("cache", {}) | {"bytes": sums}
    return found


def _of_all(texts: list[list[str]]) -> list[str]:
    """What ranks say, each once, with those that say it where not all do."""
    said: dict[str, list[str]] = {}
    for rank, lines in enumerate(texts):
        for text in dict.fromkeys(lines):
            said.setdefault(text, []).append(str(rank))
    named = {text: f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: " for text, ranks in said.items()}
    return [text if len(said[text]) == len(texts) else named[text] + text for text in said]


def _workload(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """That of the lowest rank, as far as it is of all; with every process group, and what a step takes in all."""
    job = dict(ranks[0])
    del job["rank"]
    job["groups"] = {}
    for one in ranks:
        for name, members in one.get("groups", {}).items():
            if members not in job["groups"].setdefault(name, []):
                job["groups"][name].append(members)
    share = ranks_per_batch(job)
    for unit in ("tokens_per_step", "samples_per_step"):
        amounts = [one[unit] for one in ranks if one.get(unit) is not None]
        job[unit] = sum(amounts) // share if share is not None and len(amounts) == len(ranks) else None
    return job


def ranks_per_batch(workload: dict[str, Any]) -> int | None:
    """How many ranks share a batch; None where that is not known."""
    mesh, parallel = workload.get("mesh") or {}, set(workload.get("parallel") or ())
    if parallel and not parallel & _REPEATED:
        return 1
    shared = [size for name, size in mesh.items() if name.split("_")[0] in _REPEATED]
    return math.prod(shared) if shared and math.prod(mesh.values()) == workload["world"] else None


def _device(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The device of the lowest rank, with what the devices of all can do together; and what each rank says of itself.

    Of a rank that is: rank, file, device, environment, passes (without their facts).
    """
    devices = [one["device"] for one in ranks]
    found = dict(devices[0])
    found["name"] = " + ".join(dict.fromkeys(str(device.get("name")) for device in devices))
    for name in ("memory_bandwidth", "measured_bandwidth", "sm_count"):
        amounts = [device.get(name) for device in devices]
        found[name] = None if None in amounts else sum(amounts)
    found["peaks"] = {
        kind: sums
        for kind in devices[0].get("peaks", {})
        if (sums := _added([device.get("peaks", {}).get(kind, {}) for device in devices]))
    }
    found["ranks"] = [
        {"rank": rank, **{name: one[name] for name in ("file", "device", "environment")}}
        | {"passes": {name: outcome | {"facts": {}} for name, outcome in one["passes"].items()}}
        for rank, one in enumerate(ranks)
    ]
    return found


def _added(peaks: list[dict[str, float]]) -> dict[str, float]:
    """Peaks by dtype, as far as every device has one."""
    return {dtype: sum(one[dtype] for one in peaks) for dtype in peaks[0] if all(dtype in one for one in peaks)}


def _in_a_convention(job: Run) -> Run:
    """The job, counted as operators were where its convention is a formula: that is of a whole model on one batch."""
    how = CONVENTIONS.get(job.settings.get("convention", ""))
    if how is not None and how.parts is not None:
        job.settings = job.settings | {"convention": how.modules_in}
        job.warnings.append(f"{how.name} is a formula of one process's model: the job is counted {how.modules_in}")
    return job
