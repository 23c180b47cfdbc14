"""Parts of torch.distributed that somebody uses: what nobody has loaded is nowhere in a model."""

from __future__ import annotations

import sys
from typing import Any


def classes(module: str, *names: str) -> tuple[type[Any], ...]:
    """Classes of a module of torch, none of them if nobody has loaded it: then no object is of them."""
    loaded = sys.modules.get(module)
    return tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))
