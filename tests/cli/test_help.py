"""What the help says of the verbs, what it loads to say it, and that its examples are commands."""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

from gpuprof.cli import app
from gpuprof.cli.options import Convention
from gpuprof.cli.verbs import VERBS

ALL = get_command(app)


def parse(words):
    """Parse a command line as the verbs do, and run nothing; what the user can mend is raised."""
    with ALL.make_context("gpuprof", words) as context:
        _, command, rest = ALL.resolve_command(context, words)
        while hasattr(command, "resolve_command"):
            _, command, rest = command.resolve_command(command.make_context("", rest, parent=context), rest)
        with command.make_context(command.name, rest, parent=context) as inner:
            return inner.params


@pytest.mark.parametrize("name", VERBS)
def test_the_line_of_a_verb_is_the_first_that_it_says_of_itself(name):
    said = ALL.get_command(None, name).help

    assert VERBS[name].line == inspect.cleandoc(said).splitlines()[0]


@pytest.mark.parametrize(("name", "example"), [(name, each) for name, verb in VERBS.items() for each in verb.examples])
def test_examples_are_command_lines(monkeypatch, name, example):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)  # the runs that they read
    monkeypatch.setattr("pathlib.Path.stat", lambda path, **_: os.stat("."))
    monkeypatch.setattr("gpuprof.store_url.check", lambda url, create: None)
    program, *words = shlex.split(re.split(r" [>|]", example)[0])

    assert (program, words[0]) == ("gpuprof", name)
    assert parse(words) is not None


@pytest.mark.parametrize("arguments", [(name,) for name in VERBS] + [("history", "list")])
def test_the_help_of_a_verb_ends_with_its_examples(gpuprof_cli, arguments):
    done = gpuprof_cli(*arguments, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: gpuprof {' '.join(arguments)} ")
    if len(arguments) == 1:
        ending = "".join(f"  {example}\n" for example in VERBS[arguments[0]].examples)
        assert done.stdout.endswith(f"\nExamples:\n{ending}")


def test_options_stand_in_their_sections(gpuprof_cli):
    lines = gpuprof_cli("profile", "--help").stdout.splitlines()

    heads = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["Arguments:", "Options:", "Workload:", "Measuring:", "Output:", "Examples:"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_choices_keep_to_the_width(gpuprof_cli, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = gpuprof_cli("show", "--help").stdout.partition("Examples:")[0].splitlines()

    assert max(map(len, lines)) <= width
    choices = "".join(line.strip() for line in lines).partition("--convention <")[2].partition(">")[0]
    assert choices.split("|") == [one.value for one in Convention]


def test_the_help_names_all_verbs_in_full_and_imports_none():
    code = (
        "import sys; sys.argv = ['gpuprof', '--help']\nfrom gpuprof.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*(name for name in ('rich', 'pydantic', 'gpuprof.cli.show') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    *help_lines, loaded = done.stdout.splitlines()

    assert loaded == ""
    said = " ".join(" ".join(help_lines).split())
    assert said.endswith(" ".join(f"{name} {verb.line}" for name, verb in VERBS.items()))


def test_a_verb_s_help_loads_neither_rich_nor_pydantic():
    code = (
        "import sys; sys.argv = ['gpuprof', 'show', '--help']\nfrom gpuprof.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*(name for name in ('rich', 'pydantic', 'gpuprof.cli.profile') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("\n\n")  # the last line is empty: nothing was


def test_what_is_nearly_a_verb_is_told(gpuprof_cli):
    assert "Did you mean 'profile'" in gpuprof_cli("profil").stderr


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("gpuprof pro", ["profile"]),
        ("gpuprof show --by co", ["communication", "convention"]),
        ("gpuprof history ex", ["export"]),
        ("gpuprof profile --att", ["--attention"]),
        ("gpuprof show run.js", [""]),  # bash completes a file
    ],
)
def test_bash_completes(monkeypatch, gpuprof_cli, typed, completed):
    monkeypatch.setenv("_GPUPROF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))

    done = gpuprof_cli()

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:-1] == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_script_of_a_shell_asks_gpuprof(gpuprof_cli, shell):
    script = gpuprof_cli("completion", shell)

    assert (script.returncode, script.stderr) == (0, "")
    assert f"complete_{shell}" in script.stdout
    assert importlib.import_module("gpuprof.cli.completion").VARIABLE in script.stdout
