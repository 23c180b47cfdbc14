"""A job of ranks whose figures are worked out by hand, in nanoseconds."""

import json

import pytest
from runs import compiled_run, generation_run, gpu_run, rank_run, row

import gpuprof
from gpuprof.analysis.conventions import fitting
from gpuprof.analysis.generation import generation, mbu
from gpuprof.analysis.ranks import by_rank
from gpuprof.analysis.totals import totals
from gpuprof.job import assemble
from gpuprof.job_part import part, summed
from gpuprof.schema import table

NS = 1e-9
FACTS = {
    "kind": "decoder", "mode": "train", "layers": 2, "attention_layers": 2, "causal": True, "hidden": 8, "heads": 2,
    "head_dim": 4, "v_head_dim": 4, "batch": 1, "seq": 4, "params": 100, "trainable_params": 100,
    "embedding_params": 10, "token_embedding_params": 10, "head_params": 10, "tied": False, "pooled": False,
    "head": "lm_head",
}  # fmt: skip
GENERATION = {
    "launch": [0], "step": [0], "part": [0], "phase": ["decode"], "samples": [1], "positions": [1], "start_s": [None],
    "time_s": [1.0],
}  # fmt: skip
TRAFFIC = {
    "module": ["*"], "phase": ["decode"], "part": [0], "what": ["weights"], "dtype": ["bfloat16"], "bytes": [1],
}  # fmt: skip


def job_of(*runs):
    return assemble(json.loads(json.dumps(part(run))) for run in runs)


def two():
    """Rank 1 computes 30 ns longer, and its step takes 20 longer."""
    return rank_run(0), rank_run(1, compute=130, waits=20, step_ns=180, peak_bytes=3000)


def test_operators_add_up_to_the_flop():
    job, (first, second) = job_of(*two()), two()

    for column in ("calls", "flops_causal", "flops_full", "flops_hardware", "bytes"):
        assert job.ops[column].sum() == first.ops[column].sum() + second.ops[column].sum()
    forward = row(job.ops, module="fc", phase="forward")
    assert (forward["flops_causal"], forward["flops_full"], forward["calls"]) == (4000, 6000, 2)
    assert row(job.ops, kind="communication")["group"] == "dp"
    assert len(job.ops) == len(first.ops)


def test_what_one_rank_does_not_know_is_not_known_of_the_job():
    first, second = two()
    second.ops = table("ops", [
        one | {"vector_flops": None} if one["phase"] == "forward" else one for one in second.ops.to_dict("records")
    ])  # fmt: skip
    assert job_of(first, second).ops["vector_flops"].isna().tolist() == [True, False, False, False]


def test_the_mfu_of_a_job_is_of_the_slowest_rank_and_all_peaks():
    # each rank does 2000 FLOPs at 100 and 1000 at 50 FLOP/ns: 40 ns of 180, whatever the faster one waits
    sums = totals(job_of(*two()))
    assert (sums["flops"], sums["step_s"]) == (6000, pytest.approx(180 * NS))
    assert sums["mfu"] == pytest.approx(40 / 180)
    assert sums["flops_per_s"] == pytest.approx(6000 / (180 * NS))
    ranks = by_rank(job_of(*two()))
    assert ranks["mfu"].tolist() == pytest.approx([40 / 160, 40 / 180])
    assert ranks["peak_bytes"].tolist() == [1000, 3000]


def test_the_mfu_of_unlike_devices():
    # 3000 FLOPs each, on 100 and 50 FLOP/ns, and on twice that: 6000 FLOPs of 4000 at 300 and 2000 at 150 are 26.7 ns
    first, second = two()
    second.device["peaks"] = {"datasheet": {"bfloat16": 200e9, "float32": 100e9}}
    job = job_of(first, second)
    assert totals(job)["mfu"] == pytest.approx((4000 / 300 + 2000 / 150) / 180)
    assert by_rank(job)["mfu"].tolist() == pytest.approx([40 / 160, 20 / 180])


def test_a_peak_that_one_device_lacks_is_none_of_the_job():
    first, second = two()
    second.device["peaks"] = {"datasheet": {"bfloat16": 100e9}}
    job = job_of(first, second)
    assert job.device["peaks"] == {"datasheet": {"bfloat16": 200e9}}
    assert totals(job)["mfu"] is None


