"""The levels of a history: since when its runs are what they are now, and which of them are noise.

A level begins with the first run, with a regression, drift or improvement that somebody accepted, and with an
improvement that the next run confirms. An improvement that is not confirmed was one odd run. A run that was refused is
of no level, and is noise once a later one came back to it; what somebody left out is neither.
"""

from __future__ import annotations

from gpuprof.analysis.noise import WINDOW
from gpuprof.late import np, pd

BEGINS = ("improvement", "regression", "drift")
"""Verdicts of runs that begin a level where somebody accepts them."""

BEGAN = 20
"""Launches that say where a level began, its first."""


def standing(runs: pd.DataFrame) -> pd.DataFrame:
    """What each run of a history is now.

    Args:
        runs: the oldest first, with verdict, accepted (bool) and decided (bool: by somebody).

    Returns:
        Those that nobody left out, with level (a number, the newest has the largest), held (whether it says what its
        level is) and noise (whether it says what the noise is).
    """
    runs = runs[runs["accepted"] | ~runs["decided"]].reset_index(drop=True)
    verdict, accepted, decided = (runs[name].to_list() for name in ("verdict", "accepted", "decided"))
    level, held = list[int](), list(accepted)
    number, confirms = 0, -1
    for at, found in enumerate(verdict):
        if found in BEGINS and accepted[at] and decided[at]:
            number += 1
        elif found == "improvement" and at != confirms:
            confirmed = verdict[at + 1 : at + 2] == ["improvement"] and accepted[at] and accepted[at + 1]
            if confirmed:
                number, confirms = number + 1, at + 1
            else:
                held[at] = False  # one odd run, or none yet
        level.append(number)
    last = {number: at for at, number in enumerate(level) if held[at]}
    noise = [at <= last.get(number, -1) for at, number in enumerate(level)]
    return runs.assign(level=np.array(level, "int64"), held=np.array(held, bool), noise=np.array(noise, bool))


def window(runs: pd.DataFrame, launches: pd.Series) -> pd.DataFrame:
    """Of what `standing` gives, the newest `WINDOW` runs and those that the newest level began with.

    Args:
        runs: as from `standing`, the oldest first.
        launches: of each run, how many are valid.

    Returns:
        Those rows, with began.
    """
    newest = runs["level"] == runs["level"].max()
    first = runs.index[newest & runs["held"]]
    before = launches.reindex(first).cumsum().shift(fill_value=0)
    began = runs.index.isin(first[before.to_numpy() < BEGAN])
    chosen = runs.assign(began=began)
    recent = pd.Series(range(len(runs)), index=runs.index) >= len(runs) - WINDOW
    return chosen[recent | began]


def to_newest(launches: pd.DataFrame, figures: list[str]) -> pd.DataFrame:
    """Launches of several levels, all scaled to the newest: their noise is left.

    Args:
        launches: with level and held; those of a level of which none is held are left out.
        figures: columns to scale, each level to the median of what it holds.
    """
    if launches["level"].nunique() == 1 and launches["held"].any():
        return launches.reset_index(drop=True)
    launches = launches[launches["held"].groupby(launches["level"]).transform("any")].reset_index(drop=True)
    medians = launches[launches["held"]].groupby("level")[figures].median()
    # missing where nothing is known of what a level holds
    scale = (medians.tail(1).to_numpy() / medians).where(medians != 0, 1.0)
    launches[figures] *= scale.reindex(launches["level"]).to_numpy()
    return launches
