"""``gpuprof import``: a recorded trace, or a table of Nsight Compute, as a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.output import deliver, progress
from gpuprof.errors import GpuprofError

if TYPE_CHECKING:
    from gpuprof.record import Record

_READING = "Reading"


def _step(text: str | None) -> str | None:
    if text is not None and text != "all" and not text.isdecimal():
        raise GpuprofError(f"--step {text}: give the number of a step, or all")
    return text


def _files(paths: list[Path]) -> list[Path]:
    for path in paths:
        o.readable()(path)
    return paths


def import_(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...",
            help="A trace of torch.profiler (.json or .json.gz), one of each rank of a job, or a raw-page table of "
            "Nsight Compute (.csv).",
            show_default=False,
            callback=_files,
        ),
    ],
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Number of the step to take, or all: the whole window as one; by default that of median duration.",
            show_default=False,
            rich_help_panel=_READING,
            callback=_step,
        ),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The device, as torch names it, where the file does not.", rich_help_panel=_READING
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What to call the workload; by default the class of the outermost module, else the file.",
            rich_help_panel=_READING,
        ),
    ] = None,
    peak_tflops: o.PeakTflops = None,
    convention: o.ConventionOption = o.Convention.causal,
    output: o.OutputFile = None,
    store: o.Store = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Make a run of a recorded trace of any job: kernels, operators, modules, phases, FLOPs and MFU, without torch."""
    if output is not None and output.exists() and any(map(output.samefile, traces)):
        raise GpuprofError(f"cannot write {output}: it is the trace itself; save the run under another name")

    def make() -> Record:
        from gpuprof.imported import read_trace

        return read_trace(
            traces,
            step=int(step) if step and step != "all" else step,  # type: ignore[arg-type]
            convention=convention.value,
            peak_tflops=peak_tflops,
            device_name=device_name,
            name=name,
            progress=tell,
        )

    with progress(quiet, of_files=True) as tell:
        deliver(make, output, quiet, verbose, store)
