"""What this machine can measure, and what to do about what it cannot. Looks only; changes no setting."""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gpuprof.errors import GpuprofError
from gpuprof.hardware import counters, kineto, ncu, nvml

RESET_PEAK = Path("/proc/self/clear_refs")

PRIVATE = (
    "torch.autograd._get_sequence_nr",
    "torch.autograd._engine_run_backward",
    "torch._C._current_autograd_node",
    "torch._C._current_graph_task_id",
    "torch._C._dispatch_has_kernel_for_dispatch_key",
    "torch._C._profiler._ExperimentalConfig",
    "torch._C._profiler._RecordFunctionFast",
    "torch._C._dynamo.eval_frame._debug_get_cache_entry_list",
    "torch._C._dynamo.eval_frame.reset_code",
    "torch._dynamo.convert_frame.CatchErrorsWrapper",
    "torch._dynamo.eval_frame._callback_from_stance",
    "torch._dynamo.eval_frame.innermost_backend",
    "torch._dynamo.eval_frame.skip_code",
    "torch._dynamo.guards.DeletedGuardManagerWrapper",
    "torch.overrides._pop_mode_temporarily",
    "torch.utils._python_dispatch._pop_mode",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.utils.checkpoint.CheckpointFunction",
    "torch.utils.checkpoint._checkpoint_without_reentrant_generator",
)
"""Attributes outside torch's promises that tell whose an operator is."""

_ESSENTIAL = ("torch", "counting", "timing")
_OTHER_TORCH = "install a torch that gpuprof was tested with"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: software, device or passes.
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
    return [*findings, *_software(torch), *_devices(torch), *_passes(torch)]


def require_internals() -> None:
    """Refuse a torch that lacks what ownership leans on, rather than fail as if the model had.

    Raises:
        GpuprofError: it lacks something.
    """
    missing = [path for path in PRIVATE if not _exists(path)]
    if missing:
        version = _version("torch")
        raise GpuprofError(f"torch {version} lacks {', '.join(missing)}: {_OTHER_TORCH} (2.11 to 2.13)")


def works(findings: list[Finding]) -> bool:
    """Whether a step can be counted and timed at all: everything else is a loss, not an end."""
    usable = {finding.name for finding in findings if finding.ok}
    return all(name in usable for name in _ESSENTIAL)


def _software(torch: Any) -> Iterator[Finding]:
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU build"
    yield Finding("software", "torch", True, f"{torch.__version__} ({build})")
    version = _version("transformers")
    yield _finding("software", "transformers", bool(version), version or "missing", "pip install transformers")
    missing = [path for path in PRIVATE if not _exists(path)]
    detail = f"missing: {', '.join(missing)}" if missing else f"all {len(PRIVATE)} present"
    yield _finding("software", "torch internals", not missing, detail, _OTHER_TORCH)


def _devices(torch: Any) -> Iterator[Finding]:
    from gpuprof.hardware.device import describe

    cpu = describe(torch.device("cpu"))["cpu"]
    detail = f"{cpu['name']}, {cpu['cores'] or '?'} cores, {cpu['threads']} threads"
    yield Finding("device", "cpu", True, detail)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _cuda_device(describe(torch.device("cuda", index)), f"cuda:{index}")
    elif torch.version.cuda or torch.version.hip:
        yield Finding("device", "cuda", False, "torch sees no GPU", "check the driver with nvidia-smi")
    else:
        remedy = "on a GPU machine install a CUDA build of torch"
        yield Finding("device", "cuda", False, "torch is a CPU build", remedy)
    yield from _nsight_compute(torch)


def _cuda_device(facts: dict[str, Any], name: str) -> Iterator[Finding]:
    size, driver = f"{facts['memory_bytes'] / 2**30:.1f} GiB", facts["driver"] or "unknown"
    detail = f"{facts['name']}, {facts['sm_count']} SMs, {size}, driver {driver}"
    yield Finding("device", name, True, detail)
    rates = facts["peaks"].get("datasheet", {})
    detail = ", ".join(f"{dtype} {rate / 1e12:g}" for dtype, rate in rates.items())
    detail = f"dense TFLOP/s: {detail}" if rates else "not in the table"
    yield _finding("device", f"{name} peak", bool(rates), detail, facts["peak_remedy"])
    failures, detail = _nvml_calls(facts["uuid"])
    remedy = "telemetry goes without them; a newer driver may answer"
    yield _finding("device", f"{name} NVML", not failures, detail, remedy)


