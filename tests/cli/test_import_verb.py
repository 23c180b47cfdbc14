"""``gpuprof import`` as it is called: what it refuses, in a line, and what is said where a trace is given elsewhere."""

import gzip
import json
import os
import pty
import subprocess
import sys

import pytest
from traces.recording import Recording
from typer.testing import CliRunner

import gpuprof
from gpuprof.cli import app
from gpuprof.errors import GpuprofError

RUNNER = CliRunner()
TABLE = (
    '"ID","Process ID","Kernel Name","Grid Size","Block Size","CC","gpu__time_duration.sum"\n'
    '"","","","","","","us"\n"0","1","gemm","(1, 1, 1)","(32, 1, 1)","9.0","5"\n'
)


def recording(**header):
    t = Recording(**header)
    t.op("aten::mm", 0, 10, [[64, 32], [32, 16]], ["float"] * 2, ["", ""])
    t.kernel("ampere_sgemm_128x64_tn", 5, 20, 30)
    return t


@pytest.fixture
def trace(tmp_path):
    return recording().save(tmp_path / "trace.json")


def refused(*arguments):
    error = RUNNER.invoke(app, [str(argument) for argument in arguments]).exception
    assert isinstance(error, GpuprofError), error
    assert "\n" not in str(error)
    return str(error)


def test_a_trace_is_never_overwritten_by_its_run(trace, tmp_path):
    text = trace.read_text()
    (tmp_path / "link.json").symlink_to(trace)

    for output in (trace, tmp_path / "link.json", tmp_path / "." / "trace.json"):
        assert refused("import", trace, "-o", output) == (
            f"cannot write {output}: it is the trace itself; save the run under another name"
        )
    assert trace.read_text() == text


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("verb", ["show", "budget", "roofline", "memory", "backward", "report", "compare"])
def test_a_trace_where_a_run_should_be(verb, bare, trace):
    if bare:
        trace.write_text(json.dumps(json.loads(trace.read_text())["traceEvents"]))
    more = {"compare": [trace], "report": ["-o", trace.with_suffix(".html")]}.get(verb, [])

    assert refused(verb, trace, *more) == (
        f"{trace} is a trace: make a run of it with 'gpuprof import {trace} -o run.json.gz'"
    )


@pytest.mark.parametrize("peak", [0.0, -3.0, float("nan"), float("inf")])
def test_a_peak_is_above_0_and_finite(peak, trace):
    said = f"--peak-tflops must be above 0 and finite, not {peak}"

    assert refused("import", trace, "--peak-tflops", peak) == said
    with pytest.raises(GpuprofError, match=said):
        gpuprof.read_trace(trace, peak_tflops=peak)


@pytest.mark.parametrize("given", [None, 3, b"trace.json", [None], json])
def test_what_is_no_path(given):
    with pytest.raises(GpuprofError, match="is no path of a trace, and no list of such paths"):
        gpuprof.read_trace(given)
    with pytest.raises(GpuprofError, match="no trace given"):
        gpuprof.read_trace([])


def test_a_step_by_a_text_is_told_from_its_number(tmp_path):
    path = recording().step(7, 0, 10).save(tmp_path / "trace.json")

    assert gpuprof.read_trace(path, step=7).passes["trace"].facts["step"] == 7
    with pytest.raises(GpuprofError, match="has no step '7': there are 7"):
        gpuprof.read_trace(path, step="7")


def test_files_of_two_jobs_are_no_ranks_of_one(tmp_path):
    def rank(number, size, name="Tesla T4"):
        about = {"distributedInfo": {"rank": number, "world_size": size}}
        return recording(name=name, **about).save(tmp_path / f"{number}-{size}-{name[0]}.json")

    assert len(gpuprof.read_trace([rank(1, 2), rank(0, 2)]).ranks["rank"].unique()) == 2
    assert refused("import", rank(0, 2), rank(1, 4)) == (
        f"{rank(0, 2)} is of a job of 2 ranks, {rank(1, 4)} of one of 4: give those of one job"
    )
    assert refused("import", rank(0, 2), rank(1, 2, "NVIDIA B200")) == (
        f"{rank(0, 2)} is of Tesla T4, {rank(1, 2, 'NVIDIA B200')} of NVIDIA B200: ranks of one job have one peak "
        "here; import each alone"
    )


def test_a_table_of_nsight_compute_has_the_name_that_is_given(tmp_path):
    path = tmp_path / "ncu.csv"
    path.write_text(TABLE)

    assert gpuprof.read_trace(path).workload["name"] == "ncu"
    run = gpuprof.read_trace(path, name="mine", convention="full", peak_tflops=100)
    assert (run.workload["name"], run.settings) == ("mine", {"convention": "full", "peak_tflops": 100})


def test_gzip_data_that_are_damaged_are_not_called_cut_short(tmp_path):
    t = recording()
    for number in range(1000):  # more text than tells what a file is
        t.label("loading", 100 + number, 101 + number)
    trace = t.save(tmp_path / "trace.json")
    packed = gzip.compress(trace.read_bytes())
    trace.write_bytes(packed[:-8] + b"12345678")

    assert refused("import", trace).startswith(
        f"{trace} is damaged before its first event, at byte 0 of its text (its gzip data are damaged): "
    )


def test_without_msgspec_it_is_said_how_to_get_it(trace):
    code = "import sys; sys.modules['msgspec'] = None; from gpuprof.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, "import", str(trace)], capture_output=True, text=True)

    said = "gpuprof: traces are read with msgspec, which is not installed: pip install 'msgspec>=0.19'\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", said)


def test_the_report_goes_where_it_is_sent_while_a_bar_is_on_the_terminal(trace, tmp_path):
    ours, theirs = pty.openpty()
    with (tmp_path / "report.txt").open("w") as report:
        command = [sys.executable, "-m", "gpuprof", "import", str(trace)]
        ended = subprocess.run(command, stdout=report, stderr=theirs, env=os.environ | {"TERM": "xterm"}, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode(errors="ignore")  # a read may end within a character
    os.close(ours)

    assert ended.returncode == 0
    assert "\n\nWorkload" in (tmp_path / "report.txt").read_text()
    assert "Workload" not in shown
    assert "trace.json" in shown
    assert " bytes" in shown


def test_of_several_ranks_it_is_said_whose_the_report_is(tmp_path):
    paths = [
        recording(distributedInfo={"rank": number}).step(0, 0, 40).save(tmp_path / f"{number}.json")
        for number in (5, 2)
    ]

    assert "rank 2 of 2 imported" in RUNNER.invoke(app, ["import", *map(str, paths)]).stdout


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "ncu.csv"
    path.write_text(TABLE[:-6])

    assert refused("import", path).startswith(f"{path}: Nsight Compute's table breaks off")
