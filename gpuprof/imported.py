"""A recorded trace of somebody's job becomes a Run, without torch and without the model."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuprof.analysis.ranks import rank_rows
from gpuprof.errors import GpuprofError
from gpuprof.hardware.peaks import check_peak
from gpuprof.late import pd
from gpuprof.record import PassOutcome
from gpuprof.run import Run
from gpuprof.schema import table
from gpuprof.theory.conventions import convention as fitting_convention
from gpuprof.theory.generated import generated
from gpuprof.theory.rules import RULES_VERSION
from gpuprof.traces.chrome import Recorded, read
from gpuprof.traces.composite import is_composite
from gpuprof.traces.device import device_names, device_of
from gpuprof.traces.events import Events, launches_graph
from gpuprof.traces.foreign import kind_of
from gpuprof.traces.ncu_table import read_table
from gpuprof.traces.ops import ops_of
from gpuprof.traces.owners import Attributed, attribute
from gpuprof.traces.scopes import Scopes, graphs_of, makers, outside_operators, scopes_of
from gpuprof.traces.step_events import events_of
from gpuprof.traces.steps import EARLY, OUTSIDE, Step, Steps, Window, steps_of, window_of
from gpuprof.undo import uncollected

Progress = Callable[[str, int, int], None]
PathLike = str | os.PathLike[str]


def read_trace(
    path: PathLike | Sequence[PathLike],
    *,
    step: Step = None,
    convention: str = "causal",
    peak_tflops: float | None = None,
    device_name: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Make a run of a trace that ``torch.profiler`` recorded: its kernels, operators, modules, phases and FLOPs.

    Args:
        path: a Chrome trace (JSON, plain or gzip), or one of each rank of a job: the tables are then those of the
            lowest rank, and ``ranks`` has all of them. Or a raw-page table of Nsight Compute (CSV), see
            `gpuprof.traces.ncu_table.read_table`.
        step: number of the profiler's step to take, or ``all`` for the whole window as one step; by default the one of
            median duration, with each step's time as a sample.
        convention: how FLOPs are counted, of `gpuprof.theory.conventions.CONVENTIONS`.
        peak_tflops: peak of the device in TFLOP/s, for every dtype, instead of the table's.
        device_name: what the device is where the trace does not say, as torch names it.
        name: of the workload; by default the class of the outermost module, else that of the file.
        progress: told which file is read, bytes done and bytes in all.

    Raises:
        GpuprofError: a file is no trace, is truncated, has nothing to read, or has no such step; or an argument is out
            of its range.
    """
    paths = _paths(path)
    fitting_convention(convention)
    check_peak(peak_tflops)
    settings = {"convention": convention, "peak_tflops": peak_tflops}
    kinds = [kind_of(one) for one in paths]
    if "table" in kinds:
        return _table(paths, kinds, step, settings, device_name, name)
    runs: dict[int, Run] = {}
    of_ranks: list[dict[str, Any]] = []
    said: dict[Path, tuple[str, int | None]] = {}
    for place, one in enumerate(paths):
        recorded = read(one, _telling(progress, one))
        rank = _rank(recorded, place)
        if rank in runs:
            raise GpuprofError(f"{one} is of rank {rank}, as another of these files: give one file of each rank")
        runs[rank] = _run(recorded, step, settings, device_name, name)
        if len(paths) > 1:
            of_ranks += _rank_rows(recorded, runs[rank], rank, step, settings, device_name)
        said[one] = (runs[rank].device["name"], recorded.header.get("world_size"))
    first = runs[min(runs)]
    if len(runs) == 1:
        return first
    without = [rank for rank, run in runs.items() if run.passes["trace"].facts["step"] == "all"]
    if step != "all" and 0 < len(without) < len(runs):
        raise GpuprofError(f"the trace of rank {without[0]} has no steps, others have: take --step all of every rank")
    _check_job(said)
    return replace(first, ranks=table("ranks", of_ranks), workload=first.workload | {"ranks": len(runs)})


def _paths(given: Any) -> list[Path]:
    """The files that are given."""
    try:
        paths = [Path(one) for one in ([given] if isinstance(given, (str, os.PathLike)) else given)]
    except TypeError as error:
        raise GpuprofError(f"{reprlib.repr(given)} is no path of a trace, and no list of such paths") from error
    if not paths:
        raise GpuprofError("no trace given: name one file, or one of each rank of a job")
    return paths


def _check_job(said: dict[Path, tuple[str, int | None]]) -> None:
    """Refuse files as ranks of one job, by the device and the number of ranks that each names.

    Raises:
        GpuprofError: two of them name different ones.
    """
    (first, (device, size)), *others = said.items()
    for path, (another, ranks) in others:
        if another != device:
            raise GpuprofError(
                f"{first} is of {device}, {path} of {another}: ranks of one job have one peak here; import each alone"
            )
        if None not in (size, ranks) and ranks != size:
            raise GpuprofError(f"{first} is of a job of {size} ranks, {path} of one of {ranks}: give those of one job")


