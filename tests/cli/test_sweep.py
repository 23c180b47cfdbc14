import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from runs import generation_run, gpu_run
from typer.testing import CliRunner

import gpuprof
from gpuprof import record, schema
from gpuprof import sweep as sweeping
from gpuprof.analysis.sweep import axis, knee, rate, series, sweep_table
from gpuprof.cli import app
from gpuprof.errors import GpuprofError
from gpuprof.render.sweep import FORMATS, sweep_chart
from gpuprof.render.view import View
from gpuprof.sweep import DONE, FAILED, NOT_RUN, OUT_OF_MEMORY, TIMED_OUT, Point, grid, read, run_of, sweep, to_run
from gpuprof.workload import names

CHILD = """
import os, shutil, subprocess, sys, time
from pathlib import Path

model, path = sys.argv[1], Path(sys.argv[-1])
with open(path.parent / "log", "a") as log:
    log.write(" ".join(sys.argv[1:-1]) + "\\n")
if model == "bad":
    sys.exit(print("gpuprof: a warning\\ngpuprof: the model raised", file=sys.stderr) or 2)
if model == "oom":
    sys.exit(print("gpuprof: out of memory in the forward: lower --batch-size", file=sys.stderr) or 2)
if model == "crash":
    raise ValueError("no such thing")
if model == "killed":
    os.kill(os.getpid(), 9)
if model == "hang":
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (path.parent / "pids").write_text(f"{os.getpid()} {other.pid}")
    time.sleep(300)
if model == "wait":
    (path.parent / "pids").write_text(str(os.getpid()))
    while not (path.parent / "go").exists():
        time.sleep(0.02)
shutil.copy(Path(__file__).with_name("partial.json.gz" if model == "partial" else "run.json.gz"), path)
"""
MODELS = ["good", "bad", "oom", "crash", "killed", "hang", "wait", "partial"]
SHARED = ["--seed", "0"]


@pytest.fixture
def child(tmp_path):
    """A stand-in for ``gpuprof profile``, whose end the name of the model decides."""
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    run = gpu_run()
    run.save(tmp_path / "run.json.gz")
    run.passes["memory"] = record.PassOutcome("failed", "out of memory in the backward of head")
    run.save(tmp_path / "partial.json.gz")
    return [sys.executable, str(path)]


@pytest.fixture
def folder(tmp_path, monkeypatch, child):
    monkeypatch.setattr(sweeping, "command", lambda: child)
    monkeypatch.setattr(names, "preset_names", lambda: MODELS)
    return tmp_path / "out"


@pytest.fixture
def cli():
    """The command line in this process."""
    return CliRunner()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_grid_has_every_combination_in_a_stable_order():
    points = grid(["gpt2", "a/b"], {"attention": ["eager", "sdpa"], "seq_len": [8, 16]})

    assert [(p.model, *p.options.values()) for p in points] == [
        (model, length, attention)
        for model in ("gpt2", "a/b") for length in (8, 16) for attention in ("eager", "sdpa")
    ]  # fmt: skip
    assert points[1].arguments == ["gpt2", "--seq-len", "8", "--attention", "sdpa"]
    assert points[1].name == "gpt2,seq-len=8,attention=sdpa"


def test_names_are_safe_for_files_and_of_their_own():
    names = [Point(model, {}).name for model in ("a/b", "a:b", "a-b", "../x.py:net", "x" * 300)]

    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").replace(".", "").isalnum() and len(name) < 100 for name in names)
    assert names[2] == "a-b"
    assert names[3].startswith("x.py-net-")


def test_what_becomes_of_each_point(folder):
    planned = grid(["good", "bad", "oom", "crash", "killed", "partial"], {"seq_len": [8]})

    told = []
    points = sweep(planned, SHARED, folder, tell=lambda over, left: told.append((len(over), len(left))))

    assert {point.model: (point.status, point.reason) for point in points} == {
        "good": (DONE, ""),
        "bad": (FAILED, "the model raised"),
        "oom": (OUT_OF_MEMORY, "out of memory in the forward: lower --batch-size"),
        "crash": (FAILED, "ValueError: no such thing"),
        "killed": (FAILED, "ended by signal 9 (Killed), as the system does when memory is short"),
        "partial": (OUT_OF_MEMORY, "memory: out of memory in the backward of head"),
    }
    assert told == [(done, 6 - done) for done in range(7)]
    assert read(folder) == (SHARED, points)
    assert (folder / "log").read_text().splitlines()[0] == "good --seq-len 8 --seed 0 -q -o"


