"""A recorded trace as columns: the file that torch.profiler's `export_chrome_trace` writes, of CUDA, ROCm or a CPU."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from gpuprof.errors import GpuprofError
from gpuprof.late import np
from gpuprof.traces.chrome_text import UNREADABLE, Args, Event, ExactEvent, Progress, decoded, pieces
from gpuprof.traces.events import Inputs
from gpuprof.traces.foreign import kind_of, other_device
from gpuprof.undo import uncollected

OPERATOR, LABEL, MODULE = 0, 1, 2
"""Categories of `Host`."""
KERNEL, MEMCPY, MEMSET = 0, 1, 2
"""Categories of `Device`."""

NOT_COMPLETE = "a ph other than X"
NO_START = "no time of start"
NO_DURATION = "no duration or a negative one"
"""Why an event is left out, beside `UNREADABLE`."""

_HOST = {"cpu_op": OPERATOR, "Operator": OPERATOR, "user_annotation": LABEL, "python_function": MODULE}
_RUNTIME = {"cuda_runtime", "cuda_driver", "Runtime"}
_DEVICE = {
    "kernel": KERNEL, "Kernel": KERNEL, "gpu_memcpy": MEMCPY, "Memcpy": MEMCPY, "gpu_memset": MEMSET, "Memset": MEMSET,
}  # fmt: skip
_MODULE_RANGE = "nn.Module: "

_NUMBERS = ("cuda_runtime_version", "hip_runtime_version", "baseTimeNanoseconds")
_OF_DEVICE = ("id", "numSms", "totalGlobalMem", "computeMajor", "computeMinor")
_NO_ARGS = Args()
_APART = b"\0"  # between texts of JSON, which never hold it
_NO_INPUTS = _APART * 3
_NO_STAMP = -(2**63)
_LONGEST = 4e15  # microseconds whose sum of two is an int64 of nanoseconds: 126 years

Integers = NDArray[np.int64]


class Host(NamedTuple):
    """What ran on the host, a row per event.

    Attributes:
        name: index into `Recorded.names`, int32.
        category: `OPERATOR`, `LABEL` or `MODULE` (a range of a module's call), int8.
        thread: index into `Recorded.threads`, int32.
        start: ns.
        end: ns.
        number: autograd sequence number, -1 where there is none.
        forward_thread: the profiler's number of the thread that made the autograd node, 0 where there is none.
        inputs: index into `Recorded.inputs`, int32; -1 where the file has none.
        python_id: number of a Python call, in the order of the calls; -1 where there is none.
    """

    name: NDArray[np.int32]
    category: NDArray[np.int8]
    thread: NDArray[np.int32]
    start: Integers
    end: Integers
    number: Integers
    forward_thread: Integers
    inputs: NDArray[np.int32]
    python_id: Integers


class Runtime(NamedTuple):
    """Calls into the runtime or driver of CUDA or HIP; `correlation` is -1 where there is none, else as in `Host`."""

    name: NDArray[np.int32]
    thread: NDArray[np.int32]
    start: Integers
    end: Integers
    correlation: Integers


class Device(NamedTuple):
    """Work of the GPU.

    Attributes:
        name: index into `Recorded.names`, int32.
        category: `KERNEL`, `MEMCPY` or `MEMSET`, int8.
        device: its number, -1 where there is none.
        stream: index into `Recorded.streams`, int32.
        start: ns.
        end: ns.
        correlation: that of the call that launched it, -1 where there is none.
    """

    name: NDArray[np.int32]
    category: NDArray[np.int8]
    device: Integers
    stream: NDArray[np.int32]
    start: Integers
    end: Integers
    correlation: Integers


@dataclass
class Recorded:
    """What is read of a trace: times in ns since the earliest event that is kept, rows in no order.

    Attributes:
        path: the file.
        header: fields of an allow-list, those that the file has: `devices` (of each its id, name, numSms,
            totalGlobalMem, computeMajor, computeMinor), `rank`, `world_size`, and of other numbers those that are
            listed here, under the names that the file gives them.
        events: how many the file has, of every kind.
        origin_ns: time of that event, as the file has it: since the epoch, or since `baseTimeNanoseconds`.
        whole_us: whether every time is a whole microsecond.
        left_out: how many events that would be kept are not, by reason.
        names: names of events, each once.
        inputs: inputs of operators, each once.
        threads: process and thread, as the file numbers them.
        streams: streams, as the file numbers them; of several devices they may be called the same.
        host: see there.
        runtime: see there.
        device: see there.
    """

    path: Path
    header: dict[str, Any]
    events: int
    origin_ns: int
    whole_us: bool
    left_out: dict[str, int]
    names: list[str]
    inputs: list[Inputs]
    threads: list[tuple[str, str]]
    streams: list[str]
    host: Host
    runtime: Runtime
    device: Device


class _Index(dict[Any, int]):
    """Numbers things in the order in which they are first seen."""

    def __missing__(self, thing: Any) -> int:
        self[thing] = number = len(self)
        return number


class _Columns:
    """What is kept of the events so far: for each table a tuple of arrays per group of events."""

    def __init__(self) -> None:
        self.names, self.inputs, self.threads, self.streams = _Index(), _Index(), _Index(), _Index()
        self.inputs[_NO_INPUTS] = 0
        nothing = np.empty(0, np.int64)
        self.host = [self._host([], nothing, nothing, OPERATOR)]
        self.runtime = [self._runtime([], nothing, nothing)]
        self.device = [self._device([], nothing, nothing, KERNEL)]
        self.categories: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.whole_us = True

    def add(self, events: list[Event]) -> None:
        """Add what is kept of some events."""
        groups: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            groups[event.cat].append(event)
        for category, group in groups.items():
            self.categories[category] += len(group)
            if category in _HOST:
                if _HOST[category] == MODULE:
                    group = [event for event in group if event.name.startswith(_MODULE_RANGE)]
                self.host.append(self._host(*self._timed(group), _HOST[category]))
            elif category in _DEVICE:
                self.device.append(self._device(*self._timed(group), _DEVICE[category]))
            elif category in _RUNTIME:
                self.runtime.append(self._runtime(*self._timed(group)))

    def _timed(self, events: list[Event]) -> tuple[list[Event], Integers, Integers]:
        """Those of the events that have a time, with their start and end in ns."""
        if events and isinstance(events[0], ExactEvent):
            start = np.array([_stamp(bytes(event.ts)) for event in cast("list[ExactEvent]", events)], np.int64)
            dated = start != _NO_STAMP
        else:
            begun = np.array([event.ts for event in events], np.float64)
            dated = np.abs(begun) < _LONGEST
            start = _nanoseconds(np.where(dated, begun, 0))
        lasted = np.array([event.dur for event in events], np.float64)
        ended = (lasted >= 0) & (lasted < _LONGEST)
        duration = _nanoseconds(np.where(ended, lasted, 0))
        good = np.ones(len(events), np.bool_)
        for reason, fit in (
            (NOT_COMPLETE, np.array([event.ph == "X" for event in events], np.bool_)),
            (NO_START, dated),
            (NO_DURATION, ended),
        ):
            if number := int((good & ~fit).sum()):
                self.left_out[reason] += number
                good &= fit
        if not good.all():
            events, start, duration = list(compress(events, good)), start[good], duration[good]
        self.whole_us = self.whole_us and not (start % 1000).any() and not (duration % 1000).any()
        return events, start, start + duration

    def _host(self, events: list[Event], start: Integers, end: Integers, category: int) -> tuple[NDArray[Any], ...]:
        args = [event.args or _NO_ARGS for event in events]
        texts = [
            _APART.join((arg.shapes or arg.shapes_2020, arg.types, arg.concrete, b"true" if _sparse(arg) else b""))
            for arg in args
        ]
        return Host(
            name=_indices(self.names, [event.name for event in events]),
            category=np.full(len(events), category, np.int8),
            thread=_indices(self.threads, [(event.pid, event.tid) for event in events]),
            start=start,
            end=end,
            number=_integers([arg.number for arg in args], -1),
            forward_thread=_integers([arg.forward_thread for arg in args], 0),
            inputs=_indices(self.inputs, texts) - 1,
            python_id=_integers([arg.python_id for arg in args], -1),
        )

    def _runtime(self, events: list[Event], start: Integers, end: Integers) -> tuple[NDArray[Any], ...]:
        return Runtime(
            name=_indices(self.names, [event.name for event in events]),
            thread=_indices(self.threads, [(event.pid, event.tid) for event in events]),
            start=start,
            end=end,
            correlation=_integers([(event.args or _NO_ARGS).correlation for event in events], -1),
        )

    def _device(self, events: list[Event], start: Integers, end: Integers, category: int) -> tuple[NDArray[Any], ...]:
        both = [(event.args or _NO_ARGS, event) for event in events]
        return Device(
            name=_indices(self.names, [event.name for event in events]),
            category=np.full(len(events), category, np.int8),
            device=_integers([_number(event.pid if arg.device is None else arg.device) for arg, event in both], -1),
            stream=_indices(self.streams, [event.tid if arg.stream is None else arg.stream for arg, event in both]),
            start=start,
            end=end,
            correlation=_integers([arg.correlation for arg, _ in both], -1),
        )


def read(path: str | os.PathLike[str], progress: Progress | None = None) -> Recorded:
    """Read a trace that torch.profiler exported, of any of its versions, in little more memory than what is kept takes.

    Args:
        path: the file, plain or in gzip.
        progress: called every few megabytes with the bytes of the file that are read, and all of them.

    Raises:
        GpuprofError: it cannot be read, is something else, is cut short, or has no work of a GPU and no operator.
    """
    path = Path(path)
    if kind_of(path) == "table":
        raise GpuprofError(f"{path} is a table of Nsight Compute, no trace")
    fields: dict[str, Any] = {}
    columns = _Columns()
    with uncollected():  # to look among so many objects takes longer than to decode
        for events in pieces(path, fields, columns.left_out, progress or (lambda done, total: None)):
            columns.add(events)
    categories, left_out = dict(columns.categories), dict(columns.left_out)
    if other := other_device(categories):
        raise GpuprofError(f"{path} is a trace of {other}: those of CUDA, of ROCm and of CPUs are read")
    host, runtime, device = (
        Host(*_joined(columns.host)),
        Runtime(*_joined(columns.runtime)),
        Device(*_joined(columns.device)),
    )
    if not len(device.name) and not (host.category == OPERATOR).any():
        raise GpuprofError(_nothing(path, categories, left_out))
    origin = min((int(table.start.min()) for table in (host, runtime, device) if len(table.start)), default=0)
    for table in (host, runtime, device):
        np.subtract(table.start, origin, out=table.start)
        np.subtract(table.end, origin, out=table.end)
    return Recorded(
        path=path,
        header=_header(fields),
        events=sum(categories.values()) + left_out.get(UNREADABLE, 0),
        origin_ns=origin,
        whole_us=columns.whole_us,
        left_out=left_out,
        names=[_plain(name) for name in columns.names],
        inputs=[Inputs(*map(decoded, texts.split(_APART))) for texts in list(columns.inputs)[1:]],
        threads=[(_text(pid), _text(tid)) for pid, tid in columns.threads],
        streams=[_text(stream) for stream in columns.streams],
        host=host,
        runtime=runtime,
        device=device,
    )


def _nothing(path: Path, categories: dict[str, int], left_out: dict[str, int]) -> str:
    """What is said of a trace in which there is nothing to read."""
    found = [
        f"{number} of {ascii(name[:40]) if name else 'no category'}"
        for name, number in Counter(categories).most_common(8)
    ] + [f"{number} left out for {reason}" for reason, number in left_out.items()]
    return (
        f"{path} has no work of a GPU and no operator of torch (events: {', '.join(found) or 'none'}): record both "
        "with torch.profiler's activities CPU and CUDA"
    )


def _header(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of a file's header that are known, each of its type; nothing else, since some carry an environment."""
    header = {name: fields[name] for name in _NUMBERS if isinstance(fields.get(name), int)}
    distributed = fields.get("distributedInfo")
    if isinstance(distributed, dict):
        header |= {name: distributed[name] for name in ("rank", "world_size") if isinstance(distributed.get(name), int)}
    devices = fields.get("deviceProperties")
    if isinstance(devices, list):
        header["devices"] = [
            {name: device[name] for name in _OF_DEVICE if isinstance(device.get(name), int)}
            | ({"name": _plain(device["name"])} if isinstance(device.get("name"), str) else {})
            for device in devices
            if isinstance(device, dict)
        ]
    return header


def _sparse(arg: Args) -> bool:
    """Whether more arguments are without strides than without sizes."""
    return bytes(arg.strides).count(b"[]") > bytes(arg.shapes).count(b"[]")


def _indices(index: _Index, things: list[Any]) -> NDArray[np.int32]:
    return np.array(list(map(index.__getitem__, things)), np.int32)


def _integers(values: list[int | None], absent: int) -> Integers:
    """Numbers of a file as int64. Those from 2**63 on, which unsigned ones reach, keep apart as negative ones."""
    try:
        return np.array(values, np.int64)
    except (TypeError, OverflowError):  # None, or too large
        kept = (absent if value is None or abs(value) >= 2**64 else value for value in values)
        return np.array([(value + 2**63) % 2**64 - 2**63 for value in kept], np.int64)


def _stamp(text: bytes) -> int:
    """Nanoseconds of a number of microseconds that a float would not hold, written with a fraction or without."""
    whole, _, fraction = text.strip(b'"').partition(b".")
    try:
        stamp = int(whole + (fraction + b"000")[:3])
    except ValueError:
        return _NO_STAMP
    return stamp if abs(stamp) < 1000 * _LONGEST else _NO_STAMP


def _nanoseconds(microseconds: NDArray[np.float64]) -> Integers:
    """Whole nanoseconds; a whole microsecond stays one, however large."""
    whole = np.floor(microseconds)
    return whole.astype(np.int64) * 1000 + np.rint((microseconds - whole) * 1000).astype(np.int64)


def _joined(parts: list[tuple[NDArray[Any], ...]]) -> Iterator[NDArray[Any]]:
    """Each column in one piece; its pieces are let go."""
    columns = list(zip(*parts, strict=True))
    parts.clear()
    while columns:
        yield np.concatenate(columns.pop(0))


def _number(value: int | str | None) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 19 else None
    return value


def _text(value: int | str | None) -> str:
    return "" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """A name of the file without what would move the cursor of a terminal, or colour it, or break a line of a table."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
