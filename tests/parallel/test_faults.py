"""What happens to a job when something goes wrong on one of its ranks: it ends in time, one line names the rank."""

import json
from pathlib import Path

import forked
import pytest

from gpuprof import load, read_job
from gpuprof.parallel.checkup import _finding
from gpuprof.parallel.control import Control

FAULTY = Path(__file__).parent / "faulty.py"
TIMEOUT_S = 30.0  # far beyond what any of these takes on a busy machine: none is to end by it

PASS_OF_STEP = {"count": 0, "time": 4, "trace": 9, "memory": 14}
"""A step of each pass: the first three are for counting one, then come four with a clock, seven for three traces."""


def job(function, *more, limit=None, **environment):
    timeout = [] if "--rank-timeout" in more else ["--rank-timeout", str(TIMEOUT_S)]
    command = ["profile", f"{FAULTY}:{function}", *timeout, *more]
    return {"command": command, "environment": environment} | ({"limit": limit} if limit else {})


JOBS = {
    **{
        f"killed in {name}": job("killed", "-o", f"killed-{name}.json", AFTER=str(after))
        for name, after in PASS_OF_STEP.items()
    },
    "killed at the end": job("killed_at_the_end", "--passes", "count", "-o", "end.json"),
    "raising": job("raising", "-o", "raising.json", AFTER="4"),
    "interrupted": job("interrupted", "-o", "interrupted.json", AFTER="4"),
    "missing data": job("missing_data", "-o", "missing.json"),
    "late": job("late", "-q", "--rank-timeout", "60", LATE="11"),
    "too late": job("late", "-q", "--rank-timeout", "4", LATE="12"),
    "other model": job("other_model"),
    "other version": job("other_version"),
    "second group": job("second_group"),
    "one device": job("fine", "--device", "cuda:0"),
    "full disk": job("fine", "-o", "full.json", limit=4096),
    "fine": job("fine", "-o", "fine.json.gz"),
    "doctor": {"command": ["doctor"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def ended(folder):
    return forked.run(JOBS, folder)


def lines(ended, name, rank=0):
    return [line for line in ended[name]["said"][rank].splitlines() if line.startswith("gpuprof:")]


@pytest.mark.parametrize("name", JOBS)
def test_none_hangs_and_none_fails_in_a_way_that_nobody_foresaw(ended, name):
    assert None not in ended[name]["status"]
    assert "Traceback" not in "".join(ended[name]["said"])


@pytest.mark.parametrize("name", PASS_OF_STEP)
def test_a_rank_that_is_killed_is_named_and_what_the_others_measured_is_kept(ended, folder, name):
    assert ended[f"killed in {name}"]["status"] == [2, -9]
    (line,) = lines(ended, f"killed in {name}")
    assert line.startswith("gpuprof: rank 1 is lost: its process ")
    assert ended[f"killed in {name}"]["seconds"] < TIMEOUT_S
    assert not (folder / f"killed-{name}.json").exists()  # a job is the sum of all its ranks
    saved = folder / f"killed-{name}.rank0.json"
    if name == "count":
        assert not saved.exists()
        return
    passes = {one: outcome.status for one, outcome in load(saved).passes.items()}
    before = ["count", "time", "trace", "memory"][: list(PASS_OF_STEP).index(name)]
    assert passes[name] == "failed"
    assert [one for one, status in passes.items() if status == "done"] == before


def test_a_rank_that_is_killed_after_the_passes_leaves_the_others_theirs_also_if_it_kept_the_store(ended, folder):
    assert ended["killed at the end"]["status"] == [-9, 2]
    assert lines(ended, "killed at the end", rank=1) == [
        "gpuprof: rank 0 is lost: it kept the store of the job, which does not answer any more; what the others "
        "measured until then is in end.rank1.json and the like"
    ]
    assert ended["killed at the end"]["seconds"] < TIMEOUT_S
    assert [path.name for path in folder.glob("end*")] == ["end.rank1.json"]
    assert load(folder / "end.rank1.json").done("count")


def test_a_pass_that_fails_on_one_rank_fails_on_all(ended, folder):
    assert ended["raising"]["status"] == [0, 0]  # the counting pass has delivered
    for rank in (0, 1):
        run = load(folder / f"raising.rank{rank}.json")
        outcome = run.passes["time"]
        assert (outcome.status, outcome.reason) == (
            "failed",
            "rank 1: the step raised OSError: the data is gone (faulty.py:70)",
        )
        assert run.samples.empty
        assert {run.passes[name].status for name in ("trace", "memory")} == {"skipped"}
        assert run.done("count")
    assert load(folder / "raising.json").ops["flops_full"].sum() == 2 * 3 * 2 * 2 * 4 * 64 * 256 - 2 * 2 * 4 * 64 * 256


def test_an_interrupt_on_one_rank_ends_all(ended, folder):
    assert ended["interrupted"]["status"] == [130, 130]
    assert lines(ended, "interrupted") == ["gpuprof: interrupted (on rank 1)"]
    assert not list(folder.glob("interrupted*"))


def test_what_ends_before_the_passes_names_the_rank(ended, folder):
    said = {
        name: (ended[name]["status"], lines(ended, name), lines(ended, name, rank=1))
        for name in ("missing data", "other model", "other version", "second group", "one device")
    }
    assert said == {
        "missing data": (
            [2, 2],
            ["gpuprof: rank 1: faulty.py:missing_data raised FileNotFoundError: no data on this host (faulty.py:77)"],
            [],
        ),
        "other model": (
            [2, 2],
            [
                "gpuprof: rank 1 has another model than rank 0, by the names and shapes of its parameters "
                "(DistributedDataParallel of 2 parameters, DistributedDataParallel of 2 parameters): ranks of one "
                "group share one model"
            ],
            [],
        ),
        "other version": (
            [2, 2],
            ["gpuprof: rank 1 has gpuprof 0.0.1, rank 0 has gpuprof 0.1.0: the ranks of a job need the same versions"],
            [],
        ),
        "second group": (
            [2, 2],
            [
                "gpuprof: faulty.py:second_group raised ValueError: trying to initialize the default process group "
                "twice!: under torchrun gpuprof has made it; call it only where is_initialized() is false "
                "(faulty.py:90)"
            ],
            [],
        ),
        "one device": (
            [2, 2],
            ["gpuprof: rank 1: --device cuda:0: by its LOCAL_RANK it has cuda:1: give --device cuda, or leave it out"],
            [],
        ),
    }
    assert not list(folder.glob("missing*"))


def test_a_late_rank_is_waited_for_and_named(ended):
    assert ended["late"]["status"] == [0, 0]
    (line,) = lines(ended, "late")
    assert line == "gpuprof: rank 1 came 11 s after the others to the end of making the model"


def test_a_rank_that_is_too_late_is_given_up(ended):
    assert ended["too late"]["status"][0] == 2
    assert lines(ended, "too late") == [
        "gpuprof: rank 1 is lost: it did not come to the end of making the model within 4 s"
    ]
    assert ended["too late"]["seconds"] < 12


def test_a_full_disk_on_one_rank_leaves_nothing_half_written(ended, folder):
    assert ended["full disk"]["status"] == [2, 2]
    assert lines(ended, "full disk") == ["gpuprof: rank 1: cannot write full.rank1.json: File too large"]
    assert "Workload" in ended["full disk"]["said"][0]  # the report is not lost
    assert [path.name for path in folder.glob("*full*")] == ["full.rank0.json"]
    assert load(folder / "full.rank0.json").workload["rank"] == 0


def test_the_job_is_the_sum_of_its_ranks(ended, folder):
    assert ended["fine"]["status"] == [0, 0]
    assert ended["fine"]["said"][1] == ""
    ranks = [load(folder / f"fine.rank{rank}.json.gz") for rank in (0, 1)]
    job = load(folder / "fine.json.gz")
    for column in ("calls", "flops_causal", "flops_full", "flops_hardware", "vector_flops", "bytes"):
        assert job.ops[column].sum() == sum(int(run.ops[column].sum()) for run in ranks)
    assert (job.workload["world"], "rank" in job.workload) == (2, False)
    assert [run.workload["rank"] for run in ranks] == [0, 1]
    assert job.ranks.loc[job.ranks["quantity"] == "compute_ns"].groupby("rank")["step"].nunique().to_list() == [3, 3]
    again = read_job([folder / f"fine.rank{rank}.json.gz" for rank in (1, 0)])
    assert json.dumps(again.to_dict()["ops"]) == json.dumps(job.to_dict()["ops"])


def test_the_doctor_looks_at_every_rank(ended):
    assert ended["doctor"]["status"] == [0, 0]
    said = ended["doctor"]["said"]
    assert said[1] == ""
    after = said[0][said[0].index("\nranks\n") :].splitlines()
    assert [line.split()[:3] for line in after[2:4]] == [["ok", "rank", "0"], ["ok", "rank", "1"]]
    assert all("cpu" in line and "gloo" in line for line in after[2:4])


def test_the_odd_rank_is_named():
    usual = dict.fromkeys(("device", "backend", "python", "torch", "transformers", "gpuprof", "driver", "NCCL"), "2.13")
    facts = {**usual, "host": "node-b", "where": "cuda:3", "usable": True}
    assert _finding(Control(), 3, facts, usual).ok
    odd = _finding(Control(), 3, facts | {"torch": "2.12"}, usual)
    assert (odd.ok, odd.name) == (False, "rank 3")
    assert odd.detail == "node-b, cuda:3 2.13, 2.13; torch 2.12, the others 2.13"
    assert _finding(Control(), 3, facts | {"usable": False}, usual).detail.endswith("; cannot profile")
