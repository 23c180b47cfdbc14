import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import typer
from runs import gpu_run

import gpuprof
import gpuprof.cli

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.fc(x).mean()

def net():
    return Net(), {"x": torch.ones(4, 16)}

def raises():
    class Bad(Net):
        def forward(self, x):
            raise ValueError("shapes do not fit")
    return Bad(), {"x": torch.ones(4, 16)}

def nan():
    return Net(), {"x": torch.full((4, 16), float("nan"))}
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path / "model.py"


def fresh_gpuprof(*arguments, cwd=None, **env):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gpuprof", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent), "HF_HUB_OFFLINE": "1", **env},
        check=False,
    )


def test_profile_then_show(gpuprof_cli, model, tmp_path):
    made = fresh_gpuprof("profile", f"{model}:net", "-o", tmp_path / "run.json", "--steps", 2, "--optimizer", "none")

    assert made.returncode == 0, made.stderr
    assert made.stderr == ""  # no progress where there is no terminal, no noise of libraries
    assert "fc: Linear" in made.stdout
    shown = gpuprof_cli("show", tmp_path / "run.json", "--format", "csv", "-o", tmp_path / "rows.csv")
    assert shown.returncode == 0, shown.stderr
    rows = pd.read_csv(tmp_path / "rows.csv", keep_default_na=False).set_index("module")
    assert rows.loc["fc", "flops_forward"] == 2 * 4 * 16 * 8
    assert rows.loc["fc", "flops_backward"] == 2 * 4 * 16 * 8  # the input needs no gradient
    assert float(rows.loc["fc", "time_forward_s"]) > 0
    assert float(rows.loc["", "kernel_mfu"]) > 0


def test_a_model_is_compiled_on_demand(gpuprof_cli, model, tmp_path):
    out, options = tmp_path / "run.json", ("--mode", "forward", "--passes", "count,time", "-q")

    done = gpuprof_cli("profile", f"{model}:net", "--compile", "default", *options, "-o", out)
    assert done.returncode == 0, done.stderr
    run = json.loads(out.read_text())

    assert run["workload"]["compiled"] == {"": "inductor, mode default"}
    assert run["compilations"]["pass"] == ["time", "warm"]
    assert run["compilations"]["cache"] == ["miss", "hit"]
    assert run["passes"]["time"]["facts"] == {"warmup": 2, "steps": 3}


def test_count_needs_no_measuring(gpuprof_cli, tmp_path):
    made = gpuprof_cli("count", "smollm2-135m", "--seq-len", 16, "-o", tmp_path / "c.json.gz", "-q")

    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    run = gpuprof.load(tmp_path / "c.json.gz")
    assert list(run.passes) == ["count"]
    # 134,515,008 parameters less 61 norms of 576 multiply once per token; attention sees 16 x 17 / 2 pairs
    pairs = 16 * 17 // 2
    modules = run.modules().set_index("module")["flops_forward"]
    # some releases of transformers compute the rotary angles by a matmul
    assert modules[""] - modules["model.rotary_emb"] == 2 * 16 * (134_515_008 - 61 * 576) + 30 * 4 * 9 * 64 * pairs


def test_a_verbose_run_says_how_each_pass_went(gpuprof_cli, model):
    made = gpuprof_cli("profile", f"{model}:net", "-v", "--passes", "count,time", "--steps", 1)

    assert "count: done in" in made.stdout
    assert "time: done in" in made.stdout
    assert "trace: " not in made.stdout