def _table(
    paths: Sequence[Path], kinds: Sequence[str], step: Step, settings: dict[str, Any], device_name: str | None,
    name: str | None,
) -> Run:  # fmt: skip
    """The run of a table of Nsight Compute, which has no steps and no ranks."""
    path = paths[kinds.index("table")]
    if len(paths) > 1:
        raise GpuprofError(f"{path} is a table of Nsight Compute, which is imported alone: give one file")
    if step is not None:
        raise GpuprofError(f"{path} is a table of Nsight Compute, which has no steps: leave --step out")
    run = Run.of(read_table(path, device_name, settings["peak_tflops"]))
    return replace(run, workload=run.workload | ({"name": name} if name else {}), settings=settings)


def _telling(progress: Progress | None, path: Path) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(path.name, done, total)


def _rank_rows(
    recorded: Recorded, run: Run, rank: int, step: Step, settings: dict[str, Any], device_name: str | None
) -> list[dict[str, Any]]:
    """Rows of the ``ranks`` table: of every step, where none was asked for and there are several."""
    if run.kernels.empty:
        raise GpuprofError(f"{recorded.path} has no kernels: ranks are held against one another by theirs")
    facts = run.passes["trace"].facts
    if step is not None or len(facts["steps"]) < 2:
        return rank_rows(run, rank, 0 if facts["step"] == "all" else facts["step"])
    alone = {number: _run(recorded, number, settings, device_name, None) for number in facts["steps"]}
    return [row for number, one in alone.items() for row in rank_rows(one, rank, number)]


def _rank(recorded: Recorded, place: int) -> int:
    """Rank of a file: what it says itself, else a number after ``rank`` in its name, else its place."""
    rank = recorded.header.get("rank")
    if isinstance(rank, int):
        return rank
    found = re.search(r"rank[-_.]?(\d+)", recorded.path.name, re.IGNORECASE)
    return int(found[1]) if found else place


def _run(recorded: Recorded, step: Step, settings: dict[str, Any], device_name: str | None, name: str | None) -> Run:
    with uncollected():
        steps = steps_of(recorded)
        window = window_of(recorded, steps, step)
        scopes = scopes_of(recorded, window.host)
        host, device = events_of(recorded, window, scopes)
        maker = makers(host, scopes.calls)
        found = _generated_named(attribute(host, device, scopes.calls, maker, is_composite, marked=False))
        found.facts.update(_compiled(host, scopes, maker, found, len(recorded.device.start) > 0))
    return _assembled(recorded, steps, window, scopes, found, settings, device_name, name)


def _compiled(
    host: Events, scopes: Scopes, maker: Callable[[int, int], str | None], found: Attributed, on_device: bool
) -> dict[str, Any]:
    """What is said of compiled regions: of each its path, and the keys of its graphs by direction.

    On a CPU also the nanoseconds in their graphs that no operator took, where these have no event of a fused kernel.
    """
    if not scopes.regions:
        return {}
    facts: dict[str, Any] = {"compiled": True, "regions": graphs_of(host, scopes, maker)}
    if not (on_device or any(map(generated, set(found.calls.names)))):
        facts["unseen_ns"] = outside_operators(found.calls)
    return facts


def _generated_named(found: Attributed) -> Attributed:
    """Kernels that Inductor generated get one operator for all of the same work, whatever graph they are of.

    torch before 2.2 records no call of them, only the kernels.
    """
    kernels, calls = found.kernels, found.calls
    made = {name: op.op for name in {*calls.names, *kernels["op"], *kernels["kernel"]} if (op := generated(name))}
    if not made:
        return found
    alone = kernels["call"].isna() & ~kernels["op"].map(launches_graph).astype(bool)
    kernels["op"] = pd.Series(
        [
            made.get(op) or (made.get(kernel) if by_itself else None) or op
            for op, kernel, by_itself in zip(kernels["op"], kernels["kernel"], alone, strict=True)
        ],
        dtype="object",
    )
    return found._replace(calls=calls._replace(names=[made.get(name, name) for name in calls.names]))


