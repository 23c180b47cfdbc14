"""What stands above the tree: what ran and on what, and its totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gpuprof import units
from gpuprof.analysis import communication
from gpuprof.analysis.compilation import compile_lines
from gpuprof.analysis.compiled import compiled_lines
from gpuprof.analysis.consistency import (
    withheld,
    withheld_of_kernels,
    withheld_of_owners,
)
from gpuprof.analysis.counted import convention_of, counted, hardware
from gpuprof.analysis.denominators import WORDS, denominators, ideal_seconds
from gpuprof.analysis.executed import executed_whole
from gpuprof.analysis.fused import lines
from gpuprof.analysis.generation import generation, phases_of
from gpuprof.analysis.known_flops import at_least, known_of
from gpuprof.analysis.memory import account
from gpuprof.analysis.op_tables import estimate_coverage
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.ranks import by_rank
from gpuprof.analysis.replication import sentence
from gpuprof.analysis.steps import traced, varied
from gpuprof.analysis.telemetry import (
    TRUSTED_WINDOW_S,
    energy_per_step_j,
    flops_per_joule,
    of_phases,
    summary,
    tensor_activity,
)
from gpuprof.analysis.totals import totals
from gpuprof.analysis.untold import host_steps
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.generation import generation_lines
from gpuprof.render.view import View
from gpuprof.render.what_ran import device_line, job_line, parameters_line, workload_line
from gpuprof.schema import MODEL
from gpuprof.theory import CONVENTIONS

_WORTH_TELLING = 0.01
"""Share of the step from which time outside the phases is told."""


def header(run: Record, view: View, sums: dict[str, Any]) -> RenderableType:
    """The totals as labelled lines."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, line in header_lines(run, view, sums):
        grid.add_row(label, Text(line))
    return grid


