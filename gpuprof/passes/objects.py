"""What an object holds, whether in its dictionary or in slots."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import MemberDescriptorType
from typing import Any


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
