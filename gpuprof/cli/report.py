"""``gpuprof report``: a saved run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o


def _existing(runs: list[Path]) -> list[Path]:
    for run in runs:
        o.existing(run)
    return runs


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN [HEAD]",
            help="A run saved with -o, or a training's folder; with another, what changed from the one to the other.",
            show_default=False,
            callback=_existing,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page, .html.", show_default=False)
    ],
    convention: Annotated[
        o.Convention | None,
        typer.Option("--convention", help="Instead of the run's own.", show_default=False),
    ] = None,
) -> None:
    """Make one self-contained page of a saved run: budget, modules, roofline, memory; of two, what changed."""
    from gpuprof.cli.output import check_output
    from gpuprof.errors import GpuprofError

    if len(runs) > 2:
        raise GpuprofError(f"a page is of one run or of two, not of {len(runs)}: 'gpuprof history' shows many")
    if output.suffix.lower() not in (".html", ".htm"):
        raise GpuprofError(f"cannot write {output}: a report is a page, give a name that ends in .html")
    check_output(output)
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.page import check_page, render_page
    from gpuprof.render.page_pair import render_pair

    check_page()
    chosen = convention.value if convention else None
    command = f"gpuprof report {' '.join(run.name for run in runs)} -o {output.name}"
    command += f" --convention {chosen}" if chosen else ""
    base, *head = [load(run) for run in runs]
    page = render_pair(base, head[0], chosen, command) if head else render_page(base, chosen, command)
    write_atomically(output, page)
    print(f"{output}: {len(page.encode()) / 1e6:.1f} MB, opens in any browser")
