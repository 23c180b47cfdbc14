"""What runs are held against each other by: their launches, whether they compare, and the kernel time of each part."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from gpuprof.analysis.consistency import owned_kernels, per_step, withheld_of_step
from gpuprof.analysis.counted import convention_of, counted, whole_step
from gpuprof.analysis.denominators import WORDS, denominators, ideal_seconds, sm_clock_hz
from gpuprof.analysis.executed import counters_only
from gpuprof.analysis.generation import bandwidths, generation, moved, new_tokens_per_s, withheld_of_bytes
from gpuprof.analysis.kernel_time import own_of_ranks
from gpuprof.analysis.known_flops import priced_share
from gpuprof.analysis.memory import peak
from gpuprof.analysis.operators import plain_op
from gpuprof.analysis.ranks import require_kernels
from gpuprof.analysis.steps import typical
from gpuprof.analysis.telemetry import energy_per_step_j, invalid
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.paths import layer_of, unsharded, unwrapped
from gpuprof.record import Record
from gpuprof.schema import ALL, MODEL, integers

LAUNCH_COLUMNS = [
    "launch", "step_s", "step_iqr_s", "forward_s", "backward_s", "optimizer_s", "tokens_per_s", "samples_per_s",
    *(f"mfu_{name}" for name in WORDS), "priced_share", "energy_j", "sm_clock_mhz", "reference_per_s", "peak_bytes",
    "flops", "kernels", "ttft_s", "tpot_s", "tpot_p99_s", *(f"mfu_prefill_{name}" for name in WORDS), "mbu_datasheet",
    "mbu_measured", "invalid",
]  # fmt: skip
"""Columns of `launches`: the machine-readable contract."""

CLOCKS = {"sm_clock_mhz": "SM clock", "reference_per_s": "speed of the CPU"}
"""Those that say how fast the device itself ran, in words, the preferred first."""

CLOCK_UNITS = {"sm_clock_mhz": " MHz", "reference_per_s": " products/s"}

UNSCALED = (*CLOCKS, "flops", "kernels", "peak_bytes", "priced_share")
"""Columns of `launches` that are no times or rates: a level has them as they are."""

_IDENTITY = (
    "name", "architecture", "mode", "batch_size", "seq_len", "prompt_len", "new_tokens", "image_crops", "dtype",
    "attention", "checkpointing", "optimizer", "freeze", "weights", "inputs", "facts",
)  # fmt: skip
"""What of a workload's description makes it this workload: no paths, seeds, devices or dates."""

_SIZES = {"batch_size": "batch", "seq_len": "seq", "prompt_len": "prompt", "new_tokens": "new", "image_crops": "crops"}

By = Literal["module", "layer", "class", "phase", "op", "kernel", "op-kernel"]

KEYS: dict[str, list[str]] = {
    "module": ["module", "phase"], "layer": ["layer", "phase"], "class": ["class", "phase"], "phase": ["phase"],
    "op": ["op"], "kernel": ["kernel"], "op-kernel": ["op", "kernel"],
}  # fmt: skip
"""What kernel time is told by. A layer is every module of that place in a stack: ``layers.*.mlp``."""

BY_NAME = ("op", "kernel", "op-kernel")
"""Those that only the traced step of the run itself has, not that of every launch."""