def test_a_given_peak_is_that_of_each_rank():
    runs = two()
    for run in runs:
        run.settings["peak_tflops"] = 0.1  # 100 FLOP/ns: 3000 FLOPs in 30 ns
    job = job_of(*runs)
    assert totals(job)["mfu"] == pytest.approx(30 / 180)
    assert by_rank(job)["mfu"].tolist() == pytest.approx([30 / 160, 30 / 180])


def test_a_timed_step_is_that_of_the_rank_that_took_longest_for_it():
    first, second = two()
    first.samples.loc[first.samples["step"] == 2, "time_s"] *= 2
    steps = job_of(first, second).samples
    assert steps.loc[steps["phase"] == "step", "time_s"].tolist() == pytest.approx([180 * NS, 180 * NS, 320 * NS])
    assert steps.loc[steps["phase"] == "forward", "time_s"].tolist() == pytest.approx([90 * NS, 90 * NS, 120 * NS])


def generating(rank, parallel, slow):
    run = generation_run()
    dimension = "tp" if parallel == "tp" else "dp"
    run.workload |= {"world": 2, "rank": rank, "parallel": [parallel], "mesh": {dimension: 2}, "groups": {}}
    run.samples["time_s"] *= slow
    run.generation["time_s"] *= slow
    run.generation["start_s"] = 0.1 * (rank + 1)
    return run


@pytest.mark.parametrize(("parallel", "sequences"), [("ddp", 4), ("tp", 2)])
def test_the_parts_of_a_generation_are_those_of_the_slowest_rank_on_the_sequences_of_all(parallel, sequences):
    first, second = generating(0, parallel, 1.0), generating(1, parallel, 1.5)
    second.samples.loc[second.samples["step"] == 1, "time_s"] /= 3  # there the other takes longer: 1.1 of 1.0

    parts = job_of(first, second).generation

    factors = [1.5] * 4 + [1.1] * 4 + [0.9 * 1.5] * 4
    assert parts["time_s"].tolist() == pytest.approx(
        [time_ns * NS * factor for time_ns, factor in zip([400, 300, 320, 340] * 3, factors, strict=True)]
    )
    assert parts["samples"].tolist() == [sequences] * 12
    assert parts["positions"].tolist() == [4, 1, 1, 1] * 3
    # the telemetry is of rank 1, and so are times in its window
    assert parts["start_s"].tolist() == pytest.approx([0.2] * 4 + [float("nan")] * 4 + [0.2] * 4, nan_ok=True)


def test_sequences_that_a_rank_does_not_know_are_not_known_of_the_job():
    first, second = generating(0, "ddp", 1.0), generating(1, "ddp", 1.5)
    second.generation.loc[second.generation["part"] == 0, "samples"] = None

    parts = job_of(first, second).generation

    assert parts["samples"].isna().tolist() == [True, False, False, False] * 3


def test_each_rank_moves_bytes_of_its_own():
    # decode by hand: 2 x (900 x 3 weights + 320 + 400 + 480 read + 80 x 3 written + 200 x 3 activations) = 9480
    job = job_of(generating(0, "ddp", 1.0), generating(1, "ddp", 1.5))

    whole = job.traffic[job.traffic["module"] == "*"]
    sums = whole.groupby(["phase", "what"])["bytes"].sum()
    assert sums["decode"].to_dict() == {
        "weights": 5400, "cache read": 2400, "cache written": 480, "activations": 1200
    }  # fmt: skip
    assert sums["prefill"].to_dict() == {
        "weights": 2000, "cache read": 0, "cache written": 640, "activations": 1600
    }  # fmt: skip
    assert len(job.traffic) == len(generation_run().traffic)
    assert mbu(job) == {"datasheet": pytest.approx(9480 / 1440 / 20), "measured": pytest.approx(9480 / 1440 / 16)}
    assert (job.device["memory_bandwidth"], job.device["measured_bandwidth"]) == (20e9, 16e9)