def test_a_point_that_takes_too_long_is_killed_with_what_it_started(folder):
    (point,) = sweep(grid(["hang"], {}), SHARED, folder, limit_s=3)

    assert (point.status, point.reason) == (TIMED_OUT, "killed after 3 s: raise --limit")
    pids = (folder / "pids").read_text().split()
    assert len(pids) == 2
    until(lambda: not any(map(alive, pids)))


def test_nothing_done_is_run_again_and_what_failed_only_to_retry(folder):
    planned = grid(["good", "oom"], {"seq_len": [8]})
    sweep(planned, SHARED, folder)
    more = grid(["good", "oom"], {"seq_len": [8, 16]})

    points = sweep(more, SHARED, folder)

    assert [point.name for point in points] == [
        "good,seq-len=8", "oom,seq-len=8", "good,seq-len=16", "oom,seq-len=16"
    ]  # fmt: skip
    assert len((folder / "log").read_text().splitlines()) == 4
    sweep(planned, SHARED, folder, retry=True)
    assert [line.split(" --seed")[0] for line in (folder / "log").read_text().splitlines()[4:]] == ["oom --seq-len 8"]


def test_a_point_whose_file_is_gone_is_run_again_and_one_that_is_there_is_done(folder):
    planned = grid(["good"], {"seq_len": [8, 16]})
    first, second = sweep(planned, SHARED, folder)
    first.file(folder).unlink()
    (folder / "sweep.json").unlink()

    assert [point.status for point in read(folder)[1]] == []
    assert [point.name for point in to_run(planned, sweeping.joined(planned, SHARED, folder), False)] == [first.name]
    second.file(folder).write_bytes(b"half")
    assert [point.status for point in sweep(grid(["good"], {"seq_len": [16]}), SHARED, folder)] == [DONE]


def test_a_folder_holds_points_that_compare(folder):
    sweep(grid(["good"], {}), SHARED, folder)

    with pytest.raises(GpuprofError, match="measured with --seed 0, not --seed 1: give the same options, or another"):
        sweep(grid(["good"], {}), ["--seed", "1"], folder)
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(GpuprofError, match=r"cannot read .*sweep.json"):
        sweep(grid(["good"], {}), SHARED, folder)
    with pytest.raises(GpuprofError, match="cannot make the folder"):
        sweep(grid(["good"], {}), SHARED, folder / "log")


def started(child, folder, *models):
    """``gpuprof sweep`` in a process of its own, up to where its child waits."""
    patched = (
        "import gpuprof.sweep as s; from gpuprof.workload import names as n\n"
        f"s.command = lambda: {child!r}; n.preset_names = lambda: {MODELS!r}\nfrom gpuprof.cli import main; main()"
    )
    arguments = ["sweep", ",".join(models), "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", patched, *arguments], env=environment, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # a shell lets what it starts in the background ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until(lambda: (folder / "pids").exists() and (folder / "pids").read_text())
    return parent, int((folder / "pids").read_text())


def test_an_interrupted_sweep_ends_its_child_and_keeps_what_is_done(folder, child):
    parent, pid = started(child, folder, "good", "wait")

    parent.send_signal(signal.SIGINT)
    complaint = parent.communicate(timeout=120)[1]

    assert parent.returncode == 130
    assert complaint.splitlines()[0].startswith("[1/2] good: done in ")
    assert complaint.splitlines()[-1] == "gpuprof: interrupted"
    until(lambda: not alive(pid))
    assert [row["status"] for row in csv.DictReader((folder / "sweep.csv").open())] == [DONE, NOT_RUN]
    shared, _ = read(folder)
    (folder / "go").touch()
    assert [point.status for point in sweep(grid(["good", "wait"], {}), shared, folder)] == [DONE, DONE]
    assert len((folder / "log").read_text().splitlines()) == 3


