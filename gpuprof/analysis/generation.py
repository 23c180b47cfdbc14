"""What a generation is judged by: time to the first token and to each further one, the bytes that must move, and MBU.

Prefill is bound by arithmetic and decode by memory, so each has its own measure. MBU (memory bandwidth utilisation) is
bytes that must move / time / bandwidth. The bytes are those of the table ``traffic``, a lower bound of what is moved.
Where they are of another step than the time, or not all of them are known, there is no MBU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gpuprof import units
from gpuprof.analysis.consistency import mismoved, withheld_of_kernels, withheld_of_step
from gpuprof.analysis.kernel_time import of_ranks, phase_times
from gpuprof.analysis.once import once
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import step_seconds
from gpuprof.analysis.telemetry import energy_per_step_j
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record
from gpuprof.schema import ALL, FORWARD, TRAFFIC, integers

PARTS = tuple(phase for phase in FORWARD if phase != "forward")
"""Phases of a generation, in their order."""

MOVED_COLUMNS = [what.replace(" ", "_") for what in TRAFFIC] + ["bytes"]
"""Columns of `moved`: the kinds of traffic, and their sum."""

PART_COLUMNS = ["part", "phase", "positions_before", "time_s", "mbu", "bytes", "time_q1_s", "time_q3_s"]
"""Columns of `parts`."""

BANDWIDTHS = {"datasheet": "datasheet bandwidth", "measured": "bandwidth of a copy measured on this device"}
"""`bandwidths`, the preferred first, in words."""


@dataclass(frozen=True)
class Generation:
    """What a generation costs who waits for it; None where a figure is not known.

    Attributes:
        generations: how many a step makes: one, but for a step of the user's own that generates several times.
        sequences: that are generated at once.
        prompt: positions of each that the prefill takes in.
        new_tokens: of each sequence in one generation; the prefill gives the first of them.
        ttft_s: time to first token: from where the generation begins to the end of its last prefill, encoding
            included. The median of the launches' medians, as step times are.
        tpot_s: time per output token: that of a decode part, likewise.
        tpot_p90_s: its 90th percentile over all decode parts of all timed steps.
        tpot_p99_s: its 99th, likewise.
        tokens_per_s: new tokens of all sequences over the step.
        decode_tokens_per_s: sequences over `tpot_s`.
        joules_per_token: energy of the telemetry's window over the new tokens in it.
        cache_bytes_per_token: what the cache grows by, per sequence and position, in the last step of decoding.
        cache_bytes: what the cache holds at the end of the step.
    """

    generations: int | None = None
    sequences: int | None = None
    prompt: int | None = None
    new_tokens: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tpot_p90_s: float | None = None
    tpot_p99_s: float | None = None
    tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    joules_per_token: float | None = None
    cache_bytes_per_token: int | None = None
    cache_bytes: int | None = None


@once
def phases_of(run: Record) -> list[str]:
    """The `PARTS` that a run has, in their order; none of one that is no generation."""
    found = {phase for name in ("ops", "samples", "kernels", "busy") for phase in run.distinct(name, "phase")}
    return [phase for phase in PARTS if phase in found]


def is_generation(run: Record) -> bool:
    """Whether a run has the phases of a generation; files of before schema 6 call them all forward."""
    return bool(phases_of(run))


def untold_parts(run: Record) -> str:
    """Why a generation has no prefill and decode; empty where it has, and of any other run."""
    if run.workload.get("mode") != "generate" or is_generation(run):
        return ""
    if run.recorded:
        return "the recording does not tell prefill and decode apart"
    return "this file does not tell prefill and decode apart: an older gpuprof wrote it, profile again"


def generation(run: Record) -> Generation | None:
    """The figures of a generation; None of any other run."""
    if not is_generation(run):
        return None
    made = _generations(run)
    sequences, new_tokens = _size(run, made)
    times = run.generation[run.generation["phase"] == "decode"]
    single = bool((times["positions"] == 1).fillna(False).all()) and len(times) > 0
    tpot_s = _median(times["time_s"], times["launch"]) if single else None
    ninety, most = (float(times["time_s"].quantile(share)) if single else None for share in (0.9, 0.99))
    energy_j, tokens = energy_per_step_j(run), _one(_tokens(made))
    return Generation(
        generations=_one(made.groupby(["launch", "step"]).size()),
        sequences=sequences,
        prompt=_one(made["prompt"]) if len(made) else run.workload.get("prompt_len"),
        new_tokens=new_tokens,
        ttft_s=_median(made["ttft_s"], made["launch"]),
        tpot_s=tpot_s,
        tpot_p90_s=ninety,
        tpot_p99_s=most,
        tokens_per_s=new_tokens_per_s(run),
        decode_tokens_per_s=sequences / tpot_s if sequences and tpot_s else None,
        joules_per_token=energy_j / tokens if energy_j and tokens else None,
        cache_bytes_per_token=_growth(run, sequences),
        cache_bytes=next(iter(held(run)[-1:]), None),
    )


def new_tokens_per_s(run: Record) -> float | None:
    """New tokens of all sequences over the step, also of a file from before schema 6; None where they are not known."""
    made = _generations(run)
    if made.empty:  # a generation of gpuprof's own is as long as it was asked to be
        sequences, new_tokens = _size(run, made)
        step_s = step_seconds(run)
        return sequences * new_tokens / step_s if sequences and new_tokens and step_s else None
    steps = run.samples[run.samples["phase"] == "step"].set_index(["launch", "step"])["time_s"]
    tokens = _tokens(made)
    seconds = steps.reindex(tokens.index) / tokens.astype("Float64")
    per_token_s = _median(seconds, seconds.index.get_level_values("launch"))
    return 1 / per_token_s if per_token_s else None


@once
def moved(run: Record) -> pd.DataFrame:
    """Bytes that must move in each phase of one step, as the counting pass found them.

    Returns:
        Rows by phase, in their order; columns `MOVED_COLUMNS`, exact integers. Empty where they are not known, as
        `unknown_bytes` says.
    """
    found = _moved(_traffic(run, whole=True), "phase")
    return found.loc[[phase for phase in PARTS if phase in found.index]]


def moved_by_module(run: Record, phase: str) -> pd.DataFrame:
    """The same of each module, children included, in a phase; the row of the root is what the phase must move.

    Args:
        run: the run.
        phase: of a generation.

    Returns:
        Rows by module that moves anything, columns `MOVED_COLUMNS`. Weights that several modules read are those of the
        one that reads them first in a part.
    """
    rows = _traffic(run, whole=False)
    rows = rows[rows["phase"] == phase]
    owners = [(above, index) for index, module in rows["module"].items() for above in ancestors(module)]
    up = rows.loc[[index for _, index in owners]].assign(module=[path for path, _ in owners])
    return _moved(up, "module")


def bandwidths(run: Record) -> dict[str, float]:
    """Bytes per second of the device's memory as far as they are known, the preferred first.

    Returns:
        ``datasheet``, and ``measured``: of a copy on this very device, what it reads and writes. Of a job those of all
        its devices together.
    """
    known = {"datasheet": run.device.get("memory_bandwidth"), "measured": run.device.get("measured_bandwidth")}
    return {name: value for name, value in known.items() if value}


def bandwidth(run: Record) -> tuple[str, float]:
    """The preferred of the `bandwidths` by name; an empty name and a NaN where none is known."""
    return next(iter(bandwidths(run).items()), ("", math.nan))


def unknown_bytes(run: Record) -> str:
    """Why the bytes that must move are not known, though the step was counted; empty where they are."""
    if not run.done("count") or not is_generation(run):
        return ""
    reasons = [*run.passes["count"].facts.get("traffic_unknown", ()), *mismoved(run)]
    if reasons:
        return f"unknown: {reasons[0]}" + (f" (and {len(reasons) - 1} more such)" if len(reasons) > 1 else "")
    if run.traffic.empty:
        return (
            "unknown: no recording tells the bytes that must move"
            if run.recorded
            else "unknown: the bytes that must move were not counted"
        )
    return ""


@once
def withheld_of_bytes(run: Record) -> str:
    """Why bytes and times of a step are not held against each other: empty where they may be.

    Beside what withholds every rate of a step, a generation may have other parts when it is timed than when counted.
    """
    if reason := withheld_of_step(run) or unknown_bytes(run):
        return reason
    if run.generation.empty or run.traffic.empty:
        return ""
    counted = _counted_parts(run)
    for _, step in run.generation.groupby(["launch", "step"]):
        if (timed := _parts_of(step)) != counted:
            return f"withheld: the counted step has {_words(counted)}, a timed one {_words(timed)}"
    return ""


def withheld_of_kernel_bytes(run: Record) -> str:
    """The same of modules, and of phases where their time is the trace's."""
    return withheld_of_bytes(run) or withheld_of_kernels(run)


