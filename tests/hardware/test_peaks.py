import csv
import re
import subprocess
import sys
from importlib.resources import files

import pytest

from gpuprof.hardware import peaks

NAMES = {
    "Tesla V100-SXM2-16GB": "V100-SXM2",
    "Tesla V100-SXM2-32GB": "V100-SXM2",
    "Tesla V100-PCIE-32GB": "V100-PCIe",
    "Tesla V100S-PCIE-32GB": "V100S-PCIe",
    "Tesla V100-SXM3-32GB": None,
    "Tesla T4": "T4",
    "NVIDIA T400": None,
    "NVIDIA T4G": None,
    "NVIDIA A100-SXM4-40GB": "A100-SXM4-40GB",
    "A100-SXM4-40GB": "A100-SXM4-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-SXM4-80GB",
    "NVIDIA A100-PCIE-40GB": "A100-PCIe-40GB",
    "NVIDIA A100 80GB PCIe": "A100-PCIe-80GB",
    "NVIDIA A100-SXM-64GB": None,
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": "A100-SXM4-40GB",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": None,
    "NVIDIA A30": "A30",
    "NVIDIA A40": "A40",
    "NVIDIA RTX A4000": None,
    "NVIDIA RTX A6000": "RTX-A6000",
    "NVIDIA RTX 6000 Ada Generation": None,
    "NVIDIA GeForce RTX 3090": "RTX-3090",
    "NVIDIA GeForce RTX 3090 Ti": None,
    "NVIDIA GeForce RTX 4090": "RTX-4090",
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 5090": "RTX-5090",
    "NVIDIA L4": "L4",
    "NVIDIA L40": "L40",
    "NVIDIA L40S": "L40S",
    "NVIDIA L40G": None,
    "NVIDIA H100 80GB HBM3": "H100-SXM5-80GB",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb": "H100-SXM5-80GB",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H100": None,
    "NVIDIA H200": "H200-SXM",
    "NVIDIA H200 NVL": "H200-NVL",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA H20": None,
    "NVIDIA H800": None,
    "NVIDIA B100": None,
    "NVIDIA B200": "B200-SXM",
    "NVIDIA GB200": "GB200",
    "NVIDIA B300 SXM6 AC": "B300-SXM",
    "NVIDIA GB300": "GB300",
    "AMD Instinct MI250X": "MI250X GCD",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI300A": None,
    "AMD Instinct MI325X": "MI325X",
    "AMD Instinct MI355X": "MI355X",
    "": None,
    "cpu": None,
}


@pytest.mark.parametrize(("device", "row"), NAMES.items())
def test_a_device_name_finds_its_own_row_or_none(device, row):
    found = peaks.find(device)

    assert (found.name if found else None) == row


def test_no_two_rows_match_one_name():
    for device in NAMES:
        bare = device.lower().split(" mig ")[0]

        assert sum(bool(re.fullmatch(row.pattern, bare)) for row in peaks.all_peaks()) <= 1


def test_every_row_can_be_found_by_some_name():
    assert {row.name for row in peaks.all_peaks()} == set(NAMES.values()) - {None}


def test_h200_figures():
    h200 = peaks.find("NVIDIA H200")

    assert h200.flops_per_s == {
        "bfloat16": 989.4e12,
        "float16": 989.4e12,
        "tf32": 494.7e12,
        "float32": 66.9e12,
        "float64": 66.9e12,
        "float8": 1978.9e12,
        "int8": 1978.9e12,
    }
    assert h200.memory_bandwidth == 4.8e12
    assert (h200.sm_count, h200.max_sm_clock_mhz, h200.clock_implied_mhz) == (132, 1980, 1830)
    assert h200.confidence == "high"
    assert "stas00" in h200.source


