"""Ending in order when the system asks for it."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit with status 143, so that ``finally`` blocks run.

    Nsight Compute, the points of a sweep and the commands of ``ab`` run in process groups of their own: without this
    they outlive the gpuprof that was told to end, and go on using the GPU. Call it from the main thread.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
