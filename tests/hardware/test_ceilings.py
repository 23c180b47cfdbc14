import statistics
import time

import pytest
import torch

from gpuprof.errors import GpuprofError
from gpuprof.hardware import ceilings

CPU = torch.device("cpu")


def test_the_rate_is_two_m_n_k_over_the_time_of_the_fastest_tenth():
    result = ceilings.measure_matmul(CPU, "float32", seconds=0.2)
    m, n, k = result["shape"]

    assert result["flops_per_s"] == pytest.approx(
        2 * m * n * k / statistics.quantiles(result["times_s"], n=10, method="inclusive")[0]
    )
    assert result["samples"] == len(result["times_s"]) >= 5
    assert result["spread"] >= 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_slow_dtypes_keep_to_the_time(dtype):
    begin = time.perf_counter()
    ceilings.measure_matmul(CPU, dtype, seconds=0.2)

    assert time.perf_counter() - begin < 8  # not the minute it would take; cores are shared


def test_a_shape_that_would_take_seconds_is_skipped(monkeypatch):
    tried = []

    def one_gflop_per_s(device, run, seconds, minimum=5):
        return [2 * run[0] * run[1] * run[2] / 1e9] * minimum

    monkeypatch.setattr(ceilings, "_matmul", lambda device, dtype, shape: tried.append(shape) or shape)
    monkeypatch.setattr(ceilings, "_times", one_gflop_per_s)
    result = ceilings.measure_matmul(CPU, "float16", seconds=1.0)

    # at 1 GFLOP/s 1024 cubed takes 2.1 s, and it would run twice
    assert tried == [(256, 256, 256), (512, 512, 512), (256, 256, 256)]
    assert result["flops_per_s"] == pytest.approx(1e9)


def test_the_best_shape_wins(monkeypatch):
    def rate(shape):
        return {(512, 512, 512): 9e12}.get(shape, 8e12)

    monkeypatch.setattr(ceilings, "_matmul", lambda device, dtype, shape: shape)
    monkeypatch.setattr(
        ceilings,
        "_times",
        lambda device, run, seconds, minimum=5: [ceilings._flops(run) / rate(run)] * minimum,
    )
    result = ceilings.measure_matmul(CPU, "float32")

    assert result["shape"] == [512, 512, 512]
    assert result["flops_per_s"] == pytest.approx(9e12)
    assert result["spread"] == 0


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "tf32"), ("cpu", "float8"), ("cpu", "int64"), ("meta", "float32")]
)
def test_what_cannot_be_measured_says_what_can(device, dtype):
    with pytest.raises(GpuprofError, match=f"no matmul ceiling for {dtype} on {device}: there it can measure"):
        ceilings.measure_matmul(torch.device(device), dtype)


def test_a_multiplication_torch_refuses_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no kernel\nstack")

    monkeypatch.setattr(ceilings, "_matmul", refuse)
    with pytest.raises(GpuprofError, match=r"^cpu cannot multiply float32 matrices here \(no kernel\)$"):
        ceilings.measure_matmul(CPU, "float32")


def test_cpu_ceilings_leave_out_what_has_no_matmul():
    result = ceilings.cpu_ceilings(["float32", "int64", "float32"], seconds=0.1)

    assert set(result["measured"]) == {"float32"}
    assert result["measured"]["float32"] == result["how"]["float32"]["flops_per_s"]


def test_the_users_precision_is_left_as_it_was():
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    with ceilings._float32_precision(torch.device("cuda"), "tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    with ceilings._float32_precision(torch.device("cuda"), "float32"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"

    assert (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32", "float32"])
def test_cuda_ceiling_is_of_the_order_of_the_datasheet(dtype):
    from gpuprof.hardware import peaks

    properties = torch.cuda.get_device_properties(0)
    row = peaks.for_device(properties.name, properties.multi_processor_count)
    if row is None or dtype not in row.flops_per_s:
        pytest.skip("no datasheet peak of this device")
    share = ceilings.measure_matmul(torch.device("cuda"), dtype)["flops_per_s"] / row.flops_per_s[dtype]

    assert 1 / 3 < share < 1.25
