import json
import re
import sys
from types import SimpleNamespace

import fake_nvml
import pytest
import torch

from gpuprof.errors import GpuprofError
from gpuprof.hardware import device


@pytest.fixture
def h200(monkeypatch):
    """Make torch and NVML report one GPU; the arguments change what torch says."""

    def install(nvml=None, **changes):
        properties = {
            "name": "NVIDIA H200",
            "uuid": fake_nvml.UUID.removeprefix("GPU-"),
            "major": 9,
            "minor": 0,
            "multi_processor_count": 132,
            "total_memory": 150_000_000_000,
        }
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**properties | changes))
        monkeypatch.setitem(sys.modules, "pynvml", nvml or fake_nvml.pynvml())

    return install


def test_a_known_gpu(h200):
    h200()
    facts = device.describe(torch.device("cuda"))

    assert facts["name"] == "NVIDIA H200"
    assert facts["index"] == 0
    assert facts["compute_capability"] == [9, 0]
    assert facts["sm_count"] == 132
    assert facts["driver"] == "580.95.05"
    assert facts["power_limit_w"] == pytest.approx(700)
    assert facts["max_sm_clock_mhz"] == 1980
    assert facts["peaks"]["datasheet"]["bfloat16"] == 989.4e12
    assert facts["peak_source"].startswith("H200-SXM: ")
    assert facts["flops_per_clock_per_sm"]["bfloat16"] == 4096
    assert facts["memory_bandwidth"] == 4.8e12
    assert facts["peak_remedy"] == ""


def test_an_unknown_gpu_has_no_peak_but_a_remedy(h200):
    h200(name="NVIDIA RTX A4000", multi_processor_count=48)
    facts = device.describe(torch.device("cuda"))

    assert facts["peaks"] == {}
    assert facts["peak_source"] is None
    assert "NVIDIA RTX A4000" in facts["peak_remedy"]
    assert "--peak-tflops" in facts["peak_remedy"]


def test_a_mig_slice_is_scaled_by_its_sms(h200):
    h200(name="NVIDIA H200 MIG 1g.18gb", multi_processor_count=16)
    facts = device.describe(torch.device("cuda"))

    assert facts["peaks"]["datasheet"]["bfloat16"] == pytest.approx(989.4e12 * 16 / 132)
    assert facts["memory_bandwidth"] is None


def test_a_gpu_without_nvml_is_still_described(h200):
    h200(nvml=fake_nvml.pynvml(failing={"nvmlInit"}))
    facts = device.describe(torch.device("cuda"))

    assert facts["driver"] is None
    assert facts["peaks"]["datasheet"]["bfloat16"] == 989.4e12


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_line():
    with pytest.raises(GpuprofError, match=r"^no CUDA device cuda:3: .*gpuprof doctor'$"):
        device.describe(torch.device("cuda:3"))


def test_the_cpu_has_a_name_no_datasheet_peak_and_a_remedy():
    facts = device.describe(torch.device("cpu"))

    assert facts["name"] == facts["cpu"]["name"] != ""
    assert facts["cpu"]["threads"] >= 1
    assert facts["peaks"] == {}
    assert "measures its matmul ceiling" in facts["peak_remedy"]


def test_cpu_cores_count_each_core_of_each_package_once(monkeypatch, tmp_path):
    blocks = [(0, 0), (0, 1), (1, 0), (1, 1)] * 2  # two packages of two cores with two threads each
    text = "\n".join(f"model name\t: Some CPU\nphysical id\t: {p}\ncore id\t\t: {c}\n" for p, c in blocks)
    monkeypatch.setattr(device.Path, "read_text", lambda *_, **__: text)

    assert device._cpu()["name"] == "Some CPU"
    assert device._cpu()["cores"] == 4


def test_cpu_without_proc_has_some_name(monkeypatch):
    def no_proc(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(device.Path, "read_text", no_proc)

    assert device._cpu()["name"]
    assert device._cpu()["cores"] is None


@pytest.mark.parametrize("kind", ["cpu", "meta", "cuda"])
def test_the_keys_are_the_same_for_every_device_and_json_ready(h200, kind):
    h200()
    facts = device.describe(torch.device(kind))

    assert json.loads(json.dumps(facts)) == facts
    assert set(facts) == {
        "type", "name", "uuid", "index", "compute_capability", "sm_count", "memory_bytes", "driver", "cuda",
        "power_limit_w", "max_sm_clock_mhz", "cpu", "peaks", "peak_source", "flops_per_clock_per_sm",
        "memory_bandwidth", "peak_remedy",
    }  # fmt: skip


def test_environment_names_versions_and_settings_but_no_host():
    import platform
    from pathlib import Path

    facts = device.environment()
    text = json.dumps(facts)

    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["float32_matmul_precision"] in ("highest", "high", "medium")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["date"])
    assert platform.node() not in text
    assert str(Path.home()) + "/" not in text


def test_environment_survives_torchs_refusal_to_mix_old_and_new_precision_settings():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        facts = device.environment()
    finally:
        matmul.fp32_precision = before

    assert facts["allow_tf32_matmul"] is True
    assert device.environment()["allow_tf32_matmul"] is False
