"""``gpuprof profile``: measure a step of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.job import deliver as deliver_job
from gpuprof.cli.job import joined, own_device
from gpuprof.cli.output import deliver, progress
from gpuprof.errors import GpuprofError
from gpuprof.parallel.launch import TIMEOUT_S

if TYPE_CHECKING:
    from gpuprof.record import Run

_MEASURING = "Measuring"


def profile(
    model: o.ModelArgument,
    mode: o.ModeOption = o.Mode.train,
    batch_size: o.BatchSize = None,
    seq_len: o.SeqLen = None,
    prompt_len: o.PromptLen = None,
    new_tokens: o.NewTokens = None,
    image_crops: o.ImageCrops = None,
    dtype: o.Dtype = None,
    attention: o.AttentionOption = None,
    cache: o.CacheOption = None,
    device: o.Device = None,
    checkpointing: o.CheckpointingOption = o.Checkpointing.none,
    optimizer: o.OptimizerOption = o.Optimizer.none,
    freeze: o.Freeze = None,
    parallel: o.ParallelOption = o.Parallel.none,
    compile: o.CompileOption = o.Compile.none,
    seed: o.Seed = 0,
    trust_remote_code: o.TrustRemoteCode = False,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Steps before the clock counts; by default 5 on CUDA, 1 on a CPU.",
            rich_help_panel=_MEASURING,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Timed steps; by default 20 on CUDA, 3 on a CPU.", rich_help_panel=_MEASURING),
    ] = None,
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
    peak_tflops: o.PeakTflops = None,
    convention: o.ConventionOption = o.Convention.causal,
    rank_timeout: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="Under torchrun: seconds after which a rank that does not come is given up.",
            rich_help_panel=_MEASURING,
        ),
    ] = TIMEOUT_S,
    output: o.OutputFile = None,
    store: o.Store = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Run a model's real forward and backward, and report time, FLOPs and MFU per module."""
    chosen = o.plain(locals())
    for name in ("output", "store", "quiet", "verbose", "counters"):
        del chosen[name]
    chosen["passes"] = o.names(passes)
    if counters:
        chosen["passes"].append("counters")
        chosen["counter_level"] = counters.value

    def check_options() -> None:
        from gpuprof.passes.options import check

        o.check_workload(model, chosen)
        check(chosen["passes"], warmup, steps, peak_tflops, launches=launches)

    def make() -> Run:
        from gpuprof.profiler import profile

        return profile(**chosen, progress=tell)

    with joined(device, rank_timeout) as control:
        if control is None:
            check_options()
            with progress(quiet) as tell:
                deliver(make, output, quiet, verbose, store)
            return
        if launches is not None:
            raise GpuprofError("--launches repeats one process: leave it out under torchrun")
        chosen["device"] = control.together("choosing the device", lambda: own_device(device))
        control.together("reading the options", check_options)
        with progress(quiet or control.rank != 0) as tell:
            deliver_job(make, control, output, quiet, verbose, store)