def launches(run: Record) -> pd.DataFrame:
    """One row per launch of a run: its timed steps as single figures.

    Args:
        run: one with the timing pass; without it there are no rows.

    Returns:
        Columns `LAUNCH_COLUMNS`, missing where a figure is not known. step_s and the times of the phases are medians
        of the launch's steps (of a training means), step_iqr_s their interquartile range, in seconds; the rates and
        each ``mfu_`` (by denominator, the ideal time of the model FLOPs over the step) follow from step_s, with the
        launch's own median SM clock; energy_j is of a step; reference_per_s is how fast the product between the steps
        was, on a CPU.
        flops (model FLOPs of the step), kernels (of the traced step) and priced_share (of the matmul kernel time of a
        GPU, that whose FLOPs are known: below `gpuprof.analysis.known_flops.NEARLY_ALL` each ``mfu_`` is a lower bound)
        are the run's. Of a generation tokens_per_s are new tokens; ttft_s, tpot_s and tpot_p99_s are as
        `gpuprof.analysis.generation.Generation` has them, of the launch; each ``mfu_prefill_`` is of the prefill alone,
        and each ``mbu_``, by bandwidth, of the decoding. invalid says why the launch is no measure of the code, empty
        where it is one.
    """
    if counters_only(run):
        raise GpuprofError(
            "a table of Nsight Compute has no step to compare: 'gpuprof show RUN --by kernel' has its kernels"
        )
    shared, ideal = _of_all(run)
    peaks = run.launches[run.launches["quantity"] == "peak_bytes"].set_index("launch")["value"]
    clock = sm_clock_hz(run)
    apart = {"generation": run.generation, "telemetry": run.telemetry}
    rows = []
    for number, samples in run.samples.groupby("launch"):
        own = {name: table[table["launch"] == number] for name, table in apart.items()}
        alone = replace(run, samples=samples, **own)
        own_clock = sm_clock_hz(alone)
        row = {"launch": number, **shared, **_figures(alone, ideal)}
        if number in peaks:
            row["peak_bytes"] = int(peaks[number])
        if own_clock and clock:
            row["sm_clock_mhz"] = own_clock / 1e6
            for name in row.keys() & {"mfu_clock", "mfu_prefill_clock"}:
                row[name] *= clock / own_clock
        rows.append(row)
    return _frame(rows)


def untimed(run: Record) -> pd.DataFrame:
    """A run without a timed step as one row of `launches`, with what is known of it all the same."""
    return _frame([{"launch": 0, "invalid": "", **_of_all(run)[0]}])


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in LAUNCH_COLUMNS})


def _of_all(run: Record) -> tuple[dict[str, Any], _Ideal]:
    """What every launch of a run has in common, and what `_flops_and_ideal` and `_at_bandwidth` give."""
    flops, ideal = _flops_and_ideal(run)
    kernels = len(run.kernels) if run.done("trace") and len(run.kernels) else None
    if run.is_job and len(run.busy):
        kernels = int(run.busy.loc[run.busy["op"] != ALL, "kernels"].sum())
    shared = {"flops": flops, "kernels": kernels, "peak_bytes": peak(run)["bytes"], "priced_share": priced_share(run)}
    return shared, ideal | _at_bandwidth(run)


_Ideal = dict[str, tuple[str, float]]
"""By column of `launches` that is a share: of which phase it is, and the seconds that the phase would take ideally."""


def _figures(launch: Record, ideal: _Ideal) -> dict[str, Any]:
    times = launch.samples.groupby("phase")["time_s"]
    middle = typical(launch, times)
    step_s = float(middle["step"])
    found = generation(launch)
    rates: dict[str, float | None] = {
        f"{unit}_per_s": amount / step_s for unit in ("tokens", "samples") if (amount := per_step(launch, unit))
    }
    if launch.workload["mode"] == "generate":
        rates["tokens_per_s"] = new_tokens_per_s(launch)
    return {
        "step_s": step_s,
        "step_iqr_s": float(times.quantile(0.75)["step"] - times.quantile(0.25)["step"]),
        **{f"{phase}_s": middle.get(phase) for phase in ("forward", "backward", "optimizer")},
        **rates,
        **({name: getattr(found, name) for name in ("ttft_s", "tpot_s", "tpot_p99_s")} if found else {}),
        **{
            name: seconds / middle[phase]
            for name, (phase, seconds) in ideal.items()
            if seconds > 0 and middle.get(phase)  # nor a NaN
        },
        "energy_j": energy_per_step_j(launch),
        "reference_per_s": 1 / middle["reference"] if "reference" in middle else None,
        "invalid": "; ".join(invalid(launch)),
    }


def _flops_and_ideal(run: Record) -> tuple[int | None, _Ideal]:
    """Model FLOPs of the step, and the seconds that they take at each known peak, as `totals` has them."""
    if not run.done("count"):
        return None, {}
    ops = counted(run)
    sums = whole_step(run)
    model = ops[ops["phase"].isin(MODEL)]
    scale = sums["flops"] / sums["counted_flops"] if sums["counted_flops"] else 1.0
    known = {} if withheld_of_step(run) else denominators(run)
    ideal: _Ideal = {}
    for name, peaks in known.items():
        seconds = ideal_seconds(model, "flops", peaks, run) * scale
        ideal[f"mfu_{name}"] = "step", float(seconds.sum(skipna=False))
        ideal[f"mfu_prefill_{name}"] = "prefill", float(seconds[model["phase"] == "prefill"].sum(skipna=False))
    return sums["flops"], ideal


