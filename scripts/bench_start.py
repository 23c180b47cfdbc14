"""What the command line takes before it does anything: `--help`, a verb's help, a wrong argument. No GPU needed.

Seconds of processor time of whole processes, the least of several rounds in which all take turns: a bare interpreter,
one that imports typer, and gpuprof as it is here and as it was at a commit, whose files are unpacked beside. Exits
with 1 if a help takes more than half of what it took there, or a wrong argument 0.6 s or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEFORE = "3e2d150"
"""The commit before verbs were imported when they are asked for."""
HELP = {"--help": ["--help"], "profile --help": ["profile", "--help"], "show --help": ["show", "--help"]}
WRONG = {"a wrong argument": ["profile", "no-such-model"]}
WRONG_LIMIT_S = 0.6


def processor_s(arguments: list[str], source: Path) -> float:
    """Seconds of processor time that an interpreter takes with these arguments, importing gpuprof from a folder."""
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=source,  # before anything else on the path of python -m
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    used = os.wait4(child.pid, 0)[2]
    child.returncode = 0  # it has been waited for
    return used.ru_utime + used.ru_stime


def measure(rounds: int, here: Path, before: Path) -> dict[tuple[str, str], float]:
    """The least seconds of each command, by its name and "here", "before" or "" for what is not gpuprof."""
    python = {"python -c pass": ["-c", "pass"], "import typer": ["-c", "import typer"]}
    commands = {(name, ""): (arguments, here) for name, arguments in python.items()}
    for name, arguments in (HELP | WRONG).items():
        for state, source in (("before", before), ("here", here)):
            commands[name, state] = (["-m", "gpuprof", *arguments], source)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
    for _ in range(rounds + 1):  # the first compiles what it imports
        for key, (arguments, source) in commands.items():
            seconds[key].append(processor_s(arguments, source))
    return {key: min(each[1:]) for key, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help="hold it against this commit")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", asked.before, "gpuprof"], check=True, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        least = measure(asked.rounds, ROOT, Path(folder))
    typer = least["import typer", ""]
    print(f"python -c pass    {least['python -c pass', '']:.3f} s of processor time")
    print(f"import typer      {typer:.3f} s")
    failed = False
    for name in HELP | WRONG:
        now, then = least[name, "here"], least[name, "before"]
        failed |= now >= WRONG_LIMIT_S if name in WRONG else now > then / 2
        share = f"{now / then:.2f} of {then:.3f} s at {asked.before}"
        print(f"{name:17} {now:.3f} s, {share}, {now / typer:.1f} x import typer")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
