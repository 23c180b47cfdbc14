"""The memory account: what must be there by size, what was measured, what lies between, and what another size needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpuprof.analysis.generation import held_after, is_generation
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import FORWARD, PHASES, UNATTRIBUTED

EXPECTED = ("parameters", "buffers", "gradients", "optimizer_state", "cache", "activations")
"""What must be there by the sizes of tensors."""

ACCOUNT_COLUMNS = ["moment", *EXPECTED, "expected", "before", "workspace", "measured", "residual"]
"""Columns of `account`: the machine-readable contract."""

MODULE_COLUMNS = ["module", "class", "parameters", "gradients", "activations", "retained", "peak_above_entry"]
"""Columns of `by_module`, likewise."""

_STEPS = (*FORWARD, "backward", "optimizer")
_AFTER = ("optimizer", "other")
"""Phases in which the optimizer has its state, if it had none before."""


class _Moment(NamedTuple):
    """What is there at a moment by size, and what was measured."""

    parts: dict[str, int]
    measured: int


def no_timeline(run: Record) -> str:
    """Why a run has none, and what to do."""
    if run.is_job:
        rank = run.device["ranks"][run.passes["memory"].facts["rank"]] if run.done("memory") else run.device["ranks"][0]
        file = f", {rank['file']}" if rank["file"] else ""
        return f"the file of a job has no memory timeline: that of rank {rank['rank']} may have one{file}"
    return "this run has no memory timeline: profile it again with the memory pass"


def account(run: Record) -> pd.DataFrame:
    """Expected against measured bytes at the end of each phase and at its peak.

    Measured is torch's allocated memory on CUDA, elsewhere the resident set of the process. A peak has an expectation
    only in a run with a timeline: what is kept for the backward, and which gradients are there, at the readings around.
    The cache of a generation is what it holds when the phase ends: None where the run does not say, and in `workspace`.

    Returns:
        Columns `ACCOUNT_COLUMNS`. ``expected`` is the sum of the expected quantities, ``residual`` is measured -
        expected, in two parts: ``before``, what was there before the step and is none of these (on a CPU Python and
        its libraries, on CUDA the inputs and cuBLAS's workspace), and ``workspace``, everything else.
    """
    before = _before(run)
    unknown = {"cache": None} if is_generation(run) and not held_after(run) else {}
    rows = []
    for words, moment_of in (("end of", _end), ("peak of", _peak)):
        for phase in _STEPS:
            moment = moment_of(run, phase)
            if moment is not None:
                expected = sum(moment.parts.values())
                residual = moment.measured - expected
                rows.append(
                    {
                        "moment": f"{words} {phase}", **moment.parts, **unknown, "expected": expected,
                        "before": before,
                        "workspace": residual - before, "measured": moment.measured, "residual": residual,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows, columns=ACCOUNT_COLUMNS)


def by_module(run: Record) -> pd.DataFrame:
    """What each module takes, its children included, and one row for what belongs to no module.

    Returns:
        Columns `MODULE_COLUMNS`, in bytes. ``gradients`` are those of its trainable parameters, of a training;
        ``activations`` what its forward keeps for the backward, by size. ``retained`` (what its forward left behind,
        activations and output) and ``peak_above_entry`` are measured, and missing where single modules cannot be (on
        a CPU).
    """
    memory = run.memory
    kept: dict[str, int] = {}
    for module, nbytes in memory.loc[memory["quantity"] == "activations", ["module", "bytes"]].itertuples(index=False):
        for path in ancestors(module):
            kept[path] = kept.get(path, 0) + int(nbytes)
    measured = {name: _by_module(memory, name) for name in ("retained", "peak_above_entry")}
    training = "backward" in set(memory["phase"])
    rows = [
        {
            "module": row["module"], "class": row["class"], "parameters": row["param_bytes"],
            "gradients": row["trainable_bytes"] if training else 0, "activations": kept.get(row["module"], 0),
            **{name: values.get(row["module"]) for name, values in measured.items()},
        }
        for row in run.tree.to_dict(orient="records")
    ]  # fmt: skip
    if UNATTRIBUTED in kept:
        rows.append({"module": UNATTRIBUTED, "class": "", "activations": kept[UNATTRIBUTED]})
    columns = {name: [row.get(name) for row in rows] for name in MODULE_COLUMNS}
    types = {name: "object" if name in ("module", "class") else "Int64" for name in MODULE_COLUMNS}
    return pd.DataFrame({name: pd.array(values, dtype=types[name]) for name, values in columns.items()})


def peak(run: Record) -> dict[str, Any]:
    """The highest reading of the step and what surrounds it; None where a figure is not known.

    Keys: bytes, phase, module (that ran then; empty for the loss and whatever else is in none), time_s, reserved_bytes
    (of torch's allocator, at most), fragmentation_bytes (of those, not allocated at the peak of the phase),
    outside_bytes (what the driver counts beyond the reserved: CUDA itself, libraries, and where it does not tell
    processes apart, other processes), outside_of (process or device), capacity_bytes (of the device).
    """
    peaks = {phase: value for phase in PHASES if (value := _highest_bytes(run, phase)) is not None}
    figures: dict[str, Any] = dict.fromkeys(
        ("bytes", "phase", "module", "time_s", "reserved_bytes", "fragmentation_bytes", "outside_bytes", "outside_of")
    )
    figures["capacity_bytes"] = run.device.get("memory_bytes")
    if not peaks:
        return figures
    phase = max(peaks, key=lambda name: peaks[name])
    figures |= {"bytes": peaks[phase], "phase": phase}
    index = _highest(run.timeline, phase)
    if index is not None:
        figures |= {"module": running(run.timeline)[index], "time_s": float(run.timeline["time_s"].iloc[index])}
    reserved = run.memory[run.memory["quantity"] == "reserved_peak"].set_index("phase")["bytes"]
    if len(reserved):
        figures["reserved_bytes"] = int(reserved.max())
        figures["fragmentation_bytes"] = int(reserved[phase]) - peaks[phase] if phase in reserved else None
        for quantity, whose in (("process_total", "process"), ("device_used", "device")):
            total = _measured(run, "", quantity)
            if total is not None:
                figures |= {"outside_bytes": max(total - int(reserved.max()), 0), "outside_of": whose}
                break
    return figures


def running(timeline: pd.DataFrame) -> list[str]:
    """The module that ran before each row of a timeline: the innermost open one, or that of the gradient."""
    names, open_modules = [], [""]
    for module, event in zip(timeline["module"], timeline["event"], strict=True):
        names.append(module if event == "gradient" else open_modules[-1])
        if event == "enter":
            open_modules.append(module)
        elif event == "exit" and len(open_modules) > 1:
            open_modules.pop()
    return names


@dataclass(frozen=True)
class Prediction:
    """What a step of another size is expected to need at its peak, in bytes.

    Attributes:
        phase: where its peak is.
        fixed: parameters, buffers and optimizer state.
        before: what else was there before the measured step.
        made: what the step itself makes: activations, gradients, outputs, temporaries. The most it may be.
        fragmentation: reserved beyond the allocated, in the proportion of the measured step.
        outside: what the driver counts beside torch.
        least: the sum, with the least that the step may make.
        total: the sum, with the most.
    """

    phase: str
    fixed: int
    before: int
    made: int
    fragmentation: int
    outside: int
    least: int
    total: int


def made(run: Record) -> dict[str, int]:
    """By phase, what the step itself made and was there at its peak; in the optimizer's phase, when that begins.

    Activations, gradients, outputs and temporaries: all but parameters, buffers, optimizer state, and what was there
    before the step.
    """
    sizes = _expected(run)
    aside = sizes["parameters"] + sizes["buffers"] + sizes["optimizer_state_before"] + _before(run)
    levels = {phase: _highest_bytes(run, phase) for phase in _STEPS}
    if levels["optimizer"] is not None:
        levels["optimizer"] = min(_measured(run, "optimizer", "entry") or levels["optimizer"], levels["optimizer"])
    return {phase: max(level - aside, 0) for phase, level in levels.items() if level is not None}


def predict(run: Record, simulated: Mapping[str, tuple[float, float]]) -> Prediction:
    """What a step of another size needs at its peak.

    What the measured step made beyond the simulated one either grows with it or stays as it is: the truth lies between.
    What the optimizer takes while it steps stays, as that depends on the parameters alone.

    Args:
        run: the measured step.
        simulated: by phase, bytes that a simulated step makes at the run's own size, and at the other.

    Raises:
        GpuprofError: the run has no memory readings.
    """
    sizes, before, outside = _expected(run), _before(run), peak(run)["outside_bytes"] or 0
    fixed = sizes["parameters"] + sizes["buffers"] + sizes["optimizer_state"]
    found = []
    for phase, own in made(run).items():
        here, there = simulated.get(phase, (0, 0))
        ways = (own * there / here if here else own, own + there - here)
        highest = _highest_bytes(run, phase) or 0
        # state that the optimizer made in this step is there before the next
        constant = max(highest - fixed - before - own, 0) if phase == "optimizer" else 0
        least, most = (max(round(way), 0) + constant for way in (min(ways), max(ways)))
        reserved = _measured(run, phase, "reserved_peak")
        beyond = max(reserved / highest - 1, 0.0) if reserved and highest else 0.0
        least, total = (round((1 + beyond) * (fixed + before + now)) + outside for now in (least, most))
        fragmentation = total - outside - fixed - before - most
        found.append(Prediction(phase, fixed, before, most, fragmentation, outside, least, total))
    if not found:
        raise GpuprofError("this run has no memory readings: profile it again with the memory pass")
    return max(found, key=lambda prediction: prediction.total)


def _expected(run: Record) -> dict[str, int]:
    """Bytes by size: those of `EXPECTED`, and the optimizer's state before the step."""
    analytic = run.memory[run.memory["source"] == "analytic"].groupby("quantity")["bytes"].sum()
    sizes = {name: int(analytic.get(name, 0)) for name in EXPECTED}
    return sizes | {"optimizer_state_before": int(analytic.get("optimizer_state_before", sizes["optimizer_state"]))}


def _measured(run: Record, phase: str, name: str) -> int | None:
    """A reading of the whole model: entry, exit or peak of a phase, or a quantity by its own name."""
    memory = run.memory
    names = (name, f"allocated_{name}", f"rss_{name}")
    found = memory.loc[(memory["module"] == "") & (memory["phase"] == phase) & memory["quantity"].isin(names), "bytes"]
    return int(found.iloc[0]) if len(found) else None


def _before(run: Record) -> int:
    """What was in use before the step and is neither parameter, buffer nor optimizer state; 0 if not known."""
    entries = [entry for phase in FORWARD if (entry := _measured(run, phase, "entry")) is not None]
    if not entries:
        return 0
    sizes = _expected(run)
    return max(entries[0] - sum(sizes[name] for name in ("parameters", "buffers", "optimizer_state_before")), 0)


def _end(run: Record, phase: str) -> _Moment | None:
    measured = _measured(run, phase, "exit")
    if measured is None:
        return None
    ends = run.timeline[(run.timeline["event"] == "end") & (run.timeline["phase"] == phase)]
    if len(ends):
        kept, gradients = (int(ends[name].iloc[-1]) for name in ("kept_bytes", "gradient_bytes"))
    else:  # without a timeline the ends are clear: activations until the backward, gradients from then on
        sizes = _expected(run)
        kept, gradients = (sizes["activations"], 0) if phase in FORWARD else (0, sizes["gradients"])
    return _Moment(_parts(run, phase, kept, gradients), measured)


def _peak(run: Record, phase: str) -> _Moment | None:
    index, measured = _highest(run.timeline, phase), _highest_bytes(run, phase)
    if index is None or measured is None:
        return None
    # it lay between this reading and the one before: of the two the one that more is known of
    around = run.timeline.iloc[max(index - 1, 0) : index + 1]
    readings = list(zip(around["kept_bytes"].astype(int), around["gradient_bytes"].astype(int), strict=True))
    return _Moment(_parts(run, phase, *max(readings, key=sum)), measured)


def _parts(run: Record, phase: str, kept: int, gradients: int) -> dict[str, int]:
    sizes = _expected(run)
    state = sizes["optimizer_state" if phase in _AFTER else "optimizer_state_before"]
    return {name: sizes[name] for name in EXPECTED} | {
        "activations": kept, "gradients": gradients, "optimizer_state": state, "cache": held_after(run).get(phase, 0),
    }  # fmt: skip


def _highest(timeline: pd.DataFrame, phase: str) -> int | None:
    """Number of the row of a timeline before which most was in use in a phase; the first of several."""
    phases = timeline["phase"].replace("recompute", "backward")
    rows = timeline[phases == phase]
    return None if rows.empty else int(rows["peak_bytes"].fillna(rows["bytes"]).astype("int64").idxmax())


def _highest_bytes(run: Record, phase: str) -> int | None:
    index, known = _highest(run.timeline, phase), _measured(run, phase, "peak")
    return known if known is not None or index is None else int(run.timeline["bytes"].iloc[index])


def _by_module(memory: pd.DataFrame, quantity: str) -> dict[str, int]:
    rows = memory[(memory["quantity"] == quantity) & (memory["source"] == "measured")]
    return dict(zip(rows["module"], rows["bytes"].astype(int), strict=True))