def _at_bandwidth(run: Record) -> _Ideal:
    """The seconds that what decoding must move takes at each known bandwidth."""
    found = moved(run)
    if "decode" not in found.index or withheld_of_bytes(run):
        return {}
    nbytes = int(found.loc["decode", "bytes"])
    return {f"mbu_{name}": ("decode", nbytes / rate) for name, rate in bandwidths(run).items()}


def _typed(name: str, values: list[Any]) -> Any:
    if name in ("launch", "peak_bytes", "flops", "kernels"):
        return integers(values)
    return pd.Series(values, dtype="object" if name == "invalid" else "float64")


def identity(workload: dict[str, Any]) -> dict[str, Any]:
    """What all ranks of a job have in common of what makes the workload: inputs are a rank's own, and so may models be.

    A stage of a pipeline is of an architecture of its own.
    """
    own = {"inputs", "facts", *(["architecture"] if "pp" in workload.get("parallel", ()) else [])}
    return {name: workload.get(name) for name in _IDENTITY if name not in own}


def workload_key(run: Record) -> str:
    """A name for the workload that is the same wherever and whenever it runs, in characters that suit a file's name.

    Its words are for people; the eight digits at its end are a hash of all that makes the workload: model and sizes,
    dtype, attention, cache, checkpointing, optimizer, what is frozen, how it is compiled, inputs or micro-batches, and
    the architecture.
    """
    about = run.workload
    # several recorded steps taken as one are no slower than each of them
    more = {"step": "all"} if about.get("step") == "all" else {}
    more |= {name: about[name] for name in ("compiled", "micro_batches") if about.get(name)}
    cache = "static-cache" if about.get("cache") == "static" else ""
    more |= {"cache": "static"} if cache else {}
    text = json.dumps({name: about.get(name) for name in _IDENTITY} | more, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    sizes = [f"{word}{about[name]}" for name, word in _SIZES.items() if about.get(name)]
    how = [about.get("dtype"), about.get("attention"), cache, "compiled" if about.get("compiled") else ""]
    words = [about.get("name"), about.get("mode"), *sizes, *how, digest]
    return "-".join(re.sub(r"[^\w.]+", "-", str(word)) for word in words if word)


def fingerprint(run: Record) -> dict[str, str]:
    """All that has to be the same for two runs to compare, by field; empty where it is not known.

    Of a job and its ranks there are more fields than of a single process: world, rank, mesh and parallel.
    """
    device, environment = run.device, run.environment
    fields = {
        "workload": workload_key(run),
        "convention": convention_of(run),
        "flop_rules": environment.get("flop_rules"),
        "device": device.get("name"),
        "uuid": device.get("uuid"),
        "driver": device.get("driver"),
        "power_limit_w": device.get("power_limit_w"),
        "threads": environment.get("threads") if device.get("type") == "cpu" else None,
        **{name: environment.get(name) for name in ("cuda", "cublas", "cudnn", "torch", "transformers")},
        **{name: environment.get(name) for name in ("allow_tf32_matmul", "allow_tf32_cudnn")},
    }
    if run.workload.get("world", 1) > 1:
        fields |= _place(run)
    return {name: "" if value is None else str(value) for name, value in fields.items()}


def compiled(run: Record) -> bool:
    """Whether something in the workload is compiled."""
    traced = "trace" in run.passes and run.passes["trace"].facts.get("compiled")
    return bool(run.workload.get("compiled") or traced)


def _place(run: Record) -> dict[str, Any]:
    """What a run of a job or of one of its ranks has to have in common with another, beside what any has."""
    about = run.workload
    mesh = ", ".join(f"{name} {size}" for name, size in (about.get("mesh") or {}).items())
    fields = {"world": about["world"], "rank": about.get("rank"), "mesh": mesh}
    fields["parallel"] = ", ".join(about.get("parallel") or ())
    if run.is_job:
        devices = [one["device"] for one in run.device["ranks"]]
        fields["uuid"] = ", ".join(str(device["uuid"]) for device in devices if device.get("uuid"))
    return fields


def differences(base: Mapping[str, str], head: Mapping[str, str], allowed: Collection[str] = ()) -> list[str]:
    """Fields in which two fingerprints differ, each with both values: ``driver (570.1 against 575.2)``.

    Args:
        base: `fingerprint` of a run.
        head: that of the other.
        allowed: fields that may differ.

    Raises:
        GpuprofError: there is no such field.
    """
    fields = list(dict.fromkeys([*head, *base]))
    unknown = sorted(set(allowed) - set(fields))
    if unknown:
        raise GpuprofError(f"no field {', '.join(unknown)} to allow: there are {', '.join(fields)}")
    return [
        f"{name} ({base.get(name) or 'unknown'} against {head.get(name) or 'unknown'})"
        for name in fields
        if name not in allowed and base.get(name, "") != head.get(name, "")
    ]


def kernel_seconds(run: Record, by: By) -> pd.DataFrame:
    """Kernel time of a part's own work, without that of the modules inside it; kernels that overlap add up.

    Args:
        run: the run.
        by: what a part is, of `KEYS`.

    Returns:
        A row per part, a column per traced step: of every launch that has one, else (and `BY_NAME`) the run's
        own. No columns without a trace. Of a job the mean of its ranks.

    Raises:
        GpuprofError: the run is of a job, and a part is a kernel.
    """
    if run.is_job:
        return _own(run, by).groupby(parts_of(_own(run, by), run, by), sort=False)["time_s"].sum().to_frame()
    rows = run.launches[run.launches["quantity"] == "kernel_s"]
    if rows.empty or by in BY_NAME:
        kernels = owned_kernels(run)
        rows = kernels.assign(launch=0, value=kernels["duration_ns"].astype("float64") * 1e-9)
    sums = rows.groupby([*parts_of(rows, run, by), rows["launch"]], sort=False)["value"].sum()
    return sums.unstack("launch", fill_value=0.0)


def own_counts(run: Record, by: By) -> pd.DataFrame:
    """What a part does by itself: columns kernels (of the traced step) and flops (model FLOPs; none by kernel).

    Of a job those of all its ranks.
    """
    kernels, number = (_own(run, by), "all_kernels") if run.is_job else (owned_kernels(run), "kernels")
    counts = {"kernels": kernels.groupby(parts_of(kernels, run, by), sort=False)[number].sum().astype("Int64")}
    if "kernel" not in KEYS[by] and run.done("count"):
        ops = counted(run)
        counts["flops"] = ops.groupby(parts_of(ops, run, by), sort=False)["flops"].sum(min_count=1)
    return pd.DataFrame(counts).reindex(columns=["kernels", "flops"])


def _own(run: Record, by: By) -> pd.DataFrame:
    """Own work of the modules of a job, by phase and operator."""
    if "kernel" in KEYS[by]:
        require_kernels(run, f"what moved by {by}")
    return own_of_ranks(run)


def parts_of(rows: pd.DataFrame, run: Record, by: By) -> list[pd.Series]:
    """What each row belongs to, a series for each of the `KEYS`."""
    if by == "op":
        return [rows["op"].map(plain_op)]
    if by in ("kernel", "phase"):
        return [rows[by]]
    if by == "op-kernel":
        return [rows["op"].map(plain_op), rows["kernel"]]
    # a model is the same in a wrapper, and sharded
    paths = unwrapped(run.tree["module"], run.tree["class"])
    modules = rows["module"].map(lambda path: paths.get(path, path))
    if by == "layer":
        layers = {module: layer_of(module, run.recorded) for module in modules.unique()}
        return [modules.map(layers).rename("layer"), rows["phase"]]
    if by == "class":  # of what is in a wrapper: it comes after that
        classes = {
            paths[path]: unsharded(name) for path, name in zip(run.tree["module"], run.tree["class"], strict=True)
        }
        return [modules.map(classes).fillna("").rename("class"), rows["phase"]]
    return [modules, rows["phase"]]
