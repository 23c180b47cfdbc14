"""What is made when it is first asked for: pandas and numpy, and regular expressions.

The import of these two takes longer than most of what the command line does, and much of that needs neither. A regular
expression takes up to a millisecond to compile, and most commands need none of those of kernel names.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    def pattern(text: str, flags: int = 0) -> re.Pattern[str]:
        """As `re.compile`."""
else:

    class _Late:
        """A module that is imported when its first attribute is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            found = getattr(import_module(self._name), attribute)
            setattr(self, attribute, found)  # from now on it costs what an attribute does
            return found

    class pattern:  # noqa: N801
        """A regular expression that is compiled when its first attribute is asked for."""

        def __init__(self, text: str, flags: int = 0) -> None:
            self._given = text, flags

        def __getattr__(self, attribute: str) -> Any:
            found = getattr(re.compile(*self._given), attribute)
            setattr(self, attribute, found)
            return found

    np, pd = _Late("numpy"), _Late("pandas")

__all__ = ["np", "pattern", "pd"]
