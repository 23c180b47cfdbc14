"""The modules of a model, as the ``tree`` table has them."""

from __future__ import annotations

from typing import Any

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
    sizes = {id(p): (p.numel(), elements_bytes([p])) for p in model.parameters() if not is_lazy(p)}
    rows: list[dict[str, Any]] = []
    seen: set[torch.nn.Module] = set()
    for path, module in named_paths(model):
        if module in seen and path not in called:
            continue
        seen.add(module)
        params = [p for p in module.parameters() if id(p) in sizes]
        held = [sizes[id(p)] for p in params]
        trainable = [sizes[id(p)] for p in params if p.requires_grad]
        rows.append(
            {
                "module": path,
                "class": type(module).__name__,
                "extra": " ".join(module.extra_repr().split()),
                "calls": calls.get(path, 0),
                "params": sum(numel for numel, _ in held),
                "trainable_params": sum(numel for numel, _ in trainable),
                "param_bytes": sum(size for _, size in held),
                "trainable_bytes": sum(size for _, size in trainable),
                "causality": causality.get(path, ""),
            }
        )
    return rows
