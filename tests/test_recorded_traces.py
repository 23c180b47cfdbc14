"""Traces that others recorded on GPUs, with figures worked out from the files another way, where they are at hand."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import gpuprof
from gpuprof.analysis.directions import directions
from gpuprof.analysis.kernel_time import busy_seconds
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.ranks import by_rank
from gpuprof.analysis.totals import totals
from gpuprof.traces import chrome
from gpuprof.traces.steps import EARLY, steps_of

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"

pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="the recorded traces are not here")

# kernels; of their time in percent: launched before the window, and of what was launched in it in graphs, and outside
# of these inside an operator
FIGURES = {
    "a100-alexnet-no-shapes": (79, 0, 0.0, 0.0, 100.0),
    "a100-compiled-graphs-2023": (6080, 705, 14.0, 30.5, 86.65),
    "a100-recommender-2023": (8568, 0, 0.0, 0.0, 98.29),
    "b200-vllm-moe-tp8": (768, 0, 0.0, 0.0, 99.95),
    "h100-bert-small-inference": (60, 0, 0.0, 0.0, 100.0),
    "h100-mlp-2025": (48, 0, 0.0, 0.0, 100.0),
    "h100-vit-inference": (154, 0, 0.0, 0.0, 100.0),
    "mi210-gpu-events-only": (562, 0, 0.0, 0.0, 0.0),
    "mi300x-bert-small-inference": (60, 0, 0.0, 0.0, 100.0),
    "mi300x-compiled-triton": (12, 0, 0.0, 0.0, 100.0),
    "mi300x-resnet18-ddp-train": (2360, 0, 0.0, 0.0, 100.0),
    "mi300x-vllm-decode-graph": (425, 0, 0.0, 97.3, 100.0),
    "v100-dlrm-rank0": (245, 0, 0.0, 0.0, 100.0),
    "v100-dlrm-rank3": (315, 64, 1.6, 0.0, 100.0),
    "v100-five-steps": (4350, 0, 0.0, 0.0, 100.0),
    "v100-resnet50-train-2020": (9564, 708, 5.5, 0.0, 97.49),
}


def imported(name, **options):
    return gpuprof.read_trace(TRACES / f"{name}.json.gz", **options)


def without_copies(kernels):
    return kernels[~kernels["kernel"].str.match("Memcpy|Memset")]


def percent(part, whole):
    return 100 * part / whole if whole else 0.0


@pytest.mark.parametrize("name", FIGURES)
def test_every_kernel_has_its_operator(name):
    kernels, early, early_share, in_graphs, in_operators = FIGURES[name]
    recorded = chrome.read(TRACES / f"{name}.json.gz")
    is_kernel = recorded.device.category == chrome.KERNEL
    before = is_kernel & (steps_of(recorded).of_device == EARLY)
    took = recorded.device.end - recorded.device.start

    assert (is_kernel.sum(), before.sum()) == (kernels, early)
    assert percent(took[before].sum(), took[is_kernel].sum()) == pytest.approx(early_share, abs=0.05)

    rows = without_copies(imported(name, step="all").kernels)
    labels = {recorded.names[index] for index in np.unique(recorded.host.name[recorded.host.category == chrome.LABEL])}
    graph = rows["op"].str.contains("GraphLaunch")
    operator = ~graph & (rows["op"] != "") & ~rows["op"].isin(labels)
    time = rows["duration_ns"]

    assert len(rows) == kernels - early
    assert percent(time[graph].sum(), time.sum()) == pytest.approx(in_graphs, abs=0.05)
    assert percent(time[operator].sum(), time[~graph].sum()) == pytest.approx(in_operators, abs=0.005)
    outside = rows[~graph & ~operator & rows["op"].str.startswith("Optimizer")]
    assert set(outside["phase"]) <= {"optimizer"}


@pytest.mark.parametrize("name", FIGURES)
def test_no_rate_is_above_the_peak(name):
    run = imported(name, step="all")

    rates = [
        by_op(run).get("kernel_mfu"),
        *(by_module(run)[f"kernel_mfu{way}"] for way in ("", "_forward", "_backward")),
    ]

    assert max((float(rate.max()) for rate in rates if rate is not None and rate.notna().any()), default=0.0) <= 1.0
    assert (totals(run)["hfu"] or 0.0) <= 1.0


def test_steps_of_the_device_where_the_host_runs_ahead():
    run = imported("v100-five-steps")
    facts = run.passes["trace"].facts

    assert [round(seconds * 1e3) for seconds in facts["host_step_s"]] == [35, 72, 96, 96, 96]
    # the first one begins with an empty queue: its kernels wait for the host
    assert [round(seconds * 1e3, 1) for seconds in run.samples["time_s"]] == [97.7, 95.7, 95.6, 95.7, 95.4]
    steps = [without_copies(imported("v100-five-steps", step=number).kernels) for number in facts["steps"]]
    assert [round(busy_seconds(kernels) * 1e3, 1) for kernels in steps] == [93.7, 93.7, 93.6, 93.7, 93.4]


def test_the_backward_of_a_resnet():
    kernels = imported("mi300x-resnet18-ddp-train").kernels
    backward = kernels.loc[kernels["phase"] == "backward", "duration_ns"].sum()

    assert percent(backward, kernels["duration_ns"].sum()) == pytest.approx(67.6, abs=0.05)


def test_an_all_reduce_by_the_name_of_its_kernel():
    kernels = without_copies(imported("b200-vllm-moe-tp8").kernels)
    messages = kernels["kernel"].str.contains("multimem")

    assert percent(kernels.loc[messages, "duration_ns"].sum(), kernels["duration_ns"].sum()) == pytest.approx(
        19.5, abs=0.05
    )
    found = by_op(imported("b200-vllm-moe-tp8")).set_index("op")
    assert found.loc["vllm::all_reduce", "kind"] == "communication"


@pytest.mark.parametrize(
    ("name", "phase", "label"),
    [
        ("b200-vllm-moe-tp8", "prefill", "execute_context_1("),
        ("mi300x-vllm-decode-graph", "decode", "execute_32_context_0("),
    ],
)
def test_batches_of_vllm_are_a_prefill_or_a_decode(name, phase, label):
    events = json.loads(gzip.decompress((TRACES / f"{name}.json.gz").read_bytes()))["traceEvents"]
    (batch,) = (
        event for event in events if event.get("name", "").startswith(label) and event.get("cat") == "user_annotation"
    )
    launched = {
        event["args"]["correlation"] for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
        and batch["ts"] <= event["ts"] < batch["ts"] + batch["dur"]
    }  # fmt: skip
    own = [
        event for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and event["args"]["correlation"] in launched
    ]  # fmt: skip
    kernels = imported(name).kernels
    found = kernels[kernels["phase"] == phase]

    assert len(found) == len(own) > 400
    assert found["duration_ns"].sum() == pytest.approx(sum(event["dur"] for event in own) * 1e3, abs=len(own))


def test_two_ranks_of_a_job():
    run = gpuprof.read_trace([TRACES / f"v100-dlrm-rank{rank}.json.gz" for rank in (3, 0)])

    found = by_rank(run)

    assert found["rank"].tolist() == [0, 3]
    assert (found["compute_s"] + found["exposed_s"] + found["idle_s"]).tolist() == pytest.approx(
        found["step_s"].tolist()
    )
    assert found["flops"].tolist() == [60_487_168, 60_487_168]  # 2mnk of each mm, addmm and bmm of the files


# Kernels launched inside the ranges of compiled code in the forward; in autograd's nodes of it and those that follow to
# take gradients, but NCCL's; and of both those in graphs, each with their nanoseconds: by correlation and intervals.
@pytest.mark.parametrize(
    ("name", "step", "forward", "backward", "in_graphs"),
    [
        ("a100-compiled-graphs-2023", 551, (94, 3_307_000), (423, 25_263_000), (69, 21_097_000)),
        ("mi300x-compiled-triton", None, (12, 12_549_021), (0, 0), (0, 0)),
        ("b200-vllm-moe-tp8", None, (1, 1_984), (0, 0), (0, 0)),
    ],
)
def test_regions_have_the_kernels_that_were_launched_in_them(name, step, forward, backward, in_graphs):
    run = imported(name, step=step)
    (region,) = run.passes["trace"].facts["regions"]
    kernels = run.kernels[run.kernels["module"] == region]

    def count(rows):
        return len(rows), int(rows["duration_ns"].sum())

    assert count(kernels[directions(kernels["phase"]) == "forward"]) == forward
    assert count(kernels[kernels["phase"] == "backward"]) == backward
    assert count(kernels[kernels["op"].str.contains("GraphLaunch")]) == in_graphs
