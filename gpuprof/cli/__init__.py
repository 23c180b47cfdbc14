"""The command line: one file per verb. Each parses, calls the API, renders and exits."""

from __future__ import annotations

import os
import sys

import typer

from gpuprof.cli.ab import ab
from gpuprof.cli.backward import backward
from gpuprof.cli.budget import budget
from gpuprof.cli.ceilings import ceilings
from gpuprof.cli.check import check
from gpuprof.cli.compare import compare
from gpuprof.cli.count import count
from gpuprof.cli.devices import devices
from gpuprof.cli.doctor import doctor
from gpuprof.cli.history import history
from gpuprof.cli.memory import memory
from gpuprof.cli.presets import presets
from gpuprof.cli.profile import profile
from gpuprof.cli.report import report
from gpuprof.cli.roofline import roofline
from gpuprof.cli.show import show
from gpuprof.cli.sweep import sweep
from gpuprof.cli.validate import validate
from gpuprof.errors import GpuprofError

app = typer.Typer(
    name="gpuprof",
    help="A measured GPU profiler that validates theoretical FLOPs, per module, forward and backward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    profile, sweep, count, show, validate, backward, report, budget, roofline, memory, compare, check, ab, presets,
    devices, ceilings, doctor,
):  # fmt: skip
    app.command()(verb)
app.add_typer(history)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the report is what the user asked for
    try:
        app()
    except GpuprofError as error:
        print(f"gpuprof: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C, which Typer turns into this
            print("gpuprof: interrupted", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        sys.exit(0)
