"""Readings from NVML, each of them optional: what a driver does not offer is noted by name, never raised.

Only queries: nothing here changes a setting of the GPU. Torch-free; pynvml is imported with the first device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from gpuprof.errors import GpuprofError


class Reading(NamedTuple):
    """How a quantity is read.

    Attributes:
        unit: unit of the value as we give it.
        names: NVML functions to try in order, or the one NVML field.
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

UNITS = {quantity: reading.unit for quantity, reading in {**FUNCTIONS, **FIELDS}.items()}
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
        numbers: dict[str, int] = {}
        for quantity in quantities:
            name = FIELDS[quantity].names[0]
            number = getattr(self._library, name, None)
            if number is None:
                self.failures[name] = "unknown to this pynvml"
            else:
                numbers[quantity] = number
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

    def facts(self) -> dict[str, Any]:
        """What does not change while we measure; a fact that cannot be read is ``None``.

        Returns:
            name, uuid, driver, cuda (the newest CUDA the driver runs), power_limit_w, max_sm_clock_mhz, mig,
            persistence_mode, compute_mode, gpm (whether GPU performance monitoring is offered).
        """
        cuda = self._call(("nvmlSystemGetCudaDriverVersion",))
        mig = self._call(("nvmlDeviceGetMigMode",), self._handle)
        gpm = self._call(("nvmlGpmQueryDeviceSupport",), self._handle)
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
            "gpm": None if gpm is None else bool(gpm.isSupportedDevice),
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
