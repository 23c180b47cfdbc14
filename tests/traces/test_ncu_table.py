"""Tables of Nsight Compute that become runs: what is in them, what is not, and what the verbs make of that."""

import csv
import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from gpuprof.analysis.check import check
from gpuprof.analysis.executed import executed_by_kernel
from gpuprof.analysis.roofline import roofline
from gpuprof.errors import GpuprofError
from gpuprof.record import load
from gpuprof.render import render
from gpuprof.render.page import render_page
from gpuprof.render.roofline import render_roofline
from gpuprof.render.view import View
from gpuprof.traces.ncu_table import read_table

H200 = Path(__file__).parents[1] / "data/nvidia-h200"
NAME = "device__attribute_display_name"
BF16, HFMA2 = "sm__ops_path_tensor_src_bf16_dst_fp32.sum", "sm__inst_executed_pipe_tensor_op_hmma_type_hfma2.sum"
SCALAR = [f"smsp__sass_thread_inst_executed_op_{op}_pred_on.sum" for op in ("fadd", "fmul", "ffma")]

PRODUCT = "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT"

# column, unit, a product launched twice and an addition: 2 x 512 x 512 x 512 FLOPs, and 1024 x 1024 of them
COLUMNS = [
    ("Kernel Name", "", PRODUCT, PRODUCT, "add"),
    ("Block Size", "", "(384, 1, 1)", "(384, 1, 1)", "(128, 1, 1)"),
    ("Grid Size", "", "(2, 66, 1)", "(2, 66, 1)", "(2048, 1, 1)"),
    ("Device", "", "0", "0", "0"),
    ("CC", "", "9.0", "9.0", "9.0"),
    (NAME, "", *["NVIDIA H100 80GB HBM3"] * 3),
    ("device__attribute_multiprocessor_count", "", "132", "132", "132"),
    ("dram__bytes_read.sum", "Kbyte", "1,048.576", "1,048.576", "8,388.608"),
    ("dram__bytes_write.sum", "byte", "524,288", "524,288", "n/a"),
    ("gpu__time_duration.sum", "usecond", "1.5", "2.5", "4"),
    ("launch__waves_per_multiprocessor", "", "1", "1", "0.5"),
    ("lts__t_sectors.sum", "sector", "1", "2", "3"),
    ("profiler__replayer_passes", "pass", "3", "3", "2"),
    ("sm__inst_executed_pipe_tensor.sum", "inst", "65,536", "65,536", "0"),
    (HFMA2, "inst", "0", "0", "0"),
    ("sm__maximum_warps_avg_per_active_cycle", "warp", "12", "12", "64"),
    (BF16, "", "268,435,456", "268,435,456", "0"),
    (SCALAR[0], "inst", "0", "0", "1,048,576"),
    (SCALAR[1], "inst", "10", "10", "0"),
    (SCALAR[2], "inst", "100", "100", "0"),
]  # fmt: skip


def text(columns, before="==PROF== Connected to process 7 (python3)\n", after="==PROF== Disconnected from process 7\n"):
    table = io.StringIO()
    columns = [("ID", "", *map(str, range(len(columns[0]) - 2))), *columns]
    csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(zip(*columns, strict=True))
    return f"{before}{table.getvalue()}{after}"


@pytest.fixture
def table(tmp_path):
    """Write a table without some columns, or with others in their place, and give its path."""

    def write(*without, **instead):
        path = tmp_path / "layer.csv"
        kept = [instead.get(column[0], column) for column in COLUMNS if column[0] not in without]
        path.write_text(text(kept))
        return path

    return write


def test_what_kernels_executed_and_moved_is_read_and_nothing_else(table):
    run = read_table(table())

    counted = run.counters.to_dict("list")
    assert counted["kernel"] == [PRODUCT, PRODUCT, "add"]
    assert (counted["grid"][0], counted["block"][2]) == ("2x66x1", "128x1x1")
    assert set(counted["module"]) == {"(unattributed)"}
    assert set(counted["op"]) == set(counted["shapes"]) == set(counted["dtype"]) == {""}
    assert counted["tensor_bfloat16"] == [268_435_456, 268_435_456, 0]
    assert counted["scalar_float32"] == [210, 210, 1_048_576]
    assert counted["tensor_instructions"] == [65_536, 65_536, 0]
    assert counted["dram_read_bytes"] == [1_048_576, 1_048_576, 8_388_608]
    assert counted["dram_written_bytes"][:2] == [524_288, 524_288]
    assert counted["duration_ns"] == [1500, 2500, 4000]
    assert run.counters["dram_written_bytes"].isna().tolist() == [False, False, True]
    assert run.counters[["tensor_float16", "tensor_tf32", "tensor_float8", "scalar_float64"]].isna().all(axis=None)
    assert all(frame.empty for frame in (run.tree, run.ops, run.kernels, run.samples))


