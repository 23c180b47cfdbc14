"""Paths of modules."""

from __future__ import annotations

import re

from gpuprof.record import NOBODYS, UNATTRIBUTED


def ancestors(path: str) -> list[str]:
    """The module itself and every module that it is part of, up to the root; what is no module's is unattributed."""
    if path in NOBODYS:
        return [UNATTRIBUTED]
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def layer_of(module: str, recorded: bool = False) -> str:
    """The place of a module, whatever the number of its layer: ``layers.*.mlp`` for ``layers.3.mlp``.

    Args:
        module: its path.
        recorded: whether a trace names it, by its class and a running number: ``BertLayer_*`` for ``BertLayer_3``.
    """
    module = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", module)
    return re.sub(r"_\d+(?=\.|$)", "_*", module) if recorded else module
