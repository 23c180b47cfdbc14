"""The table of hardware counters against NVIDIA's own lists (CUPTI 13.0.85, tests/data), and what is chosen."""

import itertools
import json
from pathlib import Path

import pytest

from gpuprof.hardware import counters
from gpuprof.schema import TABLES

LISTS = json.loads((Path(__file__).parents[1] / "data/counters/cupti_metric_names_13.0.85.json").read_text())
OF_CHIP = dict(zip(LISTS, ({"GA100": "8.0", "GH100": "9.0", "GB100": "10.0"}[chip] for chip in LISTS), strict=True))
TENSOR = "sm__ops_path_tensor_src_"
D = ("dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum")
PIPE = "sm__inst_executed_pipe_tensor"


@pytest.mark.parametrize("chip", LISTS)
def test_every_name_is_one_of_the_chips_own(chip):
    ours = {name.removesuffix(".sum") for name in counters.names_of(OF_CHIP[chip])}

    assert ours <= set(LISTS[chip])
    unmarked = {c.metric.removesuffix(".sum") for c in counters.all_counters() if chip not in c.chips}
    assert not unmarked & set(LISTS[chip])


@pytest.mark.parametrize("chip", LISTS)
def test_all_tensor_work_of_a_chip_is_in_one_column_or_named_here(chip):
    """The operands of the chip's tensor cores: what the table leaves out are integers and 4-bit floats alone."""
    tops = {name.removeprefix(TENSOR) for name in LISTS[chip] if name.startswith(TENSOR) and "sparsity" not in name}
    ours = {m.removeprefix(TENSOR).removesuffix(".sum") for m in counters.names_of(OF_CHIP[chip]) if TENSOR in m}

    assert tops - ours <= {"int1", "int4", "int8", "fp4_dst_fp32"}


def test_every_column_is_one_of_the_record():
    assert {counter.column for counter in counters.all_counters()} <= set(TABLES["counters"])
    assert set(counters.FLOP_COLUMNS) <= {counter.column for counter in counters.all_counters()}


@pytest.mark.parametrize("chip", LISTS)
def test_a_parent_and_its_child_are_never_added(chip):
    for parts in counters.columns_of(LISTS[chip]).values():
        for one, other in itertools.permutations(parts, 2):
            assert not other.startswith(one.removesuffix(".sum") + "_") or "pipe_tensor" in one


def test_where_a_chip_lists_a_sum_and_its_parts_the_sum_is_taken():
    names = [*LISTS["GH100"], f"{TENSOR}fp16_dst_fp16", f"{TENSOR}fp16_dst_fp32", "dram__bytes_op_read"]

    columns = counters.columns_of(names)

    assert columns["tensor_float16"] == {f"{TENSOR}fp16.sum": 1}
    assert columns["dram_read_bytes"] == {"dram__bytes_read.sum": 1}


def test_newer_names_of_the_same_bytes_are_accepted():
    columns = counters.columns_of(["dram__bytes_op_read", "dram__bytes_op_write"])

    assert columns == {
        "dram_read_bytes": {"dram__bytes_op_read.sum": 1},
        "dram_written_bytes": {"dram__bytes_op_write.sum": 1},
    }


@pytest.mark.parametrize(
    ("capability", "dtype", "work"),
    [
        ("8.0", "bfloat16", [f"{TENSOR}bf16_dst_fp32.sum"]),
        ("9.0", "bfloat16", [f"{TENSOR}bf16_dst_fp32.sum"]),
        ("10.0", "bfloat16", [f"{TENSOR}bf16_dst_fp32.sum"]),
        ("8.0", "float16", [f"{TENSOR}fp16_dst_fp16.sum", f"{TENSOR}fp16_dst_fp32.sum"]),
        ("9.0", "float16", [f"{TENSOR}fp16.sum"]),
        ("9.0", "float8", [f"{TENSOR}fp8.sum"]),
        ("10.0", "float8", [f"{TENSOR}fp4_fp6_fp8_dst_fp16.sum", f"{TENSOR}fp4_fp6_fp8_dst_fp32.sum"]),
    ],
)
def test_one_list_for_the_dtype_and_one_canary(capability, dtype, work):
    plan = counters.plan(counters.names_of(capability), [dtype])

    hfma2 = () if capability == "10.0" else (f"{PIPE}_op_hmma_type_hfma2.sum",)
    assert plan.runs == ((*work, *D), (f"{PIPE}.sum", *hfma2, "gpu__time_duration.sum"))
    assert plan.missing == ()


def test_float32_without_tf32_is_counted_outside_tensor_cores():
    plan = counters.plan(counters.names_of("9.0"), ["float32"])

    prefix = "smsp__sass_thread_inst_executed_op_"
    assert plan.runs[0] == (*(f"{prefix}{op}_pred_on.sum" for op in ("fadd", "fmul", "ffma")), *D)


def test_everything_goes_into_one_run_and_what_is_missing_is_named():
    plan = counters.plan(counters.names_of("8.0"), ["bfloat16"], everything=True)

    assert len(plan.runs) == 1
    assert plan.missing == ("tensor_float8",)
    assert set(plan.columns) == {*counters.FLOP_COLUMNS, "tensor_instructions", "dram_read_bytes",
                                 "dram_written_bytes", "duration_ns"} - {"tensor_float8"}  # fmt: skip


def test_a_dtype_that_a_chip_has_no_counter_for_is_missing():
    assert counters.plan(counters.names_of("8.0"), ["float8"]).missing == ("tensor_float8",)
    assert counters.plan((), ["bfloat16"]).runs == ()
    assert len(counters.plan([f"{TENSOR}bf16_dst_fp32", *D], ["bfloat16"]).runs) == 1  # no canary, no second run


def test_flops_of_packed_instructions():
    """10 HADD, 20 HMUL and 30 HFMA, each on a pair: 2*10 + 2*20 + 4*30; 5 FADD, 6 FMUL, 7 FFMA: 5 + 6 + 14."""
    prefix = "smsp__sass_thread_inst_executed_op_"
    read = {"hadd": 10, "hmul": 20, "hfma": 30, "fadd": 5, "fmul": 6, "ffma": 7}
    columns = counters.columns_of(counters.names_of("9.0"))

    found = counters.values({f"{prefix}{op}_pred_on.sum": count for op, count in read.items()}, columns)

    assert found["scalar_float16"] == 180
    assert found["scalar_float32"] == 25
    assert found["scalar_float64"] is None  # not read is not 0


def test_packed_additions_that_use_the_tensor_pipe_are_no_matrix_work():
    columns = counters.columns_of(counters.names_of("9.0"))

    found = counters.values({f"{PIPE}.sum": 70, f"{PIPE}_op_hmma_type_hfma2.sum": 70}, columns)

    assert found["tensor_instructions"] == 0
