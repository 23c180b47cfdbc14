"""``gpuprof backward``: does the backward cost twice the forward?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.pictures import check_picture


class By(StrEnum):
    """What a row is."""

    module = "module"
    klass = "class"


def backward(
    run: o.RunArgument,
    by: Annotated[By, typer.Option("--by", help="What a row is.")] = By.module,
    depth: Annotated[int | None, typer.Option(min=0, help="Modules down to this depth; 0 is the root.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Only so many rows, those furthest from twice their forward.")
    ] = None,
    format: o.FormatOption = o.Format.text,
    chart: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the ratios: .png or .svg.", show_default=False),
    ] = None,
    output: o.TextFile = None,
) -> None:
    """Hold 'the backward costs twice the forward' against a saved run, per module, and say why not."""
    from gpuprof.cli.output import check_output, in_color, terminal_width

    check_output(output)
    check_output(chart)
    if chart is not None:
        check_picture(chart)
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.backward import render_backward
    from gpuprof.render.backward_chart import backward_chart
    from gpuprof.render.view import View

    view = View(by=by.value, depth=depth, top=top, width=terminal_width(), color=in_color() and output is None)
    loaded = load(run)
    text = render_backward(loaded, format.value, view)
    if chart is not None:
        backward_chart(loaded, chart, view)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
