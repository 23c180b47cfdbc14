"""``--like``: the options of a verb as a saved run has them, where they are not given beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuprof.cli import options as o
from gpuprof.errors import GpuprofError

if TYPE_CHECKING:
    from gpuprof.record import Record

_OPTIONS = (
    "mode", "batch_size", "seq_len", "prompt_len", "new_tokens", "image_crops", "dtype", "attention", "cache", "device",
    "checkpointing", "optimizer", "freeze", "seed",
)  # fmt: skip
"""Those that a run's workload says as they are. Whether a model's own code may run is not a file's to say."""


_ORIGINS = {
    "module": "Python", "trace": "a recording", "ncu": "a table of Nsight Compute", "meter": "a training loop",
}  # fmt: skip


def _repeat(context: typer.Context, path: Path | None) -> Path | None:
    """Make a run's workload the defaults of the command's options."""
    if path is not None and not context.resilient_parsing:
        from gpuprof.record import load

        run = load(o.existing(path) or path)
        context.default_map = {**(context.default_map or {}), **workload_of(run, path)}
    return path


Like = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="The workload of a saved run: its MODEL and options, where they are not given.",
        show_default=False,
        is_eager=True,
        callback=_repeat,
        rich_help_panel="Workload",
    ),
]


def workload_of(run: Record, path: Path) -> dict[str, Any]:
    """What a verb was given that made a run, by parameter; the model is a function that is called where it is needed.

    Args:
        run: the run.
        path: its file, for messages.

    Raises:
        GpuprofError: the run is of no workload that options describe.
    """
    about = run.workload
    source = about.get("source")
    if about.get("world", 1) > 1:
        raise GpuprofError(
            f"--like {path}: it is of a job of {about['world']} processes; repeat the command of the job"
        )
    if source not in ("preset", "hub", "directory", "file"):
        origin = _ORIGINS.get(str(source), "elsewhere")
        raise GpuprofError(f"--like {path}: no options repeat it, {about.get('name')} is of {origin} and no MODEL")
    known = {name: about[name] for name in _OPTIONS if about.get(name) not in (None, [])}
    if known.get("device") == "meta":
        del known["device"]  # where it was counted; a step is measured on the machine's own
    if "optimizer" in about.get("own", ()):
        del known["optimizer"]  # the file gives it, and takes none beside
    mode = re.fullmatch(r"inductor, mode (\S+)", about.get("compiled", {}).get("", ""))
    if mode and mode[1] in set(o.Compile):
        known["compile"] = mode[1]
    return {"model": _model(about, path), "convention": run.settings.get("convention"), **known}


def _model(about: dict[str, Any], path: Path) -> Callable[[], str]:
    """What gives MODEL where it is left out.

    A run has the name of its model, not the folder: a file is looked for in this one.
    """

    def named() -> str:
        name = str(about["name"])
        here = {"directory": False, "file": Path(name.rpartition(":")[0]).is_file()}
        if not here.get(about["source"], True):
            raise GpuprofError(f"--like {path} is of {name}, and does not say in which folder that is: give MODEL too")
        return name

    return named
