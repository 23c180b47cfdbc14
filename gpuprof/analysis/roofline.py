"""Rates against arithmetic intensity, and the roofs above them: which work memory limits, which the processor.

FLOPs are those the hardware does for products, and an estimate per element for vector work; bytes are the least that
must be moved. A kernel that moves more lies left of its true place at most; with counters both places are known.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any, NamedTuple

from gpuprof.analysis.communication import communicating
from gpuprof.analysis.consistency import withheld_of_kernels
from gpuprof.analysis.denominators import denominators, peak_dtype
from gpuprof.analysis.each import each, each_row, numbered, where
from gpuprof.analysis.executed import counters_only, executed_by_kernel, flops_by_dtype
from gpuprof.analysis.generation import PARTS, is_generation, moved
from gpuprof.analysis.kernel_time import busy_seconds, busy_seconds_by
from gpuprof.analysis.once import once
from gpuprof.analysis.operators import input_shapes, kinds, plain_op
from gpuprof.analysis.ran import ran
from gpuprof.analysis.ranks import require_kernels
from gpuprof.analysis.shares import split_kernels
from gpuprof.analysis.steps import refuse_log
from gpuprof.errors import GpuprofError
from gpuprof.late import pd
from gpuprof.record import Record
from gpuprof.schema import NOBODYS, PHASES, integers
from gpuprof.theory.rules import PRODUCTS

_MESSAGES = "communication"

BY = ("op", "class", "module", "kernel")
"""What a point may be."""

COLUMNS = [
    "name", "phase", "kind", "kernel", "kernels", "flops", "bytes", "time_s", "time_share", "intensity", "flops_per_s",
    "roof_flops_per_s", "of_roof", "bound", "dram_bytes", "dram_intensity",
]  # fmt: skip
"""Columns of `roofline`: the machine-readable contract."""


class Roofs(NamedTuple):
    """The ceilings under one denominator.

    Attributes:
        denominator: its name.
        flops_per_s: by dtype.
        bytes_per_s: of the memory; None where not known.
        bandwidth_of: datasheet or measured: where it is from.
    """

    denominator: str
    flops_per_s: dict[str, float]
    bytes_per_s: float | None
    bandwidth_of: str

    def ridge(self, dtype: str) -> float | None:
        """Intensity in FLOP per byte from which the processor is the limit, not memory."""
        peak = self.flops_per_s.get(dtype)
        return peak / self.bytes_per_s if peak and self.bytes_per_s else None


def roofs(run: Record) -> list[Roofs]:
    """The ceilings of a run under each denominator, the preferred first.

    A measured peak goes with the measured bandwidth, any other with the datasheet's; where that one is not known, the
    other stands in.
    """
    known = {"datasheet": run.device.get("memory_bandwidth"), "measured": run.device.get("measured_bandwidth")}
    found = []
    for name, peaks in denominators(run).items():
        order = ("measured", "datasheet") if name == "measured" else ("datasheet", "measured")
        source = next((source for source in order if known[source]), "")
        found.append(Roofs(name, peaks, known.get(source), source))
    return found


def chosen_roofs(run: Record, denominator: str | None = None) -> Roofs:
    """Those of one denominator; the preferred by default, without any ceiling where none is known.

    Raises:
        GpuprofError: the run has no such denominator.
    """
    found = roofs(run)
    if denominator is None:
        return found[0] if found else Roofs("", {}, run.device.get("measured_bandwidth"), "measured")
    for entry in found:
        if entry.denominator == denominator:
            return entry
    names = ", ".join(entry.denominator for entry in found) or "none"
    raise GpuprofError(f"no denominator {denominator!r} in this run: there are {names}")


@once
def dtypes(run: Record) -> list[str]:
    """Dtypes of the peaks that a run's products go against, the one with most FLOPs first."""
    sums: Counter[str] = Counter()
    columns = run.ops[["dtype", "kind", "flops_hardware"]].itertuples(index=False, name=None)
    for dtype, kind, flops in columns:
        if kind in PRODUCTS and not pd.isna(flops) and flops:
            sums[peak_dtype(dtype, kind, run)] += int(flops)
    if counters_only(run):
        sums.update({dtype: flops for dtype, _, flops in flops_by_dtype(run.counters) if flops})
    return [dtype for dtype, _ in sums.most_common()]


