"""What is shown of a job of two ranks whose figures are worked out by hand."""

import json

import pytest
from runs import rank_run, row
from typer.testing import CliRunner

import gpuprof
from gpuprof.analysis.budget import budget
from gpuprof.analysis.check import compare
from gpuprof.analysis.comparison import fingerprint, launches
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.op_tables import by_op
from gpuprof.analysis.phase_table import by_phase
from gpuprof.cli import app
from gpuprof.render import render
from gpuprof.render.page import render_page
from gpuprof.render.view import View

NS = 1e-9
SENDS = [(60, 20), (85, 30), (130, 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rank 1 computes 30 ns longer, and its step takes 20 longer."""
    folder = tmp_path_factory.mktemp("job")
    runs = rank_run(0), rank_run(1, compute=130, waits=20, step_ns=180, peak_bytes=3000)
    more = (rank_run(rank, step_ns=200, sends=[(at + 70 * rank, took) for at, took in SENDS]) for rank in range(2))
    for name, ranks in {"run": runs, "more": more}.items():
        paths = [run.save(folder / f"{name}.rank{rank}.json") for rank, run in enumerate(ranks)]
        gpuprof.read_job(paths).save(folder / f"{name}.json")
    return folder


@pytest.fixture
def job(folder):
    return gpuprof.load(folder / "run.json")


def shown(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.exception
    return result.stdout


def refused(*arguments):
    with pytest.raises(gpuprof.GpuprofError) as error:
        CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    return str(error.value)


def test_modules_have_the_flops_of_all_ranks_and_the_mean_time_of_them(job):
    fc = row(by_module(job), module="fc")
    assert (fc["flops_forward"], fc["flops_backward"]) == (4000, 2000)
    # forward 60 and 90 ns, recompute 20, backward 20
    times = [fc[f"time_{phase}_s"] / NS for phase in ("forward", "recompute", "backward")]
    assert times == pytest.approx([75, 20, 20])
    # 4000 FLOPs at 200 FLOP/ns and 2000 at 100: 40 of 115 ns
    assert fc["kernel_mfu"] == pytest.approx(40 / 115)
    mm = row(by_op(job), op="aten::mm")
    assert (mm["calls"], mm["kernels"], mm["time_s"]) == (6, 3, pytest.approx(115 * NS))
    # the all-reduce overlaps the backward by 10 ns
    assert row(by_phase(job), phase="backward")["kernel_time_s"] == pytest.approx((70 + 40) / 2 * NS)


def test_the_header_names_the_job(job):
    text = render(job, "tree", View(width=160))
    assert "2 ranks · mesh dp 2 · parameters whole on every rank (DDP)" in text
    assert "2 x Toy GPU" in text
    assert "33.33 GFLOP/s of all ranks' model FLOPs over the slowest one's step" in text
    assert "MFU 22.2 %" in text
    assert "step 160.0 ns / 170.0 ns / 180.0 ns; computation 100.0 ns / 115.0 ns / 130.0 ns" in text
    assert "peak 2.930 KiB allocated on rank 1, the most of all" in text
    assert "which of them ranks share" not in text


@pytest.mark.parametrize("known", [{"mesh": {}, "parallel": []}, {"parallel": ["pp"]}])
def test_how_ranks_share_parameters_may_not_be_known(job, known):
    """Shards that are no DTensors, and stages along a dimension of the mesh that is not called so."""
    job.workload |= known
    text = " ".join(render(job, "tree", View(width=160)).split())
    assert "of the rank that holds most: which of them ranks share is not known" in text


def test_what_ranks_repeat_is_named(job):
    job.workload["unsharded"] = {
        "flops": 5000, "replicas": 1, "convention": "causal", "repeated": {"fc": 1000}, "missing": {},
    }  # fmt: skip
    said = "all ranks together 6,000 FLOPs (causal), the unsharded model 5,000; repeated on 2 ranks: fc 1,000"
    assert f"Replication    {said}\n" in render(job, "tree", View(width=160))
    assert f"Replication: {said}." in render_page(job)


def test_ranks_one_by_one_and_together(folder):
    lines = shown("show", folder / "run.json", "--by", "rank").splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["rank", "0", "1", "min", "median", "max"]
    assert lines[4].split()[:5] == ["median", "170.0", "ns", "115.0", "ns"]
    rows = json.loads(shown("show", folder / "run.json", "--by", "rank", "--format", "json"))
    assert [one["rank"] for one in rows] == [0, 1]
    assert "| median | 170.0 ns |" in shown("show", folder / "run.json", "--by", "rank", "-f", "markdown")
    alone = shown("show", folder / "run.rank1.json")
    assert "rank 1 of 2" in alone
    assert "imported" not in alone


def test_of_many_ranks_the_tree_tells_the_least_the_median_and_the_most():
    job = gpuprof.job.assemble(gpuprof.job_part.part(rank_run(rank, world=9)) for rank in range(9))
    lines = [line.split()[:1] for line in render(job, "tree", View(width=160)).splitlines()]
    assert ["min"] in lines
    assert ["median"] in lines
    assert ["8"] not in lines
    assert ["8"] in [line.split()[:1] for line in render(job, "table", View("rank", width=160)).splitlines()]


def test_collectives(folder):
    # the fastest takes 30 ns, the slower one 60, for 64 bytes; of two ranks the bus does what the algorithm does
    head, line, note = shown("show", folder / "run.json", "--by", "communication").splitlines()
    assert note.startswith("Calls and bytes are of one rank; latency is what the fastest rank takes for a call")
    head, line = head.split(), line.split()
    assert head == ["name", "group", "ranks", "calls", "bytes", "latency_s", "skew_s", "algbw", "busbw", "exposed_s"]
    assert line[:4] == ["c10d::allreduce", "dp", "2", "1"]
    assert " ".join(line[6:]) == "30.00 ns 30.00 ns 2.133 GB/s 2.133 GB/s 35.00 ns"


def test_the_parts_of_a_job_add_up_to_the_step_of_the_slowest(job, folder):
    found = budget(job)
    times = {part: time_s / NS for part, time_s in zip(found.parts["part"], found.parts["time_s"], strict=True)}
    assert times == pytest.approx({"ideal": 40, "compute": 75, "communication": 35, "idle": 20, "behind": 10})
    assert (found.step_s, found.mfu) == (pytest.approx(180 * NS), pytest.approx(40 / 180))
    assert found.parts["time_s"].sum() == pytest.approx(found.step_s, rel=1e-12)
    text = shown("budget", folder / "run.json")
    assert "communication: not hidden" in text
    assert "100 ns to 130 ns on a rank" in text
    assert json.loads(shown("budget", folder / "run.json", "-f", "json"))["rows"] == []


def test_exposed_communication_is_a_part_of_a_rank_too(folder):
    found = budget(gpuprof.load(folder / "run.rank0.json"))
    parts = dict(zip(found.parts["part"], found.parts["time_s"], strict=True))
    assert parts["communication"] == pytest.approx(50 * NS)
    assert found.parts["time_s"].sum() == pytest.approx(160 * NS, rel=1e-12)


def test_the_page(job):
    page = render_page(job)
    for section in ("budget", "ranks", "communication", "modules"):
        assert f'<h2 id="{section}">' in page
    assert "run.rank1.json, Toy GPU, GPU-1" in page
    assert "2 ranks" in page


def test_a_trace_with_the_ranks_beside_one_another(folder):
    """Rank 1's clock is 70 ns ahead in its own step, so its kernels begin 70 ns before those of rank 0."""
    trace = json.loads(shown("show", folder / "more.json", "--format", "perfetto"))
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert names == {0: "rank 0: Toy GPU", 1: "rank 1: Toy GPU, aligned within 0 s"}
    sent = {
        rank: [(e["ts"], e["dur"]) for e in trace["traceEvents"] if e.get("cat") == "kernel" and e["pid"] == rank
               and e["name"] == "ncclDevKernel"]
        for rank in (0, 1)
    }  # fmt: skip
    assert sent[0] == sent[1]
    assert [at for at, _ in sent[0]] == pytest.approx([(70 + at) / 1000 for at, _ in SENDS], abs=1e-9)
    first = {rank: min(e["ts"] for e in trace["traceEvents"] if e.get("cat") == "kernel" and e["pid"] == rank)
             for rank in (0, 1)}  # fmt: skip
    assert first == pytest.approx({0: 0.07, 1: 0.0})
    assert "within 0 s of one another" in trace["otherData"]["aligned"]


def test_a_trace_needs_the_files_of_all_ranks(folder, tmp_path):
    assert "rank 1 shares fewer than 3 collectives" in refused("show", folder / "run.json", "--format", "perfetto")
    (tmp_path / "more.json").write_bytes((folder / "more.json").read_bytes())
    (tmp_path / "more.rank0.json").write_bytes((folder / "more.rank0.json").read_bytes())
    said = refused("show", tmp_path / "more.json", "--format", "perfetto")
    assert said == f"{tmp_path / 'more.rank1.json'} is not there, the file of rank 1: put it beside that of the job"
    (tmp_path / "more.rank1.json").write_bytes((folder / "more.rank0.json").read_bytes())
    assert "more.rank1.json is not of rank 1 of this job" in refused(
        "show", tmp_path / "more.json", "--format", "perfetto"
    )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["show", "--by", "kernel"], "a table by kernel needs kernels, and the file of a job has none"),
        (["roofline"], "a roofline needs kernels, and the file of a job has none"),
        (["budget", "--by", "class"], "a budget by class needs kernels, and the file of a job has none"),
        (["show", "--format", "calflops"],
         "calflops' layout is of the model of one process, and a job counts all its ranks"),
    ],
)  # fmt: skip
def test_what_needs_kernels_names_the_file_that_has_them(folder, arguments, what):
    verb, *options = arguments
    said = refused(verb, folder / "run.json", *options)
    assert said == f"{what}: give the file of one of its ranks, such as run.rank0.json"


