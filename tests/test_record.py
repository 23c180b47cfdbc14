import gzip
import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from runs import compiled_run, generation_run, gpu_run, rank_run

import gpuprof
from gpuprof.job import assemble
from gpuprof.job_part import part
from gpuprof.schema import SCHEMA_VERSION, TABLES


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_save_and_load_keep_everything(tmp_path, name):
    run = gpu_run()

    loaded = gpuprof.load(run.save(tmp_path / name))

    assert loaded.to_dict() == run.to_dict()
    assert loaded.modules().equals(run.modules())


def test_counts_stay_exact_beyond_what_a_float_holds(tmp_path):
    run = gpu_run()
    run.ops.loc[0, "flops_full"] = 2**60 + 1

    assert gpuprof.load(run.save(tmp_path / "run.json")).ops.loc[0, "flops_full"] == 2**60 + 1


def test_unknown_figures_stay_missing(tmp_path):
    run = gpu_run()

    loaded = gpuprof.load(run.save(tmp_path / "run.json"))

    assert loaded.ops.loc[loaded.ops["kind"] == "", "flops_causal"].isna().all()


def test_saving_replaces_whole_files_and_leaves_no_others(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("before")

    gpu_run().save(path)

    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(gpuprof.GpuprofError, match="No space left on device"):
        gpu_run().save(path)

    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(gpuprof.GpuprofError, match="No such file or directory"):
        gpu_run().save(tmp_path / "nowhere" / "run.json")


def broken(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or foreign"),
        (b"not json", "truncated or foreign"),
        (b"\x89PNG\r\n\x1a\n", "truncated or foreign"),
        (json.dumps(gpu_run().to_dict()).encode()[:-100], "truncated or foreign"),
        (gzip.compress(json.dumps(gpu_run().to_dict()).encode())[:-20], "truncated or foreign"),
        (b"[1, 2]", "no gpuprof run"),
        (b'{"gpuprof": "other"}', "no gpuprof run"),
        (json.dumps({"gpuprof": "run", "schema_version": SCHEMA_VERSION + 1}).encode(), "upgrade gpuprof"),
        (json.dumps({"gpuprof": "run", "schema_version": "x"}).encode(), "upgrade gpuprof"),
        (json.dumps({"gpuprof": "run", "schema_version": 1}).encode(), "missing or broken"),
        (json.dumps({**gpu_run().to_dict(), "ops": {"calls": ["many"]}}).encode(), "missing or broken"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
    with pytest.raises(gpuprof.GpuprofError, match=message) as caught:
        gpuprof.load(broken(tmp_path, content))

    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(gpuprof.GpuprofError, match=r"no file .*absent\.json"):
        gpuprof.load(tmp_path / "absent.json")


def test_every_column_is_described():
    for columns in TABLES.values():
        assert all(columns.values())


@pytest.mark.parametrize(("name", "since"), [
    ("counters", 2), ("ranks", 3), ("busy", 4), ("collectives", 4), ("generation", 6), ("traffic", 6),
])  # fmt: skip
def test_a_run_from_before_there_was_a_table_still_loads(tmp_path, name, since):
    data = gpu_run().to_dict() | {"schema_version": since - 1}
    del data[name]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert getattr(gpuprof.load(path), name).empty
    path.write_text(json.dumps(data | {"schema_version": since}))
    with pytest.raises(gpuprof.GpuprofError, match="missing or broken"):
        gpuprof.load(path)


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (["workload", "world"], 0, "a world that is no number of processes"),
        (["workload", "world"], "2", "a world that is no number of processes"),
        (["workload", "mesh"], {"dp": 0}, "a mesh without sizes"),
        (["workload", "groups", "dp"], [0, 1], "a process group that is no list of ranks"),
        (["workload", "groups", "dp"], [[0, 2]], "a process group that is no list of ranks"),
        (["workload", "parallel"], [1], "workload.parallel is no list of texts"),
        (
            ["workload", "unsharded"],
            {"flops": 1, "replicas": 0, "repeated": {}, "missing": {}},
            "workload.unsharded is no count of FLOPs",
        ),
        (["passes", "memory", "facts"], {}, "memory of no rank"),
        (
            ["device", "ranks", 1, "device", "peaks"],
            {"datasheet": {"float32": "1"}},
            "device.peaks holds what is no peak",
        ),
        (["workload", "rank"], 2, "rank 2 of 2"),
        (["device", "ranks"], [], "not the 2 ranks that the job has"),
        (["device", "ranks"], None, "not the 2 ranks that the job has"),
        (["device", "ranks", 1, "file"], None, "the file of rank 1 has no name"),
        (["device", "ranks", 1, "device"], None, "rank 1 says nothing of itself"),
        (["doubts"], {}, "a job that does not say what its ranks doubt"),
        (["doubts"], {"moods": []}, "doubts of what nobody knows"),
        (["doubts", "invalid"], "no", "doubts.invalid is no list of texts"),
        (["ranks", "amount", 0], None, "ranks has a figure or a time of a step missing"),
        (["busy", "total_ns", 0], None, "busy has a time missing"),
        (["busy", "ranks", 0], 0, "busy has a time missing"),
        (["busy", "kernels", 0], -1, "busy has a time missing"),
        (["ranks", "dtype", 0], "float32", "ranks has a step without one of its times"),
        (["busy", "module", 0], "gone", "rows of modules that it has not"),
        (["collectives", "start_ns", 0], None, "collectives has a place or a time missing"),
        (["collectives", "duration_ns", 0], -1, "collectives has a place or a time missing"),
    ],
)
def test_what_is_broken_in_a_job_is_refused_where_it_is_read(tmp_path, where, value, fault):
    job = assemble(part(rank_run(rank)) for rank in range(2))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(changed(job, where, value)))

    with pytest.raises(gpuprof.GpuprofError) as refused:
        gpuprof.load(path)

    assert str(refused.value) == (f"{path} is a gpuprof run with a part missing or broken ({fault}): profile again")


