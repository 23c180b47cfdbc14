"""The parts of a budget in words: what each is called, and the evidence of it in a run."""

from __future__ import annotations

from typing import Any

from gpuprof import units
from gpuprof.analysis.denominators import peak_dtype, sm_clock_hz
from gpuprof.analysis.kernel_time import busy_seconds
from gpuprof.analysis.known_flops import at_least
from gpuprof.late import pd
from gpuprof.record import Record

LAUNCH_GAP_S = 100e-6
"""A gap up to this is the launch of one operator; in a longer one the host did something else."""

_NEGATIVE = {
    "clock": "the SM clock was above the one that the datasheet's peak is of",
    "matmul_shape": "the ceilings of its shapes are above the peak, which was measured under other load",
    "matmul": "products were faster than the peak, bandwidth or ceiling that they are held against, which was "
    "measured under other load, or a cache holds what they read",
    "attention": "it was faster than its counted FLOPs at peak: fused attention skips masked pairs that a convention "
    "may count, and a peak may be measured under other load",
    "memory": "it was faster than its bytes at the bandwidth: a cache holds what it reads, or the bandwidth was "
    "measured under other load",
    "compute": "computation was faster than the FLOPs counted of it at peak, which was measured under other load",
    "behind": "the median step of the job is shorter than the mean of its ranks' own",
}
"""What it means that a part is negative."""


def title(part: str, run: Record, unknown: set[str]) -> str:
    """What a part is called, after its name: above what, if anything is known that explains some of it."""
    cuda = run.device.get("type") == "cuda"
    above = "above ideal" if "ideal" not in unknown else "all of it"
    return {
        "ideal": "ideal: model FLOPs at peak",
        "clock": "clock: below the datasheet's",
        "recompute": "recompute",
        "matmul_shape": "matmul shape: its limit",
        "matmul": f"matmul: {'above that limit' if 'matmul_shape' not in unknown else above}",
        "attention": f"attention: {above}",
        "memory_bytes": "memory bytes: at bandwidth",
        "memory": f"memory: {'above its bytes' if 'memory_bytes' not in unknown else 'all of it'}",
        "optimizer": "optimizer",
        "communication": "communication: not hidden",
        "idle_launch": "idle launch: GPU waits",
        "idle_host": "idle host: GPU waits" if cuda else "idle host: between operators",
        "other": "other",
    }[part]


def words(part: str) -> str:
    """A part's name as people read it: its title begins with it, and tables name it so."""
    return part.replace("_", " ")


def in_a_sentence(title: str) -> str:
    """A title amid other words: ``memory (above its bytes)`` for ``memory: above its bytes``."""
    name, _, more = title.partition(": ")
    return f"{name} ({more})" if more else name


def negative(part: str, where: str = "") -> str:
    """A sentence on a part that is negative: what that means.

    Args:
        part: of a step or of a job.
        where: of what, if it is not negative as a whole.
    """
    why = _NEGATIVE.get(part, "its work was faster than the bound that it is held against")
    return f"{words(part).capitalize()} is negative{where}: {why}."


EVIDENCE = ["part", "op", "kind", "start_ns", "duration_ns", "own_s", "kernels"]
"""Columns of the kernels of a part that are its evidence."""


def evidence(
    part: str, run: Record, ops: pd.DataFrame, kernels: pd.DataFrame, mine: pd.DataFrame, facts: dict[str, Any]
) -> str:
    """The evidence of a part in a few words; empty where there is nothing to say.

    Args:
        part: of a step.
        run: whose.
        ops: as in `gpuprof.analysis.budget.Budget`.
        kernels: likewise.
        mine: those of the part, the columns `EVIDENCE`.
        facts: of the whole.
    """
    took = units.duration(float(mine["own_s"].sum()))
    cuda = run.device.get("type") == "cuda"
    many = f"{mine['kernels'].sum():,} {'kernels' if cuda else 'operators'}"
    if part == "ideal":
        priced = ops.loc[ops["ideal_s"] > 0, ["dtype", "kind", "flops"]]
        dtypes = [peak_dtype(dtype, kind, run) for dtype, kind in zip(priced["dtype"], priced["kind"], strict=True)]
        sums = priced["flops"].groupby(dtypes).sum().sort_values(ascending=False, kind="stable")
        peaks = [f"{dtype} {units.si(facts['peaks'][dtype], 'FLOP/s')}" for dtype in sums.index]
        return f"{at_least(run)}{units.si(facts['flops'], 'FLOPs')} at {', '.join(peaks)}" if peaks else ""
    if part == "clock" and "clock_s" in ops:
        return f"SM clock {(sm_clock_hz(run) or 0) / 1e6:,.0f} MHz in the window"
    if part == "memory_bytes" and "bytes_s" in ops:
        needed = float(ops["bytes_s"].sum()) * facts["bandwidth"]
        return f"{units.size(needed)} at {units.si(facts['bandwidth'], 'B/s')}"
    if part == "matmul_shape" and "ceiling_s" in ops:
        matmul = ops[ops["work"] == "matmul"]
        flops = matmul["flops_hardware"].fillna(0)
        covered = flops[matmul["ceiling_s"].notna()].sum() / flops.sum() if flops.sum() else None
        return f"{units.percent(covered)} of their FLOPs have one measured"
    if part in ("idle_launch", "idle_host"):
        launch = (kernels["gap_s"] <= LAUNCH_GAP_S) & cuda
        late = kernels.loc[(kernels["idle_s"] > 0) & (launch == (part == "idle_launch")), "idle_s"]
        if late.empty:
            return ""
        longest = kernels.loc[late.idxmax(), ["op", "kernel"]]
        size = f" {'up to' if part == 'idle_launch' else 'over'} {units.duration(LAUNCH_GAP_S, 1)}" if cuda else ""
        return f"{len(late):,} gaps{size}, the longest before {units.shortened(longest['op'] or longest['kernel'])}"
    if part == "other" and facts["unseen"] > mine["own_s"].sum():
        then = "after the last kernel" if run.recorded else "by which the step was longer than the traced one"
        return f"{units.duration(facts['unseen'])} {then}"
    if mine.empty:
        return ""
    if part in ("matmul", "attention"):
        work = ops[ops["work"] == part]
        written = part == "attention" and (mine["kind"] != "attention").any()
        how = ", scores written out" if written else ""
        flops = float(work["flops"].fillna(0).sum())
        lacking = run.recorded and bool(work["flops"].isna().any())
        if lacking and not flops:
            return f"{took} in {many}"
        own_s = 0.0 if facts["withheld"] else float(mine["own_s"].sum())
        rate = f": {units.si(flops / own_s, 'FLOP/s')}" if own_s else ""
        least = "at least " if lacking else ""
        return f"{took} for {least}{units.si(flops, 'FLOPs')}{rate}{how}"
    if part == "memory":
        return f"{took} in {many}"
    if part == "recompute":
        vector = f" and about {units.si(facts['vector'], 'FLOPs')} of vector work" if facts["vector"] else ""
        return f"{units.si(facts['again'], 'FLOPs')}{vector} once more"
    if part == "communication":
        return f"of {units.duration(busy_seconds(mine))} in all"
    if part == "other":
        largest = mine.groupby("op")["own_s"].sum().nlargest(2)
        return f"mostly {', '.join(units.shortened(op) or 'no operator' for op in largest.index)}"
    return many
