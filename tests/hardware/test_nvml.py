import sys
import time

import fake_nvml
import pytest

from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml


@pytest.fixture
def fake(monkeypatch):
    def install(**changes):
        module = fake_nvml.pynvml(**changes)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


def test_every_reading_in_its_unit(fake):
    fake()
    with nvml.open_device(fake_nvml.UUID) as gpu:
        assert gpu.read("sm_clock") == 1755
        assert gpu.read("memory_clock") == 3201
        assert gpu.read("temperature") == 61
        assert gpu.read("power_limit") == pytest.approx(700)
        assert gpu.read("energy") == pytest.approx(5000)
        assert gpu.read("event_reasons") == 4
        assert gpu.read_fields(["power_instant", "power_average"]) == {
            "power_instant": pytest.approx(650.5),
            "power_average": pytest.approx(600.0),
        }
        assert gpu.failures == {}
    assert nvml.UNITS["power_instant"] == "W"
    assert nvml.UNITS["energy"] == "J"


def test_facts(fake):
    fake()
    with nvml.open_device(fake_nvml.UUID) as gpu:
        assert gpu.facts() == {
            "name": "NVIDIA H200",
            "uuid": fake_nvml.UUID,
            "driver": "580.95.05",
            "cuda": "13.2",
            "power_limit_w": pytest.approx(700),
            "max_sm_clock_mhz": 1980,
            "mig": False,
            "persistence_mode": 1,
            "compute_mode": 0,
            "gpm": True,
        }


@pytest.mark.parametrize("uuid", [fake_nvml.UUID, fake_nvml.UUID.removeprefix("GPU-"), "aaaa", "MIG-aaaa", 0])
def test_a_device_opens_by_uuid_with_or_without_prefix_by_index_and_as_the_parent_of_a_slice(fake, uuid):
    fake()
    with nvml.open_device(uuid) as gpu:
        assert gpu.facts()["uuid"] == fake_nvml.UUID


def test_nvml_is_closed_also_after_an_exception(fake):
    module = fake()
    opened = []

    def break_down():
        with nvml.open_device(0):
            opened.append(module.open)
            raise KeyError

    with pytest.raises(KeyError):
        break_down()
    assert (opened, module.open) == ([1], 0)


def test_an_error_at_closing_does_not_hide_the_callers(fake):
    fake(failing={"nvmlShutdown"})
    with pytest.raises(KeyError), nvml.open_device(0):
        raise KeyError


def test_a_missing_function_is_named_and_gives_none(fake):
    fake(missing={"nvmlDeviceGetTotalEnergyConsumption", "nvmlGpmQueryDeviceSupport"})
    with nvml.open_device(0) as gpu:
        assert gpu.read("energy") is None
        assert gpu.facts()["gpm"] is None
        assert gpu.failures == {
            "nvmlDeviceGetTotalEnergyConsumption": "unknown to this pynvml",
            "nvmlGpmQueryDeviceSupport": "unknown to this pynvml",
        }


def test_a_failing_function_is_named_with_its_reason(fake):
    fake(failing={"nvmlDeviceGetTemperature"})
    with nvml.open_device(0) as gpu:
        assert gpu.read("temperature") is None
        assert gpu.read("sm_clock") == 1755
        assert gpu.failures == {"nvmlDeviceGetTemperature": "Not Supported"}


def test_the_old_name_of_the_event_reasons_is_tried_second(fake):
    module = fake(missing={"nvmlDeviceGetCurrentClocksEventReasons"})
    with nvml.open_device(0) as gpu:
        assert gpu.read("event_reasons") == 4
    assert module.calls.count("nvmlDeviceGetCurrentClocksThrottleReasons") == 1


@pytest.mark.parametrize("value", [0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF])
def test_nvmls_not_available_is_no_number(fake, value):
    fake(answers={"nvmlDeviceGetPowerUsage": value}, fields={186: value})
    with nvml.open_device(0) as gpu:
        assert gpu.read("power_usage") is None
        assert gpu.read_fields(["power_instant"]) == {}
        assert gpu.failures == {
            "nvmlDeviceGetPowerUsage": "not available",
            "NVML_FI_DEV_POWER_INSTANT": "not available",
        }