def test_a_killed_sweep_loses_nothing_and_its_last_child_is_waited_for(folder, child):
    parent, pid = started(child, folder, "good", "wait")
    parent.kill()
    parent.communicate()
    shared, points = read(folder)

    assert [point.status for point in points] == [DONE, NOT_RUN]
    assert alive(pid)
    with pytest.raises(GpuprofError, match="another sweep is at work"):
        sweep(grid(["good", "wait"], {}), shared, folder)
    (folder / "go").touch()
    until(lambda: not alive(pid))
    assert [point.status for point in sweep(grid(["good", "wait"], {}), shared, folder)] == [DONE, DONE]
    assert len((folder / "log").read_text().splitlines()) == 2  # neither has run again


def table_of(*points):
    return sweep_table([(point, gpu_run() if point.status == DONE else None) for point in points])


def filled(models=("net",), **swept):
    points = grid(list(models), swept)
    for point in points:
        point.status = DONE
    return points


def test_the_table_has_the_figures_of_each_run():
    points = filled(seq_len=[8, 16])
    points[1].status, points[1].reason = OUT_OF_MEMORY, "out of memory in the forward"

    first, second = table_of(*points).to_dict(orient="records")

    # 12000 FLOPs at 100 GFLOP/s are 120 ns; the step took 480 ns, and a tenth more and less
    assert first["flops"] == 12000
    assert first["step_s"] == pytest.approx(480e-9)
    assert first["step_iqr_s"] == pytest.approx(48e-9)
    assert first["mfu"] == pytest.approx(0.25)
    assert first["tokens_per_s"] == pytest.approx(8 / 480e-9)
    assert first["samples_per_s"] == pytest.approx(2 / 480e-9)
    assert (first["denominator"], first["convention"], first["device"]) == ("datasheet", "causal", "Toy GPU")
    assert (first["seq_len"], first["peak_bytes"], first["status"]) == (8, 1200, "done")
    assert (second["mode"], second["seq_len"], second["reason"]) == ("train", 16, "out of memory in the forward")
    assert pd.isna(second["mfu"])


def test_rates_are_of_tokens_where_every_point_has_some():
    points = filled(models=("text", "image"))
    runs = [gpu_run(), gpu_run()]

    assert rate(sweep_table(list(zip(points, runs, strict=True)))) == ("tokens_per_s", "tokens/s")
    runs[1].workload["tokens_per_step"] = None
    assert rate(sweep_table(list(zip(points, runs, strict=True)))) == ("samples_per_s", "samples/s")


def generated(times, **more):
    """A generation for each batch, whose times are so many times those of the toy one."""
    points = filled(batch_size=list(times), mode=["generate"], **more)
    runs = []
    for time_s in times.values():
        run = generation_run()
        for rows in (run.samples, run.generation):
            rows["time_s"] *= time_s
        runs.append(run)
    return sweep_table(list(zip(points, runs, strict=True)))


def test_a_generation_has_the_figures_of_its_phases():
    (row,) = generated({2: 2.0}).to_dict(orient="records")

    # 2 x 4 new tokens; a prefill of 400 ns and steps of decoding of 300, 320, 340 ns, all twice as slow here
    assert row["tokens_per_s"] == pytest.approx(8 / 2720e-9)
    assert (row["ttft_s"], row["tpot_s"]) == (pytest.approx(800e-9), pytest.approx(640e-9))
    assert row["decode_tokens_per_s"] == pytest.approx(2 / 640e-9)
    # 20,000 FLOPs at 100 GFLOP/s, 4,800 in the three steps of decoding, 4,740 bytes at 10 GB/s
    assert row["prefill_mfu"] == pytest.approx(200 / 800)
    assert row["decode_mfu"] == pytest.approx(48 / 1920)
    assert row["decode_mbu"] == pytest.approx(474 / 1920)
    assert row["bandwidth"] == "datasheet"
    assert not {"tpot_s", "bandwidth"} & {*table_of(*filled()).columns}


