"""``gpuprof report``: a saved run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o


def report(
    run: o.RunArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page, .html.", show_default=False)
    ],
    convention: Annotated[
        o.Convention | None,
        typer.Option("--convention", help="Instead of the run's own.", show_default=False),
    ] = None,
) -> None:
    """Make one self-contained page of a saved run: budget, modules, roofline, memory, kernels, provenance."""
    from gpuprof.cli.output import check_output
    from gpuprof.errors import GpuprofError

    if output.suffix.lower() not in (".html", ".htm"):
        raise GpuprofError(f"cannot write {output}: a report is a page, give a name that ends in .html")
    check_output(output)
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.page import check_page, render_page

    check_page()
    chosen = convention.value if convention else None
    command = f"gpuprof report {run.name} -o {output.name}" + (f" --convention {chosen}" if chosen else "")
    page = render_page(load(run), chosen, command)
    write_atomically(output, page)
    print(f"{output}: {len(page.encode()) / 1e6:.1f} MB, opens in any browser")