def test_caches_of_ranks_add_up():
    runs = [generating(rank, "ddp", 1.0) for rank in range(2)]
    for rank, run in enumerate(runs):
        run.passes["count"].facts |= {
            "cache": {"class": "DynamicCache", "bytes": [320, 400, 480, 560]},
            "weights_at_most": [f"experts {rank}"], "traffic_unknown": ["it"] if rank else [],
        }  # fmt: skip

    facts = job_of(*runs).passes["count"].facts
    assert facts["cache"] == {"class": "DynamicCache", "bytes": [640, 800, 960, 1120]}
    assert (facts["weights_at_most"], facts["traffic_unknown"]) == (["experts 0", "experts 1"], ["it"])
    runs[1].passes["count"].facts["traffic_unknown"] = []
    found = generation(job_of(*runs))
    assert (found.sequences, found.cache_bytes, found.cache_bytes_per_token) == (4, 1120, 40)
    # 4 sequences of 4 tokens in a step of 1360 ns
    assert found.tokens_per_s == pytest.approx(16 / 1360e-9)
    runs[1].passes["count"].facts["cache"]["bytes"].pop()
    assert generation(job_of(*runs)).cache_bytes is None


def test_files_of_ranks_from_before_generations(tmp_path):
    paths = []
    for rank in range(2):
        data = summed(rank_run(rank)).to_dict() | {"schema_version": 5}
        del data["generation"], data["traffic"]
        paths.append(tmp_path / f"run.rank{rank}.json")
        paths[-1].write_text(json.dumps(data))

    assert gpuprof.read_job(paths).to_dict() == job_files(tmp_path)


def test_memory_is_of_the_rank_with_most():
    job = job_of(*two())
    assert totals(job)["peak_bytes"] == 3000
    assert job.passes["memory"].facts["rank"] == 1


def test_ranks_come_in_any_order():
    first, second = two()
    assert job_of(second, first).to_dict() == job_of(first, second).to_dict()


def test_files_of_ranks(tmp_path):
    paths = [run.save(tmp_path / f"run.rank{rank}.json.gz") for rank, run in enumerate(two())]

    job = gpuprof.read_job(paths)

    assert job.is_job
    assert [one["file"] for one in job.device["ranks"]] == ["run.rank0.json.gz", "run.rank1.json.gz"]
    assert [one["device"]["uuid"] for one in job.device["ranks"]] == ["GPU-0", "GPU-1"]
    assert job.kernels.empty
    again = gpuprof.load(job.save(tmp_path / "run.json"))
    assert again.to_dict() == job.to_dict()


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "no rank given: give the file of every rank of a job"),
        ([rank_run(0), rank_run(0)], "rank 0 is there twice: give one run of each rank"),
        ([rank_run(0, world=4), rank_run(2, world=4)],
         "ranks 1, 3 of 4 are missing: a job is the sum of all its ranks, so give the file of each"),
        ([rank_run(1)], "rank 0 of 2 is missing: a job is the sum of all its ranks, so give the file of each"),
        ([gpu_run()], "this run is of a single process, and not of one of its ranks: give the files of the ranks"),
        ([rank_run(0), rank_run(1, world=3)],
         "these ranks are not of one job: world is 2 on rank 0 and 3 on rank 1: give files that one run made"),
        ([rank_run(0), rank_run(1, name="other")],
         "these ranks are not of one job: name is net on rank 0 and other on rank 1: give files that one run made"),
        ([rank_run(0), rank_run(1, mesh={"tp": 2})],
         "these ranks are not of one job: mesh is {'dp': 2} on rank 0 and {'tp': 2} on rank 1: give files that one run "
         "made"),
    ],
)  # fmt: skip
def test_what_is_no_job_is_refused_in_one_line(runs, said):
    with pytest.raises(gpuprof.GpuprofError) as refused:
        job_of(*runs)
    assert str(refused.value) == said


