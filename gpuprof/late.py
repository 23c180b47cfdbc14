"""pandas and numpy, imported when something of them is first asked for.

Their import takes longer than most of what the command line does, and much of that needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
else:

    class _Late:
        """A module that is imported when its first attribute is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            found = getattr(import_module(self._name), attribute)
            setattr(self, attribute, found)  # from now on it costs what an attribute does
            return found

    np, pd = _Late("numpy"), _Late("pandas")

__all__ = ["np", "pd"]