def test_a_loss_that_is_not_finite_is_warned_and_measured(gpuprof_cli, model):
    made = gpuprof_cli("profile", f"{model}:nan", "--steps", 1)

    assert made.returncode == 0
    assert "Warning: the loss is nan: measured anyway" in made.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profile", "smolm2-135m"], ["smolm2-135m", "smollm2-135m"]),
        (["profile", "no/such.py:f"], ["no/such.py"]),
        (["profile", "model.py:missing"], ["missing"]),
        (["profile", "model.py:raises"], ["the model raised in the forward of Bad", "ValueError: shapes do not fit"]),
        (["profile", "empty"], ["config.json"]),
        (["profile", "gpt2", "--device", "cuda"], ["--device cpu"]),
        (["profile", "gpt2", "--seq-len", "0"], ["--seq-len must be at least 1"]),
        (["profile", "gpt2", "--steps", "0"], ["--steps must be at least 1"]),
        (["profile", "gpt2", "--passes", "count,speed"], ["no pass named speed", "telemetry"]),
        (["profile", "gpt2", "--peak-tflops", "-1"], ["--peak-tflops must be above 0"]),
        (["profile", "gpt2", "--batch-size", "1000000000000"], ["the inputs cannot be made", "lower --batch-size"]),
        (["count", "gpt2", "--seed", "99999999999999999999"], ["--seed must be from 0"]),
        (["count", "resnet-50", "--convention", "palm"], ["convention palm does not fit"]),
        (["profile", "gpt2", "-o", "nowhere/run.json"], ["there is no folder nowhere"]),
        (["profile", "gpt2", "-o", "empty"], ["it is a folder"]),
        (["profile", "gpt2", "--freeze", "nothing.*"], ["nothing.*"]),
        (["profile", "gpt2", "--dtype", "int3"], ["int3"]),
        (["count", "bert-base", "--mode", "generate"], ["generate"]),
        (["show", "absent.json"], ["no file absent.json"]),
        (["show", "model.py"], ["truncated or foreign"]),
        (["show", "newer.json"], ["schema version 99", "upgrade gpuprof"]),
        (["show", "run.json", "--by", "op", "--format", "tree"], ["a tree is by module"]),
        (["show", "run.json", "--format", "tree", "--top", "3"], ["--format table"]),
        (["show", "run.json", "--by", "op", "--sort", "speed"], ["no column 'speed'"]),
        (["devices", "no such card"], ["no such card"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_status_2(gpuprof_cli, model, arguments, words):
    folder = model.parent
    (folder / "empty").mkdir()
    gpu_run().save(folder / "run.json")
    (folder / "newer.json").write_text(json.dumps({"gpuprof": "run", "schema_version": 99}))

    ended = gpuprof_cli(*arguments, cwd=folder)

    assert ended.returncode == 2, ended.stdout
    assert ended.stderr.startswith("gpuprof: ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    for word in words:
        assert word in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def main(monkeypatch, *arguments):
    """Exit status of the command line, in this process; 0 where it simply returns."""
    monkeypatch.setattr("sys.argv", ["gpuprof", *arguments])
    try:
        gpuprof.cli.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("arguments", "beginning", "see"),
    [
        (["profile"], "Missing argument 'MODEL'", "gpuprof profile"),
        (
            ["profile", "gpt2", "--mode", "dream"],
            "--mode 'dream' is not one of: train, forward, generate (",
            "gpuprof profile",
        ),
        (["profile", "gpt2", "--launches", "abc"], "--launches must be a valid integer (", "gpuprof profile"),
        (["check", "run.json", "--top", "0"], "--top must be greater than or equal to 1 (", "gpuprof check"),
        (
            ["check", "run.json", "-f", "xml"],
            "--format 'xml' is not one of: text, markdown, junit, json (",
            "gpuprof check",
        ),
        (["check", "run.json", "--nope"], "No such option: --nope", "gpuprof check"),
        (["check", "run.json", "--against"], "Option '--against' requires an argument", "gpuprof"),
        (["history", "list"], "Missing option '--store'", "gpuprof history list"),
        (["history", "fly"], "No such command 'fly'", "gpuprof history"),
        (["fly"], "No such command 'fly'", "gpuprof"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(monkeypatch, capsys, arguments, beginning, see):
    assert main(monkeypatch, *arguments) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"gpuprof: {beginning}")
    assert said.err.endswith(f" (see '{see} --help')\n")
    assert said.err.count("\n") == 1


def test_choices_are_named_in_that_line(monkeypatch, capsys):
    assert main(monkeypatch, "check", "run.json", "-f", "xml") == 2

    line = capsys.readouterr().err
    assert "--format 'xml' is not one of: text, markdown, junit, json (see 'gpuprof check --help')\n" in line


@pytest.mark.parametrize("arguments", [[], ["history"]])
def test_no_arguments_print_the_help(monkeypatch, capsys, arguments):
    assert main(monkeypatch, *arguments) in (0, 2)  # of click before 8.2, and since

    said = capsys.readouterr()
    assert " ".join(["Usage: gpuprof", *arguments]) in said.out
    assert said.err == ""


def test_asking_for_help_is_status_0(monkeypatch, capsys):
    assert main(monkeypatch, "check", "--help") == 0
    assert "Usage: gpuprof check" in capsys.readouterr().out


def test_the_version(monkeypatch, capsys):
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"gpuprof {metadata.version('gpuprof')}\n"


def raising(error):
    def raise_it(*_):
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyError("step"), "KeyError: 'step'"), (EOFError(), "EOFError"), (ValueError("a\nb"), "ValueError: a b")],
)
def test_a_bug_is_a_traceback_and_no_finding(monkeypatch, capsys, error, words):
    monkeypatch.setattr("gpuprof.record.load", raising(error))

    assert main(monkeypatch, "show", __file__) == 70

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Traceback (most recent call last):\n")
    assert said.err.splitlines()[-1] == (
        f"gpuprof: this is a bug of gpuprof, or a file that is not what it seems: report it with the above ({words})"
    )


def test_what_a_verb_exits_with_is_kept(monkeypatch, capsys):
    monkeypatch.setattr("gpuprof.record.load", raising(typer.Exit(3)))

    assert main(monkeypatch, "show", __file__) == 3
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    monkeypatch.setattr("gpuprof.record.load", raising(KeyboardInterrupt()))

    assert main(monkeypatch, "show", __file__) == 130
    assert capsys.readouterr() == ("", "gpuprof: interrupted\n")


def test_help_names_every_verb():
    text = fresh_gpuprof("--help").stdout

    for verb in ("profile", "count", "show", "presets", "devices", "doctor"):
        assert verb in text


def test_presets_lists_parameter_counts(gpuprof_cli):
    text = gpuprof_cli("presets").stdout

    assert "8,030,807,584" in text
    assert "smollm2-135m" in text


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    gpu_run().save(tmp_path / "run.json")
    command = f"{sys.executable} -m gpuprof show run.json --format csv | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent)},
    )  # fmt: skip

    assert (ended.returncode, ended.stderr) == (0, "")


