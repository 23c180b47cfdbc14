"""The assumption that a backward costs twice its forward, held against a run: as a whole, by module and by class.

Why it holds or not is a matter of `gpuprof.analysis.backward_causes`.
"""

from __future__ import annotations

from typing import Any, Literal

from gpuprof.analysis.backward_causes import ASSUMED, Part, explain, merged
from gpuprof.analysis.consistency import withheld
from gpuprof.analysis.counted import convention_of, counted
from gpuprof.analysis.kernel_time import busy_seconds
from gpuprof.analysis.modules import by_module
from gpuprof.analysis.once import once
from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.unpriced import ratio_withheld, reason, unpriced
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import UNATTRIBUTED, integers
from gpuprof.theory import CONVENTIONS

RATIO_COLUMNS = [
    "module", "class", "params", "trainable_params", "flops_forward", "flops_recompute", "flops_backward",
    "flops_hardware_forward", "flops_hardware_recompute", "flops_hardware_backward", "flops_executed_forward",
    "flops_executed_recompute", "flops_executed_backward", "time_forward_s", "time_recompute_s", "time_backward_s",
    "ratio_flops", "ratio_hardware", "ratio_executed", "ratio_time", "flops_explained", "cause", "reason",
]  # fmt: skip
"""Columns of `backward_ratios`: the machine-readable contract."""

_OF_COUNTS = ("ratio_flops", "ratio_hardware")
_PHASES = ("forward", "recompute", "backward")


def backward_ratios(run: Record, by: Literal["module", "class"] = "module") -> pd.DataFrame:
    """Backward over forward of every module or class, by counted FLOPs, hardware FLOPs and kernel time.

    Args:
        run: a run with a backward.
        by: what a row is: a module, its children included, or a class, a module inside another of the same class
            counted once.

    Returns:
        Columns `RATIO_COLUMNS`, without ``module`` and with ``modules``, how many there are, for classes.
        ``flops_*`` are model FLOPs in the run's convention, or the nearest of ``causal`` and ``full`` where it is a
        formula or a peer's; ``flops_hardware_*`` what the operators do, ``flops_executed_*`` what the GPU's counters
        say of them where they were read, ``time_*`` seconds of kernel time of one traced step. Recompute is in none of
        the ratios. ``flops_explained`` is what the cause predicts of the backward; ``cause`` is one of
        `gpuprof.analysis.backward_causes.CAUSES`, ``reason`` the same in words. Missing is what is not known: times
        without a trace, counts without a counting pass, a ratio to a forward of 0. Where the passes saw different
        steps, or a product in it has no rule, ratios of counts are missing and ``reason`` says why.

    Raises:
        GpuprofError: the run has no backward, or was neither counted nor traced.
    """
    if by not in ("module", "class"):
        raise GpuprofError(f"cannot hold the backward against the forward by {by!r}: known are module, class")
    table, parts, _ = _explained(run)
    rows = _by_class(table, parts) if by == "class" else _by_module(table, parts)
    everywhere, missing = withheld(run), unpriced(run)
    for index, modules in zip(rows.index, _below(run, rows), strict=True):
        if why := everywhere or reason(op for module in modules & missing.keys() for op in missing[module]):
            rows.loc[index, [*_OF_COUNTS, "flops_explained"]] = pd.NA
            rows.loc[index, ["cause", "reason"]] = "", why
    return rows


def _below(run: Record, rows: pd.DataFrame) -> list[set[str]]:
    """The modules that each row is made of: a module and those below it, or all of a class."""
    classes = {**dict(zip(run.tree["module"], run.tree["class"], strict=True)), UNATTRIBUTED: ""}
    names = "module" if "module" in rows else "class"
    found: dict[str, set[str]] = {name: set() for name in rows[names]}
    for path in classes:
        for above in ancestors(path):
            found.setdefault(above if names == "module" else classes[above], set()).add(path)
    return [found[name] for name in rows[names]]


