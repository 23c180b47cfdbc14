"""The checks that only a GPU can settle, one function each, most worth first; `gpu_suite.py` runs them.

A check gets a folder for the runs and raw evidence it saves, and returns JSON-able facts, ``passed`` among them.
Importing this touches no CUDA: checks run in forks of the process that did.
"""

from __future__ import annotations

import functools
import gc
import gzip
import itertools
import json
import multiprocessing
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import bench_generate
import gpu_workloads
import pytest
import study_backward
import torch
import torch.distributed as dist
from gpu_results import explained
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.llama import modeling_llama  # noqa: F401  # imported here, forks need not
from transformers.models.llava_onevision import modeling_llava_onevision  # noqa: F401
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
from transformers.models.siglip import modeling_siglip  # noqa: F401

from gpuprof.analysis.communication import account, collectives
from gpuprof.analysis.compilation import compile_lines
from gpuprof.analysis.compiled import compiled_lines
from gpuprof.analysis.consistency import mismatches, owned_kernels
from gpuprof.analysis.generation import generation, mbu, parts
from gpuprof.analysis.kernel_time import union_ns
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.telemetry import invalid_reasons, summary
from gpuprof.analysis.totals import totals
from gpuprof.cli.ceilings import measure as measure_ceilings
from gpuprof.errors import GpuprofError, is_out_of_memory
from gpuprof.hardware import checkup, ncu, nvml
from gpuprof.hardware.device import describe, uuid_of
from gpuprof.meter import Meter
from gpuprof.passes import telemetry, trace
from gpuprof.profiler import count, run_passes
from gpuprof.record import load
from gpuprof.run import Run
from gpuprof.schema import UNATTRIBUTED
from gpuprof.traces.events import CALL, KERNEL, NODE, Event
from gpuprof.workload import Options, Workload, build, from_module
from gpuprof.workload.steps import cache_argument

Facts = dict[str, Any]

GOAL_SHARE = 0.995
CEILING_S = 4.0
BUSY_S = 2.0
TESTS = ["tests/test_gpu.py", "tests/passes/test_telemetry.py", "tests/hardware/test_ceilings.py"]
REFERENCE = {"image_crops": 16, "prompt_len": 7405, "new_tokens": 7}
REFERENCE_FLOPS = {"full": 129_418_906_075_136, "causal": 118_414_984_134_656}
REFERENCE_MEMORY_GB = 17.4525  # printed by the published report, without saying which figure it is
GENERATION = {"batch_size": 8, "prompt_len": 2048, "new_tokens": 16}
GENERATIONS: dict[str, dict[str, Any]] = {
    "dynamic": {}, "static": {"cache": "static"}, "graphs": {"cache": "static", "compile": "reduce-overhead"},
}  # fmt: skip
METERED = {"batch_size": 4, "seq_len": 1024}
METER_STEPS, METER_ROUNDS = 20, 20
_LAUNCH = re.compile(r"(cuda|cu)(Launch\w*|GraphLaunch\w*)$").match


class Check(NamedTuple):
    """A check.

    Attributes:
        run: the check itself.
        seconds: that it takes, about.
        limit_s: seconds after which it is ended.
        what: it settles.
    """

    run: Callable[[Path], Facts]
    seconds: int
    limit_s: int
    what: str


def seeded() -> None:
    torch.manual_seed(0)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def saved(run: Run, folder: Path, name: str) -> str:
    """Save a run without what identifies one machine, and say under which name."""
    run.device["uuid"] = None
    return run.save(_made(folder) / f"{name}.json.gz").name


# doctor