def roofline(run: Record, by: str = "op", denominator: str | None = None, phase: str | None = None) -> pd.DataFrame:
    """Intensity and rate of every operator, class, module or kernel, against its roof.

    A class or a module is what it owns itself, its children apart, so every kernel is in one row; it has a row per
    phase, and one each for products, for vector work and for communication. So has anything of a generation a row per
    phase: an operator that the processor limits in the prefill may be bound by memory in the decode. FLOPs of an
    operator that launches several kernels are booked on the longest of each call.

    Args:
        run: one with the counting and the tracing pass.
        by: what a row is, of `BY`.
        denominator: whose ceilings; the preferred by default.
        phase: that of which alone points are made, and shares of the time; all by default.

    Returns:
        Columns `COLUMNS`, most time first. ``kind`` is the operator's, else ``matmul`` (products of any kind, exact),
        ``vector`` (an estimate) or ``communication``; ``kernel`` the one with most time of ``kernels``; ``time_s`` a
        union of intervals. ``intensity`` is FLOPs per least byte, ``dram_intensity`` per byte that counters saw.
        ``bound`` is memory or compute, by which of the two takes longer at the ceilings; that time over ``time_s`` is
        ``of_roof``, above 1 where bytes came from a cache. Communication is bound by itself: its bytes are those of
        messages, and no roof of a link is known. Mixed dtypes are each held against their own peak. What is not known
        is missing.

    Raises:
        GpuprofError: the run has no such passes, they saw different steps, no such denominator or phase, or no such
            ``by``.

    Of a table of Nsight Compute, by kernel alone, FLOPs and bytes are those that counters saw, times those of kernels
    that ran one by one.
    """
    if by not in BY:
        raise GpuprofError(f"no roofline by {by!r}: known are {', '.join(BY)}")
    require_kernels(run, "a roofline")
    if counters_only(run):
        return _of_counters(run, by, chosen_roofs(run, denominator))
    refuse_log(run, "roofline", "trace")
    missing = [name for name in ("count", "trace") if not run.done(name)]
    if missing:
        raise GpuprofError(f"no roofline without the {missing[0]} pass: profile again with it")
    if reason := withheld_of_kernels(run):
        raise GpuprofError(f"no roofline, FLOP/s are {reason}")
    ceilings = chosen_roofs(run, denominator)
    known = kinds(run)
    kernels = _keyed(run, _of_phase(split_kernels(run), phase), by, known)
    work = _keyed(run, _work(run, ceilings), by, known)
    if by == "kernel":
        work = _of_kernels(work, kernels)
    figures = ["flops", "bytes", "compute_s"]
    sums = work.groupby("key", sort=False)[figures].sum(min_count=1).to_dict(orient="index")
    dram = _dram(run, by, known)
    total, busy_s = float(kernels["duration_ns"].sum()), busy_seconds_by(kernels, ["key"])
    places, alike = numbered(kernels[["key", "kernel"]])
    alike = alike.assign(duration_ns=kernels["duration_ns"].groupby(places).sum().array)
    rows = []
    for key, group in alike.groupby("key", sort=False):
        names = group.sort_values("kernel").sort_values("duration_ns", ascending=False, kind="stable")["kernel"].array
        flops, nbytes, compute_s = (_known(sums.get(key, {}).get(figure)) for figure in figures)
        row = dict(zip(("name", "phase", "kind"), key, strict=True))
        row |= {
            "kernel": names[0], "kernels": len(names), "flops": flops, "bytes": nbytes,
            "time_s": busy_s[key,], "time_share": group["duration_ns"].sum() / total, "dram_bytes": dram.get(key),
        }  # fmt: skip
        rows.append(row | _held_against(row, compute_s, ceilings))
    table = pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in COLUMNS})
    return table.sort_values("time_s", ascending=False, kind="stable", ignore_index=True)


