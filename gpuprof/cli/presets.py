"""``gpuprof presets``: the models that come by name."""

from __future__ import annotations


def presets() -> None:
    """List the models that come by name, with random weights, and their parameter counts."""
    from rich.table import Table

    from gpuprof.cli.output import in_color, terminal_width
    from gpuprof.render.console import to_text
    from gpuprof.render.view import View
    from gpuprof.workload.presets import load_preset, preset_names

    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("name", no_wrap=True)
    grid.add_column("parameters", justify="right", no_wrap=True)
    grid.add_column("architecture", no_wrap=True)
    grid.add_column("description")
    for name in preset_names():
        preset = load_preset(name)
        grid.add_row(name, format(preset["parameters"], ","), preset["architecture"], preset["description"])
    print(to_text(grid, View(width=terminal_width(), color=in_color())), end="")