def test_the_run_says_what_it_is_of_and_what_it_is_not(table):
    run = read_table(table())

    assert (run.workload["name"], run.workload["source"], run.workload["file"]) == ("layer", "ncu", "layer.csv")
    assert (run.device["name"], run.device["compute_capability"]) == ("NVIDIA H100 80GB HBM3", [9, 0])
    assert run.device["peaks"]["datasheet"]["bfloat16"] == 989.4e12
    facts = run.passes["counters"].facts
    assert facts["columns"] == [
        "tensor_bfloat16", "scalar_float32", "tensor_instructions", "dram_read_bytes", "dram_written_bytes",
        "duration_ns",
    ]  # fmt: skip
    assert facts["not_collected"][:2] == ["tensor_float16", "tensor_tf32"]
    assert (facts["launches"], facts["replays"]) == (3, [3])
    assert {run.passes[name].status for name in ("count", "time", "trace")} == {"skipped"}


@pytest.mark.parametrize("metric", SCALAR)
def test_a_part_of_a_sum_is_no_sum(table, metric):
    run = read_table(table(metric))

    assert run.counters["scalar_float32"].isna().all()
    assert "scalar_float32" in run.passes["counters"].facts["not_collected"]


def test_counts_by_multiprocessor_are_the_same_counts(table):
    per_sm = {name: (name.replace("smsp__", "sm__"), *cells) for name, *cells in COLUMNS if name in SCALAR}

    assert read_table(table(**per_sm)).counters["scalar_float32"].tolist() == [210, 210, 1_048_576]


def test_a_device_that_the_table_does_not_name_is_unknown_until_it_is_given(table):
    path = table(NAME, "device__attribute_multiprocessor_count")

    assert read_table(path).device["name"] is None
    assert "--device-name" in read_table(path).device["peak_remedy"]
    assert "unknown GPU · compute capability 9.0" in render(read_table(path))
    assert read_table(path, device_name="NVIDIA H200").device["peaks"]["datasheet"]["tf32"] == 494.7e12


def test_kernels_of_two_devices_have_no_peak(table):
    run = read_table(table(**{NAME: (NAME, "", "NVIDIA A100-SXM4-80GB", "NVIDIA H200", "NVIDIA H200")}))

    assert run.device["peaks"] == {}
    assert run.device["peak_remedy"].startswith("the kernels ran on NVIDIA A100-SXM4-80GB and NVIDIA H200")


def test_a_row_is_a_kernel_with_its_sums_and_what_is_not_known_of_each_launch_is_missing(table):
    product, addition = executed_by_kernel(read_table(table())).to_dict("records")

    assert (product["kernel"], product["launches"]) == (PRODUCT, 2)
    assert (product["flops_tensor"], product["flops_scalar"]) == (536_870_912, 420)
    assert product["flops_executed"] == 536_871_332
    assert product["dram_bytes"] == 2 * (1_048_576 + 524_288)
    assert (product["time_s"], product["time_share"]) == (pytest.approx(4e-6), pytest.approx(0.5))
    assert product["flops_per_s"] == pytest.approx(536_871_332 / 4e-6)
    assert product["intensity"] == pytest.approx(536_871_332 / 3_145_728)
    assert (addition["flops_tensor"], addition["flops_executed"]) == (0, 1_048_576)


def test_without_the_tensor_pipe_no_flops_of_one_dtype_are_not_none_at_all(table):
    product, addition = executed_by_kernel(read_table(table(HFMA2))).to_dict("records")

    assert product["flops_tensor"] == 536_870_912
    assert pd.isna(addition["flops_tensor"])  # it may have run in float16


def test_a_roofline_is_over_the_bytes_that_memory_moved(table):
    rows = {row["name"]: row for row in roofline(read_table(table()), "kernel").to_dict("records")}

    product = rows[PRODUCT]
    assert (product["flops"], product["bytes"]) == (536_871_332, 3_145_728)
    compute_s, memory_s = 536_870_912 / 989.4e12 + 420 / 66.9e12, 3_145_728 / 3.352e12
    assert memory_s > compute_s
    assert (product["bound"], product["of_roof"]) == ("memory", pytest.approx(memory_s / 4e-6))
    text = render_roofline(read_table(table()), "text", View(by="kernel"))
    assert "bytes that device memory moved" in text
    assert "bfloat16 989.4 TFLOP/s" in text
    given = roofline(read_table(table(), peak_tflops=100.0), "kernel").set_index("name")
    assert given.loc[PRODUCT, "bound"] == "compute"
    assert given.loc[PRODUCT, "of_roof"] == pytest.approx(536_871_332 / 100e12 / 4e-6)


