"""Which earlier runs a head is held against, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gpuprof import units
from gpuprof.analysis.changepoints import change_points
from gpuprof.analysis.comparison import (
    CLOCK_UNITS,
    CLOCKS,
    LAUNCH_COLUMNS,
    UNSCALED,
    differences,
    fingerprint,
    launches,
)
from gpuprof.analysis.levels import BEGAN, to_newest
from gpuprof.analysis.noise import FEWEST_RUNS, WINDOW, Modes, modes
from gpuprof.analysis.regression import TOLD
from gpuprof.errors import GpuprofError
from gpuprof.late import np, pd
from gpuprof.record import Record

MOST = 20
"""Launches of a baseline, the newest, whose runs say what moved."""

_TELLS = 0.9  # of pairs of launches of two modes that a figure has to put in order to tell them apart


def modes_note(base: pd.DataFrame, allowed: Collection[str]) -> list[str]:
    """Two modes of the launches, if they have two, and what differs between them; what is allowed to may as well."""
    if "noise" not in base:
        return []
    rows = base[base["noise"] & base["step_s"].notna()]
    if len(rows) < TOLD or rows["run"].nunique() < FEWEST_RUNS:
        return []
    found = modes(np.log(rows["step_s"].to_numpy()))
    if len(found.at) < 2:
        return []
    hour = pd.to_datetime(rows["date"], utc=True, errors="coerce").dt.hour
    read = {CLOCKS[name]: (rows[name], unit) for name, unit in CLOCK_UNITS.items()} | {"hour": (hour, " UTC")}
    read |= {name: (rows[name], "") for name in allowed if name in rows}
    known = {name: of for name, of in read.items() if of[0].notna().any()}
    differs = [f"{name}, {text}" for name, of in known.items() if (text := _told_apart(*of, found))]
    low, high = (units.percent(share) for share in found.share)
    slower = units.percent(float(np.expm1(found.at[1] - found.at[0])))
    said = f"The launches of the baseline have two modes: {low} of them, and {high} that are {slower} slower"
    if differs:
        return [f"{said}; what differs: {'; '.join(differs)}."]
    return [f"{said}; not told apart by: {', '.join(known)}."] if known else [f"{said}."]


def _told_apart(values: pd.Series, unit: str, found: Modes) -> str:
    """What a figure, or a text, is in either mode, if it tells them apart."""
    sides = [values[(found.of == mode) & values.notna().to_numpy()] for mode in (0, 1)]
    if not all(map(len, sides)):
        return ""
    if not pd.api.types.is_numeric_dtype(values):
        most = [side.mode().iloc[0] for side in sides]
        shares = [(side == text).mean() for side, text in zip(sides, most, strict=True)]
        return " and ".join(most) if most[0] != most[1] and min(shares) >= _TELLS else ""
    low, high = (side.to_numpy(float) for side in sides)
    above = (low[:, None] > high).mean() + (low[:, None] == high).mean() / 2
    if max(above, 1 - above) < _TELLS:
        return ""
    return f"{np.median(low):,.0f} and {np.median(high):,.0f}{unit}"


def comparable_runs(
    head: Record, baseline: Sequence[Record], allowed: Collection[str]
) -> tuple[list[Record], list[str]]:
    """The runs that compare with the head, oldest first, and how many do not, by what differs.

    Raises:
        GpuprofError: none does.
    """
    own, kept, others = fingerprint(head), list[Record](), dict[tuple[str, ...], int]()
    different: tuple[str, ...] = ("there is no other run",)
    for run in sorted(baseline, key=_date):
        different = tuple(differences(fingerprint(run), own, allowed))
        if different:
            others[different] = others.get(different, 0) + 1
        else:
            kept.append(run)
    if not kept:
        allow = " ".join(f"--allow-different {text.partition(' ')[0]}" for text in different) if others else ""
        remedy = f"if meant, {allow}" if allow else "give earlier runs with --against, or put them into its folder"
        raise GpuprofError(f"nothing to hold the head against: {', '.join(different)}; {remedy}")
    return kept, [f"{number} of another {', '.join(said)}" for said, number in others.items()]


def _date(run: Record) -> str:
    return str(run.environment.get("date", ""))


def newest_launches(
    runs: Sequence[Record], allowed: Collection[str], metric: str
) -> tuple[list[Record], pd.DataFrame, list[str]]:
    """The newest `WINDOW` runs with valid launches, oldest first, those launches, and why others are not valid.

    The launches have columns of the fields of the fingerprint that may differ. Levels are those of a metric.
    """
    used, frames, invalid = list[Record](), list[pd.DataFrame](), list[str]()
    for run in reversed(runs):
        frame = launches(run)
        valid = frame[(frame["invalid"] == "") & frame[metric].notna()]
        invalid += [text for text in frame["invalid"] if text]
        if len(valid):
            used.insert(0, run)
            facts = {name: fingerprint(run).get(name, "") for name in allowed}  # of a job there are more
            frames.insert(0, valid.assign(run=-len(frames), date=_date(run), **facts))
        if len(used) == WINDOW:
            break
    if not used:
        return [], pd.DataFrame(), invalid
    base = pd.concat(frames, ignore_index=True).assign(held=True, noise=True)
    steps = base.groupby("run")[metric].median()
    places = [point.at for point in change_points(steps)]
    base["level"] = base["run"].map(pd.Series(np.searchsorted(places, range(len(steps)), "right"), index=steps.index))
    newest = base[base["level"] == base["level"].max()]
    first = newest.groupby("run").size().cumsum().shift(fill_value=0) < BEGAN
    base["began"] = base["run"].map(first).fillna(False).astype(bool)
    figures = [name for name in LAUNCH_COLUMNS if name not in ("launch", "invalid", *UNSCALED)]
    return used, to_newest(base, figures), invalid


def in_words(used: Sequence[Record], base: pd.DataFrame) -> str:
    """How many launches and runs a baseline has, and of which days."""
    dates = [_date(run)[:10] for run in used]
    days = f", {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else "") if dates[0] else ""
    launches = units.number(len(base), "launch", "launches")
    return f"Baseline: {launches} of {units.number(len(used), 'run')}{days}."


def runs_that_tell(runs: Sequence[Record]) -> Sequence[Record]:
    """The newest of some runs that have `MOST` launches together."""
    known = 0
    for number, run in enumerate(reversed(runs), start=1):
        known += len(launches(run))
        if known >= MOST:
            return runs[-number:]
    return runs
