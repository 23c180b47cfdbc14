"""Readings from NVML, each of them optional: what a driver does not offer is noted by name, never raised.

Only queries: nothing here changes a setting of the GPU. Torch-free; pynvml is imported with the first device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from gpuprof.errors import GpuprofError


class Reading(NamedTuple):
    """How a quantity is read.

    Attributes:
        unit: unit of the value as we give it.
        names: NVML functions to try in order, or the one NVML field or GPM metric.
        argument: name of the constant that the function takes besides the device.
        scale: factor from NVML's unit to ours.
    """

    unit: str
    names: tuple[str, ...]
    argument: str | None = None
    scale: float = 1.0


FUNCTIONS = {
    "sm_clock": Reading("MHz", ("nvmlDeviceGetClockInfo",), "NVML_CLOCK_SM"),
    "memory_clock": Reading("MHz", ("nvmlDeviceGetClockInfo",), "NVML_CLOCK_MEM"),
    "max_sm_clock": Reading("MHz", ("nvmlDeviceGetMaxClockInfo",), "NVML_CLOCK_SM"),
    "temperature": Reading("C", ("nvmlDeviceGetTemperature",), "NVML_TEMPERATURE_GPU"),
    "power_limit": Reading("W", ("nvmlDeviceGetEnforcedPowerLimit",), scale=1e-3),
    # a 1 s average on Ampere and later except GA100, so only where the two power fields below are missing
    "power_usage": Reading("W", ("nvmlDeviceGetPowerUsage",), scale=1e-3),
    "energy": Reading("J", ("nvmlDeviceGetTotalEnergyConsumption",), scale=1e-3),
    "event_reasons": Reading(
        "mask", ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    ),
    "persistence_mode": Reading("mode", ("nvmlDeviceGetPersistenceMode",)),
    "compute_mode": Reading("mode", ("nvmlDeviceGetComputeMode",)),
}
"""Quantities that have a function of their own."""

FIELDS = {
    "power_instant": Reading("W", ("NVML_FI_DEV_POWER_INSTANT",), scale=1e-3),
    "power_average": Reading("W", ("NVML_FI_DEV_POWER_AVERAGE",), scale=1e-3),
    "power_policy_time": Reading("s", ("NVML_FI_DEV_PERF_POLICY_POWER",), scale=1e-9),
    "thermal_policy_time": Reading("s", ("NVML_FI_DEV_PERF_POLICY_THERMAL",), scale=1e-9),
    # These three changed number between releases of NVML (251 to 253, then 269 to 271; the old numbers got
    # another meaning), so a driver of another age than the binding may answer with something else. The two
    # above never moved; analysis.telemetry drops a time that grew faster than the clock.
    "sw_thermal_time": Reading("s", ("NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",), scale=1e-9),
    "hw_thermal_time": Reading("s", ("NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",), scale=1e-9),
    "hw_power_brake_time": Reading("s", ("NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",), scale=1e-9),
}
"""Quantities read together by nvmlDeviceGetFieldValues; the times are cumulative."""

GPM = {
    "gpm_sm_active": Reading("%", ("NVML_GPM_METRIC_SM_UTIL",)),
    "gpm_sm_occupancy": Reading("%", ("NVML_GPM_METRIC_SM_OCCUPANCY",)),
    "gpm_tensor_active": Reading("%", ("NVML_GPM_METRIC_ANY_TENSOR_UTIL",)),
    "gpm_dfma_active": Reading("%", ("NVML_GPM_METRIC_DFMA_TENSOR_UTIL",)),
    "gpm_hmma_active": Reading("%", ("NVML_GPM_METRIC_HMMA_TENSOR_UTIL",)),
    "gpm_imma_active": Reading("%", ("NVML_GPM_METRIC_IMMA_TENSOR_UTIL",)),
    "gpm_dram_active": Reading("%", ("NVML_GPM_METRIC_DRAM_BW_UTIL",)),
    "gpm_fp64_active": Reading("%", ("NVML_GPM_METRIC_FP64_UTIL",)),
    "gpm_fp32_active": Reading("%", ("NVML_GPM_METRIC_FP32_UTIL",)),
    "gpm_fp16_active": Reading("%", ("NVML_GPM_METRIC_FP16_UTIL",)),
}
"""Quantities of GPU performance monitoring (GPM), read together between two samples by `Nvml.activity`.