def test_the_report_has_sums_kernels_and_what_was_not_collected(table, tmp_path):
    run = load(read_table(table()).save(tmp_path / "run.json.gz"))

    said = " ".join(render(run, "tree", View(width=160)).split())
    for words in (
        "Workload layer · a table of Nsight Compute",
        "Device NVIDIA H100 80GB HBM3 · compute capability 9.0",
        "Kernels 3 launches of 2 kernels, 8.000 us one by one",
        "Tensor cores 536.9 MFLOPs in bfloat16",
        "Outside them 1.049 MFLOPs in float32",
        "Device memory 10.00 MiB read, 1.000 MiB written",
        "kernels that ran one by one under the counters: no rates of a step, and no MFU",
        "Not collected, so in no sum: tensor_float16, tensor_tf32",
        "dram_written_bytes was not read for 1 of 3 launches",
    ):
        assert words in said
    for by in ("kernel", "executed"):
        rows = json.loads(render(run, "json", View(by=by)))
        assert [row["flops_executed"] for row in rows] == [536_871_332, 1_048_576]
        assert rows[1]["dram_bytes"] is None
        assert "no rates of a step" in render(run, "markdown", View(by=by))


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda run: render(run, "table", View(by="module")), "nothing by module: give --by kernel"),
        (lambda run: render(run, "csv", View(by="op")), "nothing by op: give --by kernel"),
        (lambda run: render(run, "calflops"), "nothing for calflops"),
        (lambda run: render(run, "perfetto"), "nothing for perfetto"),
        (render_page, "no page: 'gpuprof show RUN' reports them"),
        (lambda run: roofline(run, "op"), "no roofline by op: give --by kernel"),
        (lambda run: check(run, [run]), "no step to compare"),
    ],
)
def test_what_a_table_cannot_tell_is_refused_in_one_line(table, ask, why):
    with pytest.raises(GpuprofError, match=why):
        ask(read_table(table()))


LONG = '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"\n'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "has no kernel of Nsight Compute"),
        ("==WARNING== No kernels were profiled.\n", "has no kernel of Nsight Compute"),
        ("a,b\n1,2\n", "has no kernel of Nsight Compute"),
        (LONG + '"0","k","(1, 1, 1)","(1, 1, 1)","dram__bytes_read.sum","byte","1"\n', "a row per metric.*--page raw"),
        (text(COLUMNS[:6]), "no metric that gpuprof reads"),
        (text(COLUMNS, after="")[:-40], "breaks off"),
        (
            text([*COLUMNS[:3], ("gpu__time_duration.sum", "fortnight", "1", "2", "3")]),
            "'fortnight'.*--print-units base",
        ),
        (text([*COLUMNS[:3], ("gpu__time_duration.sum", "ns", "1.000,5", "2", "3")]), "set LC_ALL=C"),
    ],
)
def test_what_is_no_raw_table_is_refused_with_what_to_do(tmp_path, content, why):
    path = tmp_path / "table.csv"
    path.write_text(content)

    with pytest.raises(GpuprofError, match=why):
        read_table(path)


def test_a_whole_table_of_an_h200_sums_to_what_its_cells_do():
    path = H200 / "counters-siglip-ncu-1.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        _, *rows = csv.DictReader(file)

    run = read_table(path)

    metrics = {"dram_read_bytes": "dram__bytes_read.sum", "dram_written_bytes": "dram__bytes_write.sum"}
    metrics |= {"duration_ns": "gpu__time_duration.sum", "tensor_bfloat16": BF16}
    for column, metric in metrics.items():
        assert run.counters[column].tolist() == [int(row[metric].partition(".")[0]) for row in rows]
    assert run.device["name"] == "NVIDIA H200"
    assert run.device["sm_count"] == 132
    measured = load(H200 / "counters-siglip.json.gz").counters  # the same launches, without those of the calibration
    assert measured["tensor_bfloat16"].tolist() == run.counters["tensor_bfloat16"].tolist()[-len(measured) :]


def test_a_damaged_table_is_one_line(tmp_path):
    rows = "".join(f'"{number}","kernel {number * 7919 % 104729}"\n' for number in range(50_000))
    packed = bytearray(gzip.compress(f'"ID","Kernel Name"\n{rows}'.encode()))
    packed[len(packed) // 3 : len(packed) // 3 + 40_000] = b"\xff" * 40_000  # beyond what zlib takes for anything
    (tmp_path / "ncu.csv.gz").write_bytes(packed)

    with pytest.raises(GpuprofError, match=r"cannot read .*ncu\.csv\.gz"):
        read_table(tmp_path / "ncu.csv.gz")
