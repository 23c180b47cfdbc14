"""The tables of a run store, and what makes each version of them of the one before."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gpuprof.analysis import comparison
from gpuprof.late import pd
from gpuprof.record import Record, load

VERDICTS = ("none", "pass", "improvement", "regression", "drift", "inconclusive")

METRICS = tuple(name for name in comparison.LAUNCH_COLUMNS if name not in ("launch", "invalid"))
"""Figures of a launch."""

ABOUT = ("id", "date", "commit", "workload", "fingerprint", "device", "verdict", "accepted", "decided")

RUNS = sa.table("gpuprof_runs", *map(sa.column, (*ABOUT, "facts", "run")))

LAUNCHES = sa.table("gpuprof_launches", *map(sa.column, ("run", "launch", "invalid", *METRICS, "flops_exact")))

STORE = sa.table("gpuprof_store", sa.column("version"))


def version_of(connection: sa.Connection) -> int:
    """Version of the schema; 0 where there is none."""
    if not sa.inspect(connection).has_table(STORE.name):
        return 0
    return int(connection.execute(sa.select(STORE.c.version)).scalar_one())


def _tables(connection: sa.Connection) -> None:
    """Version 1."""
    made = sa.MetaData()
    text, figure = (lambda name: sa.Column(name, sa.Text, nullable=False)), (lambda name: sa.Column(name, sa.Double))
    sa.Table(STORE.name, made, sa.Column("version", sa.Integer, nullable=False))
    sa.Table(
        RUNS.name, made, sa.Column("id", sa.Text, primary_key=True),
        *map(text, ("date", "commit", "workload", "fingerprint", "facts", "device", "verdict")),
        sa.Column("accepted", sa.SmallInteger, nullable=False), sa.Column("run", sa.LargeBinary, nullable=False),
        sa.Index("gpuprof_series", "workload", "fingerprint", "date"),
    )  # fmt: skip
    sa.Table(
        LAUNCHES.name, made, sa.Column("run", sa.ForeignKey(f"{RUNS.name}.id"), primary_key=True),
        sa.Column("launch", sa.Integer, primary_key=True, autoincrement=False), text("invalid"),
        *map(figure, (
            "step_s", "step_iqr_s", "forward_s", "backward_s", "optimizer_s", "tokens_per_s", "samples_per_s",
            "mfu_datasheet", "mfu_clock", "mfu_measured", "energy_j", "sm_clock_mhz", "peak_bytes", "flops", "kernels",
        )),
    )  # fmt: skip
    made.create_all(connection)
    connection.execute(STORE.insert().values(version=0))


def _another_figure(connection: sa.Connection, name: str, kind: str = "DOUBLE PRECISION") -> None:
    """A further figure of the launches, of the runs that are there too."""
    connection.exec_driver_sql(f"ALTER TABLE {LAUNCHES.name} ADD COLUMN {name} {kind}")
    for identity in connection.execute(sa.select(RUNS.c.id)).scalars().all():
        _refigure(connection, identity, [name])


def _refigure(connection: sa.Connection, identity: str, names: Collection[str]) -> None:
    """Figures of the launches of a stored run, as this gpuprof has them."""
    for launch in figures_of(run_of(content_of(connection, identity), identity)):
        here = (LAUNCHES.c.run == identity) & (LAUNCHES.c.launch == launch["launch"])
        connection.execute(LAUNCHES.update().where(here).values({name: launch[name] for name in names}))


def _figures_of_generations(connection: sa.Connection) -> None:
    """What generations are judged by; and what their tokens/s are of, which were positions before: new tokens."""
    shares = [f"mfu_prefill_{name}" for name in ("given", "datasheet", "clock", "measured")]
    added = ["ttft_s", "tpot_s", "tpot_p99_s", *shares, "mbu_datasheet", "mbu_measured"]
    for name in added:
        connection.exec_driver_sql(f"ALTER TABLE {LAUNCHES.name} ADD COLUMN {name} DOUBLE PRECISION")
    generations = sa.select(RUNS.c.id).where(RUNS.c.workload.contains("-generate-"))
    for identity in connection.execute(generations).scalars().all():
        _refigure(connection, identity, [*added, "tokens_per_s"])


def _decisions(connection: sa.Connection) -> None:
    """Who said that a run is held against."""
    connection.exec_driver_sql(f"ALTER TABLE {RUNS.name} ADD COLUMN decided SMALLINT NOT NULL DEFAULT 0")
    decided_before(connection)


def decided_before(connection: sa.Connection, among: Collection[str] | None = None) -> None:
    """What runs of an older gpuprof do not tell: whether it is decided that they are held against, or are not.

    It is where that is not what the verdict suggests. And an improvement began its level at once: it did where what
    came next passed, or was better still, and where that was a regression it was one odd run.

    Args:
        connection: to the store.
        among: ids of those runs; all of the store by default.
    """
    columns = (RUNS.c[name] for name in ("id", "workload", "fingerprint", "verdict", "accepted"))
    runs = connection.execute(sa.select(*columns).order_by(RUNS.c.date, RUNS.c.id)).all()
    decided, came_next = set[str](), dict[tuple[str, str], str]()
    for run in reversed(runs):
        series = (run.workload, run.fingerprint)
        began = run.verdict == "improvement" and came_next.get(series) in ("pass", "improvement")
        if began or bool(run.accepted) != acceptable(run.verdict):
            decided.add(run.id)
        if run.verdict not in ("none", "inconclusive") and bool(run.accepted) >= acceptable(run.verdict):
            came_next[series] = run.verdict
    for identity in decided if among is None else decided & set(among):
        connection.execute(RUNS.update().where(RUNS.c.id == identity).values(decided=1))


STEPS: list[Callable[[sa.Connection], None]] = [
    _tables,
    partial(_another_figure, name="mfu_given"),
    partial(_another_figure, name="reference_per_s"),
    partial(_another_figure, name="flops_exact", kind="TEXT"),  # in digits: SQLite has no integers beyond 64 bits
    partial(_another_figure, name="priced_share"),
    _decisions,
    _figures_of_generations,
]
"""What makes each version of the schema of the one before. Never changed, only added to."""


def figures_of(run: Record) -> list[dict[str, Any]]:
    """Rows of the launches of a run."""
    rows = []
    for launch in comparison.launches(run).to_dict("records"):
        known = {name: launch.get(name) for name in METRICS}
        figures = {name: None if value is None or pd.isna(value) else float(value) for name, value in known.items()}
        exact = None if pd.isna(launch["flops"]) else str(launch["flops"])
        rows.append({"launch": int(launch["launch"]), "invalid": launch["invalid"], **figures, "flops_exact": exact})
    return rows


def content_of(connection: sa.Connection, identity: str) -> bytes:
    """The run file, as it came."""
    stored = connection.execute(sa.select(RUNS.c.run).where(RUNS.c.id == identity)).scalar_one()
    return gzip.decompress(stored)


def run_of(content: bytes, identity: str) -> Record:
    """The run in the content of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{identity}.json"
        path.write_bytes(content)
        return load(path)


def acceptable(verdict: str) -> bool:
    """Whether later runs are held against a run, unless somebody says otherwise."""
    return verdict not in ("regression", "drift", "inconclusive")
