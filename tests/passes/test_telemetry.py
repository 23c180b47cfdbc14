import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from gpuprof.analysis.telemetry import invalid_reasons, limits
from gpuprof.hardware import nvml
from gpuprof.passes import telemetry
from gpuprof.schema import TABLES, table

sys.path.append(str(Path(__file__).parents[1] / "hardware"))
import fake_nvml

CUDA = torch.device("cuda")


@pytest.fixture
def fake(monkeypatch):
    def install(**changes):
        module = fake_nvml.pynvml(**changes)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.setattr(telemetry, "uuid_of", lambda _: fake_nvml.UUID)
        monkeypatch.setattr(nvml, "GPM_WINDOW_S", 0.0)  # any window is long enough
        return module

    return install


def watch_briefly(seconds=0.0):
    with telemetry.watch(CUDA, interval_s=0.01) as record:
        time.sleep(seconds)
    return record


def values(record, quantity):
    frame = record.rows()
    return list(frame.loc[frame["quantity"] == quantity, "value"])


def running():
    return [thread for thread in threading.enumerate() if thread.name == "gpuprof-telemetry"]


def test_rows_have_the_columns_units_and_readings(fake):
    fake()
    record = watch_briefly(0.05)
    frame = record.rows()

    assert list(frame.columns) == list(TABLES["telemetry"])
    assert dict(zip(frame["quantity"], frame["unit"], strict=True)) == {
        "energy": "J",
        "power_policy_time": "s",
        "thermal_policy_time": "s",
        "sw_thermal_time": "s",
        "hw_thermal_time": "s",
        "hw_power_brake_time": "s",
        "sm_clock": "MHz",
        "memory_clock": "MHz",
        "temperature": "C",
        "event_reasons": "mask",
        "power_instant": "W",
        "power_average": "W",
        **dict.fromkeys(nvml.GPM, "%"),
    }
    assert set(values(record, "sm_clock")) == {1755}
    assert set(values(record, "power_instant")) == {650.5}
    assert record.outcome.status == "done"
    assert record.outcome.facts == {"readings": len(frame), "failed_calls": {}}
    assert record.outcome.seconds >= 0.05


def test_counters_are_read_once_before_and_once_after(fake):
    energy = iter([5_000_000, 5_350_000])
    fake(
        answers={"nvmlDeviceGetTotalEnergyConsumption": lambda _: next(energy)},
        fields={74: [10**9, 3 * 10**9]},
    )
    record = watch_briefly()

    assert values(record, "energy") == [5000, 5350]
    assert values(record, "power_policy_time") == [1, 3]
    frame = record.rows()
    at = frame.loc[frame["quantity"] == "energy", "time_s"]
    assert at.iloc[0] == frame["time_s"].min()
    assert at.iloc[1] == frame["time_s"].max()


def test_activity_is_read_once_at_the_end_and_its_samples_are_freed(fake):
    module = fake()
    record = watch_briefly()

    frame = record.rows()
    activity = frame[frame["quantity"].isin(nvml.GPM)]
    assert len(activity) == 10
    assert set(activity["time_s"]) == {frame["time_s"].max()}
    assert values(record, "gpm_tensor_active") == [43.25]
    assert module.samples == []


def test_a_window_too_short_for_activity_is_said(fake, monkeypatch):
    fake()
    monkeypatch.setattr(nvml, "GPM_WINDOW_S", 60.0)
    record = watch_briefly()

    assert not set(record.rows()["quantity"]) & set(nvml.GPM)
    (reason,) = record.outcome.facts["failed_calls"].values()
    assert reason.endswith("s is shorter than 60.0 s")


def test_gpm_that_fails_takes_nothing_else_along(fake):
    module = fake(failing={"nvmlGpmSampleGet"})
    record = watch_briefly()

    assert record.outcome.status == "done"
    assert record.outcome.facts["failed_calls"] == {"nvmlGpmSampleGet": "Not Supported"}
    assert {"energy", "sm_clock", "power_policy_time"} <= set(record.rows()["quantity"])
    assert module.samples == []


def test_a_short_window_still_has_a_sample_and_a_long_one_has_several(fake):
    fake()

    assert len(values(watch_briefly(), "sm_clock")) >= 1
    assert 2 <= len(values(watch_briefly(0.2), "sm_clock")) <= 40  # the cores are shared


def test_the_default_rate_is_ten_per_second(fake):
    fake()
    with telemetry.watch(CUDA) as record:
        time.sleep(0.35)

    assert 1 <= len(values(record, "temperature")) <= 1 + record.outcome.seconds / 0.1


def test_the_thread_stops_and_nvml_closes_also_after_an_exception(fake):
    module = fake()
    records, threads = [], []

    def break_down():
        with telemetry.watch(CUDA, interval_s=60) as record:
            records.append(record)
            threads.extend(running())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_down()

    assert len(threads) == 1
    assert running() == []
    assert (module.open, module.samples) == (0, [])
    assert records[0].outcome.status == "done"
    assert len(values(records[0], "energy")) == 2
    assert values(records[0], "gpm_tensor_active") == [43.25]


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_without_a_gpu_the_pass_is_skipped_and_nothing_is_faked(kind):
    with telemetry.watch(torch.device(kind)) as record:
        assert running() == []

    assert record.outcome.status == "skipped"
    assert record.outcome.reason == "NVML needs an NVIDIA GPU"
    assert record.outcome.remedy
    assert record.rows().empty


def test_without_a_driver_the_pass_is_skipped_with_the_reason(fake):
    fake(failing={"nvmlInit"})
    record = watch_briefly()

    assert record.outcome.status == "skipped"
    assert record.outcome.reason == "NVML needs an NVIDIA GPU and its driver (Not Supported)"
    assert record.rows().empty


