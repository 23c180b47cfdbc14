"""``gpuprof memory``: what took the memory of a step, and what fits."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.pictures import check_picture


class Fit(StrEnum):
    """What the largest is wanted of."""

    batch = "batch"
    seq = "seq"


def memory(
    run: o.RunArgument,
    fit: Annotated[Fit | None, typer.Option("--fit", help="Predict the largest that fits.", show_default=False)] = None,
    room: Annotated[
        float | None,
        typer.Option("--memory", metavar="GIB", help="With --fit: instead of all of the device's.", show_default=False),
    ] = None,
    batch_size: o.BatchSize = None,
    seq_len: o.SeqLen = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="For predictions, where the run was of a directory or file.py:function.",
            show_default=False,
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Modules down to this depth; 0 is the root.")] = None,
    format: o.FormatOption = o.Format.text,
    chart: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the step over time: .png or .svg.", show_default=False),
    ] = None,
    output: o.TextFile = None,
) -> None:  # fmt: skip
    """Say what took the memory of a saved run's step, by phase and module, and what another size would take.

    With --batch-size or --seq-len alone the step of that size is predicted, with --fit the largest that fits.
    """
    from gpuprof.cli.output import check_output, in_color, terminal_width
    from gpuprof.errors import GpuprofError

    check_output(output)
    check_output(chart)
    if chart is not None:
        check_picture(chart)
    if room is not None and fit is None:
        raise GpuprofError("--memory is the room for --fit batch or --fit seq: give one of these too")
    if room is not None and not 0 < room < math.inf:
        raise GpuprofError(f"--memory must be above 0 and finite, in GiB, not {room}")
    for name, size in (("--batch-size", batch_size), ("--seq-len", seq_len)):
        if size is not None and size < 1:
            raise GpuprofError(f"{name} must be at least 1, not {size}")
    fixed = {Fit.batch: ("--batch-size", batch_size), Fit.seq: ("--seq-len", seq_len)}
    if fit is not None and fixed[fit][1] is not None:
        raise GpuprofError(f"--fit {fit.value} looks for {fixed[fit][0]}: leave that out")
    from gpuprof.record import load, write_atomically
    from gpuprof.render.memory import memory_chart, render_memory
    from gpuprof.render.view import View

    loaded, found = load(run), None
    if fit is not None or batch_size is not None or seq_len is not None:
        from gpuprof.fit import What, forecast  # loads torch, as nothing else here does

        what: What | None = {None: None, Fit.batch: "batch_size", Fit.seq: "seq_len"}[fit]
        capacity = None if room is None else int(room * (1 << 30))
        found = forecast(loaded, what, capacity=capacity, batch_size=batch_size, seq_len=seq_len, model=model)
    view = View(depth=depth, width=terminal_width(), color=in_color() and output is None)
    text = render_memory(loaded, format.value, view, found)
    if chart is not None:
        memory_chart(loaded, chart)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
