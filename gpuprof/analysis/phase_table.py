"""A run per phase."""

from __future__ import annotations

from gpuprof.analysis.communication import messages
from gpuprof.analysis.compiled import hardware_of_compiled
from gpuprof.analysis.consistency import withheld_of_step
from gpuprof.analysis.counted import counted
from gpuprof.analysis.generation import moved, phases_of, withheld_of_bytes, withheld_of_kernel_bytes
from gpuprof.analysis.kernel_time import of_ranks, phase_times
from gpuprof.analysis.ran import ran
from gpuprof.analysis.rates import ideal_move_s, rate
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import step_seconds
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import ALL, PHASES, integers

_COUNTS = ("flops", "flops_full", "flops_hardware", "vector_flops", "bytes")

PHASE_COLUMNS = [
    "phase", "time_s", "flops_per_s", "mfu", "kernel_time_s", "kernel_flops_per_s", "kernel_mfu", "flops",
    "time_q1_s", "time_q3_s", "communication_time_s", "vector_flops", "bytes", "flops_full", "flops_hardware",
]  # fmt: skip
"""Columns of `by_phase`, likewise."""

GENERATION_COLUMNS = [
    "phase", "time_s", "mfu", "mbu", "kernel_time_s", "kernel_mfu", "kernel_mbu", "flops", "moved_bytes",
    "flops_per_s", "bytes_per_s", "kernel_flops_per_s", "kernel_bytes_per_s", "weights_bytes", "cache_read_bytes",
    "cache_written_bytes", "activations_bytes", "time_q1_s", "time_q3_s", "communication_time_s",
    "vector_flops", "bytes", "flops_full", "flops_hardware",
]  # fmt: skip
"""Those of a generation, likewise."""


def by_phase(run: Record, convention: str | None = None) -> pd.DataFrame:
    """One row per phase: its time in the step by events, kernel time, FLOPs, rates.

    ``time_s`` of all phases is the time of the step, as `gpuprof.analysis.steps.step_seconds` has it; quartiles are of
    each phase by itself.
    ``time_s`` of the backward includes recomputation, which cannot be told apart without a trace. ``kernel_time_s``
    includes that of communication, hidden or not, which has a column where there is any. Rates are over ``time_s``,
    those that begin with ``kernel_`` over ``kernel_time_s``.

    Of a generation the columns are `GENERATION_COLUMNS`: moved_bytes are those that must move, and what they are made
    of; mbu and kernel_mbu are their rates by the preferred bandwidth.
    """
    ops = counted(run, convention).groupby("phase")
    table = pd.DataFrame(index=pd.Index(list(PHASES), name="phase"))
    for name in (*_COUNTS, "ideal_s"):
        table[name] = ops[name].sum(min_count=1).reindex(table.index)
    if len(run.nodes):
        table["flops_hardware"] = ran(run).groupby("phase")["flops_hardware"].sum(min_count=1).reindex(table.index)
        if hardware_of_compiled(run) is None:
            table["flops_hardware"] = integers([None] * len(table))
    table["time_s"] = pd.Series({phase: step_seconds(run, phase) for phase in table.index}, dtype="float64")
    parts = phases_of(run)
    if parts:
        sizes = moved(run).add_suffix("_bytes").rename(columns={"bytes_bytes": "moved_bytes"})
        table = table.join(sizes)
    if run.done("count") and table["time_s"].notna().any():
        table["flops_per_s"] = rate(run, table["flops"], table["time_s"], withheld_of_step(run))
        table["mfu"] = rate(run, table["ideal_s"], table["time_s"], withheld_of_step(run))
        if parts:
            table["bytes_per_s"] = rate(run, table["moved_bytes"], table["time_s"], withheld_of_bytes(run))
            table["mbu"] = rate(run, ideal_move_s(run, table["moved_bytes"]), table["time_s"], withheld_of_bytes(run))
    times = run.samples.groupby("phase")["time_s"]
    for name, quantile in (("time_q1_s", 0.25), ("time_q3_s", 0.75)):
        table[name] = times.quantile(quantile).reindex(table.index)
    if run.done("trace") or len(run.busy):
        seconds = of_ranks(run).get(ALL, {}) if run.is_job else phase_times(split_kernels(run))
        table["kernel_time_s"] = pd.array([seconds.get(phase) for phase in table.index], dtype="Float64")
        if messages(run).any():
            seconds = phase_times(run.kernels[messages(run)])
            table["communication_time_s"] = pd.array([seconds.get(phase) for phase in table.index], dtype="Float64")
        table["kernel_flops_per_s"] = rate(run, table["flops"], table["kernel_time_s"])
        table["kernel_mfu"] = rate(run, table["ideal_s"], table["kernel_time_s"])
        if parts:
            time, reason = table["kernel_time_s"], withheld_of_kernel_bytes(run)
            table["kernel_bytes_per_s"] = rate(run, table["moved_bytes"], time, reason)
            table["kernel_mbu"] = rate(run, ideal_move_s(run, table["moved_bytes"]), time, reason)
    table = table[table.notna().any(axis=1)].reset_index()
    return table[[column for column in (GENERATION_COLUMNS if parts else PHASE_COLUMNS) if column in table]]
