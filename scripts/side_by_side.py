"""What the benchmarks share: an older build beside this one, seconds of processes, and a table of ratios with targets.

A benchmark makes `Ratio` rows, each measured in one run beside what it is held against, and ends with `finish`.
`bench_all.py` runs them all and prints their rows as one table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASE = "2b4693d"
"""The build that today's is held against: the last one before speed was worked on."""


@dataclass(frozen=True)
class Ratio:
    """A figure over another of the same run.

    Attributes:
        work: what was done.
        against: what it is held against.
        here: this build's figure.
        there: the other's.
        unit: of both; "s" is seconds of processor time, where nothing else is said.
        target: the ratio is to be at most this; None where it is only told.
    """

    work: str
    against: str
    here: float
    there: float
    unit: str = "s"
    target: float | None = None

    @property
    def ratio(self) -> float:
        """Here over there."""
        return self.here / self.there

    @property
    def met(self) -> bool:
        """Whether the target is met, if there is one."""
        return self.target is None or self.ratio <= self.target


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that every benchmark has: ``--rounds``, ``--base COMMIT``, ``--json FILE``."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="all take turns this often, and the least counts")
    made.add_argument("--base", default=BASE, metavar="COMMIT", help="hold it against this commit's build, too")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    return made


def cpu_name() -> str:
    """The processor, as Linux calls it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.machine()


@contextlib.contextmanager
def unpacked(commit: str) -> Iterator[Path]:
    """A folder with the package as it was at a commit, to import gpuprof from."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit, "gpuprof"], check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


@dataclass(frozen=True)
class Used:
    """What a process used: seconds of processor time and the most bytes resident; and what it said."""

    processor_s: float
    peak_bytes: int
    output: str


def used(arguments: Sequence[str | os.PathLike[str]], source: Path = ROOT, status: int = 0) -> Used:
    """What Python with these arguments uses, importing gpuprof from a folder; it may keep what it compiles.

    Raises:
        RuntimeError: it ends with another status than this.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=source,  # before anything else on the path of python -m
            env=kept | {"PYTHONPATH": str(source)},
        )
        _, ended, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(ended)  # it has been waited for
        said.seek(0)
        output = said.read()
    if child.returncode != status:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {child.returncode}: {output[-2000:]}")
    return Used(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output)


def least_s(
    commands: dict[str, tuple[Sequence[str | os.PathLike[str]], Path]],
    rounds: int,
    statuses: dict[str, int] | None = None,
) -> dict[str, float]:
    """The least processor time of each command (arguments of Python and source folder), all taking turns.

    A round before them compiles what they import. Each has to end with its status, 0 unless given.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, (arguments, source) in commands.items():
            seconds[name].append(used(arguments, source, (statuses or {}).get(name, 0)).processor_s)
    return {name: min(each[1:]) for name, each in seconds.items()}


def finish(rows: list[Ratio], asked: argparse.Namespace) -> int:
    """Print the rows, write them where asked, and return the exit status: 1 if a target is missed."""
    for row in rows:
        goal = "" if row.target is None else f", at most {row.target:g} x: {'met' if row.met else 'MISSED'}"
        print(
            f"{row.work}: {row.here:.4g} {row.unit}, {row.ratio:.3f} x {row.against} ({row.there:.4g} {row.unit}){goal}"
        )
    if asked.json is not None:
        asked.json.write_text(
            json.dumps([asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows], indent=1)
        )
    return int(not all(row.met for row in rows))