def whole(run: Record) -> dict[str, Any]:
    """The whole step: its ratios, and the error of assuming twice the forward. None where a figure is not known.

    Keys: convention; flops_forward, flops_recompute, flops_backward; flops_hardware_, flops_executed_ and time_ of the
    same, as in `backward_ratios`; ratio_flops, ratio_hardware, ratio_executed, ratio_time; flops_assumed
    (3 x forward) and error_flops (over forward + backward, less 1), error_flops_recompute (over forward + recompute +
    backward, less 1);
    time_backward_assumed_s (2 x forward) and error_time (over the backward, less 1); step_forward_s, step_backward_s
    and ratio_step, of undisturbed steps, where the backward holds the recompute, and error_step (as error_time);
    slowed (kernel time of the traced step over the undisturbed one); cause and reason of the
    root; causes, a list of cause, flops_forward and flops_backward, the largest first, that add up to the counts;
    withheld, why there are no ratios, errors and causes of counts, empty where there are.

    Raises:
        GpuprofError: as in `backward_ratios`.
    """
    table, parts, alone = _explained(run)
    figures: dict[str, Any] = {"convention": convention_of_modules(run), "withheld": ratio_withheld(run)}
    phases = by_phase(run, convention_of_modules(run)).set_index("phase")
    for name, column, done in (
        ("flops_{}", "flops", "count"),
        ("flops_hardware_{}", "flops_hardware", "count"),
        ("time_{}_s", "kernel_time_s", "trace"),
        ("step_{}_s", "time_s", "time"),
    ):
        for phase in _PHASES:
            value = phases[column].get(phase) if run.done(done) and column in phases else None
            if value is None or pd.isna(value):
                value = 0 if run.done(done) and not name.startswith("step") else None
            figures[name.format(phase)] = value if value is None else value.item() if hasattr(value, "item") else value
    figures.pop("step_recompute_s")
    executed = table.loc[["", UNATTRIBUTED]]
    for phase in _PHASES:
        flops = executed[f"flops_executed_{phase}"].sum(skipna=False)
        figures[f"flops_executed_{phase}"] = None if pd.isna(flops) else int(flops)
    for ratio, name in (
        ("ratio_flops", "flops_{}"),
        ("ratio_hardware", "flops_hardware_{}"),
        ("ratio_executed", "flops_executed_{}"),
        ("ratio_time", "time_{}_s"),
        ("ratio_step", "step_{}_s"),
    ):
        figures[ratio] = _quotient(figures[name.format("backward")], figures[name.format("forward")])
    forward, recompute, backward = (figures[f"flops_{phase}"] for phase in _PHASES)
    figures["flops_assumed"] = None if forward is None else (1 + ASSUMED) * forward
    figures["error_flops"] = figures["error_flops_recompute"] = None
    if forward:
        figures["error_flops"] = figures["flops_assumed"] / (forward + backward) - 1
        figures["error_flops_recompute"] = figures["flops_assumed"] / (forward + recompute + backward) - 1
    time = figures["time_forward_s"]
    figures["time_backward_assumed_s"] = None if time is None else ASSUMED * time
    over = _quotient(figures["time_backward_assumed_s"], figures["time_backward_s"])
    figures["error_time"] = None if over is None else over - 1
    figures["error_step"] = ASSUMED / figures["ratio_step"] - 1 if figures["ratio_step"] else None
    figures["slowed"] = _quotient(busy_seconds(run.kernels), step_seconds(run)) if len(run.kernels) else None
    if figures["withheld"]:
        missing = dict.fromkeys((*_OF_COUNTS, "flops_assumed", "error_flops", "error_flops_recompute"))
        return figures | missing | {"cause": "", "reason": figures["withheld"], "causes": []}
    root = _by_module(table, parts).iloc[0]
    return figures | {"cause": root["cause"], "reason": root["reason"], "causes": _causes(alone)}


def require_backward(run: Record) -> None:
    """Refuse a run that has nothing to hold against the forward.

    Raises:
        GpuprofError: it has no backward, or was neither counted nor traced.
    """
    if not (run.done("count") or run.done("trace")):
        raise GpuprofError("this run was neither counted nor traced: profile again with --passes count,time,trace")
    if not ((run.ops["phase"] == "backward").any() or (run.kernels["phase"] == "backward").any()):
        remedy = "record a step of training" if run.recorded else "profile with --mode train"
        raise GpuprofError(f"this run has no backward: {remedy}")


