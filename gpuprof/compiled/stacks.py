"""Which module an operator of a compiled graph is of: names that Dynamo gives modules, followed from the frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_STEPS = re.compile(r"""\.?([^.\[\]]+)|\[(?:'([^']*)'|"([^"]*)"|(\d+))\]""")
"""One step of a name: an attribute or a child's name, which may have blanks in it, after a dot; a key or an index in
brackets."""


def names_in(graph: torch.fx.GraphModule) -> set[str]:
    """Every name of a module in the graph that Dynamo made, with those in it that are functions of their own."""
    return {
        name
        for module in graph.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        for name, _ in (node.meta.get("nn_module_stack") or {}).values()
    }


def module_of(name: str, f_locals: Mapping[str, Any], f_globals: Mapping[str, Any]) -> torch.nn.Module | None:
    """The module that Dynamo calls so: ``L`` are the variables of the frame, ``G`` those of its file; None if unknown.

    Children are written in several ways: ``.blocks.1``, ``.blocks._modules['1']``, ``.blocks[1]``.
    """
    found: Any = {"L": f_locals, "G": f_globals}
    for step in _steps(name):
        try:
            found = _inside(found, step)
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
    return found if isinstance(found, torch.nn.Module) else None


def _steps(name: str) -> Iterator[str | int]:
    for attribute, key, other, index in _STEPS.findall(name):
        yield int(index) if index else attribute or key or other


def _inside(holder: Any, step: str | int) -> Any:
    if isinstance(holder, torch.nn.Module):
        child = holder._modules.get(str(step))
        return getattr(holder, str(step)) if child is None else child
    if isinstance(holder, Mapping):
        return holder[step]
    return holder[int(step)] if isinstance(step, int) or step.isdigit() else getattr(holder, step)
