"""What to measure or to look at next, for a part of a budget of which no gain is known."""

from __future__ import annotations

from gpuprof import units
from gpuprof.analysis.bounds import WITH_CEILING
from gpuprof.analysis.budget import Budget, phases_of
from gpuprof.analysis.budget_words import in_a_sentence
from gpuprof.analysis.known_flops import none_known
from gpuprof.analysis.ranks import by_rank, straggler
from gpuprof.record import Record

_OF_OPS = "'gpuprof show RUN --by op' says which operators that is"


def next_step(found: Budget, part: str) -> tuple[str, str]:
    """A part of a budget in a sentence with its evidence, and what would tell more of it.

    Args:
        found: what `gpuprof.analysis.budget.budget` gives.
        part: of its parts.
    """
    row = found.parts.set_index("part").loc[part]
    took = f"{units.duration(row['time_s'])}, {units.percent(row['share'])} of the {found.span}"
    evidence = f" ({row['what']})" if row["what"] else ""
    text = f"{in_a_sentence(row['title'])} takes {took}{evidence}"
    return text, _of_job(found.run, part) if found.run.is_job else _action(found, part)


def _action(found: Budget, part: str) -> str:
    run = found.run
    match part:
        case "matmul":
            return _matmul(found)
        case "matmul_shape":
            return "larger sizes, a larger batch for one: nothing on this device is faster at these"
        case "attention":
            return "another attention kernel, of sdpa another backend: 'gpuprof compare' holds two runs together"
        case "memory_bytes":
            fewer = "move fewer bytes: fuse operators (torch.compile), or keep tensors in a narrower dtype"
            return f"{fewer}; 'gpuprof roofline RUN' says which operators are at the bandwidth"
        case "memory" | "optimizer" if not found.bandwidth:
            return "'gpuprof ceilings' measures the bandwidth of this device, which tells what their bytes need"
        case "memory":
            return f"{_OF_OPS}, and 'gpuprof roofline RUN' how far from the bandwidth"
        case "optimizer" if not found.phase and "optimizer" in phases_of(run):
            return "'gpuprof budget RUN --phase optimizer' says what it does"
        case "recompute":
            return "checkpoint fewer layers, if memory allows it: 'gpuprof memory RUN' says what is left"
        case "idle_launch" | "idle_host":
            return "'gpuprof show RUN --format perfetto' shows what comes before each gap"
        case "clock":
            return "find out what holds the clock down: 'nvidia-smi -q -d PERFORMANCE' while it runs"
        case "other":
            return _other(found)
    return _OF_OPS


def _matmul(found: Budget) -> str:
    """What to ask of products: their ceilings, where they have any and were not given them."""
    if none_known(found.run):
        return "record with record_shapes=True: without shapes there are no FLOPs to hold products against"
    if "shape_s" in found.ops:
        return "'gpuprof show RUN --by kernel' says which kernels are behind"
    kernels = found.kernels[found.kernels["part"] == "matmul"]
    seconds = kernels["own_s"].groupby(kernels["op"].isin(WITH_CEILING)).sum()
    if seconds.get(True, 0.0) < seconds.get(False, 0.0):
        return _OF_OPS
    return (
        "'gpuprof ceilings --shapes RUN -o FILE' on the same device says whether products reach what it reaches for "
        "their shapes, and 'gpuprof budget RUN --ceilings FILE' what is left"
    )


def _other(found: Budget) -> str:
    """Operators without a rule, kernels without an operator, or time that the trace does not have."""
    if found.run.recorded:
        return "'gpuprof show RUN' says below the tree what the recording lacks and how to record it"
    traced_s = float(found.kernels.loc[found.kernels["part"] == "other", "own_s"].sum())
    if traced_s < found.seconds("other") / 2:
        return "measure again while nothing else uses the device: the undisturbed step was longer than the traced one"
    return f"{_OF_OPS}; @gpuprof.flop_rule gives one a rule that has none"


def _of_job(run: Record, part: str) -> str:
    """The rank to look at: the one that holds up the others, or else the one with most of the part."""
    rank, table = straggler(run).rank, by_rank(run).set_index("rank")
    if rank is None:
        rank = table[{"communication": "exposed_s", "idle": "idle_s"}.get(part, "compute_s")].idxmax()
    one = next(one for one in run.device["ranks"] if one["rank"] == rank)
    whose = f"'gpuprof budget {one['file'] or 'RUN'}' splits the step of rank {one['rank']}"
    if part == "communication":
        return f"'gpuprof show RUN --by communication' says which collectives that is, and {whose}"
    return "'gpuprof show RUN --by rank' holds the ranks together" if part == "behind" else whose
