import pytest
from runs import gpu_run

from gpuprof.analysis.denominators import denominator, denominators, peak_dtype
from gpuprof.schema import table


def test_the_clock_peak_is_the_rate_per_clock_at_the_clock_measured():
    run = gpu_run()
    run.device |= {"sm_count": 132, "flops_per_clock_per_sm": {"bfloat16": 4096}}
    run.telemetry = table(
        "telemetry",
        [{"time_s": t, "quantity": "sm_clock", "unit": "MHz", "value": v} for t, v in enumerate((1600, 1830, 1980))],
    )

    assert list(denominators(run)) == ["datasheet", "clock"]
    assert denominators(run)["clock"]["bfloat16"] == pytest.approx(132 * 4096 * 1.83e9)


def test_a_given_peak_comes_first_and_is_named():
    run = gpu_run()
    run.settings["peak_tflops"] = 0.2

    name, peaks = denominator(run)

    assert (name, peaks["bfloat16"]) == ("given", pytest.approx(0.2e12))


def test_float32_on_tensor_cores_runs_against_the_tf32_peak():
    run = gpu_run()
    run.ops["dtype"] = "float32"
    run.device["peaks"] = {"datasheet": {"float32": 50e9, "tf32": 100e9}}

    assert run.modules()["kernel_mfu"].iloc[0] == pytest.approx(0.6)
    run.environment["allow_tf32_matmul"] = True
    assert run.modules()["kernel_mfu"].iloc[0] == pytest.approx(0.3)


def test_an_unknown_device_has_no_denominator():
    run = gpu_run()
    run.device["peaks"] = {}

    assert denominator(run) == ("", {})


def test_families_of_dtypes_share_a_peak():
    run = gpu_run()
    known = {
        dtype: peak_dtype(dtype, "matmul", run) for dtype in ("complex64", "complex128", "complex32", "float8_e5m2")
    }
    assert known == {"complex64": "float32", "complex128": "float64", "complex32": "float16", "float8_e5m2": "float8"}
    assert {peak_dtype(dtype, "matmul", run) for dtype in ("int8", "uint8", "qint8", "quint8")} == {"int8"}
    run.environment["allow_tf32_matmul"] = True  # which cuBLAS takes for products of complex64 too
    assert peak_dtype("complex64", "matmul", run) == "tf32"
