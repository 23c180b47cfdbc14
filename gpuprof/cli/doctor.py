"""``gpuprof doctor``: what this machine can measure, and what to do about what it cannot."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli.job import joined
from gpuprof.parallel.launch import speaks

if TYPE_CHECKING:
    from gpuprof.hardware.checkup import Finding


_RANK_TIMEOUT_S = 60.0


class Format(enum.StrEnum):
    """How the findings are printed."""

    text = "text"
    json = "json"


def doctor(
    format: Annotated[Format, typer.Option("--format", help="How to print the findings.")] = Format.text,
) -> None:
    """Say what this machine can measure, and what to do about what it cannot.

    Nothing is changed. Exits with 1 where not even a step can be counted and timed. Under torchrun every rank is
    looked at, and one that differs from the others is named.
    """
    from gpuprof.hardware import checkup

    findings = checkup.examine()
    usable = checkup.works(findings)
    with joined(None, _RANK_TIMEOUT_S) as control:
        if control is not None:
            from gpuprof.parallel.checkup import examine_ranks

            findings += examine_ranks(control, usable)
            usable &= all(finding.ok for finding in findings if finding.group == "ranks")
    if not speaks():
        raise typer.Exit(0 if usable else 1)
    if format is Format.json:
        import dataclasses
        import json

        report = {"works": usable, "findings": [dataclasses.asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(findings, usable)
    raise typer.Exit(0 if usable else 1)


def _print(findings: list[Finding], usable: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for group in dict.fromkeys(finding.group for finding in findings):
        console.print(Text(group, style="bold"))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=4)
        grid.add_column(min_width=15)
        grid.add_column(overflow="fold")
        for finding in findings:
            if finding.group != group:
                continue
            mark = Text("  ok", "green") if finding.ok else Text("  no", "yellow")
            detail = Text(finding.detail)
            if finding.remedy:
                detail.append(f"\n-> {finding.remedy}", "cyan")
            grid.add_row(mark, Text(finding.name), detail)
        console.print(grid)
    verdict = "This machine can profile." if usable else "This machine cannot profile: see each 'no' above."
    console.print(Text(verdict, style="bold"))
