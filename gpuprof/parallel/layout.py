"""How a model lies on the processes of a job: its mesh, its process groups, and by which of torch's ways it is sharded.

Read from the modules themselves, at rest: parameters that are DTensors know their mesh, wrappers their process group.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from gpuprof.parallel.loaded import classes

_DDP = torch.nn.parallel.DistributedDataParallel


class _Part(NamedTuple):
    """One way in which a model is sharded: ddp, fsdp, tp or pp, over a mesh or over a process group.

    Attributes:
        names: of the dimensions of the mesh, or of the group, where nobody named them.
    """

    how: str
    over: Any
    names: tuple[str, ...]


def layout(model: torch.nn.Module) -> dict[str, Any]:
    """Where this process stands in its job and how the model lies on it, as `Record.workload` has it; JSON-ready.

    Returns:
        Empty in a single process. Else ``world``, ``rank``; ``mesh``, sizes by dimension, the outermost first where one
        mesh has them all, empty where it is not known; ``groups``, ranks of each process group that this process is in,
        by short name;
        ``parallel``, of ddp, fsdp, tp and pp those that are found.
    """
    if not in_job():
        return {}
    parts = list(_parts(model))
    mesh: dict[str, int] = {}
    groups: dict[str, list[int]] = {}
    for name, group in _dimensions(parts):
        mesh.setdefault(name, group.size())
        groups.setdefault(name, dist.get_process_group_ranks(group))
    if list(range(dist.get_world_size())) not in groups.values():
        groups["world"] = list(range(dist.get_world_size()))
    found = {part.how for part in parts}
    return {
        "world": dist.get_world_size(),
        "rank": dist.get_rank(),
        "mesh": mesh,
        "groups": groups,
        "parallel": [how for how in ("ddp", "fsdp", "tp", "pp") if how in found],
    }


def short_names(model: torch.nn.Module) -> Callable[[str], str]:
    """Short names of process groups by those that torch gives them, ``group_name``.

    Returns:
        A function to the dimension of the mesh that a group is, else ``world`` if it is of all processes, else
        ``ranks 0,2`` by its members; of a group that is none any more its own name, and of none none.
    """
    known = {"": ""}
    if in_job():
        known |= {group.group_name: name for name, group in _dimensions(_parts(model))}

    def short(name: str) -> str:
        if name not in known:
            known[name] = _by_members(name)
        return known[name]

    return short


def first_steps(model: torch.nn.Module) -> int:
    """How many first steps do what no further one does, and are not to be looked at.

    Two with DDP, which tells its buckets in the second, and where a pipeline's stages tell each other their shapes by a
    call more in the first; else one.
    """
    return 2 if any(part.how in ("ddp", "pp") for part in _parts(model)) else 1


def in_job() -> bool:
    """Whether this process shares a process group with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _by_members(name: str) -> str:
    resolve: Any = dist.distributed_c10d._resolve_process_group
    try:
        ranks = dist.get_process_group_ranks(resolve(name))
    except (RuntimeError, KeyError, ValueError):
        return name
    return "world" if ranks == list(range(dist.get_world_size())) else f"ranks {','.join(map(str, ranks))}"


def _dimensions(parts: Any) -> Iterator[tuple[str, dist.ProcessGroup]]:
    """Every dimension of the meshes of a model that this process is in, with its process group, the outermost first."""
    groups: list[tuple[str, dist.ProcessGroup]] = []
    seen: set[str] = set()  # dimensions, and groups by torch's own name
    for part in parts:
        if isinstance(part.over, dist.ProcessGroup):
            groups.append((part.names[0], part.over))  # named by a mesh, where that has the group too
            continue
        names = part.over.mesh_dim_names or part.names
        mesh = part.over._get_root_mesh() if part.over.mesh_dim_names else part.over
        for name in mesh.mesh_dim_names or names:
            if name not in seen and mesh.get_coordinate() is not None:
                group = mesh.get_group((mesh.mesh_dim_names or names).index(name))
                seen |= {name, group.group_name}
                yield name, group
    for name, group in groups:
        if not {name, group.group_name} & seen:
            seen |= {name, group.group_name}
            yield name, group


def _parts(model: torch.nn.Module) -> Iterator[_Part]:
    """What of a model is sharded how; of the same way on the same mesh several."""
    shards = classes("torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel")
    tensors = classes("torch.distributed.tensor", "DTensor")
    stages = classes("torch.distributed.pipelining.stage", "_PipelineStageBase")
    sharded: set[int] = set()
    for module in model.modules():
        if isinstance(module, _DDP):
            yield _Part("ddp", module.process_group, ("dp",))
        elif isinstance(module, shards):
            sharded.update(map(id, module.parameters()))
            if hasattr(module, "process_group"):  # of the first version, whose parameters know no mesh
                yield _Part("fsdp", module.process_group, ("dp",))
    for parameter in model.parameters():
        if not isinstance(parameter, tensors):
            continue
        mesh, outer = parameter.device_mesh, 0
        if id(parameter) in sharded:
            # the outer dimensions are its own, and the first of two repeats what the second shards
            outer = 2 if parameter.placements[0].is_replicate() and mesh.ndim > 1 else 1
        names = ("dp",) if outer == 1 else ("dp_replicate", "dp_shard")[:outer]
        names += ("tp",) * (mesh.ndim > outer)
        if outer:
            yield _Part("fsdp", mesh, names)
        if mesh.ndim > outer:
            yield _Part("tp", mesh, names)
    if stages:
        modules = set(map(id, model.modules()))
        things = gc.get_objects()  # a module knows nothing of the stage that it is
        kinds = {kind for kind in set(map(type, things)) if stages[0] in kind.__mro__}
        for stage in [thing for thing in things if type(thing) in kinds] if kinds else []:
            if id(stage.submod) in modules:
                yield _Part("pp", stage.group or dist.group.WORLD, ("pp",))
