"""``gpuprof memory``: what took the memory of a step, and what fits."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.groups import Sizes, grouped
from gpuprof.pictures import check_picture
from gpuprof.workload.options import flag

if TYPE_CHECKING:
    from gpuprof.analysis.forecast import What


class Fit(StrEnum):
    """What the largest is wanted of."""

    batch = "batch"
    seq = "seq"
    prompt = "prompt"
    new_tokens = "new-tokens"


_WHAT: dict[Fit, What] = {
    Fit.batch: "batch_size", Fit.seq: "seq_len", Fit.prompt: "prompt_len", Fit.new_tokens: "new_tokens",
}  # fmt: skip


@grouped
def memory(
    run: o.RunArgument,
    fit: Annotated[Fit | None, typer.Option("--fit", help="Predict the largest that fits.", show_default=False)] = None,
    room: Annotated[
        float | None,
        typer.Option("--memory", metavar="GIB", help="With --fit: instead of all of the device's.", show_default=False),
    ] = None,
    *,
    of: Sizes,
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

    With a size alone the step of that size is predicted, with --fit the largest that fits.
    """
    from gpuprof.cli.output import check_output, in_color, terminal_width
    from gpuprof.errors import GpuprofError

    check_output(output)
    check_output(chart)
    if chart is not None:
        check_picture(chart)
    if room is not None and fit is None:
        raise GpuprofError("--memory is the room for --fit: say of what the largest is wanted")
    if room is not None and not 0 < room < math.inf:
        raise GpuprofError(f"--memory must be above 0 and finite, in GiB, not {room}")
    sizes = vars(of)
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise GpuprofError(f"{flag(name)} must be at least 1, not {size}")
    if fit is not None and sizes[_WHAT[fit]] is not None:
        raise GpuprofError(f"--fit {fit.value} looks for {flag(_WHAT[fit])}: leave that out")
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.memory import render_memory
    from gpuprof.render.memory_chart import memory_chart
    from gpuprof.render.view import View

    loaded, found = load(run), None
    if fit is not None or any(size is not None for size in sizes.values()):
        from gpuprof.fit import forecast  # loads torch, as nothing else here does

        capacity = None if room is None else int(room * (1 << 30))
        found = forecast(loaded, None if fit is None else _WHAT[fit], capacity=capacity, model=model, **sizes)
    view = View(depth=depth, width=terminal_width(), color=in_color() and output is None)
    text = render_memory(loaded, format.value, view, found)
    if chart is not None:
        memory_chart(loaded, chart)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