def test_one_unsupported_field_does_not_take_the_others_along(fake):
    fake(fields={269: None})
    with nvml.open_device(0) as gpu:
        values = gpu.read_fields(["thermal_policy_time", "sw_thermal_time"])

        assert values == {"thermal_policy_time": 0}
        assert gpu.failures == {"NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN": "Not Supported"}


def test_a_field_unknown_to_the_binding_is_named(fake):
    fake(missing={"NVML_FI_DEV_POWER_INSTANT"})
    with nvml.open_device(0) as gpu:
        assert set(gpu.read_fields(["power_instant", "power_average"])) == {"power_average"}
        assert gpu.failures == {"NVML_FI_DEV_POWER_INSTANT": "unknown to this pynvml"}


def test_failing_field_values_give_nothing_and_are_named(fake):
    fake(failing={"nvmlDeviceGetFieldValues"})
    with nvml.open_device(0) as gpu:
        assert gpu.read_fields(nvml.FIELDS) == {}
        assert gpu.failures == {"nvmlDeviceGetFieldValues": "Not Supported"}


def test_cumulative_times_are_seconds(fake):
    fake(fields={74: 1_500_000_000})
    with nvml.open_device(0) as gpu:
        assert gpu.read_fields(["power_policy_time"])["power_policy_time"] == pytest.approx(1.5)


# Activity between two samples (GPM)


@pytest.fixture
def no_wait(monkeypatch):
    """Any window is long enough."""
    monkeypatch.setattr(nvml, "GPM_WINDOW_S", 0.0)


def watched():
    """Activity over a short body, and the calls that failed."""
    with nvml.open_device(fake_nvml.UUID) as gpu:
        with gpu.activity() as activity:
            assert activity == {}  # not before the window has closed
        return activity, gpu.failures


def test_activity_is_every_metric_between_two_samples(fake, no_wait):
    module = fake()

    assert watched() == (
        {
            "gpm_sm_active": 95.5,
            "gpm_sm_occupancy": 20.0,
            "gpm_tensor_active": 43.25,
            "gpm_dfma_active": 0.0,
            "gpm_hmma_active": 43.0,
            "gpm_imma_active": 0.25,
            "gpm_dram_active": 31.0,
            "gpm_fp64_active": 0.0,
            "gpm_fp32_active": 5.5,
            "gpm_fp16_active": 1.5,
        },
        {},
    )
    assert [name for name in module.calls if "Gpm" in name] == [
        "nvmlGpmQueryDeviceSupport",
        "nvmlGpmSampleAlloc",
        "nvmlGpmSampleGet",
        "nvmlGpmSampleAlloc",
        "nvmlGpmSampleGet",
        "nvmlGpmMetricsGet",
        "nvmlGpmSampleFree",
        "nvmlGpmSampleFree",
    ]
    assert module.samples == []
    assert {nvml.UNITS[quantity] for quantity in nvml.GPM} == {"%"}


def test_a_window_too_short_for_gpm_gives_none_and_says_so(fake, monkeypatch):
    module = fake()
    monkeypatch.setattr(time, "perf_counter", iter([5.0, 5.099]).__next__)

    assert watched() == ({}, {"nvmlGpmMetricsGet": "not called: a window of 0.099 s is shorter than 0.1 s"})
    assert module.samples == []
    assert "nvmlGpmMetricsGet" not in module.calls


def test_a_window_just_long_enough(fake, monkeypatch):
    fake()
    monkeypatch.setattr(time, "perf_counter", iter([5.0, 5.125]).__next__)

    activity, failures = watched()
    assert (len(activity), failures) == (10, {})


def test_a_gpu_without_gpm_is_no_crash_and_takes_no_sample(fake, no_wait):
    unsupported = fake_nvml.SimpleNamespace(isSupportedDevice=0)
    module = fake(answers={"nvmlGpmQueryDeviceSupport": lambda _: unsupported})

    assert watched() == ({}, {"nvmlGpmQueryDeviceSupport": "not offered by this GPU"})
    assert "nvmlGpmSampleAlloc" not in module.calls