def doctor(folder: Path) -> Facts:
    """What the machine can measure, which NVML calls work and what they cost."""
    findings = checkup.examine()
    with telemetry.watch(device()) as watched:
        busy(BUSY_S)
    readings = watched.rows()
    facts = {
        "works": checkup.works(findings),
        "findings": [asdict(finding) for finding in findings],
        "versions": {dist.name: dist.version for dist in metadata.distributions()},
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
    readings.to_csv(_made(folder) / "telemetry.csv", index=False)
    path = ncu.find()
    listed = ncu.metrics_of(path, ".".join(map(str, torch.cuda.get_device_capability())))
    (folder / "ncu.txt").write_text("\n".join([ncu.version(path), *sorted(listed)]) + "\n")
    return facts | {"passed": facts["works"] and watched.outcome.status == "done"}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def busy(seconds: float) -> None:
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
            busy(BUSY_S)
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
    host = [e for e in events if e.kind != KERNEL]
    nodes = [e for e in host if e.kind == NODE]
    numbered = [e for e in nodes if e.number >= 0]
    _, maker = trace.owners(events, ownership)
    return {
        "call_threads": sorted({e.thread for e in host if e.kind == CALL}),
        "node_threads": sorted({e.thread for e in nodes}),
        "node_forward_threads": sorted({e.forward_thread for e in numbered}),
        "nodes": len(nodes),
        "nodes_numbered": len(numbered),
        "nodes_with_a_maker": sum(maker(e.forward_thread, e.number) is not None for e in numbered),
        **_raw(profiler, events),
    }


def _raw(profiler: Any, events: list[Event]) -> Facts:
    """Launches that the host recorded beside kernels that the GPU did."""
    cpu = torch.autograd.DeviceType.CPU
    host = [e.name() for e in profiler.profiler.kineto_results.events() if e.device_type() == cpu]
    calls: dict[str, int] = {}
    for name in host:
        if re.match(r"(cuda|cu)[A-Z]", name):
            calls[name] = calls.get(name, 0) + 1
    device_events = [e for e in events if e.kind == KERNEL]
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
        again = run_passes(workload, passes=("time",))  # in a process that has traced
        case = _case(run, workload) | {"run": saved(run, folder, f"timing-batch-{batch}")}
        case["step_after_a_trace_over_step"] = totals(again)["step_s"] / case["totals"]["step_s"]
        facts["cases"].append(case)
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
    run = count("qwen2-0.5b", mode="train", batch_size=4, seq_len=1024, dtype="bfloat16")
    found = measure_ceilings(device(), ["bfloat16", "float16", "tf32", "float32", "float8"], run, CEILING_S)
    found.pop("cache")
    shares = [row["of_datasheet"] for row in (*found["matmul"], found["copy"] or {}) if row.get("of_datasheet")]
    whole = not found["not_measured"] and all(0.5 < share <= 1.02 for share in shares)
    return found | {"passed": bool(shares) and whole}


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
    refused = []
    for options in _tries(torch.cuda.get_device_properties(device()).total_memory):
        workload = None
        try:
            workload = build("llava-onevision-qwen2-7b", Options(device="cuda", dtype="bfloat16", **options))
            workload.step()
        except (RuntimeError, GpuprofError) as error:
            if not is_out_of_memory(error):
                raise
            refused.append({"options": options, "error": str(error).splitlines()[0][:300]})
            workload = None
        if workload is not None:
            run = run_passes(workload, warmup=2, steps=5)
            facts = _measured(run, folder, "reference-train") | {"options": options, "did_not_fit": refused}
            done = all(outcome.status == "done" for outcome in run.passes.values())
            return facts | {"passed": done and not facts["mismatches"]}
        gc.collect()
        torch.cuda.empty_cache()
    return {"did_not_fit": refused, "passed": False}


def _tries(memory_bytes: int) -> list[dict[str, Any]]:
    """Options to try, best first: what cannot fit by arithmetic is not tried.

    8.03e9 parameters in bfloat16 are 16 GB, gradients as much, the two states of AdamW twice that; activations of
    7,405 positions about 75 GB, logits and loss 11 GB, unless layers are checkpointed.
    """
    sizes = {"image_crops": REFERENCE["image_crops"], "seq_len": REFERENCE["prompt_len"]}
    again = {"checkpointing": "non-reentrant"}
    tries: list[tuple[float, dict[str, Any]]] = [
        (135e9, {**sizes, "optimizer": "adamw"}),
        (95e9, {**sizes, "optimizer": "adamw", **again}),
        (50e9, {**sizes, "optimizer": "sgd", **again}),
        (40e9, {"image_crops": 4, "seq_len": 4096, "optimizer": "sgd", **again}),
    ]
    return [options for needs, options in tries if needs <= memory_bytes]


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
    """The test suite's own GPU tests. The files are named: others need packages that a GPU node may not have."""
    code = pytest.main(["-m", "gpu", "-q", "-rfEs", "--durations=10", "-p", "no:cacheprovider", *TESTS])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest came to no verdict: {code!r}")
    return {"passed": code == pytest.ExitCode.OK}


def recording(folder: Path) -> Facts:
    """The events of one small training step, as `gpuprof.traces.owners.attribute` takes them, for tests/data."""
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
        "fields": Event._fields,
        "events": [list(e._replace(start=e.start - first, end=e.end - first)) for e in events],
        "calls": calls,
        "makers": [
            [*place, maker(*place)] for place in sorted({(e.forward_thread, e.number) for e in events if e.number >= 0})
        ],
        "expected": kernels[["kernel", "module", "phase", "op"]].to_dict("list"),
    }
    path = _made(folder) / "kineto-llama-train-step.json"
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")
    profiler.export_chrome_trace(str(folder / "chrome-llama-train-step.json.gz"))
    on_device = sum(e.kind == KERNEL for e in events)
    return {"events": len(events), "on_device": on_device, "file": path.name, "passed": on_device > 0}


