"""What ranks, loggers and quotes put in front of a report's lines, taken off, and the reports of ranks told apart.

Nothing here knows a logger. What stands before the report's own text where that begins is the prefix, and what begins a
line alike, whatever its numbers, is a prefix too: ``[rank0]: ``, a date with a level, ``> ``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from gpuprof.reports.source import Line

_BAR = re.compile("[|│┃║]")
_BAR_AT_END = re.compile(rf"(?<!\s)\s*{_BAR.pattern}\s*$")
_MODULE = re.compile(r"\s*(?:\([^()]*\): )?(?:\d+ x )?[A-Za-z_][^\s():]*\($")
"""A module that prints its figures behind its own name."""


class Part(NamedTuple):
    """The report of one rank, or of all that there is.

    Attributes:
        rank: what tells it from the others, e.g. ``rank0`` or ``3``, or what is in front of its lines.
        lines: its own text.
    """

    rank: str
    lines: list[Line]


def ways(lines: list[Line], begins: list[str]) -> Iterator[list[Part]]:
    """Ways to take off what is in front of a report's lines, the likeliest first: one of them can be read.

    Each is a part for every rank that printed a report, the lowest first. At first all lines with the prefix are taken
    for the report, then those of one rank alone, then those without it too, as a logger leaves them that puts a prefix
    before a whole message.

    Args:
        lines: of a file.
        begins: patterns of how the report's own text begins, each in one of the lines; more than one of a report that
            is printed twice, in two layouts.
    """
    own = re.compile("|".join(begins))
    yield sorted(_parts(lines, own), key=lambda part: _natural(part.rank))
    prefix, _, prefixed = _prefixed(lines, own)
    for ranks in _by_word(prefix, own, prefixed):
        if len(ranks) == 1:
            yield [Part(rank, [_own(line, match) for match, line in found]) for rank, found in ranks.items()]
    text = lines
    for layout in begins:
        _, template, _ = _prefixed(lines, re.compile(layout))
        text = _whole(text, template).lines
    yield [Part("", text)]


def _parts(lines: list[Line], own: re.Pattern[str]) -> list[Part]:
    prefix, template, prefixed = _prefixed(lines, own)
    others = [line for line in lines if not template.match(line.text)]
    if not prefix or any(_prefix(line.text, own) == "" for line in others):
        return [_whole(lines, template)]
    several = (ranks for ranks in _by_word(prefix, own, prefixed) if len(ranks) > 1)
    framed = _framed(prefix, own, prefixed)
    parts = [
        Part(rank or prefix.strip(), [_own(line, match, framed) for match, line in of_rank])
        for rank, of_rank in next(several, {"": prefixed}).items()
    ]
    return parts + (_parts(others, own) if any(own.search(line.text) for line in others) else [])


def _whole(lines: list[Line], template: re.Pattern[str]) -> Part:
    return Part("", [_own(line, template.match(line.text)) for line in lines])


_Prefixed = list[tuple[re.Match[str], Line]]


def _prefixed(lines: list[Line], own: re.Pattern[str]) -> tuple[str, re.Pattern[str], _Prefixed]:
    """The prefix of the report's first line, what begins a line alike, and the lines that it begins."""
    prefix = next(found for line in lines if (found := _prefix(line.text, own)) is not None)
    template = _template(_words(prefix))
    return prefix, template, [(match, line) for line in lines if (match := template.match(line.text))]


def _prefix(text: str, own: re.Pattern[str]) -> str | None:
    """What is in front of the report's own text; None where that is not in the line."""
    found = own.search(text)
    return _MODULE.sub("", text[: found.start()]) if found else None


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
    return re.compile((r"\s*" if "".join(words).strip() else "") + "".join(patterns))


def _own(line: Line, match: re.Match[str] | None, framed: bool = False) -> Line:
    text = line.text[match.end() :] if match else line.text
    return Line(line.number, _BAR_AT_END.sub("", text) if framed else text)


def _framed(prefix: str, own: re.Pattern[str], prefixed: _Prefixed) -> bool:
    """Whether the bar at the end of the report's first line is of a frame, rather than of the report's own table."""
    texts = [line.text[match.end() :] for match, line in prefixed]
    first = next(place for place, text in enumerate(texts) if own.search(text))
    if not _BAR_AT_END.search(prefix) or not _BAR_AT_END.search(texts[first]):
        return False
    if not _BAR.match(texts[first].strip()):
        return True
    in_frame = _BAR_AT_END.sub("", texts[first])
    following = texts[first + 1 : first + 4]
    return bool(_BAR_AT_END.search(in_frame)) or any(len(_BAR.findall(text)) == 1 for text in following)


def _by_word(prefix: str, own: re.Pattern[str], prefixed: _Prefixed) -> Iterator[dict[str, _Prefixed]]:
    """Lines by what each word of the prefix is in them, of words that may be ranks; those that print a report alone.

    Such a word has more than one line, and the first of the report's own text in them begins as the report does.
    Numbers of a date, a time, an address or a version are no ranks.
    """
    words = _words(prefix)
    groups = [place for place, word in enumerate(words) if _varies(word)]
    for group, place in enumerate(groups, start=1):
        near = ((place - 1, place - 2), (place + 1, place + 2))
        if any(a in range(len(words)) and words[a] in tuple(":.,-/") and b in groups for a, b in near):
            continue
        ranks: dict[str, _Prefixed] = {}
        for match, line in prefixed:
            ranks.setdefault(match[group], []).append((match, line))
        reports = {rank: lines for rank, lines in ranks.items() if any(own.search(line.text) for _, line in lines)}
        if len(ranks) > 1 and all(len(lines) > 1 and _begins(own, lines) for lines in reports.values()):
            yield reports


def _begins(own: re.Pattern[str], lines: _Prefixed) -> bool:
    match, line = next((match, line) for match, line in lines if own.search(line.text))
    return own.match(line.text[match.end() :]) is not None


def _natural(rank: str) -> tuple[int, str]:
    digits = re.search(r"\d+", rank)
    return (int(digits[0]) if digits else 0), rank
