"""``gpuprof presets``: the models that come by name."""

from __future__ import annotations


def presets() -> None:
    """List the models that come by name, with random weights, and their parameter counts."""
    from rich.console import Console
    from rich.table import Table

    from gpuprof.cli.output import terminal_width
    from gpuprof.workload.presets import load_preset, preset_names

    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("name", no_wrap=True)
    grid.add_column("parameters", justify="right", no_wrap=True)
    grid.add_column("architecture", no_wrap=True)
    grid.add_column("description")
    for name in preset_names():
        preset = load_preset(name)
        grid.add_row(name, format(preset["parameters"], ","), preset["architecture"], preset["description"])
    console = Console(width=terminal_width(), highlight=False)  # not gpuprof.render's, which loads pandas
    with console.capture() as printed:
        console.print(grid)
    for line in printed.get().splitlines():
        print(line.rstrip())
