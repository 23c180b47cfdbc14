"""What this machine can measure, and what to do about what it cannot. Looks only; changes no setting."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.hardware import nvml

DRIVER_PARAMS = Path("/proc/driver/nvidia/params")
OWN_STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")

PRIVATE = (
    "torch.autograd._get_sequence_nr",
    "torch._C._current_autograd_node",
    "torch._C._current_graph_task_id",
)
"""Attributes outside torch's promises that tell whose an operator is."""

OPTIONAL = {"matplotlib": "pictures", "sqlalchemy": "history in a database other than a SQLite file"}

_ESSENTIAL = ("torch", "counting", "timing")
_CAP_SYS_ADMIN, _CAP_PERFMON = 21, 38  # bits, linux/capability.h
_PERMISSION_REMEDY = (
    "run as root with CAP_SYS_ADMIN (or CAP_PERFMON from driver R565), in a container with "
    "--cap-add=SYS_ADMIN, or ask the administrator for "
    "'options nvidia NVreg_RestrictProfilingToAdminUsers=0' in /etc/modprobe.d"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: software, device, passes or optional.
        name: what it is.
        ok: whether it can be used.
        detail: what was found, or why it cannot be used.
        remedy: what to do about it, where there is something.
    """

    group: str
    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that profiling leans on, from Python to hardware counters. Takes a few seconds."""
    findings = [Finding("software", "python", True, platform.python_version())]
    try:
        import torch
    except (ImportError, OSError) as error:
        return [*findings, Finding("software", "torch", False, str(error), "pip install torch")]
    return [*findings, *_software(torch), *_devices(torch), *_passes(torch), *_optional()]


def works(findings: list[Finding]) -> bool:
    """Whether a step can be counted and timed at all: everything else is a loss, not an end."""
    usable = {finding.name for finding in findings if finding.ok}
    return all(name in usable for name in _ESSENTIAL)


def _software(torch: Any) -> Iterator[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if torch.version.cuda is None and torch.version.hip is None:
        build = "CPU build"
    yield Finding("software", "torch", True, f"{torch.__version__} ({build})")
    version = _version("transformers")
    yield Finding(
        "software",
        "transformers",
        version is not None,
        version or "missing",
        "" if version else "pip install transformers",
    )
    missing = [path for path in PRIVATE if not _exists(path)]
    detail = f"missing: {', '.join(missing)}" if missing else f"all {len(PRIVATE)} present"
    yield Finding(
        "software",
        "torch internals",
        not missing,
        detail,
        "install a torch that gpuprof was tested with" if missing else "",
    )


def _devices(torch: Any) -> Iterator[Finding]:
    from gpuprof.hardware.device import describe

    cpu = describe(torch.device("cpu"))["cpu"]
    yield Finding(
        "device", "cpu", True, f"{cpu['name']}, {cpu['cores'] or '?'} cores, {cpu['threads']} threads"
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        remedy = (
            "check the driver with nvidia-smi" if built else "on a GPU machine install a CUDA build of torch"
        )
        yield Finding(
            "device", "cuda", False, "torch sees no GPU" if built else "torch is a CPU build", remedy
        )
        return
    for index in range(torch.cuda.device_count()):
        yield from _cuda_device(describe(torch.device("cuda", index)), f"cuda:{index}")


def _cuda_device(facts: dict[str, Any], name: str) -> Iterator[Finding]:
    driver = facts["driver"] or "unknown"
    yield Finding(
        "device", name, True,
        f"{facts['name']}, {facts['sm_count']} SMs, {facts['memory_bytes'] / 2**30:.1f} GiB, driver {driver}",
    )  # fmt: skip
    peak = facts["peaks"].get("datasheet", {}).get("bfloat16") or facts["peaks"].get("datasheet", {}).get(
        "float16"
    )
    detail = (
        f"{peak / 1e12:g} TFLOP/s dense 16-bit ({facts['peak_source'].split(':')[0]})"
        if peak
        else "not in the table"
    )
    yield Finding("device", f"{name} peak", peak is not None, detail, facts["peak_remedy"])
    failures, detail = _nvml_calls(facts["uuid"])
    remedy = "telemetry goes without them; a newer driver may answer" if failures else ""
    yield Finding("device", f"{name} NVML", not failures, detail, remedy)


def _nvml_calls(uuid: str) -> tuple[dict[str, str], str]:
    """Every NVML query once: those that failed, and a sentence."""
    try:
        with nvml.open_device(uuid) as gpu:
            answers = {quantity: gpu.read(quantity) for quantity in nvml.FUNCTIONS} | gpu.read_fields(
                nvml.FIELDS
            )
            gpm = gpu.facts()["gpm"]
            failures = dict(gpu.failures)
    except GpuprofError as error:
        return {"nvmlInit": str(error)}, str(error)
    answered = sum(value is not None for value in answers.values())
    detail = f"{answered} of {len(nvml.UNITS)} readings; GPM {'offered' if gpm else 'not offered'}"
    if failures:
        detail += "; failed: " + ", ".join(f"{name} ({reason})" for name, reason in failures.items())
    return failures, detail


def _passes(torch: Any) -> Iterator[Finding]:
    cuda = torch.cuda.is_available()
    internals = all(_exists(path) for path in PRIVATE)
    yield Finding(
        "passes",
        "counting",
        internals,
        "every operator by its rule" if internals else "needs the torch internals above",
    )
    yield Finding("passes", "timing", True, "CUDA events" if cuda else "perf_counter; no GPU to time")
    yield _trace(torch, cuda)
    yield _memory(cuda)
    yield _telemetry(torch, cuda)
    yield _counters(cuda)


def _trace(torch: Any, cuda: bool) -> Finding:
    """Whether a tiny profile records what ran: kernels on CUDA, operators on a CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    try:
        ones = torch.ones(64, 64, device="cuda" if cuda else "cpu")
        with torch.profiler.profile(activities=activities) as profile:
            ones @ ones
            if cuda:
                torch.cuda.synchronize()
        events = profile.profiler.kineto_results.events()
    except Exception as error:  # whatever breaks here breaks the trace pass
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Finding("passes", "trace", False, reason, "install a torch that gpuprof was tested with")
    if cuda:
        kernels = sum(event.device_type() == torch.autograd.DeviceType.CUDA for event in events)
        remedy = "" if kernels else "another profiler may hold CUPTI: end it, and unset CUDA_INJECTION64_PATH"
        return Finding("passes", "trace", kernels > 0, f"self test recorded {kernels} kernels", remedy)
    recorded = any(event.name() == "aten::mm" for event in events)
    return Finding(
        "passes",
        "trace",
        recorded,
        f"self test recorded {'operators' if recorded else 'nothing'}; no GPU kernels",
    )


def _memory(cuda: bool) -> Finding:
    if cuda:
        return Finding("passes", "memory", True, "allocator statistics")
    try:
        RESET_PEAK.write_text("5")  # resets this process's own VmHWM, see proc_pid_clear_refs(5)
    except OSError as error:
        detail = f"process memory; the high-water mark cannot be reset ({error.strerror})"
        return Finding(
            "passes",
            "memory",
            False,
            detail,
            "peaks are of the whole process: run under Linux with /proc writable",
        )
    return Finding("passes", "memory", True, "process memory, high-water mark reset before the step")


def _telemetry(torch: Any, cuda: bool) -> Finding:
    if not cuda:
        return Finding("passes", "telemetry", False, "NVML needs an NVIDIA GPU")
    from gpuprof.hardware.device import uuid_of

    try:
        with nvml.open_device(uuid_of(torch.device("cuda"))):
            return Finding("passes", "telemetry", True, "NVML opened by UUID")
    except GpuprofError as error:
        return Finding("passes", "telemetry", False, str(error), "clocks, power and energy will be missing")


def _counters(cuda: bool) -> Finding:
    """Whether Nsight Compute is here and may read hardware counters."""
    path = shutil.which("ncu")
    if path is None:
        remedy = "install Nsight Compute (it comes with the CUDA toolkit) and put ncu on PATH" if cuda else ""
        return Finding(
            "passes", "counters", False, "no ncu on PATH" + ("" if cuda else ", and no NVIDIA GPU"), remedy
        )
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
        version = re.search(r"Version (\S+)", run.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("passes", "counters", False, f"ncu does not run ({error})", "reinstall Nsight Compute")
    detail = f"Nsight Compute {version.group(1) if version else 'of unknown version'}"
    if not cuda:
        return Finding("passes", "counters", False, f"{detail}, but no NVIDIA GPU")
    if _admin_only() and not _privileged():
        return Finding(
            "passes", "counters", False, f"{detail}, but counters are for administrators", _PERMISSION_REMEDY
        )
    return Finding(
        "passes", "counters", True, f"{detail}, {'privileged' if _admin_only() else 'open to all users'}"
    )


def _admin_only() -> bool:
    """Whether the driver keeps counters for administrators; so assumed where it does not say."""
    try:
        setting = re.search(r"^RmProfilingAdminOnly:\s*(\d)", DRIVER_PARAMS.read_text(), re.MULTILINE)
    except OSError:
        return True
    return setting is None or setting.group(1) != "0"


def _privileged() -> bool:
    try:
        effective = re.search(r"^CapEff:\s*([0-9a-f]+)", OWN_STATUS.read_text(), re.MULTILINE)
    except OSError:
        return False
    bits = int(effective.group(1), 16) if effective else 0
    return bool(bits >> _CAP_SYS_ADMIN & 1 or bits >> _CAP_PERFMON & 1)


def _optional() -> Iterator[Finding]:
    for package, use in OPTIONAL.items():
        version = _version(package)
        yield Finding(
            "optional",
            package,
            version is not None,
            f"{version or 'not installed'}: {use}",
            "" if version else f"pip install {package}",
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _exists(path: str) -> bool:
    module, _, attribute = path.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)
