"""Operators that are not counted, as what they call is: something else runs in their place, or they are composed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from gpuprof.theory import rule_for
from gpuprof.theory.names import communicates
from gpuprof.theory.rules import PRODUCTS
from gpuprof.traces.events import MODE, OPERATOR, SUBCLASS, Event


def taken_over(host: list[Event], operators: set[str]) -> set[int]:
    """Operators, by their place among the events, in whose place a dispatch mode or a tensor does something.

    It calls them again, inside, or not at all: selective checkpointing hands out what it has saved; the operator
    began, and nothing of it ran. A class of tensors calls it on those that it holds, a DTensor on the shard of this
    rank; a nested tensor, of which a trace knows no shape, is what the operator works on itself. No operator of
    ``aten`` communicates: where one does, it was given a tensor of a class that waits for its elements or sends them
    first, and then calls the operator.

    Args:
        host: by thread and start, a range before what is inside it.
        operators: names of all that ran.
    """
    found: set[int] = set()
    messages = {name for name in operators if communicates(name)}
    if not messages and not any(event.kind in (MODE, SUBCLASS) for event in host):
        return found
    for _, event, around in _nested(host):
        if event.kind in (MODE, SUBCLASS) and around and around[-1][1].kind == OPERATOR:
            place, outer = around[-1]
            if event.kind == MODE or any(outer.shapes[:1]):
                found.add(place)
        elif event.kind == OPERATOR and event.name in messages:
            found.update(place for place, outer in around if outer.kind == OPERATOR and outer.name[:6] == "aten::")
    return found


def around_products(host: list[Event], operators: set[str]) -> set[int]:
    """Operators, likewise, that nobody has a rule for and that call others which multiply: composed of these, it seems.

    Of a library's own, such as a wrapper of a linear layer. A counting pass sees them whole; a recording has both.
    """
    rules = {name: rule_for(name) for name in operators}
    multiply = {name for name, rule in rules.items() if rule and rule.kind in PRODUCTS}
    products = [(event.thread, event.start) for event in host if event.name in multiply]
    found: set[int] = set()
    for index, event in enumerate(host):
        if rules.get(event.name, "") is None:
            first = bisect_left(products, (event.thread, event.start))
            if first < len(products) and products[first] < (event.thread, event.end):
                found.add(index)
    return found


def _nested(host: list[Event]) -> Iterator[tuple[int, Event, list[tuple[int, Event]]]]:
    """Each event with its place, and those around it, the outermost first."""
    around: list[tuple[int, Event]] = []
    for index, event in enumerate(host):
        while around and (around[-1][1].thread != event.thread or around[-1][1].end <= event.start):
            around.pop()
        yield index, event, around
        around.append((index, event))