def mbu(run: Record, phase: str = "decode") -> dict[str, float]:
    """Share of the bandwidth that the bytes which must move in a phase are, over its time in the undisturbed step.

    Returns:
        By the name of each of the `bandwidths`; empty where it is not known or withheld, as `withheld_of_bytes` says.
    """
    return {} if withheld_of_bytes(run) else _shares(run, phase, step_seconds(run, phase))


def kernel_mbu(run: Record, phase: str = "decode") -> dict[str, float]:
    """The same over the kernel time of the traced step; empty too where `withheld_of_kernel_bytes` says why."""
    return {} if withheld_of_kernel_bytes(run) else _shares(run, phase, _kernel_seconds(run).get(phase))


def parts(run: Record) -> pd.DataFrame:
    """One row per part of a step: how the time of a step of decoding grows with the cache.

    Returns:
        Columns `PART_COLUMNS`: positions_before are those that the parts before it have put into the cache of each
        sequence, in the same generation; time_s is the median of the launches' medians, with the quartiles of all
        steps; mbu is over that time, of the preferred one of the `bandwidths`. What is not known is missing. Where
        steps differ in what their parts are, each kind of a part has a row.
    """
    timed = _numbered(run)
    key = ["part", "phase"]
    groups = timed.groupby(key)
    table = pd.DataFrame(
        {
            "positions_before": groups["positions_before"].agg(lambda found: found.iloc[0] if _agree(found) else pd.NA),
            "time_s": timed.groupby([*key, "launch"])["time_s"].median().groupby(key).median(),
            "time_q1_s": groups["time_s"].quantile(0.25),
            "time_q3_s": groups["time_s"].quantile(0.75),
        }
    )
    found = _moved(_traffic(run, whole=True), key)["bytes"]
    table = table.reindex(table.index.union(found.index))
    table["bytes"] = integers(found.reindex(table.index))
    table["positions_before"] = table["positions_before"].astype("Int64")
    rate = table["bytes"].astype("Float64") / table["time_s"].where(table["time_s"] > 0)
    table["mbu"] = rate / bandwidth(run)[1] if bandwidths(run) and not withheld_of_bytes(run) else pd.NA
    table["mbu"] = table["mbu"].astype("Float64")
    return table.reset_index()[PART_COLUMNS]


