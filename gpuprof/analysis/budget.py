"""Where the time of a step, or of one of its phases, went: named parts that add up to it.

Every instant of the traced step belongs to one kernel or to one gap, so nothing counts twice. The time of a kernel
falls under a part by its phase and operator; from there the bounds move what they explain to parts of their own, one
after the other: the model FLOPs at peak, the clock, the bytes, the ceiling of the shape. What no bound explains stays.
So the sum is the step whatever the bounds say, and a part is negative where work was faster than its bound.

A phase has its own kernels and the gaps before them, and the time that the timing pass saw of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from gpuprof import units
from gpuprof.analysis.bounds import BOUNDS, add_bounds, bandwidth_of
from gpuprof.analysis.budget_words import EVIDENCE, LAUNCH_GAP_S, evidence, negative, title
from gpuprof.analysis.communication import PERHAPS, collectives
from gpuprof.analysis.compiled import hardware_of_compiled
from gpuprof.analysis.consistency import withheld_of_kernels, withheld_of_step
from gpuprof.analysis.counted import convention_of, counted, formula_parts, whole_step
from gpuprof.analysis.denominators import denominators, ideal_seconds
from gpuprof.analysis.each import each, numbered
from gpuprof.analysis.generation import moved, withheld_of_bytes
from gpuprof.analysis.kernel_time import owned, rows_by
from gpuprof.analysis.known_flops import at_least, none_known
from gpuprof.analysis.once import once
from gpuprof.analysis.ranks import by_rank, require_kernels, straggler
from gpuprof.analysis.shares import regions
from gpuprof.analysis.steps import refuse_log, step_seconds
from gpuprof.analysis.untold import untold
from gpuprof.analysis.work import classified, operators
from gpuprof.errors import GpuprofError
from gpuprof.late import np, pd
from gpuprof.paths import ancestors, layer_of
from gpuprof.record import Record
from gpuprof.schema import FORWARD, MODEL, UNATTRIBUTED

PARTS = (
    "ideal", "clock", "recompute", "matmul_shape", "matmul", "attention", "memory_bytes", "memory", "optimizer",
    "communication", "idle_launch", "idle_host", "other",
)  # fmt: skip
"""The parts of a step, in the order in which they are told."""

JOB_PARTS = ("ideal", "compute", "communication", "idle", "behind")
"""Those of a job, each the mean of its ranks."""

LEAST = 0.0005
"""Share of the step below which a part is next to nothing."""

PART_COLUMNS = ["part", "title", "time_s", "share", "what"]
"""Columns of `Budget.parts`: the machine-readable contract."""


_ALIKE = 0.01
"""Share of the step by which the traced one may be shorter without a word."""


@dataclass(frozen=True)
class Budget:
    """The time of one step, or of one phase of it, in parts.

    Attributes:
        run: what was measured.
        phase: whose time it is; empty of the whole step.
        number: how many parts of a generation the phase has in a step; None of anything else, or where that varies.
        step_s: the time that is split, s: of a phase all that a step spends in it, in however many parts.
        convention: how model FLOPs are counted.
        denominator: which peak the ideal time is at, of `gpuprof.analysis.denominators.WORDS`; empty without one.
        mfu: ideal time over the step; None where no peak is known.
        hfu: the same of the FLOPs that the operators really do.
        bandwidth: bytes/s that memory-bound work is held against; None where it is not known.
        moved_bytes: of a phase of a generation those that must move in it, whatever operators do it; None of anything
            else, and where that is not known.
        parts: columns `PART_COLUMNS`, a row for each of `PARTS`, of a job for each of `JOB_PARTS`; missing is a part
            that cannot be told from the rest.
        rows: the same by module (its own work alone), phase and operator: columns module, phase, op, part, time_s.
        ops: the run's as far as they are forward or backward, op without its overload; with work and part as in
            `kernels`, and the bounds of all calls in seconds: ideal_s, and where known clock_s, bytes_s, shape_s.
        kernels: the run's, of a phase its own, op without its overload; with kind and dtype of the operator, work
            (matmul, attention, memory, communication or other), part (that its time falls under), own_s (seconds of the
            step that it alone has) and idle_s (of the gap that it ended): the two add up to the step, as far as the
            traced one shows it.
        notes: what is to be known of the figures, a sentence each.
        slowed: kernel time of the traced step over the undisturbed one; above 1 idle time cannot be told, and kernels
            are scaled down. Of a job that of the rank with most.

    Of a job, which has no kernels, ops, kernels and rows are empty.
    """

    run: Record
    phase: str
    number: int | None
    step_s: float
    convention: str
    denominator: str
    mfu: float | None
    hfu: float | None
    bandwidth: float | None
    moved_bytes: int | None
    parts: pd.DataFrame
    rows: pd.DataFrame
    ops: pd.DataFrame
    kernels: pd.DataFrame
    notes: list[str]
    slowed: float

    @property
    def rest(self) -> pd.DataFrame:
        """The rows of `parts` beside the ideal that take time, most first."""
        rows = self.parts[(self.parts["part"] != "ideal") & (self.parts["share"] >= LEAST)]
        return rows.sort_values("time_s", ascending=False, kind="stable", ignore_index=True)

    @property
    def span(self) -> str:
        """What the time is of, in a word."""
        whole = "recording" if self.run.recorded and step_seconds(self.run) is None else "step"
        return self.phase or whole

    @property
    def floor_s(self) -> float | None:
        """What those bytes take at that bandwidth: no faster can the phase be; None where either is not known."""
        return self.moved_bytes / self.bandwidth if self.moved_bytes and self.bandwidth else None

    @cached_property
    def decode(self) -> Budget | None:
        """The budget of a generation's decode, in that of the step or as its own; None without one, or its time."""
        run = self.run
        if self.phase == "decode":
            return self
        if self.phase or step_seconds(run, "decode") is None or not (run.kernels["phase"] == "decode").any():
            return None
        if formula_parts(run, self.convention) is not None:
            return None
        return budget(run, self.convention, self.denominator or None, phase="decode")

    def mine(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of rows with a phase that are of what this is the budget of."""
        return rows[rows["phase"].isin(_inside(self.phase))] if self.phase else rows

    def seconds(self, part: str) -> float:
        """Time of a part; 0 where it cannot be told from the rest."""
        return float(self.parts.set_index("part")["time_s"].fillna(0)[part])


def budget(
    run: Record, convention: str | None = None, denominator: str | None = None, ceilings: dict[str, Any] | None = None,
    phase: str | None = None,
) -> Budget:  # fmt: skip
    """Split the time of a step, or of one of its phases, into parts that add up to it.

    Args:
        run: one that was counted and traced. The step is the median of the timing pass, or the traced one without it;
            of a job that of the slowest rank.
        convention: how model FLOPs are counted; the run's own by default.
        denominator: which peak the ideal time is at; the preferred one of the run by default.
        ceilings: what `read_ceilings` gives: rates of the run's products and a bandwidth, measured on the device.
        phase: whose time; that of the whole step by default.

    Raises:
        GpuprofError: the run was not counted or traced, has no kernels, or has no such denominator or phase; or a
            phase is asked for of a job, or in a convention that knows the step as a whole alone.
    """
    if ceilings is None:
        return _budget(run, convention, denominator, phase)
    return _split(run, convention, denominator, phase, ceilings)


@once
def _budget(run: Record, convention: str | None, denominator: str | None, phase: str | None) -> Budget:
    return _split(run, convention, denominator, phase, None)


def _split(
    run: Record, convention: str | None, denominator: str | None, phase: str | None, ceilings: dict[str, Any] | None
) -> Budget:
    refuse_log(run, "budget", "trace")
    if run.busy.empty if run.is_job else run.kernels.empty or not run.done("trace") or not run.done("count"):
        raise GpuprofError("a budget needs operators and kernels: profile with the passes count, time and trace")
    known = denominators(run)
    if denominator is not None and denominator not in known:
        raise GpuprofError(f"no denominator {denominator!r} in this run: it has {', '.join(known) or 'none'}")
    name = denominator or next(iter(known), "")
    if phase is not None:
        _check_phase(run, phase, convention)
    if run.is_job:
        return _of_job(run, convention, name, known.get(name, {}), ceilings)
    peaks, cuda = {} if withheld_of_step(run) else known.get(name, {}), run.device.get("type") == "cuda"
    bandwidth = bandwidth_of(run, ceilings)
    everything = operators(run, convention, peaks)
    if phase is not None:
        everything = everything[everything["phase"].isin(_inside(phase))]
    ops = everything[everything["phase"].isin(MODEL)].copy()
    ideal_s = ops["ideal_s"].sum(skipna=False)
    reason = withheld_of_step(run) or withheld_of_kernels(run)
    if reason:
        ops["ideal_s"] = float("nan")
    else:
        add_bounds(ops, run, known.get("clock") if name == "datasheet" else None, bandwidth, ceilings)
    kernels, step_s, slowed, notes = _timed(classified(run, convention), run, phase)
    if places := regions(run):  # bounds are of the modules that have the time
        ops["module"], kernels["module"] = (
            each(rows["module"], lambda module: places.get(module, module)) for rows in (ops, kernels)
        )
    rows = _rows(kernels, step_s, ops, cuda)
    sums = rows.groupby("part")["time_s"].sum()
    unknown = {part for part, column in BOUNDS.items() if column not in ops}
    unknown |= set() if name and not reason and not none_known(run) else {"ideal"}
    flops = whole_step(run, convention)["flops"]
    if phase is not None and flops is not None:  # a formula, which knows the whole step alone, was refused before
        flops = int(ops["flops"].sum())
    facts = {"peaks": peaks, "bandwidth": bandwidth, "flops": flops}
    again = everything[everything["phase"] == "recompute"]
    facts |= {"withheld": reason, "again": float(again["flops_hardware"].sum())}
    facts["vector"] = float(again["vector_flops"].sum()) if len(run.nodes) else 0.0
    facts["unseen"] = step_s - float(kernels[["own_s", "idle_s"]].to_numpy().sum())
    parts = pd.DataFrame({"part": PARTS})
    parts["title"] = [title(part, run, unknown) for part in PARTS]
    parts["time_s"] = [float("nan") if part in unknown else float(sums.get(part, 0.0)) for part in PARTS]
    parts["share"] = parts["time_s"] / step_s
    of_parts = dict(iter(kernels[EVIDENCE].groupby("part", sort=False)))
    nothing = kernels[EVIDENCE].head(0)
    parts["what"] = [evidence(part, run, ops, kernels, of_parts.get(part, nothing), facts) for part in PARTS]
    did = run.nodes.empty or hardware_of_compiled(run) is not None
    peakless = sorted(set(ops.loc[ops["ideal_s"].isna(), "dtype"]))
    if reason:
        rates, are = ("MFU, FLOP/s and all", "are") if withheld_of_step(run) else ("All", "is")
        notes.append(f"{rates} that FLOPs would explain {are} {reason}.")
    elif name and peakless:
        notes.append(f"No {name} peak is known for {', '.join(peakless)}: no ideal time for its FLOPs, and no MFU.")
    if not name:
        notes.append(f"No ideal time: {run.device.get('peak_remedy') or 'no peak is known of this device'}.")
    notes += _perhaps(run)
    notes += [negative(part) for part in parts.loc[parts["share"] <= -LEAST, "part"]]
    notes += untold(run)
    return Budget(
        run=run, phase=phase or "", number=_number(run, phase or ""), step_s=step_s,
        convention=convention_of(run, convention), denominator=name, mfu=_share(ideal_s, step_s),
        hfu=_share(everything["hardware_s"].sum(skipna=False), step_s) if did else None,
        bandwidth=bandwidth, moved_bytes=_moved(run, phase or ""), parts=parts, rows=rows, ops=ops, kernels=kernels,
        notes=notes, slowed=slowed,
    )  # fmt: skip


def budget_by(found: Budget, by: Literal["module", "class"] = "module", depth: int | None = None) -> pd.DataFrame:
    """The budget by module or class, each its own work without that of the modules inside: rows add up to the step.

    Args:
        found: what `budget` gives.
        by: what a row is.
        depth: modules below this depth (the root is 0) are part of the one above them at it.

    Returns:
        Columns module and class, or class and modules (how many of them); time_s, share (of the step), and a column
        ``PART_s`` for each of `PARTS`; missing is a part that cannot be told from the rest. Most time beyond the ideal
        first. The gap before a kernel is its module's.

    Raises:
        GpuprofError: ``by`` is something else.
    """
    require_kernels(found.run, f"a budget by {by}")
    if by not in ("module", "class"):
        raise GpuprofError(f"no budget by {by!r}: known are module, class")
    classes = dict(zip(found.run.tree["module"], found.run.tree["class"], strict=True))
    rows = found.rows.assign(row=[_cut(module, depth) for module in found.rows["module"]])
    modules = rows.groupby(rows["row"].map(classes).fillna(""))["row"].nunique()
    if by == "class":
        rows["row"] = rows["row"].map(classes).fillna("")
    sums = rows.pivot_table(index="row", columns="part", values="time_s", aggfunc="sum").reindex(columns=list(PARTS))
    table = pd.DataFrame({"time_s": sums.sum(axis=1), "share": sums.sum(axis=1) / found.step_s})
    for part, time_s in zip(found.parts["part"], found.parts["time_s"], strict=True):
        table[f"{part}_s"] = float("nan") if pd.isna(time_s) else sums[part].fillna(0.0)
    table = table.loc[(table["time_s"] - sums["ideal"].fillna(0)).sort_values(ascending=False, kind="stable").index]
    if by == "class":
        table.insert(0, "modules", modules.reindex(table.index))
    else:
        table.insert(0, "class", table.index.map(lambda module: classes.get(module, "")))
    return table.rename_axis(by).reset_index()


def idle_owners(found: Budget, longest_gap_s: float = math.inf) -> pd.DataFrame:
    """Whose kernels the device waited for: gaps by the owner of the kernel that ended them, the longest time first.

    Args:
        found: what `budget` gives.
        longest_gap_s: gaps that were longer in the trace are left out.

    Returns:
        Columns owner (module, with ``*`` for the number of a layer), phase, op (the one waited for longest), gaps (how
        many), idle_s and share (of the step).
    """
    waited = (found.kernels["idle_s"] > 0) & (found.kernels["gap_s"] <= longest_gap_s)
    late = found.kernels.loc[waited, ["module", "phase", "op", "idle_s"]]
    recorded = found.run.recorded
    late = late.assign(owner=each(late["module"], lambda module: layer_of(module, recorded)))
    rows = []
    for (owner, phase), places in rows_by(late, ["owner", "phase"]).items():
        group = late[["op", "idle_s"]].iloc[places]
        idle_s = group["idle_s"].sum()
        op = group.groupby("op")["idle_s"].sum().idxmax()
        rows.append((owner, phase, op, len(group), idle_s, idle_s / found.step_s))
    table = pd.DataFrame(rows, columns=["owner", "phase", "op", "gaps", "idle_s", "share"])
    return table.sort_values("idle_s", ascending=False, ignore_index=True)


def phases_of(run: Record) -> list[str]:
    """Phases of a run that a budget can be of: those with a time of their own, or with kernels; in their order."""
    found = {*run.samples["phase"], *run.kernels["phase"]}
    return [phase for phase in (*FORWARD, "backward", "optimizer") if phase in found]


def _inside(phase: str) -> tuple[str, ...]:
    """Phases of operators and kernels that are timed as this one."""
    return ("backward", "recompute") if phase == "backward" else (phase,)


def _number(run: Record, phase: str) -> int | None:
    """How many parts a generation has of a phase; None where that is not known, or varies."""
    found = run.generation[run.generation["phase"] == phase].groupby(["launch", "step"]).size().unique()
    return int(found[0]) if len(found) == 1 else None


def _moved(run: Record, phase: str) -> int | None:
    """Bytes that must move in a phase of a generation, if they are of the step that was timed."""
    found = moved(run)
    return int(found.loc[phase, "bytes"]) if phase in found.index and not withheld_of_bytes(run) else None


def _check_phase(run: Record, phase: str, convention: str | None) -> None:
    require_kernels(run, "a budget of a phase")
    if phase not in (known := phases_of(run)):
        raise GpuprofError(f"no phase {phase!r} in this run that has its own time: there are {', '.join(known)}")
    if formula_parts(run, convention) is not None:
        raise GpuprofError(
            f"{convention_of(run, convention)} is a formula for the whole step, of which no phase has a part: "
            "give --convention causal"
        )


def _of_job(
    run: Record, convention: str | None, name: str, peaks: dict[str, float], ceilings: dict[str, Any] | None
) -> Budget:
    """The budget of a job: what its ranks' devices do in the step of the slowest of them."""
    if ceilings is not None:
        require_kernels(run, "a budget with ceilings")
    reason = withheld_of_step(run)
    ops = counted(run, convention)
    model = ops[ops["phase"].isin(MODEL)]
    ideal_s = ideal_seconds(model, "flops", {} if reason else peaks, run).sum(skipna=False)
    hardware_s = ideal_seconds(ops, "flops_hardware", {} if reason else peaks, run).sum(skipna=False)
    table, notes = by_rank(run), []
    rank_s = table.get("timed_s", table["step_s"])
    busy_s = table["compute_s"] + table["exposed_s"]
    if (slowed := busy_s > rank_s).any():
        notes.append(
            f"Tracing slowed the step of {units.number(int(slowed.sum()), 'rank')}: kernels that take longer than the "
            "undisturbed step are scaled down to it, and idle time cannot be told."
        )
    scale = (rank_s / busy_s).where(slowed, 1.0)
    compute_s, exposed_s = (table[part] * scale for part in ("compute_s", "exposed_s"))
    idle_s = rank_s - compute_s - exposed_s
    timed_s = step_seconds(run)
    step_s = float(rank_s.max()) if timed_s is None else timed_s
    known = ideal_s > 0 and not math.isnan(ideal_s)
    parts = pd.DataFrame({"part": JOB_PARTS})
    parts["title"] = [
        "ideal: model FLOPs at all peaks", f"compute: {'above ideal' if known else 'all of it'}",
        "communication: not hidden", "idle: devices wait", "behind: the slowest rank",
    ]  # fmt: skip
    parts["time_s"] = [
        ideal_s if known else math.nan, float(compute_s.mean()) - (ideal_s if known else 0.0), float(exposed_s.mean()),
        float(idle_s.mean()), step_s - float(rank_s.mean()),
    ]  # fmt: skip
    parts["share"] = parts["time_s"] / step_s
    flops = whole_step(run, convention)["flops"]
    parts["what"] = [
        f"{at_least(run)}{units.si(flops, 'FLOPs')} of {units.number(len(table), 'rank')}" if known else "",
        *(f"{_from_to(times)} on a rank" for times in (compute_s, exposed_s, idle_s)),
        "what the others' own steps are shorter",
    ]
    if reason:
        notes.append(f"MFU, FLOP/s and all that FLOPs would explain are {reason}.")
    elif not name:
        notes.append(f"No ideal time: {run.device.get('peak_remedy') or 'no peak is known of every device'}.")
    notes += [line] if (line := straggler(run).text) else []
    notes += [negative(part) for part in parts.loc[parts["share"] <= -LEAST, "part"]]
    return Budget(
        run=run, phase="", number=None, step_s=step_s, convention=convention_of(run, convention), denominator=name,
        mfu=_share(ideal_s, step_s), hfu=_share(hardware_s, step_s), bandwidth=bandwidth_of(run, None),
        moved_bytes=None, parts=parts,
        rows=pd.DataFrame(columns=["module", "phase", "op", "part", "time_s"]), ops=ops.head(0),
        kernels=run.kernels.assign(own_s=0.0, idle_s=0.0, gap_s=0.0), notes=notes,
        slowed=float((busy_s / rank_s).max()),
    )  # fmt: skip


def _from_to(times: pd.Series) -> str:
    low, high = units.duration(float(times.min()), 3), units.duration(float(times.max()), 3)
    return low if low == high else f"{low} to {high}"


def _share(ideal_s: float, step_s: float) -> float | None:
    return ideal_s / step_s if ideal_s > 0 else None  # a NaN is not


def _cut(module: str, depth: int | None) -> str:
    paths = ancestors(module)  # the module first, the root last
    return module if depth is None or module == UNATTRIBUTED else paths[max(len(paths) - 1 - depth, 0)]


def _timed(kernels: pd.DataFrame, run: Record, phase: str | None) -> tuple[pd.DataFrame, float, float, list[str]]:
    """The kernels with own_s and idle_s; the time that they are of, s; `Budget.slowed`; and what is to be said."""
    own, gaps = owned(
        kernels["start_ns"].to_numpy("int64"),
        kernels["duration_ns"].to_numpy("int64"),
        (kernels["part"] == "communication").to_numpy(),
    )
    if phase is not None:  # who owns an instant is known only among all
        mine = kernels["phase"].isin(_inside(phase)).to_numpy()
        kernels, own, gaps = kernels[mine].reset_index(drop=True), own[mine], gaps[mine]
    name = phase or "step"
    busy_s, gaps_s, notes = int(own.sum()) * 1e-9, int(gaps.sum()) * 1e-9, []
    timed_s = step_seconds(run, name)
    step_s = busy_s + gaps_s if timed_s is None else timed_s
    if not step_s:
        raise GpuprofError(f"the kernels of this {name} took no time: there is nothing to split")
    if timed_s is None and run.recorded:
        notes.append(
            f"The recording has no time of the {phase} but that of its kernels and the gaps before them."
            if phase
            else "No step is found in the recording: this is the whole of it."
        )
    elif timed_s is None:
        notes.append(f"No undisturbed {name} was timed: this is the traced one, which tracing lengthens.")
    if busy_s > step_s:
        notes.append(
            f"Tracing slowed the {name}: its kernels take {units.duration(busy_s)}, the undisturbed {name} "
            f"{units.duration(step_s)}. They are scaled down to it, and idle time cannot be told."
        )
    longer_s = step_s - busy_s - gaps_s
    if longer_s > _ALIKE * step_s and run.recorded:
        notes.append(f"After its last kernel {units.duration(longer_s)} of the {name} pass until the next: in other.")
    elif longer_s > _ALIKE * step_s:
        notes.append(
            f"The undisturbed {name} took {units.duration(longer_s)} longer than the traced one, whose "
            "kernels and gaps are all there is to tell it by: other holds the difference. The device was slower, or "
            "busy with something else."
        )
    own_s = own * 1e-9 * (step_s / busy_s if busy_s > step_s else 1.0)
    kernels = kernels.assign(own_s=own_s, gap_s=gaps * 1e-9)
    # tracing lengthens gaps, so there is no more idle time than it shows
    idle_s = min(max(step_s - busy_s, 0.0), gaps_s)
    kernels["idle_s"] = kernels["gap_s"] * (idle_s / gaps_s if gaps_s else 0.0)
    return kernels, step_s, busy_s / step_s, notes


def _rows(kernels: pd.DataFrame, step_s: float, ops: pd.DataFrame, cuda: bool) -> pd.DataFrame:
    """Time by owner and part: that of the kernels, the bounds moved out of it, and the gaps."""
    key = ["module", "phase", "op"]
    places, alike = numbered(kernels[[*key, "part"]])
    late = kernels.loc[kernels["idle_s"] > 0, ["gap_s", "idle_s"]]
    short = ((late["gap_s"] <= LAUNCH_GAP_S) & cuda).to_numpy("int64")
    # a row is a place among the owners, and a time: there are far fewer of them than kernels
    owners = [alike, alike.assign(part="idle_host"), alike.assign(part="idle_launch")]
    among = [places, places[late.index] + len(alike) * (1 + short)]
    times = [kernels["own_s"], late["idle_s"]]
    for part, column in BOUNDS.items():
        if column in ops:
            time_s = ops[column].fillna(0.0)
            owners += [ops[key].assign(part=part), ops[[*key, "part"]]]
            times += [time_s, -time_s]
    rest = step_s - float(kernels["own_s"].sum() + late["idle_s"].sum())
    if rest > 1e-9 * step_s:  # the step was longer than the traced one
        owners.append(pd.DataFrame([{"module": UNATTRIBUTED, "phase": "other", "op": "", "part": "other"}]))
        times.append(pd.Series([rest]))
    known, first = numbered(pd.concat(owners, ignore_index=True))
    among.append(np.arange(3 * len(alike), len(known)))
    places, there = pd.factorize(known[np.concatenate(among)])
    sums = pd.concat(times, ignore_index=True).groupby(places, sort=False).sum()
    rows = first.iloc[there].assign(time_s=sums.to_numpy())
    return rows[rows["time_s"] != 0].reset_index(drop=True)


def _perhaps(run: Record) -> list[str]:
    """What to say of kernels that may be communication and are not counted as that."""
    found = collectives(run)
    found = found[found["kind"] == PERHAPS]
    many = f" and {len(found) - 3} more" if len(found) > 3 else ""
    names = f"{', '.join(found['name'][:3])}{many}, {units.duration(found['time_s'].sum())} in all"
    return [] if found.empty else [f"Perhaps communication by name, but not counted as that: {names}."]
