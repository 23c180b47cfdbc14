"""Kineto's events as columns, straight from its binding."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Callable
from itertools import compress
from operator import not_
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.torch_version import TorchVersion

from gpuprof.late import np
from gpuprof.passes.operators import is_composite_name
from gpuprof.traces.events import (
    FUNCTION,
    KERNEL,
    NODE,
    OPERATOR,
    RANGE,
    RUNTIME,
    WAIT,
    Events,
    device_kind,
    host_kind,
)
from gpuprof.traces.taken_over import takes_over

FIELDS = (
    "name", "scope", "device_type", "is_user_annotation", "start_thread_id", "device_resource_id", "start_ns", "end_ns",
    "correlation_id", "linked_correlation_id", "sequence_nr", "fwd_thread_id", "flops", "shapes",
)  # fmt: skip
"""What the binding is asked for."""

_AT_ONCE = 256  # events: all that they hold stays in the processor's cache
_BACKWARD_FUNCTION, _USER_SCOPE = 1, 7  # of torch's RecordScope
_DEVICE, _DEVICE_LABEL = -1, -2  # in place of a scope
_MAKER, _SHAPES, _FLOPS = 1, 2, 4
_ESTIMATED = {"aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mul", "aten::add"}
"""Operators whose FLOPs torch estimates, as of 2.11 to 2.13."""
_KNOWN = TorchVersion(torch.__version__) < "2.14"  # a later torch may estimate more: all operators are asked

_ZERO, _NOTHING = array("q", [0] * _AT_ONCE), array("q", [-1] * _AT_ONCE)


def read(profiler: profile) -> Events:
    """The events of a profile, without calls into the runtime and what waits.

    Of what an operator calls that is not merely composed of it the shapes are not asked: it is part of that one, unless
    something may take operators over.
    """
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    on_device = ProfilerActivity.CUDA in profiler.activities
    reader = _Reader(on_device)
    if not reader.through(results.events()):
        reader = _Reader(on_device, all_shapes=True)
        reader.through(results.events())
    return reader.read()


class _Sorts(dict[tuple[str, int], int]):
    """Numbers pairs of a name and a scope, in the order in which they are first asked for.

    Attributes:
        names: of each pair.
        kinds: what events of the pair are.
        asks_more: what else these are asked for: who made a node, the shapes of an operator that may be an outermost
            one, torch's estimate; the sum of these, or 0.
        take_over: whether one of them may do something in an operator's place.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.asks_more: list[int] = []
        self.take_over = False

    def __missing__(self, pair: tuple[str, int]) -> int:
        name, scope = pair
        if scope in (_DEVICE, _DEVICE_LABEL):
            kind = device_kind(name, scope == _DEVICE_LABEL)
        else:
            kind = host_kind(name, scope == _USER_SCOPE, scope == _BACKWARD_FUNCTION)
        number = self[pair] = len(self)
        self.names.append(name)
        self.kinds.append(kind)
        self.take_over |= takes_over(name, kind)
        counted = kind == OPERATOR and not is_composite_name(name)
        more = _MAKER if kind in (NODE, FUNCTION) else _SHAPES if counted else 0
        self.asks_more.append(more | (_FLOPS if kind == OPERATOR and (name in _ESTIMATED or not _KNOWN) else 0))
        return number


