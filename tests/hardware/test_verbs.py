"""The verbs doctor and devices, through Typer."""

import csv
import io
import json
import sys

import fake_nvml
import pytest
import typer
from typer.testing import CliRunner

from gpuprof.cli.devices import devices
from gpuprof.cli.doctor import doctor
from gpuprof.errors import GpuprofError
from gpuprof.hardware import checkup, peaks

app = typer.Typer()
app.command()(doctor)
app.command()(devices)


def run(*arguments, **environment):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1", **environment})


def test_doctor_exits_0_where_profiling_works_and_fits_80_columns():
    result = run("doctor")

    assert result.exit_code == 0
    assert "This machine can profile." in result.stdout
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_doctor_exits_1_where_nothing_works(monkeypatch):
    broken = [checkup.Finding("software", "torch", False, "No module named [torch]", "pip install torch")]
    monkeypatch.setattr(checkup, "examine", lambda: broken)
    result = run("doctor")

    assert result.exit_code == 1
    assert "No module named [torch]" in result.stdout  # not taken for markup
    assert "-> pip install torch" in result.stdout
    assert "cannot profile" in result.stdout


def test_doctor_json_says_the_same(monkeypatch):
    findings = [checkup.Finding("passes", "trace", False, "broken", "mend it")]
    monkeypatch.setattr(checkup, "examine", lambda: findings)
    result = run("doctor", "--format", "json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "works": False,
        "findings": [{"group": "passes", "name": "trace", "ok": False, "detail": "broken", "remedy": "mend it"}],
    }


def test_devices_lists_every_row_within_80_columns():
    result = run("devices")

    assert result.exit_code == 0
    assert all(row.name in result.stdout for row in peaks.all_peaks())
    assert "Dense TFLOP/s" in result.stdout
    assert "…" not in result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_devices_marks_this_machines_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.pynvml())
    lines = run("devices").stdout.splitlines()

    assert [line.split()[1] for line in lines if line.startswith("* ")] == ["H200-SXM"]


@pytest.mark.parametrize("name", ["h200-sxm", "NVIDIA H200", "nvidia h200"])
def test_devices_by_name_gives_source_and_remarks(name):
    result = run("devices", name)

    assert result.exit_code == 0
    assert "H200-SXM: Hopper, confidence high" in result.stdout
    assert "source: stas00/ml-engineering" in result.stdout
    assert "NVL" not in result.stdout


def test_devices_csv_has_exact_figures():
    rows = list(csv.DictReader(io.StringIO(run("devices", "NVIDIA H200", "--format", "csv").stdout)))

    assert len(rows) == 1
    assert rows[0]["bfloat16_tflops"] == "989.4"
    assert rows[0]["float64_tflops"] == "66.9"
    assert rows[0]["float4_tflops"] == ""
    assert rows[0]["memory_bandwidth_gbps"] == "4800.0"


def test_devices_json_of_one_dtype_leaves_out_devices_without_it():
    rows = json.loads(run("devices", "--dtype", "fp8", "--format", "json").stdout)

    assert {"float8_tflops"} == {key for key in rows[0] if key.endswith("_tflops")}
    assert all(row["float8_tflops"] > 0 for row in rows)
    assert "A100-SXM4-80GB" not in {row["name"] for row in rows}


def test_devices_markdown_is_a_table():
    lines = run("devices", "l40s", "--format", "markdown").stdout.splitlines()

    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1
    assert "| L40S |" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RTX A4000"], "no peak of 'RTX A4000' is in the table: give --peak-tflops"),
        (["v100", "--dtype", "bf16"], "no bf16 of 'v100' is in the table"),
        (["--dtype", "bf17"], "no dtype 'bf17': choose from bfloat16, "),
    ],
)
def test_devices_bad_input_is_one_line(arguments, message):
    result = run("devices", *arguments)

    assert isinstance(result.exception, GpuprofError)
    assert str(result.exception).startswith(message)
    assert "\n" not in str(result.exception)
