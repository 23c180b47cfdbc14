"""What an object holds, whether in its dictionary or in slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import MemberDescriptorType, ModuleType
from typing import Any

import torch

_MOST = 1000  # containers and objects in which tensors are looked for
_NOTHING_IN = (bool, int, str, float, complex, bytes, type(None), type, ModuleType, torch.nn.Module, torch.dtype)


def named_tensors(
    value: Any, depth: int = 4, been: set[int] | None = None, path: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in containers and plain objects, with its dotted path; each of these objects once.

    Args:
        value: where to look.
        depth: containers and objects in one another; that of what a model is given by default.
        been: those that need not be looked at again, by their id.
        path: of the value.
    """
    been = set() if been is None else been
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if isinstance(value, _NOTHING_IN) or depth == 0 or id(value) in been or len(been) == _MOST:
        return
    been.add(id(value))
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple, deque)):
        items = enumerate(list(value))
    else:
        items = list(attributes(value))
    for name, item in items:
        yield from named_tensors(item, depth - 1, been, f"{path}.{name}" if path else str(name))


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of an object's own attributes; nothing of the object's own code is run for them."""
    yield from getattr(value, "__dict__", {}).items()
    for name, slot in _slots(type(value)):  # type: ignore[arg-type]  # a class has a hash
        try:
            yield name, slot.__get__(value)
        except AttributeError:  # nothing in it yet
            continue


@lru_cache(1024)
def _slots(kind: type) -> list[tuple[str, MemberDescriptorType]]:
    """By the class that has them, so that those with private names, and of two with one name both, are there."""
    found = [pair for base in kind.__mro__ for pair in vars(base).items()]
    # the dictionary itself is one in classes written in C (types.SimpleNamespace)
    return [(name, slot) for name, slot in found if isinstance(slot, MemberDescriptorType) and name != "__dict__"]