def test_tokens_of_an_old_file_are_new_ones_too():
    run = generation_run()
    run.generation = run.generation.head(0)
    run.samples["phase"] = run.samples["phase"].replace({"prefill": "forward", "decode": "forward"})
    for name in ("ops", "kernels", "traffic", "memory"):
        setattr(run, name, getattr(run, name).head(0))
    run.passes = {"time": record.PassOutcome("done")}

    (row,) = sweep_table([(filled(mode=["generate"])[0], run)]).to_dict(orient="records")

    assert row["tokens_per_s"] == pytest.approx(8 / 1360e-9)
    assert pd.isna(row["tpot_s"])


@pytest.mark.parametrize(
    ("times", "batch"),
    [
        # the roofline max(16, batch): its ridge
        ({1: 16, 4: 16, 16: 16, 64: 64}, 16),
        # 16 + batch: half of the time is the batch's at 16, between 4 and 16 in the middle of the ratio as well
        ({1: 17, 4: 20, 16: 32, 64: 80}, 16),
        ({8: 24, 16: 32, 32: 48}, 16),
        # by exactly the square root counts as much as by more, and what comes again later is no knee
        ({1: 10, 4: 20, 16: 40}, 1),
        ({1: 10, 4: 30, 16: 31, 64: 100}, 16),
        ({1: 10, 4: 10, 16: 11}, None),
    ],
)
def test_the_knee_is_where_a_larger_batch_is_paid_for(times, batch):
    found = knee(generated(times))

    assert (found.batch_size, found.sizes) == (batch, [*times])
    taken = [*times.values()]
    assert found.slower == pytest.approx([after / before for before, after in pairwise(taken)])
    assert found.bound == "memory"  # MBU 24.7 to MFU 2.5


def test_there_is_no_knee_where_nothing_is_to_be_compared():
    assert knee(generated({4: 1.0})) is None
    assert knee(table_of(*filled(batch_size=[1, 2]))) is None


def test_generations_read(tmp_path):
    table = generated({1: 16, 4: 16, 16: 16, 64: 64})

    text = FORMATS["text"](table, View(width=500)).splitlines()
    assert re.split(r"\s{2,}", text[0].strip()) == [
        "batch-size", "tokens/s", "TTFT", "prefill MFU", "TPOT", "p99", "decode tokens/s", "decode MBU", "decode MFU",
        "memory", "status",
    ]  # fmt: skip
    assert text[-2] == (
        "Knee at batch 16; at batch 64 decoding is bound by memory (time per token from 1 to 4: 1.00 x, 4 to 16: "
        "1.00 x, 16 to 64: 4.00 x)."
    )
    assert text[-1].startswith("The knee is the smallest batch from which on more than half of what a larger one gains")
    assert any(line.endswith("MBU against the datasheet bandwidth.") for line in text)
    none = FORMATS["markdown"](generated({1: 1.0, 4: 1.1}), View())
    assert (
        "- No knee up to batch 4: larger ones still give more than they cost (time per token from 1 to 4: 1.10 x)."
        in none
    )
    assert "- Knee at or below batch 1; " in FORMATS["markdown"](generated({1: 1.0, 4: 4.0}), View())
    mixed = pd.concat([table, table_of(*filled(batch_size=[1]))], ignore_index=True)
    assert "TPOT" not in FORMATS["text"](mixed, View(width=500))
    drawn = sweep_chart(table, tmp_path / "sweep.svg").read_text()
    assert all(
        words in drawn
        for words in ("decode tokens/s against TPOT", "MBU of decode, %", ">knee<", "numbers: batch-size")
    )
    assert ">knee<" not in sweep_chart(generated({1: 1.0, 4: 1.1}), tmp_path / "none.svg").read_text()


def test_a_chart_is_over_the_first_number_that_varies():
    table = table_of(*filled(attention=["eager", "sdpa"], batch_size=[1], seq_len=[8, 16], new_tokens=[1, 2]))

    assert axis(table) == "seq_len"
    assert {label: list(rows["seq_len"]) for label, rows in series(table, "seq_len").items()} == {
        f"new-tokens {tokens}, attention {kind}": [8, 16] for tokens in (1, 2) for kind in ("eager", "sdpa")
    }
    assert axis(table_of(*filled(models=("a", "b"), dtype=["float32"]))) == "model"
    assert axis(table_of(*filled(seq_len=[8]))) is None
    apart = table_of(*filled(seq_len=[8, 16]), *filled(seq_len=[8], dtype=["float32"]))
    assert list(series(apart, "seq_len")) == ["dtype by default", "dtype float32"]