def test_other_versions_are_no_job(tmp_path):
    first, second = two()
    second.environment["torch"] = "2.12.0"
    with pytest.raises(gpuprof.GpuprofError, match=r"torch is 2\.13\.0 on rank 0 and 2\.12\.0 on rank 1"):
        job_of(first, second)
    paths = [run.save(tmp_path / f"{name}.json") for name, run in (("a", rank_run(1)), ("b", rank_run(1)))]
    with pytest.raises(gpuprof.GpuprofError, match=r"rank 1 is there twice \(a.json and b.json\)"):
        gpuprof.read_job(paths)
    whole = job_of(*two()).save(tmp_path / "run.json")
    with pytest.raises(gpuprof.GpuprofError, match=r"run\.json is of a whole job, and not of one of its ranks"):
        gpuprof.read_job([whole])


def test_the_mfu_of_a_rank_whose_trace_was_slowed_is_of_its_timed_step():
    # 40 ns of a step of 100, where the kernels of the traced one took 150
    ranks = by_rank(job_of(rank_run(0, step_ns=100), rank_run(1)))
    assert ranks["mfu"].tolist() == pytest.approx([40 / 100, 40 / 160])
    first = ranks.iloc[0]
    assert (first["step_s"], first["timed_s"]) == (pytest.approx(150 * NS), pytest.approx(100 * NS))
    assert first["compute_s"] + first["exposed_s"] + first["idle_s"] == pytest.approx(first["step_s"], rel=1e-12)
    assert "timed_s" not in by_rank(job_of(*two()))


@pytest.mark.parametrize("runs", [two(), (generating(0, "ddp", 1.0), generating(1, "ddp", 1.0))])
def test_what_some_ranks_have_is_not_of_the_job(runs):
    first, second = runs
    for name in ("count", "time", "trace", "memory"):
        second.passes[name] = gpuprof.record.PassOutcome("failed", "out of memory")
    job = job_of(first, second)
    assert (job.passes["trace"].status, job.passes["trace"].reason) == ("failed", "rank 1: out of memory")
    for name in ("ops", "traffic", "samples", "generation", "memory", "busy", "collectives"):
        assert getattr(job, name).empty
    sums = totals(job)
    assert [sums[name] for name in ("flops", "step_s", "mfu", "kernel_s", "peak_bytes")] == [None] * 5


def test_warnings_name_the_ranks_that_have_them():
    first, second = two()
    first.warnings = ["the loss is nan", "both"]
    second.warnings = ["both"]
    assert job_of(first, second).warnings == ["rank 0: the loss is nan", "both"]


def test_samples_of_a_job_are_those_of_all_batches():
    assert job_of(*two()).workload["samples_per_step"] == 4
    shared = [rank_run(rank, mesh={"tp": 2}, parallel=["tp"]) for rank in range(2)]
    assert job_of(*shared).workload["tokens_per_step"] == 8
    mixed = [rank_run(rank, world=4, mesh={"dp": 2, "tp": 2}, parallel=["fsdp", "tp"]) for rank in range(4)]
    assert job_of(*mixed).workload["tokens_per_step"] == 16
    unknown = [rank_run(rank, mesh={}, parallel=["tp"]) for rank in range(2)]
    assert job_of(*unknown).workload["tokens_per_step"] is None


def test_stages_of_a_pipeline_have_one_tree():
    """Each rank has the root and its own stage: the root of the job holds both."""
    first, second = (rank_run(rank, mesh={"pp": 2}, parallel=["pp"]) for rank in range(2))
    second.tree = table("tree", [
        one | {"module": one["module"].replace("fc", "out"), "params": 30, "param_bytes": 60}
        for one in second.tree.to_dict("records")
    ])  # fmt: skip
    for name in ("ops", "kernels"):
        rows = getattr(second, name).to_dict("records")
        setattr(second, name, table(name, [one | {"module": one["module"].replace("fc", "out")} for one in rows]))
    tree = job_of(first, second).tree.set_index("module")["params"].to_dict()
    assert tree == {"": 40, "fc": 10, "out": 30}


def test_modules_of_one_name_in_two_stages_are_two():
    """Stages 0 and 1 on two ranks each, which hold the same."""
    stages = {"dp": 2, "pp": 2}
    ranks = [
        rank_run(
            rank, world=4, mesh=stages, parallel=["ddp", "pp"], groups={"dp": [0, 1], "pp": [rank % 2, rank % 2 + 2]}
        )
        for rank in range(4)
    ]
    assert job_of(*ranks).tree.set_index("module")["params"].to_dict() == {"": 20, "fc": 20}


