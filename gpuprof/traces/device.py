"""Which device a recording is of, as far as the header of its file says."""

from __future__ import annotations

from typing import Any

from gpuprof.hardware.facts import device_facts, recorded_gpu
from gpuprof.late import np
from gpuprof.traces.chrome import KERNEL, Recorded
from gpuprof.traces.steps import Window


def device_of(recorded: Recorded, window: Window, given: str | None) -> dict[str, Any]:
    """The facts of the device that the window's kernels ran on, of a CPU where the recording has nothing of a GPU.

    Args:
        recorded: the recording.
        window: what of it the run is of.
        given: the user's name for the device, in place of the header's.
    """
    if not len(recorded.device.start):
        return device_facts("cpu", name=given or "CPU", peak_remedy="give the peak of this CPU with --peak-tflops")
    names = [given] if given else device_names(recorded, window)
    if (several := len(_numbers(recorded, window))) > 1:
        remedy = f"the kernels ran on {several} GPUs: give the peak of all together with --peak-tflops"
        name = f"{several} GPUs ({' and '.join(names) or 'unknown'})"
        return device_facts("cuda", name=name, peak_remedy=remedy)
    entry: dict[str, Any] = next((e for e in recorded.header.get("devices", ()) if [e.get("name")] == names), {})
    capability = [entry.get("computeMajor"), entry.get("computeMinor")]
    return recorded_gpu(
        names,
        "trace",
        sm_count=entry.get("numSms"),
        memory_bytes=entry.get("totalGlobalMem"),
        compute_capability=capability if None not in capability else None,
    )


def device_names(recorded: Recorded, window: Window) -> list[str]:
    """Names of the devices that the window's work ran on, as far as the header has them.

    On ROCm the number that a kernel has is none of the header's, so where all have one name it is that.
    """
    known = {entry.get("id"): entry.get("name") or "" for entry in recorded.header.get("devices", ())}
    names = set(known.values()) - {""}
    if len(names) == 1:
        return sorted(names)
    return sorted({known[number] for number in _numbers(recorded, window) if known.get(number)})


def _numbers(recorded: Recorded, window: Window) -> list[int]:
    """Numbers of the devices that kernels ran on, or where there is no kernel copies, which reach others too."""
    of_device = recorded.device.device[window.device]
    kernels = recorded.device.category[window.device] == KERNEL
    return np.unique(of_device[kernels] if kernels.any() else of_device).tolist()
