"""Inductor's caches, somewhere else for the while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from gpuprof.undo import undoing

_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "triton"}
"""Variables that Inductor asks at every compilation, and the folders in the one that is made."""


@contextmanager
def empty_caches() -> Iterator[None]:
    """Nothing that was compiled before is found in here, and nothing of it after; what is loaded goes on to run."""
    with TemporaryDirectory(prefix="gpuprof-", ignore_cleanup_errors=True) as folder, undoing() as undo:
        for name, inside in _FOLDERS.items():
            undo(_put_back, name, os.environ.get(name))
            os.environ[name] = os.path.join(folder, inside)
        undo(clear_caches)
        clear_caches()
        yield


def clear_caches() -> None:
    """Forget what Inductor has in memory; what is loaded goes on to run."""
    from torch._inductor.utils import clear_caches  # which is slow to import, and most steps never need it

    clear_caches()


def _put_back(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