# backward over forward


def backward(folder: Path) -> Facts:
    """The 2x table: six ways to train a model, by counted FLOPs and by time."""
    how = ["--device", "cuda", "--batch-size", "16", "--seq-len", "1024", "--steps", "15", "--results", str(folder)]
    study_backward.main(how)
    return {"passed": True}


# generation


def generate(folder: Path) -> Facts:
    """Prefill and decode: MFU and MBU, what CUDA graphs give, bytes against the cache, times against a bare loop."""
    facts: Facts = {"cases": {}}
    for name, how in GENERATIONS.items():
        options = Options(mode="generate", device="cuda", dtype="bfloat16", **GENERATION, **how)
        workload = build("qwen2-0.5b", options)
        run = run_passes(workload, passes=("count", "time", "trace", "telemetry"), warmup=2, steps=10)
        found = generation(run)
        facts["cases"][name] = {
            "figures": None if found is None else asdict(found),
            "mbu": mbu(run),
            "phases": json.loads(by_phase(run).to_json(orient="records")),
            "parts": json.loads(parts(run).to_json(orient="records")),
            # what is compiled is not run once more with a hook on it, for which it would be compiled anew
            "cache_tensors_bytes": None if "compile" in how else _cache_bytes(workload),
            "run": saved(run, folder, f"generate-{name}"),
            "outcomes": {name: [one.status, one.reason] for name, one in run.passes.items()},
            "mismatches": mismatches(run),
            "warnings": run.warnings,
        }
        if not how:
            facts["bare"] = _bare_times(workload)
        del workload
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    figures = facts["cases"]["dynamic"]["figures"] or {}
    facts["over_bare"] = {name: figures[name] / facts["bare"][name] for name in facts["bare"] if figures.get(name)}
    near = len(facts["over_bare"]) == 2 and all(0.9 < ratio < 1.1 for ratio in facts["over_bare"].values())
    return facts | {"passed": near and all(map(_whole, facts["cases"].values()))}


def _whole(case: Facts) -> bool:
    """Whether every pass of a generation is done, and its bytes are those of its cache and no more than could move."""
    done = all(status == "done" for status, _ in case["outcomes"].values()) and not case["mismatches"]
    held = case["cache_tensors_bytes"]
    same = held is None or (case["figures"] is not None and case["figures"]["cache_bytes"] == held)
    return bool(done and same and case["mbu"] and all(0 < share < 1 for share in case["mbu"].values()))


