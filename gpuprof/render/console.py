"""Rich renderables as plain strings."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from gpuprof.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType


def to_text(renderable: RenderableType, view: View) -> str:
    """Text of a renderable at the view's width, with colour codes only if it asks for colour."""
    from rich.console import Console

    console = Console(
        # a height too: without one a dumb terminal has 80 columns, whatever is asked for
        file=io.StringIO(), width=view.width, height=25, force_terminal=view.color, no_color=not view.color,
        highlight=False, color_system="standard" if view.color else None,
    )  # fmt: skip
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "".join(f"{line.rstrip()}\n" for line in lines)
