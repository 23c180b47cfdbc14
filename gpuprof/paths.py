"""Paths of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpuprof.schema import NOBODYS, UNATTRIBUTED

_WRAPPED = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
"""What a module is called in a wrapper of its own: of FSDP's first version, torch.compile and checkpointing."""
_DDP = "DistributedDataParallel"  # in it the model is plainly called module


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


def unwrapped(modules: Iterable[str], classes: Iterable[str]) -> dict[str, str]:
    """Paths without the parts that only wrap, so that a model is the same however it is sharded, by the whole paths.

    ``module.layers.0`` of a model in DDP is ``layers.0``, and so is ``layers.0._checkpoint_wrapped_module``.

    Args:
        modules: paths of all modules.
        classes: their classes.
    """
    class_of = dict(zip(modules, classes, strict=True))
    bare: dict[str, str] = {}
    for path in sorted(class_of, key=lambda path: path.count(".") + bool(path)):
        above, _, name = path.rpartition(".")
        wrapped = name in _WRAPPED or (name == "module" and class_of.get(above) == _DDP)
        before = bare.get(above, above) if path else ""
        bare[path] = before if wrapped or not path else f"{before}.{name}" if before else name
    return bare


def unsharded(name: str) -> str:
    """The class of a module before `fully_shard` gave it one that has FSDP in front."""
    return re.sub("^FSDP(?=[A-Z])", "", name)
