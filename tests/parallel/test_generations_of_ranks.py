"""A generation whose model two processes share: the bytes that each must move, worked out by hand."""

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
    """What rank 0 knows of the job, and each rank of its own bytes."""
    reference = write_tiny(Path(tempfile.mkdtemp(dir=Path(os.environ["GPUPROF_CACHE"]).parent)), "llama-3.1-8b")
    run = gpuprof.profile(reference, **SIZES, parallel="tp", passes=["count", "time", "trace"], steps=2, warmup=1)
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
    return [rank["tensor_parallel"] for rank in launch(__file__, ["tensor_parallel"])]


def test_each_rank_moves_its_share_of_the_weights_and_the_cache(ranks):
    shared = (LAYERS * LAYER + VOCABULARY * HIDDEN) // 2  # layers and head
    each = (2 * LAYERS + 1) * HIDDEN + 16 // 2  # norms, and what rotates: both ranks have them
    own = {
        "prefill weights": 4 * (shared + each + 16 * HIDDEN),  # with the rows that are looked up
        "decode weights": 3 * 4 * (shared + each + HIDDEN),
        "prefill cache written": 4 * LAYERS * POSITION // 2 * 16,
        "decode cache written": 4 * LAYERS * POSITION // 2 * 3,
        "decode cache read": 4 * LAYERS * POSITION // 2 * (16 + 17 + 18),
    }
    assert [rank["own"] for rank in ranks] == [own, own]
    job = ranks[0]["job"]
    assert {name: job[name] for name in own} == {name: 2 * nbytes for name, nbytes in own.items()}
    assert ranks[1]["job"] is None


def test_the_job_is_of_one_batch_and_all_bandwidths(ranks):
    job = ranks[0]["job"]
    assert job["bandwidth"] == sum(job["bandwidths"])
    assert job["mbu"] == pytest.approx(job["expected"])
    assert job["parts"] == [0, 1, 2, 3] * 2
    assert (job["sequences"], job["per_token"]) == (1, 4 * LAYERS * POSITION)
    assert job["cache_bytes"] == 4 * LAYERS * POSITION * 19
