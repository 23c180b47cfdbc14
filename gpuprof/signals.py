"""Ending in order when the system asks for it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def exit_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit with status 143, so that ``finally`` blocks run.

    Nsight Compute, the points of a sweep and the commands of ``ab`` run in process groups of their own: without this
    they outlive the gpuprof that was told to end, and go on using the GPU. Call it from the main thread.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def held_back() -> Iterator[None]:
    """An interrupt or SIGTERM that comes in the block acts at its end, unless it would end the process on the spot.

    Around the start of a child that is to be ended with this process: until it is known, nobody can end it.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal acts in others
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