def header_lines(run: Record, view: View, sums: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each of the totals."""
    yield "Workload", workload_line(run)
    if run.workload.get("world", 1) > 1:
        yield "Job", job_line(run)
    if run.workload.get("unsharded"):
        yield "Replication", sentence(run.workload["unsharded"], run.workload["world"])
    yield "Device", device_line(run)
    convention = convention_of(run, view.convention)
    yield "Convention", f"{convention}: {CONVENTIONS[convention].title} 1 MAC = 2 FLOPs."
    if sums["params"] is not None:
        yield "Parameters", parameters_line(run, sums)
    if run.done("count") and sums["flops"] is None:
        yield "FLOPs", "unknown: the recording has no shapes of operators that multiply"
    elif run.done("count"):
        if CONVENTIONS[convention].parts is not None:
            yield "Formula", _formula(run, convention, sums)
        how = CONVENTIONS[convention]
        other = "full" if how.rule is None and how.modules_in == "causal" else "causal"
        beside = totals(run, other)
        exact = (
            sums["flops_forward"] // 2 == sums["macs"]
        )  # some conventions add elementwise FLOPs to those of products
        macs = f"= {units.si(sums['macs'], 'MACs')} matmul" if exact else f"and {units.si(sums['macs'], 'MACs')}"
        forward = f"{at_least(run)}{units.si(sums['flops_forward'], 'FLOPs')} {macs}"
        yield "Forward", f"{forward} ({other}: {units.si(beside['flops_forward'], 'FLOPs')})"
        if sums["flops_backward"]:
            if sums["backward_ratio"] is None:
                ratio = f"; x forward {sums['ratio_withheld']}"
            else:
                ratio = f" = {sums['backward_ratio']:.3f} x forward as counted (2.00 is what counters assume)"
            if how.backward_factor is not None:
                ratio = f" = {how.backward_factor} x forward as {convention} assumes, not counted"
            yield "Backward", f"{at_least(run)}{units.si(sums['flops_backward'], 'FLOPs')}{ratio}"
        whose = "checkpoints and of what the compiler computes again" if run.has("nodes") else "checkpoints"
        if sums["flops_recompute"]:
            yield (
                "Recompute",
                f"{at_least(run)}{units.si(sums['flops_recompute'], 'FLOPs')} of {whose}, not in the model's FLOPs",
            )
        beyond = f"hardware {at_least(run)}{units.si(sums['flops_hardware'], 'FLOPs')}"
        done, full = run.column("ops", "flops_hardware"), run.column("ops", "flops_full")
        skips = any(None not in both and both[0] < both[1] for both in zip(done, full, strict=True))
        if skips and (sums["flops_hardware"] or inf) < sums["flops"]:
            beyond += " (fused causal attention skips what the full square counts)"
        # of a recording those of some are not known: GELU's, whose kind no file has, or of a long list of tensors
        vectors = zip(run.column("ops", "kind"), run.column("ops", "vector_flops"), strict=True)
        untold = any(kind == "vector" and flops is None for kind, flops in vectors)
        vector = f"about {units.si(sums['vector_flops'], 'FLOPs')} (estimate)"
        if untold:
            vector = f"at least {vector}" if sums["vector_flops"] else "of unknown FLOPs"
        vector = f"vector operators {vector}"
        yield "Beside them", f"{beyond}; {vector}{_coverage(run)}"
    if sums["step_s"] is not None:
        yield "Step", _step(run, sums)
    yield from generation_lines(run, view.convention)
    if sums["flops_per_s"]:
        yield "Achieved", _achieved(run, view, sums)
    elif sums["withheld"] and (sums["step_s"] is not None or run.recorded):
        yield "Achieved", f"FLOP/s and MFU {sums['withheld']}"
    if (reason := withheld_of_kernels(run)) and not withheld(run):
        times = "times of modules, " if withheld_of_owners(run) else ""
        yield "Modules", f"{times}FLOP/s and kernel MFU below the whole step {reason}"
    if run.is_job and run.has("ranks") and (spread := _of_ranks(run, view)):
        yield "Ranks", spread
    if run.done("counters"):
        yield "Executed", _executed(run)
    if watched := _telemetry(run, view):
        yield "Telemetry", watched
    if sums["kernel_s"] is not None:
        yield "Kernels", _kernels(run, sums)
    if compiled := compilation_lines(run):
        yield "Compilation", "\n".join(compiled)
    if run.has("kernels") and (found := communication.account(run)).communication_ns:
        yield "Communication", _communication(run, found, sums["step_s"])
    if run.has("collectives") and run.is_job:
        yield "Communication", _of_job(run, sums["step_s"])
    if sums["peak_bytes"] is not None:
        yield "Memory", _memory(run, sums)


def compilation_lines(run: Record) -> list[str]:
    """All that is to be known of the compiled code of a run, a line each; else none."""
    return [*compile_lines(run), *lines(run), *compiled_lines(run)]


def _formula(run: Record, convention: str, sums: dict[str, Any]) -> str:
    causal = totals(run, "causal")["flops"]
    beside = f", {units.percent(sums['flops'] / causal)} of the counted causal FLOPs" if causal else ""
    below = f"rates and MFU of the step are of these, all else below is counted ({CONVENTIONS[convention].modules_in})"
    return f"{units.si(sums['flops'], 'FLOPs')} a step by {convention}{beside}; {below}"


def _coverage(run: Record) -> str:
    covered = estimate_coverage(run)
    return "" if covered is None else f"; torch.profiler's own estimate reaches {units.percent(covered)} of full"


def _of_ranks(run: Record, view: View) -> str:
    """The least, the median and the most of what the ranks of a job have."""
    table = by_rank(run, view.convention if view.convention in ("causal", "full") else None)
    if "timed_s" in table:
        table["step_s"] = table["timed_s"].fillna(table["step_s"])
    words: dict[str, tuple[str, Callable[[float], str]]] = {
        "step_s": ("step", units.duration), "compute_s": ("computation", units.duration),
        "exposed_s": ("exposed communication", units.duration), "mfu": ("MFU", units.percent),
        "peak_bytes": ("peak memory", units.size), "sm_clock_mhz": ("SM clock", lambda mhz: f"{mhz:,.0f} MHz"),
    }  # fmt: skip
    said = []
    for column, (name, write) in words.items():
        known = table[column].dropna().astype("float64") if column in table else table["rank"].head(0)
        if len(known):
            said.append(f"{name} {' / '.join(write(figure) for figure in (known.min(), known.median(), known.max()))}")
    return f"min / median / max: {'; '.join(said)}" if said else ""


def _step(run: Record, sums: dict[str, Any]) -> str:
    text = f"{units.duration(sums['step_s'])} {of_steps(run, sums)} (IQR {units.duration(sums['step_iqr_s'])})"
    text += ", each of the rank that took longest for it" if run.is_job else ""
    if run.recorded:
        text = _recorded_step(run, sums)
    phases = by_phase(run)
    parts = [
        f"{row.phase} {units.duration(row.time_s)}"
        for row in phases.itertuples()
        if row.time_s
        and (row.phase != "other" or row.time_s > _WORTH_TELLING * sums["step_s"])
        and units.duration(row.time_s) != units.MISSING
    ]
    of_what = ("tokens",) if run.workload.get("mode") == "generate" else ("tokens", "samples")
    rates = [f"{units.si(sums[f'{key}_per_s'])} {key}/s" for key in of_what if sums[f"{key}_per_s"]]
    return "; ".join(filter(None, [text, ", ".join(parts), ", ".join(rates)]))


def of_steps(run: Record, sums: dict[str, Any]) -> str:
    """Which steps the time of a step is of, and what of them: ``median of 20``; of a training what was left out too."""
    if not run.metered:
        return f"median of {sums['steps']}"
    facts = run.passes["time"].facts
    shapes = " of various shapes" if varied(run) else ""
    gone = [f"{number:,} {why}" for why, number in facts.get("dropped", {}).items()]
    gone += [f"{facts['uncounted']:,} not counted"] if facts.get("uncounted") else []
    without = f" without {', '.join(gone)}" if gone else ""
    resumed = f" in {facts['processes']} processes" if facts.get("processes", 1) > 1 else ""
    return f"mean of {units.number(sums['steps'], 'step')}{shapes}{resumed}{without}"


def _recorded_step(run: Record, sums: dict[str, Any]) -> str:
    """What a step of a recording is: the GPU's, from one step's first kernel to the next one's."""
    text = f"{units.duration(sums['step_s'])} "
    if run.passes["trace"].facts.get("step") == "all":
        text += "for the whole recording as one step, from its first kernel to its last"
    elif sums["steps"] == 1:
        text += "of one recorded step"
    else:
        text += f"median of {sums['steps']} recorded steps (IQR {units.duration(sums['step_iqr_s'])})"
        text += ", first kernel to first kernel" if run.device.get("type") == "cuda" else ""
    return ", ".join(filter(None, [text, host_steps(run)]))


def _achieved(run: Record, view: View, sums: dict[str, Any]) -> str:
    least, known_part = at_least(run), known_of(run)
    whose = "all ranks' model FLOPs over the slowest one's step" if run.is_job else "model FLOPs over the step"
    rate = f"{least}{units.si(sums['flops_per_s'], 'FLOP/s')} of {whose}"
    rate += ", prefill and decode mixed (apart above)" if len(phases_of(run)) > 1 else ""
    rate += f"; {known_part}" if known_part else ""
    known = denominators(run)
    if not known:
        return f"{rate}; no MFU: {run.device.get('peak_remedy') or 'no peak is known of this device'}"
    ops = counted(run, view.convention)
    model, done = ops[ops["phase"].isin(MODEL)], hardware(run, view.convention)
    formula = sums["flops"] / (sums["counted_flops"] or sums["flops"])
    lines = []
    for name, peaks in known.items():
        parts = [
            ideal_seconds(rows, column, peaks, run).sum(skipna=False) * scale / sums["step_s"]
            for rows, column, scale in ((model, "flops", formula), (done, "flops_hardware", 1.0))
        ]
        if run.has("nodes") and sums["flops_hardware"] is None:
            parts[1] = None
        peak = peaks_used(model, peaks)
        peak += " of all ranks together" if run.is_job and peak else ""
        source = run.device.get("peak_source_measured") if name == "measured" else None
        known_from = f" [{source}]" if source else ""
        shares = f"MFU {least}{units.percent(parts[0])}, HFU {least}{units.percent(parts[1])}"
        lines.append(f"{shares} of {name} ({WORDS[name]}: {peak}){known_from}")
    return "\n".join([rate, *lines])


def _executed(run: Record) -> str:
    whole = executed_whole(run)
    text = f"{units.si(whole['flops_executed'], 'FLOPs')} by the GPU's own counters"
    if whole["factor"]:
        text += f", {whole['factor']:.3f} x the counted hardware FLOPs"
    if whole["causes"]:
        text += f" ({whole['causes']})"
    if whole["residual"] is not None:
        text += f"; {units.percent(abs(whole['residual']))} unexplained"
    if whole["dram_bytes"]:
        text += f"; {units.size(whole['dram_bytes'])} moved in device memory"
    found = run.passes["counters"].facts.get("calibration", [])
    first = next((c for c in found if c["executed"] and run.counters[c["column"]].notna().any()), None)
    if first is None:
        return text
    return f"{text}; a 4096^3 matmul reads {first['dtype']} {first['executed'] / first['expected']:.4g} of its FLOPs"


def _telemetry(run: Record, view: View) -> str:
    known = summary(run)
    state = []
    if known["sm_clock_mhz"]:
        highest = f" of {known['max_sm_clock_mhz']:,.0f}" if known["max_sm_clock_mhz"] else ""
        lowest = "lowest " if run.is_job else ""
        state.append(f"{lowest}SM clock {known['sm_clock_mhz']:,.0f}{highest} MHz")
    if run.is_job and run.has("telemetry"):
        state.append(f"the rest of rank {run.passes['telemetry'].facts['rank']}, whose step is longest")
    if known["power_w"]:
        limit = f" of {known['power_limit_w']:,.0f} W" if known["power_limit_w"] else ""
        state.append(f"{known['power_w']:,.0f} W{limit}")
    state += known["limits"]
    if known["temperature_max_c"]:
        state.append(f"{known['temperature_max_c']:.0f} C")
    parts = [", ".join(state)]
    joules, per_joule, tensor = energy_per_step_j(run), flops_per_joule(run, view.convention), tensor_activity(run)
    if joules:
        rate = f", {at_least(run)}{units.si(per_joule, 'FLOP/J')} of model FLOPs" if per_joule else ""
        found = generation(run)
        if found and found.joules_per_token:
            rate = f", {units.si(found.joules_per_token, 'J')} per new token{rate}"
        parts.append(f"{units.si(joules, 'J')} per step{rate}")
    elif known["energy_j"] and known["window_s"] < TRUSTED_WINDOW_S:
        parts.append(f"a window of {units.duration(known['window_s'])} is too short for energy (more --steps)")
    if tensor:
        asked = f"where counted FLOPs ask for {units.percent(tensor.expected)}"
        parts.append(f"tensor cores busy {units.percent(tensor.busy)} by GPM {asked}")
    whole = "; ".join(part for part in parts if part)
    return "\n".join(filter(None, [whole, *_telemetry_of_phases(run)]))


def _telemetry_of_phases(run: Record) -> Iterator[str]:
    if not run.has("telemetry"):
        return
    for row in of_phases(run).to_dict("records"):
        clock = "" if pd.isna(row["sm_clock_mhz"]) else f"SM clock {row['sm_clock_mhz']:,.0f} MHz"
        power = "" if pd.isna(row["power_w"]) else f"{row['power_w']:,.0f} W"
        medians = ", ".join(filter(None, [clock, power]))
        yield f"{row['phase']}: {medians}, medians of {units.number(row['readings'], 'reading')} within it"


def peaks_used(ops: pd.DataFrame, peaks: dict[str, float]) -> str:
    """The peaks that the FLOPs of rows of ``ops`` may run against, in words: ``bfloat16 989.4 TFLOP/s``."""
    return ", ".join(f"{dtype} {units.si(peaks[dtype], 'FLOP/s')}" for dtype in _dtypes(ops) if dtype in peaks)


def _dtypes(ops: Any) -> list[str]:
    names = list(dict.fromkeys(ops.loc[ops["flops"].fillna(0) > 0, "dtype"]))
    return [name for dtype in names for name in ((dtype, "tf32") if dtype == "float32" else (dtype,))]


def _kernels(run: Record, sums: dict[str, Any]) -> str:
    what = "kernel time" if run.device.get("type") == "cuda" else "operator time"
    whose = f"{'a' if run.is_job else 'the'} {traced(run)}{' of a rank, the mean of all' if run.is_job else ''}"
    text = f"{units.duration(sums['kernel_s'])} of {what} in {whose}"
    if sums["step_s"]:
        whole = "it" if run.recorded else "the undisturbed one"
        text += f", {units.percent(sums['kernel_s'] / sums['step_s'])} of {whole}"
    return f"{text}; {units.percent(sums['owned_share'])} has an owner"


def _communication(run: Record, found: communication.Account, step_s: float | None) -> str:
    took, exposed = (units.duration(part * 1e-9) for part in (found.communication_ns, found.exposed_ns))
    whole_s = step_s if run.recorded and step_s else found.step_ns * 1e-9  # where both are of one step
    share = units.percent(found.exposed_ns * 1e-9 / whole_s)
    whole = "recording" if run.recorded and not step_s else "step"
    return f"{took} in the {traced(run)}; no computation hides {exposed}, {share} of the {whole}"


def _of_job(run: Record, step_s: float | None) -> str:
    table = by_rank(run)
    took, exposed = (float(table[f"{part}_s"].mean()) for part in ("communication", "exposed"))
    share = f", {units.percent(exposed / step_s)} of the step" if step_s else ""
    return (
        f"{units.duration(took)} in a traced step of a rank, the mean of all; no computation hides "
        f"{units.duration(exposed)}{share}"
    )


def _memory(run: Record, sums: dict[str, Any]) -> str:
    cuda = run.device.get("type") == "cuda"
    text = f"peak {units.size(sums['peak_bytes'])} {'allocated' if cuda else 'resident set of the process'}"
    text += f" on rank {run.passes['memory'].facts['rank']}, the most of all" if run.is_job else ""
    if sums["peak_reserved_bytes"]:
        text += f", {units.size(sums['peak_reserved_bytes'])} reserved"
    total = run.memory.loc[run.memory["quantity"] == "process_total", "bytes"]
    if len(total):
        text += f", {units.size(total.iloc[0])} held by the process as NVML sees it"
    rows = account(run)
    if len(rows):
        end = rows.iloc[0]
        named = [("parameters", "parameters"), ("gradients", "gradients"), ("optimizer_state", "optimizer"),
                 ("cache", "cache"), ("activations", "activations")]  # fmt: skip
        parts = [f"{words} {units.size(end[name])}" for name, words in named if end[name]]
        text += f"\n{end['moment']}: expected {', '.join(parts)}; measured {units.size(end['measured'])}"
        text += f", residual {units.size(end['residual'])}" + ("" if cuda else " (with Python and its libraries)")
    return text
