"""The store of runs, on SQLite and on a PostgreSQL server that the tests start."""

import gzip
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from history_on_postgres import server, write_runs
from runs import generation_run, gpu_run

from gpuprof import history
from gpuprof.analysis import comparison
from gpuprof.errors import GpuprofError
from gpuprof.history import open_store
from gpuprof.schema import table

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["gpuprof.history"])


@pytest.fixture(scope="module")
def postgres():
    with server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Of a store that is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'history.db'}"
        return
    base, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(base.replace("NAME", "postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield base.replace("NAME", name)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@pytest.fixture
def store(url):
    with open_store(url) as opened:
        yield opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.db"


def run_of(day, *, name="net", driver="570.1", steps=(480e-9,), hot=(), clock=None, at="03:04:05+00:00"):
    """A run of a day in January 2026, with a launch of each of these step times; those listed as hot are invalid."""
    run = gpu_run()
    run.workload["name"] = name
    run.device["driver"] = driver
    run.environment["date"] = f"2026-01-{day:02}T{at}"
    run.samples = table(
        "samples", [{"launch": n, "step": 0, "phase": "step", "time_s": time_s} for n, time_s in enumerate(steps)]
    )
    heat = {"time_s": 0.0, "quantity": "event_reasons", "unit": "mask", "value": 64.0}  # hardware thermal slowdown
    clocks = [{"time_s": 0.0, "quantity": "sm_clock", "unit": "MHz", "value": clock}] if clock else []
    run.telemetry = table("telemetry", [heat | {"launch": n} for n in hot] + clocks)
    return run


def error_of(body, *arguments, **options):
    with pytest.raises(GpuprofError) as caught:
        body(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_comes_back_as_it_was(store):
    run = gpu_run()
    identity = store.add(run, "abc1234")

    assert store.load(identity).to_dict() == run.to_dict()
    assert store.load(identity[:4]).to_dict() == run.to_dict()


def test_a_run_is_known_by_its_content_and_stored_once(store, tmp_path):
    run = gpu_run()
    saved = run.save(tmp_path / "run.json").read_bytes()

    assert store.add(run, "abc1234", "pass") == hashlib.sha256(saved).hexdigest()[:16]
    assert store.add(run, "def5678") == store.runs()["id"].item()
    assert store.runs()["commit"].item() == "abc1234"


def test_runs_have_the_medians_of_their_valid_launches(store):
    # 12,000 FLOPs at 100 GFLOP/s are 120 ns
    store.add(run_of(2, steps=(480e-9, 240e-9, 400e-9, 120e-9), hot=(3,)), "abc1234", "pass")
    row = store.runs().iloc[0]

    assert row["launches"] == 3
    assert row["step_s"] == 400e-9
    assert row["mfu_datasheet"] == pytest.approx(0.3, rel=1e-12)
    assert row["tokens_per_s"] == pytest.approx(8 / 400e-9)
    assert row["flops"] == 12_000
    assert row[["energy_j", "sm_clock_mhz", "mfu_clock"]].isna().all()
    assert list(row[["date", "commit", "device", "verdict", "accepted"]]) == [
        "2026-01-02T03:04:05+00:00", "abc1234", "Toy GPU", "pass", True,
    ]  # fmt: skip


def test_runs_without_a_valid_launch_are_listed_without_figures(store):
    counted = gpu_run()
    counted.samples = table("samples", [])
    store.add(counted)
    store.add(run_of(3, hot=(0,)))

    assert list(store.runs()["launches"]) == [0, 0]
    assert store.runs()["step_s"].isna().all()
    assert len(store.series()) == 1


def test_series_have_every_launch_with_the_reason_why_it_counts_not(store):
    store.add(run_of(3, steps=(3e-6, 4e-6), hot=(1,)))
    store.add(run_of(2, steps=(2e-6,)))
    series = store.series()

    assert list(series["step_s"]) == [2e-6, 3e-6, 4e-6]
    assert list(series["launch"]) == [0, 0, 1]
    assert list(series["invalid"]) == ["", "", "hardware thermal slowdown in 1 of 1 samples"]


def test_an_empty_store_has_empty_tables(store):
    assert len(store.runs()) == len(store.series()) == len(store.baseline(gpu_run())) == 0
    assert {"id", "launches", "mfu_datasheet"} <= set(store.runs())


def test_the_columns_of_a_launch_are_those_of_the_comparison(store):
    store.add(gpu_run())
    expected = {"run", "date", *comparison.LAUNCH_COLUMNS}

    assert set(store.series()) == expected
    assert set(store.baseline(run_of(9))) == expected | {"level", "held", "noise", "began"}


def test_runs_are_chosen_by_part_of_the_key_and_by_date(store):
    for day, name in ((2, "a_b"), (3, "aXb"), (4, "a%b")):
        store.add(run_of(day, name=name))

    assert [key.partition("-train")[0] for key in store.runs()["workload"]] == ["a_b", "aXb", "a-b"]
    assert len(store.runs("a_b")) == 1  # no wildcard
    assert len(store.runs("%")) == 0
    assert [date[:10] for date in store.runs(since="2026-01-03")["date"]] == ["2026-01-03", "2026-01-04"]
    assert len(store.series(since="2026-01-04T03:04:06")) == 0
    only = store.runs("aXb")["fingerprint"].item()
    assert len(store.runs(fingerprint=only)) == len(store.series(fingerprint=only)) == 1


@pytest.mark.parametrize(
    ("at", "utc"),
    [("03:04:05+02:00", "01:04:05+00:00"), ("03:04:05", "03:04:05+00:00"), ("03:04:05.9+00:00", "03:04:05+00:00")],
)
def test_dates_are_kept_in_utc(store, at, utc):
    store.add(run_of(2, at=at))

    assert store.runs()["date"].item() == f"2026-01-02T{utc}"


def test_what_has_no_place_in_a_history_is_refused(store):
    run = gpu_run()
    assert error_of(store.runs, since="January") == "no date 'January': give one such as 2026-01-31 or 2026-01-31T12:00"
    assert error_of(store.add, run, verdict="bad") == (
        "no verdict 'bad': known are none, pass, improvement, regression, drift, inconclusive"
    )
    for beyond in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-00:01"):  # of the years that there are, in UTC
        assert error_of(store.runs, since=beyond).startswith(f"no date {beyond!r}: give one such as")
    run.environment["date"] = 20260131
    assert error_of(store.add, run).startswith("no date 20260131: give one such as")
    del run.environment["date"]
    assert error_of(store.add, run) == "the run of net has no date, so it has no place in a history"
    assert len(store.runs()) == 0


def test_runs_are_found_by_the_beginning_of_their_id(store):
    ids = sorted(store.add(run_of(day)) for day in range(1, 18))  # of sixteen digits, so two begin alike
    first = next(a[0] for a, b in pairwise(ids) if a[0] == b[0])

    assert error_of(store.load, "xyz").startswith("no run xyz in ")
    assert error_of(store.load, "%").startswith("no run % in ")
    assert store.resolve(ids[0][:12]) == ids[0]
    assert error_of(store.resolve, "xyz") == error_of(store.load, "xyz")
    assert error_of(store.load, first).startswith(f"{first} is the beginning of more than one id: {first}")


def test_a_verdict_can_be_noted_later(store):
    identity = store.add(gpu_run(), "abc")

    for arguments, expected in (
        ({"verdict": "inconclusive"}, ["abc", "inconclusive", False]),
        ({"verdict": "regression"}, ["abc", "regression", False]),
        ({"verdict": "improvement"}, ["abc", "improvement", True]),  # under a wider margin, say
        ({"verdict": "regression"}, ["abc", "regression", False]),
        ({"accepted": True}, ["abc", "regression", True]),
        ({"verdict": "regression"}, ["abc", "regression", True]),  # somebody has said so
        ({"verdict": "inconclusive", "accepted": False}, ["abc", "inconclusive", True]),
        ({"verdict": "regression", "accepted": True}, ["abc", "regression", True]),
        ({"verdict": "pass"}, ["abc", "pass", True]),
        ({"accepted": False}, ["abc", "pass", False]),
        ({"verdict": "pass"}, ["abc", "pass", False]),
    ):
        store.mark(identity[:6], **arguments)
        assert list(store.runs().iloc[0][["commit", "verdict", "accepted"]]) == expected
    assert "no verdict 'good'" in error_of(store.mark, identity, "good")


def test_a_regression_is_stored_without_being_accepted(store):
    store.add(gpu_run(), verdict="regression")

    assert not store.runs()["accepted"].item()


def test_a_baseline_is_of_the_valid_launches_before_a_run(store):
    for day in range(1, 10):
        store.add(run_of(day, steps=(day, day + 0.5), hot=(1,) if day == 6 else ()))
    store.mark(store.runs()["id"].iloc[3], accepted=False)  # of the 4th: somebody left it out
    head = run_of(8)  # not that which is stored under this day

    assert list(store.baseline(head)["step_s"]) == [1, 1.5, 2, 2.5, 3, 3.5, 5, 5.5, 6, 7, 7.5]
    assert len(store.baseline(run_of(30))) == 2 * 8 - 1
    assert store.baseline(head)["run"].iloc[-1] == store.runs()["id"].iloc[6]


def test_a_baseline_is_of_the_newest_runs_and_the_first_of_the_level(store):
    """Of 70 runs of two launches the newest 60, and the ten that have its first 20 launches."""
    for number in range(75):
        run = run_of(1 + number % 28, steps=(1.0, 1.0 + number))
        run.environment["date"] = f"2026-{1 + number // 28:02}-{1 + number % 28:02}T00:00:00+00:00"
        store.add(run)
    head = run_of(1)
    head.environment["date"] = "2027-01-01T00:00:00+00:00"
    baseline = store.baseline(head)

    assert list(baseline["step_s"][1::2]) == [1.0 + number for number in (*range(10), *range(15, 75))]
    assert list(baseline["began"]) == [True] * 20 + [False] * 120


def test_a_refused_run_is_noise_once_a_later_one_came_back(store):
    for day, verdict in ((1, "pass"), (2, "regression"), (3, "pass"), (4, "regression"), (5, "inconclusive")):
        store.add(run_of(day, steps=(day,)), verdict=verdict)
    baseline = store.baseline(run_of(9))

    assert list(baseline["held"]) == [True, False, True, False, False]
    assert list(baseline["noise"]) == [True, True, True, False, False]


@pytest.mark.parametrize("verdict", ["regression", "improvement", "drift"])
def test_a_baseline_is_brought_to_the_newest_level_that_was_accepted(store, verdict):
    """Nights of 1 to 3 s, a level of 10 to 12 s from the 4th on: those before it count as 5.5, 11 and 16.5 s."""
    ids = [store.add(run_of(day, steps=(day if day < 4 else day + 6,), clock=1000 + day)) for day in range(1, 7)]
    store.mark(ids[3], verdict, accepted=False)
    assert list(store.baseline(run_of(8))["level"]) == [0] * 6

    store.mark(ids[3], accepted=True)
    baseline = store.baseline(run_of(8))
    assert list(baseline["step_s"]) == pytest.approx([5.5, 11, 16.5, 10, 11, 12], rel=1e-12)
    assert list(baseline["level"]) == [0, 0, 0, 1, 1, 1]
    assert list(baseline["began"]) == [False] * 3 + [True] * 3
    # their MFU goes with 1/3, 1/2, 1 of its level's median; counts and clocks do not move
    mfu = baseline["mfu_datasheet"] / baseline["mfu_datasheet"].iloc[4]
    assert list(mfu) == pytest.approx([2, 1, 2 / 3, 1.1, 1, 11 / 12], rel=1e-12)
    assert list(baseline["sm_clock_mhz"]) == [1001, 1002, 1003, 1004, 1005, 1006]
    assert baseline["flops"].nunique() == 1
    # as it was before that day
    assert list(store.baseline(run_of(4))["step_s"]) == [1, 2, 3]


def test_a_baseline_has_the_workload_and_the_fingerprint_of_the_run(store):
    store.add(run_of(2, steps=(1e-6,)))
    store.add(run_of(3, steps=(2e-6,), driver="575.2"))
    store.add(run_of(4, steps=(3e-6,), name="other"))

    assert list(store.baseline(run_of(5))["step_s"]) == [1e-6]
    assert list(store.baseline(run_of(5), allowed=["driver"])["step_s"]) == [1e-6, 2e-6]
    known = store.fingerprints(comparison.workload_key(run_of(5)))
    assert [facts["driver"] for facts in known.values()] == ["575.2", "570.1"]  # the newest first
    assert list(known) == list(store.runs()["fingerprint"])[1::-1]


def test_pruning_removes_old_runs_and_nothing_else(store):
    for day in range(1, 5):
        store.add(run_of(day))
        store.add(run_of(day, name="other"))

    would = store.prune(before="2026-01-02", dry_run=True)
    assert [date[:10] for date in would["date"]] == ["2026-01-01"] * 2
    assert len(store.runs()) == 8
    assert list(store.prune(before="2026-01-02")["id"]) == list(would["id"])
    assert len(store.runs()) == len(store.series()) == 6
    assert len(store.prune(keep=1, workload="other")) == 2
    assert [date[8:10] for date in store.runs()["date"]] == ["02", "03", "04", "04"]
    assert len(store.prune(keep=1)) == 2
    assert len(store.prune(keep=1)) == 0
    assert len(store.series()) == 2
    assert len(store.load(store.runs()["id"].iloc[0]).ops) > 0


def test_pruning_makes_the_file_smaller(path):
    with open_store(path) as store:
        for day in range(1, 4):
            big = run_of(day)
            big.environment["noise"] = random.Random(day).randbytes(200_000).hex()
            store.add(big)
    assert path.stat().st_size > 600_000
    with open_store(path) as store:
        store.prune(keep=1)

    assert 200_000 < path.stat().st_size < 300_000


@pytest.mark.parametrize("arguments", [{}, {"before": "2026-01-01", "keep": 3}])
def test_pruning_wants_to_know_what(store, arguments):
    assert error_of(store.prune, **arguments) == (
        "say which runs to prune: those before a date (--before), or all but so many (--keep); not both"
    )
    assert error_of(store.prune, keep=-1) == "cannot keep -1 runs: give 0 or more"


def test_an_export_is_run_files_and_imports_with_all_that_was_known(store, tmp_path):
    first = store.add(run_of(2), "abc1234", "pass")
    second = store.add(run_of(3), "def5678", "regression")
    store.mark(second, accepted=False)
    paths = store.export(tmp_path / "out")

    assert [path.name for path in paths] == [f"2026-01-02-{first}.json.gz", f"2026-01-03-{second}.json.gz"]
    assert gzip.decompress(paths[0].read_bytes()) == run_of(2).save(tmp_path / "again.json").read_bytes()
    with open_store(tmp_path / "other.db") as other:
        assert other.import_(paths) == [first, second]
        assert other.import_(paths) == []
        assert other.runs().equals(store.runs())
        assert other.series().equals(store.series())
    assert store.export(tmp_path / "out", since="2026-01-03") == paths[1:]
    with open_store(tmp_path / "whole.db") as whole:  # the notes are no run, in whatever order they come
        assert set(whole.import_(sorted((tmp_path / "out").iterdir(), reverse=True))) == {first, second}
        assert whole.runs().equals(store.runs())
    assert set(json.loads((tmp_path / "out/history.json").read_text())) == {first, second}


def test_an_import_takes_saved_runs_in_either_form_once(store, tmp_path):
    plain, small = run_of(2).save(tmp_path / "run.json"), run_of(2).save(tmp_path / "run.json.gz")

    assert len(store.import_([plain, small])) == 1
    assert list(store.runs().iloc[0][["commit", "verdict", "accepted"]]) == ["", "none", True]


def test_an_import_ends_at_the_first_file_that_is_no_run(store, tmp_path):
    good = run_of(2).save(tmp_path / "good.json")
    (tmp_path / "bad.json").write_text("{}")

    bad = tmp_path / "bad.json"
    said = f"{bad} is JSON but no gpuprof run: give a file saved by 'gpuprof profile -o'"
    assert error_of(store.import_, [bad, good]) == said
    assert error_of(store.import_, [good, bad, good]) == f"{said} (stored before it: 1 run)"
    assert len(store.runs()) == 1
    others = [run_of(day).save(tmp_path / f"{day}.json") for day in (3, 4)]
    assert error_of(store.import_, [good, *others, bad]) == f"{said} (stored before it: 2 runs)"
    (tmp_path / "history.json").write_text("[]")
    assert error_of(store.import_, [good]) == (
        f"{tmp_path / 'history.json'} is not what 'gpuprof history export' wrote: remove it, or export again"
    )


def test_an_export_needs_a_folder_that_can_be_made(store, tmp_path):
    assert error_of(store.export, tmp_path / "no/folder").startswith(f"cannot make the folder {tmp_path / 'no/folder'}")


# -- schema


def test_a_store_of_version_1_is_migrated(url, tmp_path):
    run = gpu_run()
    run.settings["peak_tflops"] = 0.05  # 12,000 FLOPs are 240 ns of the 480
    content = gzip.compress(run.save(tmp_path / "run.json").read_bytes())
    figures = ("step_s", "step_iqr_s", "forward_s", "backward_s", "optimizer_s", "tokens_per_s", "samples_per_s",
               "mfu_datasheet", "mfu_clock", "mfu_measured", "energy_j", "sm_clock_mhz", "peak_bytes", "flops",
               "kernels")  # fmt: skip
    texts = ("id", "date", '"commit"', "workload", "fingerprint", "facts", "device", "verdict")
    engine = sa.create_engine(url)
    blob = "BLOB" if engine.dialect.name == "sqlite" else "BYTEA"
    with engine.begin() as old:
        old.exec_driver_sql("CREATE TABLE gpuprof_store (version INTEGER NOT NULL)")
        old.exec_driver_sql("INSERT INTO gpuprof_store VALUES (1)")
        columns = ", ".join(f"{name} TEXT NOT NULL" for name in texts)
        old.exec_driver_sql(
            f"CREATE TABLE gpuprof_runs ({columns}, accepted SMALLINT NOT NULL, run {blob} NOT NULL, PRIMARY KEY (id))"
        )
        columns = ", ".join(f"{name} DOUBLE PRECISION" for name in figures)
        old.exec_driver_sql(
            f"CREATE TABLE gpuprof_launches (run TEXT NOT NULL, launch INTEGER NOT NULL, invalid TEXT NOT NULL, "
            f"{columns}, PRIMARY KEY (run, launch))"
        )
        row = ("old", "2026-01-02T03:04:05+00:00", "abc", "net-1", "f1", "{}", "Toy GPU", "pass", 1)
        values = ", ".join(map(repr, row))
        old.execute(sa.text(f"INSERT INTO gpuprof_runs VALUES ({values}, :run)"), {"run": content})
        old.exec_driver_sql("INSERT INTO gpuprof_launches (run, launch, invalid, step_s) VALUES ('old', 0, '', 480e-9)")
    engine.dispose()

    with open_store(url) as store:
        row = store.runs().iloc[0]
        assert row[["id", "verdict", "step_s"]].tolist() == ["old", "pass", 480e-9]
        assert row["mfu_given"] == pytest.approx(0.5, rel=1e-12)
        assert row["priced_share"] == 1.0
        assert store.load("old").to_dict() == run.to_dict()
        store.add(run)
        assert len(store.runs()) == 2
    assert version_of(url) == 7


def test_a_store_from_before_generations_is_brought_up_to_date(url):
    """It had positions/s of a generation, 14 of them in 1360 ns; new tokens are 8."""
    before = {"ttft_s", "tpot_s", "tpot_p99_s", "mfu_prefill_given", "mfu_prefill_datasheet", "mfu_prefill_clock",
              "mfu_prefill_measured", "mbu_datasheet", "mbu_measured"}  # fmt: skip
    with open_store(url) as store:
        generation, training = store.add(generation_run()), store.add(gpu_run())
        with store._transaction(write=True) as connection:
            for name in before:
                connection.exec_driver_sql(f"ALTER TABLE gpuprof_launches DROP COLUMN {name}")
            connection.exec_driver_sql("UPDATE gpuprof_launches SET tokens_per_s = 14 / 1360e-9")
            connection.exec_driver_sql("UPDATE gpuprof_store SET version = 6")

    with open_store(url) as store:
        runs = store.runs().set_index("id")
    assert runs.loc[generation, ["tokens_per_s", "ttft_s", "tpot_s"]].tolist() == pytest.approx(
        [8 / 1360e-9, 400e-9, 320e-9]
    )
    assert runs.loc[generation, ["mfu_prefill_datasheet", "mbu_datasheet"]].tolist() == pytest.approx([0.5, 0.49375])
    assert runs.loc[training, "tokens_per_s"] == pytest.approx(14 / 1360e-9)  # left as it was
    assert runs.loc[training, ["ttft_s", "mbu_datasheet"]].isna().all()


def version_of(url):
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        version = connection.exec_driver_sql("SELECT version FROM gpuprof_store").scalar_one()
    engine.dispose()
    return version


def test_a_migration_that_fails_leaves_the_store_as_it_was(url, monkeypatch):
    with open_store(url) as store:
        store.add(gpu_run())

    def fails(connection):
        connection.exec_driver_sql("ALTER TABLE gpuprof_launches ADD COLUMN half DOUBLE PRECISION")
        raise GpuprofError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(history, "STEPS", [*history.STEPS, fails])
        assert error_of(open_store, url) == "out of luck"
    with open_store(url) as store:
        assert version_of(url) == 7
        with store._transaction() as connection:
            names = {column["name"] for column in sa.inspect(connection).get_columns("gpuprof_launches")}
        assert names == {"run", "launch", "invalid", *history.METRICS, "flops_exact"}
        assert len(store.runs()) == 1


def test_a_newer_store_is_refused(url):
    with open_store(url) as store, store._transaction(write=True) as connection:
        connection.exec_driver_sql("UPDATE gpuprof_store SET version = 8")

    assert error_of(open_store, url).endswith("has schema version 8, this gpuprof knows up to 7: upgrade gpuprof")


def test_a_store_is_not_made_where_it_is_only_read(postgres, path):
    assert error_of(open_store, path, create=False) == (
        f"there is no store {path}: 'gpuprof profile --store' and 'history import' make one"
    )
    assert not path.exists()
    empty = postgres.replace("NAME", "postgres")
    assert "has no runs: 'gpuprof profile --store' and" in error_of(open_store, empty, create=False)


# -- many writers, and sudden ends


def written(logs):
    """Ids that the processes have reported, whole lines only."""
    return [line for log in logs if log.exists() for line in log.read_text().split("\n")[:-1]]


@pytest.mark.parametrize("writers", [2, 8])
def test_writers_at_once_lose_nothing(url, tmp_path, writers):
    logs = [tmp_path / f"log{n}" for n in range(writers)]
    each = 16 // writers
    processes = [
        PROCESSES.Process(target=write_runs, args=(url, n, each, str(log))) for n, log in enumerate(logs)
    ]  # they make the store, too
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * writers
    with open_store(url, create=False) as store:
        assert len(written(logs)) == 16
        assert set(store.runs()["id"]) == set(store.series()["run"]) == set(written(logs))


def test_a_sudden_end_loses_nothing_that_was_committed(url, tmp_path):
    chance = random.Random(0)
    logs = []
    with open_store(url):
        pass
    for number in range(6):
        logs.append(tmp_path / f"log{number}")
        process = PROCESSES.Process(target=write_runs, args=(url, number, 100_000, str(logs[-1])))
        process.start()
        while not written(logs[-1:]) and process.is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -9

    with open_store(url, create=False) as store:
        ids = set(store.runs()["id"])
        assert set(written(logs)) <= ids
        assert len(ids - set(written(logs))) <= 6  # committed, and killed before it was reported
        assert set(store.series()["run"]) == ids
        for identity in ids:
            assert store.load(identity).workload["name"] == "net"
        store.add(run_of(2))
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_writer_that_waits_too_long_says_so(url, monkeypatch):
    monkeypatch.setattr(history, "_PATIENCE_S", 0.05)
    with open_store(url) as one, open_store(url) as other:
        with one._transaction(write=True):
            assert "was being written by another process for over" in error_of(other.add, gpu_run())
            assert len(other.runs()) == 0  # readers do not wait
        other.add(gpu_run())
        assert len(one.runs()) == 1


# -- what can be wrong with a file or an address


def test_a_file_that_is_no_database(path):
    path.write_text("something else, and long enough for a header" * 100)

    assert error_of(open_store, path) == (
        f"the store {path} is no SQLite database, or its beginning is damaged: give another file, or restore a copy"
    )
    assert path.read_text().startswith("something else")


def test_a_damaged_store(path):
    with open_store(path) as store:
        for day in range(1, 20):
            store.add(run_of(day))
    content = bytearray(path.read_bytes())
    content[4096:-4096] = b"\xff" * len(content[4096:-4096])  # all but its beginning
    path.write_bytes(content)

    assert error_of(lambda: open_store(path).runs()).startswith(f"the store {path} is damaged: restore a copy")


def test_a_database_of_something_else(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    content = path.read_bytes()

    assert error_of(open_store, path) == f"{path} is a database of something else, with a table bookmarks: give another"
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with open_store(path) as store:
        store.add(gpu_run())
    assert version_of(f"sqlite:///{path}") == 7


def test_a_full_disk_loses_nothing(path):
    with open_store(path) as store:
        first = store.add(gpu_run())
        big = run_of(2)
        big.environment["noise"] = random.Random(0).randbytes(200_000).hex()
        sa.event.listen(
            store._engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 24")
        )
        store.close()

        assert error_of(store.add, big) == (
            f"the store {path} has no room on its disk: nothing was changed; make room first"
        )
        assert list(store.runs()["id"]) == [first]
        assert store.load(first).to_dict() == gpu_run().to_dict()


def attempts(path):
    """What becomes of listing runs and of storing one."""
    said = []
    for body in (lambda: open_store(path).runs(), lambda: open_store(path).add(run_of(2))):
        try:
            said.append(len(body()))
        except GpuprofError as error:
            said.append(str(error))
    return said


def attempts_of_nobody(path, results):
    os.setgid(65534)
    os.setuid(65534)
    results.put(attempts(path))


@pytest.mark.parametrize("writable", ["nothing", "the file", "the folder"])
def test_a_store_that_is_not_ours_to_write(writable):
    folder = Path(tempfile.mkdtemp(prefix="gpuprof-test-"))  # that of pytest is root's alone
    path = folder / "history.db"
    try:
        with open_store(path) as store:
            store.add(gpu_run())
        folder.chmod(0o777 if writable == "the folder" else 0o555)
        path.chmod(0o666 if writable == "the file" else 0o444)
        if os.geteuid() == 0:
            results = PROCESSES.Queue()
            process = PROCESSES.Process(target=attempts_of_nobody, args=(path, results))
            process.start()
            said = results.get(timeout=60)
            process.join()
        else:
            said = [error_of(lambda: open_store(path).runs()), error_of(lambda: open_store(path).add(run_of(2)))]
        refused = (
            f"the store {path} is read-only: to store a run its file must be writable, and to list them its folder; "
            "or copy it"
        )
        assert said == [1 if writable == "the folder" else refused, refused]
        folder.chmod(0o755)
        with open_store(path) as store:
            assert len(store.runs()) == 1
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no/such/history.db", "cannot open the store no/such/history.db: there is no folder no/such; make it first"),
        ("sqlite:///no/such/history.db", "there is no folder no/such"),
        (".", "cannot open the store .: it is a folder; give a file such as history.db"),
        ("sqlite://history.db", "the URL sqlite://history.db names no sqlite database: give a path, sqlite:///FILE or"),
        ("sqlite://", "names no sqlite database"),
        ("sqlite:///:memory:", "names no sqlite database"),
        ("postgresql://user:secret@host", "the URL postgresql://user:***@host names no postgresql database"),
        ("mysql://host/database", "a store is not kept in mysql: give a path"),
        ("sqlite:history.db", "the URL of the store cannot be read: give a path, sqlite:///FILE or"),
        ("postgresql://user:secret@host:port/d", "the URL of the store cannot be read: give a path"),
        ("postgresql+psycopg2://host/d", "a store is not kept through postgresql+psycopg2: use postgresql+psycopg://"),
        ("postgresql+asyncpg://host/d", "a store is not kept through postgresql+asyncpg: use postgresql+psycopg://"),
        ("postgresql+nothing://host/d", "a store is not kept through postgresql+nothing: use postgresql+psycopg://"),
        ("sqlite+aiosqlite:///u.db", "a store is not kept through sqlite+aiosqlite: use sqlite:///FILE"),
        ("sqlite:///u.db?mode=ro", "the URL sqlite:///u.db?mode=ro has a query, which a file has not: give sqlite:///"),
    ],
)
def test_addresses_that_cannot_be(address, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = error_of(open_store, address)

    assert message in said
    assert "secret" not in said
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer():
    said = error_of(open_store, "postgresql://user:secret@127.0.0.1:1/database")

    assert said.startswith("the store postgresql+psycopg://user:***@127.0.0.1:1/database cannot be used: ")
    assert "refused" in said


def test_a_database_that_is_not_there(postgres):
    assert 'database "nowhere" does not exist' in error_of(open_store, postgres.replace("NAME", "nowhere"))


@pytest.mark.parametrize(
    ("module", "address", "extra"),
    [("psycopg", "postgresql://host/database", "postgres"), ("sqlalchemy", "history.db", "history")],
)
def test_what_is_not_installed_is_named(module, address, extra, tmp_path):
    code = (
        f"import sys; sys.modules[{module!r}] = None; from gpuprof.history import open_store; open_store({address!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.stderr.splitlines()[-1].endswith(f"which is not installed: pip install 'gpuprof[{extra}]'")
    assert not list(tmp_path.iterdir())


def test_a_store_does_without_torch(path):
    code = (
        f"from gpuprof.history import open_store; open_store({str(path)!r}); import sys; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