def convention_of_modules(run: Record) -> str:
    """The run's own where it counts what ran; else, as a formula or a peer has no backward to ask, the nearest."""
    return CONVENTIONS[convention_of(run)].modules_in


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _hardware(run: Record) -> dict[tuple[str, str], int]:
    """Hardware FLOPs by module, children included, and phase."""
    sums: dict[tuple[str, str], int] = {}
    for (module, phase), flops in (
        counted(run, convention_of_modules(run)).groupby(["module", "phase"])["flops_hardware"].sum().items()
    ):
        for path in ancestors(module):
            sums[path, phase] = sums.get((path, phase), 0) + int(flops)
    return sums


def _finished(table: pd.DataFrame, parts: list[Part]) -> pd.DataFrame:
    """The table with its ratios and causes."""
    for ratio, name in (
        ("ratio_flops", "flops_{}"),
        ("ratio_hardware", "flops_hardware_{}"),
        ("ratio_executed", "flops_executed_{}"),
        ("ratio_time", "time_{}_s"),
    ):
        backward, forward = (table[name.format(p)].astype("Float64") for p in ("backward", "forward"))
        table[ratio] = backward / forward.where(forward > 0)
    table["flops_explained"] = integers(part.explained for part in parts)
    table["cause"] = [part.cause for part in parts]
    table["reason"] = ["; ".join(filter(None, [part.words, *part.notes])) for part in parts]
    return table


@once
def _explained(run: Record) -> tuple[pd.DataFrame, dict[str, Part], list[Part]]:
    """The table by module without ratios, what is known of every module, and of the modules' own products."""
    require_backward(run)
    table = by_module(run, convention_of_modules(run)).set_index("module")
    hardware = _hardware(run)
    for phase in _PHASES:
        column = f"flops_hardware_{phase}"
        known = table[f"flops_{phase}"].notna()
        table[column] = integers(hardware.get((path, phase), 0) if known[path] else None for path in table.index)
    if not run.done("count"):
        return table, {}, []
    return table, *explain(run, counted(run, convention_of_modules(run)), table)


def _by_module(table: pd.DataFrame, parts: dict[str, Part]) -> pd.DataFrame:
    return _finished(table.reset_index(), [parts.get(path, Part()) for path in table.index])[RATIO_COLUMNS]


def _by_class(table: pd.DataFrame, parts: dict[str, Part]) -> pd.DataFrame:
    classes = table["class"].to_dict()
    outermost = [
        path for path in table.index if not any(classes.get(above) == classes[path] for above in ancestors(path)[1:])
    ]
    columns = [c for c in RATIO_COLUMNS if c in table and c not in ("module", "class")]
    sums = table.loc[outermost].groupby("class", sort=False)[columns].sum(min_count=1)
    for column in (name.format(phase) for phase in _PHASES for name in ("flops_executed_{}", "time_{}_s")):
        # in part is not known
        unknown = table.loc[outermost, column].isna().groupby(table.loc[outermost, "class"], sort=False).any()
        sums[column] = sums[column].mask(unknown)
    sums.insert(0, "modules", table.groupby("class", sort=False).size())
    members: dict[str, list[str]] = {}
    for path in outermost:
        members.setdefault(classes[path], []).append(path)
    of_classes = []
    for name in sums.index:
        named = [(f"{classes[path]} {path}".strip(), parts[path]) for path in members[name] if path in parts]
        part = merged(named, together=True)
        part.notes = list(dict.fromkeys(note for _, member in named for note in member.notes if _same(named, note)))
        of_classes.append(part)
    return _finished(sums.reset_index(), of_classes)[["class", "modules", *columns, *RATIO_COLUMNS[-7:]]]


def _same(named: list[tuple[str, Part]], note: str) -> bool:
    return all(note in part.notes for _, part in named if part.forward)


def _causes(alone: list[Part]) -> list[dict[str, Any]]:
    """FLOPs by the cause that the modules' own products have."""
    sums: dict[str, list[int]] = {}
    for part in alone:
        if part.cause:
            entry = sums.setdefault(part.cause, [0, 0])
            entry[0] += part.forward
            entry[1] += part.backward
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return [
        {"cause": cause, "flops_forward": forward, "flops_backward": backward} for cause, (forward, backward) in ordered
    ]
