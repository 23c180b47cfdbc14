"""A GPU of make-believe, on which `gpu_suite.py --rehearse` runs every check's code path without one.

The device is replaced at the lowest seam: tensors that are asked for on CUDA are made on the CPU and say that they are
on CUDA; torch.cuda, NVML, Kineto's GPU events and Nsight Compute have stand-ins; models keep their architecture and
lose their width. Nothing that comes of it is a measurement. What a rehearsal shows is that no check dies of a typo, a
wrong argument, a missing file or package: the verdicts of the checks are not asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "NVIDIA H100 80GB HBM3"
ABSENT = ("sqlalchemy", "plotly")
"""Packages that the image of a GPU node does not have."""

_NARROW = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "image_token_index": 500, "video_token_index": 501,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def install(folder: Path) -> None:
    """Put everything in the GPU's place, in this process and its forks.

    Args:
        folder: for what has to be a file: narrow presets, and an ``ncu`` that is put on PATH.
    """
    sys.path[:0] = [str(ROOT / "tests" / "hardware"), str(ROOT / "scripts"), str(ROOT)]
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]  # None: it cannot be imported
    import fake_nvml

    sys.modules["pynvml"] = fake_nvml.pynvml()
    _narrow_presets(folder)
    _cuda(fake_nvml.UUID)
    _kineto()
    _ncu(folder)
    _on_the_host().__enter__()


def shorten(checks: Any) -> None:
    """Make the checks as brief as a CPU needs them."""
    import study_backward

    from gpuprof.hardware import ceilings

    ceilings._CUDA_SHAPES, ceilings._WARM_SHAPE = ((128, 128, 128),), (128, 128, 128)
    ceilings._FLUSH_BYTES, ceilings._COPY_BYTES = 1 << 20, (1 << 20,)
    checks.CEILING_S = 0.1
    checks.TESTS += ["--deselect", "tests/test_gpu.py::test_a_busy_step_takes_as_long_as_its_kernels"]
    checks.REFERENCE |= {"image_crops": 2, "prompt_len": 1600}
    checks.METERED |= {"seq_len": 32}
    checks.METER_STEPS, checks.METER_ROUNDS = 2, 8
    checks.GENERATION |= {"prompt_len": 32, "new_tokens": 4}
    for module in (checks, study_backward):
        module.build, module.run_passes = _small(module.build), _brief(module.run_passes)
    checks.busy = lambda seconds: time.sleep(0.2)
    study_backward.VARIANTS["frozen-half"][1]["freeze"] = ("model.embed_tokens", "model.layers.0.*")


def _small(build: Any) -> Any:
    """Short texts and few of them; those with images and prompts keep their length, which is short where it may be."""

    def built(model: str, options: Any, **more: Any) -> Any:
        sizes = {"batch_size": min(options.batch_size or 1, 4)}
        if options.mode != "generate" and not options.image_crops:
            sizes["seq_len"] = min(options.seq_len or 32, 32)
        return build(model, replace(options, **sizes), **more)

    return built


def _brief(run_passes: Any) -> Any:
    return lambda workload, **how: run_passes(workload, **how | {"warmup": 1, "steps": 2})


def _narrow_presets(folder: Path) -> None:
    from gpuprof.workload import presets

    def narrow(config: dict[str, Any]) -> dict[str, Any]:
        return {
            key: narrow(value) if isinstance(value, dict) else _NARROW.get(key, value) for key, value in config.items()
        }

    there = folder / "presets"
    there.mkdir()
    for name in presets.preset_names():
        preset = presets.load_preset(name)
        (there / f"{name}.json").write_text(json.dumps(preset | {"config": narrow(preset["config"])}))
    presets._FOLDER = there


def _on_the_host() -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    def here(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return "cpu" if isinstance(value, str) and value.startswith("cuda") else value

    which = torch.Tensor.device.__get__  # type: ignore[attr-defined]

    class OnTheHost(TorchFunctionMode):
        """Makes tensors on the CPU that are asked for on CUDA, and has them say that they are there."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.device:
                return func(*args, **(kwargs or {}))
            out = func(*map(here, args), **{key: here(value) for key, value in (kwargs or {}).items()})
            return torch.device("cuda", 0) if func == which and out.type == "cpu" else out

    return OnTheHost()


class _Event:
    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return (other.at - self.at) * 1e3


