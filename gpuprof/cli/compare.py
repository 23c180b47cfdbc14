"""``gpuprof compare``: two runs beside one another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.cli.check import AllowDifferent


class By(StrEnum):
    """What a row of what moved is: `gpuprof.analysis.comparison.KEYS`."""

    module = "module"
    layer = "layer"
    klass = "class"
    op = "op"
    kernel = "kernel"


def compare(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="A run saved with -o.", show_default=False, callback=o.existing)
    ],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Another.", show_default=False, callback=o.existing)],
    by: Annotated[
        By, typer.Option("--by", help="What a row of what moved is; a layer is a module of every layer of a stack.")
    ] = By.layer,
    allow_different: AllowDifferent = None,
    format: o.FormatOption = o.Format.text,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many rows of what moved; 10 for people.")] = None,
    output: o.TextFile = None,
) -> None:
    """Set two runs of one workload beside one another, and say whose kernels moved: new, gone, slower, faster."""
    from gpuprof.cli.output import check_output, in_color, terminal_width

    check_output(output)
    from gpuprof.analysis.check import check
    from gpuprof.record import load, write_atomically
    from gpuprof.render.regression import COMPARISONS
    from gpuprof.render.view import View

    found = check(load(head), [load(base)], allowed=allow_different or (), by=(by.value,))
    text = COMPARISONS[format.value](found, View(top=top, width=terminal_width(), color=in_color() and output is None))
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
