"""``gpuprof show``: a saved run, in another way."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gpuprof.cli import options as o


class Format(StrEnum):
    """How to show a run."""

    tree = "tree"
    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"
    calflops = "calflops"
    perfetto = "perfetto"


class By(StrEnum):
    """What a row is."""

    module = "module"
    klass = "class"
    op = "op"
    kernel = "kernel"
    phase = "phase"
    part = "part"
    communication = "communication"
    rank = "rank"
    convention = "convention"
    executed = "executed"


def show(
    run: o.RunArgument,
    format: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="By default a tree; a table if --by is not module."),
    ] = None,
    by: Annotated[By, typer.Option("--by", help="What a row is.")] = By.module,
    depth: Annotated[int | None, typer.Option(min=0, help="Modules down to this depth; 0 is the root.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many rows (not in a tree).")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Largest first (not in a tree).", show_default=False)
    ] = None,
    convention: Annotated[
        o.Convention | None,
        typer.Option("--convention", help="Instead of the run's own.", show_default=False),
    ] = None,
    output: o.TextFile = None,
) -> None:
    """Show a saved run as a tree or a table, for people or for machines."""
    from gpuprof.cli.output import check_output, in_color, terminal_width

    check_output(output)
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render import fitting, render
    from gpuprof.render.view import View

    view = View(
        by=by.value,
        depth=depth,
        top=top,
        sort=sort,
        convention=convention.value if convention else None,
        width=terminal_width(),
        color=in_color() and output is None,
        folder=run.parent,
    )
    chosen = fitting(format.value if format else None, view)
    text = render(load(run), chosen, view)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