def test_the_table_in_every_format():
    points = filled(models=("a|b",), seq_len=[8, 16])
    points[1].status, points[1].reason = FAILED, "flash_attn is not installed"
    table = table_of(*points)

    text = FORMATS["text"](table, View(width=120)).splitlines()
    assert text[0].split() == ["seq-len", "step", "IQR", "tokens/s", "FLOPs", "FLOP/s", "MFU", "memory", "status"]
    assert text[1].split()[:8] == ["8", "480.0", "ns", "48.00", "ns", "16.67", "M", "12.00"]
    assert text[2].split() == ["16", *["-"] * 7, "failed"]
    assert "a|b · train · Toy GPU." in text
    assert any("of 3 timed. FLOPs in convention causal; MFU against datasheet (datasheet" in line for line in text)
    assert text[-1] == "a|b, seq-len 16: failed: flash_attn is not installed"
    narrow = FORMATS["text"](table, View(width=60)).splitlines()
    assert narrow[0].split() == ["seq-len", "step", "tokens/s", "MFU", "memory", "status"]
    assert "Not shown at this width: FLOP/s, FLOPs, IQR" in narrow

    markdown = FORMATS["markdown"](table, View()).splitlines()
    assert markdown[0].startswith("| seq-len | step | IQR | tokens/s |")
    assert markdown[-1] == "- a\\|b, seq-len 16: failed: flash_attn is not installed"
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](table, View()))))
    assert [(row["seq_len"], row["flops"], row["status"]) for row in rows] == [
        ("8", "12000", "done"),
        ("16", "", "failed"),
    ]
    rows = json.loads(FORMATS["json"](table, View()))
    assert (rows[0]["flops"], rows[1]["mfu"]) == (12000, None)


