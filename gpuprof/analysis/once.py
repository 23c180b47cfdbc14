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
        kept: dict[Any, tuple[str, _Found]] = of.__dict__.setdefault("_found", {})
        state = _state(of if isinstance(of, Record) else of.run)
        key = (find.__module__, find.__name__, args, *kwargs.items())
        if key not in kept or kept[key][0] != state:
            kept[key] = (state, find(of, *args, **kwargs))
        return kept[key][1]

    return found


def _state(run: Record) -> str:
    tables = {name: getattr(run, name) for name in TABLES}
    sums = [
        (id(table), len(table), *(table[column].sum() for column in _SUMS.get(name, ())))
        for name, table in tables.items()
    ]
    return repr([sums, run.passes, run.workload, run.device, run.environment, run.settings])