def test_the_bodys_own_error_comes_through_a_skipped_pass(fake):
    fake(failing={"nvmlInit"})
    with pytest.raises(ZeroDivisionError) as caught, telemetry.watch(CUDA):
        raise ZeroDivisionError

    assert caught.value.__context__ is None


def test_calls_that_do_not_work_are_named_and_the_rest_is_read(fake):
    fake(
        missing={"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetCurrentClocksEventReasons"},
        failing={"nvmlDeviceGetTemperature"},
        fields={271: None, 185: 0xFFFFFFFF},
    )
    record = watch_briefly()

    assert record.outcome.status == "done"
    assert record.outcome.facts["failed_calls"] == {
        "nvmlDeviceGetTotalEnergyConsumption": "unknown to this pynvml",
        "nvmlDeviceGetCurrentClocksEventReasons": "unknown to this pynvml",
        "nvmlDeviceGetTemperature": "Not Supported",
        "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN": "Not Supported",
        "NVML_FI_DEV_POWER_AVERAGE": "not available",
    }
    quantities = set(record.rows()["quantity"])
    assert {"sm_clock", "event_reasons", "power_instant", "sw_thermal_time"} <= quantities
    assert not {"energy", "temperature", "hw_power_brake_time", "power_average"} & quantities


def test_the_averaging_power_call_is_read_only_without_the_power_fields(fake):
    fake(fields={185: None, 186: None})

    assert set(values(watch_briefly(), "power_usage")) == {640}


def test_a_gpu_that_answers_nothing_is_a_failed_pass(fake):
    everything = {name for name in vars(fake()) if name.startswith(("nvmlDeviceGet", "nvmlGpm"))}
    fake(failing=everything - {"nvmlDeviceGetHandleByUUID"})
    record = watch_briefly()

    assert record.outcome.status == "failed"
    assert record.outcome.reason == "NVML answered none of the queries"
    assert record.outcome.facts["failed_calls"]


# What the readings mean (gpuprof.analysis.telemetry)


def window(masks=(0, 0), **counters):
    """A ten-second window: event masks spread over it, counters as (start, end)."""
    rows = [{"time_s": 0.0, "quantity": name, "unit": "s", "value": start} for name, (start, _) in counters.items()]
    rows += [
        {"time_s": 10 * i / (len(masks) - 1), "quantity": "event_reasons", "unit": "mask", "value": mask}
        for i, mask in enumerate(masks)
    ]
    rows += [{"time_s": 10.0, "quantity": name, "unit": "s", "value": end} for name, (_, end) in counters.items()]
    return table("telemetry", rows)


@pytest.mark.parametrize(
    ("masks", "lines"),
    [
        ((0, 0), []),
        ((0x1, 0x1), []),  # idle
        ((0x4, 0x4), []),  # a power cap is normal
        ((0x2, 0x10), []),  # application clocks, sync boost
        ((0x20, 0x0), ["software thermal slowdown in 1 of 2 samples"]),
        ((0x40, 0x44), ["hardware thermal slowdown in 2 of 2 samples"]),
        ((0x80, 0x0), ["external power brake in 1 of 2 samples"]),
        ((0x8, 0x8), ["hardware slowdown in 2 of 2 samples"]),
    ],
)
def test_heat_brake_and_hardware_slowdown_invalidate_and_nothing_else(masks, lines):
    assert invalid_reasons(window(masks)) == lines


@pytest.mark.parametrize(
    "counter", ["thermal_policy_time", "sw_thermal_time", "hw_thermal_time", "hw_power_brake_time"]
)
def test_a_counter_catches_what_no_sample_saw(counter):
    (line,) = invalid_reasons(window(**{counter: (100.0, 100.25)}))

    assert line.endswith("for 250.0 ms of 10.00 s")


def test_old_slowdowns_before_the_window_do_not_count():
    assert invalid_reasons(window(hw_thermal_time=(100.0, 100.0))) == []


def test_a_counter_that_outgrew_the_window_is_no_time():
    assert invalid_reasons(window(hw_thermal_time=(0.0, 1e6))) == []
    assert invalid_reasons(window(hw_thermal_time=(5.0, 0.0))) == []


def test_a_power_cap_is_recorded():
    (limit,) = limits(window((0x4, 0x4, 0x0), power_policy_time=(1.0, 7.5)))

    assert limit.cause.name == "power cap"
    assert limit.cause.invalid is False
    assert limit.seconds == pytest.approx(6.5)
    assert limit.samples == 2


def test_no_telemetry_says_nothing():
    assert invalid_reasons(table("telemetry", [])) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_gpu_clock_power_and_energy_are_read():
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    with telemetry.watch(CUDA) as record:
        until = time.perf_counter() + 2
        while time.perf_counter() < until:
            a @ a
            torch.cuda.synchronize()
    first, last = values(record, "energy")

    assert record.outcome.status == "done"
    assert min(values(record, "sm_clock")) > 0
    assert 10 < (last - first) / record.outcome.seconds < 2000  # mean power, W


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_gpu_matmuls_keep_the_tensor_cores_busy():
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with telemetry.watch(CUDA) as record:
        until = time.perf_counter() + 2
        while time.perf_counter() < until:
            a @ a
            torch.cuda.synchronize()
    if "gpm_tensor_active" not in set(record.rows()["quantity"]):
        pytest.skip(f"no GPM here: {record.outcome.facts['failed_calls']}")

    (tensor,), (sm,) = values(record, "gpm_tensor_active"), values(record, "gpm_sm_active")
    assert 30 < tensor <= sm <= 100