def test_a_chart_names_what_it_shows(tmp_path):
    points = filled(seq_len=[8, 16, 64], attention=["eager", "sdpa"])
    points[-1].status = OUT_OF_MEMORY
    points.append(Point("net", {"seq_len": 128}))

    drawn = sweep_chart(table_of(*points), tmp_path / "sweep.svg").read_text()

    for words in ("MFU, %", "tokens/s", "seq-len", "attention eager", "attention sdpa", "out of memory", "Toy GPU"):
        assert f"{words}<" in drawn or f"· {words}" in drawn
    assert drawn.count(">out of memory<") == 2  # one in each panel
    assert ">128<" not in drawn  # not run
    assert sweep_chart(table_of(*points), tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_over_names_and_none_over_nothing(tmp_path):
    drawn = sweep_chart(table_of(*filled(dtype=["float32", "bfloat16"])), tmp_path / "sweep.svg").read_text()

    assert ">float32<" in drawn
    with pytest.raises(GpuprofError, match="nothing varies"):
        sweep_chart(table_of(*filled(seq_len=[8])), tmp_path / "sweep.svg")
    lost = grid(["net"], {"seq_len": [8, 16]})
    for point in lost:
        point.status = FAILED
    with pytest.raises(GpuprofError, match="no point of this sweep was measured"):
        sweep_chart(table_of(*lost), tmp_path / "sweep.svg")


def test_a_run_that_is_invalid_for_tracking_says_so_in_its_row():
    run = gpu_run()
    hot = {"time_s": 0.5, "quantity": "event_reasons", "unit": "", "value": float(0x40)}  # hardware thermal slowdown
    run.telemetry = schema.table("telemetry", [hot])
    (point,) = filled()

    (reason,) = sweep_table([(point, run)])["reason"]

    assert reason.startswith("invalid for tracking: hardware thermal slowdown")
    assert FORMATS["text"](sweep_table([(point, run)]), View()).splitlines()[-1] == f"net: {reason}"


@pytest.mark.parametrize(
    ("models", "status", "words"),
    [
        ("good,oom", 0, "Saved in"),
        ("good,bad", 1, "bad: failed: the model raised"),
        ("oom", 0, "out of memory in the forward"),
    ],
)
def test_the_exit_status_says_whether_a_point_failed(folder, cli, models, status, words):
    ended = cli.invoke(app, ["sweep", models, "-o", str(folder)])

    assert ended.exit_code == status, ended.output
    assert words in ended.stdout
    assert {"sweep.json", "sweep.csv", "sweep.md"} <= {path.name for path in folder.iterdir()}


def test_a_sweep_of_failures_is_an_error(folder, cli):
    ended = cli.invoke(app, ["sweep", "bad,crash", "-o", str(folder), "-f", "json"])

    assert isinstance(ended.exception, GpuprofError)
    assert str(ended.exception) == "no point of the sweep was measured: the model raised"
    assert [row["status"] for row in json.loads(ended.stdout)] == [FAILED, FAILED]


def test_a_dry_run_prints_the_commands_and_runs_nothing(folder, cli):
    swept = ["sweep", "good,oom", "--seq-len", "8, 16,8", "--warmup", "0", "--freeze", "a.*", "-o", str(folder)]

    lines = cli.invoke(app, [*swept, "--dry-run"]).stdout.splitlines()

    shared = "--freeze 'a.*' --seed 0 --warmup 0 --passes count,time,memory,telemetry --convention causal -q -o"
    assert lines[1] == f"gpuprof profile good --seq-len 16 {shared} {folder}/good,seq-len=16.json.gz"
    assert len(lines) == 4
    assert not folder.exists()
    assert cli.invoke(app, [*swept, "--quiet"]).output == ""
    lines = cli.invoke(app, [*swept, "--dry-run"]).stdout.splitlines()
    assert [line.partition("  # ")[2] for line in lines] == [DONE, DONE, OUT_OF_MEMORY, OUT_OF_MEMORY]
    lines = cli.invoke(app, [*swept, "--dry-run", "--retry"]).stdout.splitlines()
    assert [line.partition("  # ")[2] for line in lines] == [DONE, DONE, "", ""]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good", "--seq-len", "8,long"], "--seq-len '8,long': give whole numbers"),
        (["good", "--seq-len", ","], "--seq-len ',' names no value"),
        ([" ,"], "MODEL ' ,' names no value"),
        (["good", "--seq-len", "0,8"], "--seq-len must be at least 1"),
        (["good", "--attention", "sdpa,fast"], "--attention 'fast' is not one of"),
        (["good", "--mode", "train,forward", "--optimizer", "adamw"], "--optimizer is for --mode train"),
        (["good", "--passes", "count,speed"], "no pass named speed"),
        (["good,nosuch"], "no model 'nosuch'"),
        (["good,no/such.py:net"], "no file no/such.py"),
        (["good", "--limit", "0"], "--limit must be above 0"),
        (["good", "--peak-tflops", "-1"], "--peak-tflops must be above 0"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_runs(folder, cli, arguments, words):
    ended = cli.invoke(app, ["sweep", *arguments, "-o", str(folder)])

    assert isinstance(ended.exception, GpuprofError)
    assert words in str(ended.exception)
    assert not folder.exists()


def test_a_real_sweep(tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('imported from the working directory')")
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "def net(options):\n"
        "    if options.batch_size == 3:\n"
        "        raise ValueError('three is too many')\n"
        "    return torch.nn.Linear(4, 5, bias=False), torch.ones(options.batch_size, 4)\n"
    )
    command = [
        "sweep", f"{tmp_path}/model.py:net", "--batch-size", "2,3", "--steps", "1", "--warmup", "0", "--passes",
        "count,time", "-o", "out", "-f", "csv",
    ]  # fmt: skip

    ended = subprocess.run(
        [sys.executable, "-P", "-m", "gpuprof", *command], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent)},
    )  # fmt: skip

    assert ended.returncode == 1, ended.stderr
    first, second = csv.DictReader(io.StringIO(ended.stdout))
    assert first["flops"] == str(2 * 2 * 4 * 5 + 2 * 2 * 4 * 5)  # the input needs no gradient
    assert (first["status"], second["status"]) == (DONE, FAILED)
    assert "three is too many" in second["reason"]
    point = read(tmp_path / "out")[1][0]
    run = run_of(point, tmp_path / "out")
    assert run.workload["batch_size"] == 2
    assert list(run.passes) == ["count", "time"]
