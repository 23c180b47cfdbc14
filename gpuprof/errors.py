"""The one error a user can mend."""

from __future__ import annotations


class GpuprofError(Exception):
    """A problem the user can mend: one line that says what, why and what to do.

    The command line prints it and exits with status 2, without a traceback.
    """


class ForeignFileError(GpuprofError):
    """A file that is whole, but no run."""
