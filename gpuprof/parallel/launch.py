"""What a launcher such as torchrun says of this process, by the environment. Needs no torch."""

from __future__ import annotations

import os

from gpuprof.errors import GpuprofError


def world_size() -> int:
    """Processes of the job that this one was started as a part of; 1 of one that stands alone."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process in its job."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Number of this process on its host: of the GPU that it takes."""
    return _number("LOCAL_RANK", 0)


gone: set[int] = set()
"""Ranks of the job that have ended before their time, as far as this process knows."""


def speaks() -> bool:
    """Whether this process says what all have to say: the first that is still there."""
    return rank() == min(set(range(world_size())) - gone, default=0)


def refuse_job(what: str, instead: str = "start it without torchrun") -> None:
    """End what one process does alone, where several were started.

    Raises:
        GpuprofError: this is a job of several processes.
    """
    if world_size() > 1:
        raise GpuprofError(f"{what} is the work of one process: {instead}")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise GpuprofError(f"{name}={text} in the environment is no number: a launcher such as torchrun sets it")
    return int(text) if text else default
