"""What a Hugging Face configuration says, and how it is asked."""

from __future__ import annotations

from typing import Any


def ask(config: Any, name: str, default: Any = None) -> Any:
    """A field of a configuration; the default where it has none, or does not tell.

    Some raise errors of their own, as those do whose layers differ in the field.
    """
    try:
        return getattr(config, name, default)
    except Exception:  # the configuration's own code decides which
        return default


def parts(config: Any) -> list[Any]:
    """A configuration and all within it, outer ones first."""
    found = [config]
    for part in found:
        inner = [value for value in vars(part).values() if isinstance(getattr(type(value), "model_type", None), str)]
        found += [value for value in inner if all(value is not known for known in found)]
    return found