@pytest.mark.parametrize("name", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleGet",
                                  "nvmlGpmMetricsGet"])  # fmt: skip
def test_every_gpm_call_may_fail_or_be_missing_and_is_named(fake, no_wait, name):
    module = fake(failing={name})
    assert watched() == ({}, {name: "Not Supported"})
    assert module.samples == []

    module = fake(missing={name})
    assert watched() == ({}, {name: "unknown to this pynvml"})
    assert module.samples == []


def test_without_permission_the_reason_is_nvmls(fake, no_wait):
    def denied(handle, sample):
        raise fake_nvml.NVMLError("Insufficient Permissions")

    module = fake(answers={"nvmlGpmSampleGet": denied})

    assert watched() == ({}, {"nvmlGpmSampleGet": "Insufficient Permissions"})
    assert module.samples == []


def test_a_second_sample_that_fails_frees_the_first(fake, no_wait):
    module = fake()
    allocate = module.nvmlGpmSampleAlloc

    def once():
        if module.samples:
            raise fake_nvml.NVMLError("Insufficient Memory")
        return allocate()

    module.nvmlGpmSampleAlloc = once

    assert watched() == ({}, {"nvmlGpmSampleAlloc": "Insufficient Memory"})
    assert module.samples == []


def test_another_version_of_the_structure_is_refused_by_nvml_and_named(fake, no_wait):
    module = fake()
    module.NVML_GPM_METRICS_GET_VERSION = 2

    assert watched() == ({}, {"nvmlGpmMetricsGet": "Argument Version Mismatch"})
    assert module.samples == []


def test_a_binding_without_the_structure_is_named(fake, no_wait):
    fake(missing={"c_nvmlGpmMetricsGet_t"})

    assert watched() == ({}, {"c_nvmlGpmMetricsGet_t": "unknown to this pynvml"})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "Not Supported"),
        (float("nan"), "answered nan %"),
        (100.5, "answered 100.5 %"),
        (1e300, "answered 1e+300 %"),
        (-1.0, "answered -1 %"),
    ],
)
def test_one_metric_that_is_no_share_does_not_take_the_others_along(fake, no_wait, value, reason):
    fake(gpm={5: value})

    activity, failures = watched()
    assert set(nvml.GPM) - set(activity) == {"gpm_tensor_active"}
    assert failures == {"NVML_GPM_METRIC_ANY_TENSOR_UTIL": reason}


def test_a_metric_unknown_to_the_binding_moves_no_other(fake, no_wait):
    fake(missing={"NVML_GPM_METRIC_SM_OCCUPANCY"})

    activity, failures = watched()
    assert (len(activity), activity["gpm_sm_active"], activity["gpm_tensor_active"]) == (9, 95.5, 43.25)
    assert failures == {"NVML_GPM_METRIC_SM_OCCUPANCY": "unknown to this pynvml"}


def test_a_sample_that_cannot_be_freed_is_named(fake, no_wait):
    fake(failing={"nvmlGpmSampleFree"})

    activity, failures = watched()
    assert activity["gpm_tensor_active"] == 43.25
    assert failures == {"nvmlGpmSampleFree": "Not Supported"}


def test_samples_are_freed_and_activity_is_read_also_after_an_exception(fake, no_wait):
    module = fake()
    found = []

    def break_down():
        with nvml.open_device(0) as gpu, gpu.activity() as activity:
            found.append(activity)
            raise KeyError

    with pytest.raises(KeyError):
        break_down()
    assert module.samples == []
    assert found[0]["gpm_tensor_active"] == 43.25