def test_verbs_that_need_none_work(folder):
    assert "on rank 1, the most of all" in shown("memory", folder / "run.json")
    assert "No times" not in shown("backward", folder / "run.json")
    assert "causal" in shown("show", folder / "run.json", "--by", "convention")
    assert refused("memory", folder / "run.json", "--fit", "batch").startswith("the run is of a job of 2 processes")


def test_jobs_are_compared_by_the_slowest_rank(job, folder):
    one = launches(job).iloc[0]
    assert (one["step_s"], one["flops"], one["kernels"]) == (pytest.approx(180 * NS), 6000, 8)
    assert one["mfu_datasheet"] == pytest.approx(40 / 180)
    found = compare(job, gpuprof.load(folder / "more.json"))
    moved = found.moved["layer"].set_index(["layer", "phase"])
    assert moved.loc[("fc", "forward"), "base_s"] == pytest.approx(75 * NS)
    assert moved.loc[("fc", "forward"), "base_kernels"] == 2
    with pytest.raises(gpuprof.GpuprofError, match="what moved by kernel needs kernels"):
        compare(job, job, ("kernel",))


def test_jobs_on_other_meshes_do_not_compare(job, folder):
    assert {name: fingerprint(job)[name] for name in ("world", "rank", "mesh", "parallel", "uuid")} == {
        "world": "2", "rank": "", "mesh": "dp 2", "parallel": "ddp", "uuid": "GPU-0, GPU-1",
    }  # fmt: skip
    other = gpuprof.job.assemble(gpuprof.job_part.part(rank_run(rank, mesh={"tp": 2})) for rank in range(2))
    with pytest.raises(gpuprof.GpuprofError, match=r"mesh \(dp 2 against tp 2\)"):
        compare(job, other)
    with pytest.raises(gpuprof.GpuprofError, match=r"rank \(unknown against 0\)"):
        compare(job, gpuprof.load(folder / "run.rank0.json"), allowed=("uuid",))