REPORT = Path(__file__).parent.parent / "data" / "reports" / "calflops_llava_onevision_qwen2_7b.txt"
WORKLOAD = ["--mode", "generate", "--image-crops", 16, "--prompt-len", 7405, "--new-tokens", 7]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, which is always full")
def test_a_full_disk_is_one_line_and_status_2():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpuprof", "presets"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.returncode == 2
    assert done.stderr == "gpuprof: the disk that this writes to is full: make room, or write elsewhere\n"


def test_validate_a_report_figure_by_figure(gpuprof_cli, tmp_path):
    ended = gpuprof_cli("validate", REPORT, "llava-onevision-qwen2-7b", *WORKLOAD, "-f", "json")

    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert {row["verdict"] for row in said["figures"]} == {"right", "explained", "not checked"}
    assert said["missing"] == []
    assert "106.4 T of multiplications and 5.426 T of elementwise operators broadcast from the left" in said["verdict"]
    assert "without 12.04 T (full square: 23.05 T) of fused attention" in said["verdict"]


def test_validate_against_another_workload_is_a_finding(gpuprof_cli, tmp_path):
    counted = gpuprof_cli("count", "llava-onevision-qwen2-7b", "--mode", "generate", "-q", "-o", tmp_path / "c.json")
    assert counted.returncode == 0, counted.stderr

    for format in ("tree", "table", "markdown", "csv", "html"):
        ended = gpuprof_cli("validate", REPORT, "--run", tmp_path / "c.json", "-f", format)
        assert ended.returncode == 1, ended.stderr
        assert "unexplained" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate", "absent.txt", "gpt2"], "absent.txt"),
        (["validate", REPORT], "MODEL with its options, or --run RUN"),
        (["validate", REPORT, "gpt2", "--run", "run.json"], "and not both"),
        (["validate", "notes.txt", "gpt2"], "notes.txt"),
        (["validate", REPORT, "--run", "absent.json"], "no file absent.json"),
    ],
)
def test_validate_with_bad_input(gpuprof_cli, tmp_path, arguments, words):
    (tmp_path / "notes.txt").write_text("nothing of the kind\n")

    ended = gpuprof_cli(*arguments, cwd=tmp_path)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
