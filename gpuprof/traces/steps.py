"""The steps of a recording: which of them launched a kernel, and how long each kept the device."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from gpuprof.errors import GpuprofError
from gpuprof.late import np
from gpuprof.traces.chrome import KERNEL, OPERATOR, Device, Recorded

Step = int | Literal["all"] | None
"""Which step to take: by its number, the whole window as one, or that of median duration."""

_STEP = re.compile(r"ProfilerStep#(\d{1,18})").fullmatch

EARLY, OUTSIDE = -2, -1
"""In place of a step: launched before the recording began; launched outside of every step."""


def is_step(name: str) -> bool:
    """Whether it is what the profiler calls the range of a step."""
    return _STEP(name) is not None


class Window(NamedTuple):
    """What of a recording a run is of.

    Attributes:
        step: number of the step, or ``all``.
        host: its events on the host, as indices.
        device: its events on the device, likewise.
        samples_ns: duration of each step that was looked at; none where there is no step.
    """

    step: int | str
    host: np.ndarray
    device: np.ndarray
    samples_ns: np.ndarray


class Steps(NamedTuple):
    """The steps that launched something, in order; none where the recording has no ranges of steps.

    Attributes:
        numbers: as the profiler numbered them.
        start: begin of each on the host, ns.
        end: likewise.
        of_device: place of the step among these that launched each device event, or `EARLY` or `OUTSIDE`.
        device_ns: from the first kernel of a step to that of the next one, of the last one to the end of its kernels;
            on a CPU the range on the host.
    """

    numbers: list[int]
    start: np.ndarray
    end: np.ndarray
    of_device: np.ndarray
    device_ns: np.ndarray

    @property
    def host_ns(self) -> np.ndarray:
        """Duration of each on the host, which runs ahead of the device."""
        return self.end - self.start


def steps_of(recorded: Recorded) -> Steps:
    """Give every device event to the step whose range on the host launched it.

    A kernel without a launch call in the file was launched before the recording began, if its correlation is smaller
    than that of the first call there is; it is of no step. One whose call is missing for another reason is of the step
    in whose range it ran.
    """
    numbers, start, end = _ranges(recorded)
    launched, early = launch_times(recorded)
    place = np.searchsorted(start, launched, side="right") - 1
    inside = (place >= 0) & (launched < end[place]) if len(numbers) else np.zeros(len(launched), dtype=bool)
    of_device = np.where(early, EARLY, np.where(inside, place, OUTSIDE))
    if not len(recorded.device.start):  # the last range may have begun, and no step with it
        operators = np.sort(recorded.host.start[recorded.host.category == OPERATOR])
        begun = np.searchsorted(operators, end) > np.searchsorted(operators, start, side="right")
        start, end = start[begun], end[begun]
        return Steps([n for n, one in zip(numbers, begun, strict=True) if one], start, end, of_device, end - start)
    # a copy of the next batch may run long before all else of its step
    counts = (of_device >= 0) & (recorded.device.category == KERNEL)
    counts = counts if counts.any() else of_device >= 0
    busy = np.unique(of_device[counts])
    first = _begins(recorded.device, of_device, counts)
    if (np.diff(first) <= 0).any():  # and so may what has a stream of its own: the main one takes step after step
        main = counts & _on_main_stream(recorded.device, counts)
        first = _begins(recorded.device, of_device, main | (counts & ~np.isin(of_device, of_device[main])))
    last = recorded.device.end[of_device == busy[-1]].max() if len(busy) else 0
    renumbered = np.full(len(numbers) + 2, OUTSIDE)  # so that EARLY and OUTSIDE, from the end, stay as they are
    renumbered[busy] = np.arange(len(busy))
    renumbered[EARLY] = EARLY
    return Steps(
        [numbers[step] for step in busy], start[busy], end[busy], renumbered[of_device],
        np.diff(np.r_[first, last]) if len(busy) else first,
    )  # fmt: skip


def _begins(device: Device, of_device: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """When the first of these rows of each step began."""
    steps = np.unique(of_device[rows])
    return np.array([device.start[rows & (of_device == step)].min() for step in steps], dtype="int64")


def _on_main_stream(device: Device, rows: np.ndarray) -> np.ndarray:
    """What is on the stream that most of these rows are on, of one device."""
    _, of_stream = np.unique(np.stack([device.device, device.stream]), axis=1, return_inverse=True)
    return of_stream == np.bincount(of_stream[rows]).argmax()


def window_of(recorded: Recorded, steps: Steps, step: Step) -> Window:
    """The step that was asked for, else the one of median duration, else the whole window.

    Raises:
        GpuprofError: there is no such step.
    """
    everything = np.arange(len(recorded.host.start))
    launched = np.flatnonzero(steps.of_device != EARLY)
    if step == "all" or (step is None and not steps.numbers):
        samples = np.array([], dtype="int64")
        if step == "all":
            of_all = recorded.device if len(launched) else recorded.host
            rows = launched if len(launched) else everything
            whole = [of_all.end[rows].max() - of_all.start[rows].min()] if len(rows) else []
            samples = np.array(whole, dtype="int64")
        return Window("all", everything, launched, samples)
    if step is None:
        place = int(np.argsort(steps.device_ns, kind="stable")[(len(steps.numbers) - 1) // 2])
        samples = steps.device_ns
    elif step in steps.numbers:
        place = steps.numbers.index(step)
        samples = steps.device_ns[place : place + 1]
    else:
        known = ", ".join(map(str, steps.numbers)) or "none: record them with prof.step()"
        raise GpuprofError(f"{recorded.path} has no step {step!r}: there are {known}; or take --step all")
    begin, end = steps.start[place], steps.end[place]
    host = np.flatnonzero((recorded.host.start >= begin) & (recorded.host.start < end))
    return Window(steps.numbers[place], host, np.flatnonzero(steps.of_device == place), samples)


def launch_times(recorded: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """When the host launched each device event, ns (else when it ran), and whether before the recording began.

    Raises:
        GpuprofError: it is of several processes, which number their calls alike.
    """
    device, runtime = recorded.device, recorded.runtime
    known = runtime.correlation >= 0
    order = np.argsort(runtime.correlation[known], kind="stable")
    correlations, starts = runtime.correlation[known][order], runtime.start[known][order]
    process = np.unique([process for process, _ in recorded.threads], return_inverse=True)[1]
    process = process[runtime.thread[known][order]]
    if ((correlations[1:] == correlations[:-1]) & (process[1:] != process[:-1])).any():
        raise GpuprofError(
            f"{recorded.path} holds several processes that number their calls alike: give a file of each"
        )
    if not len(correlations):
        return device.start.copy(), np.zeros(len(device.start), dtype=bool)
    place = np.minimum(np.searchsorted(correlations, device.correlation), len(correlations) - 1)
    found = correlations[place] == device.correlation
    early = ~found & (device.correlation >= 0) & (device.correlation < correlations[0])
    return np.where(found, starts[place], device.start), early


def _ranges(recorded: Recorded) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Numbers, begins and ends of the ranges of steps, of the thread that has most of them, in order."""
    host = recorded.host
    numbers = {index: int(match[1]) for index, name in enumerate(recorded.names) if (match := _STEP(name))}
    rows = np.flatnonzero(np.isin(host.name, list(numbers)))
    if len(rows):
        threads, counts = np.unique(host.thread[rows], return_counts=True)
        rows = rows[host.thread[rows] == threads[counts.argmax()]]
        rows = rows[np.argsort(host.start[rows], kind="stable")]
    return [numbers[name] for name in host.name[rows].tolist()], host.start[rows], host.end[rows]
