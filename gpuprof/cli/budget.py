"""``gpuprof budget``: where the time of a step, or of one of its phases, went."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.pictures import check_picture


class By(StrEnum):
    """What a row is."""

    part = "part"
    klass = "class"
    module = "module"


class Denominator(StrEnum):
    """Peaks: `gpuprof.analysis.denominators.WORDS`."""

    given = "given"
    datasheet = "datasheet"
    clock = "clock"
    measured = "measured"


class Phase(StrEnum):
    """What has a time of its own in a step: `gpuprof.analysis.budget.phases_of`."""

    forward = "forward"
    encoding = "encode"  # strings have an encode of their own
    prefill = "prefill"
    decode = "decode"
    backward = "backward"
    optimizer = "optimizer"


def budget(
    run: o.RunArgument,
    phase: Annotated[
        Phase | None, typer.Option("--phase", help="Of one phase alone, instead of the whole step.", show_default=False)
    ] = None,
    by: Annotated[By, typer.Option("--by", help="What a row is; as text the parts come in any case.")] = By.part,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Modules below this depth are part of the one above; 0 is the root.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many rows, those that lost most time.")] = None,
    ceilings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Measured rates of this run's products: 'gpuprof ceilings --shapes RUN -o FILE'.",
            show_default=False, callback=o.readable(),
        ),
    ] = None,
    convention: Annotated[
        o.Convention | None, typer.Option("--convention", help="Instead of the run's own.", show_default=False)
    ] = None,
    denominator: Annotated[
        Denominator | None,
        typer.Option("--denominator", help="Peak of the ideal time, instead of the run's first.", show_default=False),
    ] = None,
    format: o.FormatOption = o.Format.text,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the waterfall: .png or .svg.", show_default=False)
    ] = None,
    output: o.TextFile = None,
) -> None:  # fmt: skip
    """Say where the time of a saved run's step, or of a phase of it, went, in parts that add up to it.

    And what to change first.
    """
    from gpuprof.cli.output import check_output, in_color, terminal_width

    check_output(output)
    check_output(chart)
    if chart is not None:
        check_picture(chart)
    from gpuprof.analysis.bounds import read_ceilings
    from gpuprof.analysis.budget import budget as budget_of
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.budget import budget_chart, render_budget
    from gpuprof.render.view import View

    loaded = load(run)
    found = budget_of(
        loaded,
        convention.value if convention else None,
        denominator.value if denominator else None,
        read_ceilings(ceilings, loaded) if ceilings else None,
        phase.value if phase else None,
    )
    view = View(by=by.value, depth=depth, top=top, width=terminal_width(), color=in_color() and output is None)
    text = render_budget(found, format.value, view)
    if chart is not None:
        budget_chart(found, chart)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