def test_a_formula_is_none_of_a_job():
    runs = two()
    for run in runs:
        run.settings["convention"] = "palm"
    job = job_of(*runs)
    assert job.settings["convention"] == "full"
    assert job.warnings == ["palm is a formula of one process's model: the job is counted full"]


def test_a_formula_fits_no_part_of_a_model():
    how = {"facts": FACTS}
    job = job_of(*(rank_run(rank, **how) for rank in range(2)))
    with pytest.raises(gpuprof.GpuprofError, match="palm does not fit net: it is a formula of one process's model"):
        totals(job, "palm")
    assert "palm" not in fitting(job)
    with pytest.raises(gpuprof.GpuprofError, match="it is a formula of the whole model, of which this rank has a part"):
        totals(rank_run(0, parallel=["tp"], **how), "palm")
    assert totals(rank_run(0, **how), "palm")["flops"] > 0


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (["busy", "total_ns", 0], None, "busy.total_ns has a figure missing"),
        (["samples", "time_s", 0], None, "samples.time_s has a figure missing"),
        (["ranks", "amount", 0], None, "ranks.amount has a figure missing"),
        (["generation"], GENERATION | {"time_s": [None]}, "generation.time_s has a figure missing"),
        (["generation"], GENERATION | {"part": [None]}, "generation.part has a figure missing"),
        (["traffic"], TRAFFIC | {"bytes": [None]}, "traffic.bytes has a figure missing"),
        (["traffic"], TRAFFIC | {"bytes": [1.5]}, "traffic.bytes is no list of figures"),
        (["passes", "count", "status"], "perhaps", "the count pass neither ended nor did not"),
        (["ops", "calls", 0], "1", "ops.calls is no list of figures"),
    ],
)
def test_a_broken_file_of_a_rank_is_named(tmp_path, where, value, fault):
    paths = [summed(rank_run(rank)).save(tmp_path / f"run.rank{rank}.json") for rank in range(2)]
    assert gpuprof.read_job(paths).to_dict() == job_files(tmp_path)
    data = json.loads(paths[1].read_text())
    part_of = data
    for key in where[:-1]:
        part_of = part_of[key]
    part_of[where[-1]] = value
    paths[1].write_text(json.dumps(data))
    with pytest.raises(gpuprof.GpuprofError) as refused:
        gpuprof.read_job(paths)
    assert str(refused.value) == f"{paths[1]} is a gpuprof run with a part missing or broken ({fault}): profile again"


def job_files(folder):
    """The job of two ranks whose files were saved without their sums."""
    plain = folder / "plain"
    plain.mkdir()
    paths = [rank_run(rank).save(plain / f"run.rank{rank}.json") for rank in range(2)]
    return gpuprof.read_job(paths).to_dict()


def test_what_is_hidden_on_a_rank_is_not_known_of_the_job():
    first, second = two()
    second.passes["trace"].facts["hidden"] = [""]

    frame = job_of(first, second).modules().set_index("module")

    assert frame.loc["fc", ["time_forward_s", "kernel_mfu"]].isna().all()
    assert frame.loc["", "time_forward_s"] > 0
    assert job_of(*two()).modules().set_index("module").loc["fc", "time_forward_s"] > 0


def test_a_kernel_that_modules_share_is_split_in_a_job_too_and_counts_once():
    run = compiled_run()
    run.workload |= {"world": 2, "rank": 0, "mesh": {"dp": 2}, "groups": {"dp": [0, 1]}, "parallel": ["ddp"]}

    busy = summed(run).busy

    own = busy[busy["op"] == "inductor::fused_native_layer_norm_gelu"].set_index("module")
    assert own["total_ns"].to_dict() == {"norm": 67, "act": 34}
    assert own["kernels"].to_dict() == {"norm": 1, "act": 0}
    assert busy.loc[busy["op"] != "*", ["kernels", "total_ns"]].sum().tolist() == [9, 241]
    assert row(busy, module="*", phase="recompute", op="*")["total_ns"] == 10
