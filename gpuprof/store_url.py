"""Where a run store is: what can be told to be wrong without SQLAlchemy, whose import takes longer than that."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpuprof.errors import GpuprofError

FORMS = "give a path, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"

DRIVERS = {"sqlite": ("pysqlite", "sqlite:///FILE"), "postgresql": ("psycopg", "postgresql+psycopg://")}
"""The driver of each database, and how it is asked for."""


def check(url: str | os.PathLike[str], create: bool = True) -> None:
    """Refuse what is no URL of a store, or of a file that is not to be had.

    Names of hosts and databases are for SQLAlchemy to read, in `gpuprof.history.open_store`.

    Args:
        url: ``sqlite:///FILE``, a path, or ``postgresql+psycopg://USER@HOST/DATABASE``.
        create: whether a store may be made where there is none.

    Raises:
        GpuprofError: no such URL, driver, folder or store.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator and ":" not in text.partition("/")[0]:
        _check_file(Path(text).expanduser(), create)
        return
    if not separator or not re.fullmatch(r"[\w+]+", scheme):
        raise GpuprofError(f"the URL of the store cannot be read: {FORMS}")
    backend = scheme.partition("+")[0]
    if backend not in DRIVERS:
        raise GpuprofError(f"a store is not kept in {backend}: {FORMS}")
    driver, form = DRIVERS[backend]
    if scheme not in (backend, f"{backend}+{driver}"):
        raise GpuprofError(f"a store is not kept through {scheme}: use {form}")
    if backend == "sqlite" and re.fullmatch(r"/[^?]+", rest) and rest != "/:memory:":
        _check_file(Path(rest[1:]), create)


def _check_file(path: Path, create: bool) -> None:
    if path.is_dir():
        raise GpuprofError(f"cannot open the store {path}: it is a folder; give a file such as {path / 'history.db'}")
    if not path.parent.is_dir():
        raise GpuprofError(f"cannot open the store {path}: there is no folder {path.parent}; make it first")
    if not create and not path.exists():
        raise GpuprofError(f"there is no store {path}: 'gpuprof profile --store' and 'history import' make one")
