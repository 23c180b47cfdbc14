"""What a job says of itself, by what its ranks say: workload, devices, outcomes of the passes, modules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gpuprof.late import pd
from gpuprof.record import PassOutcome
from gpuprof.schema import TABLES, table

_REPEATED = {"tp", "cp", "sp", "pp", "ep"}
"""Dimensions of a mesh, and ways of sharding, whose ranks share a batch."""


def stage(workload: dict[str, Any]) -> int:
    """Which stage of a pipeline a rank has; 0 where it has all of the model, or none is known."""
    stages = workload.get("groups", {}).get("pp", [])
    return stages.index(workload["rank"]) if workload["rank"] in stages else 0


def tree(trees: list[dict[str, list[Any]]], stages: list[int]) -> pd.DataFrame:
    """The union of the ranks' trees. Where a module is on several, it is as large as on the one where it is largest.

    Stages of a pipeline share names, at least that of the root, and no parameters: what their modules of one name have
    by themselves, without their children, adds up.

    Args:
        trees: of each rank.
        stages: of each rank which stage of a pipeline it has.
    """
    held = ("params", "trainable_params", "param_bytes", "trainable_bytes")
    rows: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, dict[int, list[int | None]]]] = {}  # by module, column and stage
    for tree, stage in zip(trees, stages, strict=True):
        modules = tree["module"]
        for place, module in enumerate(modules):
            row = {column: tree[column][place] for column in TABLES["tree"]}
            known = rows.setdefault(module, row)
            known["calls"] = max(filter(lambda count: count is not None, (known["calls"], row["calls"])), default=None)
        for column in held:
            sizes = dict(zip(modules, tree[column], strict=True))
            inside = dict.fromkeys(modules, 0)
            for module in modules:
                above = module.rpartition(".")[0]
                if module and sizes[module] is not None and above in inside:
                    inside[above] += sizes[module]
            for module, size in sizes.items():
                alone = None if size is None else size - inside[module]
                own.setdefault(module, {}).setdefault(column, {}).setdefault(stage, []).append(alone)
    for column in held:
        sizes = {}
        for module in rows:
            sizes[module] = _added_up(map(_largest, own[module][column].values()))
        for module in sorted(rows, key=lambda path: (path != "", path.count(".")), reverse=True):
            above = module.rpartition(".")[0]
            if module and above in sizes:
                sizes[above] = _added_up((sizes[above], sizes[module]))
        for module, row in rows.items():
            row[column] = sizes[module]
    return table("tree", list(rows.values()))


def _largest(sizes: list[int | None]) -> int | None:
    return None if None in sizes else max(size for size in sizes if size is not None)


def _added_up(sizes: Iterable[int | None]) -> int | None:
    found = list(sizes)
    return None if None in found else sum(size for size in found if size is not None)


def outcomes(ranks: list[dict[str, Any]]) -> dict[str, PassOutcome]:
    """Outcomes of the job: done where all ranks have done it, else that of the first rank that fared worst."""
    found: dict[str, PassOutcome] = {}
    for name in dict.fromkeys(name for one in ranks for name in one["passes"]):
        outcomes = [one["passes"].get(name) or vars(PassOutcome("skipped")) for one in ranks]
        order = [("done", "skipped", "failed").index(outcome["status"]) for outcome in outcomes]
        rank = order.index(max(order))
        worst = PassOutcome(**outcomes[rank] | {"facts": dict(outcomes[0]["facts"])})
        if min(order) < max(order):
            worst.reason = f"rank {rank}: {worst.reason or 'it did not run there'}"
        worst.seconds = max(outcome["seconds"] for outcome in outcomes)
        found[name] = worst
    return found


def without_kernels(passes: dict[str, PassOutcome], ranks: list[dict[str, Any]]) -> None:
    """Say of the outcomes what a job does not have, and what its ranks hide or do not know."""
    remedy = f"that of a rank has its own: {ranks[0]['file']}" if ranks[0]["file"] else "save those of the ranks"
    for name in {"trace", "counters"} & passes.keys():
        if passes[name].status == "done":
            passes[name] = PassOutcome("skipped", "the file of a job has no kernels", remedy)
    hidden = {path for one in ranks for path in one["passes"].get("trace", {}).get("facts", {}).get("hidden", ())}
    if hidden and "trace" in passes:
        passes["trace"].facts["hidden"] = sorted(hidden)
    if "count" in passes:
        passes["count"].facts |= _of_traffic([one["passes"].get("count", {}).get("facts", {}) for one in ranks])


def _of_traffic(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the counting passes say of a generation's bytes: all that a rank does not know, and what their caches hold.

    Each rank has a cache of its own, of its sequences or of its heads.
    """
    found: dict[str, Any] = {}
    for name in ("traffic_unknown", "weights_at_most"):
        if said := list(dict.fromkeys(text for facts in ranks for text in facts.get(name, ()))):
            found[name] = said
    caches = [facts["cache"]["bytes"] for facts in ranks if facts.get("cache")]
    if caches:
        alike = len(caches) == len(ranks) and len({*map(len, caches)}) == 1
        sums = [sum(held) for held in zip(*caches, strict=True)] if alike else []
        found["cache"] = ranks[0].get("cache", {}) | {"bytes": sums}
    return found


