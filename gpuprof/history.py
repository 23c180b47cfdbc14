"""Runs in a database: each whole and compressed, with the figures of its launches beside it.

SQLite by default, in one file and for any number of processes of one machine; PostgreSQL for a team. One run is one
transaction. One process writes at a time and the others wait, so nothing is lost and nothing is half written.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from gpuprof import dates, store_url, units
from gpuprof.analysis import comparison, levels
from gpuprof.errors import GpuprofError
from gpuprof.files import write_atomically
from gpuprof.late import pd
from gpuprof.log import is_log
from gpuprof.record import Record, load
from gpuprof.schema import integers
from gpuprof.store_url import DRIVERS, FORMS

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, DBAPIError
except ImportError as missing:
    raise GpuprofError(
        "a run store needs SQLAlchemy, which is not installed: pip install 'gpuprof[history]'"
    ) from missing

from gpuprof.history_schema import (
    ABOUT,
    LAUNCHES,
    METRICS,
    RUNS,
    STEPS,
    STORE,
    VERDICTS,
    acceptable,
    content_of,
    decided_before,
    figures_of,
    run_of,
    version_of,
)

NOTES = "history.json"
"""The file of an export that has what is known of its runs beyond their files."""

_PATIENCE_S = 60  # that a writer waits for the others
_LOCK = 0x67707566  # the number of our advisory lock on PostgreSQL: "gpuf"


def open_store(url: str | os.PathLike[str], create: bool = True) -> Store:
    """The store at a URL, its schema brought up to date.

    Args:
        url: ``sqlite:///FILE``, a path, or ``postgresql+psycopg://USER@HOST/DATABASE``.
        create: make it where there is none.

    Raises:
        GpuprofError: no such URL, driver, folder, server or store; not readable; not a store; of a newer gpuprof.
    """
    store_url.check(url, create)
    store = Store(_address(url))
    try:
        store.migrate(create)
    except GpuprofError:
        store.close()
        raise
    return store


class Store:
    """Runs in a database; made by `open_store`.

    A run's id is made of its content, so it is the same in every store, and a run is never stored twice. Its date is
    that of the measurement, in UTC.

    Every method raises GpuprofError where the database cannot do it, and then has changed nothing.
    """

    def __init__(self, address: sa.URL) -> None:
        self._sqlite = address.get_backend_name() == "sqlite"
        self.name = str(address.database) if self._sqlite else address.render_as_string(hide_password=True)
        waiting = {"timeout": _PATIENCE_S} if self._sqlite else {"connect_timeout": 10}
        try:
            self._engine = sa.create_engine(address, connect_args=waiting)
        except ImportError as error:
            raise GpuprofError(
                f"the store {self.name} needs {error.name}, which is not installed: pip install 'gpuprof[postgres]'"
            ) from error
        sa.event.listen(self._engine, "begin", self._begin)
        if self._sqlite:
            sa.event.listen(self._engine, "connect", _safe_sqlite)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def migrate(self, create: bool = True) -> None:
        """Bring the schema up to the version of this gpuprof, step by step, each in a transaction of its own.

        Raises:
            GpuprofError: the store is of a newer gpuprof, or the database is that of something else; or it is empty and
                none is to be made.
        """
        with self._transaction() as connection:
            version = version_of(connection)
            strange = self._sqlite and not version and sa.inspect(connection).get_table_names()
        if version > len(STEPS):
            raise GpuprofError(
                f"the store {self.name} has schema version {version}, this gpuprof knows up to {len(STEPS)}: "
                "upgrade gpuprof"
            )
        if strange:
            raise GpuprofError(f"{self.name} is a database of something else, with a table {strange[0]}: give another")
        if not version and not create:
            raise GpuprofError(f"{self.name} has no runs: 'gpuprof profile --store' and 'history import' add some")
        for number in range(version, len(STEPS)):
            with self._transaction(write=True) as connection:
                if version_of(connection) == number:  # nobody else was quicker
                    STEPS[number](connection)
                    connection.execute(STORE.update().values(version=number + 1))

    def add(self, run: Record, commit: str = "", verdict: str = "none", accepted: bool | None = None) -> str:
        """Store a run.

        Args:
            run: with a date in its environment.
            commit: of the code that was measured.
            verdict: of `VERDICTS`.
            accepted: whether later runs are held against it; by default unless it is a regression or inconclusive.

        Returns:
            Its id. A run that is there already stays as it is.
        """
        content = _saved(run)
        identity = _identity(content)
        noted = {"commit": commit, "verdict": verdict} | ({} if accepted is None else {"accepted": accepted})
        self._put(content, run, noted)
        return identity

    def runs(self, workload: str = "", fingerprint: str = "", since: str = "") -> pd.DataFrame:
        """One row per run, the oldest first, with the medians of its valid launches.

        Args:
            workload: part of the workload key; every workload if empty.
            fingerprint: hash of the fingerprint; every one if empty.
            since: ISO date, UTC unless it says otherwise.

        Returns:
            Columns id, date, commit, workload, fingerprint, device, verdict, accepted, launches (valid ones) and
            `METRICS`, missing where no valid launch has one.
        """
        where = _filter(workload, fingerprint, since)
        with self._transaction() as connection:
            about = _frame(connection, _runs(*where)).set_index("id")
            launches = _frame(connection, _launches(*where))
        valid = launches[launches["invalid"] == ""].groupby("run")
        about["launches"] = valid.size().reindex(about.index, fill_value=0)
        # every launch of a run has the run's FLOPs
        medians = valid[[name for name in METRICS if name != "flops"]].median().assign(flops=valid["flops"].first())
        return about.join(medians[list(METRICS)]).reset_index()

    def series(self, workload: str = "", fingerprint: str = "", since: str = "") -> pd.DataFrame:
        """One row per launch, the oldest first; arguments as for `runs`.

        Returns:
            Columns run, date, launch, invalid (why, empty where valid) and `METRICS`.
        """
        with self._transaction() as connection:
            return _frame(connection, _launches(*_filter(workload, fingerprint, since)))

    def baseline(self, run: Record, allowed: Collection[str] = ()) -> pd.DataFrame:
        """What a run is to be held against: valid launches of runs of its like before it.

        They have its workload and fingerprint. `gpuprof.analysis.levels` says which of them are the level that it is
        held to, and which are noise. Of launches before that level the noise counts and not the level: their figures
        are scaled to its median. Counts are not.

        Args:
            run: the run, itself in the store or not.
            allowed: fields of the fingerprint that may differ.

        Returns:
            As `series`, of the newest `gpuprof.analysis.noise.WINDOW` runs and of those that the level began with; with
            the columns level, held, noise and began of `gpuprof.analysis.levels`, and those that are allowed to differ.
        """
        known = self.fingerprints(comparison.workload_key(run))
        facts = comparison.fingerprint(run)
        alike = [name for name, there in known.items() if not comparison.differences(there, facts, allowed)]
        where = [RUNS.c.fingerprint.in_(alike), RUNS.c.date < _date(run)]
        valid = [LAUNCHES.c.invalid == ""]
        counts = sa.select(LAUNCHES.c.run, sa.func.count()).where(*valid).group_by(LAUNCHES.c.run)
        with self._transaction() as connection:
            runs = _frame(connection, _runs(*where))
            launches = {str(name): int(number) for name, number in connection.execute(counts)}
            runs = levels.standing(runs[runs["id"].isin(launches)]).set_index("id")
            chosen = levels.window(runs, pd.Series(launches, dtype="int64"))
            frame = _frame(connection, _launches(*valid, LAUNCHES.c.run.in_(list(chosen.index))))
        allowed_to = {name: [known[own].get(name, "") for own in chosen["fingerprint"]] for name in allowed}
        chosen = chosen.assign(**allowed_to)
        frame = frame.join(chosen[["level", "held", "noise", "began", *allowed]], on="run")
        return levels.to_newest(frame, [name for name in METRICS if name not in comparison.UNSCALED])

    def fingerprints(self, workload: str) -> dict[str, dict[str, str]]:
        """Every fingerprint that a workload was measured under, by its hash, that of the newest run first."""
        newest = sa.func.max(RUNS.c.date)
        columns = (RUNS.c.fingerprint, RUNS.c.facts)
        query = sa.select(*columns).where(RUNS.c.workload == workload).group_by(*columns).order_by(newest.desc())
        with self._transaction() as connection:
            return {name: json.loads(facts) for name, facts in connection.execute(query)}

    def load(self, identity: str) -> Record:
        """The whole run with an id, or with the only one that begins so.

        Raises:
            GpuprofError: no such run, or more than one.
        """
        with self._transaction() as connection:
            whole = self._resolve(connection, identity)
            return run_of(content_of(connection, whole), whole)

    def mark(self, identity: str, verdict: str | None = None, accepted: bool | None = None) -> bool:
        """Note of a run what was found of it, and whether later runs are held against it; None leaves as it is.

        With a verdict, `accepted` is what it suggests, by default as for `add`: what somebody has said against an
        earlier verdict stays.

        Returns:
            Whether later runs are held against it now.

        Raises:
            GpuprofError: no such run, or no such verdict.
        """
        _check_verdict(verdict or "none")
        with self._transaction(write=True) as connection:
            whole = self._resolve(connection, identity)
            columns = (RUNS.c.verdict, RUNS.c.accepted, RUNS.c.decided)
            there = connection.execute(sa.select(*columns).where(RUNS.c.id == whole)).one()
            now, decided = bool(there.accepted), bool(there.decided)
            if verdict is None:
                now, decided = (now, decided) if accepted is None else (accepted, True)
            elif not decided:
                now = acceptable(verdict) if accepted is None else accepted
            values = {"verdict": verdict or there.verdict, "accepted": int(now), "decided": int(decided)}
            connection.execute(RUNS.update().where(RUNS.c.id == whole).values(values))
        return now

    def prune(
        self, before: str = "", keep: int | None = None, workload: str = "", dry_run: bool = False
    ) -> pd.DataFrame:
        """Remove old runs for good.

        Args:
            before: ISO date; those from before it.
            keep: all but so many of each workload and fingerprint, the newest.
            workload: part of the workload key; every workload if empty.
            dry_run: remove nothing.

        Returns:
            What was or would be removed: as `runs`, without figures.

        Raises:
            GpuprofError: neither or both of `before` and `keep` are given.
        """
        if (not before) == (keep is None):
            raise GpuprofError(
                "say which runs to prune: those before a date (--before), or all but so many (--keep); not both"
            )
        if keep is not None and keep < 0:
            raise GpuprofError(f"cannot keep {keep} runs: give 0 or more")
        where = _filter(workload)
        if before:
            where.append(RUNS.c.date < dates.kept(before))
        with self._transaction(write=not dry_run) as connection:
            runs = _frame(connection, _runs(*where))
            if keep is not None:
                runs = runs[runs.groupby(["workload", "fingerprint"]).cumcount(ascending=False) >= keep]
            if not dry_run:
                for identity in runs["id"]:
                    connection.execute(LAUNCHES.delete().where(LAUNCHES.c.run == identity))
                    connection.execute(RUNS.delete().where(RUNS.c.id == identity))
        return runs.reset_index(drop=True)

    def export(self, folder: str | os.PathLike[str], workload: str = "", since: str = "") -> list[Path]:
        """Write runs as files that every verb reads, and what the store knows of them beside.

        Args:
            folder: made where there is none; its parent must be there.
            workload: as for `runs`.
            since: as for `runs`.

        Returns:
            The files of the runs, the oldest first.

        Raises:
            GpuprofError: a file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise GpuprofError(f"cannot make the folder {folder}: {error.strerror or error}") from error
        paths, notes = [], _notes(folder)
        with self._transaction() as connection:
            for row in connection.execute(_runs(*_filter(workload, since=since))).all():
                path = folder / f"{row.date[:10]}-{row.id}.json.gz"
                paths.append(write_atomically(path, content_of(connection, row.id)))
                notes[row.id] = {"commit": row.commit, "verdict": row.verdict} | {
                    name: bool(getattr(row, name)) for name in ("accepted", "decided")
                }
        write_atomically(folder / NOTES, json.dumps(notes, indent=1) + "\n")
        return paths

    def import_(self, paths: Iterable[str | os.PathLike[str]]) -> list[str]:
        """Store the runs in files, each in a transaction of its own, with what an export noted beside them.

        Args:
            paths: files of runs, or logs or folders of trainings; the notes themselves, `NOTES`, may be among them.

        Returns:
            Ids of those that were not there.

        Raises:
            GpuprofError: a file is no run; those before it are stored, and it says how many.
        """
        added, older, notes = list[str](), list[str](), cache(_notes)
        for path in map(Path, paths):
            try:
                noted = notes(path.parent)
                if path.name == NOTES and path.exists():
                    continue
                run = load(path)
                content = _saved(run) if path.is_dir() or is_log(path) else path.read_bytes()
                content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
                identity = _identity(content)
                if self._put(content, run, noted.get(identity, {})):
                    added.append(identity)
                    if "accepted" in noted.get(identity, {}) and "decided" not in noted[identity]:
                        older.append(identity)
            except GpuprofError as error:
                self._decide(older)
                if not added:
                    raise
                raise GpuprofError(f"{error} (stored before it: {units.number(len(added), 'run')})") from error
        self._decide(older)
        return added

    def _decide(self, older: Collection[str]) -> None:
        """Of runs that an older gpuprof exported, whether it is decided that they are held against."""
        if older:
            with self._transaction(write=True) as connection:
                decided_before(connection, older)

    def _put(self, content: bytes, run: Record, noted: dict[str, Any]) -> bool:
        """Store a run with its content, unless it is there; whether it was not."""
        _check_verdict(noted.get("verdict", "none"))
        identity, facts = _identity(content), json.dumps(comparison.fingerprint(run), sort_keys=True)
        row: dict[str, Any] = {
            "id": identity,
            "date": _date(run),
            "commit": "",
            "workload": comparison.workload_key(run),
            "fingerprint": hashlib.sha256(facts.encode()).hexdigest()[:12],
            "facts": facts,
            "device": ", ".join(filter(None, (run.device.get("name") or run.device["type"], run.of_job))),
            "verdict": "none",
            "accepted": acceptable(noted.get("verdict", "none")),
            "decided": False,
            "run": gzip.compress(content, mtime=0),
        } | noted
        row |= {name: int(row[name]) for name in ("accepted", "decided")}
        launches = [{"run": identity, **launch} for launch in figures_of(run)]
        with self._transaction(write=True) as connection:
            if connection.execute(sa.select(RUNS.c.id).where(RUNS.c.id == identity)).first():
                return False
            connection.execute(RUNS.insert().values(row))
            if launches:
                connection.execute(LAUNCHES.insert(), launches)
        return True

    def resolve(self, identity: str) -> str:
        """The whole id of the only run whose id begins so.

        Raises:
            GpuprofError: no such run, or more than one.
        """
        with self._transaction() as connection:
            return self._resolve(connection, identity)

    def _resolve(self, connection: sa.Connection, beginning: str) -> str:
        """The whole id."""
        query = sa.select(RUNS.c.id).where(RUNS.c.id.startswith(beginning, autoescape=True)).order_by(RUNS.c.id)
        found = connection.execute(query.limit(3)).scalars().all()
        if not found:
            raise GpuprofError(f"no run {beginning} in {self.name}: 'gpuprof history list' has the ids")
        if len(found) > 1:
            raise GpuprofError(f"{beginning} is the beginning of more than one id: {', '.join(found)}; give more of it")
        return str(found[0])

    def _begin(self, connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        if self._sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        elif write:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_PATIENCE_S}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        try:
            with self._engine.execution_options(write=write).begin() as connection:
                yield connection
        except DBAPIError as error:
            said = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            meaning = next((text for words, text in _MEANINGS.items() if words in said), f"cannot be used: {said}")
            raise GpuprofError(f"the store {self.name} {meaning}") from error


