"""What ``scripts/setup.sh`` makes of wrong versions; it runs in a folder of its own, and no network is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """What the script needs of a checkout, with the interpreter of these tests as an environment that is there."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/installed").touch()
    return tmp_path


def setup(checkout, *arguments):
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    command = ["scripts/setup.sh", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def environments(checkout):
    return [path.name for path in checkout.glob(".venv*")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "'--help' is no version: give a release of transformers such as 5.4.0"),
        (["nwest"], "'nwest' is no version"),
        (["5,4,0"], "'5,4,0' is no version"),
        (["../5.4.0"], "'../5.4.0' is no version"),
        (["5.4.0", "2.x"], "'2.x' is no version"),
        (["5.4.0", "2.11.0", "4.0.0"], "3 versions are too many"),
    ],
)
def test_what_is_no_version_is_refused(checkout, arguments, words):
    ended = setup(checkout, *arguments)

    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"scripts/setup.sh: {words}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert environments(checkout) == [".venv"]


def test_a_version_that_is_not_to_be_had_leaves_no_environment(checkout):
    ended = setup(checkout, "99.9.9")

    assert ended.stderr == (
        "scripts/setup.sh: transformers 99.9.9 cannot be installed: No matching distribution found for "
        "transformers==99.9.9\n"
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert environments(checkout) == [".venv"]


def test_an_environment_that_was_whole_outlives_a_failure(checkout):
    there = checkout / ".venv-99.9.9/bin/python"
    shutil.copytree(checkout / ".venv/bin", there.parent)
    os.utime(shutil.copyfile(ROOT / "pyproject.toml", checkout / ".venv-99.9.9/installed"), (0, 0))  # out of date

    assert setup(checkout, "99.9.9").returncode == 2
    assert there.exists()
