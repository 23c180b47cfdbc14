"""The report of two runs: what changed between them, on one page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuprof.analysis.budget import budget
from gpuprof.analysis.check import Check, compare
from gpuprof.analysis.comparison import KEYS, differences, fingerprint, workload_key
from gpuprof.analysis.executed import counters_only
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.render.comparison import summary
from gpuprof.render.page import check_page, doubts, filled, has_budget, section
from gpuprof.render.page_cards import cards, subtitle, title
from gpuprof.render.page_tables import flat, provenance
from gpuprof.render.regression import change

_SIDES = ("base", "head")
_MOST_MOVED = 40  # rows of a table of what moved
_MOVED = ["status", "base_s", "head_s", "change_s", "change_share", "base_kernels", "head_kernels"]


def render_pair(base: Record, head: Record, convention: str | None = None, command: str = "") -> str:
    """Two runs as one self-contained HTML page: what changed, by the rules of ``check`` and ``compare``.

    Args:
        base: the one.
        head: the other.
        convention: how FLOPs are counted; each run's own by default.
        command: how the page was made.

    Raises:
        GpuprofError: as of `gpuprof.render.page.render_page`, of either.
    """
    check_page()
    runs = base, head
    if any(map(counters_only, runs)):
        raise GpuprofError(
            "a table of Nsight Compute has no step to compare: 'gpuprof show RUN --by kernel' has its kernels"
        )
    found, why = _compared(*runs)
    said = [change(found)] if found and not why else [f"Whether it is slower or faster cannot be told: {why}."]
    said += [f"{moved[0].upper()}{moved[1:]}."] if found and (moved := summary(found)) else []
    titles = [title(run) for run in runs]
    return filled(
        title=titles[0] if titles[0] == titles[1] else f"{titles[0]} against {titles[1]}",
        subtitles=[f"{side}: {subtitle(run)}" for side, run in zip(_SIDES, runs, strict=True)],
        verdict=said,
        cards=list(_pairs(*(list(cards(run, convention)) for run in runs))),
        warnings=[f"{side}: {line}" for side, run in zip(_SIDES, runs, strict=True) for line in doubts(run)],
        untold=[],
        sections=list(_sections(runs, found, why, convention, command)),
    )


def _compared(base: Record, head: Record) -> tuple[Check | None, str]:
    """The two held against each other, and why that tells nothing of the code; None where not even times are there."""
    try:
        return compare(base, head), ""
    except GpuprofError as error:
        fields = [text.partition(" (")[0] for text in differences(fingerprint(base), fingerprint(head))]
        why = f"they differ in {', '.join(fields)}" if fields else str(error)
    try:
        return (compare(base, head, allowed=fields) if fields else None), why
    except GpuprofError:
        return None, why


def _pairs(base: list[dict[str, str]], head: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """The cards of both under their names; what only one has stands alone."""
    for name in dict.fromkeys(card["name"] for card in [*base, *head]):
        sides = [
            card | {"of": side}
            for side, own in zip(_SIDES, (base, head), strict=True)
            for card in own
            if card["name"] == name
        ]
        yield {"name": name, "sides": sides}


def _sections(
    runs: tuple[Record, Record], found: Check | None, why: str, convention: str | None, command: str
) -> Iterator[dict[str, Any]]:
    from gpuprof.render import page_charts

    yield section("compared", "What is compared", " ".join([*_comparable(*runs), *(found.notes if found else ())]))
    split = [(side, budget(run, convention)) for side, run in zip(_SIDES, runs, strict=True) if has_budget(run)]
    if split:
        text = "The parts of the step of each, on one scale."
        picture = page_charts.waterfall(*(one for _, one in split), names=tuple(side for side, _ in split))
        yield section("budget", "Where the time went", text, figure=picture)
    if found and len(found.gained):
        text = "Own kernel time per step without compilation and with it, of the parts that it changed most."
        yield section("gained", "What compilation gained", text, table=flat(found.gained.head(_MOST_MOVED)))
    for by, table in found.moved.items() if found else ():
        moved = table[table["status"] != "same"]
        if table.empty:
            continue
        rows = moved.head(_MOST_MOVED).rename(columns={"change": "change_share"})
        rows = rows[[*KEYS[by], *_MOVED]].replace("", "(root)")
        of = f"The {len(rows)} largest of {len(moved)}. " if len(moved) > len(rows) else ""
        text = f"{of}Own kernel time per step, without that of the modules inside, of what moved more than its noise."
        yield section(
            f"moved-{by}", f"What moved most, by {by}", text if len(rows) else "Nothing moved.", table=_table(rows)
        )
    for side, run in zip(_SIDES, runs, strict=True):
        yield section(f"provenance-{side}", f"Provenance of {side}", table=provenance(run, convention, command))


def _comparable(base: Record, head: Record) -> Iterator[str]:
    keys = workload_key(base), workload_key(head)
    yield (
        f"Both are of the workload {keys[0]}." if keys[0] == keys[1] else f"The workloads are {keys[0]} and {keys[1]}."
    )
    prints = [fingerprint(run) | {"workload": ""} for run in (base, head)]
    if different := differences(*prints):
        yield f"{'They' if keys[0] == keys[1] else 'Beside that they'} differ in {', '.join(different)}."


def _table(rows: pd.DataFrame) -> dict[str, Any] | None:
    return flat(rows) if len(rows) else None
