import json
import os
import subprocess
import sys

import pytest
from runs import generation_run, gpu_run


@pytest.fixture
def saved(tmp_path):
    return gpu_run().save(tmp_path / "run.json")


def command(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "gpuprof", "budget", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip


def test_text_on_a_pipe(saved):
    made = command(saved)

    assert (made.returncode, made.stderr) == (0, "")
    assert "Step 480.0 ns: MFU 25.0 %" in made.stdout
    assert "matmul: above ideal         280.0 ns   58.3 %" in made.stdout
    assert "█" in made.stdout
    assert "\x1b" not in made.stdout


def test_a_terminal_that_knows_no_blocks_gets_others(saved):
    made = command(saved, PYTHONIOENCODING="ascii", COLUMNS="80")

    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.isascii()
    assert "58.3 %          #################" in made.stdout
    assert max(map(len, made.stdout.splitlines())) <= 80


def test_every_option(gpuprof_cli, saved, tmp_path):
    ceilings = {"device": {"name": "Toy GPU"}, "shapes": [], "copy": {"bytes_per_s": 1e9}}
    (tmp_path / "ceilings.json").write_text(json.dumps(ceilings))
    made = gpuprof_cli(
        "budget", saved, "--by", "module", "--depth", 1, "--top", 2, "--ceilings", tmp_path / "ceilings.json",
        "--convention", "full", "--denominator", "datasheet", "--format", "json", "--chart", tmp_path / "c.svg",
        "-o", tmp_path / "c.json",
    )  # fmt: skip

    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["convention"], data["mfu"]) == ("full", pytest.approx(0.5))
    assert data["bandwidth_bytes_per_s"] == 1e9
    assert len(data["rows"]) == 2
    assert (tmp_path / "c.svg").stat().st_size > 1000


def test_a_phase(gpuprof_cli, tmp_path):
    file = generation_run().save(tmp_path / "generation.json")
    made = gpuprof_cli("budget", file, "--phase", "decode", "--format", "json")
    data = json.loads(made.stdout)

    assert (data["phase"], data["parts_of_phase"], data["step_s"]) == ("decode", 3, pytest.approx(960e-9))
    assert (data["moved_bytes"], data["floor_s"]) == (4740, pytest.approx(4740 / 8e9))
    made = gpuprof_cli("budget", file, "--phase", "backward")
    assert (made.returncode, made.stdout) == (2, "")
    assert "no phase 'backward' in this run that has its own time: there are prefill, decode" in made.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chart", "c.gif"], "cannot draw c.gif"),
        (["--denominator", "measured"], "no denominator 'measured' in this run: it has datasheet"),
        (["--ceilings", "absent.json"], "cannot read absent.json"),
        (["--convention", "palm"], "convention palm does not fit net"),
        (["-o", "nowhere/b.txt"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(gpuprof_cli, saved, arguments, words):
    ended = gpuprof_cli("budget", saved, *arguments)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("gpuprof: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr


def test_a_run_that_was_only_counted_is_refused(gpuprof_cli, tmp_path):
    run = gpu_run()
    del run.passes["trace"]
    ended = gpuprof_cli("budget", run.save(tmp_path / "run.json"))

    assert ended.returncode == 2
    assert "profile with the passes count, time and trace" in ended.stderr