def clouds(run: Record) -> pd.DataFrame:
    """A generation's phases as wholes: where the points of each lie together.

    Returns:
        One row per phase: flops (of products, as the hardware does them), bytes (the least of its operators, each by
        itself), moved_bytes (those that must move, see docs/generate.md), time_s (kernel time) and flops_per_s. What is
        not known is missing.
    """
    kernels, work = split_kernels(run), ran(run)
    must = moved(run)["bytes"]
    rows = []
    for phase in PARTS:
        mine, its_work = kernels[kernels["phase"] == phase], work[work["phase"] == phase]
        if mine.empty:
            continue
        flops, nbytes = (
            _known(column.sum(skipna=False))
            for column in (its_work.loc[its_work["kind"].isin(PRODUCTS), "flops_hardware"], its_work["bytes"])
        )
        seconds = busy_seconds(mine)
        rows.append({
            "phase": phase, "flops": flops, "bytes": nbytes, "moved_bytes": _known(must.get(phase)), "time_s": seconds,
            "flops_per_s": _quotient(flops, seconds),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["phase", "flops", "bytes", "moved_bytes", "time_s", "flops_per_s"])


def _of_phase(kernels: pd.DataFrame, phase: str | None) -> pd.DataFrame:
    if phase is None:
        return kernels
    found = kernels[kernels["phase"] == phase]
    if found.empty:
        names = ", ".join(one for one in PHASES if (kernels["phase"] == one).any())
        raise GpuprofError(f"no kernels of a phase {phase!r} in this run: there are those of {names}")
    return found


def _of_counters(run: Record, by: str, ceilings: Roofs) -> pd.DataFrame:
    if by != "kernel":
        raise GpuprofError(f"a table of Nsight Compute has kernels alone, no roofline by {by}: give --by kernel")
    groups = dict(list(run.counters.groupby("kernel")))
    rows = []
    for found in executed_by_kernel(run).to_dict(orient="records"):
        flops, seconds = _known(found["flops_executed"]), _known(found["time_s"])
        row = {
            "name": found["kernel"], "phase": "", "kind": "matmul" if _known(found["flops_tensor"]) else "vector",
            "kernel": found["kernel"], "kernels": 1, "flops": flops, "bytes": _known(found["dram_bytes"]),
            "time_s": seconds, "time_share": _known(found["time_share"]), "dram_bytes": None,
        }  # fmt: skip
        work = [(ceilings.flops_per_s.get(dtype), flops) for dtype, _, flops in flops_by_dtype(groups[found["kernel"]])]
        known = flops is not None and all(rate or not executed for rate, executed in work)
        compute_s = sum(executed / rate for rate, executed in work if rate) if known else None
        rows.append(row | _held_against(row, compute_s, ceilings))
    return pd.DataFrame({name: _typed(name, [row.get(name) for row in rows]) for name in COLUMNS})


def by_bound(rows: pd.DataFrame) -> dict[str, float]:
    """Share of the kernel time that is bound by memory, compute, communication, and (empty) nothing that is known."""
    return {str(bound): float(share) for bound, share in rows.groupby("bound")["time_share"].sum().items()}


def _held_against(row: dict[str, Any], compute_s: float | None, ceilings: Roofs) -> dict[str, Any]:
    flops, nbytes, seconds = row["flops"], row["bytes"], row["time_s"]
    found: dict[str, Any] = {
        "intensity": _quotient(flops, nbytes), "flops_per_s": _quotient(flops, seconds), "bound": "",
        "dram_intensity": _quotient(flops, row["dram_bytes"]),
    }  # fmt: skip
    if row["kind"] == "communication":
        return found | {"intensity": None, "bound": "communication"}
    memory_s = _quotient(nbytes, ceilings.bytes_per_s)
    if memory_s is None or compute_s is None:
        return found
    slowest = max(memory_s, compute_s)
    if not slowest:  # a view does nothing
        return found
    found |= {
        "bound": "memory" if memory_s >= compute_s else "compute",
        "of_roof": _quotient(slowest, seconds),
        "roof_flops_per_s": _quotient(flops, slowest),
    }
    return found


def _work(run: Record, ceilings: Roofs) -> pd.DataFrame:
    """What ran, under the operator of its kernel, with the FLOPs that count here, and their time at the peak."""
    ops = ran(run)
    ops = ops.assign(op=ops["op"].where(ops["compiled"] == "", ops["within"]))
    products = ops["kind"].isin(PRODUCTS)
    figures = zip(products, ops["flops_hardware"], ops["vector_flops"], strict=True)
    ops["flops"] = integers(flops if product else vector for product, flops, vector in figures)
    peaks = ceilings.flops_per_s
    # vector work runs outside the tensor cores, at float32's rate
    rates = [
        peaks.get(peak_dtype(dtype, kind, run)) if product else peaks.get("float32", peaks.get(dtype))
        for dtype, kind, product in zip(ops["dtype"], ops["kind"], products, strict=True)
    ]
    rate = pd.Series(pd.array(rates, dtype="Float64"), index=ops.index)
    ops["compute_s"] = (ops["flops"].astype("Float64") / rate).where(ops["flops"].ne(0).fillna(True), 0.0)
    return ops


def _keyed(run: Record, rows: pd.DataFrame, by: str, known: dict[str, str]) -> pd.DataFrame:
    """Rows with their plain operator, and the name, phase and kind of the point that they belong to."""
    told = [name for name in ("module", "phase", "op", "kernel") if name in rows]
    places, alike = numbered(rows[told])
    found = alike.assign(op=each(alike["op"], plain_op))
    communicate = (
        communicating(found) if "kernel" in rows else where(found["op"], lambda op: known.get(op) == _MESSAGES)
    )
    classes = dict(zip(run.tree["module"], run.tree["class"], strict=True)) | {name: name for name in NOBODYS}
    in_phases = is_generation(run)

    def key(module: str, phase: str, op: str, kernel: str, communicates: bool) -> tuple[str, str, str]:
        kind = _MESSAGES if communicates else known.get(op, "")
        if by in ("op", "kernel"):
            return op if by == "op" else kernel, phase if in_phases else "", kind
        sort = "matmul" if kind in PRODUCTS else kind if kind == _MESSAGES else "vector"
        return classes[module] if by == "class" else module, phase, sort

    columns = found[["module", "phase", "op"]].assign(kernel=found.get("kernel", ""), communicates=communicate)
    found["key"] = each_row(columns, key)
    return rows.assign(**found[["op", "key"]].take(places).set_axis(rows.index))


def _of_kernels(work: pd.DataFrame, kernels: pd.DataFrame) -> pd.DataFrame:
    """What each operator call does, booked on its longest kernel."""
    place = ["module", "phase", "op", "shapes"]
    compiled, work = (work[(work["compiled"] != "") == compiled] for compiled in (True, False))
    work = work.assign(shapes=[input_shapes(shapes) for shapes in work["shapes"]])
    figures = ["flops", "bytes", "compute_s"]
    sums = work.groupby(place)[[*figures, "calls"]].sum(min_count=1)
    each = sums[["compute_s"]] / sums[["calls"]].to_numpy()
    for name in ("flops", "bytes"):
        each[name] = [_each(whole, calls) for whole, calls in zip(sums[name], sums["calls"], strict=True)]
    longest = kernels.sort_values("duration_ns", ascending=False, kind="stable").drop_duplicates("call")
    outside = longest[longest["compiled"] == ""]
    within = compiled.assign(key=compiled["compiled"].map(longest.set_index("compiled")["key"].to_dict()))
    return pd.concat([outside[[*place, "key"]].merge(each.reset_index(), on=place, how="left"), within])


def _each(whole: Any, calls: Any) -> Any:
    """One call's part of an integer, exactly: integers and fractions add up where floats would round."""
    if pd.isna(whole):
        return None
    part = Fraction(int(whole), int(calls))
    return part.numerator if part.denominator == 1 else part


def _dram(run: Record, by: str, known: dict[str, str]) -> dict[Any, int]:
    """Bytes moved by the memory of the device, by point, where counters were read of every launch in it."""
    launches = _keyed(run, run.counters, by, known)
    launches["dram"] = launches["dram_read_bytes"] + launches["dram_written_bytes"]
    return {key: int(group.sum()) for key, group in launches.groupby("key")["dram"] if group.notna().all()}


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _known(value: Any) -> Any:
    return None if value is None or pd.isna(value) else value


def _typed(name: str, values: list[Any]) -> Any:
    if name in ("name", "phase", "kind", "kernel", "bound"):
        return pd.array(values, dtype="object")
    if name in ("flops", "bytes", "dram_bytes", "kernels"):
        return integers(None if value is None else round(value) for value in values)
    return pd.array([None if value is None or math.isnan(value) else float(value) for value in values], dtype="Float64")
