"""A training while it runs: what its meters said at each read, all ranks together, and where that changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from gpuprof import log
from gpuprof.analysis.changepoints import MIN_CHANGE, Change, changes
from gpuprof.late import pd

FIGURES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "mfu": ("mfu", fmean), "hfu": ("hfu", fmean), "tokens_per_s": ("tokens_per_sec", sum),
    "non_padding_tokens_per_s": ("non_padding_tokens_per_sec", sum), "samples_per_s": ("samples_per_sec", sum),
    "flops_per_s": ("flops_per_sec", sum), "step_s": ("step_s", max), "between_s": ("between_s", max),
    "sm_clock_mhz": ("clock_mhz", min),
}  # fmt: skip
"""Columns of `together`: what the meter calls it, and what it is of several ranks where the meter has not said."""

FOLLOWED = ("mfu", "tokens_per_s", "step_s")
"""What is watched for changes."""

_AT_ONCE = 1  # reads by which changes of two figures may be apart and be one


class Training(NamedTuple):
    """What a rank of a training has logged so far: the newest one in the file, from its start.

    Attributes:
        header: of its newest process; empty before there is one.
        reads: what each read said, by the number of its step.
    """

    header: dict[str, Any]
    reads: dict[int, dict[str, Any]]

    def after(self, lines: Iterable[dict[str, Any]]) -> Training:
        """It with more lines of its log; what was said of steps after the one that it goes on from is no more.

        Of two reads in the same step the later had no more steps, or few; so the first stands, where it said anything.
        """
        header, reads = self.header, dict(self.reads)
        for line in lines:
            if log.begins(line):
                header = line
                reads = {step: read for step, read in reads.items() if step <= line["steps_before"]}
            elif "figures" in line:
                while reads and next(reversed(reads)) > line["step"]:
                    reads.popitem()
                if "device/step_s" not in reads.get(line["step"], ()):
                    reads[line["step"]] = line["figures"] | {"date": line["date"]}
        return Training(header, reads)


def together(ranks: Mapping[int, Training]) -> pd.DataFrame:
    """One row per read, the oldest first, once every rank has it.

    Returns:
        Columns step, date, ranks and `FIGURES`, as far as they are known of all ranks: what a meter said of all
        together, else the mean of shares, the sum of rates, the longest time and the slowest clock. And
        reference_per_s, which no meter knows and `gpuprof.analysis.changepoints.changes` asks for.
    """
    first = min(ranks)
    steps = sorted(set.intersection(*(set(one.reads) for one in ranks.values())))
    rows = []
    for step in steps:
        said = [one.reads[step] for one in ranks.values()]
        row: dict[str, Any] = {"step": step, "date": ranks[first].reads[step]["date"], "ranks": len(ranks)}
        for name, (figure, joined) in FIGURES.items():
            own = [one[f"device/{figure}"] for one in said if f"device/{figure}" in one]
            whole = next((one[figure] for one in said if figure in one), None)
            row[name] = whole if whole is not None else joined(own) if len(own) == len(said) else None
        rows.append(row)
    columns = ["step", "date", "ranks", *FIGURES]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(FIGURES, "float64"))
    return frame.assign(reference_per_s=float("nan"))


def moved(reads: pd.DataFrame, min_change: float = MIN_CHANGE) -> list[list[Change]]:
    """Where the `FOLLOWED` figures changed, those that did so at once together, in the order of time.

    Args:
        reads: as from `together`.
        min_change: smallest change, as a share.
    """
    known = [name for name in FOLLOWED if reads[name].notna().any()]
    groups: list[list[Change]] = []
    for change in changes(reads, known[0], min_change, known[1:]) if known else ():
        if groups and change.point.at - groups[-1][0].point.at <= _AT_ONCE:
            groups[-1].append(change)
        else:
            groups.append([change])
    order: Sequence[str] = (*FOLLOWED, "sm_clock_mhz")
    return [sorted(group, key=lambda change: order.index(change.metric)) for group in groups]
