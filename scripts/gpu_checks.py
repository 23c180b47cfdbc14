"""The checks that only a GPU can settle, one function each; `gpu_suite.py` runs them.

A check gets a folder for the runs it saves and returns JSON-able facts, ``passed`` among them.
"""

from __future__ import annotations

import functools
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpuprof.analysis.consistency import mismatches
from gpuprof.analysis.executed import executed as executed_rows
from gpuprof.analysis.executed import executed_by_module, not_collected
from gpuprof.analysis.modules import totals, union_ns
from gpuprof.analysis.telemetry import invalid_reasons, summary
from gpuprof.hardware import ncu, nvml
from gpuprof.hardware.device import describe, uuid_of
from gpuprof.passes import telemetry, trace
from gpuprof.profiler import count, run_passes
from gpuprof.record import UNATTRIBUTED, Run, load
from gpuprof.workload import Options, Workload, build

Facts = dict[str, Any]

GOAL_SHARE = 0.995
REFERENCE = {"image_crops": 16, "prompt_len": 7405, "new_tokens": 7}
REFERENCE_FLOPS = {"full": 129_418_906_075_136, "causal": 118_414_984_134_656}
REFERENCE_MEMORY_GB = 17.4525  # printed by the published report, without saying which figure it is
_LAUNCH = re.compile(r"(cuda|cu)(Launch\w*|GraphLaunch\w*)$").match


class Check(NamedTuple):
    """A check: what it settles, and the seconds it may take."""

    run: Callable[[Path], Facts]
    limit_s: int
    what: str


def seeded() -> None:
    torch.manual_seed(0)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def saved(run: Run, folder: Path, name: str) -> str:
    """Save a run without what identifies one machine, and say under which name."""
    folder.mkdir(parents=True, exist_ok=True)
    run.device["uuid"] = None
    return run.save(folder / f"{name}.json.gz").name


# doctor


