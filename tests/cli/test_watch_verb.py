"""gpuprof watch: a training while it runs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_regression_verbs import run
from trainings import about, counted, even, step, training

from gpuprof.analysis.following import Training, moved, together
from gpuprof.errors import GpuprofError
from gpuprof.log import Log, begins, made, new_lines


def said(mfu, step_s, tokens=None, clock=None):
    """Figures of one read of a process that is no rank of several."""
    figures = {"device/mfu": mfu, "device/step_s": step_s, "device/tokens_per_sec": tokens, "device/clock_mhz": clock}
    return {name: value for name, value in figures.items() if value is not None}


def log(folder, reads, *, rank=0, every=50, first=1, **facts):
    """A log with these figures, one read every so many steps."""
    written = Log(made(folder), rank, first - 1)
    written.counted(1, "x 1x8", counted(1))
    for place, figures in enumerate(reads):
        number = first - 1 + every * (place + 1)
        written.write(about(**facts), number, figures, [step(number, figures.get("device/step_s", 1.0))])
    return folder


def steady(mfu, reads, **figures):
    """Reads with a noise of a tenth of a percent."""
    return [said(mfu * (1 + (place % 3 - 1) / 1000), 0.4 / mfu, **figures) for place in range(reads)]


def test_the_reads_and_what_moved(tmp_path):
    log(tmp_path, steady(0.40, 20, tokens=1000, clock=1755) + steady(0.36, 20, tokens=900, clock=1755))

    code, text = run("watch", tmp_path, "--once", "--limit", 2)

    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "Net on Toy GPU"
    assert lines[1].split() == ["step", "date", "MFU", "tokens/s", "step", "time", "SM", "clock"]
    assert lines[2].split()[0] == "1,950"
    assert lines[3].endswith("36.0 %       900    1.111 s  1,755 MHz")
    assert lines[4] == "The newest 2 of 40 reads."
    assert " ".join(lines[5:]) == (
        "After step 1,000: MFU 40.0 % -> 36.0 % (-10.0 %), tokens/s 1.000 K -> 900 (-10.0 %), "
        "step time 1.000 s -> 1.111 s (+11.1 %), the SM clock did not move."
    )


def test_a_clock_that_fell_is_infrastructure(tmp_path):
    log(tmp_path, steady(0.40, 20, clock=1755) + steady(0.36, 20, clock=1579.5))

    assert "infrastructure: the SM clock moved with it" in " ".join(run("watch", tmp_path, "--once")[1].split())


def test_no_change_is_made_of_noise(tmp_path):
    log(tmp_path, steady(0.40, 60))

    assert run("watch", tmp_path, "--once", "-f", "json")[1].count('"metric"') == 0
    found = run("watch", tmp_path, "--once", "-f", "json")[1]
    assert json.loads(found)["changes"] == []
    assert len(json.loads(found)["reads"]) == 20


@pytest.mark.parametrize("format", ["csv", "markdown", "json"])
def test_what_is_not_known_is_empty(tmp_path, format):
    log(tmp_path, [{}, said(0.4, 1.0)])

    text = run("watch", tmp_path, "--once", "-f", format)[1]

    if format == "json":
        first, second = json.loads(text)["reads"]
        assert (first["mfu"], second["mfu"], second["tokens_per_s"]) == (None, 0.4, None)
    elif format == "csv":
        assert text.splitlines()[1].startswith("50,20")
        assert text.splitlines()[1].endswith(",,,,,,,,,")
    else:
        assert "| 50 |" in text
        assert "| - | - |" in text
        assert "tokens/s" not in text


def test_the_ranks_of_a_job_are_one_training(tmp_path):
    log(tmp_path, [said(0.40, 1.0, tokens=100, clock=1700)] * 2)
    log(tmp_path, [said(0.30, 1.2, tokens=80, clock=1600)], rank=1)  # which has not come to step 100 yet

    (read,) = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]

    assert read == read | {"step": 50, "ranks": 2, "tokens_per_s": 180, "step_s": 1.2, "sm_clock_mhz": 1600}
    assert read["mfu"] == pytest.approx(0.35)
    assert run("watch", tmp_path, "--once")[1].startswith("Net on Toy GPU, 2 ranks\n")


def test_what_a_meter_says_of_all_ranks_is_taken(tmp_path):
    log(tmp_path, [said(0.40, 1.0, tokens=100) | {"mfu": 0.33, "tokens_per_sec": 170}])
    log(tmp_path, [said(0.30, 1.2, tokens=80)], rank=1)

    (read,) = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]

    assert (read["mfu"], read["tokens_per_s"], read["step_s"]) == (0.33, 170, 1.2)


def test_a_figure_that_a_rank_lacks_is_not_known_of_all(tmp_path):
    log(tmp_path, [said(0.40, 1.0)])
    log(tmp_path, [{"device/step_s": 1.2}], rank=1)

    (read,) = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]

    assert (read["mfu"], read["step_s"]) == (None, 1.2)


def test_a_resumed_training_goes_on_and_another_begins_anew(tmp_path):
    log(tmp_path, steady(0.40, 3))
    log(tmp_path, steady(0.30, 2), first=101)  # resumed after step 100: 150 is trained again

    reads = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]

    assert [(one["step"], round(one["mfu"], 2)) for one in reads] == [(50, 0.4), (100, 0.4), (150, 0.3), (200, 0.3)]
    Log(tmp_path).write(about(), 1, said(0.2, 1.0), [step(1, 1.0)])
    (read,) = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]
    assert read["step"] == 1


def test_what_a_resume_undid_is_not_shown(tmp_path):
    log(tmp_path, steady(0.40, 4))
    log(tmp_path, steady(0.30, 1), first=71)  # resumed after step 70: 100 to 200 are no more

    reads = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]

    assert [(one["step"], round(one["mfu"], 2)) for one in reads] == [(50, 0.4), (120, 0.3)]


def test_a_second_read_in_a_step_takes_nothing_from_the_first(tmp_path):
    written = Log(tmp_path)
    written.counted(1, "x 1x8", counted(1))
    written.write(about(), 50, said(0.4, 1.0), [step(50, 1.0)])
    written.write(about(), 50, {"meter/step": 50}, [])  # as at the end of a training

    (read,) = json.loads(run("watch", tmp_path, "--once", "-f", "json")[1])["reads"]

    assert (read["step"], read["mfu"]) == (50, 0.4)


def test_a_log_that_began_again_while_it_was_watched_is_read_from_its_start(tmp_path):
    path = log(tmp_path, steady(0.40, 9)) / "meter.jsonl"
    _, end = new_lines(path)
    path.unlink()
    log(tmp_path, steady(0.30, 1))

    assert [begins(line) for line in new_lines(path, end)[0]] == [True, False, False]


def test_a_broken_line_is_told_by_its_place_in_the_whole_log(tmp_path):
    path = log(tmp_path, steady(0.40, 2)) / "meter.jsonl"
    found, end = new_lines(path)
    with path.open("a") as file:
        file.write('{"step": 1,}\n')

    with pytest.raises(GpuprofError, match=f"line {len(found) + 1} of .* is broken: remove it"):
        new_lines(path, end)


def test_nothing_is_read_yet(tmp_path):
    Log(tmp_path)

    assert run("watch", tmp_path, "--once") == (0, "No read yet: the meter writes when it is read.\n")
    assert json.loads(run("watch", tmp_path, "--once", "-f", "json")[1]) == {"reads": [], "changes": []}


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "meter.jsonl").write_text("mine\n")
    for arguments, message in (
        ([tmp_path / "absent", "--once"], "no folder .*absent: give the one"),
        ([tmp_path, "--once"], r"has no meter\.jsonl: give the folder"),
        ([tmp_path / "foreign", "--once"], "is not the log of a gpuprof.Meter"),
        ([training(tmp_path / "run", even(1.0)), "-f", "csv"], "--format csv is for what there is now: give --once"),
        ([tmp_path / "run", "--once", "--min-change", "much"], "--min-change"),
    ):
        with pytest.raises(GpuprofError, match=message) as caught:
            run("watch", *arguments)
        assert "\n" not in str(caught.value)


def test_a_long_training_is_read_soon():
    reads = {50 * n: said(0.4 + n % 7 / 1e4, 1.0, clock=1700.0) | {"date": "2026-01-02T03:04:05"} for n in range(2000)}
    ranks = {rank: Training({}, reads) for rank in range(8)}

    began = time.process_time()
    frame = together(ranks)
    found = moved(frame)

    assert len(frame) == 2000
    assert found == []
    assert time.process_time() - began < 20


def test_without_a_terminal_it_is_a_line_for_each_read_as_it_comes(tmp_path):
    folder = log(tmp_path / "run", steady(0.40, 20))
    command = [sys.executable, "-m", "gpuprof", "watch", str(folder), "--every", "0.1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # whoever starts this in the background has it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(20)]
        written = Log(folder, before=1000)
        for place, figures in enumerate(steady(0.36, 20), start=21):
            written.write(about(), 50 * place, figures, [step(50 * place, 1.0)])
        lines += [process.stdout.readline() for _ in range(21)]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)

    assert process.returncode == 0
    reads = [line for line in lines if line.startswith("step")]  # the change comes when it is sure, at whichever look
    assert reads[0] == "step 50  MFU 40.0 %  step time 1.000 s\n"
    assert reads[39] == "step 2,000  MFU 36.0 %  step time 1.111 s\n"
    assert "After step 1,000: MFU 40.0 % -> 36.0 % (-10.0 %), step time 1.000 s -> 1.111 s (+11.1 %).\n" in lines
