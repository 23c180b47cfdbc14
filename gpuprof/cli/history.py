"""``gpuprof history``: the runs of a store: listed, shown, drawn, moved and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpuprof import units
from gpuprof.cli import options as o
from gpuprof.cli.verbs import VerbGroup
from gpuprof.log import is_training

history = typer.Typer(
    name="history",
    cls=VerbGroup,
    help="The runs of a store: list, show and draw them, move them in and out, prune them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _store(create: bool) -> Any:
    return typer.Option(
        "--store",
        metavar="URL",
        help="sqlite:///FILE or a path, or postgresql+psycopg://USER@HOST/DATABASE.",
        show_default=False,
        callback=o.storable(create),
    )


StoreOption = Annotated[str, _store(create=False)]
WorkloadOption = Annotated[
    str, typer.Option("--workload", metavar="KEY", help="Only workloads with this in their key.", show_default=False)
]
SinceOption = Annotated[
    str,
    typer.Option(
        "--since", metavar="DATE", help="Only runs from this date on (UTC).", show_default=False, callback=o.dated
    ),
]
MinChange = Annotated[str, typer.Option("--min-change", metavar="SHARE", help="A smaller change is none.")]
RunArgument = Annotated[str, typer.Argument(metavar="ID", help="Of a run, or its beginning.", show_default=False)]


@history.command("list")
def list_(
    store: StoreOption,
    workload: WorkloadOption = "",
    since: SinceOption = "",
    min_change: MinChange = "2%",
    limit: Annotated[int, typer.Option(min=1, help="Only so many runs of each series, the newest.")] = 20,
    format: o.FormatOption = o.Format.text,
    output: o.TextFile = None,
) -> None:
    """List the runs of each workload, and what changed from day to day. As Markdown, for a pull request."""
    least = o.share(min_change, "--min-change")
    from gpuprof.analysis.changepoints import series_of
    from gpuprof.cli.output import check_output, in_color, terminal_width
    from gpuprof.files import write_atomically
    from gpuprof.history import open_store
    from gpuprof.render.history import render_history
    from gpuprof.render.view import View

    check_output(output)
    with open_store(store, create=False) as opened:
        runs = opened.runs(workload, since=since)
        facts = {name: there for key in set(runs["workload"]) for name, there in opened.fingerprints(key).items()}
    series = series_of(runs, least, facts)
    view = View(width=terminal_width(), color=in_color() and output is None)
    text = render_history(series, format.value, limit, view)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)


@history.command()
def show(run: RunArgument, store: StoreOption) -> None:
    """Show the report of a run. For every other view, export it."""
    from gpuprof.cli.output import print_report
    from gpuprof.history import open_store

    with open_store(store, create=False) as opened:
        found = opened.load(run)
    print_report(found)


@history.command()
def plot(
    store: StoreOption,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The picture: .png or .svg.")],
    workload: WorkloadOption = "",
    since: SinceOption = "",
    fingerprint: Annotated[
        str, typer.Option(metavar="HASH", help="As listed with --format json; by default that of the newest run.")
    ] = "",
    min_change: MinChange = "2%",
) -> None:
    """Draw one workload over time, with changes, commits and verdicts."""
    least = o.share(min_change, "--min-change")
    from gpuprof.cli.output import check_output
    from gpuprof.errors import GpuprofError
    from gpuprof.pictures import check_picture

    check_output(output)
    check_picture(output)
    from gpuprof.analysis.changepoints import series_of
    from gpuprof.history import open_store
    from gpuprof.render.history import history_chart

    with open_store(store, create=False) as opened:
        runs = opened.runs(workload, fingerprint, since)
        keys = sorted(set(runs["workload"]))
        if not keys:
            raise GpuprofError("there are no such runs: 'gpuprof history list' has all")
        if len(keys) > 1:
            raise GpuprofError(f"choose one workload with --workload: {', '.join(keys)}")
        chosen = runs["fingerprint"].iloc[-1]
        (one,) = series_of(runs[runs["fingerprint"] == chosen], least)
        launches = opened.series(workload, chosen, since)
    history_chart(one, launches, output)
    drawn = f"{units.number(len(one.runs), 'run')}, {units.number(len(one.changes), 'change')}"
    print(f"{one.title}: {drawn}, drawn in {output}")
    others = runs[runs["fingerprint"] != chosen]
    if len(others):
        said = units.number(len(others), "run")
        print(f"Not drawn: {said} with another fingerprint (device, driver, versions): give --fingerprint")


@history.command("import")
def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Runs saved with -o or exported, or folders of trainings.")
    ],
    store: Annotated[str, _store(create=True)],
) -> None:
    """Store saved runs. One that is there already is not stored again."""
    from gpuprof.errors import GpuprofError

    for file in files:
        if not (file.is_file() or is_training(file)):  # before a store is made
            raise GpuprofError(
                f"no file {file}: give runs saved with -o, the files of an export, FOLDER/*, or folders of trainings"
            )
    from gpuprof.history import NOTES, open_store

    with open_store(store) as opened:
        added = opened.import_(files)
    there = sum(file.name != NOTES for file in files) - len(added)
    already = f", {there} {'was' if there == 1 else 'were'} there" if there else ""
    print(f"{units.number(len(added), 'run')} imported{already}")


@history.command()
def export(
    store: StoreOption,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the files go.", show_default=False)],
    workload: WorkloadOption = "",
    since: SinceOption = "",
) -> None:
    """Write runs as files that every verb reads, and that 'history import' takes."""
    from gpuprof.history import open_store

    with open_store(store, create=False) as opened:
        paths = opened.export(to, workload, since)
    print(f"{units.number(len(paths), 'run')} exported to {to}")


@history.command()
def accept(
    runs: Annotated[list[str], typer.Argument(metavar="IDS...", help="Of runs, or their beginnings.")],
    store: StoreOption,
    undo: Annotated[bool, typer.Option("--undo", help="Leave them out of baselines instead.")] = False,
) -> None:
    """Hold later runs against these. A regression, drift or improvement that is accepted begins a new level."""
    from gpuprof.history import open_store

    with open_store(store, create=False) as opened:
        whole = list(dict.fromkeys(map(opened.resolve, runs)))  # before any is changed
        for identity in whole:
            opened.mark(identity, accepted=not undo)
    print(f"{units.number(len(whole), 'run')} {'left out of baselines' if undo else 'accepted'}: {', '.join(whole)}")


@history.command()
def prune(
    store: StoreOption,
    before: Annotated[
        str, typer.Option(metavar="DATE", help="Runs from before this date (UTC).", callback=o.dated)
    ] = "",
    keep: Annotated[int | None, typer.Option(min=0, help="All but so many of each series, the newest.")] = None,
    workload: WorkloadOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove old runs for good."""
    from gpuprof.history import open_store

    with open_store(store, create=False) as opened:
        gone = opened.prune(before, keep, workload, dry_run)
    for row in gone.itertuples():
        print(f"{row.id}  {row.date[:10]}  {row.workload}")
    print(f"{units.number(len(gone), 'run')} {'would be ' if dry_run else ''}removed")