Means over the window and all SMs. ``tensor`` is any use of the tensor cores; ``dfma``, ``hmma`` and ``imma`` are their
instructions for float64, smaller floats and integers; ``fp64``, ``fp32`` and ``fp16`` are work outside them.
"""

GPM_WINDOW_S = 0.1
"""Least seconds between two GPM samples: they are refreshed that often (NVML's reference)."""

UNITS = {quantity: reading.unit for quantity, reading in {**FUNCTIONS, **FIELDS, **GPM}.items()}
"""Unit of every quantity."""

_NOT_AVAILABLE = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # NVML_VALUE_NOT_AVAILABLE, 32 and 64 bits
# by NVML_VALUE_TYPE_*
_MEMBERS = dict(enumerate(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")))


class Nvml:
    """One GPU as NVML sees it.

    Attributes:
        failures: why a call gave nothing, by the name of the NVML function or field.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self.failures: dict[str, str] = {}
        self._library = library
        self._handle = handle

    def read(self, quantity: str) -> float | None:
        """The quantity, one of `FUNCTIONS`, in its unit, or ``None``."""
        reading = FUNCTIONS[quantity]
        arguments = [] if reading.argument is None else [getattr(self._library, reading.argument, None)]
        value = self._call(reading.names, self._handle, *arguments)
        return None if value is None else value * reading.scale

    def read_fields(self, quantities: Iterable[str]) -> dict[str, float]:
        """Those of the quantities (of `FIELDS`) that the driver knows, in their units. One call for all."""
        numbers = self._numbers({quantity: FIELDS[quantity] for quantity in quantities})
        values: dict[str, float] = {}
        if not numbers:
            return values
        answers = self._call(("nvmlDeviceGetFieldValues",), self._handle, list(numbers.values()))
        for quantity, answer in zip(numbers, answers or (), strict=False):
            reading = FIELDS[quantity]
            name = reading.names[0]
            if answer.nvmlReturn != 0:
                self.failures[name] = self._error_text(answer.nvmlReturn)
                continue
            value = getattr(answer.value, _MEMBERS.get(answer.valueType, ""), None)
            if value is None or value in _NOT_AVAILABLE:
                self.failures[name] = "not available"
            else:
                values[quantity] = value * reading.scale
        return values

    @contextmanager
    def activity(self) -> Iterator[dict[str, float]]:
        """How busy the parts of the GPU are while the body runs, by GPM. Offered from Hopper on.

        Yields:
            The quantities of `GPM` that the driver knows: filled in when the body has ended, also by an exception.
            Nothing where the body takes less than `GPM_WINDOW_S`; `failures` says so, as of any call that fails.
        """
        values: dict[str, float] = {}
        with ExitStack() as samples:
            offered = self._gpm_support()
            if offered is False:
                self.failures["nvmlGpmQueryDeviceSupport"] = "not offered by this GPU"
            first = self._gpm_sample(samples) if offered else None
            begin = time.perf_counter()
            try:
                yield values
            finally:
                seconds = time.perf_counter() - begin
                if first is not None and seconds < GPM_WINDOW_S:
                    reason = f"not called: a window of {seconds:.3f} s is shorter than {GPM_WINDOW_S} s"
                    self.failures["nvmlGpmMetricsGet"] = reason
                elif first is not None and (last := self._gpm_sample(samples)) is not None:
                    values.update(self._gpm_between(first, last))

    def facts(self) -> dict[str, Any]:
        """What does not change while we measure; a fact that cannot be read is ``None``.

        Returns:
            name, uuid, driver, cuda (the newest CUDA the driver runs), power_limit_w, max_sm_clock_mhz, mig,
            persistence_mode, compute_mode, gpm (whether GPU performance monitoring is offered).
        """
        cuda = self._call(("nvmlSystemGetCudaDriverVersion",))
        mig = self._call(("nvmlDeviceGetMigMode",), self._handle)
        return {
            "name": self._text("nvmlDeviceGetName", self._handle),
            "uuid": self._text("nvmlDeviceGetUUID", self._handle),
            "driver": self._text("nvmlSystemGetDriverVersion"),
            "cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            "power_limit_w": self.read("power_limit"),
            "max_sm_clock_mhz": self.read("max_sm_clock"),
            "mig": None if mig is None else bool(mig[0]),
            "persistence_mode": self.read("persistence_mode"),
            "compute_mode": self.read("compute_mode"),
            "gpm": self._gpm_support(),
        }

    def process_memory(self, pid: int | None = None) -> int | None:
        """Bytes that a process (by default this one) holds on the GPU, its context included, or ``None``.

        In a container NVML may not know the process, or may know it under another id.
        """
        name = "nvmlDeviceGetComputeRunningProcesses"
        processes = self._call((name,), self._handle)
        if processes is None:
            return None
        wanted = os.getpid() if pid is None else pid
        used = next((process.usedGpuMemory for process in processes if process.pid == wanted), None)
        if used is None or used in _NOT_AVAILABLE:
            self.failures[name] = "not available for this process"
            return None
        return int(used)

    def _numbers(self, readings: dict[str, Reading]) -> dict[str, int]:
        """NVML's number of each field or metric that this pynvml knows."""
        numbers = {}
        for quantity, reading in readings.items():
            number = getattr(self._library, reading.names[0], None)
            if number is None:
                self.failures[reading.names[0]] = "unknown to this pynvml"
            else:
                numbers[quantity] = number
        return numbers

    def _gpm_support(self) -> bool | None:
        support = self._call(("nvmlGpmQueryDeviceSupport",), self._handle)
        return None if support is None else bool(support.isSupportedDevice)

    def _gpm_sample(self, samples: ExitStack) -> Any:
        """The counters as they stand; freed with the stack."""
        sample = self._call(("nvmlGpmSampleAlloc",))
        if sample is None:
            return None
        samples.callback(self._call, ("nvmlGpmSampleFree",), sample)
        return self._call(("nvmlGpmSampleGet",), self._handle, sample)

    def _gpm_between(self, first: Any, last: Any) -> dict[str, float]:
        """Quantities of `GPM` between two samples; a share that is none (NaN, above 100 %) is a failure."""
        request = self._call(("c_nvmlGpmMetricsGet_t",))
        if request is None:
            return {}
        numbers = self._numbers(GPM)
        request.version = self._library.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = first, last
        request.numMetrics = len(numbers)
        for index, number in enumerate(numbers.values()):
            request.metrics[index].metricId = number
        answer = self._call(("nvmlGpmMetricsGet",), request)
        values: dict[str, float] = {}
        for index, quantity in enumerate(numbers if answer is not None else ()):
            name, metric = GPM[quantity].names[0], answer.metrics[index]
            if metric.nvmlReturn != 0:
                self.failures[name] = self._error_text(metric.nvmlReturn)
            elif not 0 <= metric.value <= 100:
                self.failures[name] = f"answered {metric.value:g} %"
            else:
                values[quantity] = metric.value
        return values

    def _call(self, names: tuple[str, ...], *arguments: Any) -> Any:
        for name in names:
            try:
                value = getattr(self._library, name)(*arguments)
            except AttributeError:
                self.failures[name] = "unknown to this pynvml"
            except Exception as error:  # a driver may fail in any way, and no reading is worth the run
                self.failures[name] = str(error) or type(error).__name__
            else:
                if not isinstance(value, int) or value not in _NOT_AVAILABLE:
                    return value
                self.failures[name] = "not available"
        return None

    def _text(self, name: str, *arguments: Any) -> str | None:
        value = self._call((name,), *arguments)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def _error_text(self, code: int) -> str:
        try:
            return str(self._library.nvmlErrorString(code))
        except Exception:
            return f"NVML error {code}"


@contextmanager
def open_device(device: str | int) -> Iterator[Nvml]:
    """Open a GPU for reading, and close NVML at the end.

    Args:
        device: UUID, with or without ``GPU-``, or NVML's own index. A torch device has to be opened by UUID:
            its index depends on CUDA_VISIBLE_DEVICES, NVML's does not. A MIG slice opens the GPU it belongs
            to, whose clocks and power it shares.

    Raises:
        GpuprofError: NVML or the device cannot be opened.
    """
    with _library() as library:
        try:
            handle = (
                library.nvmlDeviceGetHandleByIndex(device) if isinstance(device, int) else _by_uuid(library, device)
            )
        except Exception as error:
            raise GpuprofError(f"NVML does not know the GPU {device} ({error}): check nvidia-smi -L") from error
        yield Nvml(library, handle)


def devices() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, the same that torch gives; none without NVML."""
    try:
        with _library() as library:
            handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
            return [str(library.nvmlDeviceGetName(handle)) for handle in handles]
    except Exception:  # no driver, no library, no permission: all the same to who asks for names
        return []


@contextmanager
def _library() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError as error:
        raise GpuprofError("NVML needs the package nvidia-ml-py: pip install nvidia-ml-py") from error
    try:
        pynvml.nvmlInit()
    except Exception as error:
        raise GpuprofError(f"NVML needs an NVIDIA GPU and its driver ({error})") from error
    try:
        yield pynvml
    finally:
        with suppress(Exception):  # nothing is lost, and the caller's own error must not be hidden
            pynvml.nvmlShutdown()


def _by_uuid(library: Any, uuid: str) -> Any:
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    try:
        return library.nvmlDeviceGetHandleByUUID(f"GPU-{bare}")
    except library.NVMLError:  # torch gives a MIG slice the UUID of the slice
        mig_slice = library.nvmlDeviceGetHandleByUUID(f"MIG-{bare}")
        return library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig_slice)
