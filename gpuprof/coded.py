"""Columns as a run file holds them, in fewer characters than a value for each row would take.

A column of a file is a list of its values; or an object with ``values`` and ``index``, which says for each row which of
them it has: a list of places from 0 on, or the name of the column whose list it shares; or an object with ``steps``,
whose running sums the values are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, overload

_FEW = 50
"""Tables with fewer rows are kept as they are: one can read them."""

_PLACE = 4
"""Characters that the place of a row takes in an index, about."""


class Column(Sequence[Any]):
    """A column of values that repeat, row by row.

    Attributes:
        values: those that there are.
        places: of each row the place of its value among them; columns that repeat together share one array.
    """

    __slots__ = ("places", "values")

    def __init__(self, values: list[Any], places: array[int]) -> None:
        self.values, self.places = values, places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Any]:
        return map(self.values.__getitem__, self.places)

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...

    def __getitem__(self, row: int | slice) -> Any:
        return [*self][row] if isinstance(row, slice) else self.values[self.places[row]]


def distinct(column: Iterable[Any]) -> set[Any]:
    """The values that a column has in any row, each once."""
    if isinstance(column, Column):  # it may know more of them
        return {column.values[place] for place in {*column.places}}
    return {*column}


class _Group(NamedTuple):
    """Columns that repeat together.

    Attributes:
        columns: their names.
        places: of each row the place among their joint values.
        size: how many joint values there are.
        width: characters that one takes, about.
    """

    columns: tuple[str, ...]
    places: list[int]
    size: int
    width: int

    @property
    def written(self) -> int:
        """Characters of a file that its values take, about."""
        return self.size * self.width


def coded(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """The columns of a table as a file holds them.

    Args:
        columns: by name; texts, integers of any size or floats, None where one is missing. Floats stay a list, which
            alone keeps each as it is.
    """
    groups: list[_Group] = []
    forms: dict[str, Any] = dict(columns)
    for name, values in columns.items():
        kinds, rows = {*map(type, values)}, len(values)
        if rows < _FEW or not kinds <= {str, int, type(None)}:
            continue
        distinct = len({*values})
        width = sum(map(len, map(str, {*values}))) // distinct + (3 if str in kinds else 1)
        repeated = distinct * width + rows * _PLACE
        listed = rows * width
        joint = {at: _joint(group, name, values, distinct, width) for at, group in enumerate(groups)}
        more, at = min(((grown.written - groups[at].written, at) for at, grown in joint.items()), default=(listed, 0))
        if more < min(repeated, listed):
            groups[at] = joint[at]
        elif repeated < listed:
            groups.append(_joint(_Group((), [0] * rows, 1, 0), name, values, distinct, width))
        elif kinds == {int}:
            steps = [values[0], *(after - before for before, after in pairwise(values))]
            forms[name] = {"steps": steps} if len(str(steps)) < len(str(values)) else values
    for group in groups:
        first = dict(zip(reversed(group.places), range(len(group.places) - 1, -1, -1), strict=True))
        for name in group.columns:
            shared = group.places if name == group.columns[0] else group.columns[0]
            forms[name] = {"values": [columns[name][first[at]] for at in range(group.size)], "index": shared}
    return forms


def _joint(group: _Group, name: str, values: list[Any], distinct: int, width: int) -> _Group:
    """A group with a further column; not worth looking for what their joint values are, it is with as many as rows."""
    columns, wide, places, size = (*group.columns, name), group.width + width, group.places, len(values)
    if max(group.size, distinct) * wide - group.written < len(values) * width:
        known: dict[Any, int] = {}
        places = [known.setdefault(joint, len(known)) for joint in zip(group.places, values, strict=True)]
        size = len(known)
    return _Group(columns, places, size, wide)


def decoded(forms: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Columns of a table of a file: each a list, or a `Column`; what is in no known form as it is.

    Args:
        forms: what the file has of the table.
        names: of the columns that are wanted.

    Raises:
        KeyError, TypeError, ValueError: a part of a form is missing or broken.
    """
    shared: dict[str, tuple[array[int], int]] = {}
    return {name: _decoded(name, forms, shared) if isinstance(forms[name], dict) else forms[name] for name in names}


def _decoded(name: str, forms: dict[str, Any], shared: dict[str, tuple[array[int], int]]) -> list[Any] | Column:
    """One of them; an index is read once, and its last place known."""
    form = forms[name]
    if "steps" in form:
        if not {*map(type, form["steps"])} <= {int}:
            raise ValueError(f"the steps of {name} are none")
        return [*accumulate(form["steps"])]
    values, owner = form["values"], form["index"] if isinstance(form["index"], str) else name
    try:
        if owner not in shared:
            index = forms[owner]["index"]
            shared[owner] = (array("I", index), max(index, default=-1))
        places, last = shared[owner]
    except (OverflowError, TypeError) as error:
        raise ValueError(f"the index of {name} is none") from error
    if not isinstance(values, list) or last >= len(values):
        raise ValueError(f"the index of {name} leads nowhere")
    return Column(values, places)
