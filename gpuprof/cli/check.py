"""``gpuprof check``: is a run slower than those before it?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuprof.cli import options as o
from gpuprof.errors import ForeignFileError, GpuprofError
from gpuprof.log import is_log, is_training

if TYPE_CHECKING:
    from gpuprof.analysis.check import Check
    from gpuprof.record import Record


class Format(StrEnum):
    """How to show the verdict."""

    text = "text"
    markdown = "markdown"
    junit = "junit"
    json = "json"


AUTO = "auto"

AllowDifferent = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD", help="A field of the fingerprint that may differ, e.g. driver; repeatable.", show_default=False
    ),
]
AutoMargin = Annotated[
    str,
    typer.Option(metavar="SHARE|auto", help="A change below this is none; auto is the least that the noise shows."),
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="For people, a pull request or machines.")]
Top = Annotated[int | None, typer.Option(min=1, help="Only so many rows of what moved; 10 for people.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write here, and only the verdict to the terminal."),
]


def _all_existing(paths: list[Path] | None) -> list[Path] | None:
    for path in paths or ():
        o.existing(path)
    return paths


def check(
    head: Annotated[
        Path,
        typer.Argument(
            metavar="HEAD", help="A saved run, a training's folder, or a folder of runs: its newest one.",
            show_default=False, callback=o.existing,
        ),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BASE", help="Runs to hold it against: a file, or a folder with files; repeatable. By default "
            "the others of HEAD's folder, where that is a folder.", show_default=False, callback=_all_existing,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A run store: hold it against what is accepted there, and keep it with its verdict.",
            show_default=False, callback=o.storable(create=True),
        ),
    ] = None,
    margin: AutoMargin = AUTO,
    allow_different: AllowDifferent = None,
    format: FormatOption = Format.text,
    top: Top = None,
    output: Output = None,
) -> None:  # fmt: skip
    """Hold a run against earlier ones. Status 1 if it regressed, 3 if that cannot be told, 4 if it drifted."""
    from gpuprof.cli.output import check_output

    check_output(output)
    allowed = read_margin(margin)
    if store is not None and against:
        raise GpuprofError("--against and --store are two baselines: give one of them")
    if store is None and not against and not _is_several(head):
        raise GpuprofError(f"say what to hold {head} against: --against with a run or a folder, or --store")
    from gpuprof.analysis.check import check as check_runs
    from gpuprof.record import load

    own, path = _newest(head) if _is_several(head) else (load(head), head)
    if store is not None:
        found, left_out = check_in_store(own, store, allowed, allow_different or ()), list[str]()
    else:
        baseline, left_out = _gather(against or [head], own, path)
        found = check_runs(own, baseline, allowed, allow_different or ())
    newest = [f"The head is {path}, the newest there."] if _is_several(head) else []
    conclude(replace(found, notes=[*newest, *found.notes, *left_out]), format, top, output)


_LOADED = 5  # newest runs of a baseline that are read whole, for what moved


def check_in_store(head: Record, url: str, margin: float | None, allowed: Collection[str]) -> Check:
    """Hold a run against the accepted launches of a store, and keep it there with its verdict.

    A run that is inconclusive is kept too, and held against later ones if that is for the noise of its baseline, of
    which it is more then, or for its being too small to tell. Not if it is for its clock or its limits.

    Raises:
        GpuprofError: nothing was timed, or there is no such field to allow: it is not kept; or the store holds this
            workload, but nothing that compares: the fields that differ are named, and the run is kept, as the first of
            its fingerprint.
    """
    from gpuprof.analysis import comparison
    from gpuprof.analysis.check import against, check_timed, unopposed
    from gpuprof.analysis.regression import DRIFT, FEWEST, IMPROVEMENT, INCONCLUSIVE, REGRESSION
    from gpuprof.cli.output import commit
    from gpuprof.history import open_store

    here = comparison.fingerprint(head)
    comparison.differences(here, here, allowed)  # is there such a field
    if "workload" in allowed:
        raise GpuprofError("a store holds a workload against itself alone: for another give its run with --against")
    check_timed(comparison.launches(head), "the head")
    with open_store(url) as opened:
        base = opened.baseline(head, allowed)
        if base.empty:
            opened.add(head, commit())
            known = opened.fingerprints(comparison.workload_key(head)).values()
            if differing := [fields for there in known if (fields := comparison.differences(there, here, allowed))]:
                raise GpuprofError(
                    f"no run of {opened.name} compares with this one: {'; '.join(differing[0])} "
                    "(--allow-different FIELD lets one differ)"
                )
            return unopposed(
                head, f"there is nothing yet to hold it against: no accepted run before it in {opened.name}"
            )
        newest = list(dict.fromkeys(reversed(list(base.loc[base["held"], "run"]))))[:_LOADED]
        found = against(head, base, [opened.load(str(run)) for run in reversed(newest)], margin, allowed=allowed)
        too_few = base["noise"].sum() < FEWEST  # nobody knows which of them is the odd one
        noise = all(one.noise for one in found.deciding if one.status == INCONCLUSIVE)
        accepted = found.status not in (REGRESSION, DRIFT) and (found.status != INCONCLUSIVE or noise or too_few)
        identity = opened.add(head, commit(), found.status, accepted)
        accepted = opened.mark(identity, found.status, accepted)  # of one that was there already, what was said of it
        before = opened.runs(comparison.workload_key(head)).set_index("id").loc[base["run"].iloc[-1]]
    if accepted and found.status == IMPROVEMENT and before["verdict"] != IMPROVEMENT:
        said = "It begins a new level once the next run is an improvement as well; to begin it now"
    elif accepted:
        return found
    else:
        said = "Later runs are not held against it; if it is meant"
    return replace(found, notes=[*found.notes, f"{said}: gpuprof history accept {identity[:12]} --store {opened.name}"])


def conclude(found: Check, format: Format, top: int | None, output: Path | None) -> None:
    """Show a check, and exit with the status that it means."""
    from gpuprof.analysis.regression import DRIFT, INCONCLUSIVE, REGRESSION
    from gpuprof.cli.output import in_color, terminal_width
    from gpuprof.files import write_atomically
    from gpuprof.render.regression import render_check, verdict
    from gpuprof.render.view import View

    view = View(top=top, width=terminal_width(), color=in_color() and output is None)
    text = render_check(found, format.value, view)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
        print(f"{found.status}: {'; '.join(verdict(found))}")
    status = {REGRESSION: 1, INCONCLUSIVE: 3, DRIFT: 4}.get(found.status, 0)
    if status:
        raise typer.Exit(status)


def read_margin(text: str) -> float | None:
    """A share, as `gpuprof.cli.options.share` reads it; None for `AUTO`."""
    return None if text == AUTO else o.share(text, "--margin", also=AUTO)


def _is_several(path: Path) -> bool:
    """Whether it is a folder of runs, and not that of a training, which is one."""
    return path.is_dir() and not is_training(path)


def _newest(folder: Path) -> tuple[Record, Path]:
    """The newest run of a folder, and its file.

    Raises:
        GpuprofError: there is none, or a file is broken: who knows whether it was the newest.
    """
    runs, others = _runs_in(folder)
    for error in others.values():
        if not isinstance(error, ForeignFileError):
            raise error
    if not runs:
        raise GpuprofError(f"no run in {folder}: give a folder of runs saved with -o")
    path = max(runs, key=lambda one: str(runs[one].environment.get("date", "")))
    return runs[path], path


def _gather(paths: list[Path], head: Record, own: Path) -> tuple[list[Record], list[str]]:
    """The runs of files and folders, each once and without the head, whose file is ``own``; and what was left out.

    Raises:
        GpuprofError: all files that were given are the head.
    """
    from gpuprof.record import load

    runs: dict[Path, Record] = {}
    left_out: list[str] = []
    again: list[str] = []
    for path in paths:
        found, others = _runs_in(path) if _is_several(path) else ({path: load(path)}, {})
        left_out += [file.name for file in others]
        for file, run in found.items():
            if is_copy(run, head):
                # its own file lies among those of its folder as it should
                again += [f"{file.name} is the head itself"] if path == file or not file.samefile(own) else []
            elif first := next((one for one, other in runs.items() if is_copy(run, other)), None):
                again += [f"{file.name} is {first.name} once more"] if file != first else []
            else:
                runs[file] = run
    if not runs and again and not any(map(_is_several, paths)):
        raise GpuprofError(f"nothing to hold the head against: {again[0]}; give earlier runs with --against")
    notes = [f"Left out: {', '.join(left_out)}: no whole run."] if left_out else []
    return list(runs.values()), notes + ([f"Not counted: {'; '.join(again)}."] if again else [])


def is_copy(run: Record, other: Record) -> bool:
    """Whether two runs are one, from two files: measured at one time on one device, of one workload, in equal steps."""
    facts = ("environment", "device", "workload")  # with the date
    return all(getattr(run, name) == getattr(other, name) for name in facts) and run.samples.equals(other.samples)


def _runs_in(folder: Path) -> tuple[dict[Path, Record], dict[Path, GpuprofError]]:
    """The runs among the JSON files, the logs and the folders of trainings in a folder, without the ranks of jobs.

    And what is wrong with the other JSON files.
    """
    from gpuprof.record import load

    runs: dict[Path, Record] = {}
    others: dict[Path, GpuprofError] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".json", ".json.gz")) or is_training(path) or (path.is_file() and is_log(path)):
            try:
                runs[path] = load(path)
            except GpuprofError as error:
                others[path] = error
    of_jobs = {one["file"] for run in runs.values() if run.is_job for one in run.device["ranks"]}
    return {path: run for path, run in runs.items() if path.name not in of_jobs}, others
