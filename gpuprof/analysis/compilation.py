"""What torch.compile did in a run, in words: how long it took, what it broke at, and what it compiled again."""

from __future__ import annotations

from collections.abc import Iterator

from gpuprof import units
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import WHOLE_STEP

_TOLD = 5
"""Breaks, recompilations and the like that are told one by one."""


def compile_lines(run: Record) -> list[str]:
    """What there is to say of compilation, one line each; nothing where nothing is compiled. Of a job only how."""
    if not run.has("compilations") and not run.workload.get("compiled"):
        return []
    if run.is_job:  # each rank compiles by itself, and says so in its own run
        return [*_how(run)]
    return [
        *_how(run),
        *_times(run),
        *_caches(run),
        *_graphs(run),
        *_breaks(run),
        *_recompiled(run),
        *_cuda_graphs(run),
    ]


def compile_seconds(run: Record) -> tuple[float | None, float | None]:
    """Seconds that the compilations of a step took with empty caches, and with caches that held them.

    None where it is not known: the first where something was compiled before the run, the second where the caches did
    not have all, as once Dynamo knows which shapes vary. Of graphs that are equal all but the first are found in caches
    that were empty.
    """
    own, warm = _steps_own(run), run.compilations[run.compilations["pass"] == "warm"]
    cold = own[own["pass"] == own["pass"].iloc[0]] if len(own) else own  # a later pass finds it in the caches
    missed = warm["cache"].str.startswith(("miss", "bypass")).any()
    known = not cold.empty and set(warm["frame"]) <= set(cold["frame"])
    return (
        float(cold["total_s"].sum()) if known else None,
        float(warm["total_s"].sum()) if warm["cache"].str.startswith("hit").any() and not missed else None,
    )


def _steps_own(run: Record) -> pd.DataFrame:
    """What the steps compiled by themselves, and nobody to look at it."""
    return run.compilations[~run.compilations["pass"].isin(["warm", "trace"])]


def _how(run: Record) -> Iterator[str]:
    by_how: dict[str, list[str]] = {}
    for path, how in run.workload.get("compiled", {}).items():
        by_how.setdefault(how, []).append({"": "the model", WHOLE_STEP: "the step"}.get(path, path))
    for how, paths in by_how.items():
        whole = ", ".join(paths) if len(paths) <= _TOLD else f"{', '.join(paths[:2])} and {len(paths) - 2} more modules"
        yield f"Compiled: {whole} ({how})"


def _times(run: Record) -> Iterator[str]:
    cold, warm = compile_seconds(run)
    if cold is None and (run.is_job or not (run.done("time") or run.done("memory"))):
        return  # the file of a rank has its own
    if cold is None:
        yield "Time to compile: not known with empty caches, as it was compiled before the profile"
    else:
        own = _steps_own(run)
        parts = [f"{units.duration(own[name].sum())} in {words}" for name, words in _PARTS.items() if own[name].any()]
        yield f"Time to compile: {units.duration(cold)} with empty caches ({', '.join(parts)})"
    if warm is not None:
        yield f"Compiled once more from the caches: {units.duration(warm)}"


_PARTS = {"dynamo_s": "Dynamo", "inductor_s": "Inductor"}


def _caches(run: Record) -> Iterator[str]:
    """What Inductor's caches had, and why they were not asked."""
    warm = run.compilations[run.compilations["pass"] == "warm"]
    found, refused = [], list[str]()
    for rows, when in ((_steps_own(run), "while empty"), (warm, "once filled")):
        asked = rows.loc[rows["cache"] != "", "cache"]
        if len(asked):
            times = asked.str.extract(r"^(\w+)")[0].value_counts(sort=False)
            found.append(f"{when} {', '.join(f'{number} x {what}' for what, number in times.items())}")
        refused += [one for one in asked if ": " in one]
    if found:
        yield f"Caches: {'; '.join(found)}"
    yield from (f"  {reason}" for reason in list(dict.fromkeys(refused))[:_TOLD])


def _graphs(run: Record) -> Iterator[str]:
    if not run.graphs.empty:
        calls = int(run.graphs["calls"].sum())
        yield f"{units.number(len(run.graphs), 'graph')} in {units.number(calls, 'call')} in the traced step"


def _breaks(run: Record) -> Iterator[str]:
    rows = run.breaks
    if rows.empty:
        if not run.compilations.empty:
            yield "No graph breaks"
        return
    yield f"{units.number(int(rows['breaks'].sum()), 'graph break')}:"
    places = rows.groupby(["place", "reason"], sort=False)["breaks"].sum()
    for (place, reason), times in places.head(_TOLD).items():
        yield f"  {place}: {reason}" + (f" ({times} times)" if times > 1 else "")
    if len(places) > _TOLD:
        yield f"  and {units.number(len(places) - _TOLD, 'more place')}"


def _recompiled(run: Record) -> Iterator[str]:
    own = _steps_own(run)
    for frame, rows in own[own["reason"] != ""].groupby("frame", sort=False):
        first = rows["reason"].iloc[0]
        yield f"{frame or 'a function'} recompiled {units.number(len(rows), 'time')}, first as it failed {first}"
    for frame, rows in own[own["gave_up"] != ""].groupby("frame", sort=False):
        yield f"{frame or 'a function'} not compiled: {rows['gave_up'].iloc[0]}"


def _cuda_graphs(run: Record) -> Iterator[str]:
    said = _steps_own(run)["cuda_graph"]
    for what, times in said[said != ""].value_counts().items():
        if what == "recorded":
            yield f"{units.number(times, 'CUDA graph')} recorded; the trace pass runs the same kernels without them"
        else:
            yield f"CUDA graphs {what} ({units.number(times, 'graph')})"