def changed(run, where, value):
    """A run as JSON-ready values, with one of them another."""
    data = json.loads(json.dumps(run.to_dict()))
    *path, last = where
    part = data
    for key in path:
        part = part[key]
    part[last] = value
    return data


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (["workload"], None, "workload is no object"),
        (["device"], [], "device is no object"),
        (["environment"], "x", "environment is no object"),
        (["settings"], 0, "settings is no object"),
        (["warnings"], {}, "warnings is no list of texts"),
        (["warnings"], [None], "warnings is no list of texts"),
        (["schema_version"], 0, "schema version 0"),
        (["workload", "name"], None, "no name, mode or device"),
        (["device", "peaks"], {"datasheet": {"bfloat16": 0}}, "device.peaks holds what is no peak"),
        (["device", "peaks"], {"datasheet": {"bfloat16": "x"}}, "device.peaks holds what is no peak"),
        (["workload", "mode"], 3, "no name, mode or device"),
        (["passes", "count", "facts"], {"inputs": 3}, "the inputs of a step are none"),
        (["passes", "time", "facts"], {"inputs": {"4x8": "3"}}, "the inputs of a step are none"),
        (["environment", "date"], 20260102, "no date 20260102"),
        (["environment", "date"], "yesterday", "no date 'yesterday'"),
        (["environment", "date"], "9999-12-31T23:59:59-23:00", "no date '9999-12-31T23:59:59-23:00'"),
        (["ops", "calls", 0], 2**63, "ops.calls is out of range"),
        (["ops", "calls", 0], 1.5, "ops.calls is no list of figures"),
        (["ops", "dtype", 0], 7, "ops.dtype is no list of texts"),
        (["ops", "dtype"], ["float32"], "ops has columns of different length"),
        (["tree", "module", 4], "gone", "rows of modules that it has not"),
        (["samples", "time_s", 1], float("nan"), "samples.time_s is out of range"),
        (["samples", "time_s", 0], float("nan"), "samples.time_s is out of range"),
        (["samples", "time_s", 1], float("inf"), "samples.time_s is out of range"),
        (["samples", "time_s", 1], True, "samples.time_s is no list of figures"),
        (["samples", "time_s", 0], 0, "samples has a step of no time"),
        (["samples", "launch", 1], 5, "samples has a launch without a step"),
    ],
)
def test_what_is_broken_inside_is_refused_where_it_is_read(tmp_path, where, value, fault):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(changed(gpu_run(), where, value)))

    with pytest.raises(gpuprof.GpuprofError) as refused:
        gpuprof.load(path)

    assert str(refused.value) == (f"{path} is a gpuprof run with a part missing or broken ({fault}): profile again")


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (["generation", "time_s", 0], None, "generation has a part without its phase or time"),
        (["generation", "time_s", 0], -1.0, "generation has a part without its phase or time"),
        (["generation", "time_s", 0], "1", "generation.time_s is no list of figures"),
        (["generation", "part", 3], None, "generation has a part without its phase or time"),
        (["generation", "part", 3], 2, "generation has a part twice"),
        (["generation", "phase", 0], "forward", "generation has a part without its phase or time"),
        (["generation", "samples", 0], 0, "generation has a part of no sequences or positions"),
        (["generation", "positions", 0], 0, "generation has a part of no sequences or positions"),
        (["generation", "positions"], [1], "generation has columns of different length"),
        (["generation"], {}, "'step'"),
        (["traffic", "bytes", 0], None, "traffic has a row without its phase or bytes"),
        (["traffic", "bytes", 0], -1, "traffic has a row without its phase or bytes"),
        (["traffic", "bytes", 0], 2**1000, "traffic.bytes is out of range"),
        (["traffic", "phase", 0], "backward", "traffic has a row without its phase or bytes"),
        (["traffic", "what", 0], "thoughts", "traffic of what nobody knows"),
        (["traffic", "module", 0], "gone", "rows of modules that it has not"),
        (["traffic", "module", 0], "attn", "traffic of the whole model without its part, or of a module with one"),
        (["traffic", "part", 0], None, "traffic of the whole model without its part, or of a module with one"),
        (["passes", "count", "facts"], {"cache": {"bytes": [0.5]}}, "a cache without its bytes"),
        (["passes", "count", "facts"], {"cache": {"bytes": ["1"]}}, "a cache without its bytes"),
        (["passes", "count", "facts"], {"traffic_unknown": [1]}, "what is not known of traffic is no list of texts"),
    ],
)
def test_what_is_broken_in_a_generation_is_refused_where_it_is_read(tmp_path, where, value, fault):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(changed(generation_run(), where, value)))

    with pytest.raises(gpuprof.GpuprofError) as refused:
        gpuprof.load(path)

    assert str(refused.value) == f"{path} is a gpuprof run with a part missing or broken ({fault}): profile again"


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (["graphs", "graph", 1], 0, "graphs has no such figures, or a graph twice"),
        (["graphs", "calls", 0], None, "graphs has no such figures, or a graph twice"),
        (["nodes", "graph", 0], 7, "nodes of graphs that it has not"),
        (["nodes", "graph", 0], None, "nodes of graphs that it has not"),
        (["nodes", "module", 0], "gone", "rows of modules that it has not"),
        (["nodes", "phase", 0], "sideways", "nodes has a phase or its calls missing"),
        (["nodes", "calls", 0], None, "nodes has a phase or its calls missing"),
        (["nodes", "calls", 0], 0, "nodes has a figure out of range"),
        (["nodes", "moved", 0], -1, "nodes has a figure out of range"),
        (["nodes", "moved", 0], 2**63, "nodes.moved is out of range"),
        (["nodes", "repeat", 0], 2, "nodes has a figure out of range"),
        (["nodes", "flops_hardware", 0], -4, "nodes has a figure out of range"),
        (["kernels", "compiled", 0], "9/cpp_fused_0:1", "kernels of graphs that it has not"),
        (["kernels", "compiled", 0], "cpp_fused_0", "kernels of graphs that it has not"),
        (["kernels", "compiled", 0], "0/", "kernels of graphs that it has not"),
        (["breaks"], {"frame": ["f"], "place": ["a:1"], "reason": ["x"], "breaks": [0]}, "breaks has no number"),
        (["workload", "compiled"], ["the model"], "workload.compiled does not say how"),
        (["workload", "compiled"], {"": 3}, "workload.compiled does not say how"),
        (["passes", "trace", "facts"], {"hidden": 3}, "the trace hides what is no module"),
    ],
)
def test_what_is_broken_in_compiled_code_is_refused_where_it_is_read(tmp_path, where, value, fault):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(changed(compiled_run(), where, value)))

    with pytest.raises(gpuprof.GpuprofError) as refused:
        gpuprof.load(path)

    assert str(refused.value) == (f"{path} is a gpuprof run with a part missing or broken ({fault}): profile again")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["samples", "time_s", 1], 0.0),  # of a phase: the forward
        (["environment", "date"], None),
        (["environment", "date"], ""),
        (["environment", "date"], "2026-01-02"),
        (["device", "peaks"], {}),
        (["kernels", "call", 0], None),
        (["kernels", "start_ns", 0], -5),
        (["memory", "bytes", 0], -5),
        (["workload", "facts"], {"kind": "decoder", "causal": True, "layers": 2, "encoder": None}),
    ],
)
def test_what_a_run_may_hold(tmp_path, where, value):
    path = tmp_path / "run.json"
    data = changed(gpu_run(), where, value)
    path.write_text(json.dumps(data))

    assert gpuprof.load(path).to_dict() == data


@pytest.mark.parametrize("content", [b"[" * 100_000, gzip.compress(b"{}" * 99)[:12] + b"\xff" * 20])
def test_what_cannot_be_unpacked_is_one_line(tmp_path, content):
    with pytest.raises(gpuprof.GpuprofError, match="is not a whole gpuprof run"):
        gpuprof.load(broken(tmp_path, content))


def test_what_is_done_to_the_lists_of_a_run_changes_no_run(tmp_path):
    run = gpuprof.load(gpu_run().save(tmp_path / "run.json"))
    given = run.to_dict()
    given["ops"]["flops_full"][0] = -1

    assert run.to_dict()["ops"]["flops_full"][0] == run.ops.loc[0, "flops_full"] == gpu_run().ops.loc[0, "flops_full"]


def test_threads_that_ask_at_once_get_one_frame(tmp_path):
    run = gpuprof.load(gpu_run().save(tmp_path / "run.json"))
    with ThreadPoolExecutor(8) as threads:
        frames = {id(frame) for frame in threads.map(lambda _: run.ops, range(64))}

    assert frames == {id(run.ops)}
