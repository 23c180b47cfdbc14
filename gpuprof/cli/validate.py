"""``gpuprof validate``: a report of another counter, held against the count."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.groups import Reported, grouped


class Format(StrEnum):
    """How to show the verdicts."""

    tree = "tree"
    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"
    html = "html"


@grouped
def validate(
    report: Annotated[
        Path,
        typer.Argument(
            metavar="REPORT",
            help="A report of calflops, DeepSpeed, ptflops, mmcv, fvcore or mmengine, FlopCounterMode, torchinfo or "
            "torch-summary, Lightning, torchtnt or thop; a log that it is in will do.",
            show_default=False,
            callback=o.readable("report "),
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="What the report is of, as for 'gpuprof count'.", show_default=False),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Instead of MODEL: a saved run.", show_default=False)
    ] = None,
    *,
    workload: Reported,
    format: Annotated[Format, typer.Option("--format", "-f", help="For people or for machines.")] = Format.tree,
    output: o.TextFile = None,
) -> None:
    """Say of every figure of a report whether it is right, and why not. Status 1 if one is unexplained."""
    asked = o.plain(vars(workload))
    from gpuprof.cli.output import check_output, in_color, terminal_width
    from gpuprof.errors import GpuprofError

    check_output(output)
    if (model is None) == (run is None):
        raise GpuprofError("say what the report is of: MODEL with its options, or --run RUN, and not both")
    o.existing(run)
    if model is not None:
        o.check_workload(model, asked, weightless=True)
    from gpuprof.analysis.validation import validate as hold
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.validation import render_validation
    from gpuprof.render.view import View
    from gpuprof.reports import read_report

    claims = read_report(report)
    if model is None:
        assert run is not None
        found = load(run)
    else:
        from gpuprof.profiler import count

        found = count(model, **asked)
    validation = hold(claims, found)
    view = View(width=terminal_width(), color=in_color() and output is None)
    text = render_validation(validation, format.value, view)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
    if validation.lines["verdict"].isin(["unexplained", "unmatched"]).any():
        raise typer.Exit(1)
