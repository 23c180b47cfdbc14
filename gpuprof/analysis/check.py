"""Runs held against runs: the verdicts on their metrics as one, and whose kernels moved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan

from gpuprof import units
from gpuprof.analysis.baseline import comparable_runs, in_words, modes_note, newest_launches, runs_that_tell
from gpuprof.analysis.comparison import (
    KEYS,
    By,
    compiled,
    differences,
    fingerprint,
    launches,
    untimed,
)
from gpuprof.analysis.consistency import withheld_of_step
from gpuprof.analysis.gained import OF_MODULES, OfModules, gained
from gpuprof.analysis.judge import Verdict
from gpuprof.analysis.known_flops import known_of
from gpuprof.analysis.metrics import decides, held_launches, lacking, verdicts, with_metrics
from gpuprof.analysis.moved import moved
from gpuprof.analysis.noise import BETWEEN_RUNS, FLOOR
from gpuprof.analysis.ranks import require_kernels
from gpuprof.analysis.regression import DRIFT, IMPROVEMENT, INCONCLUSIVE, MARGIN, PASS, REGRESSION, TOLD
from gpuprof.analysis.steps import varied
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.paths import unwrapped
from gpuprof.record import Record
from gpuprof.schema import integers

ALIKE = 0.01
"""Share of the model FLOPs by which two runs may differ without a word."""


@dataclass(frozen=True)
class Check:
    """A head held against its baseline.

    Attributes:
        status: of the metrics that decide the worst: regression, drift, inconclusive, improvement or pass.
        verdicts: one for each metric that is known.
        decides: metrics that decide.
        moved: tables of `gpuprof.analysis.moved.moved`, by what a part is.
        base: the newest run of the baseline.
        head: the head, of several runs the newest.
        notes: what is to be known of it, a sentence each.
        gained: table of `gpuprof.analysis.gained.gained`, where one of the two is the other compiled.
    """

    status: str
    verdicts: list[Verdict]
    decides: Collection[str]
    moved: dict[str, pd.DataFrame]
    base: Record
    head: Record
    notes: list[str] = field(default_factory=list)
    gained: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def deciding(self) -> list[Verdict]:  # noqa: D102  # among the attributes
        return [verdict for verdict in self.verdicts if verdict.metric in self.decides]


def check(
    head: Record,
    baseline: Sequence[Record],
    margin: float | None = None,
    allowed: Collection[str] = (),
    by: Collection[By] = ("layer", "kernel"),
) -> Check:
    """Hold a run against earlier ones of the same workload in the same place.

    Args:
        head: the run in question.
        baseline: the earlier ones, in any order. Those whose `fingerprint` is another are left out, launches that are
            not valid likewise. Of the rest the newest `gpuprof.analysis.noise.WINDOW` runs say what the noise is, and
            those since the last change point of the step time what the head is held to.
        margin: share below which a change is none; None for the least that the noise lets be told.
        allowed: fields of the fingerprint that may differ.
        by: what moved is told by.

    Raises:
        GpuprofError: no run of the baseline compares, nothing was timed, or there is no such field.
    """
    comparable, left_out = comparable_runs(head, baseline, allowed)
    used, base, invalid = newest_launches(comparable, allowed, next(iter(decides(head, launches(head)))))
    left_out += [f"a launch with {text}" for text in invalid]
    described = [in_words(used, base)] if used else []
    notes = [*described, *(f"Left out of the baseline: {text}." for text in left_out)]
    return against(head, base, runs_that_tell(used), margin, by, notes, allowed)


_PLACE = ("device", "uuid", "driver", "power_limit_w", "threads", "cuda", "cublas", "cudnn")
"""Fields of a fingerprint that say where a run ran."""

NO_VERDICT = "no verdict on the code"


def compare(
    base: Record, head: Record, by: Collection[By] = (), margin: float = MARGIN, allowed: Collection[str] = ()
) -> Check:
    """Set two runs beside one another: of one workload in one place as `check` does, else without a verdict.

    Runs of two devices are compared as such, and recordings whatever they are of: a trace does not say that it is of
    the same workload. So are a model and the same compiled, by what that gained: its operators are others.

    Args:
        base: the one.
        head: the other.
        by: what moved is told by; without any by layer, and of two devices or of recordings by op and op-kernel: which
            kernels took the place of which.
        margin: share below which a change is none.
        allowed: fields of the fingerprint that may differ.

    Raises:
        GpuprofError: they do not compare otherwise, nothing was timed in a measured one, or there is no such field.
    """
    for name in by:
        for run in (base, head) if "kernel" in KEYS[name] else ():
            require_kernels(run, f"what moved by {name}")
    prints = fingerprint(base), fingerprint(head)
    across, recorded = prints[0]["device"] != prints[1]["device"], base.recorded or head.recorded
    if not (across or recorded) and compiled(base) != compiled(head) and _modules(base) == _modules(head):
        return _compiled_or_not(base, head, by, margin, allowed)
    if not (across or recorded):
        by_layer: tuple[By] = ("layer",)
        return check(head, [base], margin, allowed, by or by_layer)
    differences(*prints, allowed)  # is there such a field
    comparable_runs(head, [base], {*allowed, *(prints[1] if recorded else _PLACE)})
    before, after = (found if len(found := launches(run)) else untimed(run) for run in (base, head))
    why = f"{'of two devices' if across else 'of recordings'}: {NO_VERDICT}"
    found = [replace(verdict, status=INCONCLUSIVE, why=why) for verdict in verdicts(before, after, margin)]
    names = [run.device.get("name") or "an unknown device" for run in (base, head)]
    notes = [f"Two devices, {names[0]} and {names[1]}: what differs is theirs as well as the code's."] if across else []
    notes += [f"They differ in {', '.join(different)}."] if (different := differences(*prints, _PLACE)) else []
    counts = [frame["flops"].iloc[0] for frame in (before, after)]
    if not any(map(pd.isna, counts)) and abs(counts[1] - counts[0]) > ALIKE * counts[0]:
        notes.append("Their model FLOPs differ: they did not do the same work, or not all of it is known.")
    concluded = _concluded(found, [base], [head], notes, margin, (), by or ("op", "op-kernel"))
    return replace(concluded, status=INCONCLUSIVE)


def _compiled_or_not(base: Record, head: Record, by: Collection[By], margin: float, allowed: Collection[str]) -> Check:
    """A run beside the same compiled: no verdict, as compilation is no change of the code, and what it gained."""
    plain = [replace(run, workload={**run.workload, "compiled": None}) for run in (base, head)]
    comparable_runs(plain[1], plain[:1], allowed)
    before, after = (found if len(found := launches(run)) else untimed(run) for run in (base, head))
    why = f"of one model with compilation and without: {NO_VERDICT}"
    found = [replace(verdict, status=INCONCLUSIVE, why=why) for verdict in verdicts(before, after, margin)]
    asked = [name for name in by if name not in OF_MODULES]
    keys = {fingerprint(run)["workload"] for run in plain}
    notes = ["Their workloads differ in more than compilation."] if len(keys) > 1 else []
    concluded = _concluded(found, [base], [head], notes, margin, (), asked)
    part: OfModules = next((name for name in OF_MODULES if name in by), "layer")
    table = gained(*((base, head) if compiled(head) else (head, base)), part)
    return replace(concluded, status=INCONCLUSIVE, gained=table)


def _modules(run: Record) -> set[str]:
    """Paths of the modules of a model, whatever is put around it."""
    return set(unwrapped(run.tree["module"], run.tree["class"]).values())


def against(
    head: Record,
    base: pd.DataFrame,
    runs: Sequence[Record],
    margin: float | None = None,
    by: Collection[By] = ("layer", "kernel"),
    notes: Sequence[str] = (),
    allowed: Collection[str] = (),
) -> Check:
    """Hold a run against launches that compare with it.

    Args:
        head: the run in question.
        base: valid launches as `launches` has them, the oldest first, with the columns of
            `gpuprof.history.Store.baseline`.
        runs: those that the launches are of, or the newest of them, the newest last: for what moved.
        margin: share below which a change is none; None for the least that the noise lets be told.
        by: what moved is told by.
        notes: what is to be said of the baseline.
        allowed: fields of the fingerprint that may differ, of which the launches have columns.

    Raises:
        GpuprofError: nothing was timed.
    """
    found = launches(head)
    check_timed(held_launches(base), "the baseline")
    check_timed(found, "the head")
    told = verdicts(base, found, margin)
    deciding = decides(head, found)
    said = [*notes, *_margin_note(told, margin, deciding), *modes_note(base, allowed), *lacking(base, found, deciding)]
    if varied(head):
        decides_alone = next(iter(deciding.values()))
        said.append(f"Its steps are of various shapes: {decides_alone} decides, and not what they took.")
    return _concluded(told, runs, [head], said, _margin_of(told, margin, deciding), deciding, by)


def _first(found: Sequence[Verdict], deciding: Collection[str]) -> Verdict | None:
    """The verdict on the first metric that decides, which is the step time but for `OF_VARIED`."""
    return next((one for one in found if one.metric in deciding), None)


def _margin_note(found: Sequence[Verdict], margin: float | None, deciding: Collection[str]) -> list[str]:
    """What the least change is that this noise lets be told, where that is the margin."""
    step = _first(found, deciding)
    if margin is not None or step is None or isnan(step.margin):
        return []
    if step.known < TOLD or step.known_runs < BETWEEN_RUNS:
        of = f"{TOLD} launches of {units.number(BETWEEN_RUNS, 'run')}"
        return [f"Margin: {units.percent(MARGIN)}, until {of} say how noisy this workload is."]
    if step.s <= FLOOR * step.m0 * (1 + 1e-9):
        of = units.number(step.k, "launch", "launches")
        return [
            f"Margin: {units.percent(step.margin)}, the least that {of} can tell: none is trusted to repeat within "
            f"less than {units.percent(FLOOR)}, however quiet the baseline."
        ]
    return [f"Margin: {units.percent(step.margin)}, the least that can be told from the noise of this baseline."]


def _margin_of(found: Sequence[Verdict], margin: float | None, deciding: Collection[str]) -> float:
    first = _first(found, deciding)
    return margin if margin is not None else first.margin if first else MARGIN


def check_timed(launches: pd.DataFrame, name: str) -> None:
    """See to it that launches can be held against others.

    Args:
        launches: as `launches` has them.
        name: whose they are.

    Raises:
        GpuprofError: none has a step time.
    """
    if with_metrics(launches, "step_s").empty:
        raise GpuprofError(f"{name} has no valid timed launch: profile it again with the passes count,time,trace")


def unopposed(head: Record, why: str) -> Check:
    """A check of a run that there is nothing to hold against yet, and why: inconclusive.

    Raises:
        GpuprofError: nothing was timed.
    """
    found = launches(head)
    check_timed(found, "the head")
    deciding = decides(head, found)
    first = next(iter(deciding))
    verdict = Verdict(first, INCONCLUSIVE, nan, nan, nan, float(found[first].median()), 0, len(found), why)
    return Check(INCONCLUSIVE, [verdict], deciding, {}, head, head)


def check_interleaved(
    base: Sequence[Record], head: Sequence[Record], margin: float = MARGIN, by: Collection[By] = ("layer", "kernel")
) -> Check:
    """Hold runs against others that took turns with them on one device; the median of a run's launches is its figure.

    What differs by intent is named and not refused, and the step time alone decides.

    Args:
        base: runs of the one, in their order.
        head: as many of the other, each the neighbour of one.
        margin: share below which a change is none.
        by: what moved is told by.

    Raises:
        GpuprofError: nothing was timed, or the runs are of different devices.
    """
    prints = [fingerprint(run) for run in (*base, *head)]
    elsewhere = next((text for other in prints[1:] for text in _places(prints[0], other)), "")
    if elsewhere:
        raise GpuprofError(f"the two ran in different places: {elsewhere}; give commands that run on one device")
    ones, others = (pd.concat([_as_one(run) for run in runs], ignore_index=True) for runs in (base, head))
    different = differences(prints[0], prints[-1])
    notes = [f"They differ in {', '.join(different)}."] if different else []
    return _concluded(verdicts(ones, others, margin, interleaved=True), base, head, notes, margin, ("step_s",), by)


def _places(base: dict[str, str], head: dict[str, str]) -> list[str]:
    return differences(base, head, set(base) - {"device", "uuid"})


def _as_one(run: Record) -> pd.DataFrame:
    """A run as one row of `launches`."""
    frame = launches(run)
    check_timed(frame, "a run of the two")
    invalid = next((text for text in frame["invalid"] if text), "")
    medians = frame.drop(columns=["invalid", "flops"]).astype("float64").median().to_frame().T
    return medians.assign(flops=integers(frame["flops"].head(1)), invalid=invalid)


def _concluded(
    found: list[Verdict],
    base: Sequence[Record],
    head: Sequence[Record],
    notes: list[str],
    margin: float,
    decides: Collection[str],
    by: Collection[By],
) -> Check:
    """The verdicts as one, with what moved between the runs; arguments as in `Check` and `moved`."""
    said = {verdict.status for verdict in found if verdict.metric in decides}
    status = next((name for name in (REGRESSION, DRIFT, INCONCLUSIVE, IMPROVEMENT) if name in said), PASS)
    of_jobs = head[-1].is_job  # which have no kernels by name
    asked = [name for name in by if not (of_jobs and "kernel" in KEYS[name])]
    tables: dict[str, pd.DataFrame] = {name: moved(base, head, name, margin) for name in asked}
    one, other = (runs[-1].workload["mode"] for runs in (base, head))
    if one != other:
        notes = [*notes, f"One is of mode {one}, the other of mode {other}: their steps are not the same work."]
    sides = (("baseline", base[-1]), ("head", head[-1]))
    unknown = [f"MFU of the {side} {reason}." for side, run in sides if (reason := withheld_of_step(run))]
    unknown += [f"MFU of the {side} is at least that: {known}." for side, run in sides if (known := known_of(run))]
    return Check(status, found, decides, tables, base[-1], head[-1], [*notes, *unknown])
