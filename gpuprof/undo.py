"""Putting things back when a block ends, whatever ended it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def undoing() -> Iterator[Callable[..., None]]:
    """Give what takes functions, with their arguments, to be called when the block ends, the last first.

    Each is called whatever became of the others, and where several fail, or the block itself did, the first error is
    the one that is raised: an `ExitStack` raises the last, and the cause is lost to whoever shows one line.
    """
    todo: list[Callable[[], Any]] = []
    first: BaseException | None = None
    try:
        yield lambda function, *args: todo.append(partial(function, *args))
    except BaseException as error:
        first = error
    while todo:
        try:
            todo.pop()()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first


@contextmanager
def patched(holder: Any, ours: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of a module or class that are others for the while."""
    with undoing() as undo:
        for name, value in ours.items():
            if name in vars(holder):
                undo(setattr, holder, name, vars(holder)[name])
            else:  # inherited
                undo(delattr, holder, name)
            setattr(holder, name, value)
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage: what makes many objects and no cycles is walked over again and again, and none is found."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
