"""The meter's log: a training as lines of JSON, written while it runs. `gpuprof.log_content` makes a run of it.

A process of the training begins with a header, ``{"gpuprof": "meter log", ...}``, and a resumed training has several.
Below it stand the signatures that it counted, each with its operators, and the steps as `Meter.read` came to them;
their numbers of signatures are those below the same header. What is written is whole lines, and never changed again.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any

from gpuprof.errors import GpuprofError

SCHEMA_VERSION = 1
NAME = "meter.jsonl"
"""The log of a process that stands alone, or of the first rank."""

_KIND = "meter log"
_RANKED = re.compile(r"meter-rank-(\d{1,9})\.jsonl").fullmatch
_BEGINNING = f'{{"gpuprof": "{_KIND}"'.encode()
_MOST = 1000  # steps in a line: a reader has whole lines soon, and none is too long for an editor
_NANOSECOND = 9  # digits: no clock of a step is finer

KEY = ("module", "phase", "op", "kind", "shapes", "dtype", "group")
"""What rows of ``ops`` that are added up have in common; the module stands as its class."""
SUMS = ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes")
"""What is added up of them."""
ROOT = ("class", "params", "trainable_params", "param_bytes", "trainable_bytes")
"""What is written of the model's own row of ``tree``."""


def begins(line: dict[str, Any]) -> bool:
    """Whether a line is the header of a process."""
    return line.get("gpuprof") == _KIND


def name_of(rank: int) -> str:
    """What the log of a rank is called."""
    return f"meter-rank-{rank}.jsonl" if rank else NAME


def made(folder: str | os.PathLike[str]) -> Path:
    """A folder for logs, made where there is none.

    Raises:
        GpuprofError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GpuprofError(f"cannot make the folder {folder} for the meter's log: {why}") from error
    return Path(folder)


class Log:
    """The writer of a log, which appends to what is there: a training that goes on.

    Args:
        folder: where the log is, as `made` makes it.
        rank: of this process in its job.
        before: steps that have ended when it begins; 0 unless it goes on from a checkpoint.

    Raises:
        GpuprofError: the folder cannot be written to, or has a file of that name which is no log.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int = 0, before: int = 0) -> None:
        self.path = Path(folder) / name_of(rank)
        self._before = before
        self._end: int | None = None  # of the file as it was left; None before the header is in it
        self._counts: list[dict[str, Any]] = []
        self._steps: list[Sequence[Any]] = []
        with self._open("a+b") as file:
            _cut_torn_line(file, self.path)

    def counted(self, number: int, words: str, found: Any) -> None:
        """What a micro-batch of a signature, or the optimizer's step, does; written by the next `write`.

        Args:
            number: of the signature, which later steps are told by; of one that is counted again it is the mean.
            words: the signature for people.
            found: the `gpuprof.passes.counting.Counted` of it, its ``ops`` without what is counted elsewhere.
        """
        self._counts.append({"signature": number, "inputs": words, **_summed(found)})

    def write(
        self, about: dict[str, Any], step: int, figures: dict[str, float], steps: Iterable[Sequence[Any]]
    ) -> None:
        """What one `Meter.read` came to.

        Args:
            about: ``workload``, ``device``, ``environment`` and ``settings`` of a run; the first ones stand, and as
                long as it is empty nothing is written and all is kept.
            step: steps that have ended.
            figures: by name.
            steps: those that the figures are of, each with its number, seconds in it, seconds between the one before
                and it, numbers of the signatures in it (None where something in it is not known), tokens, those that
                are no padding, samples, and why its time does not count; None where a figure is not known.

        Raises:
            GpuprofError: it cannot be written, or another process has written to it.
        """
        self._steps += [[_rounded(value) for value in one] for one in steps]
        if not about and self._end is None:
            return
        lines: list[dict[str, Any]] = []
        if self._end is None:
            lines.append({"gpuprof": _KIND, "schema_version": SCHEMA_VERSION, "steps_before": self._before, **about})
        *full, last = [self._steps[at : at + _MOST] for at in range(0, len(self._steps), _MOST)] or [[]]
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        lines += [*self._counts, *({"steps": part} for part in full)]
        lines.append({"step": step, "date": date, "figures": known, "steps": last})
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        with self._open("ab") as file:  # anew: nothing is kept open that a process which forks would share
            if self._end not in (None, file.tell()):  # steps below another's header would be taken for its own
                raise GpuprofError(
                    f"another process has changed the meter's log {self.path}: give each training a folder of its own "
                    "with out="
                )
            file.write(text.encode())
            self._end = file.tell()
        self._counts, self._steps = [], []

    @contextmanager
    def _open(self, mode: str) -> Iterator[Any]:
        try:
            with self.path.open(mode) as file:
                yield file
        except OSError as error:
            raise GpuprofError(f"cannot write the meter's log {self.path}: {error.strerror or error}") from error


def _cut_torn_line(file: Any, path: Path) -> None:
    """Take away what a process that was killed left of its last line, or the next one would be torn with it."""
    file.seek(0)
    content = file.read()
    if content and not _BEGINNING.startswith(content[: len(_BEGINNING)]):
        raise GpuprofError(f"{path} is not the log of a gpuprof.Meter: give it another folder with out=")
    file.truncate(content.rfind(b"\n") + 1)


def _rounded(value: Any) -> Any:
    return round(value, _NANOSECOND) if isinstance(value, float) else value


