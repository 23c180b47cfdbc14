"""Which device a run is on, what is known of it, and in what environment: JSON-ready values."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml, peaks
from gpuprof.hardware.facts import device_facts


def describe(device: torch.device) -> dict[str, Any]:
    """What the device is and what its datasheet promises.

    Args:
        device: a CUDA, CPU or meta device; CUDA without an index is the current one.

    Returns:
        Its `gpuprof.hardware.facts.device_facts`.

    Raises:
        GpuprofError: there is no such device.
    """
    facts = device_facts(device.type, cpu=_cpu())
    if device.type == "cuda":
        return facts | _cuda(device)
    if device.type == "cpu":
        remedy = "a CPU has no datasheet peak here: 'gpuprof profile' measures its matmul ceiling"
        return facts | {"name": facts["cpu"]["name"], "memory_bytes": _main_memory(), "peak_remedy": remedy}
    remedy = f"device '{device.type}' has no known peak: give one with --peak-tflops"
    return facts | {"name": f"{device.type} device", "index": device.index, "peak_remedy": remedy}


def uuid_of(device: torch.device) -> str:
    """UUID of a CUDA device as torch knows it, the one safe key into NVML."""
    return str(torch.cuda.get_device_properties(device).uuid)


_CUBLAS = ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12")  # packages that bring it


def environment() -> dict[str, Any]:
    """Versions, settings that change speed or precision, and the date. No host or user names."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "gpuprof": _version("gpuprof"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cublas": next(filter(None, map(_version, _CUBLAS)), None),
        "cudnn": cudnn.version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "float32_matmul_precision": _setting(torch.get_float32_matmul_precision),
        "allow_tf32_matmul": _setting(lambda: matmul.allow_tf32, lambda: matmul.fp32_precision == "tf32"),
        "allow_tf32_cudnn": _setting(lambda: cudnn.allow_tf32),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cuda(device: torch.device) -> dict[str, Any]:
    try:
        index = torch.cuda.current_device() if device.index is None else device.index
        properties = torch.cuda.get_device_properties(index)
    except (RuntimeError, AssertionError) as error:  # a CPU build asserts
        reason = str(error).splitlines()[0]
        raise GpuprofError(f"no CUDA device {device}: {reason}; see 'gpuprof doctor'") from error
    name, sm_count = properties.name, properties.multi_processor_count
    facts = {
        "name": name,
        "uuid": str(properties.uuid),
        "index": index,
        "compute_capability": [properties.major, properties.minor],
        "sm_count": sm_count,
        "memory_bytes": properties.total_memory,
    }
    try:
        with nvml.open_device(str(properties.uuid)) as gpu:
            known = gpu.facts()
        facts |= {key: known[key] for key in ("driver", "cuda", "power_limit_w", "max_sm_clock_mhz")}
    except GpuprofError:
        pass  # telemetry says why; the description just has less in it
    return facts | peaks.facts(name, sm_count)


def _cpu() -> dict[str, Any]:
    """Name, cores and hardware threads that this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    packages = re.findall(r"^physical id\s*:\s*(\d+)$", text, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", text, re.MULTILINE)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name.group(1).strip() if name else platform.processor() or platform.machine(),
        "cores": len(set(zip(packages, cores, strict=False))) or None,
        "threads": usable,
    }


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _setting(*readers: Callable[[], Any]) -> Any:
    """The first setting that can be read: torch refuses the old names once the new ones were used."""
    for read in readers:
        try:
            return read()
        except (RuntimeError, AttributeError):
            continue
    return None
