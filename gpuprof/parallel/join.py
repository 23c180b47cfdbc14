"""Joining the processes of a job: the group of a script that has one, or on the command line one of gpuprof's own."""

from __future__ import annotations

import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gpuprof.errors import GpuprofError, first_line
from gpuprof.parallel import launch
from gpuprof.parallel.control import Control
from gpuprof.parallel.launch import TIMEOUT_S

if dist.is_available():  # a torch can be built without
    # defaults of its functions are the default group that is there when it is loaded: what holds a group keeps gloo's
    # connections open after the group has been left, and other ranks waiting (torch 2.13); torch.compile loads it
    import torch.distributed.nn.functional

_now: Control | None = None  # of this process
_group: Any = None  # the default group that it was made for, weakly: what else holds it keeps its connections open
_number = 0  # of those so far: the same on every rank


def join(timeout_s: float = TIMEOUT_S) -> Control:
    """The control channel of the job that this process is one of; of a process that stands alone, one to itself.

    A default group that exists is joined; none is made. Every rank has to call it.

    Args:
        timeout_s: how long a rank is waited for.

    Raises:
        GpuprofError: a rank did not come.
    """
    global _now, _group, _number
    there = dist.is_available() and dist.is_initialized()
    if _now is not None and (_group() is dist.group.WORLD if there else _now.left):
        return _now
    if not there or dist.get_world_size() == 1 or dist.get_backend() == "fake":
        return Control()
    _number += 1
    store = dist.PrefixStore(f"gpuprof/{_number}", dist.distributed_c10d._get_default_store())
    control = Control(store, dist.get_rank(), dist.get_world_size(), timeout_s)
    control.meet()
    if control.lost:
        rank, why = next(iter(control.lost.items()))
        raise GpuprofError(f"rank {rank} is lost: {why}")
    _now, _group = control, weakref.ref(dist.group.WORLD)
    return control


@contextmanager
def started(device: str | None, timeout_s: float = TIMEOUT_S) -> Iterator[Control]:
    """The job that a launcher started this process as a part of, its default group made and at the end destroyed.

    Args:
        device: as the user gave it; on CUDA the process takes the GPU of its number on the host.
        timeout_s: how long a rank is waited for, in the group's own collectives too.

    Raises:
        GpuprofError: the launcher did not say what is needed, there are too few GPUs, or a rank did not come.
    """
    if launch.world_size() == 1:
        yield Control()
        return
    cuda = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    if cuda:
        if launch.local_rank() >= torch.cuda.device_count():
            raise GpuprofError(
                f"rank {launch.rank()} is process {launch.local_rank()} of its host, which has "
                f"{torch.cuda.device_count()} GPUs: start no more processes on a host than it has GPUs"
            )
        torch.cuda.set_device(launch.local_rank())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except Exception as error:  # no address, no port, no such backend, a rank that never came
        raise GpuprofError(
            f"rank {launch.rank()} of {launch.world_size()} could not join its job: {first_line(error)}: start all "
            "ranks with torchrun, or unset WORLD_SIZE to work in one process"
        ) from error
    control = join(timeout_s)
    # a launcher ends all where one rank has died: what was measured until then is still to be saved
    signal.signal(
        signal.SIGTERM, lambda number, frame: None if control.measured and control.ended() else sys.exit(128 + number)
    )
    try:
        yield control
        _part(control)
    except GpuprofError as error:
        _part(control, str(error))
        raise
    except SystemExit as end:
        if gone := control.who_is_gone():
            raise GpuprofError(gone) from end
        raise
    finally:
        global _now
        _now = None
        if dist.is_initialized():
            # never waits: others may be gone
            dist.distributed_c10d._abort_process_group() if control.lost else dist.destroy_process_group()


def _part(control: Control, why: str = "") -> None:
    """End in order: a launcher that sees one rank end with an error must not end those that still have to say so."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control.part(why)
