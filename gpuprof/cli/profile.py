"""``gpuprof profile``: measure a step of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.groups import Delivery, Measured, Timing, grouped
from gpuprof.cli.job import deliver as deliver_job
from gpuprof.cli.job import joined, own_device
from gpuprof.cli.like import Like
from gpuprof.cli.output import deliver, progress
from gpuprof.errors import GpuprofError
from gpuprof.parallel.launch import TIMEOUT_S

if TYPE_CHECKING:
    from gpuprof.run import Run

_MEASURING = "Measuring"


@grouped
def profile(
    model: o.ModelArgument,
    workload: Measured,
    timing: Timing,
    launches: Annotated[
        int | None,
        typer.Option(
            help="Repeat the timing pass in so many fresh processes, for tracking; by default in this one.",
            rich_help_panel=_MEASURING,
        ),
    ] = None,
    passes: Annotated[
        str,
        typer.Option(metavar="LIST", help="Which passes to run, separated by commas.", rich_help_panel=_MEASURING),
    ] = "count,time,trace,memory,telemetry",
    counters: Annotated[
        o.CounterLevel | None,
        typer.Option(
            help="Hardware counters (adds the pass counters): those of the step's dtypes, or all.",
            rich_help_panel=_MEASURING,
        ),
    ] = None,
    rank_timeout: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="Under torchrun: seconds after which a rank that does not come is given up.",
            rich_help_panel=_MEASURING,
        ),
    ] = TIMEOUT_S,
    *,
    like: Like = None,
    delivery: Delivery,
    store: o.Store = None,
) -> None:
    """Run a model's real forward and backward, and report time, FLOPs and MFU per module."""
    asked = o.plain(vars(workload))
    how = o.plain(vars(timing)) | {"passes": o.names(passes), "launches": launches, "rank_timeout": rank_timeout}
    if counters:
        how["passes"].append("counters")
        how["counter_level"] = counters.value
    output, quiet, verbose = delivery.output, delivery.quiet, delivery.verbose

    def check_options() -> None:
        from gpuprof.passes.options import check

        o.check_workload(model, asked)
        check(how["passes"], timing.warmup, timing.steps, timing.peak_tflops, launches=launches)

    def make() -> Run:
        from gpuprof.profiler import profile

        return profile(model, **asked, **how, progress=tell)

    with joined(workload.device, rank_timeout) as control:
        if control is None:
            check_options()
            with progress(quiet) as tell:
                deliver(make, output, quiet, verbose, store)
            return
        if launches is not None:
            raise GpuprofError("--launches repeats one process: leave it out under torchrun")
        asked["device"] = control.together("choosing the device", lambda: own_device(workload.device))
        control.together("reading the options", check_options)
        with progress(quiet or control.rank != 0) as tell:
            deliver_job(make, control, output, quiet, verbose, store)
