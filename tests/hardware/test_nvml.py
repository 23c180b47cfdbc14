import sys

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


def test_nothing_ever_sets_anything(fake):
    module = fake()
    with nvml.open_device(fake_nvml.UUID) as gpu:
        gpu.facts()
        gpu.read_fields(nvml.FIELDS)
        for quantity in nvml.FUNCTIONS:
            gpu.read(quantity)

    assert not [name for name in module.calls if "Set" in name or "Reset" in name or "Clear" in name]


def test_every_name_we_use_exists_in_the_real_binding():
    import pynvml

    names = [name for reading in {**nvml.FUNCTIONS, **nvml.FIELDS}.values() for name in reading.names]
    arguments = [reading.argument for reading in nvml.FUNCTIONS.values() if reading.argument]

    assert [name for name in names + arguments if not hasattr(pynvml, name)] == []
