"""Collectives of jobs by hand, in nanoseconds; clocks of ranks begin anywhere."""

import pytest
from runs import rank_run, row

import gpuprof
from gpuprof.analysis.collectives import JOB_COLUMNS, alignment, bus_factor, by_collective
from gpuprof.analysis.communication import calls, collectives
from gpuprof.analysis.ranks import by_rank
from gpuprof.job import assemble
from gpuprof.job_part import part

NS = 1e-9


def job_of(*runs):
    return assemble(part(run) for run in runs)


def two(late=0):
    """Three all-reduces that end together; rank 1 comes late to the second, and its trace begins ``late`` earlier."""
    first = rank_run(0, sends=[(100, 10), (120, 40), (170, 12)], step_ns=200)
    second = rank_run(1, sends=[(100 + late, 10), (145 + late, 15), (170 + late, 12)], step_ns=200)
    return first, second


def test_a_call_is_told_by_its_fastest_rank():
    found = by_collective(job_of(*two()))

    assert list(found.columns) == JOB_COLUMNS
    (one,) = found.to_dict("records")
    assert (one["name"], one["group"], one["ranks"], one["calls"], one["bytes"]) == ("c10d::allreduce", "dp", 2, 3, 192)
    # the shortest of each call: 10 + 15 + 12; the longest: 10 + 40 + 12
    assert one["latency_s"] == pytest.approx(37 / 3 * NS)
    assert one["skew_s"] == pytest.approx(25 / 3 * NS)
    assert one["algbw"] == pytest.approx(192 / (37 * NS))
    assert one["busbw"] == pytest.approx(192 / (37 * NS))  # 2 x (2 - 1) / 2
    # nothing computes from 100 on: all of 62 and of 37 is in the open
    assert one["exposed_s"] == pytest.approx((62 + 37) / 2 * NS)
    assert one["exposed_s"] == pytest.approx(by_rank(job_of(*two()))["exposed_s"].mean())


@pytest.mark.parametrize(
    ("name", "ranks", "factor"),
    [
        ("c10d::allreduce", 2, 1.0),
        ("_c10d_functional::all_reduce", 8, 1.75),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 4, 1.5),
        ("c10d::_allgather_base", 4, 0.75),
        ("c10d::_reduce_scatter_base", 8, 0.875),
        ("c10d::alltoall_base", 2, 0.5),
        ("c10d::broadcast", 8, 1.0),
        ("c10d::send", 2, 1.0),
        ("_c10d_functional::wait_tensor", 2, None),
    ],
)
def test_factors_of_the_bus_are_those_of_nccl_tests(name, ranks, factor):
    assert bus_factor(name, ranks) == factor


def test_groups_are_apart():
    """Two pairs of four ranks: the same numbers in either are not the same call."""
    runs = [
        rank_run(rank, world=4, mesh={"dp": 2, "tp": 2}, groups={"dp": group}, sends=[(100, took)], step_ns=200)
        for rank, group, took in [(0, [0, 2], 20), (1, [1, 3], 30), (2, [0, 2], 24), (3, [1, 3], 50)]
    ]
    one = row(by_collective(job_of(*runs)), name="c10d::allreduce")
    assert (one["ranks"], one["calls"]) == (2, 1)
    assert one["latency_s"] == pytest.approx((20 + 30) / 2 * NS)
    assert one["skew_s"] == pytest.approx((4 + 20) / 2 * NS)


def test_what_cannot_be_held_together_is_missing():
    first, second = two()
    for run in (first, second):
        run.ops["group"] = ""
    one = row(by_collective(job_of(first, second)), name="c10d::allreduce")
    assert one["bytes"] == 192
    assert by_collective(job_of(first, second))[["latency_s", "skew_s", "algbw", "busbw"]].isna().all(axis=None)


def test_on_a_cpu_a_call_is_not_the_message():
    runs = two()
    for run in runs:
        run.device["type"] = "cpu"
    assert by_collective(job_of(*runs))[["latency_s", "skew_s", "algbw", "busbw"]].isna().all(axis=None)


