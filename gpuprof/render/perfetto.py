"""A traced step as Chrome trace events, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.spans import Kernel, Span, lanes, module_spans, phase_spans
from gpuprof.analysis.steps import traced
from gpuprof.errors import GpuprofError
from gpuprof.record import UNATTRIBUTED, Run
from gpuprof.render.view import View

_PHASES, _MODULES, _KERNELS = 1, 2, 3  # processes of the trace, from the top


def render(run: Run, view: View) -> str:
    """Three groups of tracks: phases, modules (children below their parent) and kernels, one per stream each.

    Raises:
        GpuprofError: the run has no trace.
    """
    if not run.done("trace"):
        raise GpuprofError("this run has no trace to show along time: profile again with trace among the --passes")
    return json.dumps(
        {"traceEvents": list(_events(run, view)), "displayTimeUnit": "ns", "otherData": _about(run, view)},
        separators=(",", ":"),
    ) + "\n"  # fmt: skip


def _events(run: Run, view: View) -> Iterator[dict[str, Any]]:
    cuda = run.device.get("type") == "cuda"
    names = {_PHASES: "phases", _MODULES: "modules", _KERNELS: f"{'GPU' if cuda else 'CPU'} ({traced(run)})"}
    for process, name in names.items():
        yield _named("process", process, 0, name)
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
    classes = dict(zip(run.tree["module"], run.tree["class"], strict=True))
    thread = 0
    for (stream, number), lane in lanes(run, view.convention).items():
        track = f"{'stream' if cuda else 'thread'} {stream}" + (f" ({number})" if number > 1 else "")
        slices = {
            _PHASES: [_phase(span) for span in phase_spans(lane)],
            _MODULES: [_module(span, classes) for span in module_spans(lane, view.depth)],
            _KERNELS: [_kernel(kernel) for kernel in lane],
        }
        for process, events in slices.items():
            thread += 1  # a number of its own in the whole trace
            yield _named("thread", process, thread, track)
            for event in events:
                yield {"ph": "X", "pid": process, "tid": thread, **event}


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": f"{what}_name", "pid": process, "tid": thread, "args": {"name": name}}


def _phase(span: Span) -> dict[str, Any]:
    return {"name": span.phase, "cat": "phase", **_when(span), "args": _figures(span)}


def _module(span: Span, classes: dict[str, str]) -> dict[str, Any]:
    path = span.module or ""
    name = f"{path.rpartition('.')[2]}: {classes[path]}" if path in classes and path else classes.get(path, path)
    about = {"module": path or "(root)", "phase": span.phase}
    return {"name": name, "cat": "module", **_when(span), "args": about | _figures(span)}


def _kernel(kernel: Kernel) -> dict[str, Any]:
    about = {"module": kernel.module or "(root)", "phase": kernel.phase, "op": kernel.op, "shapes": kernel.shapes}
    flops = {"flops of the call": kernel.flops} if kernel.flops else {}
    return {"name": kernel.kernel, "cat": "kernel", **_when(kernel), "args": about | flops}


def _figures(span: Span) -> dict[str, Any]:
    busy = {"kernels": len(span.kernels), "kernel time, us": span.busy_ns / 1000}
    return busy if span.flops is None else busy | {"flops": span.flops}


def _when(what: Kernel | Span) -> dict[str, float]:
    return {"ts": _microseconds(what.start_ns), "dur": _microseconds(what.end_ns - what.start_ns)}


def _microseconds(nanoseconds: int) -> float:
    """The least number that gives the same nanoseconds to a reader that cuts off what is beyond them, as Perfetto does.

    A slice that ends a nanosecond after the one around it would not be drawn inside it.
    """
    value = nanoseconds / 1000
    return value if int(value * 1000.0) == nanoseconds else math.nextafter(value, math.inf)


def _about(run: Run, view: View) -> dict[str, Any]:
    return {
        "workload": run.workload["name"],
        "mode": run.workload["mode"],
        "device": run.device.get("name") or run.device["type"],
        "date": run.environment.get("date", ""),
        "convention": convention_of(run, view.convention),
        "flops": f"model FLOPs in the convention, 1 MAC = 2; work without an owner is {UNATTRIBUTED}",
    }
