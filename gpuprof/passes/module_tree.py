"""The modules of a model, as the ``tree`` table has them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from gpuprof.attribution import named_paths
from gpuprof.passes.kept import elements_bytes
from gpuprof.paths import ancestors


def module_tree(model: torch.nn.Module, calls: dict[str, int], causality: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of the ``tree`` table: one per module, parameters of its children included, each parameter once.

    A module that several share has a row under each that called it, and one where it is first. Parameters that a lazy
    module has not made have no size, and are none yet. They are those of the model, their bytes those that this process
    holds of them.

    Args:
        model: the model.
        calls: calls of the step by path.
        causality: known, unknown or empty, by path.
    """
    called = {above for path in calls for above in ancestors(path)}
    paths = list(named_paths(model))
    parameters = _parameters(model, paths)
    rows: list[dict[str, Any]] = []
    seen: set[torch.nn.Module] = set()
    for path, module in paths:
        if module in seen and path not in called:
            continue
        seen.add(module)
        sizes = list(parameters[path].values())
        rows.append(
            {
                "module": path,
                "class": type(module).__name__,
                "extra": " ".join(module.extra_repr().split()),
                "calls": calls.get(path, 0),
                "params": sum([size.numel for size in sizes]),
                "trainable_params": sum([size.numel for size in sizes if size.trainable]),
                "param_bytes": sum([size.bytes for size in sizes]),
                "trainable_bytes": sum([size.bytes for size in sizes if size.trainable]),
                "causality": causality.get(path, ""),
            }
        )
    return rows


class _Size(NamedTuple):
    """How large a parameter is, and whether it is trained."""

    numel: int
    bytes: int
    trainable: bool


def _parameters(model: torch.nn.Module, paths: list[tuple[str, torch.nn.Module]]) -> dict[str, dict[int, _Size]]:
    """Of each module the model's parameters in it and its children, by identity.

    A model may say which those are by a ``parameters`` of its own.

    Args:
        model: the model.
        paths: its modules, a parent before its children.
    """
    sizes = {
        id(p): _Size(p.numel(), elements_bytes([p]), p.requires_grad) for p in model.parameters() if not is_lazy(p)
    }
    found: defaultdict[str, dict[int, _Size]] = defaultdict(dict)
    for path, module in reversed(paths):
        found[path] |= {id(p): sizes[id(p)] for p in module._parameters.values() if id(p) in sizes}
        if path:
            found[path.rpartition(".")[0]] |= found[path]
    return found | {"": sizes}
