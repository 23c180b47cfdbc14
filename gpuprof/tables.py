"""Raw tables as attributes of an object: plain columns until somebody asks for the frame, so that few need pandas."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from gpuprof.coded import Column, distinct
from gpuprof.schema import columns, frame, plain, values

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, list[Any]]
"""A table as plain values, column by column."""

_making = Lock()


class HeldTable:
    """A raw table of an object: columns as in a file until its frame is asked for, and from then on the frame.

    May be set as a frame, columns or rows; columns are the object's from then on.
    """

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Tables | None, _: type | None = None) -> Any:
        if owner is None:
            return None  # what it holds by default: no rows
        held = owner.__dict__[self._name]
        if isinstance(held, dict):
            with _making:  # whoever asks meanwhile gets the same frame
                held = owner.__dict__[self._name]
                if isinstance(held, dict):
                    held = owner.__dict__[self._name] = frame(self._name, held)
        return held

    def __set__(self, owner: Tables, value: pd.DataFrame | Columns | list[dict[str, Any]] | None) -> None:
        given = value is None or isinstance(value, (dict, list))
        owner.__dict__[self._name] = plain(self._name, value or {}) if given else value


class Tables:
    """An object with raw tables, of which each is a `HeldTable`."""

    def columns(self, name: str) -> Columns:
        """A raw table as plain values, column by column, None where one is missing. Not to be changed.

        Args:
            name: of `TABLES`.
        """
        held = self.__dict__[name]
        return {column: self.column(name, column) for column in held} if isinstance(held, dict) else columns(held)

    def column(self, name: str, column: str) -> list[Any]:
        """One column of it likewise."""
        held = self.__dict__[name]
        if not isinstance(held, dict):
            return values(held[column])
        if isinstance(held[column], Column):
            held[column] = [*held[column]]
        found: list[Any] = held[column]
        return found

    def distinct(self, name: str, column: str) -> set[Any]:
        """What a column has, each once."""
        held = self.__dict__[name]
        return distinct(held[column] if isinstance(held, dict) else held[column].tolist())

    def held(self, name: str) -> Columns | pd.DataFrame:
        """A raw table as it is here: columns until its frame was asked for, and from then on the frame."""
        held: Columns | pd.DataFrame = self.__dict__[name]
        return held

    def has(self, name: str) -> bool:
        """Whether a raw table has any row."""
        held = self.__dict__[name]
        return bool(next(iter(held.values()))) if isinstance(held, dict) else len(held) > 0
