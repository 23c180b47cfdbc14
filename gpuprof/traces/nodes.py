"""Which forward a node of autograd is of: by its number, or by the node that made it."""

from __future__ import annotations

from numpy.typing import NDArray

from gpuprof.late import np
from gpuprof.traces.events import CALL, FUNCTION, NODE, NODE_PREFIX, OPERATOR, RANGE, Events

FOLLOWS = "::AccumulateGrad"
"""The node that has no number, and follows the one whose gradient it takes."""


def node_numbers(host: Events) -> dict[int, tuple[int, int]]:
    """Thread and sequence number of the forward, by the place of an autograd node among the events.

    A hook that runs an operator, or opens a range, before the node's function does takes the number away from the
    node's event (torch 2.13); that function's own event inside still has it. AccumulateGrad has none at all.

    Args:
        host: by thread and start, a range before what is inside it.
    """
    nodes = host.sorts(NODE)[host.sort]
    numbered, without = np.flatnonzero(nodes & (host.number >= 0)), nodes & (host.number < 0)
    numbers = zip(host.forward_thread[numbered].tolist(), host.number[numbered].tolist(), strict=True)
    found = dict(zip(numbered.tolist(), numbers, strict=True))
    names = {host.names[sort] for sort in np.unique(host.sort[without]).tolist()}
    sorts = [
        kind == FUNCTION and NODE_PREFIX + name in names for name, kind in zip(host.names, host.kinds, strict=True)
    ]
    either = without | np.array(sorts, np.bool_)[host.sort]
    for _, first, after in host.threads():
        rows = first + np.flatnonzero(either[first:after])
        columns = (host.sort, host.start, host.end, host.forward_thread, host.number)
        waiting: list[tuple[int, int, str]] = []  # open nodes without a number: place, end, name
        for row, sort, start, end, *number in zip(rows.tolist(), *(c[rows].tolist() for c in columns), strict=True):
            if host.kinds[sort] == NODE:
                waiting.append((row, end, host.names[sort]))
                continue
            while waiting and waiting[-1][1] <= start:
                waiting.pop()
            if waiting and waiting[-1][2] == NODE_PREFIX + host.names[sort]:
                place, _, _ = waiting.pop()
                if number[1] >= 0:
                    found[place] = (number[0], number[1])
    return found


def made_by_nodes(host: Events) -> dict[tuple[int, int], int]:
    """Which node made another one, of those whose backward builds a graph of itself (``create_graph=True``).

    An operator names the number that the next node of its thread gets: the last to name one has made that node.

    Args:
        host: by thread and start, a range before what is inside it.

    Returns:
        The place of a node among the events, by thread and sequence number of those that were made in it, but in no
        call of a module inside; for those of AccumulateGrad, the node that it follows.
    """
    found: dict[tuple[int, int], int | None] = {}
    makes = host.sorts(OPERATOR, RANGE)[host.sort] & (host.number >= 0)
    around_them = host.sorts(NODE, CALL)[host.sort]
    for thread, first, after in host.threads():
        makers = first + np.flatnonzero(makes[first:after])
        if not _in_nodes(host, makers, first, after):  # without a graph of its own a backward makes none
            continue
        rows = first + np.flatnonzero((makes | around_them)[first:after])
        around: list[tuple[int, int | None]] = []
        last = None
        columns = (host.sort, host.start, host.end, host.number)
        for row, sort, start, end, number in zip(rows.tolist(), *(c[rows].tolist() for c in columns), strict=True):
            while around and around[-1][0] <= start:
                around.pop()
            if host.kinds[sort] == NODE:
                last = last if host.names[sort].endswith(FOLLOWS) else row
                around.append((end, last))
            elif host.kinds[sort] == CALL:
                around.append((end, None))
            else:
                found[thread, number] = around[-1][1] if around else None
    return {number: node for number, node in found.items() if node is not None}


def _in_nodes(host: Events, rows: NDArray[np.intp], first: int, after: int) -> bool:
    """Whether any of these events of a thread, which is from one place to another, begins while a node runs."""
    nodes = first + np.flatnonzero(host.sorts(NODE)[host.sort[first:after]])
    if not len(nodes) or not len(rows):
        return False
    place = np.searchsorted(host.start[nodes], host.start[rows], side="right")
    reach = np.r_[np.iinfo(np.int64).min, np.maximum.accumulate(host.end[nodes])]
    return bool((reach[place] > host.start[rows]).any())
