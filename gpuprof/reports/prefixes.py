"""What ranks, loggers and quotes put in front of a report's lines, taken off, and the reports of ranks told apart.

Nothing here knows a logger. What stands before the report's own text where that begins is the prefix, and what begins a
line alike, whatever its numbers, is a prefix too: ``[rank0]: ``, a date with a level, ``> ``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gpuprof.reports.source import Line

_BAR = re.compile("[|│┃║]")
_BAR_AT_END = re.compile(rf"\s*{_BAR.pattern}\s*$")
_MODULE = re.compile(r"\s*(?:\([^()]*\): )?(?:\d+ x )?[A-Za-z_][\w.]*\($")
"""A module that prints its figures behind its own name."""


class Part(NamedTuple):
    """The report of one rank, or of all that there is.

    Attributes:
        rank: what tells it from the others, e.g. ``rank0`` or ``3``, or what is in front of its lines.
        lines: its own text.
    """

    rank: str
    lines: list[Line]


def parts(lines: list[Line], begins: str) -> list[Part]:
    """The report without what is in front of its lines, once for every rank that printed one, the lowest first.

    Args:
        lines: of a file.
        begins: pattern of how the report's own text begins, which is in one of the lines.
    """
    return sorted(_parts(lines, re.compile(begins)), key=lambda part: _natural(part.rank))


def _parts(lines: list[Line], own: re.Pattern[str]) -> list[Part]:
    first = next(place for place, line in enumerate(lines) if own.search(line.text))
    text = lines[first].text
    prefix = _prefix(text, own)
    if not prefix:
        return [Part("", lines)]
    words = _words(prefix)
    template = _template(words)
    prefixed = [(match, line) for line in lines if (match := template.match(line.text))]
    others = [line for line in lines if not template.match(line.text)]
    following = [line.text for line in lines[first + 1 :] if line.text.strip()][:3]
    if not any(map(template.match, following)) or any(_prefix(line.text, own) == "" for line in others):
        # a logger with one prefix for a whole message, or for some of the messages that make the report
        return [Part("", [_own(line, template.match(line.text)) for line in lines])]
    without = [template.sub("", line, count=1) for line in following]
    framed = bool(_BAR_AT_END.search(prefix)) and _framed(text[len(prefix) :], without)
    ranks = [
        Part(rank or prefix.strip(), [_own(line, match, framed) for match, line in of_rank])
        for rank, of_rank in _ranks(words, own, prefixed).items()
    ]
    return ranks + (_parts(others, own) if any(own.search(line.text) for line in others) else [])


def _prefix(text: str, own: re.Pattern[str]) -> str | None:
    """What is in front of the report's own text; None where that is not in the line."""
    found = own.search(text)
    return _MODULE.sub("", text[: found.start()]) if found else None


_Prefixed = list[tuple[re.Match[str], Line]]


def _words(prefix: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", prefix)


def _varies(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _template(words: list[str]) -> re.Pattern[str]:
    """What begins a line as these words do, whatever is in those that have digits; each of those is a group."""
    patterns = []
    for place, word in enumerate(words):
        if not word.isspace():
            patterns.append(r"(\w+)" if _varies(word) else re.escape(word))
        elif place == len(words) - 1:
            patterns.append(rf"\s{{0,{len(word)}}}")  # more of it is the indentation of the report
        else:
            patterns.append(r"\s*")  # numbers are padded to a width
    return re.compile(("" if words[0].isspace() else r"\s*") + "".join(patterns))


def _own(line: Line, match: re.Match[str] | None, framed: bool = False) -> Line:
    text = line.text[match.end() :] if match else line.text
    return Line(line.number, _BAR_AT_END.sub("", text) if framed else text)


def _framed(text: str, following: list[str]) -> bool:
    """Whether the bar at the end of a line is of a frame, rather than of the report's own table."""
    if not _BAR_AT_END.search(text):
        return False
    if not _BAR.match(text.strip()):
        return True
    in_frame = _BAR_AT_END.sub("", text)
    return bool(_BAR_AT_END.search(in_frame)) or any(len(_BAR.findall(line)) == 1 for line in following)


def _ranks(words: list[str], own: re.Pattern[str], prefixed: _Prefixed) -> dict[str, _Prefixed]:
    """Lines by rank.

    A word of the prefix tells ranks apart if there are several of it, and the text of each begins as the report does.
    Numbers of a date, a time, an address or a version do not; nor do those of lines, which have one line each.
    """
    groups = [place for place, word in enumerate(words) if _varies(word)]
    for group, place in enumerate(groups, start=1):
        near = ((place - 1, place - 2), (place + 1, place + 2))
        if any(a in range(len(words)) and words[a] in tuple(":.,-/") and b in groups for a, b in near):
            continue
        ranks: dict[str, _Prefixed] = {}
        for match, line in prefixed:
            ranks.setdefault(match[group], []).append((match, line))
        reports = {rank: lines for rank, lines in ranks.items() if any(own.search(line.text) for _, line in lines)}
        if len(reports) > 1 and all(len(lines) > 1 and _begins(own, lines) for lines in reports.values()):
            return reports
    return {"": prefixed}


def _begins(own: re.Pattern[str], lines: _Prefixed) -> bool:
    match, line = next((match, line) for match, line in lines if own.search(line.text))
    return own.match(line.text, match.end()) is not None


def _natural(rank: str) -> tuple[int, str]:
    digits = re.search(r"\d+", rank)
    return (int(digits[0]) if digits else 0), rank
