"""The module tree as torch prints a model, with figures among what each module says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpuprof.reports.source import Source, short

# What a logger puts before a whole message is before its first line only.
_ROOT = re.compile(r"(?:.*?[^\w.\[\]<>])??(?P<class>[A-Za-z_][^\s():]*)\((?P<rest>.*)")
_CHILD = re.compile(r"\((?P<name>[^()]+)\): (?:(?P<count>\d+) x )?(?P<class>[^\s()]+)\((?P<rest>.*)")

_MOST_MODULES = 200_000


@dataclass
class Node:
    """One printed module; a folded one stands for several.

    Attributes:
        line: number of the line it begins in.
        indent: column it begins in.
        label: its name as printed; empty for the root.
        names: its name, or the names of all that are folded into it.
        cls: class name.
        texts: (line number, text) of what it says of itself.
        children: the modules in it.
    """

    line: int
    indent: int
    label: str
    names: list[str]
    cls: str
    texts: list[tuple[int, str]] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def find_tree(source: Source, figures: re.Pattern[str]) -> tuple[Node, int] | None:
    """The first tree whose root carries figures, and the number of its last line; None if there is none.

    Raises:
        GpuprofError: the tree does not end, or its brackets do not fit, or a second tree follows.
    """
    start = _find_root(source, figures, 1)
    if start is None:
        return None
    root, end = _parse(source, start)
    if second := _find_root(source, figures, end + 1):
        raise source.error("a second report begins here: put every report into a file of its own", second)
    return root, end


def walk(source: Source, root: Node) -> Iterator[tuple[str, Node]]:
    """Path and node of every module, in the printed order, each folded module as often as it stands for."""
    counting = [(1, root)]
    modules = 0
    while counting:
        times, node = counting.pop()
        modules += times
        if modules > _MOST_MODULES:
            raise source.error(f"folded layers make more than {_MOST_MODULES:,} modules", node.line)
        counting.extend((times * len(child.names), child) for child in node.children)
    waiting = [("", root)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        below = [(f"{path}.{name}" if path else name, child) for child in node.children for name in child.names]
        waiting.extend(reversed(below))


def _find_root(source: Source, figures: re.Pattern[str], first: int) -> int | None:
    for number, line in enumerate(source.lines[first - 1 :], start=first):
        match = None if _CHILD.fullmatch(line.strip()) else _ROOT.fullmatch(line.strip())
        if not match:
            continue
        if match["rest"]:
            if figures.search(match["rest"]):
                return number
            continue
        for follower in source.lines[number:]:
            if _CHILD.fullmatch(follower.strip()) or follower.strip() == ")":
                break
            if figures.search(follower):
                return number
            if (other := _ROOT.fullmatch(follower.strip())) and not other["rest"]:
                break
    return None


def _parse(source: Source, start: int) -> tuple[Node, int]:
    line = source.lines[start - 1]
    match = _ROOT.fullmatch(line.strip())
    assert match
    root = Node(start, _indent(line), "", [""], match["class"])
    if match["rest"]:
        _leaf(source, root, match["rest"])
        return root, start
    open_nodes = [root]
    for number, line in enumerate(source.lines[start:], start=start + 1):
        text = line.strip()
        node = open_nodes[-1]
        if text == ")":
            if _indent(line) != node.indent:
                where = f"{_path(open_nodes)} (line {source.number(node.line)})"
                raise source.error(f"this bracket does not close {where}: lines are missing or moved", number)
            open_nodes.pop()
            if not open_nodes:
                return root, number
        elif match := _CHILD.fullmatch(text):
            child = Node(number, _indent(line), match["name"], _names(source, number, match), match["class"])
            node.children.append(child)
            open_nodes.append(child)
            if match["rest"]:
                if not match["rest"].endswith(")") and not _rest_of(source, number):
                    break
                _leaf(source, child, match["rest"])
                open_nodes.pop()
        elif text:
            node.texts.append((number, text))
    node = open_nodes[-1]
    raise source.error(f"ends inside {_path(open_nodes)} (line {source.number(node.line)}): the report is cut off")


def _leaf(source: Source, node: Node, rest: str) -> None:
    if not rest.endswith(")"):
        raise source.error(f"expected ')' at the end of {short(node.cls + '(' + rest)}", node.line)
    node.texts.append((node.line, rest[:-1]))


def _names(source: Source, number: int, match: re.Match[str]) -> list[str]:
    if match["count"] is None:
        return [match["name"]]
    first_last = re.fullmatch(r"(\d{1,9})-(\d{1,9})", match["name"])
    if not first_last:
        raise source.error(f"expected '(first-last): {match['count']} x', found {short(match[0])}", number)
    first, last = int(first_last[1]), int(first_last[2])
    if last - first + 1 != int(match["count"]):
        raise source.error(f"({match['name']}) are {last - first + 1} layers, not {match['count']}", number)
    if last - first >= _MOST_MODULES:
        raise source.error(f"folded layers make more than {_MOST_MODULES:,} modules", number)
    return [str(index) for index in range(first, last + 1)]


def _path(nodes: list[Node]) -> str:
    path = ".".join(node.label for node in nodes[1:])
    return f"'{path}'" if path else f"the model '{nodes[0].cls}'"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _rest_of(source: Source, number: int) -> bool:
    return any(line.strip() for line in source.lines[number:])
