"""``gpuprof completion``: what a shell needs to complete gpuprof's commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.completion import completion_init, get_completion_script

VARIABLE = "_GPUPROF_COMPLETE"
"""Environment variable by which the script asks what the word may be that is being typed."""


class Shell(StrEnum):
    """Shells that Typer knows."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell.", show_default=False)],
) -> None:
    """Print the script that completes gpuprof's verbs, options and choices in a shell."""
    print(get_completion_script(prog_name="gpuprof", complete_var=VARIABLE, shell=shell.value))


def answer(command: Any) -> None:
    """Print what the word may be that is being typed, and end.

    Args:
        command: all of the command line.
    """
    completion_init()
    command.main(prog_name="gpuprof", complete_var=VARIABLE)
