"""Compiling once more what is compiled, beside the code that is there, and dropping it again.

Dynamo keeps compiled code by function and backend. So a call that is given another backend for the while finds no code
of that backend and is compiled by it, with the same settings; what was there stays as it was.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch._dynamo
from torch._C._dynamo import eval_frame as cached
from torch._dynamo import convert_frame, eval_frame
from torch._dynamo.guards import DeletedGuardManagerWrapper

from gpuprof.undo import patched

Backend = Callable[..., Any]
"""Given a graph of Dynamo's and its inputs, returns what runs it."""

_LIMITS = {"recompile_limit": 1 << 20, "accumulated_recompile_limit": 1 << 20}
"""Those that are there count too, and where the limit is reached Dynamo goes on without compiling."""


class _Nobody:
    """Of this object is every dropped entry, so that none is counted when another one is compiled (see `_drop`)."""


_NOBODY = _Nobody()


@contextmanager
def compiled_afresh(
    backend_for: Callable[[Backend], Backend | None], traced: Callable[[Any], None] = lambda frame: None
) -> Iterator[None]:
    """Whatever is compiled and called in here is compiled anew, once, and nothing of it is left afterwards.

    Args:
        backend_for: given the backend that somebody chose, a new one to compile with; or None, to leave all as it is.
        traced: called with each frame (of Dynamo's, with its ``f_locals``) that is about to be compiled.
    """
    plain = eval_frame._callback_from_stance
    ours: dict[Any, Any] = {}
    backends: list[tuple[Backend, Backend | None]] = []
    codes: dict[CodeType, None] = {}

    def callback_for(chosen: Any) -> Any:
        callback: Any = plain(chosen)
        if not isinstance(callback, convert_frame.CatchErrorsWrapper):  # nothing is compiled, or already by ours
            return callback
        if callback not in ours:
            backend = in_place_of(eval_frame.innermost_backend(callback))
            ours[callback] = callback
            if backend is not None:
                plain_one: Any = callback._torchdynamo_orig_backend
                clone = plain_one._clone_with_backend(backend)
                ours[callback] = _Noting(convert_frame.catch_errors_wrapper(clone, callback.hooks), note)
        return ours[callback]

    def in_place_of(chosen: Backend) -> Backend | None:
        for backend, one in backends:
            if backend == chosen:  # code of one is taken for the other: equal blocks are compiled once
                return one
        backends.append((chosen, backend_for(chosen)))
        return backends[-1][1]

    def note(frame: Any) -> None:
        codes[frame.f_code] = None
        traced(frame)

    try:
        with patched(eval_frame, {"_callback_from_stance": callback_for}), torch._dynamo.config.patch(_LIMITS):
            yield
    finally:
        for code in codes:
            _drop(code, [backend for _, backend in backends if backend is not None])


class _Noting:
    """A callback of Dynamo's that tells of each frame first."""

    def __init__(self, callback: Any, note: Callable[[Any], None]) -> None:
        self._torchdynamo_orig_backend = callback  # by which Dynamo finds the backend
        self._note = note

    def __call__(self, frame: Any, *rest: Any) -> Any:
        self._note(frame)
        return self._torchdynamo_orig_backend(frame, *rest)


def _drop(code: CodeType, backends: list[Backend]) -> None:
    """Take the code that these backends compiled for a function out of Dynamo's cache.

    What stays of an entry is a shell that nothing matches. Dynamo (2.13) would count it among those that the limit of
    recompilations is for, unless it is of an object that the frame does not have.
    """
    entries = cached._debug_get_cache_entry_list(code)
    dropped = [entry for entry in entries if any(entry.backend is backend for backend in backends)]
    if dropped and len(dropped) == len(entries):
        cached.reset_code(code)
        return
    for entry in dropped:
        shell = DeletedGuardManagerWrapper("dropped by gpuprof")
        shell.id_matched_objs = {"": weakref.ref(_NOBODY)}
        state: Any = entry.guard_manager.extra_state
        state.invalidate(entry, shell)
