"""The timing pass: the undisturbed step, with one CUDA-event pair per phase and nothing else attached."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gpuprof.passes.generation import Part
from gpuprof.passes.inputs import observed_inputs
from gpuprof.passes.phases import observed_phases
from gpuprof.passes.reference import reference_product
from gpuprof.record import PassOutcome
from gpuprof.schema import table
from gpuprof.workload import Workload

if TYPE_CHECKING:
    import pandas as pd


def warm_up(workload: Workload, steps: int, before_step: Callable[[], None], tick: Callable[[], None]) -> None:
    """Run steps with nothing attached at all: what is compiled in them knows of nothing."""
    for _ in range(steps):
        before_step()
        workload.step()
        tick()


def measure(
    workload: Workload, steps: int, before_step: Callable[[int], None], tick: Callable[[], None], phases: bool = True,
    opened: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, PassOutcome]:  # fmt: skip
    """Time steps and their phases.

    On CUDA by events on the current stream, read when all steps are over, so that the host is never made to wait
    inside a step; elsewhere by ``perf_counter``, with the `reference_product` between the steps.

    Args:
        workload: what to run.
        steps: how many.
        before_step: given the number of a step, run before it, outside the clock (seeding).
        tick: called after every step (progress).
        phases: tell phases and inputs apart. Not where a step is compiled as a whole, which would be compiled anew.
        opened: when the telemetry's window opened, by ``perf_counter``; None without one.

    Returns:
        The tables ``samples`` and ``generation``, in seconds, and the outcome; of a step that was given its fact
        ``inputs`` is the number of timed steps by the shapes of their inputs, as `observed_inputs` has them, if a step
        was counted before.
    """
    cuda = workload.device.type == "cuda"
    now: Callable[[], Any] = _event if cuda else time.perf_counter
    reference = None if cuda else reference_product()
    steps_marks: list[_Marks] = []
    references: list[tuple[int, float]] = []
    inputs: Counter[str] = Counter()
    marks = _Marks([], [])
    began = 0.0  # of the first step, by perf_counter
    with ExitStack() as into:
        given_now, phase = None, None
        if phases:
            given_now = into.enter_context(observed_inputs(workload, search=False))
            phase = into.enter_context(observed_phases(workload, lambda name: marks.at.append((name, now()))))
        for index in range(steps):
            before_step(index)
            if phase is not None:
                phase.start()
            marks = _Marks([], phase.parts if phase is not None else [])
            if index == 0:
                if cuda:
                    torch.cuda.synchronize(workload.device)
                began = time.perf_counter()
            marks.at.append((phase.name if phase is not None else "", now()))
            workload.step()
            marks.at.append(("", now()))
            if given_now is not None:
                inputs[given_now().shapes] += 1
            if reference is not None and (seconds := reference()):
                references.append((index, seconds))
            steps_marks.append(marks)
            tick()
    if cuda:
        torch.cuda.synchronize(workload.device)
    rows = [row for number, marks in enumerate(steps_marks) for row in _durations(number, marks.at, cuda)]
    rows += [{"step": number, "phase": "reference", "time_s": seconds} for number, seconds in references]
    first = steps_marks[0].at[0][1] if steps_marks else None
    parts = [
        {"step": number, **row, "start_s": None if opened is None else began - opened + row["start_s"]}
        for number, marks in enumerate(steps_marks)
        for row in _parts(marks, first, cuda)
    ]
    facts = {"steps": steps} | ({"inputs": dict(inputs)} if any(inputs) else {})
    return table("samples", rows), table("generation", parts), PassOutcome("done", facts=facts)


class _Marks(NamedTuple):
    """Where the phases of a step begin, its end last, and the parts of a generation that begin there after the first.

    The step itself begins before the first part does, which takes what is before it along.
    """

    at: list[tuple[str, Any]]
    parts: list[Part]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(first: Any, second: Any, cuda: bool) -> float:
    """From one mark to another."""
    seconds: float = first.elapsed_time(second) * 1e-3 if cuda else second - first
    return seconds


def _durations(step: int, marks: list[tuple[str, Any]], cuda: bool) -> list[dict[str, Any]]:
    """Rows of one step: the whole of it, then each phase that took place."""
    phases: dict[str, float] = {}
    for (name, start), (_, end) in itertools.pairwise(marks):
        phases[name] = phases.get(name, 0.0) + _seconds(start, end, cuda)
    total = _seconds(marks[0][1], marks[-1][1], cuda)
    return [{"step": step, "phase": "step", "time_s": total}] + [
        {"step": step, "phase": name, "time_s": seconds} for name, seconds in phases.items() if name
    ]


def _parts(marks: _Marks, first: Any, cuda: bool) -> Iterator[dict[str, Any]]:
    """Rows of the ``generation`` table of one step, ``start_s`` from the mark ``first`` on."""
    if len(marks.at) != len(marks.parts) + 2:  # no generation, or one that trains
        return
    (_, begin), _, *later = marks.at
    for number, (part, (_, end)) in enumerate(zip(marks.parts, later, strict=True)):
        yield {
            "part": number, **part._asdict(), "start_s": _seconds(first, begin, cuda),
            "time_s": _seconds(begin, end, cuda),
        }  # fmt: skip
        begin = end