def test_what_one_rank_can_tell():
    found = collectives(two()[0])
    assert list(found.columns) == ["name", "group", "kind", "calls", "bytes", "time_s", "exposed_s"]
    one = row(found, name="c10d::allreduce")
    assert (one["group"], one["calls"], one["bytes"]) == ("dp", 3, 192)
    assert calls(two()[0])[["number", "bytes", "start_ns", "duration_ns", "exposed_ns"]].to_numpy().tolist() == [
        [0, 64, 100, 10, 10], [1, 64, 120, 40, 40], [2, 64, 170, 12, 12],
    ]  # fmt: skip


def test_bytes_of_calls_of_two_sizes():
    """Of a call whose shapes were counted with another owner too: the message is told by the shapes."""
    run = rank_run(0, sends=[(100, 10)])
    again = run.ops[run.ops["kind"] == "communication"].assign(module="fc", shapes="32 -> 32", bytes=128)
    run.ops = gpuprof.schema.table("ops", [*run.ops.to_dict("records"), *again.to_dict("records")])
    run.kernels.loc[run.kernels["call"] == 3, "module"] = ""
    assert calls(run)["bytes"].tolist() == [64]
    run.kernels.loc[run.kernels["call"] == 3, "shapes"] = "4"
    assert calls(run)["bytes"].isna().all()
    assert calls(run)["group"].tolist() == ["dp"]


def test_traces_are_aligned_by_the_ends_of_common_calls():
    found = alignment(job_of(*two(late=1000)))
    assert found.offset_ns == {0: 0, 1: -1000}
    assert (found.residual_ns, found.common) == (0, 3)
    assert found.words() == (
        "Aligned by the ends of 3 or more common collectives, which then lie within 0 s of one another: a shift below "
        "that means nothing."
    )


def test_what_is_left_between_aligned_traces_is_told():
    first, second = two(late=1000)
    second.kernels.loc[second.kernels["call"] == 4, "duration_ns"] += 7
    found = alignment(job_of(first, second))
    assert (found.offset_ns[1], found.residual_ns) == (-1000, 7)


def test_ranks_are_aligned_through_others():
    """Ranks 0 and 3 of a mesh of two by two share no group."""
    begin = {0: 0, 1: 500, 2: -300, 3: 90}
    runs = []
    for rank in range(4):
        groups = {"dp": [rank % 2, rank % 2 + 2], "tp": [rank // 2 * 2, rank // 2 * 2 + 1]}
        run = rank_run(rank, world=4, mesh={"dp": 2, "tp": 2}, groups=groups, step_ns=900)
        tp = [row for row in run.kernels.to_dict("records") if row["call"] == 3]
        kernels = [one for one in run.kernels.to_dict("records") if one["call"] != 3]
        for number in range(6):
            name = "c10d::allreduce_" if number < 3 else "_c10d_functional::all_reduce"
            at = {"op": name, "call": 3 + number, "start_ns": 600 + begin[rank] + 20 * number, "duration_ns": 9}
            kernels.append(tp[0] | at)
        other = {"group": "tp", "op": "_c10d_functional::all_reduce.default"}
        again = run.ops[run.ops["kind"] == "communication"].assign(**other)
        run.ops = gpuprof.schema.table("ops", [*run.ops.to_dict("records"), *again.to_dict("records")])
        run.kernels = gpuprof.schema.table("kernels", kernels)
        runs.append(run)
    assert alignment(job_of(*runs)).offset_ns == {0: 0, 1: -500, 2: 300, 3: -90}


def test_below_three_common_calls_nothing_is_aligned():
    runs = [rank_run(rank, sends=[(100, 10), (120, 10)], step_ns=200) for rank in range(2)]
    with pytest.raises(gpuprof.GpuprofError, match="rank 1 shares fewer than 3 collectives of a known process group"):
        alignment(job_of(*runs))
