"""The metrics of launches: which way is better, which of them decide, and a verdict on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gpuprof.analysis.comparison import CLOCKS
from gpuprof.analysis.denominators import WORDS
from gpuprof.analysis.judge import Verdict, judge, judge_exact, judge_interleaved
from gpuprof.analysis.noise import Runs
from gpuprof.analysis.regression import FEWEST, INCONCLUSIVE, MARGIN, Better
from gpuprof.analysis.steps import varied
from gpuprof.late import np, pd
from gpuprof.record import Record

METRICS: dict[str, Better] = {
    "step_s": "lower", "ttft_s": "lower", "tpot_s": "lower", "tpot_p99_s": "lower", "forward_s": "lower",
    "backward_s": "lower", "optimizer_s": "lower", "tokens_per_s": "higher", "samples_per_s": "higher",
    **{f"{share}_{name}": "higher" for share in ("mfu", "mfu_prefill") for name in WORDS},
    "mbu_datasheet": "higher", "mbu_measured": "higher", "energy_j": "lower",
}  # fmt: skip
"""Noisy columns of `launches`, and which way is better. All but the energy and MFU at the clock go with the clock."""

_AT_CLOCK, _BY_MEASURED = ("energy_j", "mfu_clock", "mfu_prefill_clock"), ("mfu_measured", "mfu_prefill_measured")
# metrics that a clock does not move: a CPU's measured peak was measured at its clock
_CLOCKLESS = {"sm_clock_mhz": _AT_CLOCK, "reference_per_s": (*_AT_CLOCK, *_BY_MEASURED)}

TOLERANCES: dict[str, Callable[[float], float]] = {
    "flops": lambda flops: 0,
    "kernels": lambda kernels: 0.01 * kernels,
    "peak_bytes": lambda nbytes: max(0.01 * nbytes, 16 << 20),
}
"""Columns of `launches` without noise to speak of, and how much more than the baseline's largest is no regression."""

DECIDES = {"step_s": "step time", "flops": "model FLOPs", "kernels": "kernels", "peak_bytes": "peak memory"}
"""Metrics that decide, in words; the rest are the step time in other units, parts of it, or not the code's alone."""

OF_GENERATIONS = {"ttft_s": "time to first token", "tpot_s": "time per output token"}
"""Those that decide beside them where a run generates: a step of many tokens does not show what its prefill costs."""

OF_TRAININGS = {"step_s": DECIDES["step_s"], "flops": DECIDES["flops"]}
"""Those that decide on a training whose steps are all alike: its log has no kernels and no memory."""

OF_VARIED = {
    "mfu_given": "MFU", "mfu_datasheet": "MFU", "tokens_per_s": "tokens/s", "samples_per_s": "samples/s",
    "step_s": "step time",
}  # fmt: skip
"""Of one of steps of various shapes the first that is known decides alone: what their times are of differs."""


def decides(run: Record, launches: pd.DataFrame) -> dict[str, str]:
    """Metrics that decide what becomes of a run, in words.

    Args:
        run: the run.
        launches: of it, as `gpuprof.analysis.comparison.launches` has them.
    """
    if varied(run):
        first = next(name for name in OF_VARIED if name == "step_s" or launches[name].notna().any())
        return {first: OF_VARIED[first]}
    if run.metered:
        return OF_TRAININGS
    return DECIDES | OF_GENERATIONS if run.workload["mode"] == "generate" else DECIDES