def _parts_of(rows: pd.DataFrame) -> list[str]:
    return [str(phase) for phase in rows.sort_values("part")["phase"]]


def _counted_parts(run: Record) -> list[str]:
    return _parts_of(run.traffic[run.traffic["module"] == ALL].drop_duplicates("part"))


def _words(phases: list[str]) -> str:
    found = [units.number(phases.count(phase), f"part of {phase}", f"parts of {phase}") for phase in PARTS]
    return ", ".join(words for words, phase in zip(found, PARTS, strict=True) if phase in phases)


def _traffic(run: Record, whole: bool) -> pd.DataFrame:
    """Rows of the whole model, or of its modules; none where not all is known."""
    rows = run.traffic.head(0) if unknown_bytes(run) else run.traffic
    return rows[(rows["module"] == ALL) == whole]


def _moved(rows: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    kinds = {what.replace(" ", "_"): rows["bytes"].where(rows["what"] == what, 0) for what in TRAFFIC}
    sums = rows.assign(**kinds).groupby(by)[MOVED_COLUMNS].sum()
    return sums.assign(**{name: integers(sums[name]) for name in sums})


def _shares(run: Record, phase: str, seconds: float | None) -> dict[str, float]:
    found = moved(run)
    if phase not in found.index or not seconds:
        return {}
    return {name: int(found.loc[phase, "bytes"]) / float(seconds) / rate for name, rate in bandwidths(run).items()}


def _kernel_seconds(run: Record) -> dict[str, float]:
    """Kernel time of the traced step by phase."""
    if run.is_job:
        return of_ranks(run).get(ALL, {})
    return phase_times(split_kernels(run))


def _numbered(run: Record) -> pd.DataFrame:
    """The table ``generation`` with the number of each part's generation in its step, and the positions before it."""
    rows = run.generation.sort_values(["launch", "step", "part"], ignore_index=True)
    step = [rows["launch"], rows["step"]]
    decoding = rows["phase"] == "decode"
    begins = ~decoding & decoding.groupby(step).shift(fill_value=False)
    rows["generation"] = begins.groupby(step).cumsum()
    # what an encoder reads is in no cache of the decoder's
    positions = rows["positions"].astype("Float64").mask(rows["phase"] == "encode", 0.0)
    sums = positions.groupby([*step, rows["generation"]]).cumsum(skipna=False) - positions
    rows["positions_before"] = sums.mask(rows["phase"] == "encode").astype("Int64")
    return rows


@once
def _generations(run: Record) -> pd.DataFrame:
    """One row per generation that was timed: launch, step, ttft_s, sequences, prompt, new_tokens."""
    found = []
    for (launch, step, _), rows in _numbered(run).groupby(["launch", "step", "generation"]):
        first, decoding = rows[rows["phase"] != "decode"], rows[rows["phase"] == "decode"]
        prefill = rows.loc[rows["phase"] == "prefill", "positions"]
        # several without a step of decoding are pieces of a prompt, or each gives a token: a loop without a cache
        begun = len(prefill) == 1 or (len(prefill) > 0 and len(decoding) > 0)
        single = bool((decoding["positions"] == 1).fillna(False).all())
        found.append(
            {
                "launch": launch, "step": step, "ttft_s": float(first["time_s"].sum()) if begun else None,
                "sequences": _one(rows.loc[rows["phase"] != "encode", "samples"]),
                "prompt": prefill.sum(skipna=False) if begun else None,
                "new_tokens": 1 + len(decoding) if begun and single else None,
            }
        )  # fmt: skip
    columns = ["launch", "step", "ttft_s", "sequences", "prompt", "new_tokens"]
    types = {"ttft_s": "float64", "sequences": "Int64", "prompt": "Int64", "new_tokens": "Int64"}
    return pd.DataFrame(found, columns=columns).astype(types)


def _tokens(made: pd.DataFrame) -> pd.Series:
    """New tokens of all sequences in each timed step; missing where they are not known of one of its generations."""
    tokens = (made["sequences"] * made["new_tokens"]).groupby([made["launch"], made["step"]])
    return tokens.sum().mask(tokens.count() < tokens.size())


def _size(run: Record, made: pd.DataFrame) -> tuple[int | None, int | None]:
    """Sequences and new tokens of each; of a run that was not timed what was asked for."""
    if made.empty:
        return run.workload.get("samples_per_step"), run.workload.get("new_tokens")
    return _one(made["sequences"]), _one(made["new_tokens"])


def _median(values: pd.Series, launches: Any) -> float | None:
    """The median of the launches' medians; None where there is nothing, or something is not known."""
    if values.empty or values.isna().any():
        return None
    return float(values.groupby(launches).median().median())


def _one(values: pd.Series) -> int | None:
    """The value that all have; None where they differ, or one is missing."""
    return int(values.iloc[0]) if len(values) and _agree(values) else None


def _agree(values: pd.Series) -> bool:
    return not values.isna().any() and values.nunique() == 1


def held(run: Record) -> list[int]:
    """Bytes that the cache holds after each part of the counted step; empty where they are not known."""
    facts = run.passes["count"].facts if run.done("count") else {}
    return (facts.get("cache") or {}).get("bytes") or []


def held_after(run: Record) -> dict[str, int]:
    """Bytes that the cache holds at the end of each phase of the counted step; empty where they are not known."""
    sizes, phases = held(run), _counted_parts(run)
    return dict(zip(phases, sizes, strict=True)) if len(sizes) == len(phases) else {}


def _growth(run: Record, sequences: int | None) -> int | None:
    """Bytes that the cache grows by, per sequence and position, in the last part, if that is a step of decoding.

    By what is held and not by what is written: a state of a recurrent layer is written whole and does not grow.
    """
    sizes, counted = held(run), _counted_parts(run)
    if len(sizes) < 2 or len(sizes) != len(counted) or counted[-1] != "decode" or not sequences:
        return None
    grown = sizes[-1] - sizes[-2]
    return grown // sequences if grown % sequences == 0 else None
