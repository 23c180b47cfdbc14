"""What a launcher such as torchrun says of this process, by the environment. Needs no torch."""

from __future__ import annotations

import os

from gpuprof.errors import GpuprofError

TIMEOUT_S = 300.0
"""Seconds that a rank is waited for, unless told otherwise."""


def world_size() -> int:
    """Processes of the job that this one was started as a part of; 1 of one that stands alone."""
    return _number("WORLD_SIZE", least=1, default=1)


def rank() -> int:
    """Number of this process in its job."""
    number = _number("RANK")
    if number >= world_size():
        raise GpuprofError(f"RANK={number} in the environment is too high: {world_size()} processes are counted from 0")
    return number


def local_rank() -> int:
    """Number of this process on its host: of the GPU that it takes."""
    return _number("LOCAL_RANK")


gone: set[int] = set()
"""Ranks of the job that have ended before their time, as far as this process knows."""


def speaks() -> bool:
    """Whether this process says what all have to say: the first that is still there."""
    try:
        return world_size() == 1 or rank() == min(set(range(world_size())) - gone, default=0)
    except GpuprofError:  # nobody can tell which this one is, and what is wrong has to be said
        return True


def require_one_process(what: str, instead: str = "start it without torchrun") -> None:
    """End what one process does alone, where several were started.

    Raises:
        GpuprofError: this is a job of several processes.
    """
    if world_size() > 1:
        raise GpuprofError(f"{what} is the work of one process: {instead}")


def _number(name: str, least: int = 0, default: int = 0) -> int:
    text = os.environ.get(name, "")
    if text and not (text.isdecimal() and int(text) >= least):
        raise GpuprofError(
            f"{name}={text} in the environment is no number from {least} on: a launcher such as torchrun sets it; "
            "unset it to work in one process"
        )
    return int(text) if text else default
