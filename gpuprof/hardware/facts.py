"""What a run says of its device: the same keys for every device, whether it is at hand or somebody recorded it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuprof.hardware import peaks


def device_facts(kind: str, **known: Any) -> dict[str, Any]:
    """The facts of a device, None or empty where they do not apply or are not known.

    Args:
        kind: its type as torch names it.
        known: those that are.

    Returns:
        type, name, uuid, index, compute_capability ([major, minor]), sm_count, memory_bytes, driver,
        cuda (the newest that the driver runs), power_limit_w, max_sm_clock_mhz, cpu (name, cores, threads),
        peaks ({"datasheet": {dtype: FLOP/s}}, or empty), peak_source, flops_per_clock_per_sm,
        memory_bandwidth (bytes/s), peak_remedy (how to get a peak where none is known, else empty).
    """
    facts: dict[str, Any] = {
        "type": kind, "name": None, "uuid": None, "index": None, "compute_capability": None,
        "sm_count": None, "memory_bytes": None, "driver": None, "cuda": None, "power_limit_w": None,
        "max_sm_clock_mhz": None, "cpu": {}, "peaks": {}, "peak_source": None,
        "flops_per_clock_per_sm": {}, "memory_bandwidth": None, "peak_remedy": "",
    }  # fmt: skip
    return facts | known


def recorded_gpu(names: Sequence[str], what: str, **known: Any) -> dict[str, Any]:
    """The facts of a GPU that is not at hand, with its datasheet's where one name is known.

    Args:
        names: of the devices that a file names.
        what: the file, in a word.
        known: what else it says of the device.
    """
    if len(names) == 1:
        return device_facts("cuda", name=names[0], **known) | peaks.facts(names[0], known.get("sm_count"))
    why = f"the kernels ran on {' and '.join(names)}" if names else f"the {what} does not name its device"
    remedy = f"{why}: give {'' if names else '--device-name or '}--peak-tflops"
    return device_facts("cuda", name=" and ".join(names) or None, peak_remedy=remedy, **known)