_MEANINGS = {
    "is not a database": "is no SQLite database, or its beginning is damaged: give another file, or restore a copy",
    "malformed": "is damaged: restore a copy, or save what can be read with 'sqlite3 FILE .recover'",
    "readonly": "is read-only: to store a run its file must be writable, and to list them its folder; or copy it",
    "unable to open": "cannot be opened: its file and its folder must be readable and writable",
    "is locked": f"was being written by another process for over {_PATIENCE_S} s: nothing was changed; try again",
    "lock timeout": f"was being written by another process for over {_PATIENCE_S} s: nothing was changed; try again",
    "is full": "has no room on its disk: nothing was changed; make room first",
    "No space left": "has no room on its disk: nothing was changed; make room first",
}
"""What is said of a store for words in the database's own message."""


def _address(url: str | os.PathLike[str]) -> sa.URL:
    """A URL that `store_url.check` has let pass, as SQLAlchemy takes it."""
    text = str(url)
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        address = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise GpuprofError(f"the URL of the store cannot be read: {FORMS}") from error
    backend = address.get_backend_name()
    driver, form = DRIVERS[backend]
    if not address.database or (backend == "sqlite" and (address.host or address.database == ":memory:")):
        raise GpuprofError(f"the URL {address.render_as_string()} names no {backend} database: {FORMS}")
    if backend == "sqlite" and address.query:
        raise GpuprofError(f"the URL {address.render_as_string()} has a query, which a file has not: give {form}")
    return address.set(drivername=f"{backend}+{driver}")  # of itself SQLAlchemy 2.0 takes psycopg2 for PostgreSQL


