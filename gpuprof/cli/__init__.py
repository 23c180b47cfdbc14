"""The command line: one file per verb. Each parses, calls the API, renders and exits."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from gpuprof.cli.encoding import spell_out
from gpuprof.cli.usage import in_words
from gpuprof.cli.verbs import Verbs
from gpuprof.errors import GpuprofError
from gpuprof.parallel.launch import speaks
from gpuprof.signals import exit_on_sigterm
from gpuprof.version import __version__

app = typer.Typer(
    name="gpuprof",
    cls=Verbs,
    help="A measured GPU profiler that validates theoretical FLOPs, per module, forward and backward.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"gpuprof {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                          help="Print the version and exit.")] = False,
) -> None:  # fmt: skip
    """Options before a verb."""


BUG = 70
"""Exit status of what nobody foresaw: EX_SOFTWARE of sysexits.h. 1 is a finding."""

_UsageError: Any = typer.BadParameter.__base__  # click's, or that of the click inside newer versions of Typer


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the report is what the user asked for
    spell_out()
    exit_on_sigterm()  # what runs in other process groups for this one is ended too
    try:
        # not app(): it would print wrong usage in a box, and end a broken pipe and the end of a file with status 1
        command = get_command(app)
        if "_GPUPROF_COMPLETE" in os.environ:
            from gpuprof.cli.completion import answer

            answer(command)
        with command.make_context("gpuprof", sys.argv[1:]) as context:
            command.invoke(context)
        if sys.stdout is not None:  # a shell may have closed it
            sys.stdout.flush()
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except GpuprofError as error:
        _end(str(error), 2)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no arguments: the help, where Typer has not printed it yet
            print(error.format_message().rstrip())
            sys.exit(error.exit_code)
        said = in_words(error.format_message())
        _end(f"{said} (see '{error.ctx.command_path if error.ctx else 'gpuprof'} --help')", error.exit_code)
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher hands on what the terminal has sent already
        _end(f"interrupted (on {interrupt})" if str(interrupt) else "interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _close_output()
        sys.exit(0)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _close_output()
            _end("the disk that this writes to is full: make room, or write elsewhere", 2)
        traceback.print_exc()
        what = " ".join(traceback.format_exception_only(error)[-1].split())
        _end(f"this is a bug of gpuprof, or a file that is not what it seems: report it with the above ({what})", BUG)


def _close_output() -> None:
    """See to it that nothing more is written, not at the interpreter's exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(message: str, status: int) -> NoReturn:
    if speaks():  # of several processes one says it
        print(f"gpuprof: {message}", file=sys.stderr)
    sys.exit(status)