def verdicts(
    base: pd.DataFrame, head: pd.DataFrame, margin: float | None = MARGIN, interleaved: bool = False
) -> list[Verdict]:
    """A verdict on every metric that is known, by the launches that it is known of.

    Args:
        base: what `launches` gives of the baseline, the oldest first; of several runs with the columns that
            `gpuprof.history.Store.baseline` has.
        head: the same of the head. A launch of either that is not valid leaves all that is timed inconclusive.
        margin: share below which a change is none; None for the least that the noise lets be told.
        interleaved: the launches took turns.
    """
    clock = _clock(base, head)
    invalid = [text for frame in (base, head) for text in frame["invalid"] if text]
    found = []
    for metric, better in METRICS.items():
        if interleaved:
            ones, others = _paired(base, head, metric)
        else:
            clocked = clock if metric not in _CLOCKLESS.get(clock, ()) else ""
            ones, others = (with_metrics(frame, *filter(None, (metric, clocked))) for frame in (base, head))
        if held_launches(ones).empty or others.empty:
            continue
        figures = (list(ones[metric]), list(others[metric]))
        if interleaved:
            verdict = judge_interleaved(metric, *figures, MARGIN if margin is None else margin, better)
        else:
            clocks = (list(ones[clocked]), list(others[clocked])) if clocked else None
            verdict = judge(metric, *figures, margin, better, clocks, CLOCKS.get(clocked, ""), _runs_of(ones))
        if invalid:
            verdict = replace(verdict, status=INCONCLUSIVE, why=f"no measure of the code: {invalid[0]}", noise=False)
        found.append(verdict)
    for metric, tolerance in TOLERANCES.items():
        ones, others = (with_metrics(frame, metric) for frame in (held_launches(base), head))
        if len(ones) and len(others):
            most = ones[metric].max()
            found.append(judge_exact(metric, list(ones[metric]), list(others[metric]), tolerance(most)))
    return found


def with_metrics(frame: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The launches that all these metrics are known of."""
    if not set(metrics) <= set(frame):
        return frame.head(0)
    return frame[frame[list(metrics)].notna().all(axis=1)]


def _paired(base: pd.DataFrame, head: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The launches of which the metric is known of both neighbours."""
    known = base[metric].notna().to_numpy() & head[metric].notna().to_numpy()
    return base[known], head[known]


def _clock(base: pd.DataFrame, head: pd.DataFrame) -> str:
    """The one of `CLOCKS` that enough launches have, of those of the level as well; empty where none is."""
    parts = [held_launches(base), base[base["noise"]] if "noise" in base else base]
    for name in CLOCKS:
        if len(with_metrics(head, name)) and all(
            len(with_metrics(part, name)) >= min(FEWEST, len(part)) for part in parts
        ):
            return name
    return ""


def held_launches(base: pd.DataFrame) -> pd.DataFrame:
    """The launches that the head is held against: of a baseline of runs those of its level."""
    return base[base["held"] & (base["level"] == base["level"].max())] if "held" in base else base


def _runs_of(base: pd.DataFrame) -> Runs | None:
    """Whose launches those of a baseline are; None where that is not told."""
    if "run" not in base:
        return None
    since = base["level"] == base["level"].max()
    run, held, noise, began = (
        np.asarray(values)
        for values in (base["run"].factorize()[0], base["held"] & since, base["noise"], base["began"])
    )
    dates = base.loc[base["began"], "date"]
    return Runs(run, held, noise, np.asarray(since), began, str(dates.iloc[0])[:10] if len(dates) else "")


def lacking(base: pd.DataFrame, head: pd.DataFrame, deciding: Mapping[str, str]) -> list[str]:
    """What is not known of some launches, or of all, and what that means."""
    said = []
    for metric, words in deciding.items():
        sides = {"the baseline": held_launches(base), "the head": head}
        known = {side: len(with_metrics(frame, metric)) for side, frame in sides.items()}
        if nothing := [side for side, count in known.items() if not count]:
            said.append(f"Not judged: {words}, not known of {' and '.join(nothing)}.")
            continue
        said += [
            f"Of {side} only {count} of {len(sides[side])} launches have {words}, and those count."
            for side, count in known.items()
            if count < len(sides[side])
        ]
    name = _clock(base, head)
    unclocked = len(base) + len(head) - len(with_metrics(base, name)) - len(with_metrics(head, name)) if name else 0
    if not name:
        said.append("No clock was read: one that fell cannot be told from code that got slower.")
    elif unclocked:
        said.append(f"Without those launches that lack the {CLOCKS[name]}: {unclocked} of {len(base) + len(head)}.")
    return said
