"""A traced step as Chrome trace events, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpuprof import units
from gpuprof.analysis.collectives import Alignment, alignment
from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.ranks import rank_files, require_kernels
from gpuprof.analysis.spans import Kernel, Span, lanes, module_spans, phase_spans, whole
from gpuprof.analysis.steps import refuse_log, traced
from gpuprof.errors import GpuprofError
from gpuprof.record import Record
from gpuprof.render.view import View
from gpuprof.schema import UNATTRIBUTED

_PHASES, _MODULES, _KERNELS = 1, 2, 3  # processes of the trace, from the top


def render(run: Record, view: View) -> str:
    """Three groups of tracks: phases, modules (children below their parent) and kernels, one per stream each.

    Of a job a group of tracks for each rank, read from their files in the view's folder and aligned as
    `gpuprof.analysis.collectives.alignment` does.

    Raises:
        GpuprofError: the run has no trace, or the traces of a job's ranks cannot be aligned.
    """
    if run.is_job:
        aligned = alignment(run)
        return _dumped(_of_ranks(run, view, aligned), _about(run, view) | {"aligned": aligned.words()})
    refuse_log(run, "timeline", "trace")
    if not run.done("trace"):
        raise GpuprofError("this run has no trace to show along time: profile again with trace among the --passes")
    return _dumped(_events(run, view), _about(run, view))


def _dumped(events: Iterable[dict[str, Any]], about: dict[str, Any]) -> str:
    trace = {"traceEvents": list(events), "displayTimeUnit": "ns", "otherData": about}
    return json.dumps(trace, separators=(",", ":")) + "\n"


def _events(run: Record, view: View) -> Iterator[dict[str, Any]]:
    cuda = run.device.get("type") == "cuda"
    names = {_PHASES: "phases", _MODULES: "modules", _KERNELS: f"{'GPU' if cuda else 'CPU'} ({traced(run)})"}
    for process, name in names.items():
        yield from _process(process, name)
    for thread, (process, track, events) in enumerate(_tracks(run, view), 1):  # a number of its own in the whole trace
        yield from _track(process, thread, track, events)


def _of_ranks(job: Record, view: View, aligned: Alignment) -> Iterator[dict[str, Any]]:
    """A process of the trace for each rank, with the tracks of its phases, modules and kernels; from 0 on."""
    if view.folder is None:
        require_kernels(job, "a trace")
    within = units.duration(aligned.residual_ns * 1e-9)
    first_ns = min(aligned.offset_ns.values())
    thread = 0
    for run in rank_files(job, view.folder or Path()):
        rank = run.workload["rank"]
        host = run.environment.get("host")
        name = f"rank {rank}: {run.device.get('name')}" + (f" on {host}" if host else "")
        yield from _process(rank, f"{name}, aligned within {within}" if aligned.offset_ns[rank] else name)
        names = {_PHASES: "phases of ", _MODULES: "modules of ", _KERNELS: ""}
        for process, track, events in _tracks(run, view):
            thread += 1
            yield from _track(rank, thread, f"{names[process]}{track}", events, aligned.offset_ns[rank] - first_ns)


def _process(number: int, name: str) -> Iterator[dict[str, Any]]:
    yield _named("process", number, 0, name)
    yield {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}


def _track(
    process: int, thread: int, name: str, events: Iterable[dict[str, Any]], later_ns: int = 0
) -> Iterator[dict[str, Any]]:
    yield _named("thread", process, thread, name)
    for event in events:
        start_ns, end_ns = event.pop("times")
        when = {"ts": _microseconds(start_ns + later_ns), "dur": _microseconds(end_ns - start_ns)}
        yield {"ph": "X", "pid": process, "tid": thread, **event, **when}


def _tracks(run: Record, view: View) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
    """Tracks of a run: of which group, their names and their slices, with start and end in nanoseconds."""
    cuda = run.device.get("type") == "cuda"
    classes = dict(zip(run.tree["module"], run.tree["class"], strict=True))
    for (stream, number), lane in lanes(run, view.convention).items():
        track = f"{'stream' if cuda else 'thread'} {stream}" + (f" ({number})" if number > 1 else "")
        yield _PHASES, track, [_phase(span) for span in phase_spans(lane)]
        yield _MODULES, track, [_module(span, classes) for span in module_spans(lane, view.depth)]
        yield _KERNELS, track, [_kernel(parts) for parts in whole(lane)]


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": f"{what}_name", "pid": process, "tid": thread, "args": {"name": name}}


def _phase(span: Span) -> dict[str, Any]:
    return {"name": span.phase, "cat": "phase", "times": (span.start_ns, span.end_ns), "args": _figures(span)}


def _module(span: Span, classes: dict[str, str]) -> dict[str, Any]:
    path = span.module or ""
    name = f"{path.rpartition('.')[2]}: {classes[path]}" if path in classes and path else classes.get(path, path)
    about = {"module": path or "(root)", "phase": span.phase}
    return {"name": name, "cat": "module", "times": (span.start_ns, span.end_ns), "args": about | _figures(span)}


def _kernel(parts: Sequence[Kernel]) -> dict[str, Any]:
    """A slice of a kernel; of one that is several modules' with the time of each."""
    kernel, last = parts[0], parts[-1]
    about: dict[str, Any] = {"module": kernel.module or "(root)", "phase": kernel.phase}
    about |= {"op": kernel.op, "shapes": kernel.shapes}
    if len(parts) > 1:
        owners = [(f"{part.module or '(root)'} in the {part.phase}, us", part) for part in parts]
        about = {name: about[name] for name in ("op", "shapes")}
        about |= {name: (part.end_ns - part.start_ns) / 1000 for name, part in owners}
    known = [part.flops for part in parts if part.flops is not None]
    whole_flops = sum(known) if len(known) == len(parts) else 0
    flops = {"flops of the call": whole_flops} if whole_flops else {}
    return {"name": kernel.kernel, "cat": "kernel", "times": (kernel.start_ns, last.end_ns), "args": about | flops}


def _figures(span: Span) -> dict[str, Any]:
    busy = {"kernels": span.launched, "kernel time, us": span.busy_ns / 1000}
    return busy if span.flops is None else busy | {"flops": span.flops}


def _microseconds(nanoseconds: int) -> float:
    """The least number that gives the same nanoseconds to a reader that cuts off what is beyond them, as Perfetto does.

    A slice that ends a nanosecond after the one around it would not be drawn inside it.
    """
    value = nanoseconds / 1000
    return value if int(value * 1000.0) == nanoseconds else math.nextafter(value, math.inf)


def _about(run: Record, view: View) -> dict[str, Any]:
    return {
        "workload": run.workload["name"],
        "mode": run.workload["mode"],
        "device": run.device.get("name") or run.device["type"],
        "date": run.environment.get("date", ""),
        "convention": convention_of(run, view.convention),
        "flops": f"model FLOPs in the convention, 1 MAC = 2; work without an owner is {UNATTRIBUTED}",
    }
