"""What Typer says of wrong usage, in the words of this command line."""

from __future__ import annotations

import re

_VALUE = re.compile(r"Invalid value for '([^']+)'(?: / '[^']+')*: (?:Value error, )?(.*)")
_CHOICE = re.compile(r"('.*') is not one of (.*)")


def in_words(message: str) -> str:
    """A complaint as one line: ``--mode 'dream' is not one of: train, forward``, ``--top must be a valid integer``."""
    said = " ".join(message.split()).removesuffix(".")
    if not (found := _VALUE.fullmatch(said)):
        return said
    option, why = found.groups()
    if choice := _CHOICE.fullmatch(why):
        return f"{option} {choice[1]} is not one of: {choice[2].replace(chr(39), '')}"
    if why.startswith("Input should be "):
        return f"{option} must be {why.removeprefix('Input should be ').partition(', unable to')[0]}"
    return said