class _Reader:
    """Reads a profile.

    The binding makes an object of each event, and every field costs a call. A few objects are asked for all of theirs
    and let go while the processor has them at hand: that takes half as long as going through all of them for each
    field, and no more memory than the binding itself.

    Args:
        on_device: whether it may be of a GPU.
        all_shapes: whether to ask every operator for those of its inputs.
    """

    def __init__(self, on_device: bool, all_shapes: bool = False) -> None:
        self._on_device, self._all_shapes = on_device, all_shapes
        self._sorts = _Sorts()
        self._shapes: dict[bytes, int] = {}
        self._busy: dict[int, int] = {}  # by thread: until when its outermost operator runs
        self._ask: dict[str, Callable[[Any], Any]] = {}
        self._columns = {name: array("q") for name in Events.COLUMNS}

    def through(self, events: list[Any]) -> bool:
        """Go through all of them, in their order; what was read is out of the list.

        Returns:
            False as soon as there is one that may take operators over, if not all of these are asked for shapes.
        """
        if events:
            methods = {name: getattr(type(events[0]), name) for name in FIELDS}
            self._ask = {name: getattr(method, "__func__", method) for name, method in methods.items()}
        events.reverse()
        while events:
            few = events[: -_AT_ONCE - 1 : -1]
            del events[-_AT_ONCE:]
            if self._on_device:
                on_host = self._on_host(few)
                self._read_device(list(compress(few, map(not_, on_host))))
                few = list(compress(few, on_host))
            self._read_host(few)
            if self._sorts.take_over and not self._all_shapes:
                return False
        return True

    def read(self) -> Events:
        """What was gone through."""
        shapes = [*map(marshal.loads, self._shapes), ()]
        columns = {name: np.array(column, np.int64) for name, column in self._columns.items()}
        columns["shape"][columns["shape"] < 0] = len(self._shapes)
        return _cleared(Events(self._sorts.names, self._sorts.kinds, shapes, **columns))

    def _on_host(self, events: list[Any]) -> list[bool]:
        cpu = torch.autograd.DeviceType.CPU.value  # to compare these themselves would be a call of the binding
        return [device.value == cpu for device in map(self._ask["device_type"], events)]

    def _read_host(self, events: list[Any]) -> None:
        ask, columns = self._ask, self._columns
        first = len(columns["sort"])
        pairs = zip(map(ask["name"], events), map(ask["scope"], events), strict=True)
        sorts = list(map(self._sorts.__getitem__, pairs))
        thread, start, end = (list(map(ask[name], events)) for name in ("start_thread_id", "start_ns", "end_ns"))
        for name, values in (("sort", sorts), ("thread", thread), ("start", start), ("end", end)):
            columns[name].extend(values)
        columns["number"].extend(map(ask["sequence_nr"], events))
        if self._on_device:
            columns["correlation"].extend(map(ask["correlation_id"], events))
            columns["linked"].extend(map(ask["linked_correlation_id"], events))
        self._fill(len(events))
        asks_more = list(map(self._sorts.asks_more.__getitem__, sorts))
        for place in compress(range(len(events)), asks_more):
            more = asks_more[place]
            if more & _MAKER:
                columns["forward_thread"][first + place] = ask["fwd_thread_id"](events[place])
            if more & _FLOPS:
                columns["flops"][first + place] = ask["flops"](events[place])
            busy = self._busy.get(thread[place], -1)
            if more & _SHAPES and (self._all_shapes or start[place] >= busy or end[place] > busy):
                self._busy[thread[place]] = end[place]
                shapes = marshal.dumps(ask["shapes"](events[place]), 2)
                columns["shape"][first + place] = self._shapes.setdefault(shapes, len(self._shapes))

    def _read_device(self, events: list[Any]) -> None:
        """Work of the device; labels cast a shadow there."""
        ask = self._ask
        scopes = (_DEVICE_LABEL if label else _DEVICE for label in map(ask["is_user_annotation"], events))
        pairs = zip(map(ask["name"], events), scopes, strict=True)
        self._columns["sort"].extend(map(self._sorts.__getitem__, pairs))
        for name, field in (
            ("thread", "device_resource_id"), ("start", "start_ns"), ("end", "end_ns"),
            ("correlation", "correlation_id"), ("linked", "linked_correlation_id"),
        ):  # fmt: skip
            self._columns[name].extend(map(ask[field], events))
        self._fill(len(events))

    def _fill(self, count: int) -> None:
        """What was not asked of the last events."""
        length = len(self._columns["sort"])
        for name, column in self._columns.items():
            if len(column) < length:
                column.extend((_NOTHING if name in ("number", "shape", "inputs") else _ZERO)[:count])


def _cleared(events: Events) -> Events:
    """Without what is no part of a step, and numbers where they say nothing."""
    sort = events.sort
    events.number[~events.sorts(NODE, FUNCTION, OPERATOR, RANGE)[sort]] = -1  # a range of somebody's own makes one too
    # a call into the runtime names the operator that called it, or has a number of another sequence
    calls = events.sorts(RANGE)[sort] & (events.linked > 0)
    left = ~(calls | events.sorts(RUNTIME, WAIT)[sort])
    events.linked[~events.sorts(KERNEL)[sort]] = 0
    return events if left.all() else events.take(left)
