"""Kineto's events as columns, straight from its binding."""

from __future__ import annotations

import marshal
from collections.abc import Callable
from itertools import compress
from operator import not_
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

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
from gpuprof.traces.taken_over import may_take_over

FIELDS = (
    "name", "scope", "device_type", "is_user_annotation", "start_thread_id", "device_resource_id", "start_ns", "end_ns",
    "correlation_id", "linked_correlation_id", "sequence_nr", "fwd_thread_id", "flops", "shapes",
)  # fmt: skip
"""What the binding is asked for."""

_AT_ONCE = 256  # events: all that they hold stays in the processor's cache
_BACKWARD_FUNCTION, _USER_SCOPE = 1, 7  # of torch's RecordScope
_DEVICE, _DEVICE_LABEL = -1, -2  # in place of a scope


def read(profiler: profile) -> Events:
    """The events of a profile, without calls into the runtime and what waits.

    Of what an operator calls that is not merely composed of it the shapes are not asked: it is part of that one, unless
    something may take operators over.
    """
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    on_device = ProfilerActivity.CUDA in profiler.activities
    events = _Reader(on_device).read(results.events())
    return _Reader(on_device, all_shapes=True).read(results.events()) if may_take_over(events) else events


class _Sorts(dict[tuple[str, int], int]):
    """Numbers pairs of a name and a scope, in the order in which they are first asked for.

    Attributes:
        names: of each pair.
        kinds: what events of the pair are.
        has_maker: whether these are nodes of autograd, which know who made them.
        outermost: whether these are operators that are not merely composed of others.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.has_maker: list[bool] = []
        self.outermost: list[bool] = []

    def __missing__(self, pair: tuple[str, int]) -> int:
        name, scope = pair
        if scope in (_DEVICE, _DEVICE_LABEL):
            kind = device_kind(name, scope == _DEVICE_LABEL)
        else:
            kind = host_kind(name, scope == _USER_SCOPE, scope == _BACKWARD_FUNCTION)
        number = self[pair] = len(self)
        self.names.append(name)
        self.kinds.append(kind)
        self.has_maker.append(kind in (NODE, FUNCTION))
        self.outermost.append(kind == OPERATOR and not is_composite_name(name))
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

    def read(self, events: list[Any]) -> Events:
        """All of them, in their order. The list is empty afterwards."""
        blank = {"number": -1, "shape": -1, "inputs": -1}
        columns = {name: np.full(len(events), blank.get(name, 0), np.int64) for name in Events.COLUMNS}
        if events:
            methods = {name: getattr(type(events[0]), name) for name in FIELDS}
            self._ask = {name: getattr(method, "__func__", method) for name, method in methods.items()}
        events.reverse()
        at = 0
        while events:
            few = events[: -_AT_ONCE - 1 : -1]
            del events[-_AT_ONCE:]
            on_host = self._on_host(few) if self._on_device else [True] * len(few)
            for some, ask in (
                (list(compress(few, on_host)), self._of_host),
                (list(compress(few, map(not_, on_host))), self._of_device),
            ):
                for name, values in ask(some).items() if some else ():
                    columns[name][at : at + len(some)] = values
                at += len(some)
        columns["shape"][columns["shape"] < 0] = len(self._shapes)
        shapes = [*map(marshal.loads, self._shapes), ()]
        return _cleared(Events(self._sorts.names, self._sorts.kinds, shapes, **columns))

    def _on_host(self, events: list[Any]) -> list[bool]:
        cpu = torch.autograd.DeviceType.CPU
        return [device == cpu for device in map(self._ask["device_type"], events)]

    def _of_host(self, events: list[Any]) -> dict[str, Any]:
        """What events of the host say, by column."""
        ask = self._ask
        pairs = zip(map(ask["name"], events), map(ask["scope"], events), strict=True)
        sorts = list(map(self._sorts.__getitem__, pairs))
        thread, start, end = (list(map(ask[name], events)) for name in ("start_thread_id", "start_ns", "end_ns"))
        found: dict[str, Any] = {"sort": sorts, "thread": thread, "start": start, "end": end}
        found |= {"number": list(map(ask["sequence_nr"], events)), "flops": list(map(ask["flops"], events))}
        if self._on_device:
            found |= {"correlation": list(map(ask["correlation_id"], events))}
            found |= {"linked": list(map(ask["linked_correlation_id"], events))}
        forward_thread, shape = [0] * len(events), [-1] * len(events)
        for place, sort in enumerate(sorts):
            if self._sorts.has_maker[sort]:
                forward_thread[place] = ask["fwd_thread_id"](events[place])
            elif self._sorts.outermost[sort]:
                busy = self._busy.get(thread[place], -1)
                if self._all_shapes or start[place] >= busy or end[place] > busy:
                    self._busy[thread[place]] = end[place]
                    shapes = marshal.dumps(ask["shapes"](events[place]), 2)
                    shape[place] = self._shapes.setdefault(shapes, len(self._shapes))
        return found | {"forward_thread": forward_thread, "shape": shape}

    def _of_device(self, events: list[Any]) -> dict[str, Any]:
        """What work of the device says, by column; labels cast a shadow there."""
        ask = self._ask
        scopes = (_DEVICE_LABEL if label else _DEVICE for label in map(ask["is_user_annotation"], events))
        fields = {
            "thread": "device_resource_id", "start": "start_ns", "end": "end_ns", "correlation": "correlation_id",
            "linked": "linked_correlation_id",
        }  # fmt: skip
        found = {name: list(map(ask[field], events)) for name, field in fields.items()}
        pairs = zip(map(ask["name"], events), scopes, strict=True)
        return found | {"sort": list(map(self._sorts.__getitem__, pairs))}


def _cleared(events: Events) -> Events:
    """Without what is no part of a step, and numbers where they say nothing."""
    sort = events.sort
    events.number[~events.sorts(NODE, FUNCTION, OPERATOR, RANGE)[sort]] = -1  # a range of somebody's own makes one too
    events.flops[~events.sorts(OPERATOR)[sort]] = 0
    # a call into the runtime names the operator that called it, or has a number of another sequence
    calls = events.sorts(RANGE)[sort] & (events.linked > 0)
    left = ~(calls | events.sorts(RUNTIME, WAIT)[sort])
    events.linked[~events.sorts(KERNEL)[sort]] = 0
    return events if left.all() else events.take(left)