def _cache_bytes(workload: Workload) -> int:
    """Bytes of the tensors in the cache of one more generation, at its end."""
    caches: list[Any] = []
    hook = workload.model.register_forward_pre_hook(
        lambda _, args, kwargs: caches.append(kwargs.get(cache_argument(workload.model))), with_kwargs=True
    )
    workload.step()
    hook.remove()
    return sum(tensor.nbytes for layer in caches[-1].layers for tensor in (layer.keys, layer.values))


def _bare_times(workload: Workload) -> dict[str, float]:
    """TTFT and TPOT of a loop of its own, by an event after each token; medians of ten generations."""
    events: list[torch.cuda.Event] = []

    def mark() -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    loop = bench_generate.bare_loop(workload, GENERATION["new_tokens"], mark)
    first: list[float] = []
    others: list[float] = []
    for _ in range(10):
        events.clear()
        mark()
        loop()
        torch.cuda.synchronize()
        times = [begin.elapsed_time(end) * 1e-3 for begin, end in itertools.pairwise(events)]
        first.append(times[0])
        others += times[1:]
    return {"ttft_s": statistics.median(first), "tpot_s": statistics.median(others)}


# hardware counters


def executed(model: str, name: str, folder: Path) -> Facts:
    """FLOPs executed against FLOPs counted, module by module, with what explains the difference."""
    workload = build(f"scripts/gpu_workloads.py:{model}", Options(device="cuda", dtype="bfloat16"))
    with _kept_tables(_made(folder), name):
        run = run_passes(workload, passes=("count", "time", "trace", "counters", "telemetry"), warmup=2, steps=10)
    outcome = run.passes["counters"]
    facts: Facts = {"outcome": vars(outcome), "run": saved(run, folder, name), "mismatches": mismatches(run)}
    if outcome.status != "done":
        return facts | {"passed": False}
    return facts | explained(run)


@contextmanager
def _kept_tables(folder: Path, name: str) -> Iterator[None]:
    """Keep every table that Nsight Compute writes meanwhile, as it came, whatever becomes of it."""
    read, texts = ncu.read_csv, list[str]()

    def keep(text: str, *more: Any) -> list[ncu.Launch]:
        texts.append(text)
        (folder / f"{name}-ncu-{len(texts)}.csv.gz").write_bytes(gzip.compress(text.encode()))
        return read(text, *more)

    ncu.read_csv = keep
    try:
        yield
    finally:
        ncu.read_csv = read


# a group of processes


WITH_TWO_GPUS = (
    "exposed communication of NCCL, and a rank's wait inside its kernels",
    "the straggler of real ranks, by computation",
    "bandwidth of collectives on NVLink beside its datasheet",
    "how a job ends in which a rank dies while the others wait inside a kernel of NCCL",
    "the clocks and the power of two GPUs that work on one step",
)
"""What one GPU cannot settle; `torchrun --nproc-per-node 2 -m gpuprof profile qwen2-0.5b --parallel fsdp` shows it."""


def ranks(folder: Path) -> Facts:
    """DDP and FSDP2 through NCCL in a group of one: collectives as they are counted, traced and owned."""
    facts: Facts = {"with_two_gpus": WITH_TWO_GPUS, "cases": {}}
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    for name, shard in {"ddp": _data_parallel, "fsdp": _fully_sharded}.items():
        model = build("qwen2-0.5b", Options(device="cuda", batch_size=2, seq_len=512, dtype="bfloat16")).model
        ids = torch.randint(0, model.config.vocab_size, (2, 512), device=next(model.parameters()).device)
        batch = {"input_ids": ids, "labels": ids}
        flops = _sums(run_passes(from_module(model, kwargs=batch), passes=("count",)))
        workload = from_module(shard(model), kwargs=batch)
        run = run_passes(workload, warmup=2, steps=10)
        found = account(run)
        facts["cases"][name] = {
            "run": saved(run, folder, f"ranks-{name}"),
            "same_flops": _sums(run) == flops,
            "adds_up": found.compute_ns + found.exposed_ns + found.idle_ns == found.step_ns,
            "collectives": json.loads(collectives(run).to_json(orient="records")),
            "kernels": sorted({row for row in run.kernels["kernel"] if "nccl" in row.lower()}),
            "without_rule": run.passes["count"].facts.get("ops_without_rule"),
            "outcomes": {name: [one.status, one.reason] for name, one in run.passes.items()},
            "mismatches": mismatches(run),
        }
        del model, workload, run
        gc.collect()
    dist.destroy_process_group()
    good = [case["same_flops"] and case["adds_up"] and not case["without_rule"] for case in facts["cases"].values()]
    return facts | {"passed": all(good)}