def doctor(folder: Path) -> Facts:
    """What the machine can measure, which NVML calls work and what they cost."""
    command = [sys.executable, "-m", "gpuprof", "doctor", "--format", "json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    with telemetry.watch(device()) as watched:
        _busy(2.0)
    readings = watched.rows()
    facts = {
        "works": report["works"],
        "findings": report["findings"],
        "device": describe(device()) | {"uuid": None},
        "telemetry": {
            "outcome": watched.outcome.status,
            "facts": watched.outcome.facts,
            "quantities": {
                str(name): {"n": len(rows), "min": float(rows["value"].min()), "max": float(rows["value"].max())}
                for name, rows in readings.groupby("quantity")
            },
        },
        "nvml": _nvml(),
    }
    return facts | {"passed": bool(report["works"]) and watched.outcome.status == "done"}


def _busy(seconds: float) -> None:
    a = torch.randn(8192, 8192, device=device(), dtype=torch.bfloat16)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()


def _nvml() -> Facts:
    """Cost of one reading, and what GPU performance monitoring (GPM) answers."""
    costs: dict[str, float] = {}
    with nvml.open_device(uuid_of(device())) as gpu:
        for quantity in ("sm_clock", "temperature", "power_usage", "energy", "event_reasons"):
            times = []
            for _ in range(20):
                begin = time.perf_counter()
                gpu.read(quantity)
                times.append(time.perf_counter() - begin)
            costs[quantity] = statistics.median(times) * 1e6
    return {"median_us": costs, "failures": gpu.failures, "gpm": _gpm()}


def _gpm() -> Facts:
    """What GPM says of two seconds of matmuls, and which of its calls fail."""
    with nvml.open_device(uuid_of(device())) as gpu:
        with gpu.activity() as activity:
            _busy(2.0)
        return {"activity": activity, "failures": gpu.failures}


# kernel -> operator -> module


def link(model: str, name: str, folder: Path, **options: Any) -> Facts:
    """Whether every kernel finds its operator and module, and whether counting saw the same calls."""
    workload = build(model, Options(device="cuda", **options))
    run = run_passes(workload, passes=("count", "trace"))
    facts: Facts = {"workload": run.workload, "run": saved(run, folder, name), "mismatches": mismatches(run)}
    facts["passes"] = {key: vars(outcome) for key, outcome in run.passes.items()}
    if not run.done("trace"):
        return facts | {"passed": False}
    facts |= _shares(run) | _threads(workload)
    linked = run.passes["trace"].facts
    passed = facts["attributed_share"] >= GOAL_SHARE and linked["kernels_linked"] == linked["kernels"]
    return facts | {"passed": bool(passed and not facts["mismatches"])}


def _shares(run: Run) -> Facts:
    kernels = run.kernels
    whole = int(kernels["duration_ns"].sum())
    owned = (kernels["module"] != UNATTRIBUTED) | (kernels["phase"] == "optimizer")
    rest = kernels[~owned].groupby(["kernel", "op", "phase"])["duration_ns"]
    largest = rest.agg(ns="sum", calls="size").sort_values("ns", ascending=False)
    phases = kernels.groupby("phase")["duration_ns"].sum()
    return {
        "kernels": len(kernels),
        "kernel_ns": whole,
        "linked_share": float(kernels.loc[kernels["op"] != "", "duration_ns"].sum() / whole),
        "attributed_share": float(kernels.loc[owned, "duration_ns"].sum() / whole),
        "phase_ns": {str(phase): int(time_ns) for phase, time_ns in phases.items()},
        "largest_unattributed": largest.head(10).reset_index().to_dict("records"),
    }


def _threads(workload: Workload) -> Facts:
    """On which of Kineto's threads the forward and the autograd nodes ran."""
    profiler, ownership = trace.record(workload, seeded)
    events = trace.read(profiler)
    host = [e for e in events if not e.on_device]
    nodes = [e for e in host if e.name.startswith("autograd::engine::evaluate_function: ")]
    numbered = [e for e in nodes if e.number >= 0]
    _, maker = trace.owners(events, ownership)
    return {
        "call_threads": sorted({e.thread for e in host if e.name.startswith("gpuprof#")}),
        "node_threads": sorted({e.thread for e in nodes}),
        "node_forward_threads": sorted({e.forward_thread for e in numbered}),
        "nodes": len(nodes),
        "nodes_numbered": len(numbered),
        "nodes_with_a_maker": sum(maker(e.forward_thread, e.number) is not None for e in numbered),
        **_raw(profiler, events),
    }


def _raw(profiler: Any, events: list[trace.Event]) -> Facts:
    """Launches that the host recorded beside kernels that the GPU did."""
    cpu = torch.autograd.DeviceType.CPU
    host = [e.name() for e in profiler.profiler.kineto_results.events() if e.device_type() == cpu]
    calls: dict[str, int] = {}
    for name in host:
        if re.match(r"(cuda|cu)[A-Z]", name):
            calls[name] = calls.get(name, 0) + 1
    device_events = [e for e in events if e.on_device]
    copies = sum(e.name.startswith(("Memcpy", "Memset")) for e in device_events)
    return {
        "runtime_calls": calls,
        "launches": sum(times for name, times in calls.items() if _LAUNCH(name)),
        "gpu_kernels": len(device_events) - copies,
        "gpu_copies": copies,
    }


# time


def timing(folder: Path) -> Facts:
    """Do the timed step and the union of its kernels agree when the GPU is busy, and what does tracing cost?"""
    facts: Facts = {"cases": []}
    for batch in (4, 16):
        workload = build("qwen2-0.5b", Options(device="cuda", batch_size=batch, seq_len=1024, dtype="bfloat16"))
        run = run_passes(workload, passes=("count", "time", "trace", "telemetry"))
        facts["cases"].append(_case(run, workload) | {"run": saved(run, folder, f"timing-batch-{batch}")})
        del workload
        torch.cuda.empty_cache()
    busiest = facts["cases"][-1]
    agree = 0.9 <= busiest["kernels_over_step"] <= 1.02
    whole = all(case["launches"] == case["gpu_kernels"] for case in facts["cases"])
    return facts | {"passed": agree and whole}


def _case(run: Run, workload: Workload) -> Facts:
    figures = totals(run)
    start = run.kernels["start_ns"].to_numpy("int64")
    end = start + run.kernels["duration_ns"].to_numpy("int64")
    samples = run.samples.loc[run.samples["phase"] == "step", "time_s"]
    profiler, _ = trace.record(workload, seeded)
    return {
        "batch_size": run.workload["batch_size"],
        "totals": figures,
        "step_s": [float(value) for value in samples],
        "kernel_union_s": union_ns(start, end) * 1e-9,
        "kernel_sum_s": float((end - start).sum() * 1e-9),
        "traced_span_s": float((end.max() - start.min()) * 1e-9),
        "kernels_over_step": union_ns(start, end) * 1e-9 / figures["step_s"],
        # from the first kernel's start to the last one's end, against the undisturbed step
        "traced_over_step": float((end.max() - start.min()) * 1e-9 / figures["step_s"]),
        **_raw(profiler, trace.read(profiler)),
    }


# ceilings


def ceilings(folder: Path) -> Facts:
    """Best matmul per dtype and best copy beside the datasheet, and what the products of a model reach."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "ceilings-shapes.json.gz"
    count("qwen2-0.5b", mode="train", batch_size=4, seq_len=1024, dtype="bfloat16").save(run)
    command = [sys.executable, "-m", "gpuprof", "ceilings", "--dtype", "bf16,fp16,tf32,fp32,fp8"]
    command += ["--shapes", str(run), "--seconds", "4", "--format", "json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    matmul = {row.pop("dtype"): row | {"share": row["of_datasheet"]} for row in found["matmul"]}
    copy = found["copy"]
    shares = [share for share in (*(row["share"] for row in matmul.values()), copy["of_datasheet"]) if share]
    return {
        "device": found["device"]["name"],
        "matmul": matmul | {row["dtype"]: {"error": row["reason"]} for row in found["not_measured"]},
        "shapes": found["shapes"],
        "copy": [
            {"mib": size["bytes"] >> 20, "median_s": size["seconds"], "bytes_per_s": size["bytes_per_s"]}
            for size in copy["sizes"]
        ],
        "copy_best": {
            "bytes_per_s": copy["bytes_per_s"], "datasheet": copy["datasheet"], "share": copy["of_datasheet"],
        },
        "passed": bool(shares) and all(0.5 < share <= 1.02 for share in shares),
    }  # fmt: skip


# the reference workload


def reference(folder: Path) -> Facts:
    """The published report's workload, measured: time, MFU, memory, and its FLOPs counted on the device."""
    workload = build("llava-onevision-qwen2-7b", Options(mode="generate", device="cuda", dtype="bfloat16", **REFERENCE))
    run = run_passes(workload, warmup=2, steps=10)
    # some releases of transformers compute the rotary angles by a matmul of 948,608 FLOPs
    ops = run.ops[~run.ops["module"].str.endswith("rotary_emb")]
    counts = {name: int(ops[f"flops_{name}"].sum()) for name in REFERENCE_FLOPS}
    facts = _measured(run, folder, "reference-generate")
    facts |= {
        "flops_without_rotary": counts,
        "flops_expected": REFERENCE_FLOPS,
        "report_memory_gb": REFERENCE_MEMORY_GB,
    }
    done = all(outcome.status == "done" for outcome in run.passes.values())
    return facts | {"passed": done and counts == REFERENCE_FLOPS and not facts["mismatches"]}


def reference_train(folder: Path) -> Facts:
    """A training step of the same model and sizes, made smaller only as far as memory demands."""
    sizes = {"image_crops": REFERENCE["image_crops"], "seq_len": REFERENCE["prompt_len"]}
    tries: list[dict[str, Any]] = [
        {**sizes, "optimizer": "adamw"},
        {**sizes, "optimizer": "adamw", "checkpointing": "non-reentrant"},
        {**sizes, "optimizer": "none", "checkpointing": "non-reentrant"},
        {"image_crops": 4, "seq_len": 4096, "optimizer": "none", "checkpointing": "non-reentrant"},
    ]
    refused = []
    for options in tries:
        workload = None
        try:
            workload = build("llava-onevision-qwen2-7b", Options(device="cuda", dtype="bfloat16", **options))
            workload.step()
        except torch.OutOfMemoryError as error:
            refused.append({"options": options, "error": str(error).splitlines()[0][:300]})
            workload = None
            gc.collect()
        if workload is not None:
            run = run_passes(workload, warmup=2, steps=5)
            facts = _measured(run, folder, "reference-train") | {"options": options, "did_not_fit": refused}
            done = all(outcome.status == "done" for outcome in run.passes.values())
            return facts | {"passed": done and not facts["mismatches"]}
        torch.cuda.empty_cache()
    return {"did_not_fit": refused, "passed": False}


def _measured(run: Run, folder: Path, name: str) -> Facts:
    peaks = run.memory[run.memory["source"] == "measured"]
    return {
        "workload": run.workload,
        "totals": totals(run),
        "passes": {key: vars(outcome) for key, outcome in run.passes.items()},
        "warnings": run.warnings,
        "mismatches": mismatches(run),
        "memory": [
            {"phase": row.phase, "quantity": row.quantity, "bytes": int(row.bytes)}
            for row in peaks[peaks["module"] == ""].itertuples()
        ],
        "run": saved(run, folder, name),
        **(_shares(run) if run.done("trace") else {}),
    }


# tests, and a recording for them


def tests(folder: Path) -> Facts:
    """The test suite's own GPU tests."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "output": done.stdout[-6000:], "passed": done.returncode == 0}


def recording(folder: Path) -> Facts:
    """The events of one small training step, as `gpuprof.passes.trace.attribute` takes them, for tests/data."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from gpuprof.workload import from_module

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    model = LlamaForCausalLM(config).to(device(), torch.bfloat16)
    ids = torch.zeros(1, 16, dtype=torch.long, device=device())
    workload = from_module(
        model, (), {"input_ids": ids, "labels": ids}, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)
    )
    profiler, ownership = trace.record(workload, seeded)
    events = trace.read(profiler)
    calls, maker = trace.owners(events, ownership)
    kernels = trace.ingest(profiler, ownership).kernels
    first = min(e.start for e in events)
    data = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "fields": trace.Event._fields,
        "events": [list(e._replace(start=e.start - first, end=e.end - first)) for e in events],
        "calls": calls,
        "makers": [
            [*place, maker(*place)] for place in sorted({(e.forward_thread, e.number) for e in events if e.number >= 0})
        ],
        "expected": kernels[["kernel", "module", "phase", "op"]].to_dict("list"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kineto-llama-train-step.json"
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")
    on_device = sum(e.on_device for e in events)
    return {"events": len(events), "on_device": on_device, "file": path.name, "passed": on_device > 0}


# backward over forward


def backward(folder: Path) -> Facts:
    """The 2x table: six ways to train a model, by counted FLOPs and by time."""
    command = [sys.executable, "scripts/study_backward.py", "--device", "cuda", "--batch-size", "16", "--seq-len",
               "1024", "--steps", "15", "--results", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "table": done.stdout, "errors": done.stderr, "passed": done.returncode == 0}


# hardware counters


def counters_small(folder: Path) -> Facts:
    """What one count is, every dtype's list, and whether a second run of the same step counts the same."""
    recipe = ("scripts/gpu_workloads.py:small_qwen2_layers", {"batch_size": 1, "seq_len": 128})
    texts = _kept_tables()
    runs = [_counted(*recipe, level) for level in ("minimal", "minimal", "full")]
    facts: Facts = {"runs": [run.passes["counters"].facts for run in runs]}
    facts["outcomes"] = [vars(run.passes["counters"]) for run in runs if not run.done("counters")]
    if facts["outcomes"]:
        return facts | {"passed": False}
    first, second, full = (run.counters for run in runs)
    same = list(first["kernel"]) == list(second["kernel"])
    facts["same_kernels_again"] = same
    facts["same_flops_again"] = bool(same and (first["tensor_bfloat16"] == second["tensor_bfloat16"]).all())
    facts["flops_by_level"] = [int(frame["tensor_bfloat16"].sum()) for frame in (first, full)]
    facts["launches_without_a_range"] = int((first["op"] == "").sum())
    folder.mkdir(parents=True, exist_ok=True)
    recorded = folder / "counters-qwen2-layers.csv"
    recorded.write_text(texts[0].replace(str(Path.home()), "~"))
    facts["file"], facts["run"] = recorded.name, saved(runs[0], folder, "counters-small")
    read = facts["flops_by_level"][0] > 0 and bool(first["tensor_bfloat16"].notna().all())
    return facts | {"passed": read and facts["same_flops_again"] and len(set(facts["flops_by_level"])) == 1}


def _kept_tables() -> list[str]:
    """Every table of Nsight Compute that is read from now on, as it came."""
    texts: list[str] = []
    read = ncu.read_csv

    def keep(text: str) -> list[ncu.Launch]:
        texts.append(text)
        return read(text)

    ncu.read_csv = keep
    return texts


def _counted(model: str, options: dict[str, Any], level: str = "minimal", **more: Any) -> Run:
    workload = build(model, Options(device="cuda", dtype="bfloat16", **options))
    return run_passes(workload, passes=("count", "counters"), counter_level=level, **more)


def executed(model: str, name: str, folder: Path) -> Facts:
    """FLOPs executed against FLOPs counted, module by module, with what explains the difference."""
    workload = build(f"scripts/gpu_workloads.py:{model}", Options(device="cuda", dtype="bfloat16"))
    run = run_passes(workload, passes=("count", "time", "trace", "counters", "telemetry"), warmup=2, steps=10)
    outcome = run.passes["counters"]
    facts: Facts = {"outcome": vars(outcome), "run": saved(run, folder, name), "mismatches": mismatches(run)}
    if outcome.status != "done":
        return facts | {"passed": False}
    rows = executed_rows(run)
    facts["rows"] = json.loads(rows.to_json(orient="records"))
    facts["modules"] = json.loads(executed_by_module(run).to_json(orient="records"))
    facts["not_collected"] = json.loads(not_collected(run).to_json(orient="records"))
    large = rows[rows["flops_hardware"].fillna(0) > 0.001 * rows["flops_hardware"].sum()]
    residual = large["residual"].abs()
    facts["explained_within_1_percent"] = f"{int((residual <= 0.01).sum())} of {len(large)}"
    return facts | {"passed": bool(len(large) and (residual <= 0.01).all())}


# repeatability


def repeatability(folder: Path) -> Facts:
    """Launches of one workload in fresh processes: the spread of their median step."""
    found = []
    for number in range(7):
        file = folder / f"repeat-{number}.json"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "gpuprof", "profile", "qwen2-0.5b", "--batch-size", "8", "--seq-len", "1024",
                   "--passes", "count,time,telemetry", "--steps", "30", "-q", "-o", str(file)]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        run = load(file)
        steps = run.samples.loc[run.samples["phase"] == "step", "time_s"]
        found.append(
            {
                "median_s": float(steps.median()),
                "iqr_s": float(steps.quantile(0.75) - steps.quantile(0.25)),
                "mfu": totals(run)["mfu"],
                "telemetry": summary(run),
                "invalid": invalid_reasons(run.telemetry),
            }
        )
        file.unlink()
    medians = [launch["median_s"] for launch in found]
    middle = statistics.median(medians)
    spread = max(abs(median - middle) for median in medians) / middle
    return {"launches": found, "largest_deviation": spread, "passed": spread < 0.02}


