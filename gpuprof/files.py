"""Files that appear whole or not at all, and what is written to that is none."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

from gpuprof.errors import GpuprofError


def _takes_writes(path: Path) -> bool:
    """Whether it is there and no file whose place another may take: a device, a pipe, an output under /dev."""
    return path.exists() and (not path.is_file() or path.absolute().is_relative_to("/dev"))


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write text or bytes (gzip if the name ends in ``.gz``) so that the file is never seen half-written.

    A link stays, and what it leads to is written; a device or a pipe is written to.

    Raises:
        GpuprofError: the file cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    temporary = None
    try:
        if _takes_writes(path):
            with open(path, "wb") as there:
                there.write(data)
            return path
        target = path.resolve()
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise GpuprofError(f"cannot write {path}: {error.strerror or error}") from error
    return path