def of_all(texts: list[list[str]]) -> list[str]:
    """What ranks say, each once, with those that say it where not all do."""
    said: dict[str, list[str]] = {}
    for rank, lines in enumerate(texts):
        for text in dict.fromkeys(lines):
            said.setdefault(text, []).append(str(rank))
    named = {text: f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: " for text, ranks in said.items()}
    return [text if len(said[text]) == len(texts) else named[text] + text for text in said]


def workload(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """That of the lowest rank, as far as it is of all; with every process group, and what a step takes in all."""
    job = dict(ranks[0])
    del job["rank"]
    job["groups"] = {}
    for one in ranks:
        for name, members in one.get("groups", {}).items():
            if members not in job["groups"].setdefault(name, []):
                job["groups"][name].append(members)
    share = ranks_per_batch(job)
    for unit in ("tokens_per_step", "samples_per_step"):
        amounts = [one[unit] for one in ranks if one.get(unit) is not None]
        job[unit] = sum(amounts) // share if share is not None and len(amounts) == len(ranks) else None
    return job


def ranks_per_batch(workload: dict[str, Any]) -> int | None:
    """How many ranks share a batch; None where that is not known."""
    mesh, parallel = workload.get("mesh") or {}, set(workload.get("parallel") or ())
    if parallel and not parallel & _REPEATED:
        return 1
    shared = [size for name, size in mesh.items() if name.split("_")[0] in _REPEATED]
    return math.prod(shared) if shared and math.prod(mesh.values()) == workload["world"] else None


def device(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The device of the lowest rank, with what the devices of all can do together; and what each rank says of itself.

    Of a rank that is: rank, file, device, environment, passes (without their facts).
    """
    devices = [one["device"] for one in ranks]
    found = dict(devices[0])
    found["name"] = " + ".join(dict.fromkeys(str(device.get("name")) for device in devices))
    for name in ("memory_bandwidth", "measured_bandwidth", "sm_count"):
        amounts = [device.get(name) for device in devices]
        found[name] = None if None in amounts else sum(amounts)
    found["peaks"] = {
        kind: sums
        for kind in devices[0].get("peaks", {})
        if (sums := _added([device.get("peaks", {}).get(kind, {}) for device in devices]))
    }
    found["ranks"] = [
        {"rank": rank, **{name: one[name] for name in ("file", "device", "environment")}}
        | {"passes": {name: outcome | {"facts": {}} for name, outcome in one["passes"].items()}}
        for rank, one in enumerate(ranks)
    ]
    return found


def _added(peaks: list[dict[str, float]]) -> dict[str, float]:
    """Peaks by dtype, as far as every device has one."""
    return {dtype: sum(one[dtype] for one in peaks) for dtype in peaks[0] if all(dtype in one for one in peaks)}