def _data_parallel(model: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.parallel.DistributedDataParallel(model)


def _fully_sharded(model: torch.nn.Module) -> torch.nn.Module:
    mesh = init_device_mesh(next(model.parameters()).device.type, (1,), mesh_dim_names=("dp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _sums(run: Run) -> dict[str, int]:
    """FLOPs of each phase."""
    sums = run.ops.groupby("phase")["flops_full"].sum()
    return {str(phase): int(flops) for phase, flops in sums.items() if flops}


# the meter


def meter(folder: Path) -> Facts:
    """The meter in a loop that keeps the GPU busy: what it adds, that it waits for nothing, its times, a live step."""
    made = gpu_workloads.small_qwen2_layers(Options(device="cuda", dtype="bfloat16", **METERED))
    batch = {name: tensor.to("cuda") for name, tensor in made["inputs"].items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    loop = _Loop(made["model"].train(), batch)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        facts = {"unwaiting": _unwaiting(loop), "added": _added(loop), "drill": _drill(loop, folder)}
    facts["warnings"] = sorted({str(one.message) for one in warned if "gpuprof" in str(one.message)})
    near = 0.98 < facts["added"]["meter_step_over_bare"] < 1.02
    cheap = facts["added"]["over_bare"]["meter"][0] < 1.005
    return facts | {"passed": near and cheap and facts["drill"]["whole"] and not facts["warnings"]}


class _Loop:
    """A training loop, with whatever is around its steps."""

    def __init__(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
        self.model, self.batch = model, batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(self) -> None:
        """Forward, backward and the optimizer's step."""
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def metered(self, meter: Meter, steps: int) -> None:
        """So many steps inside of a meter."""
        for _ in range(steps):
            with meter.step(self.batch):
                self.step()


def _unwaiting(loop: _Loop) -> Facts:
    """What the meter's own calls take on the host, where each that waits for the device raises, and is warned of."""
    meter = Meter(loop.model, loop.optimizer)
    loop.metered(meter, 5)  # one of them is counted
    calls: dict[str, list[float]] = {"enter": [], "exit": [], "read": []}

    def alone(name: str, call: Callable[..., Any], *given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        begin = time.perf_counter()
        try:
            return call(*given)
        finally:
            calls[name].append(time.perf_counter() - begin)
            torch.cuda.set_sync_debug_mode("default")

    for _ in range(METER_STEPS):
        block = meter.step(loop.batch)
        alone("enter", block.__enter__)
        loop.step()
        alone("exit", block.__exit__, None, None, None)
    alone("read", meter.read)
    torch.cuda.synchronize()
    loop.metered(meter, 1)
    figures = alone("read", meter.read)
    return {"host_s": {name: statistics.median(took) for name, took in calls.items()}, "figures": figures}


def _added(loop: _Loop) -> Facts:
    """Seconds of a step by events around several: bare, with the meter, and as others wait for the device; by turns."""
    meter = Meter(loop.model, loop.optimizer)
    loop.metered(meter, 5)

    def synchronised(steps: int) -> None:
        for _ in range(steps):
            loop.step()
            torch.cuda.synchronize()

    def items(steps: int) -> None:
        for _ in range(steps):
            loop.step()
            loop.batch["attention_mask"].sum().item()

    def bare(steps: int) -> None:
        for _ in range(steps):
            loop.step()

    arms = {"bare": bare, "meter": functools.partial(loop.metered, meter), "synchronize": synchronised, "item": items}
    rounds = []
    for number in range(METER_ROUNDS):
        order = [*arms][number % len(arms) :] + [*arms][: number % len(arms)]
        rounds.append({name: _per_step(arms[name], METER_STEPS) for name in order})
        rounds[-1]["meter_says"] = meter.read().get("device/step_s", 0.0)
    ratios = {name: [found[name] / found["bare"] for found in rounds] for name in arms if name != "bare"}
    said = [found["meter_says"] / found["bare"] for found in rounds]
    return {
        "step_s": {name: statistics.median(found[name] for found in rounds) for name in arms},
        "over_bare": {name: [statistics.median(each), *bench_generate.interval(each)] for name, each in ratios.items()},
        "meter_step_over_bare": statistics.median(said),
    }


def _per_step(arm: Callable[[int], None], steps: int) -> float:
    """Seconds of a step of several, on the device."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    arm(steps)
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) * 1e-3 / steps


def _drill(loop: _Loop, folder: Path) -> Facts:
    """A step recorded as it runs, as a run."""
    with tempfile.TemporaryDirectory() as out:
        meter = Meter(loop.model, loop.optimizer, out=out, profile_at=[8])
        loop.metered(meter, 12)
        torch.cuda.synchronize()
        flops = meter.read().get("meter/flops_per_step")
        run = load(f"{out}/step-8.json.gz")
    figures, step_s = totals(run), run.samples.loc[run.samples["phase"] == "step", "time_s"]
    facts = {
        "run": saved(run, folder, "meter-step"),
        "outcomes": {name: [one.status, one.reason] for name, one in run.passes.items()},
        "flops": figures["flops"],
        "same_flops": figures["flops"] == flops,
        "owned_share": figures["owned_share"],
        "kernels_over_step": figures["kernel_s"] / float(step_s.median()) if len(step_s) else None,
        "adds_up": int(owned_kernels(run)["duration_ns"].sum()) == int(run.kernels["duration_ns"].sum()),
        "mismatches": mismatches(run),
        "warnings": run.warnings,
    }
    whole = facts["same_flops"] and facts["adds_up"] and (facts["owned_share"] or 0) >= 0.99
    return facts | {"whole": bool(whole and not facts["mismatches"])}


# repeatability


def compiled(folder: Path) -> Facts:
    """torch.compile on a GPU: each Triton kernel under its mark, all of the time owned, CUDA graphs left out."""
    facts: Facts = {"cases": {}}
    good = []
    for mode in ("default", "reduce-overhead", "max-autotune-no-cudagraphs"):
        options = Options(device="cuda", batch_size=2, seq_len=1024, dtype="bfloat16")
        made = gpu_workloads.small_qwen2_layers(options)
        made["model"].compile(mode=mode)
        run = run_passes(from_module(made["model"], kwargs=made["inputs"]), passes=("count", "time", "trace"), steps=10)
        kernels = run.kernels[run.kernels["compiled"] != ""]
        named = [row.split("/")[1].rpartition(":")[0] for row in kernels["compiled"]]
        triton = [(name, kernel) for name, kernel in zip(named, kernels["kernel"], strict=True) if "." not in name]
        whole = int(run.kernels["duration_ns"].sum())
        found = {
            "run": saved(run, folder, f"compiled-{mode}"),
            "outcomes": {name: [one.status, one.reason] for name, one in run.passes.items()},
            "facts": run.passes["trace"].facts if run.done("trace") else {},
            "triton_kernels": len(triton),
            "named_otherwise": sorted({pair for pair in triton if pair[0] != pair[1]}),
            "compiled_share": int(kernels["duration_ns"].sum()) / whole if whole else None,
            "owned_share": totals(run)["owned_share"],
            "adds_up": int(owned_kernels(run)["duration_ns"].sum()) == whole,
            "lines": [*compile_lines(run), *compiled_lines(run)],
            "warnings": run.warnings,
        }
        facts["cases"][mode] = found
        good.append(found["adds_up"] and (found["owned_share"] or 0) >= 0.99 and not found["facts"].get("hidden"))
        torch._dynamo.reset()
        gc.collect()
    return facts | {"passed": all(good)}


def repeatability(folder: Path) -> Facts:
    """Launches of one workload, that keeps the GPU busy, in fresh processes: the spread of their median step."""
    found = []
    for number in range(3):
        file = _made(folder) / f"repeat-{number}.json.gz"
        launch = multiprocessing.get_context("fork").Process(target=_launch, args=(file,))
        launch.start()
        launch.join()
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
    medians = [launch["median_s"] for launch in found]
    middle = statistics.median(medians)
    spread = max(abs(median - middle) for median in medians) / middle
    return {"launches": found, "largest_deviation": spread, "passed": spread < 0.02}


def _launch(file: Path) -> None:
    workload = build("qwen2-0.5b", Options(device="cuda", batch_size=16, seq_len=1024, dtype="bfloat16"))
    run = run_passes(workload, passes=("count", "time", "telemetry"), steps=20)
    saved(run, file.parent, file.name.removesuffix(".json.gz"))


def _link(name: str, model: str = "qwen2-0.5b", **options: Any) -> Callable[[Path], Facts]:
    sizes = {"batch_size": 4, "seq_len": 1024, "dtype": "bfloat16"}
    return functools.partial(link, model, name, **sizes, **options)


CHECKS: dict[str, Check] = {
    "tests": Check(tests, 40, 90, "pytest -m gpu: events, phases, ownership, peaks, telemetry, out of memory"),
    "counters-siglip": Check(
        functools.partial(executed, "siglip_layers", "counters-siglip"), 50, 120,
        "executed against counted: SigLIP layers; calibration, NVTX cells, replays",
    ),
    "link-non-reentrant": Check(
        _link("link-non-reentrant", checkpointing="non-reentrant"), 8, 40,
        "kernel to module: non-reentrant checkpointing",
    ),
    "link-train": Check(
        _link("link-train", optimizer="adamw"), 8, 40, "kernel to module: Qwen2-0.5B training step with AdamW"
    ),
    "doctor": Check(doctor, 8, 40, "what the machine can measure, NVML calls and their cost, GPM, Nsight Compute"),
    "recording": Check(recording, 3, 30, "a small trace for tests/data"),
    "ceilings": Check(ceilings, 32, 70, "best matmul per dtype and best copy, beside the datasheet"),
    "timing": Check(timing, 25, 60, "timed step against the union of kernels; cost of tracing; launches recorded"),
    "reference": Check(reference, 15, 60, "the published report's generation: time, MFU, memory, FLOPs"),
    "generate": Check(
        generate, 60, 150, "prefill and decode: MFU, MBU with and without CUDA graphs, the cache, TTFT and TPOT"
    ),
    "reference-train": Check(reference_train, 20, 80, "a training step of the same model"),
    "counters-qwen2": Check(
        functools.partial(executed, "qwen2_layers", "counters-qwen2"), 52, 130,
        "executed against counted: Qwen2 layers",
    ),
    "backward": Check(backward, 40, 90, "the 2x table: plain, frozen half, adapters, checkpointing"),
    "link-reentrant": Check(
        _link("link-reentrant", checkpointing="reentrant"), 8, 40, "kernel to module: reentrant checkpointing"
    ),
    "meter": Check(
        meter, 40, 100, "the meter in a loop: what it adds, that it waits for nothing, its times, a live step"
    ),
    "compiled": Check(compiled, 60, 120, "torch.compile: Triton kernels given to modules, CUDA graphs left out"),
    "ranks": Check(ranks, 20, 60, "NCCL in a group of one: DDP and FSDP2, collectives counted, traced and owned"),
    "repeatability": Check(repeatability, 25, 60, "the same workload in three fresh processes"),
    "counters-siglip-flash": Check(
        functools.partial(executed, "siglip_layers_flash", "counters-siglip-flash"), 50, 120,
        "executed against counted: SigLIP layers with FlashAttention 2 in the place of cuDNN's attention",
    ),
}  # fmt: skip
"""Most worth first: the broadest, then the path most likely to break, so that it can be mended for a second run."""