def _safe_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    patience_ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                connection.execute("PRAGMA auto_vacuum = FULL")  # what is pruned makes the file smaller
                connection.execute("PRAGMA journal_mode = WAL")  # who reads does not wait for who writes
            break
        except sqlite3.OperationalError as error:  # another process makes the store now; SQLite does not wait for that
            if "locked" not in str(error) or time.monotonic() > patience_ends:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")  # what was committed outlives a loss of power


def _filter(workload: str = "", fingerprint: str = "", since: str = "") -> list[sa.ColumnElement[bool]]:
    where = []
    if workload:
        where.append(RUNS.c.workload.contains(workload, autoescape=True))
    if fingerprint:
        where.append(RUNS.c.fingerprint == fingerprint)
    if since:
        where.append(RUNS.c.date >= dates.kept(since))
    return where


def _runs(*where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """What is known of runs, without the runs themselves, the oldest first."""
    columns = (RUNS.c[name] for name in ABOUT)
    return sa.select(*columns).where(*where).order_by(RUNS.c.date, RUNS.c.id)


def _launches(*where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Launches with the date of their run, the oldest first."""
    figures = (LAUNCHES.c.flops_exact.label(name) if name == "flops" else LAUNCHES.c[name] for name in METRICS)
    columns = [LAUNCHES.c.run, RUNS.c.date, LAUNCHES.c.launch, LAUNCHES.c.invalid, *figures]
    joined = sa.select(*columns).join_from(LAUNCHES, RUNS, LAUNCHES.c.run == RUNS.c.id).where(*where)
    return joined.order_by(RUNS.c.date, RUNS.c.id, LAUNCHES.c.launch)


def _frame(connection: sa.Connection, query: sa.Select[Any]) -> pd.DataFrame:
    result = connection.execute(query)
    frame = pd.DataFrame(list(map(tuple, result)), columns=list(result.keys()))
    if "flops" in frame:
        frame["flops"] = integers(frame["flops"])
    types = {name: "float64" for name in METRICS if name != "flops"} | {"accepted": "bool", "decided": "bool"}
    return frame.astype({name: kind for name, kind in types.items() if name in frame})


def _saved(run: Record) -> bytes:
    """The file of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return run.save(Path(folder) / "run.json").read_bytes()


def _identity(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _date(run: Record) -> str:
    if not run.environment.get("date"):
        raise GpuprofError(f"the run of {run.workload['name']} has no date, so it has no place in a history")
    return dates.kept(run.environment["date"])


def _notes(folder: Path) -> dict[str, dict[str, Any]]:
    """What an export noted in a folder of the runs in it, by id."""
    path = folder / NOTES
    try:
        notes = json.loads(path.read_bytes()) if path.exists() else {}
        if not all(
            isinstance(noted, dict) and noted.keys() <= {"commit", "verdict", "accepted", "decided"}
            for noted in notes.values()
        ):
            raise ValueError
    except (OSError, ValueError, AttributeError) as error:
        raise GpuprofError(f"{path} is not what 'gpuprof history export' wrote: remove it, or export again") from error
    return notes


def _check_verdict(verdict: str) -> None:
    if verdict not in VERDICTS:
        raise GpuprofError(f"no verdict {verdict!r}: known are {', '.join(VERDICTS)}")
