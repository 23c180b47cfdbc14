"""Files that appear whole or not at all."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

from gpuprof.errors import GpuprofError


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write text or bytes (gzip if the name ends in ``.gz``) so that the file is never seen half-written.

    Raises:
        GpuprofError: the file cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise GpuprofError(f"cannot write {path}: {error.strerror or error}") from error
    return path
