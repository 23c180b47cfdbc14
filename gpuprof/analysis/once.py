"""What is found out of a run, or of a part of it, once, however many tables and pages ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from gpuprof.record import Record
from gpuprof.schema import TABLES

_Of = TypeVar("_Of", bound="Record | _OfRun")
_Found = TypeVar("_Found")
_Asked = ParamSpec("_Asked")


class _OfRun(Protocol):
    """What was concluded of a run, such as its budget."""

    @property
    def run(self) -> Record: ...


_SUMS = {
    "tree": ("params", "trainable_params"), "ops": ("calls", "flops_full", "flops_hardware"),
    "kernels": ("duration_ns", "call"), "estimates": ("flops_profiler",), "samples": ("time_s",),
    "nodes": ("calls", "moved", "flops_hardware"), "generation": ("time_s",), "traffic": ("bytes",),
}  # fmt: skip
"""Columns whose sums tell that a table was changed in place."""


class _State(NamedTuple):
    """What tells whether a run is as it was.

    Attributes:
        told: differs where it is not.
        held: its tables, so that no other comes to have the id of one of them.
    """

    told: str
    held: list[Any]


_states: ContextVar[Mapping[int, _State]] = ContextVar("states", default=MappingProxyType({}))
"""Of the runs that are `unchanged`, by their ids."""


def once(find: Callable[Concatenate[_Of, _Asked], _Found]) -> Callable[Concatenate[_Of, _Asked], _Found]:
    """Found once for each state of a run and what else is given: every table and page asks again.

    All who ask get the same object, so nobody may change it.
    """

    @wraps(find)
    def found(of: _Of, *args: _Asked.args, **kwargs: _Asked.kwargs) -> _Found:
        run = of if isinstance(of, Record) else of.run
        kept: dict[Any, tuple[_State, _Found]] = of.__dict__.setdefault("_found", {})
        key = (find.__module__, find.__name__, args, *kwargs.items())
        with unchanged(run) as state:
            if key not in kept or kept[key][0].told != state.told:
                kept[key] = (state, find(of, *args, **kwargs))
        return kept[key][1]

    return found


@contextmanager
def unchanged(run: Record) -> Iterator[_State]:
    """Nothing in a run changes here: its state, for which all kernels are added up, is found once."""
    known = _states.get()
    state = known.get(id(run)) or _state(run)
    before = _states.set({**known, id(run): state} if run.has("kernels") else known)
    try:
        yield state
    finally:
        _states.reset(before)


def _state(run: Record) -> _State:
    # kernels are walked as frames, and the others with them: a state that does not change when a frame is asked for
    frames = run.has("kernels")
    held = [getattr(run, name) if frames else run.held(name) for name in TABLES]
    sums = [_sums(*of_table) for of_table in zip(TABLES, held, strict=True)]
    return _State(repr([sums, run.passes, run.workload, run.device, run.environment, run.settings]), held)


def _sums(name: str, held: Any) -> tuple[Any, ...]:
    if isinstance(held, dict):  # columns that nobody changes
        return (id(held), len(next(iter(held.values()))))
    return (id(held), len(held), *(held[column].sum() for column in _SUMS.get(name, ())))
