"""The record: everything that was measured, raw, in one JSON file. Rates, ratios and percentages are never stored."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from gpuprof import log, log_content
from gpuprof.coded import coded
from gpuprof.errors import ForeignFileError, GpuprofError, no_run
from gpuprof.files import write_atomically
from gpuprof.record_checks import check_facts, check_tables, checked_columns
from gpuprof.schema import FACTS, SCHEMA_VERSION, SINCE, TABLES, columns, table
from gpuprof.tables import HeldTable, Tables

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class PassOutcome:
    """How one pass ended.

    Attributes:
        status: done, skipped or failed.
        reason: why it was skipped or failed, one line.
        remedy: what to do about it, one line.
        seconds: wall time it took.
        facts: what the pass has to say of itself, e.g. events read.
    """

    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record(Tables):
    """One workload, measured once: of a single process, of one rank of a job, or of the job as a whole.

    The tables are tidy and raw; `TABLES` says what each column holds. What they come to is a matter of
    `gpuprof.analysis`, and `gpuprof.run.Run` has that at hand.

    Attributes:
        workload: what was run: name, mode, every option, inputs, loss. In a job also ``world`` (number of processes),
            ``mesh`` (sizes by dimension), ``groups`` and ``parallel``; of one of its ranks ``rank``. Where something is
            compiled ``compiled``: how, by the path of each module that is, or `WHOLE_STEP`.
        device: what it ran on, with the peaks known of it (FLOP/s); of a job those of all its ranks together, and a
            list ``ranks`` of what each said of itself, see `gpuprof.job`.
        environment: versions, date, settings that change speed.
        settings: how the record is to be read: convention, user-given peak.
        passes: outcome of each pass by name.
        warnings: what the user should know, one line each.
        doubts: of a rank or a job why figures of it are withheld, a list for each of `DOUBTS`; of any other
            run it is found out when it is asked for.
        tree, ops, kernels, graphs, nodes, compilations, breaks, estimates, counters, samples, generation, traffic,
            launches, ranks, busy, collectives, memory, timeline, telemetry: the raw tables; graphs, nodes, compilations
            and breaks are of steps that torch.compile took part in; generation and traffic of generations; busy and
            collectives of ranks and jobs, and a job has no kernels. Each is a frame of pandas, made when it is first
            asked for; `columns` gives what it holds without pandas. May be set as either.
    """

    workload: dict[str, Any]
    device: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=lambda: {"convention": "causal"})
    passes: dict[str, PassOutcome] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    doubts: dict[str, list[str]] = field(default_factory=dict)
    tree: pd.DataFrame = HeldTable()
    ops: pd.DataFrame = HeldTable()
    kernels: pd.DataFrame = HeldTable()
    graphs: pd.DataFrame = HeldTable()
    nodes: pd.DataFrame = HeldTable()
    compilations: pd.DataFrame = HeldTable()
    breaks: pd.DataFrame = HeldTable()
    estimates: pd.DataFrame = HeldTable()
    counters: pd.DataFrame = HeldTable()
    samples: pd.DataFrame = HeldTable()
    generation: pd.DataFrame = HeldTable()
    traffic: pd.DataFrame = HeldTable()
    launches: pd.DataFrame = HeldTable()
    ranks: pd.DataFrame = HeldTable()
    busy: pd.DataFrame = HeldTable()
    collectives: pd.DataFrame = HeldTable()
    memory: pd.DataFrame = HeldTable()
    timeline: pd.DataFrame = HeldTable()
    telemetry: pd.DataFrame = HeldTable()

    def done(self, name: str) -> bool:
        """Whether the named pass ran to its end."""
        return name in self.passes and self.passes[name].status == "done"

    @property
    def recorded(self) -> bool:
        """Whether it was read from a recorded trace, and not measured."""
        return self.done("trace") and bool(self.passes["trace"].facts.get("recorded"))

    @property
    def metered(self) -> bool:
        """Whether it is of the steps of a training, which need not be alike: what it counted is their mean."""
        return self.workload.get("source") == "meter"

    @property
    def is_job(self) -> bool:
        """Whether it is of a job as a whole, and not of one of its ranks."""
        return self.workload.get("world", 1) > 1 and "rank" not in self.workload

    @property
    def of_job(self) -> str:
        """What it is of a job, in words: ``4 ranks`` or ``rank 1 of 4``; empty of a single process."""
        world = self.workload.get("world", 1)
        if "rank" in self.workload:
            return f"rank {self.workload['rank']} of {world}"
        return f"{world} ranks" if world > 1 else ""

    def _facts(self) -> dict[str, Any]:
        """What a file has beside the tables."""
        return {
            "gpuprof": "run",
            "schema_version": SCHEMA_VERSION,
            "workload": self.workload,
            "device": self.device,
            "environment": self.environment,
            "settings": self.settings,
            "passes": {name: vars(outcome) for name, outcome in self.passes.items()},
            "warnings": self.warnings,
            **({"doubts": self.doubts} if self.doubts else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON-ready values; tables column by column, in lists of the caller's own."""
        return self._facts() | {
            name: {column: [*given] for column, given in self.columns(name).items()} for name in TABLES
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the run as JSON, gzip if the name ends in ``.gz``. The file appears whole or not at all.

        Raises:
            GpuprofError: the file cannot be written.
        """
        content = self._facts() | {name: coded(self.columns(name)) for name in TABLES}
        return write_atomically(path, json.dumps(content, allow_nan=False, separators=(",", ":")))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what was saved, or the log of a `gpuprof.Meter`, or the folder of one. Does not need torch.

        Raises:
            GpuprofError: no such file, not a gpuprof run, truncated, a part missing or broken, or written by a newer
                gpuprof.
        """
        data = _read(path, TABLES)
        with whole_file(path):
            passes = {name: PassOutcome(**outcome) for name, outcome in data["passes"].items()}
            tables = {name: data[name] for name in TABLES if name in data}
            loaded = cls(**{key: data[key] for key in FACTS}, passes=passes, **tables)
            check_tables({name: loaded.__dict__[name] for name in TABLES})
            return loaded


def load(path: str | os.PathLike[str]) -> Record:
    """Read a saved record; see `Record.load`."""
    return Record.load(path)


def read(path: str | os.PathLike[str], tables: Iterable[str] = TABLES) -> dict[str, Any]:
    """A saved run as `Record.to_dict` has it, as far as it goes without what holds between tables.

    Args:
        path: of the file.
        tables: those that are wanted. What the file is too old to have is left out.

    Raises:
        GpuprofError: as in `Record.load`.
    """
    data = _read(path, tables)
    return data | {
        name: {column: [*values] for column, values in data[name].items()} for name in tables if name in data
    }


def _read(path: str | os.PathLike[str], tables: Iterable[str]) -> dict[str, Any]:
    """The same, with columns as the file has them."""
    path = Path(path)
    if path.is_dir():
        path = log.of_folder(path)
    try:
        raw = path.read_bytes()
        if log.is_log(path):
            return _of_log(raw, path, tables)
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        data = json.loads(text)
    except OSError as error:
        if not path.exists():
            raise no_run(path) from error
        raise GpuprofError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, RecursionError, ValueError, zlib.error) as error:
        if path.suffix == ".jsonl" and not raw:
            raise GpuprofError(f"{path} is empty: its meter has not been read yet") from error
        raise GpuprofError(f"{path} is not a whole gpuprof run (truncated or foreign): profile again") from error
    if _is_trace(data):
        raise ForeignFileError(f"{path} is a trace: make a run of it with 'gpuprof import {path} -o run.json.gz'")
    if not isinstance(data, dict) or data.get("gpuprof") != "run":
        raise ForeignFileError(f"{path} is JSON but no gpuprof run: give a file saved by 'gpuprof profile -o'")
    version = data.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise GpuprofError(
            f"{path} has schema version {version}, this gpuprof reads up to {SCHEMA_VERSION}: upgrade gpuprof"
        )
    return _checked(data, path, tables)


