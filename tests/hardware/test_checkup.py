import stat
from types import SimpleNamespace

import pytest
import torch

from gpuprof.hardware import checkup
from gpuprof.hardware import ncu as nsight


def finding(name):
    return next(f for f in checkup.examine() if f.name == name)


def counting_hardware(cuda=True, capability=(9, 0)):
    """What is found of hardware counters on a machine with or without a GPU."""
    gpu = SimpleNamespace(is_available=lambda: cuda, get_device_capability=lambda: capability)
    return list(checkup._nsight_compute(SimpleNamespace(cuda=gpu)))


@pytest.fixture
def ncu(monkeypatch, tmp_path):
    """Put an ncu on PATH that prints its version, and say what the driver and the kernel allow."""

    def install(admin_only=None, capabilities=0, prints="Version 2025.3.1.0 (build 1)"):
        script = tmp_path / "ncu"
        script.write_text(f"#!/bin/sh\necho '{prints}'\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        params, status = tmp_path / "params", tmp_path / "status"
        if admin_only is not None:
            params.write_text(f"ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: {admin_only}\n")
        status.write_text(f"Name:\tpython\nCapEff:\t{capabilities:016x}\n")
        monkeypatch.setattr(nsight, "DRIVER_PARAMS", params)
        monkeypatch.setattr(nsight, "OWN_STATUS", status)
        return script

    return install


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_cpu_machine_can_profile_and_says_what_it_lacks():
    findings = {f.name: f for f in checkup.examine()}

    assert checkup.works(list(findings.values()))
    assert all(findings[name].ok for name in ("torch", "torch internals", "counting", "timing", "trace"))
    assert not any(findings[name].ok for name in ("cuda", "telemetry", "nsight compute"))
    assert findings["cuda"].remedy
    assert findings["telemetry"].detail == "NVML needs an NVIDIA GPU"


def test_a_missing_private_attribute_is_named_and_ends_counting(monkeypatch):
    monkeypatch.setattr(checkup, "PRIVATE", (*checkup.PRIVATE, "torch._C._no_such_thing"))

    findings = checkup.examine()

    internals = next(f for f in findings if f.name == "torch internals")
    assert internals.detail == "missing: torch._C._no_such_thing"
    assert internals.remedy
    assert not next(f for f in findings if f.name == "counting").ok
    assert not checkup.works(findings)


def test_a_profiler_that_breaks_is_a_finding_not_a_crash(monkeypatch):
    def broken(**_):
        raise RuntimeError("Kineto is not built in\nmore")

    monkeypatch.setattr(torch.profiler, "profile", broken)

    assert finding("trace") == checkup.Finding(
        "passes", "trace", False, "Kineto is not built in", "install a torch that gpuprof was tested with"
    )
    assert checkup.works(checkup.examine())  # a loss, not an end


def test_a_high_water_mark_that_cannot_be_reset_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(checkup, "RESET_PEAK", tmp_path / "no" / "such")

    memory = checkup._memory(cuda=False)

    assert not memory.ok
    assert "No such file or directory" in memory.detail
    assert memory.remedy


def test_no_ncu_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")

    (found,) = counting_hardware()

    assert found.detail == "no ncu on PATH"
    assert "Nsight Compute" in found.remedy


@pytest.mark.parametrize(
    ("admin_only", "capabilities", "ok"),
    [
        (0, 0, True),
        (1, 0, False),
        (1, 1 << 21, True),  # CAP_SYS_ADMIN
        (1, 1 << 38, True),  # CAP_PERFMON
        (1, 1 << 12, False),  # some other
        (None, 0, False),  # the driver does not say
        (None, 1 << 21, True),
    ],
)
def test_permission_for_nsight_compute(ncu, admin_only, capabilities, ok):
    ncu(admin_only, capabilities)

    counters, _ = counting_hardware()

    assert counters.ok is ok
    assert counters.detail.startswith("Nsight Compute 2025.3.1.0, ")
    assert ("NVreg_RestrictProfilingToAdminUsers=0" in counters.remedy) is not ok


def test_ncu_without_a_gpu_cannot_count(ncu):
    ncu(0)

    (found,) = counting_hardware(cuda=False)

    assert found.detail == "needs an NVIDIA GPU"


@pytest.mark.parametrize(
    ("capability", "ok", "detail"),
    [
        ((8, 0), True, "FLOPs of tensor cores: bfloat16, float16, tf32, float64; outside them: all"),
        ((9, 0), True, "FLOPs of tensor cores: bfloat16, float16, tf32, float64, float8; outside them: all"),
        ((7, 0), False, "FLOPs of tensor cores: none known"),
    ],
)
def test_the_counters_of_the_chip_are_named(ncu, capability, ok, detail):
    ncu(0)

    _, found = counting_hardware(capability=capability)

    assert (found.ok, found.detail) == (ok, detail)


def test_an_ncu_that_does_not_run_is_a_finding(ncu):
    ncu(0).write_text("#!/no/such/interpreter\n")

    (found,) = counting_hardware()

    assert "ncu does not run" in found.detail


def test_nvml_calls_that_fail_are_listed(monkeypatch):
    import sys

    import fake_nvml

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.pynvml(failing={"nvmlDeviceGetTemperature"}))
    failures, detail = checkup._nvml_calls(fake_nvml.UUID)

    assert failures == {"nvmlDeviceGetTemperature": "Not Supported"}
    assert detail == "16 of 17 readings; GPM offered; no nvmlDeviceGetTemperature (Not Supported)"


def test_a_gpu_without_a_known_peak_gets_its_remedy():
    facts = {
        "name": "NVIDIA X", "sm_count": 1, "memory_bytes": 2**30, "driver": None, "uuid": "none", "peaks": {},
        "peak_source": None, "peak_remedy": "give --peak-tflops",
    }  # fmt: skip
    device, peak, nvml = checkup._cuda_device(facts, "cuda:0")

    assert device.detail == "NVIDIA X, 1 SMs, 1.0 GiB, driver unknown"
    assert (peak.ok, peak.remedy) == (False, "give --peak-tflops")
    assert not nvml.ok
