"""What ran and on what, each in a line: the workload, its job, the device and the parameters."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpuprof import units
from gpuprof.record import Record


def workload_line(run: Record) -> str:
    """The workload with every option that it was given."""
    about = run.workload
    size = [f"batch {about['batch_size']}"] if about.get("batch_size") else []
    for key, words in (
        ("seq_len", "sequence {}"), ("prompt_len", "prompt {}"), ("new_tokens", "{} new tokens"),
        ("image_crops", "{} image crops"),
    ):  # fmt: skip
        if about.get(key):
            size.append(words.format(about[key]))
    parts = [about["name"], about.get("architecture"), about["mode"], ", ".join(size), about.get("dtype")]
    parts += [f"{about['attention']} attention" if about.get("attention") else None]
    parts += ["static cache" if about.get("cache") == "static" else None]
    parts += [f"weights {about['weights']}" if about.get("weights") else None]
    if about.get("ranks"):
        parts.append(f"rank {run.ranks['rank'].min()} of {about['ranks']} imported")
    if "rank" in about:
        parts.append(run.of_job)
    for key in ("checkpointing", "optimizer"):
        if about.get(key, "none") not in ("none", None):
            parts.append(f"{key} {about[key]}")
    if about.get("freeze"):
        parts.append(f"frozen {' '.join(about['freeze'])}")
    if about.get("mode") == "train" and about.get("loss"):
        parts.append(f"loss: {about['loss']}")
    return " · ".join(part for part in parts if part)


_SHARDED = {
    "ddp": "parameters whole on every rank (DDP)", "fsdp": "parameters sharded (FSDP)", "tp": "tensor parallel",
    "pp": "a pipeline of stages",
}  # fmt: skip


def job_line(run: Record) -> str:
    """How a job lies on its processes, and what each has of it."""
    about = run.workload
    mesh = ", ".join(f"{name} {size}" for name, size in (about.get("mesh") or {}).items())
    parts = [units.number(about["world"], "rank"), f"mesh {mesh}" if mesh else "no mesh is known"]
    parts += [_SHARDED[how] for how in about.get("parallel") or () if how in _SHARDED]
    if run.is_job and (hosts := {one["environment"].get("host") for one in run.device["ranks"]} - {None}):
        parts.append(units.number(len(hosts), "host"))
    return " · ".join(parts)


def device_line(run: Record) -> str:
    """The device, and the versions and the date of the run."""
    device, software = run.device, run.environment
    name = device.get("name") or ("unknown GPU" if run.recorded else device.get("type"))
    if run.is_job:
        names = Counter(str(one["device"].get("name") or one["device"].get("type")) for one in device["ranks"])
        name = ", ".join(f"{count} x {one}" for one, count in names.items())
    threads = (
        units.number(software["threads"], "thread") if device.get("type") == "cpu" and software.get("threads") else None
    )
    driver = f"driver {device['driver']}" if device.get("driver") else None
    versions = ", ".join(f"{name} {software[name]}" for name in ("torch", "transformers") if software.get(name))
    return " · ".join(part for part in (name, threads, driver, versions, software.get("date")) if part)


def parameters_line(run: Record, sums: dict[str, Any]) -> str:
    """How many parameters the model has, and how many of them are trained."""
    text = f"{sums['params']:,}"
    frozen = sums["params"] - sums["trainable_params"]
    text += f" ({sums['trainable_params']:,} trainable)" if frozen else ""
    about = run.workload
    of_stages = "pp" in (about.get("parallel") or ()) and "pp" not in about.get("groups", {})
    if run.is_job and (of_stages or not about.get("mesh")):  # experts, or shards that are no DTensors
        text += ", module by module of the rank that holds most: which of them ranks share is not known"
    return text
