"""A generation on two processes, whose model or batch they share: the bytes that each must move, worked out by hand."""

import os
import tempfile
from pathlib import Path

import pytest
from parallel.ranks import launch
from workload.conftest import write_tiny

import gpuprof
from gpuprof.analysis.generation import generation, mbu

HIDDEN, INNER, VOCABULARY, LAYERS, POSITION = 64, 128, 256, 2, 2 * 2 * 16  # keys and values of two heads of 16
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER
SIZES = {"mode": "generate", "prompt_len": 16, "new_tokens": 4, "dtype": "float32", "device": "cpu"}


def tensor_parallel():
    return shared("tp")


def fully_sharded():
    return shared("fsdp")


def shared(how):
    """What rank 0 knows of the job, and each rank of its own bytes."""
    reference = write_tiny(Path(tempfile.mkdtemp(dir=Path(os.environ["GPUPROF_CACHE"]).parent)), "llama-3.1-8b")
    run = gpuprof.profile(reference, **SIZES, parallel=how, passes=["count", "time", "trace"], steps=2, warmup=1)
    job = gpuprof.gather(run)
    return {"own": sums(run), "job": None if job is None else sums(job) | figures(job), "warnings": run.warnings}


def sums(run):
    whole = run.traffic[run.traffic["module"] == "*"].groupby(["phase", "what"])["bytes"].sum()
    return {f"{phase} {what}": int(nbytes) for (phase, what), nbytes in whole.items() if what != "activations"}


def figures(job):
    found, shares = generation(job), mbu(job)
    decode_s = float(job.samples.loc[job.samples["phase"] == "decode", "time_s"].median())
    nbytes = int(job.traffic.loc[(job.traffic["module"] == "*") & (job.traffic["phase"] == "decode"), "bytes"].sum())
    return {
        "sequences": found.sequences, "cache_bytes": found.cache_bytes, "per_token": found.cache_bytes_per_token,
        "parts": job.generation["part"].tolist(), "mbu": shares["measured"],
        "expected": nbytes / decode_s / job.device["measured_bandwidth"],
        "bandwidths": [one["device"]["measured_bandwidth"] for one in job.device["ranks"]],
        "bandwidth": job.device["measured_bandwidth"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranks():
    return launch(__file__, ["tensor_parallel", "fully_sharded"])


OF_ALL = (2 * LAYERS + 1) * HIDDEN + 16 // 2  # norms, and what rotates: every rank has them
WEIGHTS = LAYERS * LAYER + VOCABULARY * HIDDEN  # layers and head


def moved(weights, position):
    """Bytes of float32, with the rows that are looked up; decoding has 16, 17 and 18 positions before it."""
    return {
        "prefill weights": 4 * (weights + OF_ALL + 16 * HIDDEN),
        "decode weights": 3 * 4 * (weights + OF_ALL + HIDDEN),
        "prefill cache written": 4 * position * 16,
        "decode cache written": 4 * position * 3,
        "decode cache read": 4 * position * (16 + 17 + 18),
    }


@pytest.mark.parametrize(
    ("how", "own"),
    [
        ("tensor_parallel", moved(WEIGHTS // 2, LAYERS * POSITION // 2)),  # half of each, on one batch
        ("fully_sharded", moved(WEIGHTS, LAYERS * POSITION)),  # all that is gathered, each on a batch of its own
    ],
)
def test_each_rank_moves_what_it_reads_itself(ranks, how, own):
    found = [rank[how] for rank in ranks]
    assert [one["own"] for one in found] == [own, own]
    assert [one["warnings"] for one in found] == [found[0]["warnings"]] * 2
    assert not [line for line in found[0]["warnings"] if "Cache" in line]
    job = found[0]["job"]
    assert {name: job[name] for name in own} == {name: 2 * nbytes for name, nbytes in own.items()}
    assert found[1]["job"] is None


@pytest.mark.parametrize(("how", "sequences"), [("tensor_parallel", 1), ("fully_sharded", 2)])
def test_the_job_is_of_all_batches_and_all_bandwidths(ranks, how, sequences):
    job = ranks[0][how]["job"]
    assert job["bandwidth"] == sum(job["bandwidths"])
    assert job["mbu"] == pytest.approx(job["expected"])
    assert job["parts"] == [0, 1, 2, 3] * 2
    assert (job["sequences"], job["per_token"]) == (sequences, 4 * LAYERS * POSITION)
    assert job["cache_bytes"] == sequences * 4 * LAYERS * POSITION * 19
