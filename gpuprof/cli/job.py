"""A verb in several processes that torchrun or the like started: one report, a file of each rank, and the job's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpuprof.cli.output import check_output, check_store, keep, print_outcomes, print_report
from gpuprof.errors import GpuprofError
from gpuprof.parallel import launch

if TYPE_CHECKING:
    from gpuprof.parallel.control import Control
    from gpuprof.record import Record
    from gpuprof.run import Run


@contextmanager
def joined(device: str | None, rank_timeout: float) -> Iterator[Control | None]:
    """The control channel of the job; None of a process that was started alone."""
    if launch.world_size() == 1:
        yield None
        return
    from gpuprof.parallel.join import started

    with started(device, rank_timeout) as control:
        yield control


def own_device(device: str | None) -> str | None:
    """The device of this rank: of the GPUs of its host the one of its number.

    Raises:
        GpuprofError: another GPU was asked for, which ranks would share: their collectives fail or hang.
    """
    import torch

    own = f"cuda:{launch.local_rank()}"
    if device is not None and device.startswith("cuda:") and device != own:
        raise GpuprofError(f"--device {device}: by its LOCAL_RANK it has {own}: give --device cuda, or leave it out")
    return own if torch.cuda.is_available() and device in (None, "cuda") else device


def rank_file(output: Path, rank: int) -> Path:
    """The file of one rank beside that of the job: ``run.rank3.json`` beside ``run.json``."""
    end = "".join(output.suffixes[-2:]) if output.suffix == ".gz" else output.suffix
    return output.with_name(f"{output.name.removesuffix(end)}.rank{rank}{end}")


def deliver(
    make: Callable[[], Run], control: Control, output: Path | None, quiet: bool, verbose: bool, store: str | None
) -> None:
    """Make the run of this rank, save it, and on rank 0 save, store and print what the job is.

    Raises:
        GpuprofError: it failed, on one rank or on all; with the same words on every rank.
    """
    control.together("checking where to write", lambda: _check(control, output, store))
    run = make()
    from gpuprof.job import gather
    from gpuprof.job_part import summed

    file = "" if output is None else rank_file(output, control.rank).name
    run = summed(run, file)
    try:
        job = gather(run, file)
    except GpuprofError:
        if control.lost:
            _save_what_there_is(run, control, output)
        raise
    if job is not None and not quiet:
        print_report(job)
    if output is not None:
        control.together("saving", lambda: run.save(rank_file(output, control.rank)))
        control.together("saving the job", lambda: job.save(output) if job is not None else None)
    if store is not None:
        control.together("storing", lambda: keep(job, store, quiet) if job is not None else None)
    if job is None:
        return
    if output is not None and not quiet:
        print(f"\nSaved to {output}, with a file of each rank beside it: look again with 'gpuprof show {output}'")
    if verbose:
        print_outcomes(run)
    if quiet:
        for line in job.warnings:
            print(f"gpuprof: {line}", file=sys.stderr)


def _check(control: Control, output: Path | None, store: str | None) -> None:
    check_output(output)
    if store is not None and control.rank == 0:
        check_store(store)


def _save_what_there_is(run: Record, control: Control, output: Path | None) -> None:
    """A job that has lost a rank has no figures of its own; this rank's passes before that are kept.

    Raises:
        GpuprofError: always: which rank is lost.
    """
    lost, kept = control.who_is_gone(), ""
    if output is not None:
        run.save(rank_file(output, control.rank))
        kept = f"; what the others measured until then is in {rank_file(output, control.rank)} and the like"
    raise GpuprofError(f"{lost}{kept}")