@pytest.mark.parametrize(
    ("device", "dtype", "tflops"),
    [
        ("NVIDIA L40S", "bfloat16", 362.0),  # Lightning 2.6 gives the L4's 121
        ("NVIDIA L4", "bfloat16", 121.0),  # the datasheet prints the sparse 242
        ("NVIDIA L40", "bfloat16", 181.0),
        ("NVIDIA RTX A6000", "bfloat16", 154.8),  # not the vector rate, 38.7
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),  # float32 accumulation
        ("NVIDIA H100 NVL", "bfloat16", 835.5),  # per GPU, not per pair
        ("NVIDIA A100-SXM4-80GB", "float64", 19.5),  # tensor cores; vector is 9.7
        ("Tesla V100-SXM2-16GB", "float64", 7.8),  # no tensor float64
        ("NVIDIA GB300", "float4", 15000.0),
        ("AMD Instinct MI250X", "bfloat16", 191.5),  # one die, not the package's 383
    ],
)
def test_figures_other_tables_get_wrong(device, dtype, tflops):
    assert peaks.find(device).flops_per_s[dtype] == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("Tesla V100-SXM2-16GB", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB", "float8"),  # a public table lists 624
        ("NVIDIA B300 SXM6 AC", "int8"),  # sources conflict
        ("NVIDIA B300 SXM6 AC", "float4"),  # sources give a range
    ],
)
def test_what_is_unsupported_or_in_conflict_is_absent(device, dtype):
    assert dtype not in peaks.find(device).flops_per_s


def test_sm_count_times_clock_times_rate_reproduces_the_datasheet():
    checked = 0
    for row in peaks.all_peaks():
        for dtype in ("bfloat16", "float16", "tf32", "float8", "int8"):
            rate = row.flops_per_clock_per_sm.get(dtype)
            if not (rate and row.sm_count and row.clock_implied_mhz and dtype in row.flops_per_s):
                continue
            checked += 1

            assert row.sm_count * row.clock_implied_mhz * 1e6 * rate == pytest.approx(
                row.flops_per_s[dtype], rel=0.013
            ), (row.name, dtype)
    assert checked > 100


def test_the_vector_rate_is_quoted_at_the_highest_clock():
    for row in peaks.all_peaks():
        if row.sm_count and row.max_sm_clock_mhz and row.name != "GB200":  # its sheet is for another clock
            product = row.sm_count * row.max_sm_clock_mhz * 1e6 * row.flops_per_clock_per_sm["float32"]

            assert product == pytest.approx(row.flops_per_s["float32"], rel=0.013), row.name


def test_rates_per_clock_are_known_only_where_the_peak_is():
    for row in peaks.all_peaks():
        assert set(row.flops_per_clock_per_sm) <= set(row.flops_per_s)


def test_a_mig_slice_has_its_share_of_the_flops_and_no_bandwidth():
    whole = peaks.find("NVIDIA H100 80GB HBM3")

    part = peaks.for_device("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 60)

    assert part.flops_per_s["bfloat16"] == pytest.approx(989.4e12 * 60 / 132)
    assert part.flops_per_clock_per_sm == whole.flops_per_clock_per_sm
    assert (part.memory_bandwidth, part.memory_bytes) == (None, None)
    assert "60 of 132 SMs" in part.source


def test_the_whole_device_is_not_scaled():
    assert peaks.for_device("NVIDIA H200", 132) is peaks.find("NVIDIA H200")


@pytest.mark.parametrize("sm_count", [0, 133])
def test_an_impossible_sm_count_has_no_peak(sm_count):
    assert peaks.for_device("NVIDIA H200", sm_count) is None


def test_an_unknown_sm_count_leaves_the_peak_as_it_is():
    assert peaks.for_device("NVIDIA GB300", 148).flops_per_s["bfloat16"] == 2500e12


def test_the_table_says_dense_names_a_source_for_each_row_and_has_no_low_confidence():
    text = files("gpuprof.hardware").joinpath("peaks.tsv").read_text()
    rows = list(csv.DictReader([line for line in text.splitlines() if line[0] != "#"], delimiter="\t"))

    assert "dense" in text.splitlines()[0]
    assert all(row["source"] and row["confidence"] in ("high", "medium") for row in rows)
    assert all(None not in row and None not in row.values() for row in rows)


def test_peaks_nvml_and_the_verbs_load_without_torch():
    code = (
        "import sys, gpuprof.hardware.peaks, gpuprof.hardware.nvml, gpuprof.analysis.telemetry, "
        "gpuprof.cli.doctor, gpuprof.cli.devices; gpuprof.hardware.peaks.all_peaks(); "
        "sys.exit('torch' in sys.modules or 'pynvml' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