def _nvml_calls(uuid: str) -> tuple[dict[str, str], str]:
    """Every NVML query once: those that failed, and a sentence."""
    try:
        with nvml.open_device(uuid) as gpu:
            values = [gpu.read(quantity) for quantity in nvml.FUNCTIONS]
            answered = sum(value is not None for value in values) + len(gpu.read_fields(nvml.FIELDS))
            gpm = gpu.facts()["gpm"]
            if gpm:
                with gpu.activity():
                    time.sleep(1.5 * nvml.GPM_WINDOW_S)
            failures = dict(gpu.failures)
    except GpuprofError as error:
        return {"nvmlInit": str(error)}, str(error)
    failed = "".join(f"; no {name} ({reason})" for name, reason in failures.items())
    asked = len(nvml.FUNCTIONS) + len(nvml.FIELDS)
    return failures, f"{answered} of {asked} readings; GPM {'offered' if gpm else 'not offered'}{failed}"


def _passes(torch: Any) -> Iterator[Finding]:
    cuda = torch.cuda.is_available()
    if all(_exists(path) for path in PRIVATE):
        yield Finding("passes", "counting", True, "every operator by its rule")
    else:
        yield Finding("passes", "counting", False, "needs the torch internals above", _OTHER_TORCH)
    yield Finding("passes", "timing", True, "CUDA events" if cuda else "perf_counter; no GPU to time")
    yield _trace(torch, cuda)
    yield _memory(cuda)
    yield _telemetry(torch, cuda)


def _trace(torch: Any, cuda: bool) -> Finding:
    """Whether a tiny profile records what ran: kernels on CUDA, operators on a CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    try:
        ones = torch.ones(64, 64, device="cuda" if cuda else "cpu")
        with kineto.quiet(), torch.profiler.profile(activities=activities) as profile:
            ones @ ones
            if cuda:
                torch.cuda.synchronize()
        events = profile.profiler.kineto_results.events()
    except Exception as error:  # whatever breaks here breaks the trace pass
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Finding("passes", "trace", False, reason, _OTHER_TORCH)
    if cuda:
        kernels = sum(event.device_type() == torch.autograd.DeviceType.CUDA for event in events)
        remedy = "another profiler may hold CUPTI: end it, and unset CUDA_INJECTION64_PATH"
        return _finding("passes", "trace", kernels > 0, f"self test recorded {kernels} kernels", remedy)
    recorded = any(event.name() == "aten::mm" for event in events)
    detail = f"self test recorded {'operators; no GPU kernels' if recorded else 'nothing'}"
    return _finding("passes", "trace", recorded, detail, _OTHER_TORCH)


def _memory(cuda: bool) -> Finding:
    if cuda:
        return Finding("passes", "memory", True, "allocator statistics")
    try:
        RESET_PEAK.write_text("5")  # resets this process's own VmHWM, see proc_pid_clear_refs(5)
    except OSError as error:
        detail = f"the process's high-water mark cannot be reset ({error.strerror})"
        return Finding("passes", "memory", False, detail, "run under Linux with /proc writable")
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


def _nsight_compute(torch: Any) -> Iterator[Finding]:
    """Whether Nsight Compute is here, may read hardware counters, and which this chip has."""
    name = "nsight compute"
    if not torch.cuda.is_available():
        yield Finding("device", name, False, "needs an NVIDIA GPU")
        return
    try:
        path = ncu.find()
        detail = f"Nsight Compute {ncu.version(path)}"
    except ncu.UnavailableError as error:
        yield Finding("device", name, False, str(error), error.remedy)
        return
    if ncu.admin_only() is False:
        yield Finding("device", name, True, f"{detail}, open to all users")
    else:
        allowed = ncu.privileged()
        whose = "for administrators, and this process is one" if allowed else "but counters are for administrators"
        yield _finding("device", name, allowed, f"{detail}, {whose}", ncu.PERMISSION)
    major, minor = torch.cuda.get_device_capability()
    found = counters.columns_of(ncu.metrics_of(path, f"{major}.{minor}"))
    have = [dtype for dtype, column in counters.TENSOR_COLUMNS.items() if column in found]
    detail = f"FLOPs of tensor cores: {', '.join(have) or 'none known'}"
    if all(column in found for column in counters.SCALAR_COLUMNS.values()):
        detail += "; outside them: all"
    yield _finding("device", "hardware counters", bool(have), detail, "a newer Nsight Compute may know this chip")


def _finding(group: str, name: str, ok: bool, detail: str, remedy: str) -> Finding:
    return Finding(group, name, ok, detail, "" if ok else remedy)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _exists(path: str) -> bool:
    module, _, attribute = path.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)
