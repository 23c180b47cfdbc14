"""What is found out of a run, or of a part of it, once, however many tables and pages ask."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

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


def once(find: Callable[Concatenate[_Of, _Asked], _Found]) -> Callable[Concatenate[_Of, _Asked], _Found]:
    """Found once for each state of a run and what else is given: every table and page asks again.

    All who ask get the same object, so nobody may change it.
    """

    @wraps(find)
    def found(of: _Of, *args: _Asked.args, **kwargs: _Asked.kwargs) -> _Found:
        run = of if isinstance(of, Record) else of.run
        kept: dict[Any, tuple[str, _Found, Any]] = of.__dict__.setdefault("_found", {})
        state = _state(run)
        key = (find.__module__, find.__name__, args, *kwargs.items())
        if key not in kept or kept[key][0] != state:
            held = [run.held(name) for name in TABLES]  # so that no other table comes to have the id of one of them
            kept[key] = (state, find(of, *args, **kwargs), held)
        return kept[key][1]

    return found


def _state(run: Record) -> str:
    # kernels are walked as frames, and the others with them: a state that does not change when a frame is asked for
    frames = run.has("kernels")
    sums = [_sums(name, getattr(run, name) if frames else run.held(name)) for name in TABLES]
    return repr([sums, run.passes, run.workload, run.device, run.environment, run.settings])


def _sums(name: str, held: Any) -> tuple[Any, ...]:
    if isinstance(held, dict):  # columns that nobody changes
        return (id(held), len(next(iter(held.values()))))
    return (id(held), len(held), *(held[column].sum() for column in _SUMS.get(name, ())))