def test_the_real_binding_passes_our_structure_to_the_driver(monkeypatch, no_wait):
    """pynvml itself, above functions that stand for the driver's."""
    import ctypes

    import pynvml

    calls = []

    def support(device, reference):
        calls.append(("support", reference._obj.version))
        reference._obj.isSupportedDevice = 1
        return 0

    def allocate(reference):
        number = 0x1000 * (1 + sum(call[0] == "alloc" for call in calls))
        calls.append(("alloc", number))
        ctypes.cast(reference, ctypes.POINTER(ctypes.c_void_p))[0] = number
        return 0

    def get(device, sample):
        calls.append(("get", fake_nvml.address(sample)))
        return 0

    def metrics(reference):
        # as the driver sees it: two 32-bit numbers, two pointers, then the metrics, 40 bytes each
        raw = ctypes.string_at(reference, 24 + 10 * 40)
        words = [int.from_bytes(raw[at : at + 4], "little") for at in (0, 4)]
        pointers = [int.from_bytes(raw[at : at + 8], "little") for at in (8, 16)]
        ids = [int.from_bytes(raw[24 + 40 * at :][:4], "little") for at in range(10)]
        calls.append(("metrics", *words, *pointers, *ids))
        ctypes.c_double.from_address(ctypes.addressof(reference._obj) + 24 + 40 * 2 + 8).value = 43.25
        return 0

    def free(sample):
        calls.append(("free", fake_nvml.address(sample)))
        return 0

    driver = {
        "nvmlGpmQueryDeviceSupport": support,
        "nvmlGpmSampleAlloc": allocate,
        "nvmlGpmSampleGet": get,
        "nvmlGpmMetricsGet": metrics,
        "nvmlGpmSampleFree": free,
    }
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", driver.__getitem__)
    gpu = nvml.Nvml(pynvml, ctypes.c_void_p(7))
    with gpu.activity() as activity:
        pass

    assert gpu.failures == {}
    assert activity["gpm_tensor_active"] == 43.25
    assert calls == [
        ("support", 1),
        ("alloc", 0x1000),
        ("get", 0x1000),
        ("alloc", 0x2000),
        ("get", 0x2000),
        ("metrics", 1, 10, 0x1000, 0x2000, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13),
        ("free", 0x2000),
        ("free", 0x1000),
    ]


def test_memory_of_a_process(fake):
    fake()
    with nvml.open_device(0) as gpu:
        assert gpu.process_memory(7) == 123 << 20
        assert gpu.process_memory(8) is None
        assert gpu.failures == {"nvmlDeviceGetComputeRunningProcesses": "not available for this process"}


def test_without_a_driver_the_error_is_one_line(fake):
    fake(failing={"nvmlInit"})
    with (
        pytest.raises(GpuprofError, match=r"NVML needs an NVIDIA GPU and its driver \(Not Supported\)"),
        nvml.open_device(0),
    ):
        pass


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(GpuprofError, match="pip install nvidia-ml-py"), nvml.open_device(0):
        pass


def test_an_unknown_uuid_is_an_error_and_closes_nvml(fake):
    module = fake()
    with pytest.raises(GpuprofError, match="does not know the GPU bbbb"), nvml.open_device("bbbb"):
        pass
    assert module.open == 0


def test_names_of_the_machines_gpus(fake):
    fake()
    assert nvml.devices() == ["NVIDIA H200"]


def test_no_names_without_nvml(fake):
    fake(failing={"nvmlInit"})
    assert nvml.devices() == []


def test_nothing_ever_sets_anything(fake, no_wait):
    module = fake()
    with nvml.open_device(fake_nvml.UUID) as gpu, gpu.activity():
        gpu.facts()
        gpu.read_fields(nvml.FIELDS)
        for quantity in nvml.FUNCTIONS:
            gpu.read(quantity)

    assert not [name for name in module.calls if "Set" in name or "Reset" in name or "Clear" in name]


def test_every_name_we_use_exists_in_the_real_binding():
    import pynvml

    readings = {**nvml.FUNCTIONS, **nvml.FIELDS, **nvml.GPM}.values()
    names = [name for reading in readings for name in reading.names]
    arguments = [reading.argument for reading in nvml.FUNCTIONS.values() if reading.argument]

    assert [name for name in names + arguments if not hasattr(pynvml, name)] == []
    # a stray comma makes tuples of some numbers in the binding
    assert {name: getattr(pynvml, name) for name in fake_nvml.GPM} == fake_nvml.GPM
