"""Operators that are not counted, as what they call is: something else runs in their place, or they are composed."""

from __future__ import annotations

from collections.abc import Iterator

from gpuprof.late import np
from gpuprof.theory import rule_for
from gpuprof.theory.names import communicates
from gpuprof.theory.rules import PRODUCTS
from gpuprof.traces.events import MODE, OPERATOR, SUBCLASS, Events


def taken_over(host: Events) -> set[int]:
    """Operators, by their place among the events, in whose place a dispatch mode or a tensor does something.

    It calls them again, inside, or not at all: selective checkpointing hands out what it has saved; the operator
    began, and nothing of it ran. A class of tensors calls it on those that it holds, a DTensor on the shard of this
    rank; a nested tensor, of which a trace knows no shape, is what the operator works on itself. No operator of
    ``aten`` communicates: where one does, it was given a tensor of a class that waits for its elements or sends them
    first, and then calls the operator.

    Args:
        host: by thread and start, a range before what is inside it.
    """
    found: set[int] = set()
    if not may_take_over(host):
        return found
    for row, around in _nested(host):
        name, kind = host.names[host.sort[row]], host.kinds[host.sort[row]]
        if kind in (MODE, SUBCLASS) and around and host.kinds[host.sort[around[-1]]] == OPERATOR:
            outer = around[-1]
            if kind == MODE or any(host.shapes[host.shape[outer]][:1]):
                found.add(outer)
        elif kind == OPERATOR and communicates(name):
            outside = ((outer, host.sort[outer]) for outer in around)
            found.update(
                outer for outer, sort in outside if host.kinds[sort] == OPERATOR and host.names[sort][:6] == "aten::"
            )
    return found


def may_take_over(host: Events) -> bool:
    """Whether there is anything among the events that may do something in an operator's place."""
    sorts = list(map(takes_over, host.names, host.kinds))
    return bool(np.array(sorts, np.bool_)[host.sort].any())


def takes_over(name: str, kind: str) -> bool:
    """Whether an event of this name and kind may do something in the place of an operator around it."""
    return kind in (MODE, SUBCLASS) or (kind == OPERATOR and communicates(name))


def around_products(host: Events) -> set[int]:
    """Operators, likewise, that nobody has a rule for and that call others which multiply: composed of these, it seems.

    Of a library's own, such as a wrapper of a linear layer. A counting pass sees them whole; a recording has both.
    """
    rules = {name: rule_for(name) for name, kind in zip(host.names, host.kinds, strict=True) if kind == OPERATOR}
    multiply = {name for name, rule in rules.items() if rule and rule.kind in PRODUCTS}
    multiplies = np.array([name in multiply for name in host.names], np.bool_)[host.sort]
    unknown = np.array([rules.get(name, "") is None for name in host.names], np.bool_)[host.sort]
    found: set[int] = set()
    for _, first, after in host.threads():
        rows = first + np.flatnonzero(unknown[first:after])
        products = host.start[first:after][multiplies[first:after]]
        next_one = np.searchsorted(products, host.start[rows])
        found.update(rows[np.r_[products, np.iinfo(np.int64).max][next_one] < host.end[rows]].tolist())
    return found


def _nested(host: Events) -> Iterator[tuple[int, list[int]]]:
    """The place of each event, and of those around it, the outermost first."""
    for _, first, after in host.threads():
        around: list[int] = []
        ends: list[int] = []
        columns = (host.start[first:after].tolist(), host.end[first:after].tolist())
        for row, start, end in zip(range(first, after), *columns, strict=True):
            while ends and ends[-1] <= start:
                ends.pop()
                around.pop()
            yield row, around
            around.append(row)
            ends.append(end)
