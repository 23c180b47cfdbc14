"""``gpuprof roofline``: rates against arithmetic intensity, under the ceilings of the device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.budget import Denominator, Phase


class By(StrEnum):
    """What a point is: `gpuprof.analysis.roofline.BY`."""

    op = "op"
    klass = "class"
    module = "module"
    kernel = "kernel"


def roofline(
    run: o.RunArgument,
    by: Annotated[By, typer.Option("--by", help="What a point is.")] = By.op,
    phase: Annotated[
        Phase | None, typer.Option("--phase", help="Points of this phase alone.", show_default=False)
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many, those with most time.")] = None,
    denominator: Annotated[
        Denominator | None,
        typer.Option(
            "--denominator", help="Ceilings that the table is held against, instead of the run's first.",
            show_default=False,
        ),
    ] = None,
    format: o.FormatOption = o.Format.text,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE",
            help="Draw the picture here if it ends in .png or .svg; else write the table here.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Hold a saved run's rates against what memory and processor allow at their arithmetic intensity."""
    from gpuprof.cli.output import check_output, in_color, terminal_width

    check_output(output)
    from gpuprof.files import write_atomically
    from gpuprof.pictures import SUFFIXES, check_picture
    from gpuprof.record import load
    from gpuprof.render.roofline import render_roofline
    from gpuprof.render.roofline_chart import roofline_chart
    from gpuprof.render.view import View

    picture = output if output is not None and output.suffix.lower() in SUFFIXES else None
    if picture is not None:
        check_picture(picture)
    table = output if picture is None else None
    of_phase = phase.value if phase else None
    view = View(by=by.value, phase=of_phase, top=top, width=terminal_width(), color=in_color() and table is None)
    loaded, chosen = load(run), denominator.value if denominator else None
    text = render_roofline(loaded, format.value, view, chosen)
    if picture is not None:
        roofline_chart(loaded, picture, view, chosen)
    if table is None:
        print(text, end="")
    else:
        write_atomically(table, text)
