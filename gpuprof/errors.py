"""The one error a user can mend."""

from __future__ import annotations

import os


class GpuprofError(Exception):
    """A problem the user can mend: one line that says what, why and what to do.

    The command line prints it and exits with status 2, without a traceback.
    """


def no_run(path: str | os.PathLike[str]) -> GpuprofError:
    """What is wrong where a saved run should be and no file is."""
    return GpuprofError(f"no file {path}: give a run saved by 'gpuprof profile -o' or 'count -o'")


class ForeignFileError(GpuprofError):
    """A file that is whole, but no run."""
