"""Which forward a node of autograd is of: by its number, or by the node that made it."""

from __future__ import annotations

from gpuprof.traces.events import CALL, FUNCTION, NODE, NODE_PREFIX, OPERATOR, RANGE, Event

FOLLOWS = "::AccumulateGrad"
"""The node that has no number, and follows the one whose gradient it takes."""


def node_numbers(host: list[Event]) -> dict[int, tuple[int, int]]:
    """Thread and sequence number of the forward, by the place of an autograd node among the events.

    A hook that runs an operator, or opens a range, before the node's function does takes the number away from the
    node's event (torch 2.13); that function's own event inside still has it. AccumulateGrad has none at all.

    Args:
        host: by thread and start, a range before what is inside it.
    """
    found: dict[int, tuple[int, int]] = {}
    waiting: list[tuple[int, Event]] = []  # open nodes without a number
    for index, event in [(index, event) for index, event in enumerate(host) if event.kind in (NODE, FUNCTION)]:
        if event.kind == NODE:
            if event.number >= 0:
                found[index] = (event.forward_thread, event.number)
            else:
                waiting.append((index, event))
        elif event.kind == FUNCTION and waiting:
            while waiting and (waiting[-1][1].thread != event.thread or waiting[-1][1].end <= event.start):
                waiting.pop()
            if waiting and waiting[-1][1].name == NODE_PREFIX + event.name:
                place, _ = waiting.pop()
                if event.number >= 0:
                    found[place] = (event.forward_thread, event.number)
    return found


def made_by_nodes(host: list[Event]) -> dict[tuple[int, int], int]:
    """Which node made another one, of those whose backward builds a graph of itself (``create_graph=True``).

    An operator names the number that the next node of its thread gets: the last to name one has made that node.

    Args:
        host: by thread and start, a range before what is inside it.

    Returns:
        The place of a node among the events, by thread and sequence number of those that were made in it, but in no
        call of a module inside; for those of AccumulateGrad, the node that it follows.
    """
    found: dict[tuple[int, int], int | None] = {}
    around: list[tuple[Event, int | None]] = []
    thread, last = None, None
    # without a graph of its own a backward makes none, and no operator of its thread has a number
    makes = {event.thread for event in host if event.number >= 0 and event.kind in (OPERATOR, RANGE)}
    threads = makes & {event.thread for event in host if event.kind == NODE}
    for index, event in [(index, event) for index, event in enumerate(host) if event.thread in threads]:
        if event.thread != thread:
            thread, last, around = event.thread, None, []
        while around and around[-1][0].end <= event.start:
            around.pop()
        if event.kind == NODE:
            last = last if event.name.endswith(FOLLOWS) else index
            around.append((event, last))
        elif event.kind == CALL:
            around.append((event, None))
        elif event.kind in (OPERATOR, RANGE) and event.number >= 0:
            found[event.thread, event.number] = around[-1][1] if around else None
    return {number: node for number, node in found.items() if node is not None}