def test_a_job_against_a_single_process(job):
    alone = rank_run(0)
    alone.workload = {name: value for name, value in alone.workload.items() if name in ("name", "mode", "dtype")}
    for base, head in ((alone, job), (job, alone)):
        found = compare(base, head, allowed=("world", "mesh", "parallel", "uuid"))
        flops = next(one for one in found.verdicts if one.metric == "flops")
        assert (flops.m0, flops.value) == tuple(3000 if run is alone else 6000 for run in (base, head))


def test_history_tells_a_job_from_its_ranks(folder, tmp_path):
    store = tmp_path / "history.db"
    shown("history", "import", "--store", store, folder / "run.json", folder / "run.rank1.json")
    titles = [line for line in shown("history", "list", "--store", store).splitlines() if " on Toy GPU" in line]
    assert sorted(title.partition(", ")[2] for title in titles) == ["2 ranks", "rank 1 of 2"]


def test_the_clock_of_a_job_is_that_of_its_slowest_device():
    clocks = {0: 1800.0, 1: 1500.0}
    runs = []
    for rank, mhz in clocks.items():
        run = rank_run(rank)
        run.passes["telemetry"] = gpuprof.record.PassOutcome("done")
        reading = {"time_s": 0.0, "quantity": "sm_clock", "unit": "MHz", "value": mhz}
        run.telemetry = gpuprof.schema.table("telemetry", [reading])
        run.device |= {"flops_per_clock_per_sm": {"bfloat16": 10, "float32": 5}}
        runs.append(run)
    job = gpuprof.job.assemble(map(gpuprof.job_part.part, runs))
    one = launches(job).iloc[0]
    assert one["sm_clock_mhz"] == 1500
    # 5 SMs of 10 FLOPs a clock, 90 and 75 FLOP/ns: 4000 in them and 2000 in half
    assert one["mfu_clock"] == pytest.approx((4000 / 165 + 2000 / 82.5) / 160)
    rows = json.loads(render(job, "json", View("rank")))
    assert [one["sm_clock_mhz"] for one in rows] == [1800, 1500]
    assert "lowest SM clock 1,500 MHz, the rest of rank 0, whose step is longest" in render(
        job, "tree", View(width=160)
    )
    assert "Of rank 0, whose step is longest." in render_page(job)


def test_what_one_rank_doubts_is_withheld_of_the_job():
    first, second = rank_run(0), rank_run(1)
    second.kernels = second.kernels[second.kernels["phase"] != "forward"]
    job = gpuprof.job.assemble(map(gpuprof.job_part.part, (first, second)))
    assert gpuprof.analysis.totals.totals(job)["mfu"] is None
    text = render(job, "tree", View(width=200))
    assert "withheld: rank 1: aten::mm in the forward: counted 1 call, traced 0" in text


def test_in_a_folder_the_files_of_ranks_are_their_jobs(tmp_path):
    for night in (1, 2):
        paths = []
        for rank in range(2):
            run = rank_run(rank)
            run.environment["date"] = f"2026-01-0{night}T00:00:0{rank}+00:00"  # rank 1 ended last
            paths.append(run.save(tmp_path / f"{night}.rank{rank}.json"))
        gpuprof.read_job(paths).save(tmp_path / f"{night}.json")
    result = CliRunner().invoke(app, ["check", str(tmp_path)], env={"COLUMNS": "160"})
    assert f"The head is {tmp_path / '2.json'}, the newest there." in result.stdout
    assert "Baseline: 1 launch of 1 run" in result.stdout
