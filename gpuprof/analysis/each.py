"""What is found out of each text, or of each set of values in a row, once however many of a million kernels have it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

from gpuprof.late import np, pd


def each(texts: pd.Series, of: Callable[[Any], Any] | Mapping[Any, Any]) -> pd.Series:
    """Something of each text of a column, as objects.

    Args:
        texts: the column.
        of: what it is, of a text; a mapping has all of them.
    """
    places, known = _places(texts)
    found = map(of.__getitem__ if isinstance(of, Mapping) else of, known)
    return pd.Series(_objects(found)[places], texts.index, dtype="object")


def where(texts: pd.Series, is_so: Callable[[Any], Any]) -> np.ndarray:
    """In which rows the text of a column is so."""
    places, known = _places(texts)
    return np.array([bool(is_so(text)) for text in known], dtype=bool)[places]


def each_row(rows: pd.DataFrame, of: Callable[..., Any]) -> pd.Series:
    """Something of the values of each row, in the order of the columns, as objects."""
    places, first = numbered(rows)
    found = (of(*row) for row in first.itertuples(index=False, name=None))
    return pd.Series(_objects(found)[places], rows.index, dtype="object")


def numbered(rows: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Which rows are alike in all columns.

    Returns:
        Of each row the number of the first that is like it, among those that differ, and these, in their order.
    """
    places = np.zeros(len(rows), dtype="int64")
    for _, column in rows.items():
        found, known = _places(column)
        places = pd.factorize(places * len(known) + found)[0] if places.any() else found
    first = np.zeros(int(places.max(initial=-1)) + 1, dtype="int64")
    first[places[::-1]] = np.arange(len(rows))[::-1]
    return places, rows.iloc[first]


def _places(column: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """Of each row the place of its value among those that there are, in their order, and these."""
    # by Python's own hashes, which each text keeps: pandas reads all of a text, and the names of kernels are long
    known: defaultdict[Any, int] = defaultdict(count().__next__)
    return np.fromiter(map(known.__getitem__, column.tolist()), dtype="int64", count=len(column)), [*known]


def _objects(values: Iterable[Any]) -> np.ndarray:
    listed = [*values]
    held = np.empty(len(listed), dtype=object)
    for place, value in enumerate(listed):  # one by one: a tuple is a value, too
        held[place] = value
    return held