_TRAIN = {"batch_size": 4, "seq_len": 1024, "dtype": "bfloat16"}

CHECKS: dict[str, Check] = {
    "doctor": Check(doctor, 60, "what the machine can measure, NVML calls and their cost, GPM, Nsight Compute"),
    "link-train": Check(
        functools.partial(link, "qwen2-0.5b", "link-train", **_TRAIN, optimizer="adamw"),
        60,
        "kernel to module: Qwen2-0.5B training step",
    ),
    "link-reentrant": Check(
        functools.partial(link, "qwen2-0.5b", "link-reentrant", **_TRAIN, checkpointing="reentrant"),
        60,
        "kernel to module: reentrant checkpointing",
    ),
    "link-non-reentrant": Check(
        functools.partial(link, "qwen2-0.5b", "link-non-reentrant", **_TRAIN, checkpointing="non-reentrant"),
        60,
        "kernel to module: non-reentrant checkpointing",
    ),
    "link-forward": Check(
        functools.partial(
            link, "llava-onevision-qwen2-7b", "link-forward", mode="forward", dtype="bfloat16", seq_len=7405
        ),
        110,
        "kernel to module: LLaVA-OneVision-7B forward",
    ),
    "timing": Check(timing, 90, "timed step against the union of kernels; cost of tracing; launches recorded"),
    "ceilings": Check(ceilings, 100, "best matmul per dtype and best copy, beside the datasheet"),
    "reference": Check(reference, 150, "the published report's generation: time, MFU, memory, FLOPs"),
    "reference-train": Check(reference_train, 190, "a training step of the same model"),
    "backward": Check(backward, 110, "the 2x table: plain, frozen half, adapters, checkpointing"),
    "counters": Check(counters_small, 130, "hardware counters: calibration, replays, ranges, the same again"),
    "counters-qwen2": Check(
        functools.partial(executed, "qwen2_layers", "counters-qwen2"), 130, "executed against counted: Qwen2 layers"
    ),
    "counters-siglip": Check(
        functools.partial(executed, "siglip_layers", "counters-siglip"), 120, "executed against counted: SigLIP layers"
    ),
    "repeatability": Check(repeatability, 130, "the same workload in fresh processes"),
    "recording": Check(recording, 50, "a small trace for tests/data"),
    "tests": Check(tests, 140, "pytest -m gpu"),
}
