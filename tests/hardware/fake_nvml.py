"""A stand-in for pynvml: one GPU that answers everything, unless a test takes something away."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml as binding  # for its structures, which need no driver

UUID = "GPU-11111111-2222-3333-4444-555555555555"
NOT_SUPPORTED = 3

# numbers as in nvidia-ml-py 13.615
FIELDS = {
    "NVML_FI_DEV_PERF_POLICY_POWER": 74,
    "NVML_FI_DEV_PERF_POLICY_THERMAL": 75,
    "NVML_FI_DEV_POWER_AVERAGE": 185,
    "NVML_FI_DEV_POWER_INSTANT": 186,
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN": 269,
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN": 270,
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN": 271,
}

GPM = {
    "NVML_GPM_METRIC_SM_UTIL": 2,
    "NVML_GPM_METRIC_SM_OCCUPANCY": 3,
    "NVML_GPM_METRIC_ANY_TENSOR_UTIL": 5,
    "NVML_GPM_METRIC_DFMA_TENSOR_UTIL": 6,
    "NVML_GPM_METRIC_HMMA_TENSOR_UTIL": 7,
    "NVML_GPM_METRIC_IMMA_TENSOR_UTIL": 9,
    "NVML_GPM_METRIC_DRAM_BW_UTIL": 10,
    "NVML_GPM_METRIC_FP64_UTIL": 11,
    "NVML_GPM_METRIC_FP32_UTIL": 12,
    "NVML_GPM_METRIC_FP16_UTIL": 13,
}
GPM_OF_NUMBER = {2: 95.5, 3: 20.0, 5: 43.25, 6: 0.0, 7: 43.0, 9: 0.25, 10: 31.0, 11: 0.0, 12: 5.5, 13: 1.5}


class NVMLError(Exception):
    pass


def address(sample: Any) -> int | None:
    return ctypes.cast(sample, ctypes.c_void_p).value


def pynvml(
    missing: Collection[str] = (),
    failing: Collection[str] = (),
    answers: dict[str, Any] | None = None,
    fields: dict[int, Any] | None = None,
    gpm: dict[int, Any] | None = None,
) -> ModuleType:
    """The module.

    Args:
        missing: names this pynvml does not have.
        failing: functions that raise NVMLError.
        answers: other answers by function name.
        fields: other field values by number; ``None`` is not supported, a list goes reading by reading.
        gpm: other GPM metrics by number; ``None`` is not supported.

    Attributes of the module:
        calls: names of the functions called, in order.
        open: how often NVML was opened and not closed.
        samples: addresses of the GPM samples that were allocated and not freed.
    """
    module: Any = ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.calls = []
    module.open = 0
    module.samples = []
    constants = {
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_GPM_METRICS_GET_VERSION": 1,
        "c_nvmlGpmMetricsGet_t": binding.c_nvmlGpmMetricsGet_t,
        **FIELDS,
        **GPM,
    }
    shares: dict[int, Any] = {**GPM_OF_NUMBER, **(gpm or {})}
    values: dict[int, Any] = {
        74: 0,
        75: 0,
        185: 600_000,
        186: 650_500,
        269: 0,
        270: 0,
        271: 0,
        **(fields or {}),
    }

    def init() -> None:
        module.open += 1

    def shutdown() -> None:
        module.open -= 1

    def by_uuid(uuid: str) -> str:
        if uuid not in (UUID, "MIG-aaaa"):
            raise NVMLError("Not Found")
        return uuid

    def field_values(handle: Any, numbers: list[int]) -> list[Any]:
        answers = []
        for number in numbers:
            value = values[number]
            if isinstance(value, list):
                value = value.pop(0)
            code = NOT_SUPPORTED if value is None else 0
            answers.append(SimpleNamespace(nvmlReturn=code, valueType=3, value=SimpleNamespace(ullVal=value)))
        return answers

    def sample_alloc() -> Any:
        taken = module.calls.count("nvmlGpmSampleAlloc")
        module.samples.append(0x1000 * taken)
        return ctypes.cast(0x1000 * taken, binding.c_nvmlGpmSample_t)

    def sample_get(handle: Any, sample: Any) -> Any:
        assert address(sample) in module.samples
        return sample

    def metrics_get(request: Any) -> Any:
        if request.version != 1:
            raise NVMLError("Argument Version Mismatch")
        assert [address(request.sample1), address(request.sample2)] == module.samples  # in order, and not freed
        for metric in request.metrics[: request.numMetrics]:
            value = shares[metric.metricId]
            metric.nvmlReturn = NOT_SUPPORTED if value is None else 0
            metric.value = value or 0.0
        return request

    functions = {
        "nvmlInit": init,
        "nvmlShutdown": shutdown,
        "nvmlErrorString": lambda code: "Not Supported" if code == NOT_SUPPORTED else "?",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: UUID,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda handle: UUID,
        "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlSystemGetDriverVersion": lambda: b"580.95.05",
        "nvmlSystemGetCudaDriverVersion": lambda: 13020,
        "nvmlDeviceGetClockInfo": lambda handle, clock: {1: 1755, 2: 3201}[clock],
        "nvmlDeviceGetMaxClockInfo": lambda handle, clock: {1: 1980}[clock],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetPowerUsage": lambda handle: 640_000,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 5_000_000,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x4,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetComputeMode": lambda handle: 0,
        "nvmlDeviceGetMigMode": lambda handle: [0, 0],
        "nvmlGpmQueryDeviceSupport": lambda handle: SimpleNamespace(isSupportedDevice=1),
        "nvmlGpmSampleAlloc": sample_alloc,
        "nvmlGpmSampleGet": sample_get,
        "nvmlGpmMetricsGet": metrics_get,
        "nvmlGpmSampleFree": lambda sample: module.samples.remove(address(sample)),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=7, usedGpuMemory=123 << 20)],
        "nvmlDeviceGetFieldValues": field_values,
    }

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            module.calls.append(name)
            if name in failing:
                raise NVMLError("Not Supported")
            answer = (answers or {}).get(name, function)
            return answer(*arguments) if callable(answer) else answer

        return call

    for name, function in functions.items():
        if name not in missing:
            setattr(module, name, noted(name, function))
    for name, value in constants.items():
        if name not in missing:
            setattr(module, name, value)
    return module
