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
    phase = "phase"
    op = "op"
    kernel = "kernel"
    op_kernel = "op-kernel"


def compare(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="A run saved with -o.", show_default=False, callback=o.existing)
    ],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Another.", show_default=False, callback=o.existing)],
    by: Annotated[
        By | None,
        typer.Option(
            "--by",
            show_default=False,
            help="What a row of what moved is: by default a layer, a module of every layer of a stack; of recordings "
            "and of two devices an operator, and then a kernel of one.",
        ),
    ] = None,
    allow_different: AllowDifferent = None,
    format: o.FormatOption = o.Format.text,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many rows of what moved; 10 for people.")] = None,
    output: o.TextFile = None,
) -> None:
    """Set two runs beside one another, also of two devices, and say whose kernels moved: new, gone, slower, faster."""
    from gpuprof.cli.output import check_output, in_color, terminal_width

    check_output(output)
    from gpuprof.analysis.check import compare as compare_runs
    from gpuprof.files import write_atomically
    from gpuprof.record import load
    from gpuprof.render.comparison import COMPARISONS
    from gpuprof.render.view import View

    found = compare_runs(load(base), load(head), (by.value,) if by else (), allowed=allow_different or ())
    text = COMPARISONS[format.value](found, View(top=top, width=terminal_width(), color=in_color() and output is None))
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