def _assembled(
    recorded: Recorded, steps: Steps, window: Window, scopes: Scopes, found: Attributed, settings: dict[str, Any],
    device_name: str | None, name: str | None,
) -> Run:  # fmt: skip
    kernels = found.kernels
    on_device = len(window.device) > 0
    if on_device:
        kernels["stream"] = kernels["stream"].map({str(place): name for place, name in enumerate(recorded.streams)})
    ops, count = ops_of(recorded, found.calls, kernels)
    device = device_of(recorded, window, device_name)
    modes = {*found.calls.phases, *kernels["phase"]}
    roots = [path for path in scopes.classes if "." not in path and path not in scopes.regions]
    roots = roots if scopes.what == "modules" else []
    run = Run(
        workload={
            "name": name or (scopes.classes[roots[0]] if len(roots) == 1 else _stem(recorded.path)),
            "mode": "train" if "backward" in modes else "forward",
            "source": "trace",
            "file": recorded.path.name,
            "dtype": _dtype(ops),
            "step": "all" if window.step == "all" and len(window.samples_ns) else None,
        },
        device=device,
        environment=_environment(recorded),
        settings=settings,
    )
    run.ops, run.kernels = ops, kernels
    run.tree = _tree(scopes, count.pop("causality"))
    run.samples = table(
        "samples",
        [{"step": place, "phase": "step", "time_s": int(ns) * 1e-9} for place, ns in enumerate(window.samples_ns)],
    )
    found.facts.pop("unknown_owner_ns", None)  # of nodes: in a recording as much of the other work is nobody's
    facts = found.facts | _facts(recorded, steps, window, scopes, found)
    run.passes = {
        "count": PassOutcome("done", facts=count),
        "time": PassOutcome("done")
        if len(window.samples_ns)
        else PassOutcome(
            "skipped", "no step is marked in the trace", "call prof.step() after each, or take --step all"
        ),
        "trace": PassOutcome("done", facts=facts),
        "memory": PassOutcome("skipped", "a trace does not tell the memory of a step", "gpuprof profile measures it"),
    }
    return run


def _stem(path: Path) -> str:
    return re.sub(r"(\.pt)?(\.trace)?(\.json)?(\.gz)?$", "", path.name) or path.name


def _dtype(ops: pd.DataFrame) -> str | None:
    """The dtype that most FLOPs are multiplied in."""
    sums = ops.assign(flops=ops["flops_full"].astype("float64").fillna(0.0)).groupby("dtype")["flops"].sum()
    return str(sums.idxmax()) if len(sums) and sums.max() > 0 else None


def _tree(scopes: Scopes, causality: dict[str, str]) -> pd.DataFrame:
    """The ``tree`` table: what a module holds is not recorded, so its parameters are missing."""
    rows = [
        {
            "module": path,
            "class": scopes.classes[path] if path else "(recording)",
            "calls": scopes.counts.get(path, 0) if path else 1,
            "causality": causality.get(path, ""),
        }
        for path in ["", *scopes.classes]
    ]
    return table("tree", rows)


def _facts(recorded: Recorded, steps: Steps, window: Window, scopes: Scopes, found: Attributed) -> dict[str, Any]:
    """What a recording says of itself, and what it cannot tell: nanoseconds of kernel time, added up."""
    device = recorded.device
    took = device.end - device.start
    early, outside = steps.of_device == EARLY, steps.of_device == OUTSIDE
    outside &= len(steps.numbers) > 0 and window.step != "all"
    kernels = found.kernels
    graphs = {op for op in kernels["op"].unique() if launches_graph(op)}
    made = {name for name in set(found.calls.names) if generated(name) is not None}
    with_shapes = {number for number, inputs in enumerate(recorded.inputs) if inputs.shapes}
    calls = zip(found.calls.inputs.tolist(), found.calls.names, strict=True)
    shapeless = [
        number for number, (inputs, name) in enumerate(calls) if inputs not in with_shapes and name not in made
    ]
    facts: dict[str, Any] = {
        "recorded": True,
        "early_kernels": int(early.sum()),
        "early_ns": int(took[early].sum()),
        "outside_kernels": int(outside.sum()),
        "outside_ns": int(took[outside].sum()),
        "all_ns": int(took.sum()),
        "graph_ns": int(kernels.loc[kernels["op"].isin(graphs), "duration_ns"].sum()),
        "no_shapes_ns": int(kernels.loc[kernels["call"].isin(shapeless), "duration_ns"].sum()),
        "left_out": recorded.left_out,
        "whole_us": recorded.whole_us,
        "lacks": _lacks(recorded, scopes),
        "steps": steps.numbers,
        "step": window.step,
        "host_step_s": [int(ns) * 1e-9 for ns in steps.host_ns],
        "scopes": scopes.what,
        "devices": device_names(recorded, window),
    }
    return facts


def _lacks(recorded: Recorded, scopes: Scopes) -> list[str]:
    lacks = []
    if not any(inputs.shapes for inputs in recorded.inputs):
        lacks.append("record_shapes")
    elif all(inputs.concrete is None for inputs in recorded.inputs):
        lacks.append("concrete_inputs")
    return lacks if scopes.what == "modules" else [*lacks, "with_modules"]


def _environment(recorded: Recorded) -> dict[str, Any]:
    header = recorded.header
    base = header.get("baseTimeNanoseconds") or 0
    when = (base + recorded.origin_ns) * 1e-9
    date = datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds") if 1e9 < when < 1e10 else None
    return {
        "date": date,
        "flop_rules": RULES_VERSION,
        **{name: header.get(key) for name, key in (("cuda", "cuda_runtime_version"), ("hip", "hip_runtime_version"))},
    }
