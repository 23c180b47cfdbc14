"""The memory of a step over its time: what every picture of it draws, in seconds and bytes."""

from __future__ import annotations

from typing import Any

from gpuprof.analysis.generation import held
from gpuprof.analysis.memory import account, running
from gpuprof.late import np, pd
from gpuprof.record import Record

LAYERS = {
    "before": "before the step", "parameters": "parameters", "optimizer_state": "optimizer state", "cache": "cache",
    "gradients": "gradients", "activations": "activations kept",
}  # fmt: skip
"""What is stacked, from the bottom up, in words."""

_LEAST = 0.001  # of the highest reading, below which a layer is not drawn


def layers(run: Record) -> dict[str, Any]:
    """What is expected at each row of the timeline, in bytes: those of `LAYERS` that are not next to nothing."""
    rows = run.timeline
    ends = account(run) if rows["kept_bytes"].notna().all() else pd.DataFrame()
    after = rows["phase"].isin(["optimizer", "other"]).to_numpy()
    constant = after * 0
    stack = {
        "cache": cache(run),
        "gradients": rows["gradient_bytes"].fillna(0).to_numpy("int64"),
        "activations": rows["kept_bytes"].fillna(0).to_numpy("int64"),
    }
    if len(ends):  # without what is kept there is no account
        first, last = ends.iloc[0], ends.iloc[-1]
        state = [int(moment["optimizer_state"]) for moment in (first, last)]
        stack |= {
            "before": constant + int(first["before"]),
            "parameters": constant + int(first["parameters"]) + int(first["buffers"]),
            "optimizer_state": after * (state[1] - state[0]) + state[0],
        }
    least = _LEAST * int(rows["bytes"].max())
    return {name: stack[name] for name in LAYERS if name in stack and max(stack[name]) > least}


def cache(run: Record) -> Any:
    """Bytes of a generation's cache at each row of the timeline: after each part what the counted step held after it.

    None of any where the steps had not the same parts.
    """
    sizes, events = held(run), run.timeline["event"]
    # the step itself begins, in the phase of its first part, before that does
    begun, ended = (int((events == event).sum()) for event in ("begin", "end"))
    if begun != len(sizes) + 1 or ended != begun:
        return np.zeros(len(events), "int64")
    return np.array([0, 0, *sizes])[(events == "end").cumsum().to_numpy()]


def measured(run: Record) -> pd.DataFrame:
    """The measured line: through every reading, and through the peak between two where it was higher than both.

    Returns:
        Columns time_s, bytes, phase and module (that ran then); a peak lies halfway between its readings.
    """
    rows = run.timeline
    now = rows["bytes"].to_numpy("float64")
    highest = rows["peak_bytes"].fillna(rows["bytes"]).to_numpy("float64")
    modules = running(rows)
    line: list[tuple[float, float, str, str]] = []
    for index, (time_s, phase) in enumerate(zip(rows["time_s"].astype(float), rows["phase"], strict=True)):
        if index and highest[index] > max(now[index - 1], now[index]):
            line.append(((line[-1][0] + time_s) / 2, float(highest[index]), phase, modules[index]))
        line.append((time_s, float(now[index]), phase, modules[index]))
    return pd.DataFrame(line, columns=["time_s", "bytes", "phase", "module"])


def spans(run: Record) -> list[tuple[float, float, str]]:
    """Start, end and phase of each stretch of a phase; parts of a generation in a row are one, however many."""
    rows = run.timeline
    begun: dict[str, float] = {}
    found: list[tuple[float, float, str]] = []
    for phase, event, time_s in zip(rows["phase"], rows["event"], rows["time_s"].astype(float), strict=True):
        if event == "begin":
            begun[phase] = time_s
        elif event == "end" and phase in begun:
            start = begun.pop(phase)
            if found and found[-1][2] == phase:
                start = found.pop()[0]
            found.append((start, time_s, phase))
    return found