def _summed(found: Any) -> dict[str, Any]:
    """The operators of a count, those of all modules of a class together, and what else a reader needs of it.

    A class stands for its modules as their path would: which class an operator is in is what some conventions go by.
    """
    tree = found.tree
    classes = dict(zip(tree["module"], tree["class"], strict=True))
    of_class = {module: name if module else "" for module, name in classes.items()}
    sums: dict[tuple[str, ...], list[int | None]] = {}
    for row in found.ops[[*KEY, *SUMS]].itertuples(index=False, name=None):
        module, *rest = row[: len(KEY)]
        entry = sums.setdefault((of_class.get(module, module), *rest), [0] * len(SUMS))
        for at, value in enumerate(row[len(KEY) :]):
            so_far = entry[at]
            entry[at] = None if so_far is None or not isinstance(value, Integral) else so_far + int(value)
    calls: Counter[str] = Counter()
    causality: dict[str, str] = {}
    of_model = tree if set(found.ops["phase"]) != {"optimizer"} else tree.head(0)
    for module, number, how in of_model[["module", "calls", "causality"]].itertuples(index=False, name=None):
        calls[of_class[module]] += int(number) if isinstance(number, Integral) else 0
        if how and causality.get(of_class[module]) != "unknown":
            causality[of_class[module]] = how
    root = tree.iloc[0]
    facts = {name: value for name, value in found.outcome.facts.items() if isinstance(value, list)}
    about = {"root": {name: _plain(root[name]) for name in ROOT}, "calls": calls, "causality": causality}
    return about | {"facts": facts, "ops": columns_of(sums)}


def columns_of(sums: dict[tuple[str, ...], list[Any]]) -> dict[str, list[Any]]:
    """Sums by what their rows have in common, column by column."""
    return {name: [key[at] for key in sums] for at, name in enumerate(KEY)} | {
        name: [entry[at] for entry in sums.values()] for at, name in enumerate(SUMS)
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else int(value) if isinstance(value, Integral) else None


def logs(path: Path) -> dict[int, Path]:
    """The logs of a training by the rank that wrote them, in its folder; or one that is given itself.

    Raises:
        GpuprofError: there is none.
    """
    if path.is_file():
        return {0: path}
    found = {int(rank[1]): one for one in path.glob("meter-rank-*.jsonl") if (rank := _RANKED(one.name))}
    found |= {0: path / NAME} if is_training(path) else {}
    if not found:
        raise GpuprofError(f"{path} has no {NAME}: give the folder that a gpuprof.Meter has as out, once it trains")
    return dict(sorted(found.items()))


def new_lines(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a log from a place on, as `lines` has them, and where the next one will begin.

    Of a log that is shorter than that, since it is another one by now, they are all.

    Raises:
        GpuprofError: as in `lines`; or it cannot be read, or is no log.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_BEGINNING))
            start = start if start <= file.seek(0, os.SEEK_END) else 0
            file.seek(start)
            content = file.read()
    except OSError as error:
        raise GpuprofError(f"cannot read {path}: {error.strerror or error}") from error
    if not _BEGINNING.startswith(beginning):
        raise GpuprofError(f"{path} is not the log of a gpuprof.Meter: give the folder that one has as out")
    return lines(content, path, start), start + content.rfind(b"\n") + 1


def is_log(path: Path) -> bool:
    """Whether a file that is there is a meter's log, or the beginning of one."""
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def is_training(folder: Path) -> bool:
    """Whether a folder is one that a meter wrote to, and so one run, and not a folder of runs."""
    return (folder / NAME).is_file()


def of_folder(folder: Path) -> Path:
    """The log of a training in its folder: that of the first rank.

    Raises:
        GpuprofError: there is none.
    """
    if not is_training(folder):
        raise GpuprofError(
            f"{folder} is a folder without a {NAME}: give a run saved with -o, or the folder that a gpuprof.Meter "
            "has as out"
        )
    return folder / NAME


def lines(content: bytes, path: Path, start: int = 0) -> list[dict[str, Any]]:
    """The whole lines of a log; what follows the last of them is being written, or was when its process was killed.

    Args:
        content: of the log, from some place on.
        path: of it, for what is said.
        start: that place.

    Raises:
        GpuprofError: one is no JSON object, lacks what all readers need, or is of a newer gpuprof.
    """
    found = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            one = json.loads(line)
            if not isinstance(one, dict):
                raise ValueError
        except (RecursionError, ValueError) as error:
            place = _place(number, path, start)
            raise GpuprofError(f"line {place} of {path} is broken: remove it to read the others") from error
        version = one.get("schema_version", 1) if "gpuprof" in one else 1
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise GpuprofError(
                f"{path} has schema version {version}, this gpuprof reads up to {SCHEMA_VERSION}: upgrade gpuprof"
            )
        if not _sound(one):
            place = _place(number, path, start)
            raise GpuprofError(f"{path} is a meter's log with a part missing or broken (line {place})")
        found.append(one)
    return found


def _place(number: int, path: Path, start: int) -> int:
    """The number in the whole log of a line that is so many after a place."""
    return number + path.read_bytes()[:start].count(b"\n")


def _sound(line: dict[str, Any]) -> bool:
    """Whether a line has what all that read it need."""
    if begins(line):
        parts = [line.get(part) for part in ("workload", "device", "environment", "settings")]
        if type(line.get("steps_before")) is not int or not all(isinstance(part, dict) for part in parts):
            return False
        return isinstance(line["workload"].get("name"), str) and isinstance(line["device"].get("type"), str)
    if "figures" in line:
        figures = line["figures"]
        numbers = isinstance(figures, dict) and all(type(value) in (int, float) for value in figures.values())
        return numbers and type(line.get("step")) is int and isinstance(line.get("date"), str)
    return True
