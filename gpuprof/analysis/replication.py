"""The work of all processes of a job, held against that of the model they share: what is done again, and what by none.

Data parallelism does the whole model's work once for each batch. Tensor parallelism divides a batch's work, and repeats
what it does not divide: a head that is not sharded, norms, rotary angles.
"""

from __future__ import annotations

from typing import Any

from gpuprof.late import pd
from gpuprof.paths import layer_of, unwrapped
from gpuprof.record import Record
from gpuprof.schema import MODEL

_NAMED = 3  # modules in a line; the others are added up


def model_flops(ops: pd.DataFrame, bare: dict[str, str] | None = None) -> dict[str, int]:
    """Model FLOPs (causal) of each module itself.

    Args:
        ops: a run's.
        bare: other names for paths: those without wrappers.
    """
    rows = ops[ops["phase"].isin(MODEL)]
    sums: dict[str, int] = {}
    for path, flops in zip(rows["module"], rows["flops_causal"], strict=True):
        path = (bare or {}).get(path, path)
        sums[path] = sums.get(path, 0) + (0 if pd.isna(flops) else int(flops))
    return sums


def replication(job: Record, once: dict[str, int], replicas: int) -> dict[str, Any]:
    """Model FLOPs of a job against those of the unsharded model.

    Args:
        job: the run of all ranks, whose ``ops`` are their sum.
        once: what `model_flops` says of a step of the unsharded model on the batch of one rank.
        replicas: how many such batches a step of the job works on.

    Returns:
        JSON-ready: ``flops`` of the unsharded model for all batches, ``replicas``, ``convention`` of the FLOPs, and by
        module what the job does more, ``repeated``, and less, ``missing``: ``flops + repeated - missing`` is the sum of
        all ranks. Recompute is in neither.
    """
    done = model_flops(job.ops, unwrapped(job.tree["module"], job.tree["class"]))
    more = {path: done.get(path, 0) - replicas * once.get(path, 0) for path in {**once, **done}}
    return {
        "flops": replicas * sum(once.values()),
        "replicas": replicas,
        "convention": "causal",
        "repeated": {path: flops for path, flops in more.items() if flops > 0},
        "missing": {path: -flops for path, flops in more.items() if flops < 0},
    }


def sentence(unsharded: dict[str, Any], world: int) -> str:
    """What `replication` found, in one line.

    Args:
        unsharded: of a job's workload.
        world: how many processes the job has.
    """
    replicas, repeated, missing = (unsharded[name] for name in ("replicas", "repeated", "missing"))
    total = unsharded["flops"] + sum(repeated.values()) - sum(missing.values())
    batches = f" on {replicas} batches" if replicas > 1 else ""
    said = f"all ranks together {total:,} FLOPs ({unsharded['convention']}), the unsharded model{batches} "
    if not repeated and not missing:
        return f"{said}the same"
    said += f"{unsharded['flops']:,}"
    if repeated:
        said += f"; repeated on {world // replicas} ranks: {_largest(repeated)}"
    if missing:
        said += f"; missing on all ranks: {_largest(missing)}"
    return said


def _largest(flops: dict[str, int]) -> str:
    """The places with the most FLOPs, layers taken together, and the sum of the others."""
    places: dict[str, int] = {}
    for path, count in flops.items():
        place = layer_of(path) or "the model itself"
        places[place] = places.get(place, 0) + count
    ordered = sorted(places.items(), key=lambda item: -item[1])
    named = [f"{place} {count:,}" for place, count in ordered[:_NAMED]]
    if rest := ordered[_NAMED:]:
        named.append(f"{len(rest)} more {sum(count for _, count in rest):,}")
    return ", ".join(named)