def _cuda(uuid: str) -> None:
    import torch

    properties = SimpleNamespace(
        name=DEVICE, major=9, minor=0, multi_processor_count=132, total_memory=85_000_000_000, L2_cache_size=1 << 20,
        uuid=uuid.removeprefix("GPU-"),
    )  # fmt: skip
    kinds = [f"{kind}_bytes.all.{when}" for kind in ("allocated", "reserved") for when in ("current", "peak")]
    instead: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "get_device_name": DEVICE, "get_device_capability": (9, 0), "get_device_properties": properties,
        "synchronize": None, "set_sync_debug_mode": None, "empty_cache": None, "reset_peak_memory_stats": None,
        "manual_seed": None, "manual_seed_all": None, "memory_stats": dict.fromkeys(kinds, 1 << 30),
        "max_memory_reserved": 1 << 30, "mem_get_info": (1 << 30, 85_000_000_000), "get_rng_state_all": [],
        "set_rng_state_all": None, "get_rng_state": torch.zeros(8, dtype=torch.uint8), "device": nullcontext(),
    }  # fmt: skip
    for name, answer in instead.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.Event = _Event  # type: ignore[assignment,misc]
    for name in ("Stream", "stream", "current_stream"):  # FSDP gathers on streams of its own
        setattr(torch.cuda, name, getattr(torch.cpu, name))
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, lambda *_: None)
    for name in ("start", "stop"):
        setattr(torch.cuda.profiler, name, lambda: None)


def _kineto() -> None:
    """Records of operators get the launch and the kernel that they would have had."""
    import torch

    from gpuprof.passes import trace

    really, profile = trace.record, torch.profiler.profile
    host = [torch.profiler.ProfilerActivity.CPU]  # CUDA's would be looked for, and missed at every operator
    trace.profile = torch.profiler.profile = lambda activities, **more: profile(activities=host, **more)  # type: ignore

    def record(*given: Any) -> Any:
        profiler, ownership = really(*given)
        profiler.profiler.kineto_results = _Results(profiler.profiler.kineto_results)  # type: ignore[union-attr]
        profiler.activities = {*host, torch.profiler.ProfilerActivity.CUDA}
        return profiler, ownership

    trace.record = record


class _Results:
    """Kineto's results with kernels in them."""

    def __init__(self, really: Any) -> None:
        self._really = really

    def __getattr__(self, name: str) -> Any:
        return getattr(self._really, name)

    def events(self) -> list[Any]:
        from gpuprof.passes.kineto_events import FIELDS

        host = [_Recorded({name: getattr(event, name)() for name in FIELDS}) for event in self._really.events()]
        return [*host, *itertools.chain.from_iterable(map(_launched, itertools.count(1), host))]


class _Recorded:
    """An event that is asked for its fields as those of the binding are: by methods of its class."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        for name in answers:
            setattr(type(self), name, lambda event, name=name: event.answers[name])


def _launched(number: int, event: Any) -> Iterator[Any]:
    """The runtime call and the kernel of an operator that is one."""
    from gpuprof.passes.operators import is_composite_name

    if "::" not in event.name() or event.name().startswith("autograd::") or is_composite_name(event.name()):
        return
    import torch

    kinds = torch.autograd.DeviceType
    for name, kind, resource in (("cudaLaunchKernel", kinds.CPU, 0), (f"void {event.name()}<>()", kinds.CUDA, 7)):
        answers = {
            "name": name, "device_type": kind, "device_resource_id": resource, "start_ns": event.start_ns(),
            "end_ns": event.end_ns(), "correlation_id": number, "linked_correlation_id": event.correlation_id(),
            "is_user_annotation": False, "sequence_nr": -1, "fwd_thread_id": 0, "flops": 0, "shapes": [],
            "start_thread_id": event.start_thread_id(), "scope": 0,
        }  # fmt: skip
        yield _Recorded(answers)


def _ncu(folder: Path) -> None:
    path = folder / "bin" / "ncu"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    path.chmod(0o755)
    os.environ["PATH"] = f"{path.parent}{os.pathsep}{os.environ['PATH']}"


def main() -> None:
    """As ``ncu``: the tests' stand-in, its program on this device."""
    import tempfile

    sys.path[:0] = [str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        if "--query-metrics" in sys.argv:  # it knows of none: those that are known of the chip are taken
            return
        if "--export" in sys.argv:  # only then does it run a program
            install(Path(folder))
        runpy.run_path(str(ROOT / "tests" / "passes" / "fake_ncu.py"), run_name="__main__")


if __name__ == "__main__":
    main()
