"""A process that is gpuprof and nothing else: how it starts, and how it ends. In a process of others none of this acts.

Importing torch and transformers makes half a million objects, all of which stay. Python's collector walks over them
again and again while they come, and at the end the interpreter takes every module apart, only for the system to take
the memory back as a whole: each takes almost half as long as the imports themselves.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

_YOUNG = 100_000
"""Objects made since the last collection, at which there is another while a process starts."""

_WATCHERS = ("LD_PRELOAD", "CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH")
"""Variables by which a tool such as Nsight Systems puts itself into a process, at whose end it writes what it has."""

_usual: tuple[int, int, int] | None = None
_in_order = False


def run(main: Callable[[], Any]) -> NoReturn:
    """Be the process of a program: start without looking for garbage, run it, and end with the status that it gives.

    Once all that was to be done at the exit is done, the system takes back what is left. Where more than gpuprof may
    have something left to do, the interpreter ends in its own order.

    Args:
        main: returns the exit status or raises SystemExit, as `sys.exit` takes it.
    """
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(_YOUNG)
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    if isinstance(status, int | None) and not (_in_order or _watched()):
        _end(status or 0)
    gc.unfreeze()  # all that there is is taken apart
    sys.exit(status)


def settle() -> None:
    """What there is now stays: from here on garbage is looked for as in any program, among what is made hereafter."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        _usual = None


def let_others_in() -> None:
    """Code of others is to run here: collect its garbage as it expects, and let what it leaves open be closed."""
    global _in_order
    _in_order = True
    settle()


def _watched() -> bool:
    """Whether somebody looks on from within: a profiler or debugger that runs this, or a tool of the system."""
    frame, callers = sys._getframe(), list[str]()
    while frame.f_back is not None:
        frame = frame.f_back
        callers.append(frame.f_code.co_name)
    started_by = callers[callers.index("<module>") + 1 :] if "<module>" in callers else callers
    return (
        not set(started_by) <= {"_run_code", "_run_module_as_main"}  # of python -m
        or bool(sys.flags.inspect or sys.flags.dev_mode)
        or any(os.environ.get(name) for name in _WATCHERS)
    )


def _end(status: int) -> None:
    """End as the interpreter would, without taking the modules apart; return where the output cannot be written."""
    threading._shutdown()  # type: ignore[attr-defined]  # it waits for threads
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # a stream that is closed from the start is None
            stream.flush()
    except (OSError, ValueError):  # the interpreter knows what to say of it
        return
    os._exit(status)