def _of_log(raw: bytes, path: Path, tables: Iterable[str]) -> dict[str, Any]:
    """The log of a meter as the run that it is, which has few tables."""
    content = {name: columns(table(name, [])) for name in TABLES} | log_content.content(raw, path)
    return _checked({"schema_version": SCHEMA_VERSION, **content}, path, tables)


def _checked(data: dict[str, Any], path: Path, tables: Iterable[str]) -> dict[str, Any]:
    version = data["schema_version"]
    with whole_file(path):
        if version < 1:
            raise ValueError(f"schema version {version}")
        data.setdefault("doubts", {})
        check_facts(data)
        there = [name for name in tables if version >= SINCE.get(name, 1)]
        facts = {key: data[key] for key in (*FACTS, "passes")}
        for name, outcome in data["passes"].items():
            if PassOutcome(**outcome).status not in ("done", "skipped", "failed"):
                raise ValueError(f"the {name} pass neither ended nor did not")
        return facts | {name: checked_columns(name, data[name]) for name in there}


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong inside a file is one line that names it."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise GpuprofError(f"{path} is a gpuprof run with a part missing or broken ({error}): profile again") from error


def _is_trace(data: Any) -> bool:
    """Whether it is what torch.profiler saves: an object with the events, or they alone."""
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], dict) and "ph" in data[0]
    return isinstance(data, dict) and "traceEvents" in data
