"""Recordings that no profiler should make: a right result or one clear line, never a traceback or a wrong figure."""

import json

import pytest
from traces.recording import Recording

import gpuprof
from gpuprof.analysis.modules import by_module
from gpuprof.traces import chrome

DIMS = [[64, 256], [256, 128]]
FLOPS = 2 * 64 * 256 * 128


def product(t, at, **more):
    """A matrix product at that time of the host, whose kernel of 10 us runs 50 us later."""
    t.op("aten::mm", at, at + 10, DIMS, ["float", "float"], ["", ""], **more)
    return t.kernel("ampere_sgemm", at + 2, at + 50, at + 60, tid=more.get("tid", 10))


def read(t, tmp_path, **more):
    return gpuprof.read_trace(t.save(tmp_path / "trace.json"), **more)


def test_a_module_in_itself_is_where_it_was_called(tmp_path):
    t = Recording().module("Net_0", 0, 100).module("Net_0", 20, 90)
    run = read(product(product(t, 1), 30), tmp_path)
    assert list(run.tree["module"]) == ["", "Net_0", "Net_0.Net_0"]
    assert list(run.ops["module"]) == ["Net_0", "Net_0.Net_0"]
    table = by_module(run)
    assert dict(zip(table["module"], table["macs"], strict=True))["Net_0"] == FLOPS  # of both


def test_modules_in_one_another_are_all_in_the_tree(tmp_path):
    t = Recording().module("A_0", 0, 30).module("B_0", 5, 25).module("B_0", 100, 130).module("A_0", 105, 125)
    run = read(product(product(t, 10), 110), tmp_path)
    listed = list(run.tree["module"])
    assert set(run.ops["module"]) <= set(listed)
    assert all(path.rpartition(".")[0] in listed for path in listed if path)
    by_module(run)


def test_a_module_recomputed_before_it_is_seen_inside_its_layer_has_that_layers_path(tmp_path):
    t = Recording()
    t.module("Block_0", 500, 560, tid=11).module("Linear_0", 510, 540, tid=11)  # read first, by thread
    t.module("Linear_0", 600, 640, tid=11)
    product(product(t, 515, tid=11), 605, tid=11)
    t.module("Net_0", 0, 100).module("Block_0", 10, 90).module("Linear_0", 20, 80)
    run = read(product(t, 30), tmp_path)
    assert set(run.ops["module"]) == {"Net_0.Block_0.Linear_0"}
    assert list(run.tree["module"]) == ["", "Net_0", "Net_0.Block_0", "Net_0.Block_0.Linear_0"]


def test_a_kernel_without_a_correlation_is_not_from_before_the_recording(tmp_path):
    t = product(Recording(), 0)
    del t.events[-1]["args"]["correlation"]
    run = read(product(t, 20), tmp_path)
    assert run.passes["trace"].facts["early_kernels"] == 0
    assert list(run.kernels["op"]) == ["", "aten::mm"]


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 30])
def test_a_step_of_no_number_is_none(number, tmp_path):
    run = read(product(Recording().step(number, 0, 100), 20), tmp_path)
    assert run.passes["trace"].facts["steps"] == []


def test_a_size_beyond_64_bits_is_none(tmp_path):
    t = product(Recording(), 0)
    t.op("aten::mm", 20, 30, [[2**70, 8], [8, 8]], ["float", "float"], ["", ""])
    run = read(t.kernel("gemm", 25, 60, 70), tmp_path)
    assert run.ops["flops_full"].isna().tolist() == [False, True]
    assert run.workload["dtype"] == "float32"


def test_kernels_of_no_duration_have_no_share(tmp_path, gpuprof_cli):
    t = product(Recording(), 0)
    t.events[-1]["dur"] = 0
    done = gpuprof_cli("import", t.save(tmp_path / "trace.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "- has an owner" in done.stdout
    assert "Next: no step is marked in the trace" in done.stdout

    gpuprof_cli("import", tmp_path / "trace.json", "-q", "-o", tmp_path / "run.json")
    split = gpuprof_cli("budget", tmp_path / "run.json")
    said = "gpuprof: the kernels of this step took no time: there is nothing to split\n"
    assert (split.returncode, split.stderr) == (2, said)


def test_names_move_no_cursor_and_are_no_markup(tmp_path, gpuprof_cli):
    name = "[red]Evil[/red] \x1b[31m\n|_0"
    t = Recording(name="GPU \x1b[2J")
    t.kernel("k\x1b[31m\r", 5, 50, 60, stream="s\x07")
    trace = product(t.module(name, 0, 100), 20).save(tmp_path / "trace.json")
    recorded = chrome.read(trace)
    assert all(text.isprintable() for text in [*recorded.names, *recorded.streams])
    assert recorded.header["devices"][0]["name"] == "GPU \ufffd[2J"
    done = gpuprof_cli("import", trace)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "[red]Evil[/red]" in done.stdout


def test_numbers_in_quotes_are_numbers(tmp_path):
    plain = product(Recording(), 0)
    quoted = product(Recording(), 0)
    for event in quoted.events:
        event |= {key: str(event[key]) for key in ("ts", "dur", "pid", "tid")}
        event["args"] = {key: str(value) if isinstance(value, int) else value for key, value in event["args"].items()}
    one, other = (read(t, tmp_path) for t in (plain, quoted))
    assert json.dumps(one.kernels.to_dict("list")) == json.dumps(other.kernels.to_dict("list"))
    assert list(other.ops["flops_full"]) == [FLOPS]


def test_what_is_left_out_is_told(tmp_path, gpuprof_cli):
    t = product(product(Recording(), 0), 20)
    del t.events[0]["ts"]
    t.events[3]["dur"] = -5.0
    trace = t.save(tmp_path / "trace.json")
    assert read(t, tmp_path).passes["trace"].facts["left_out"] == {chrome.NO_START: 1, chrome.NO_DURATION: 1}
    done = gpuprof_cli("import", trace)
    assert "Broken events of the file are left out: 1 for" in done.stdout


def test_two_gpus_in_one_file_have_no_peak_of_one(tmp_path):
    t = product(product(Recording(), 0), 20)
    t.events[-1]["args"]["device"] = 1
    run = read(t, tmp_path)
    assert (run.device["name"], run.device["peaks"]) == ("2 GPUs (NVIDIA H100 80GB HBM3)", {})
    assert gpuprof.read_trace(tmp_path / "trace.json", peak_tflops=40).settings["peak_tflops"] == 40
