"""Whose work FSDP does, by the labels that it puts around it: of the module that it shards as one unit."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from gpuprof.attribution import named_paths
from gpuprof.parallel.loaded import classes
from gpuprof.paths import ancestors

_LABEL = re.compile(r"FSDP::\w+(?: \((?P<unit>[^)]*)\)| for (?P<target>[^\[]*?))?(?: \[pg=\d+\])?").fullmatch

Unit = Callable[[str], "str | None"]
"""From a label to the path of the unit that FSDP works for in it; None of any other label."""


def unit_of(model: torch.nn.Module) -> Unit:
    """How to tell the unit by a label, ``layers.0`` by ``FSDP::all_gather (layers.0)``.

    FSDP names units as its root does; a label without a name is the root's. Where several modules are roots, nobody
    can tell which one's a label is, and no unit is known by it.
    """
    sharded = classes("torch.distributed.fsdp", "FSDPModule")
    paths = {path: isinstance(module, sharded) for path, module in named_paths(model)}
    roots = [
        path for path, is_unit in paths.items() if is_unit and not any(paths[above] for above in ancestors(path)[1:])
    ]
    known: dict[str, str | None] = {}

    def unit(label: str) -> str | None:
        if label not in known:
            known[label] = _named(label, roots[0], paths) if len(roots) == 1 else None
        return known[label]

    return unit


def _named(label: str, root: str, paths: dict[str, bool]) -> str | None:
    found = _LABEL(label)
    if found is None:
        return None
    names = (found["unit"] or found["target"] or "").split(", ")  # None of a unit that has no name yet is no path
    whole = [f"{root}.{name}" if root and name else root or name for name in names]
    path = whole[0]
    while any(one != path and not one.startswith(f"{path}.") for one in whole if path):  # one group of several modules
        path = path.rpartition(".")[0]
    return path if path in paths else None
