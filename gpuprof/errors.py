"""The one error a user can mend, and what runs out of memory."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

# of torch's allocators and of the system; of CUDA's calls; of cuBLAS, cuDNN and their like, which say it by a status
_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]memory|not enough memory|can(no|')t allocate memory|MemoryError|MemoryAllocation|"
    r"_ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)


class GpuprofError(Exception):
    """A problem the user can mend: one line that says what, why and what to do.

    The command line prints it and exits with status 2, without a traceback.
    """


def no_run(path: str | os.PathLike[str]) -> GpuprofError:
    """What is wrong where a saved run should be and no file is."""
    return GpuprofError(f"no file {path}: give a run saved by 'gpuprof profile -o', 'count -o' or 'import -o'")


class ForeignFileError(GpuprofError):
    """A file that is whole, but no run."""


def first_line(error: BaseException) -> str:
    """What an exception says, cut to its first line, and the next one where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def place_of(error: BaseException) -> str:
    """Where in the user's own code an exception comes from, ``" (net.py:12)"``: the innermost line of it.

    Empty where it went through none: through libraries, which are installed, and gpuprof alone.
    """
    if isinstance(error, SyntaxError):  # which says so itself
        return ""
    others = (Path(__file__).parent, Path(os.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        installed = {"site-packages", "dist-packages"} & {*path.parts}
        if not (installed or any(map(path.is_relative_to, others)) or path.name.startswith("<frozen")):
            return f" ({path.name}:{frame.lineno})"
    return ""


def is_out_of_memory(said: BaseException | str) -> bool:
    """Whether an error, or the text of one, says that there was not the memory: the GPU's or the host's.

    A few libraries say it in the words of another failure, such as CUBLAS_STATUS_NOT_INITIALIZED: those are not seen.
    """
    text = f"{type(said).__name__}: {said}" if isinstance(said, BaseException) else said
    return _OUT_OF_MEMORY.search(text) is not None
