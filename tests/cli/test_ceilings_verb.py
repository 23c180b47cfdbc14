"""The verb ceilings, through Typer: for real on the CPU with tiny products, and with a made-up GPU."""

import csv
import io
import json
from contextlib import contextmanager

import pytest
import torch
import typer
from runs import ops_row, tree_row
from typer.testing import CliRunner

from gpuprof.cli.ceilings import ceilings
from gpuprof.errors import GpuprofError
from gpuprof.hardware import ceiling_cache
from gpuprof.hardware import ceilings as hardware
from gpuprof.run import Run
from gpuprof.schema import table

app = typer.Typer()
app.command()(ceilings)


def run(*arguments, columns=80):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def error_of(*arguments):
    result = run(*arguments)
    assert isinstance(result.exception, GpuprofError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUPROF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Small products, five times each whatever the time."""
    monkeypatch.setattr(hardware, "_times", lambda stopwatch, run, seconds, minimum=5: stopwatch(run, 5))
    monkeypatch.setattr(hardware, "_CPU_SHAPES", [(32, 48, 64)])
    monkeypatch.setattr(hardware, "_COPY_BYTES", (1 << 20,))
    monkeypatch.setattr(hardware, "_last_level_cache", lambda: 0)


@pytest.fixture
def saved(tmp_path):
    """A run of three distinct products: 3 x 12,288 of 65,536 FLOPs, then 20,480, then 8,192 in float64."""
    rows = [
        ops_row("fc", "forward", "aten::mm.default", 36_864, calls=3) | {"shapes": "16x24 24x16 -> 16x16"},
        ops_row("fc", "forward", "aten::bmm.default", 20_480) | {"shapes": "5x8x16 5x16x16 -> 5x8x16"},
        ops_row("fc", "forward", "aten::mm.default", 8_192, dtype="float64") | {"shapes": "16x16 16x16 -> 16x16"},
    ]
    made = Run(
        {"name": "net", "mode": "forward"}, {"type": "cpu", "name": "c"}, {}, ops=table("ops", rows),
        tree=table("tree", [tree_row("", "Net"), tree_row("fc", "Linear")]),
    )  # fmt: skip
    return made.save(tmp_path / "run.json")


def test_the_usual_dtypes_of_a_cpu_are_measured_shown_and_cached(folder):
    result = run("--device", "cpu", columns=200)

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    threads = torch.get_num_threads()
    assert f" · {threads} thread{'s' if threads > 1 else ''} · torch {torch.__version__}" in lines[0]
    assert lines[2].split("  ")[0] == "dtype"
    assert "of datasheet" not in lines[2]  # nothing is known of it, nor of clocks and power
    assert "state" not in lines[2]
    assert [line.split()[0] for line in lines[3:6]] == ["bfloat16", "float16", "float32"]
    assert all("32x48x64" in line for line in lines[3:6])
    assert "Copy: " in result.stdout
    assert "copies of 1.000 MiB, read and written" in result.stdout
    assert f"Cached in {folder / 'ceilings.json'}" in result.stdout
    (entries,) = json.loads((folder / "ceilings.json").read_text())["devices"].values()
    assert list(entries) == ["bfloat16", "float16", "float32", "copy"]


def test_json_has_what_the_cache_has(folder, tmp_path):
    result = run("--device", "cpu", "--dtype", "fp32", "--format", "json", "-o", tmp_path / "c.json")
    found = json.loads(result.stdout)

    assert json.loads((tmp_path / "c.json").read_text()) == found
    (row,) = found["matmul"]
    (entries,) = json.loads((folder / "ceilings.json").read_text())["devices"].values()
    assert row == {"dtype": "float32", **entries["float32"], "datasheet": None, "of_datasheet": None}
    assert found["copy"] == {**entries["copy"], "datasheet": None, "of_datasheet": None}
    assert (row["shape"], row["sm_clock_mhz"], row["power_w"], row["limits"]) == ([32, 48, 64], None, None, [])
    assert "times_s" not in row
    assert row["date"].endswith("+00:00")
    assert (found["shapes"], found["not_measured"], found["cache_failure"]) == ([], [], None)


@pytest.mark.parametrize("names", ["bf16,float32", " bfloat16 , fp32,bf16 "])
def test_dtypes_have_short_and_long_names(names):
    found = json.loads(run("--device", "cpu", "--dtype", names, "--format", "json").stdout)

    assert [row["dtype"] for row in found["matmul"]] == ["bfloat16", "float32"]


def test_a_dtype_that_the_device_has_not_is_listed_beside_those_it_has():
    result = run("--device", "cpu", "--dtype", "fp32,fp8", columns=200)

    assert result.exit_code == 0
    assert "Not measured: float8: no matmul ceiling for float8 on cpu: there it can measure bfloat16, " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "fp4"], "no dtype 'fp4' to measure: choose from bf16, fp16, tf32, fp32, fp64, fp8, int8"),
        (["--dtype", "bf16,half"], "no dtype 'half' to measure: choose from"),
        (["--dtype", "fp8,tf32"], "no matmul ceiling for float8 on cpu"),
        (["--device", "meta"], "--device meta has nothing to measure"),
        (["--device", "gpu"], "--device 'gpu' is no device"),
        (["--seconds", 0], "--seconds must be above 0 and finite, not 0"),
        (["--seconds", "nan"], "--seconds must be above 0 and finite, not nan"),
        (["--shapes", "none.json"], "no file none.json"),
        (["-o", "no/such/folder.json"], "there is no folder no/such"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, folder):
    assert message in error_of("--device", "cpu", *arguments)
    assert not folder.exists()


def test_the_products_of_a_run_in_its_dtypes_with_most_flops_first(saved):
    found = json.loads(run("--device", "cpu", "--shapes", saved, "--seconds", 60, "--format", "json").stdout)

    assert [row["dtype"] for row in found["matmul"]] == ["bfloat16", "float64"]
    best = {row["dtype"]: row["flops_per_s"] for row in found["matmul"]}
    assert [(row["dtype"], row["batch"], row["m"], row["n"], row["k"], row["calls"]) for row in found["shapes"]] == [
        ("bfloat16", 1, 16, 16, 24, 3), ("bfloat16", 5, 8, 16, 16, 1), ("float64", 1, 16, 16, 16, 1),
    ]  # fmt: skip
    # of 36,864 + 20,480 + 8,192 = 65,536
    assert [row["share"] for row in found["shapes"]] == [0.5625, 0.3125, 0.125]
    for row in found["shapes"]:
        assert row["of_ceiling"] == pytest.approx(row["flops_per_s"] / best[row["dtype"]])
        assert row["of_datasheet"] is None


def test_products_in_dtypes_that_were_not_asked_for_take_the_cached_ceiling_or_none(saved):
    arguments = ("--device", "cpu", "--shapes", saved, "--seconds", 60, "--format", "json")
    before = json.loads(run(*arguments, "--dtype", "fp64").stdout)
    assert [row.get("reason") for row in before["shapes"]] == ["no ceiling of bfloat16"] * 2 + [None]

    run("--device", "cpu", "--dtype", "bf16")
    after = json.loads(run(*arguments, "--dtype", "fp64").stdout)
    assert all(row["of_ceiling"] > 0 for row in after["shapes"])
    assert [row["dtype"] for row in after["matmul"]] == ["float64"]


def test_products_without_time_are_listed(saved, monkeypatch):
    monkeypatch.setattr(
        hardware, "measure_shapes", lambda device, wanted, rates, seconds: [{"reason": "no time left"}] * len(wanted)
    )
    result = run("--device", "cpu", "--shapes", saved, columns=120)

    assert result.exit_code == 0
    assert result.stdout.count("no time left") == 3
    assert "5 of 8x16x16" in result.stdout
    assert "The products measured are 0.0 % of the matmul FLOPs of net." in result.stdout


def test_a_broken_cache_is_one_line_and_overwritten(folder):
    folder.mkdir()
    (folder / "ceilings.json").write_text("{")
    result = run("--device", "cpu", "--dtype", "fp32")

    assert result.exit_code == 0
    assert result.stderr == (
        "gpuprof: the cached ceilings.json is ignored (it is no whole JSON): 'gpuprof ceilings' writes it anew\n"
    )
    (entries,) = json.loads((folder / "ceilings.json").read_text())["devices"].values()
    assert list(entries) == ["float32", "copy"]


def test_a_cache_that_cannot_be_written_costs_nothing_else(folder):
    folder.write_text("a file")
    result = run("--device", "cpu", "--dtype", "fp32", columns=200)

    assert result.exit_code == 0
    assert "Not cached: cannot make the folder" in result.stdout


def test_a_copy_that_fails_leaves_the_products(monkeypatch):
    def full(device, seconds):
        raise GpuprofError("cpu cannot copy here (out of memory)")

    monkeypatch.setattr(hardware, "measure_copy", full)
    result = run("--device", "cpu", "--dtype", "fp32")

    assert result.exit_code == 0
    assert "Not measured: copy: cpu cannot copy here (out of memory)." in result.stdout


@pytest.fixture
def h200(monkeypatch):
    """A GPU whose best bfloat16 is 80 % of 989.4 TFLOP/s, with a power cap, and which has no float8 by now."""

    def matmul(device, dtype, seconds):
        if dtype == "float8":
            raise GpuprofError("cuda cannot multiply float8 matrices here (no kernel)")
        rate = {"bfloat16": 791.52e12, "float16": 791.52e12, "tf32": 400e12, "float32": 51e12}[dtype]
        return {"flops_per_s": rate, "shape": [2048, 2048, 13312], "samples": 9, "spread": 0.015, "times_s": [1.0] * 9}

    class Watched:
        def rows(self):
            rows = [("sm_clock", "MHz", v) for v in (1700, 1755, 1980)] + [
                ("power_instant", "W", v) for v in (640, 700)
            ]
            rows += [("event_reasons", "mask", 4.0), ("event_reasons", "mask", 0.0)]  # 0x4: power cap
            names = ("quantity", "unit", "value")
            return table("telemetry", [{"time_s": 0.0, **dict(zip(names, row, strict=True))} for row in rows])

    @contextmanager
    def watch(device):
        yield Watched()

    copy = {"bytes_per_s": 4.32e12, "bytes": 1 << 30, "samples": 7, "spread": 0.004, "sizes": []}
    facts = {
        "type": "cuda", "name": "NVIDIA H200", "uuid": "GPU-1", "driver": "570.1", "memory_bandwidth": 4.8e12,
        "peaks": {"datasheet": {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 67e12}},
    }  # fmt: skip
    monkeypatch.setattr("gpuprof.hardware.device.describe", lambda device: facts)
    monkeypatch.setattr("gpuprof.workload.options.resolve_device", torch.device)
    monkeypatch.setattr("gpuprof.passes.telemetry.watch", watch)
    monkeypatch.setattr(hardware, "measure_matmul", matmul)
    monkeypatch.setattr(hardware, "measure_copy", lambda device, seconds: dict(copy))


def test_on_a_gpu_the_table_has_the_datasheet_and_the_state(h200):
    result = run("--device", "cuda", columns=120)

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"NVIDIA H200 · driver 570.1 · torch {torch.__version__}"
    header, bf16, fp16, tf32, fp32 = lines[2:7]
    date = header.index("date")
    assert header.split("  ")[-1].strip() == "state"
    assert bf16[:date].split() == ["bfloat16", "791.5", "2048x2048x13312", "1.5", "%", "80.0", "%"]
    assert bf16[date + 12 :] == "1,755 MHz, 670 W, power cap in 1 of 2 samples"
    assert [line.split()[5] for line in (fp16, tf32, fp32)] == ["80.0", "80.9", "76.1"]  # 400/494.7, 51/67
    assert "Copy: 4.320 TB/s, 90.0 % of datasheet, 1,755 MHz, 670 W, " in result.stdout
    assert "Not measured: float8: cuda cannot multiply float8 matrices here (no kernel)." in result.stdout
    key = f"GPU-1, driver 570.1, torch {torch.__version__}"
    assert list(ceiling_cache.read(key)) == ["bfloat16", "float16", "tf32", "float32", "copy"]


@pytest.mark.parametrize(("spread", "doubted"), [(0.5, False), (0.75, True)])
def test_a_ceiling_that_varied_is_doubted(h200, monkeypatch, spread, doubted):
    figures = {"flops_per_s": 7e14, "shape": [1, 1, 1], "samples": 5, "spread": spread}
    monkeypatch.setattr(hardware, "measure_matmul", lambda device, dtype, seconds: dict(figures))
    shown = run("--device", "cuda", "--dtype", "bf16").stdout

    assert ("bfloat16 varied by 75% meanwhile: measure again while nothing else runs." in shown) is doubted


def test_asked_by_name_for_nothing_that_works_is_an_error(h200, folder):
    assert error_of("--device", "cuda", "--dtype", "fp8") == "cuda cannot multiply float8 matrices here (no kernel)"
    assert not folder.exists()


def test_csv_has_a_row_for_everything(h200, saved, monkeypatch):
    monkeypatch.setattr(
        hardware,
        "measure_shapes",
        lambda device, wanted, rates, seconds: [
            {"flops_per_s": 395.76e12, "samples": 5, "spread": 0.1}, {"reason": "no time left"},
            {"reason": "no ceiling of float64"},
        ],
    )  # fmt: skip
    text = run("--device", "cuda", "--dtype", "bf16,fp8", "--shapes", saved, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))

    assert [row["what"] for row in rows] == ["matmul", "shape", "shape", "shape", "copy", "not measured"]
    best, shape, late = rows[:3]
    assert (best["dtype"], best["m"], best["n"], best["k"]) == ("bfloat16", "2048", "2048", "13312")
    assert (float(best["flops_per_s"]), float(best["of_datasheet"])) == (791.52e12, pytest.approx(0.8))
    assert (best["sm_clock_mhz"], best["power_w"]) == ("1755.0", "670.0")
    assert best["limits"] == "power cap in 1 of 2 samples"
    assert (float(shape["of_ceiling"]), float(shape["of_datasheet"])) == (pytest.approx(0.5), pytest.approx(0.4))
    assert (late["calls"], late["flops_per_s"], late["reason"]) == ("1", "", "no time left")
    assert (float(rows[4]["bytes_per_s"]), float(rows[4]["of_datasheet"])) == (4.32e12, pytest.approx(0.9))
    assert (rows[5]["dtype"], rows[5]["reason"]) == ("float8", "cuda cannot multiply float8 matrices here (no kernel)")


def test_markdown_is_the_same_tables(h200):
    lines = run("--device", "cuda", "--dtype", "bf16", "--format", "markdown").stdout.splitlines()

    assert lines[2] == "| dtype | TFLOP/s | M x N x K | spread | of datasheet | date | state |"
    assert lines[3] == "| --- | ---: | --- | ---: | ---: | --- | --- |"
    assert lines[4].startswith("| bfloat16 | 791.5 | 2048x2048x13312 | 1.5 % | 80.0 % | 20")
    assert lines[6].startswith("- Copy: 4.320 TB/s, 90.0 % of datasheet")
